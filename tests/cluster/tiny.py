"""Tiny runs for the tests that start workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.seal import Seal
from llf_ray.run import Checkpoints, Resources, RunConfig, prepare
from llf_ray.train.folder import create
from llf_ray.train.state import Run
from tests.toy import Toy

RECIPE = Seal(
    generations=3, epochs=3, ascent_epochs=1, ascent_rate=0.5, warmup_epochs=1, threshold="body", forget_later=True
)


def tiny_run(root: Path, name: str, *, job_file: Path | None = None, **changes: Any) -> Run:
    """A run of 36 steps in three generations, each but the first with a redraw and an ascent."""
    settings: dict[str, Any] = {
        "task": Toy(),
        "recipe": RECIPE,
        "optim": Optim(lr=0.05),
        "engine": EngineSettings(batch=12),
        "resources": Resources(workers=2, retries=1),
        "checkpoints": Checkpoints(every_minutes=None),
        "tracking": Tracking(log_every=1, off=True),
        "folder": str(root),
    }
    config = RunConfig(name=name, **(settings | changes))
    return create(prepare(config), root / name, job_file=job_file)
