"""Accuracy over sparsity: pruned and rewound ResNet-20 on CIFAR-10 beside a new draw and beside random masks.

Frankle & Carbin 2019 (arXiv:1803.03635): what is left of the network after pruning trains to the dense one's accuracy
from its own early weights, not from others and not at other places. Scores at the end of each generation are those of
each sparsity. The two controls train the ticket beside themselves, for its masks: 20 levels in place of 11.
"""

from dataclasses import replace

from pruning_cifar10_resnet20 import config as published

from llf_ray.cli import main_job
from llf_ray.recipes.pruning import IterativePruning
from llf_ray.run import Comparison

assert isinstance(published.recipe, IterativePruning)
comparison = Comparison(
    name="compare-pruning-cifar10-resnet20",
    base=published,
    arms={
        "pruning": published.recipe,
        "pruning_reinit": replace(published.recipe, control="reinit"),
        "pruning_random": replace(published.recipe, control="random"),
        "pruning_per_tensor": replace(published.recipe, scope="tensor"),
    },
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main_job(__file__)
