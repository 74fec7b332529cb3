"""Instance segmentation of nuclei with a small dense transformer from scratch: what the run with Token Cropr starts
from.

Mask R-CNN on a plain transformer's simple feature pyramid (Li et al. 2022, arXiv:2203.16527). The folder `nuclei` of
the Data Science Bowl 2018 (`images/ID.png` of 256x256 pixels, `labels/ID.png` of numbered nuclei) lies in the folder
that LLF_RAY_DATA names. Nuclei are about 12 pixels wide, so patches are of 8 and anchors small. Ten minutes on one CPU
core.
"""

from llf_ray.cli import main_job
from llf_ray.data import LargeScaleJitter, Nuclei
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.nn.detector_settings import Heads
from llf_ray.recipes.long import Long
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Detection, TimmModel

model = TimmModel(
    name="vit_tiny_patch16_224",
    options={
        "img_size": 256,
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
    data=Nuclei(root="nuclei", channels=1),
    augment=LargeScaleJitter(size=256, scale=(0.75, 1.5)),
    heads=Heads(
        channels=64,
        strides=(4, 8, 16),
        anchors=(10, 16, 26),
        ratios=(1.0,),
        proposal_convs=1,
        proposals=(400, 300),
        proposals_learned=128,
        region_scale=112,
        regions_learned=64,
        box_size=5,
        box_convs=0,
        box_width=128,
        mask_size=8,
        mask_convs=2,
    ),
)
config = RunConfig(
    name="nuclei",
    task=task,
    recipe=Long(generations=1, epochs=10, warmup_epochs=1),
    optim=Optim(name="adamw", lr=1e-3, weight_decay=0.05, decay="matrices"),
    engine=EngineSettings(batch=4),
    resources=Resources(workers=1),
    tracking=Tracking(evaluate_every=5),
)

if __name__ == "__main__":
    main_job(__file__)
