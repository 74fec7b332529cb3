"""A dense vision transformer on the bundled images, from scratch: what the jobs that prune tokens are held against.

Bergner et al. (arXiv:2412.00965) fine-tune dense networks and pruned ones alike. Clothes lie at random places on
photographs of 72 x 72 pixels, so that most of the 81 patches are background.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.data import Augment, FashionOnPhotographs
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.recipes.long import Long
from llf_ray.tasks import Classification, TimmModel

model = TimmModel(
    name="vit_tiny_patch16_224",
    options={"img_size": 72, "patch_size": 8, "depth": 6, "embed_dim": 64, "num_heads": 4},
)
task = Classification(
    model=model,
    data=FashionOnPhotographs(size=72),
    augment=Augment(shift=8, flip=0.5),
)
config = replace(
    long,
    name="vit-small",
    task=task,
    recipe=Long(generations=1, epochs=40, warmup_epochs=2),
    optim=Optim(name="adamw", lr=2e-3, weight_decay=0.05, decay="matrices"),
    engine=EngineSettings(batch=50, clip=1.0),
)

if __name__ == "__main__":
    main_job(__file__)
