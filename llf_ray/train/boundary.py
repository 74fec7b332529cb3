"""Crossing a boundary: the plan's operations on an engine's weights, alike on every rank, proven and put on record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llf_ray.engine.base import Engine
from llf_ray.engine.team import Team
from llf_ray.forget.edit import Edit, Operation, View
from llf_ray.forget.groups import Group, Slot
from llf_ray.plan import Answer, Phase, Plan, operations_of
from llf_ray.run import RunConfig, group_rules
from llf_ray.train.state import Run, Stand, Stores, write_store

__all__ = ["apply_edit", "cross", "flipped", "view_of"]


class _Values(Mapping[str, Tensor]):
    """An engine's full fp32 weights and buffers, gathered one at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getitem__(self, name: str) -> Tensor:
        return self._engine.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter((*self._engine.names, *self._engine.buffers))

    def __len__(self) -> int:
        return len(self._engine.names) + len(self._engine.buffers)


def view_of(
    engine: Engine,
    config: RunConfig,
    slots: Sequence[Slot],
    stores: Mapping[str, Mapping[str, Tensor]],
    key: str,
    generation: int,
) -> View:
    """What an operation sees of a running engine."""

    def fresh(seed: int) -> Mapping[str, Tensor]:
        # a new draw is an initialisation, also where the run started from pretrained weights
        return config.task.initial(seed).state_dict()

    return View(
        slots=slots,
        values=_Values(engine),
        fresh=fresh,
        stores=stores,
        seed=config.seed,
        key=key,
        generation=generation,
    )


def apply_edit(engine: Engine, edit: Edit, slots: Sequence[Slot], *, averaged: bool) -> list[dict[str, Any]]:
    """Every rank calls: write an edit's values and forget its moments; what changed, by tensor.

    Averaged weights take the same change.
    """
    touched = []
    for name, change in edit.values.items():
        old = engine.read(name)
        new = change(old).to(old.dtype)
        engine.write(name, new)
        if averaged:
            engine.write(name, change(engine.read(name, average=True)).to(old.dtype), average=True)
        touched.append(
            {
                "name": name,
                "entries": int((new != old).sum()),
                "norm_before": float(torch.linalg.vector_norm(old.float())),
                "norm_after": float(torch.linalg.vector_norm(new.float())),
            }
        )
    _forget_moments(engine, edit, slots)
    return touched


def _forget_moments(engine: Engine, edit: Edit, slots: Sequence[Slot]) -> None:
    groups, shapes = engine.groups, {slot.name: slot.shape for slot in slots}
    whole = {name for name, mask in edit.clear.items() if mask is None}
    # a group whose every member is cleared restarts its step count too; a part of one cannot: there is one count a group
    complete = [group for group in groups if group.parameters and whole.issuperset(group.parameters)]
    done = {name for group in complete for name in group.parameters}
    entries = {name: mask for name, mask in edit.clear.items() if mask is not None}
    entries |= {
        name: torch.ones(shapes[name], dtype=torch.bool) for name in sorted(whole - done) if name in engine.names
    }
    if complete or entries:
        engine.clear(groups=[group.name for group in complete], entries=entries)


def flipped(before: Phase | None, after: Phase, config: RunConfig, groups: Sequence[Group]) -> list[str]:
    """Groups whose direction changes sign between two phases, by name."""
    if before is None:
        return []
    old, new = (group_rules(phase, groups, config.optim) for phase in (before, after))
    return [name for name in new if old[name].direction * new[name].direction < 0]


def cross(run: Run, answer: Answer, stand: Stand, engine: Engine, team: Team) -> tuple[Stand, list[dict[str, Any]]]:
    """Every rank calls: apply the boundary at ``stand.step``; the stand after it, and records of what was applied.

    Buffers are rank 0's from here on. Operations come first, then the starting phase's policy for the optimizer, then
    the moments of groups whose direction changes sign.
    """
    engine.sync_buffers()
    records = []
    stores = dict(stand.stores)
    for key, generation, operation in operations_of(run.plan, answer):
        edit = _call(operation, view_of(engine, run.config, run.slots, Stores(run.folder, stores), key, generation))
        touched = apply_edit(engine, edit, run.slots, averaged=run.config.optim.averaged is not None)
        for name, masks in edit.masks.items():
            stores[name] = f"stores/{name}-{stand.step:08d}"
            write_store(run.folder, stores[name], engine, team, masks)
        if edit.snapshot is not None:
            stores[edit.snapshot] = f"stores/{edit.snapshot}-{stand.step:08d}"
            write_store(run.folder, stores[edit.snapshot], engine, team, None)
        records.append(_record(operation, stand.step, generation, key, touched))
    entered = [run.plan.phases[index] for side, index in answer.boundary if side == "entry"]
    if entered:
        _enter(run.plan, answer, entered[-1], engine, run.config)
    engine.verify()
    return replace(stand, crossed=True, stores=stores, applied=stand.applied + len(records)), records


def _call(operation: Any, view: View) -> Edit:
    op: Operation = operation
    return op(view)


def _enter(plan: Plan, answer: Answer, phase: Phase, engine: Engine, config: RunConfig) -> None:
    if phase.optimizer == "rebuild":
        engine.fresh_optimizer()
    elif phase.moments == "clear":
        before = plan.phases[answer.position.index - 1] if answer.position.index else None
        names = flipped(before, phase, config, engine.groups)
        if names:
            engine.clear(groups=names)


def _record(
    operation: Any, step: int, generation: int, key: str, touched: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "kind": "operation",
        "step": step,
        "time": time.time(),
        "generation": generation,
        "position": key,
        "operation": operation.label,
        "entries": sum(item["entries"] for item in touched),
        "tensors": len(touched),
        "norm_before": sum(item["norm_before"] ** 2 for item in touched) ** 0.5,
        "norm_after": sum(item["norm_after"] ** 2 for item in touched) ** 0.5,
        "touched": list(touched),
    }
