"""Warm restarts at the budget of `long_small.py`: four generations of 25 epochs, each with a new optimizer and a new
cosine.

The "normal" mode of SEAL's code (Sarfi et al. 2023, arXiv:2304.04858): the baseline that differs from SEAL by the
ascent alone.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.restarts import Restarts

config = replace(long, name="restarts-small", recipe=Restarts(generations=4, epochs=25))

if __name__ == "__main__":
    main_job(__file__)
