"""A driver without Ray: what `llf_ray.cluster.launch.execute` does with runs, in this process, one worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llf_ray.cluster.outcome import read_outcome, write_outcome
from llf_ray.journal import Journal, driver_stamp, update_run
from llf_ray.train.state import Run
from llf_ray.train.worker import Outcome
from tests.local import carry

__all__ = ["execute", "job_file", "state"]

JOB = """
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.recipes.restarts import Restarts
from llf_ray.recipes.seal import Seal
from llf_ray.run import Comparison, Resources, RunConfig
from tests.toy import Toy

base = RunConfig(
    name="tiny",
    task=Toy(),
    recipe=Long(generations=3, epochs=2, warmup_epochs=1),
    optim=Optim(lr=0.05),
    engine=EngineSettings(batch=12),
    resources=Resources(workers=1),
    tracking=Tracking(log_every=1, off=True),
    folder="{folder}",
)
recipes = {{
    "long": base.recipe,
    "restarts": Restarts(generations=3, epochs=2, warmup_epochs=1),
    "seal": Seal(generations=3, epochs=2, ascent_epochs=1, ascent_rate=0.5, warmup_epochs=1, threshold="body"),
    "later_layer": LaterLayer(generations=3, epochs=2, warmup_epochs=1, threshold="body"),
}}
{value}
"""


def job_file(folder: Path, value: str, name: str = "job.py") -> Path:
    """A job of the toy task; ``value`` is its last line and may use ``base`` and ``recipes``. Runs go to
    ``folder/runs``.
    """
    path = folder / name
    path.write_text(JOB.format(folder=folder / "runs", value=value))
    return path


def state(run_folder: Path, name: str) -> None:
    """Put a state on record, as a driver does."""
    with Journal(run_folder / "journal.jsonl") as journal:
        journal.append({"kind": "state", "time": time.time(), "state": name, "message": ""})
    update_run(run_folder, state=name, driver=driver_stamp())


def execute(
    runs: Sequence[Run],
    *,
    title: str,
    display: bool = True,
    verbose: bool = False,
    log_file: Path,
    on_signal: Callable[[int], None] | None = None,
    on_end: Callable[[Run], object] = lambda run: None,
) -> list[Outcome]:
    """Carry runs on, one after another."""
    log_file.touch()
    outcomes = []
    for run in runs:
        state(run.folder, "running")
        write_outcome(run.folder, carry(run))
        outcome = read_outcome(run.folder)
        assert outcome is not None
        state(run.folder, outcome.state)
        outcomes.append(outcome)
        on_end(run)
    return outcomes
