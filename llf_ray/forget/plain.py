"""Operations on a module and an optimizer of your own, for a training loop that is not this package's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llf_ray.config import SettingError
from llf_ray.forget.edit import Edit, View
from llf_ray.forget.groups import layout

__all__ = ["apply", "hold_at_zero", "module_view"]


def module_view(
    module: nn.Module,
    *,
    fresh: Callable[[int], nn.Module],
    stores: Mapping[str, Mapping[str, Tensor]],
    seed: int,
    key: str,
    generation: int,
    channels: Callable[[float], Mapping[str, tuple[Tensor, Tensor]]] | None = None,
) -> View:
    """What an operation sees of a module.

    Args:
        module: with all its weights in this process (not sharded).
        fresh: a newly initialised module of the same shape, a function of the seed alone.
        stores: snapshots and masks by store name, as `apply` gave them.
        seed: of the run.
        key: of the operation's draws, as `llf_ray.plan.operations_of` gives it.
        generation: of the phase that the operation belongs to.
        channels: which kernels a block of a share of the channels keeps, for masks of kernels: `View` says how.
    """
    return View(
        slots=layout(module),
        values=dict(_entries(module)),
        fresh=lambda number: dict(_entries(fresh(number))),
        stores=stores,
        channels=channels,
        seed=seed,
        key=key,
        generation=generation,
    )


@torch.no_grad()
def apply(module: nn.Module, edit: Edit, optimizer: Optimizer | None = None) -> dict[str, Mapping[str, Tensor]]:
    """Write an edit's values into a module, in place, and forget moments; the stores that it makes.

    A parameter whose moments are cleared as a whole loses its optimizer state, step count included; of one that is
    cleared in part the masked entries become zero.

    Raises:
        SettingError: the edit takes weights from another run, which only a run can: put them into the stores yourself.
    """
    if edit.adopt:
        store, run = next(iter(edit.adopt.items()))
        raise SettingError(
            f"store {store!r} comes from run {run!r}, which is read by runs only: load its weights and give them in "
            f"`stores` as {store!r}"
        )
    entries = dict(_entries(module))
    for name, change in edit.values.items():
        entries[name].copy_(change(entries[name].clone()))
    for name, mask in edit.clear.items() if optimizer is not None else ():
        assert optimizer is not None
        if mask is None:
            optimizer.state.pop(entries[name], None)
        else:
            _zero(optimizer.state.get(entries[name], {}), mask)
    made: dict[str, Mapping[str, Tensor]] = dict(edit.masks)
    if edit.snapshot is not None:
        made[edit.snapshot] = {name: value.detach().clone() for name, value in entries.items()}
    return made


@torch.no_grad()
def hold_at_zero(module: nn.Module, masks: Mapping[str, Tensor], optimizer: Optimizer | None = None) -> None:
    """Zero the dead entries (mask 0) of weights and moments: call it behind every optimizer step of a sparse phase."""
    entries = dict(_entries(module))
    for name, mask in masks.items():
        dead = ~mask.to(entries[name].device, torch.bool)
        entries[name].masked_fill_(dead, 0)
        if optimizer is not None:
            _zero(optimizer.state.get(entries[name], {}), dead)


def _zero(state: Mapping[str, Any], entries: Tensor) -> None:
    for value in state.values():
        if isinstance(value, Tensor) and value.shape == entries.shape:
            value.masked_fill_(entries.to(value.device), 0)


def _entries(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and saved buffers themselves, by name."""
    names = {slot.name for slot in layout(module)}
    every = [*module.named_parameters(), *module.named_buffers()]
    return [(name, value) for name, value in every if name in names]
