"""Data that arrive: shrink and perturb beside a warm start and beside training anew, ResNet18 on CIFAR-10.

Ash & Adams 2020 (arXiv:1910.08475): a warm start generalises worse than training anew; shrink and perturb does as well
as the latter, in less time. Rounds end at 99 % training accuracy, so steps differ, and what is equal is the longest.
"""

from dataclasses import replace

from shrink_perturb_cifar10_resnet18 import config as published

from llf_ray.cli import main_job
from llf_ray.recipes.shrink_perturb import ShrinkAndPerturb
from llf_ray.run import Comparison

assert isinstance(published.recipe, ShrinkAndPerturb)
comparison = Comparison(
    name="compare-shrink-perturb-cifar10-resnet18",
    base=published,
    arms={
        "anew": replace(published.recipe, shrink=0, perturb=1),
        "warm_start": replace(published.recipe, shrink=1, perturb=0),
        "shrink_perturb": published.recipe,
    },
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main_job(__file__)
