"""What is measured: the default job, and a larger network on pictures of noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llf_ray.data.augment import Augment
from llf_ray.data.base import Role, Stack
from llf_ray.data.photographs import FashionOnPhotographs
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.long import Long
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks.classification import Classification, SmallResNet, TimmModel

__all__ = ["Noise", "default_job", "resnet18"]

# The task, optimizer, engine and tracking of jobs/long_small.py, which `make run` derives from; a test compares them.
# Job files import the command line and so Ray, which a machine for measuring need not have.
default_job = RunConfig(
    name="default",
    task=Classification(
        model=SmallResNet(widths=(16, 32, 64, 128), blocks=(1, 1, 1, 1), stem_stride=2),
        data=FashionOnPhotographs(),
        augment=Augment(shift=2, flip=0.5),
        label_smoothing=0.1,
    ),
    recipe=Long(generations=4, epochs=25),
    optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
    engine=EngineSettings(batch=50),
    resources=Resources(workers=2, cpus=1),
    tracking=Tracking(evaluate_every=5),
)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Coloured noise in memory, with classes in turn: as fast to read as pictures, and nothing to download."""

    side: int = 64
    num_items: int = 500
    num_classes: int = 10

    @property
    def channels(self) -> int:
        return 3

    def classes(self) -> tuple[str, ...]:
        return tuple(f"class {label}" for label in range(self.num_classes))

    def load(self, role: Role) -> Stack:
        random = np.random.default_rng(len(role))
        images = random.integers(0, 256, (self.num_items, self.side, self.side, self.channels), dtype=np.uint8)
        return Stack(images, np.arange(self.num_items) % self.num_classes)


def resnet18(num_items: int) -> RunConfig:
    """timm's ResNet18 at 64 pixels, 11 million weights, with the default job's optimizer and batch."""
    return RunConfig(
        name="resnet18",
        task=Classification(
            model=TimmModel(name="resnet18"),
            data=Noise(num_items=num_items),
            augment=Augment(shift=4, flip=0.5),
        ),
        recipe=Long(generations=1, epochs=10),
        optim=default_job.optim,
        engine=default_job.engine,
        resources=default_job.resources,
    )
