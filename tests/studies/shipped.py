"""A task whose network loses tokens, for the tests of export and predict: small but real."""

from __future__ import annotations

from typing import Any

from llf_ray.data.augment import Augment
from llf_ray.data.sample import FashionSample
from llf_ray.engine.base import EngineSettings
from llf_ray.nn.cropr import Cropping, CroprOptions, Steady
from llf_ray.recipes.long import Long
from llf_ray.run import RunConfig
from llf_ray.tasks.classification import Classification, CroppedTransformer, TimmModel
from tests.local import ADAMW, settings

__all__ = ["SMALL", "TASK", "config"]

SMALL = TimmModel(
    name="vit_tiny_patch16_224",
    options={"img_size": 28, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3},
)
CUT = Cropping(schedule=Steady(rate=12), queries=2, options=CroprOptions(norm=True))
TASK = Classification(
    model=CroppedTransformer(model=SMALL, cropping=CUT),
    data=FashionSample(num_train=40, num_held_out=20),
    augment=Augment(shift=2, flip=0.5),
)


def config(task: Any = TASK) -> RunConfig:
    """Two optimizer steps."""
    recipe = Long(generations=1, epochs=1)
    return settings(recipe, task=task, optim=ADAMW, engine=EngineSettings(batch=20))
