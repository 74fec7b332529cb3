"""SEAL on Tiny-ImageNet with ResNet50 whose ascent ends when the training loss has grown to 1.3 times what it was.

Beyond Sarfi et al. 2023 (arXiv:2304.04858): ten times their strength of ascent, with a ratio of the loss for its end,
so that the strength need not be found for each set. Unused steps of the 40 epochs go to the descent.
"""

from dataclasses import replace

from seal_tiny_imagenet_resnet50 import config as seal

from llf_ray.cli import main_job
from llf_ray.recipes.seal import Seal

assert isinstance(seal.recipe, Seal)
config = replace(
    seal, name="seal-adaptive-tiny-imagenet-resnet50", recipe=replace(seal.recipe, ascent_rate=0.1, loss_ratio=1.3)
)

if __name__ == "__main__":
    main_job(__file__)
