"""Street scenes of CamVid by a small vision transformer from scratch: the dense model that pruned ones start from.

Segmenter's linear decoder (Strudel et al. 2021, arXiv:2105.05633) on a transformer of 6 blocks; no published number is
claimed. Its counterpart with Token Cropr is `segmentation_cropr_camvid.py`, which starts from this run's weights.
`camvid`, in SegNet's layout, lies in the folder that LLF_RAY_DATA names.
"""

from llf_ray.cli import main_job
from llf_ray.data import CamVid, MaskAugment
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.long import Long
from llf_ray.run import Checkpoints, Resources, RunConfig
from llf_ray.tasks import Segmentation, TimmModel

config = RunConfig(
    name="segmentation-camvid",
    task=Segmentation(
        model=TimmModel(
            name="vit_tiny_patch16_224",
            options={"img_size": 96, "patch_size": 12, "embed_dim": 96, "depth": 6, "num_heads": 3},
        ),
        data=CamVid(),
        augment=MaskAugment(size=96, scale=(0.75, 1.5), colour=0.0),
    ),
    recipe=Long(generations=1, epochs=20, warmup_epochs=1),
    optim=Optim(name="adamw", lr=1.5e-3, weight_decay=0.05, decay="matrices"),
    engine=EngineSettings(batch=8, clip=1.0),
    resources=Resources(workers=2),
    checkpoints=Checkpoints(keep_generations=False),
    tracking=Tracking(evaluate_every=10),
)

if __name__ == "__main__":
    main_job(__file__)
