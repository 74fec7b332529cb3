"""Crossing a boundary: the plan's operations on an engine's weights, alike on every rank, proven and put on record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llf_ray.engine.base import Engine
from llf_ray.engine.team import Team
from llf_ray.forget.draw import key_of
from llf_ray.forget.edit import Change, Edit, Operation, View
from llf_ray.forget.groups import Group, Slot
from llf_ray.nn.channels import kept_channels
from llf_ray.nn.paths import effective
from llf_ray.plan import Answer, Generate, Pass, Phase, operations_of, spans
from llf_ray.run import RunConfig, group_rules
from llf_ray.tasks.start import FromRun, starting_weights
from llf_ray.train.batches import phase_batches
from llf_ray.train.state import Hopeless, Run, Stand, Stores, write_data, write_store

__all__ = ["apply_edit", "cross", "flipped", "view_of"]

LOGGED = ("step", "generation", "position", "operation", "entries", "tensors", "norm_before", "norm_after")
STRETCH = 1 << 18  # entries at a time


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
    values: Engine | Mapping[str, Tensor],
    config: RunConfig,
    slots: Sequence[Slot],
    stores: Mapping[str, Mapping[str, Tensor]],
    key: str,
    generation: int,
) -> View:
    """What an operation sees of a running engine, or of saved weights by name."""

    def fresh(seed: int) -> Mapping[str, Tensor]:
        # a new draw is an initialisation, also where the run started from pretrained weights
        return config.task.initial(seed).state_dict()

    example = getattr(config.task, "example", None)

    def channels(share: float) -> Mapping[str, tuple[Tensor, Tensor]]:
        kept = kept_channels(config.task.initial(0), example(), share)  # type: ignore[misc]
        return {name: (layer.block, layer.outputs) for name, layer in kept.items()}

    return View(
        slots=slots,
        values=values if isinstance(values, Mapping) else _Values(values),
        fresh=fresh,
        stores=stores,
        channels=channels if example is not None else None,
        shards=None if isinstance(values, Mapping) else values,
        seed=config.seed,
        key=key,
        generation=generation,
    )


def apply_edit(engine: Engine, edit: Edit, *, averaged: bool) -> list[dict[str, Any]]:
    """Every rank calls: write an edit's values and forget its moments; what changed, by tensor.

    Averaged weights take the same change.
    """
    measures = []
    for name, change in edit.values.items():
        old = engine.read(name, copy=False)
        new = _changed(change, old)
        measures.append(_difference(old, new))
        engine.write(name, new)
        if averaged:
            engine.write(name, _changed(change, engine.read(name, average=True, copy=False)), average=True)
    _forget_moments(engine, edit)
    # one wait for the device, behind all tensors
    numbers = torch.stack(measures).tolist() if measures else []
    return [
        {"name": name, "entries": int(entries), "norm_before": before**0.5, "norm_after": after**0.5}
        for name, (entries, before, after) in zip(edit.values, numbers, strict=True)
    ]


def _changed(change: Change, old: Tensor) -> Tensor:
    """The new value, in memory of its own: a transposed view of the old one would be overwritten while it is read."""
    new = change(old).to(old)
    return new.clone() if new.untyped_storage().data_ptr() == old.untyped_storage().data_ptr() else new


def _difference(old: Tensor, new: Tensor) -> Tensor:
    """Entries that differ, and sums of squares before and after, as three float64 numbers on the tensors' device.

    NumPy, a stretch at a time that stays in the processor's cache, takes a third of torch's time on a CPU.
    """
    if old.device.type != "cpu":
        squares = [value.double().square().sum() for value in (old, new)]
        return torch.stack([torch.count_nonzero(old != new).double(), *squares])
    one, other = (
        (value if value.dtype == torch.float32 else value.double()).detach().numpy().reshape(-1) for value in (old, new)
    )
    entries, before, after = 0, 0.0, 0.0
    for start in range(0, len(one), STRETCH):
        a, b = one[start : start + STRETCH], other[start : start + STRETCH]
        entries += int(np.count_nonzero(a != b))
        before, after = before + float(np.dot(a, a)), after + float(np.dot(b, b))
    return torch.tensor([entries, before, after], dtype=torch.float64)


def _forget_moments(engine: Engine, edit: Edit) -> None:
    groups = engine.groups
    whole = {name for name, mask in edit.clear.items() if mask is None}
    # a group whose every member is cleared restarts its step count too; a part of one cannot, with one count a group
    complete = [group for group in groups if group.parameters and whole.issuperset(group.parameters)]
    done = {name for group in complete for name in group.parameters}
    entries = {name: mask for name, mask in edit.clear.items() if name not in done and name in engine.names}
    if complete or entries:
        engine.clear(groups=[group.name for group in complete], entries=entries)


def flipped(earlier: Sequence[Phase], after: Phase, config: RunConfig, groups: Sequence[Group]) -> list[str]:
    """Groups that last moved the other way than they will in ``after``, by name; a hold in between moves nothing."""
    last: dict[str, float] = {}
    for phase in reversed(earlier):
        for name, rule in group_rules(phase, groups, config.optim).items():
            if rule.direction:
                last.setdefault(name, rule.direction)
        if len(last) == len(groups):
            break
    new = group_rules(after, groups, config.optim)
    return [name for name, rule in new.items() if last.get(name, 0.0) * rule.direction < 0]


def cross(run: Run, answer: Answer, stand: Stand, engine: Engine, team: Team) -> tuple[Stand, list[dict[str, Any]]]:
    """Every rank calls: apply the boundary at ``stand.step``; the stand after it, and records of what was applied.

    Buffers are rank 0's from here on. What the ended phase held is let go, so that operations may revive it. Operations
    come first, then the policy for the optimizer of the phases that start (one of them may have no step), then the
    moments of groups whose direction changes sign.
    """
    engine.sync_buffers()
    engine.hold_at_zero({})
    records = []
    stores = dict(stand.stores)
    for key, index, operation in operations_of(run.plan, answer):
        generation, open_stores = run.plan.phases[index].generation, Stores(run.folder, stores)
        if isinstance(operation, Generate):
            stores[operation.store] = f"stores/{operation.store}-{stand.step:08d}"
            made = _generated(run, operation, key_of(run.config.seed, key, generation), engine, team)
            write_data(run.folder, stores[operation.store], team, made)
            records.append(_record(operation, stand.step, generation, key, ()))
            continue
        if isinstance(operation, Pass):
            passed = _passed(run, operation, index, open_stores, engine, team)
            records.append(_record(operation, stand.step, generation, key, passed))
            continue
        edit = _call(operation, view_of(engine, run.config, run.slots, open_stores, key, generation))
        touched = apply_edit(engine, edit, averaged=run.config.optim.averaged is not None)
        for name, masks in edit.masks.items():
            stores[name] = f"stores/{name}-{stand.step:08d}"
            write_store(run.folder, stores[name], engine, team, masks)
        if edit.snapshot is not None:
            stores[edit.snapshot] = f"stores/{edit.snapshot}-{stand.step:08d}"
            write_store(run.folder, stores[edit.snapshot], engine, team, None)
        for name, source in edit.adopt.items():
            stores[name] = f"stores/{name}-{stand.step:08d}"
            write_store(run.folder, stores[name], engine, team, None, values=starting_weights(FromRun(run=source)))
        where = f"phase {run.plan.phases[index].name!r} of generation {generation}: {operation.label!r}"
        live = _live(edit, run, where, team)
        records.append({**_record(operation, stand.step, generation, key, touched), **live})
    entered = [index for side, index in answer.boundary if side == "entry"]
    if any(run.plan.phases[index].optimizer == "rebuild" for index in entered):
        engine.fresh_optimizer()
    elif entered and run.plan.phases[entered[-1]].moments == "clear":
        phases = zip(run.plan.phases[: entered[-1]], spans(run.plan, answer.cuts), strict=False)
        moved = [phase for phase, (start, stop) in phases if start < stop]
        engine.clear(groups=flipped(moved, run.plan.phases[entered[-1]], run.config, engine.groups))
    engine.verify()
    brief = tuple({key: record[key] for key in LOGGED} for record in records)
    return replace(stand, crossed=True, stores=stores, applied=stand.applied + brief), records


@torch.no_grad()
def _generated(run: Run, operation: Generate, seed: int, engine: Engine, team: Team) -> Mapping[str, Tensor]:
    """Every rank calls: the task makes data with the weights as they are; rank 0's go to all."""
    task: Any = run.config.task
    training = engine.module.training
    engine.module.eval()
    made = {name: value.cpu() for name, value in task.generate(engine.module, operation.what, seed).items()}
    engine.module.train(training)
    found: Mapping[str, Tensor] = team.share(made if team.rank == 0 else None)
    expected, sizes = task.store_size(operation.what), {name: len(value) for name, value in found.items()}
    if set(sizes.values()) != {expected}:
        raise Hopeless(f"{operation.label}: the task made {sizes} items where it had promised {expected}")
    return found


