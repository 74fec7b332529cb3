"""Segmentation of the bundled pictures, eleven classes: the dense transformer that a pruned one starts from.

Clothes of Fashion-MNIST lie at random places on real photographs; every pixel is photograph or one of ten kinds. A
vision transformer of six blocks with Segmenter's linear decoder (Strudel et al. 2021, arXiv:2105.05633) learns it from
scratch; `segmentation_cropr_small.py` goes on from its weights.
"""

from llf_ray.cli import main_job
from llf_ray.data import FashionMasks, MaskAugment
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.long import Long
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Segmentation, TimmModel

config = RunConfig(
    name="segmentation-small",
    task=Segmentation(
        model=TimmModel(
            name="vit_tiny_patch16_224",
            options={
                "img_size": 36,
                "patch_size": 4,
                "embed_dim": 64,
                "depth": 6,
                "num_heads": 2,
                "mlp_ratio": 2.0,
            },
        ),
        data=FashionMasks(),
        augment=MaskAugment(size=36, scale=(0.8, 1.25), most_of_one=1.0, colour=0.0),
    ),
    recipe=Long(generations=4, epochs=10),
    optim=Optim(name="adamw", lr=2e-3, weight_decay=0.05, decay="matrices"),
    engine=EngineSettings(batch=50, clip=1.0),
    resources=Resources(workers=2),
    tracking=Tracking(evaluate_every=5),
)

if __name__ == "__main__":
    main_job(__file__)
