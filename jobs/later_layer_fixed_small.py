"""Later layers are redrawn to the same values in every generation and train on: what is a fresh draw worth?

A question of ours. The published ablation (Zhou et al. 2022, arXiv:2202.00155) holds the layers at that draw, too:
`later_layer_fixed_held_small.py`.
"""

from dataclasses import replace

from later_layer_small import config as published

from llf_ray.cli import main_job
from llf_ray.recipes.later_layer import LaterLayer

assert isinstance(published.recipe, LaterLayer)
config = replace(published, name="later-layer-fixed-small", recipe=replace(published.recipe, fixed=True))

if __name__ == "__main__":
    main_job(__file__)
