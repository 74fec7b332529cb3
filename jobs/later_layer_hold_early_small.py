"""Ablation: early layers stay as generation 0 left them (Zhou et al. 2022, arXiv:2202.00155)."""

from dataclasses import replace

from later_layer_small import config as published

from llf_ray.cli import main_job
from llf_ray.recipes.later_layer import LaterLayer

assert isinstance(published.recipe, LaterLayer)
config = replace(published, name="later-layer-hold-early-small", recipe=replace(published.recipe, hold="early"))

if __name__ == "__main__":
    main_job(__file__)
