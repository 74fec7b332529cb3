"""Detection on the bundled images, dense: clothes on photographs, one to four a picture, with boxes and masks.

Mask R-CNN on a plain transformer's simple feature pyramid (Li et al. 2022, arXiv:2203.16527), all of it small and from
scratch. `detection_cropr_small.py` is the same with Token Cropr.
"""

from llf_ray.cli import main_job
from llf_ray.data import FashionScenes, LargeScaleJitter
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.nn.detector_settings import Heads
from llf_ray.recipes.long import Long
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Detection, TimmModel

model = TimmModel(
    name="vit_tiny_patch16_224",
    options={
        "img_size": 128,
        "patch_size": 8,
        "embed_dim": 96,
        "depth": 5,
        "num_heads": 3,
        "class_token": False,
        "global_pool": "",
    },
)
task = Detection(
    model=model,
    data=FashionScenes(num_train=400),
    augment=LargeScaleJitter(size=128, scale=(0.75, 1.5)),
    heads=Heads(
        channels=64,
        strides=(4, 8, 16),
        anchors=(24, 36, 54),
        ratios=(0.5, 1.0, 2.0),
        proposal_convs=1,
        proposals=(200, 100),
        proposals_learned=64,
        region_scale=112,
        regions_learned=32,
        box_convs=0,
        box_width=256,
        mask_size=8,
        mask_convs=2,
    ),
)
config = RunConfig(
    name="detection-small",
    task=task,
    recipe=Long(generations=1, epochs=16, warmup_epochs=1),
    optim=Optim(name="adamw", lr=1e-3, weight_decay=0.05, decay="matrices"),
    engine=EngineSettings(batch=4),
    resources=Resources(workers=2, cpus=1),
    tracking=Tracking(evaluate_every=4),
)

if __name__ == "__main__":
    main_job(__file__)