@torch.no_grad()
def _passed(run: Run, operation: Pass, index: int, stores: Stores, engine: Engine, team: Team) -> list[dict[str, Any]]:
    """Every rank calls: the task runs batches, the same on every rank; the buffers that changed, averages with them."""
    task: Any = run.config.task
    before = {name: engine.read(name).clone() for name in engine.buffers}
    training = engine.module.training
    engine.module.eval()
    batches = phase_batches(
        run, index, stores, team.device, stream=0, count=operation.batches, size=team.size, whole=True
    )
    task.run_pass(engine.module, operation, batches)
    engine.module.train(training)
    engine.sync_buffers()
    touched = []
    for name, old in before.items():
        new = engine.read(name)
        entries, was, now = _difference(old, new).tolist()
        if not entries:
            continue
        if run.config.optim.averaged is not None:
            engine.write(name, new, average=True)
        touched.append({"name": name, "entries": int(entries), "norm_before": was**0.5, "norm_after": now**0.5})
    return touched


def _call(operation: Any, view: View) -> Edit:
    op: Operation = operation
    return op(view)


def _live(edit: Edit, run: Run, where: str, team: Team) -> dict[str, Any]:
    """Every rank calls. Of each mask that is stored: how many entries are live, and how many there are; on rank 0,
    whose record it is, also how many lie on a path from input to output, or why that cannot be said, and which layers
    have none to hold on to.

    Raises:
        Hopeless: on every rank, where a mask that is to be held cuts the network's output off from its input.
    """
    if not edit.masks:
        return {}
    held = {name for phase in run.plan.phases for name in phase.hold}
    weights = {slot.name for slot in run.slots if slot.kind == "weight"}
    masked: dict[str, list[int]] = {}
    reached: dict[str, int] = {}
    uncounted: dict[str, str] = {}
    empty: dict[str, list[str]] = {}
    problem = ""
    for name, masks in edit.masks.items():
        live = sum(int(mask.sum()) for mask in masks.values())
        entries = sum(mask.numel() for mask in masks.values())
        masked[name] = [live, entries]
        found, why = _on_a_path(masks, run) if team.rank == 0 else (None, "")
        if found is not None:
            reached[name] = found[0]
        elif why:
            uncounted[name] = why
        if name in held and team.rank == 0:
            none = {layer: mask.numel() for layer, mask in masks.items() if layer in weights and not bool(mask.any())}
            problem = problem or _cut_off(live, entries, none, found)
            if none:
                empty[name] = list(none)
    if held.intersection(edit.masks):
        problem = team.share(problem)
    if problem:
        raise Hopeless(f"{where} {problem}")
    return {"masks": masked, "effective": reached, "uncounted": uncounted, "empty": empty}


