"""Warm restarts on the bundled images: each of four generations has a new optimizer and a new cosine.

The "normal" mode of SEAL's code (Sarfi et al. 2023, arXiv:2304.04858): SEAL without its ascent.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.restarts import Restarts

config = replace(long, name="restarts-small", recipe=Restarts(generations=4, epochs=20))

if __name__ == "__main__":
    main_job(__file__)
