"""Sender and receiver forget nine tenths of their weights, always the same ones, ten times.

Zhou et al. 2022 (arXiv:2202.00155) claim higher topographic similarity than with receiver resets; the paper has figures
of it and no table.
"""

from dataclasses import replace

from language_small import config as none

from llf_ray.cli import main_job
from llf_ray.recipes.partial_balanced import PartialBalancedForgetting

config = replace(
    none, name="language-partial-balanced-small", recipe=PartialBalancedForgetting(generations=10, epochs=30)
)

if __name__ == "__main__":
    main_job(__file__)
