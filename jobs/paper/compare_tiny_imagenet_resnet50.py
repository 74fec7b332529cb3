"""Tiny-ImageNet with ResNet50, ten generations: SEAL 59.22 % against later-layer forgetting 56.92 %.

The comparison of Sarfi et al. 2023 (arXiv:2304.04858), with the long run and warm restarts of as many steps, 4.9
million, beside them.
"""

from seal_tiny_imagenet_resnet50 import config as published

from llf_ray.cli import main_job
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.recipes.restarts import Restarts
from llf_ray.run import Comparison

comparison = Comparison(
    name="compare-tiny-imagenet-resnet50",
    base=published,
    arms={
        "long": Long(generations=10, epochs=160, warmup_epochs=20),
        "restarts": Restarts(generations=10, epochs=160, warmup_epochs=20),
        "later_layer": LaterLayer(generations=10, epochs=160, warmup_epochs=20, threshold="layer3"),
        "seal": published.recipe,
    },
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main_job(__file__)
