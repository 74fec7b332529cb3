"""Ablation: later layers are held at one draw, the same in every generation.

Much worse than a fresh draw (Zhou et al. 2022, arXiv:2202.00155).
"""

from dataclasses import replace

from later_layer_small import config as published

from llf_ray.cli import main_job
from llf_ray.recipes.later_layer import LaterLayer

assert isinstance(published.recipe, LaterLayer)
config = replace(
    published, name="later-layer-fixed-held-small", recipe=replace(published.recipe, hold="later", fixed=True)
)

if __name__ == "__main__":
    main_job(__file__)
