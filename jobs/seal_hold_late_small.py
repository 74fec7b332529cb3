"""Ablation: later layers are held while early layers ascend.

``freeze_descenders`` in the code of Sarfi et al. 2023 (arXiv:2304.04858).
"""

from dataclasses import replace

from seal_small import config as published

from llf_ray.cli import main_job
from llf_ray.recipes.seal import Seal

assert isinstance(published.recipe, Seal)
config = replace(published, name="seal-hold-late-small", recipe=replace(published.recipe, hold_descenders=True))

if __name__ == "__main__":
    main_job(__file__)
