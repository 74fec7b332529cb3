"""How many weights the masks of a plan leave alive, counted before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llf_ray.config import SettingError
from llf_ray.forget.groups import Slot, resolve
from llf_ray.forget.masks import Bernoulli, Everything, KernelBlock, Magnitude, Nothing, Saved, Shuffled
from llf_ray.forget.operations import Forget, KeepMask
from llf_ray.plan import Phase

__all__ = ["check_left", "shares_kept"]


@dataclass(frozen=True)
class _Left:
    """Live weights of a mask: of all its tensors together, and of each where that is known beforehand."""

    names: frozenset[str]
    total: float
    each: Mapping[str, float] | None


def check_left(phases: Sequence[Phase], slots: Sequence[Slot]) -> None:
    """Raise unless every mask keeps something, and one that is held at zero something of every layer.

    A random mask is judged by the number that it keeps on average. The layers of a mask by global magnitude are not
    known beforehand. Forgetting everything is no mistake where a plan says so (`Nothing`).

    Raises:
        SettingError: the first operation whose mask is empty, with its phase and generation.
    """
    held = {name for phase in phases for name in phase.hold}
    for phase, operation, chosen, left in _masked(phases, slots):
        source = operation.source if isinstance(operation, KeepMask) else operation.keep
        store = operation.store if isinstance(operation, KeepMask) else ""
        if isinstance(source, Nothing) and store not in held:
            continue
        where = f"phase {phase.name!r} of generation {phase.generation}: {operation.label!r}"
        _check(left, chosen, where, every_layer=store in held)


def shares_kept(phases: Sequence[Phase], slots: Sequence[Slot]) -> dict[KeepMask | Forget, list[float]]:
    """What an operation keeps of the entries that it speaks of, each time that it is applied, where this is known
    beforehand: on average of a random mask, and of a block of kernels without what rounding and whole ends add.
    """
    found: dict[KeepMask | Forget, list[float]] = {}
    for _, operation, chosen, left in _masked(phases, slots):
        if left.names == {slot.name for slot in chosen}:
            found.setdefault(operation, []).append(left.total / sum(slot.size for slot in chosen))
    return found


def _masked(
    phases: Sequence[Phase], slots: Sequence[Slot]
) -> Iterator[tuple[Phase, KeepMask | Forget, list[Slot], _Left]]:
    """Every operation with a mask whose number is known, in the plan's order, with the slots that it speaks of."""
    stores: dict[str, _Left] = {}
    for phase in phases:
        for operation in (*phase.entry, *phase.exit):
            if not isinstance(operation, KeepMask | Forget):
                continue
            source = operation.source if isinstance(operation, KeepMask) else operation.keep
            names = set(resolve(operation.select, slots))
            chosen = [slot for slot in slots if slot.name in names]
            left = _left(source, chosen, stores)
            if left is None:
                continue
            yield phase, operation, chosen, left
            if isinstance(operation, KeepMask):
                stores[operation.store] = left


def _check(left: _Left, slots: Sequence[Slot], where: str, *, every_layer: bool) -> None:
    advice = "keep a larger share or plan fewer generations"
    if left.total < 1:
        raise SettingError(f"{where} keeps none of {sum(slot.size for slot in slots):,} weights; {advice}")
    weights = [slot for slot in slots if slot.kind == "weight"] if every_layer else []
    empty = next((slot for slot in weights if left.each is not None and left.each[slot.name] < 1), None)
    if empty is not None:
        raise SettingError(f"{where} leaves no weight of {empty.name!r} ({empty.size:,} in all); {advice}")


def _left(source: object, slots: Sequence[Slot], stores: Mapping[str, _Left]) -> _Left | None:
    """None for a source that is not known here."""
    match source:
        case Everything():
            return _sum({slot.name: slot.size for slot in slots})
        case Nothing():
            return _sum(dict.fromkeys((slot.name for slot in slots), 0))
        case Bernoulli():
            return _sum({slot.name: source.keep * slot.size for slot in slots})
        case KernelBlock():  # of each axis the share is rounded up
            return _sum({slot.name: max(1, source.share**2 * slot.size) for slot in slots})
        case Saved():
            return stores.get(source.name)
        case Shuffled():
            return stores.get(source.of.name)
        case Magnitude():
            before = stores.get(source.within) if source.within else _sum({slot.name: slot.size for slot in slots})
            return None if before is None else _pruned(before, source)
    return None


def _pruned(before: _Left, source: Magnitude) -> _Left:
    """As `largest` counts: what goes is rounded up, of all together or of each tensor."""

    def kept(number: float) -> int:
        return int(number) - math.ceil(round((1 - source.keep) * int(number), 6))

    if source.scope == "tensor" and before.each is not None:
        return _sum({name: kept(number) for name, number in before.each.items()})
    return _Left(before.names, kept(before.total), None)


def _sum(each: Mapping[str, float]) -> _Left:
    return _Left(frozenset(each), sum(each.values()), each)