def _on_a_path(masks: Mapping[str, Tensor], run: Run) -> tuple[tuple[int, bool] | None, str]:
    """How many live entries lie on a path from input to output, and whether any path is left, through these weights or
    around them; or None and why: nothing where a task shows no example of its input, else that its network takes no
    other weights than its own or shows no path even when it is whole.
    """
    example = getattr(run.config.task, "example", None)
    if example is None:
        return None, ""
    network = run.config.task.initial(0)
    parameters = dict(network.named_parameters())
    whole = {slot.name: torch.ones(slot.shape, dtype=torch.bool) for slot in run.slots if slot.kind == "weight"}
    own = {name: mask for name, mask in masks.items() if name in parameters}
    try:
        found = effective(network, example(), whole | own)
        joined = any(bool(mask.any()) for mask in found.values())
        seen = joined or any(bool(mask.any()) for mask in effective(network, example(), whole).values())
    except Exception as error:  # whatever the network's own code raises: a number for the record ends no run
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not seen:
        return None, "no path is seen even through the whole network"
    return (sum(int(found[name].sum()) for name in own), joined), ""


def _cut_off(live: int, entries: int, empty: Mapping[str, int], found: tuple[int, bool] | None) -> str:
    """What is wrong with a mask that is to be held; nothing where a path is left. A layer without weights is none of
    it: a residual network goes on around one. Where nobody can look, any such layer is taken for the end.
    """
    if found[1] if found is not None else not empty:
        return ""
    layers = [f"none of the {size:,} of {name!r}" for name, size in empty.items()]
    more = f" and of {len(layers) - 1} more" if len(layers) > 1 else ""
    left = f"leaves {live:,} of {entries:,} weights ({100 * live / entries:.3g} %)" + (
        f", {layers[0]}{more}" if layers else ""
    )
    why = (
        "no path from the network's input to its output is left"
        if found is not None
        else "whether the network goes on around that cannot be seen"
    )
    return f"{left}: {why}; prune less, in fewer generations, or each tensor by itself (scope = 'tensor')"


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
