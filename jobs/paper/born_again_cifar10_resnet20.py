"""Born-again ResNet-20 on CIFAR-10: error 8.2 % against 8.4 % of the plain network.

Furlanello et al. 2018 (arXiv:1805.04770); the figures are those of Prakash et al. 2019 (arXiv:1811.07275), Table 3.
Three students after the first network, each with labels and its teacher in equal shares. `llf-ray ensemble RUN` scores
all four together.
"""

from dataclasses import replace

from pruning_cifar10_resnet20 import config as pruning

from llf_ray.cli import main_job
from llf_ray.recipes.born_again import BornAgain

config = replace(
    pruning,
    name="born-again-cifar10-resnet20",
    recipe=BornAgain(generations=4, epochs=160, warmup_epochs=0, weight=0.5, temperature=1.0),
)

if __name__ == "__main__":
    main_job(__file__)
