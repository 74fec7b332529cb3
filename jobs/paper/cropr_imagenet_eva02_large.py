"""Token Cropr on ImageNet at 448 pixels: EVA-02-L, 40 tokens fewer behind each of 22 blocks, last-layer fusion.

Bergner et al. (arXiv:2412.00965) claim 89.7 % top-1 of 89.9 at 2.1 times the throughput and 41 % fewer multiply-adds.
Their recipe for this network is not published: this is EVA-02's own fine-tuning as far as it is known (30 epochs, layer
decay 0.85, drop path 0.2), and a guess.
"""

from dataclasses import replace

from vit_imagenet_vit_large import config as dense
from vit_imagenet_vit_large import task

from llf_ray.cli import main_job
from llf_ray.data import TimmAugment
from llf_ray.engine.base import EngineSettings
from llf_ray.nn.cropr import Cropping, Steady
from llf_ray.recipes.long import Long
from llf_ray.tasks import CroppedTransformer, TimmModel

config = replace(
    dense,
    name="cropr-imagenet-eva02-large",
    task=replace(
        task,
        model=CroppedTransformer(
            model=TimmModel(name="eva02_large_patch14_448.mim_m38m_ft_in22k", drop_path=0.2),
            cropping=Cropping(schedule=Steady(rate=40), fusion=True),
        ),
        augment=TimmAugment(size=448, policy="rand-m9-mstd0.5-inc1", crop=1.0),
        mixup=0.0,
        cutmix=0.0,
        label_smoothing=0.2,
    ),
    recipe=Long(generations=1, epochs=30, warmup_epochs=3),
    optim=replace(dense.optim, lr=5e-5, layer_decay=0.85),
    engine=EngineSettings(batch=512, micro_batch=16, precision="bf16"),
)

if __name__ == "__main__":
    main_job(__file__)
