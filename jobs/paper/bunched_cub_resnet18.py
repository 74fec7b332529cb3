"""Ten resets of `layer4` within 45 epochs, at the budget of later-layer forgetting on CUB-200: a control.

Zhou et al. 2022 (arXiv:2202.00155) spread them over 2,200 epochs; what a bunch gives is not in the paper.
"""

from dataclasses import replace

from later_layer_cub_resnet18 import config as later_layer

from llf_ray.cli import main_job
from llf_ray.recipes.bunched import BunchedResets

config = replace(
    later_layer,
    name="bunched-cub-resnet18",
    recipe=BunchedResets(generations=11, epochs=200, warmup_epochs=5, threshold="layer4", gap_epochs=5),
)

if __name__ == "__main__":
    main_job(__file__)
