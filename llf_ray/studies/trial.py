"""A plan's operations tried on saved weights: what would change, and by how much. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Group as Stacked
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from llf_ray.config import SettingError, nearest, unknown
from llf_ray.engine.pieces import Pieces, SavedWeights
from llf_ray.forget.edit import Edit
from llf_ray.forget.groups import Slot
from llf_ray.plan import Generate, Pass
from llf_ray.run import Prepared
from llf_ray.studies.show import Deed, deeds, table_like
from llf_ray.tasks.start import FromFile, starting_weights
from llf_ray.train.boundary import view_of
from llf_ray.train.state import STAND, Stores, load_stand, newest, verify

__all__ = ["Change", "Saved", "open_weights", "report", "try_operations"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What an operation does to one tensor: entries that get another value, L2 norms."""

    name: str
    size: int
    entries: int
    norm_before: float
    norm_after: float


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Weights and buffers by name, read one at a time, and stores saved beside them."""

    where: str
    values: Mapping[str, Tensor]
    stores: Mapping[str, Mapping[str, Tensor]]


def open_weights(path: Path, slots: Sequence[Slot]) -> Saved:
    """Open a checkpoint folder, a run's folder (its newest checkpoint), or a file of weights, and hold it against the
    model.

    Raises:
        SettingError: nothing readable there, or weights of another model.
    """
    if not path.exists():
        near = nearest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else None
        raise SettingError(
            f"checkpoint {path} does not exist" + (f"; did you mean {path.parent / near}?" if near else "")
        )
    saved = _open_folder(path) if path.is_dir() else _open_file(path)
    _check(saved, slots)
    return saved


def _open_file(path: Path) -> Saved:
    try:
        values = starting_weights(FromFile(path=str(path.absolute())))
    except ValueError as error:
        raise SettingError(str(error)) from None
    assert values is not None
    return Saved(where=str(path), values=values, stores={})


def _open_folder(path: Path) -> Saved:
    folder = path if (path / STAND).exists() else newest(path / "checkpoints")[0]
    if folder is None:
        raise SettingError(f"{path} holds no checkpoint (no {STAND}) and is no run with one")
    problem = verify(folder)
    if problem:
        raise SettingError(f"checkpoint {problem}")
    return Saved(
        where=str(folder),
        values=SavedWeights(Pieces(folder)),
        stores=Stores(folder.parent.parent, load_stand(folder).stores),
    )


def _check(saved: Saved, slots: Sequence[Slot]) -> None:
    for slot in slots:
        if slot.name not in saved.values:
            raise SettingError(f"{saved.where} is of another model: " + str(unknown("weight", slot.name, saved.values)))
        found = tuple(saved.values[slot.name].shape)
        if found != slot.shape:
            raise SettingError(
                f"{saved.where} is of another model: {slot.name} has shape {found} there and {slot.shape} in this job"
            )


def try_operations(prepared: Prepared, saved: Saved, number: int | None = None) -> list[tuple[Deed, list[Change]]]:
    """Apply each distinct operation of the plan, or the one with this number, to the saved weights as they are.

    Stores that operations read and the checkpoint lacks are made from the same weights by the operations that make
    them.

    Raises:
        SettingError: the plan has no such operation.
    """
    # what the task carries out with batches of its data is left to the run
    found = [deed for deed in deeds(prepared) if not isinstance(deed.operation, Generate | Pass)]
    if not found:
        raise SettingError("the plan has no operation to try: no weight is changed but by training")
    if number is not None and not 1 <= number <= len(found):
        listed = ", ".join(f"{deed.number} ({deed.operation.label})" for deed in found)
        raise SettingError(f"operation {number} does not exist; there are: {listed}")
    stores: dict[str, Mapping[str, Tensor]] = dict(saved.stores)
    result = []
    for deed in found:
        wanted = number is None or deed.number == number
        if not wanted and not deed.operation.makes:
            continue
        edit = deed.operation(
            view_of(saved.values, prepared.config, prepared.slots, stores, deed.key, deed.places[0][0])
        )
        if edit.snapshot is not None:
            stores.setdefault(edit.snapshot, saved.values)
        for name, masks in edit.masks.items():
            stores.setdefault(name, masks)
        if wanted:
            result.append((deed, _changes(edit, saved)))
    return result


def _changes(edit: Edit, saved: Saved) -> list[Change]:
    changes = []
    for name, change in edit.values.items():
        old = saved.values[name]
        old = old.float() if old.is_floating_point() else old
        new = change(old).to(old.dtype)
        changes.append(
            Change(
                name=name,
                size=old.numel(),
                entries=int((new != old).sum()),
                norm_before=float(torch.linalg.vector_norm(old.float())),
                norm_after=float(torch.linalg.vector_norm(new.float())),
            )
        )
    return changes


def report(saved: Saved, found: Sequence[tuple[Deed, Sequence[Change]]]) -> RenderableType:
    """What changed, by tensor and together."""
    parts: list[RenderableType] = [Text(f"\nTried on {saved.where}; nothing was written", style="bold")]
    for deed, changes in found:
        parts.append(
            Text(
                f"{deed.number}. {deed.operation.label}, as at its first use "
                f"(generation {deed.places[0][0]}, {deed.places[0][1]})"
            )
        )
        if not changes:
            parts.append(Text("   no weight changes", style="dim"))
            continue
        table = table_like("tensor", "entries", "changed", "norm before", "norm after", right=(1, 2, 3, 4), fold=(0,))
        for change in changes:
            table.add_row(
                change.name,
                f"{change.size:,}",
                f"{change.entries:,}",
                f"{change.norm_before:.5g}",
                f"{change.norm_after:.5g}",
            )
        before, after = (sum(getattr(c, side) ** 2 for c in changes) ** 0.5 for side in ("norm_before", "norm_after"))
        size, entries = sum(c.size for c in changes), sum(c.entries for c in changes)
        table.add_row("together", f"{size:,}", f"{entries:,}", f"{before:.5g}", f"{after:.5g}", style="bold")
        parts.append(table)
    return Stacked(*parts)
