"""Which items a phase's steps learn from, and their batches: the task's own training part, or what was generated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from llf_ray.data.order import Draw, Indices, order, share_of
from llf_ray.plan import Phase
from llf_ray.run import batch_of
from llf_ray.tasks.base import Batch
from llf_ray.train.state import Hopeless, Run

__all__ = ["phase_batches"]


def phase_batches(
    run: Run,
    index: int,
    stores: Mapping[str, Mapping[str, Tensor]],
    device: torch.device,
    *,
    stream: int,
    count: int,
    rank: int = 0,
    size: int = 1,
    whole: bool = False,
) -> Iterator[Batch]:
    """Micro-batches of this rank for ``count`` optimizer steps of phase ``index``, from step ``stream`` of its
    generation's order on.

    ``whole`` gives every rank each step's batch undivided.
    """
    phase = run.plan.phases[index]
    task: Any = run.config.task
    stored = phase.data.source != "task"
    items = _size_of(stores[phase.data.source], phase.data.source) if stored else task.num_items("train")
    own = math.floor(items * phase.data.share + 1e-9)
    batch, micro = batch_of(run.config.engine, size, phase)
    per_epoch = run.plan.epoch_steps[index]
    if own // batch != per_epoch:
        raise Hopeless(
            f"phase {phase.name!r} of generation {phase.generation}: {own} items of {phase.data.source!r} make "
            f"{own // batch} steps an epoch, and the plan was computed with {per_epoch}"
        )
    share = (0, 1, batch) if whole else (rank, size, micro)
    draws = _draws(phase, run.config.seed, items, own, batch, per_epoch, range(stream, stream + count), share)
    if stored:
        found: Iterator[Batch] = task.stored_batches(stores[phase.data.source], draws, device)
        return found
    return run.config.task.batches("train", draws, device)


def _draws(
    phase: Phase,
    seed: int,
    items: int,
    own: int,
    batch: int,
    per_epoch: int,
    streams: range,
    share: tuple[int, int, int],
) -> Iterator[Draw]:
    """Which items each micro-batch holds: ``own`` of them are the first of one fixed order of all."""
    chosen = order(items, seed, None, -1)[:own] if own < items else None
    generation = 0 if phase.data.repeat_order else phase.generation
    shuffled: tuple[int, Indices | None] = (-1, None)
    for stream in streams:
        epoch, place = divmod(stream, per_epoch)
        if shuffled[0] != epoch:
            shuffled = (epoch, order(own, seed, generation, epoch))
        assert shuffled[1] is not None
        here = shuffled[1][place * batch : (place + 1) * batch]
        for indices in share_of(here if chosen is None else chosen[here], *share):
            yield Draw(indices, (seed, generation, epoch))


def _size_of(store: Mapping[str, Tensor], name: str) -> int:
    sizes = {len(value) for value in (store[key] for key in store)}
    if len(sizes) != 1:
        raise Hopeless(f"store {name!r}: its tensors hold {sorted(sizes)} items; one number is needed")
    return sizes.pop()
