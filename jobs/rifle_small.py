"""A new head in every generation on the bundled images, under one cosine.

Li et al. 2020 (arXiv:2007.03349) do this while fine-tuning, and claim 0.5 to 2 points over fine-tuning without it.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.rifle import Rifle

config = replace(long, name="rifle-small", recipe=Rifle(generations=4, epochs=20, warmup_epochs=1))

if __name__ == "__main__":
    main_job(__file__)
