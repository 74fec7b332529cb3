"""Token Cropr on ImageNet, Table 1: MAE's ViT-L/16, 8 tokens fewer behind each of 22 blocks, last-layer fusion.

Bergner et al. (arXiv:2412.00965) claim 85.3 % top-1 of 85.8 at 1.7 times the throughput; 33.9 of 59.6 GMAC as they
count. Cropr's modules learn at the head's rate, whatever the layer decay of their block.
"""

from dataclasses import replace

from vit_imagenet_vit_large import config as dense
from vit_imagenet_vit_large import model, task

from llf_ray.cli import main_job
from llf_ray.nn.cropr import Cropping, Steady
from llf_ray.tasks import CroppedTransformer

config = replace(
    dense,
    name="cropr-imagenet-vit-large",
    task=replace(
        task,
        model=CroppedTransformer(model=model, cropping=Cropping(schedule=Steady(rate=8), fusion=True)),
    ),
)

if __name__ == "__main__":
    main_job(__file__)
