"""Ablation: the later layers ascend in place of the early ones; does not work (Sarfi et al. 2023, arXiv:2304.04858)."""

from dataclasses import replace

from seal_small import config as published

from llf_ray.cli import main_job
from llf_ray.recipes.seal import Seal

assert isinstance(published.recipe, Seal)
config = replace(published, name="seal-reverse-small", recipe=replace(published.recipe, reverse=True))

if __name__ == "__main__":
    main_job(__file__)
