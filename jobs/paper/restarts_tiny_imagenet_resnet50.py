"""Warm restarts on Tiny-ImageNet with ResNet50: SEAL's "normal" mode, ten generations of 160 epochs.

Sarfi et al. 2023 (arXiv:2304.04858). Nothing is forgotten but the moments: what SEAL's ascent adds is measured against
this. Data as in `seal_tiny_imagenet_resnet50.py`.
"""

from dataclasses import replace

from seal_tiny_imagenet_resnet50 import config as seal

from llf_ray.cli import main_job
from llf_ray.recipes.restarts import Restarts

config = replace(
    seal,
    name="restarts-tiny-imagenet-resnet50",
    recipe=Restarts(generations=10, epochs=160, warmup_epochs=20),
)

if __name__ == "__main__":
    main_job(__file__)
