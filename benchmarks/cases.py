"""What is measured: the default job, and larger networks on pictures of noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from llf_ray.data.augment import Augment
from llf_ray.data.base import Role, Stack
from llf_ray.engine.base import EngineSettings
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.run import Comparison, RunConfig
from llf_ray.tasks.classification import Classification, TimmModel
from llf_ray.train.folder import load_module

__all__ = ["Noise", "comparison", "default_job", "later_layer", "resnet", "small_task"]

JOBS = Path(__file__).parents[1] / "jobs"
comparison: Comparison = load_module(JOBS / "compare_schedules.py").comparison
"""What `make run` runs."""
default_job = comparison.base
later_layer = cast(LaterLayer, comparison.arms["later_layer"])


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


def resnet(name: str, num_items: int) -> RunConfig:
    """One of timm's ResNets at 64 pixels, 50 a batch, with the default job's optimizer and workers."""
    task = Classification(
        model=TimmModel(name=name), data=Noise(num_items=num_items), augment=Augment(shift=4, flip=0.5)
    )
    return replace(
        default_job, name=name, task=task, recipe=Long(generations=1, epochs=10), engine=EngineSettings(batch=50)
    )


def small_task() -> Classification:
    """The default job's network on a few pictures, for a run that only shows that everything works."""
    return replace(cast(Classification, default_job.task), data=Noise(side=32, num_items=2 * default_job.engine.batch))
