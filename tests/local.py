"""Runs in this process: plain torch, one worker, plain functions in place of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.engine.local import LocalEngine
from llf_ray.engine.team import Team
from llf_ray.journal import Tracking, read
from llf_ray.plan import Phase
from llf_ray.recipes.base import Recipe
from llf_ray.run import Checkpoints, Resources, RunConfig, prepare
from llf_ray.train.adviser import STOP_REQUEST, Adviser
from llf_ray.train.folder import create, open_run
from llf_ray.train.loop import train
from llf_ray.train.state import Run
from llf_ray.train.worker import Outcome
from tests.toy import Toy

SGD = Optim(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-3)
ADAMW = Optim(name="adamw", lr=0.01, weight_decay=0.1)
PER_EPOCH = 4  # optimizer steps: 48 items in batches of 12


@dataclass(frozen=True, kw_only=True)
class Phases:
    """A recipe that is its phases."""

    phases: tuple[Phase, ...]

    def plan(self) -> tuple[Phase, ...]:
        """As given."""
        return self.phases


def settings(recipe: Recipe | Sequence[Phase], **changes: Any) -> RunConfig:
    """A run of the toy task on one worker, four steps an epoch, every step on record."""
    base = RunConfig(
        name="toy",
        task=Toy(dropout=True),
        recipe=Phases(phases=tuple(recipe)) if isinstance(recipe, Sequence) else recipe,
        optim=SGD,
        engine=EngineSettings(batch=12),
        resources=Resources(workers=1),
        checkpoints=Checkpoints(keep=9),
        tracking=Tracking(log_every=1),
    )
    return replace(base, **changes)


def engine_of(run: Run) -> LocalEngine:
    """A fresh engine around a fresh model."""
    return LocalEngine(run.config.task.build(run.config.seed), run.groups, run.config.optim, run.config.engine)


def carry(run: Run, adviser: type[Adviser] = Adviser, watch: Callable[[LocalEngine], None] | None = None) -> Outcome:
    """Train one run from where its folder says it stands; ``watch`` gets the engine first."""
    engine = engine_of(run)
    if watch is not None:
        watch(engine)
    advice = adviser(run.folder, run.plan)
    try:
        return train(run, engine, advice, Team.alone())
    finally:
        advice.journal.close()
        engine.close()


def whole(config: RunConfig, folder: Path, **how: Any) -> Path:
    """An uninterrupted run; its folder."""
    outcome = carry(create(prepare(config), folder), **how)
    assert outcome.state == "finished", outcome.message
    return folder


def stopping_at(step: int, *kinds: str) -> type[Adviser]:
    """An adviser that asks for a stop as soon as the journal has seen ``step``, in a metric or these kinds."""

    class Stopping(Adviser):
        def record(self, records: Sequence[Mapping[str, Any]]) -> None:
            super().record(records)
            if any(r["kind"] in (kinds or ("metrics",)) and r["step"] >= step for r in records):
                (self.folder / STOP_REQUEST).touch()

    return Stopping


def resumed(folder: Path, assignments: Mapping[str, Any] | None = None, **how: Any) -> Outcome:
    """Carry a run on, in a new engine."""
    return carry(open_run(folder, assignments), **how)


def final(folder: Path) -> dict[str, Tensor]:
    """The exported weights of a run."""
    return load_file(folder / "final" / "model.safetensors")


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and value.numpy().tobytes() == other[name].numpy().tobytes()
        for name, value in one.items()
    )


def journal(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The records of a run, all or of one kind."""
    return [record for record in read(folder / "journal.jsonl") if kind in (None, record["kind"])]


def messages(folder: Path) -> str:
    """All notes of a run, one a line."""
    return "\n".join(record["message"] for record in journal(folder, "note"))


def weights_of(engine: LocalEngine) -> dict[str, Tensor]:
    """Parameters and buffers as they are now."""
    return {name: engine.read(name).clone() for name in (*engine.names, *engine.buffers)}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Names whose values differ."""
    return {name for name in before if not torch.equal(before[name], after[name])}


class Watch:
    """Looks at an engine in front of every optimizer step; at weights and moments in front of some only, if told."""

    def __init__(self, steps: Collection[int] | None = None) -> None:
        self.steps = steps
        self.weights: list[dict[str, Tensor]] = []
        self.moments: list[dict[str, dict[str, Tensor]]] = []
        self.groups: list[dict[str, dict[str, Any]]] = []
        self.losses: list[float] = []

    def __call__(self, engine: LocalEngine) -> None:
        inner: Callable[..., Tensor] = engine.step

        def step(*args: Any) -> Tensor:
            looking = self.steps is None or len(self.losses) in self.steps
            self.weights.append(weights_of(engine) if looking else {})
            self.moments.append({name: dict(engine.moments(name)) for name in engine.names} if looking else {})
            groups = engine._optimizer.param_groups
            self.groups.append({g["name"]: {k: v for k, v in g.items() if k != "params"} for g in groups})
            loss = inner(*args)
            self.losses.append(float(loss))
            return loss

        engine.step = step  # type: ignore[method-assign]


def watched(config: RunConfig, folder: Path, steps: Collection[int] | None = None) -> Watch:
    watch = Watch(steps)
    outcome = carry(create(prepare(config), folder), watch=watch)
    assert outcome.state == "finished", outcome.message
    return watch
