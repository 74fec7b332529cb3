"""A detector with Token Cropr learns 32 images of COCO128 by heart: it can fit, and no published number is claimed.

Bergner et al. 2024 (arXiv:2412.00965) under the pyramid of Li et al. 2022 (arXiv:2203.16527), from scratch. The folder
`coco128` lies in the folder that LLF_RAY_DATA names. Nothing is jittered, and scores are those of the training images:
AP50 of boxes 0.94 after seven minutes on one CPU core.
"""

from llf_ray.cli import main_job
from llf_ray.data import Coco128, LargeScaleJitter
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.nn.cropr import Cropping, KeepRate
from llf_ray.nn.detector_settings import Heads
from llf_ray.recipes.long import Long
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import CroppedTransformer, Detection, TimmModel

config = RunConfig(
    name="coco128-cropr",
    task=Detection(
        model=CroppedTransformer(
            model=TimmModel(
                name="vit_tiny_patch16_224",
                options={"img_size": 256, "depth": 5, "class_token": False, "global_pool": ""},
            ),
            cropping=Cropping(schedule=KeepRate(keep=0.5)),
        ),
        data=Coco128(root="coco128", held_out="train2017", num_train=32),
        augment=LargeScaleJitter(size=256, scale=(1.0, 1.0), flip=0.0),
        heads=Heads(
            channels=64,
            anchors=(16, 32, 64, 128),
            proposal_convs=1,
            proposals=(400, 200),
            proposals_learned=128,
            region_scale=112,
            regions_learned=64,
            box_convs=0,
            box_width=256,
            mask_size=8,
            mask_convs=2,
        ),
    ),
    recipe=Long(generations=1, epochs=100, warmup_epochs=3),
    optim=Optim(name="adamw", lr=1e-3, weight_decay=0.01, decay="matrices"),
    engine=EngineSettings(batch=4),
    resources=Resources(workers=1),
    tracking=Tracking(evaluate_every=25),
)

if __name__ == "__main__":
    main_job(__file__)
