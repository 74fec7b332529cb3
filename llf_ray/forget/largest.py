"""The largest magnitudes of many tensors together, found by counting where their parts lie: nothing is gathered or
sorted.

The 31 bits of |w|, read as a whole number, are in the order of the magnitudes, zeros of both signs and denormals
included. Two histograms over everyone's parts, of the upper 16 bits and of the lower 15 of those that share the upper
ones of the threshold, give the threshold exactly; entries equal to it are taken in the order of tensors and indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from llf_ray.config import SettingError
from llf_ray.forget.edit import Count, Shards

__all__ = ["largest"]

LOW = 15  # bits of the second histogram
INFINITE = 0x7F800000  # the bits of infinity; those of NaN lie above
STRETCH = 1 << 19  # entries at a time: what a count needs beside the weights stays small

Live = Callable[[str], Tensor | None]


def largest(shards: Shards, names: Sequence[str], keep: float, live: Live) -> Mapping[str, Tensor]:
    """Masks of the ``keep`` share of live entries with the largest magnitude, of all tensors together.

    It equals a stable sort by (|w|, index), for any number of ranks and however tensors are divided among them.

    Args:
        shards: the tensors where they lie. Every rank calls.
        names: which, in the order in which ties are broken.
        keep: share of the live entries; the number that goes is rounded up.
        live: boolean mask of a tensor by name, None for all; it is asked for again in every pass.

    Raises:
        SettingError: a weight is not finite, dead or not.
    """
    coarse = shards.tally(names, _histogram(live, LOW, None, 1 << 16))
    if int(coarse[-1]):
        raise SettingError("weights are not finite: no magnitude mask can be made of them")
    alive = int(coarse[:-1].sum())
    count = alive - math.ceil(round((1 - keep) * alive, 6))
    if count <= 0:
        return {name: shards.where(name, lambda entries: torch.zeros_like(entries, dtype=torch.bool)) for name in names}
    upper, count = _reached(coarse[:-1], count)
    fine = shards.tally(names, _histogram(live, 0, upper, 1 << LOW))[:-1]
    lower, wanted = _reached(fine, count)
    threshold = upper << LOW | lower
    if int(fine[lower]) == wanted:
        return {name: _mask(shards, name, threshold, live(name), None) for name in names}
    masks = {}
    for name, ties in zip(names, shards.tally(names, _equals(live, names, threshold)).tolist(), strict=True):
        masks[name] = _mask(shards, name, threshold, live(name), None if ties <= wanted else wanted)
        wanted -= min(ties, wanted)
    return masks


def _keys(entries: Tensor) -> Tensor:
    """Whole numbers in the order of the magnitudes."""
    return entries.detach().float().view(torch.int32) & 0x7FFFFFFF


def _histogram(live: Live, shift: int, prefix: int | None, bins: int) -> Count:
    """Counts of keys by their bits from ``shift`` on, with ``prefix`` above them; the last one: not finite."""

    def count(name: str, start: int, entries: Tensor) -> Tensor:
        found = torch.zeros(bins + 1, dtype=torch.int64, device=entries.device)
        for keys, alive in _stretches(live, name, start, entries):
            found[-1] += (keys >= INFINITE).sum()
            keys = keys if alive is None else keys[alive]
            if prefix is not None:
                keys = keys[keys >> LOW == prefix] & (bins - 1)
            found[:-1] += torch.bincount(keys >> shift, minlength=bins)
        return found

    return count


def _equals(live: Live, names: Sequence[str], threshold: int) -> Count:
    """How many live entries of each tensor have this very key."""
    places = {name: place for place, name in enumerate(names)}

    def count(name: str, start: int, entries: Tensor) -> Tensor:
        found = torch.zeros(len(names), dtype=torch.int64, device=entries.device)
        for keys, alive in _stretches(live, name, start, entries):
            equal = keys == threshold
            found[places[name]] += (equal if alive is None else equal & alive).sum()
        return found

    return count


def _stretches(live: Live, name: str, start: int, entries: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Keys and live masks of a part, some entries at a time."""
    mask = live(name) if len(entries) else None
    alive = None if mask is None else mask.reshape(-1)[start : start + len(entries)]
    for begin in range(0, len(entries), STRETCH):
        stretch = slice(begin, begin + STRETCH)
        yield _keys(entries[stretch]), None if alive is None else alive[stretch].to(entries.device)


def _reached(histogram: Tensor, count: int) -> tuple[int, int]:
    """The highest bin with at least ``count`` entries in it and above, and how many of its own are among them."""
    above = histogram.flip(0).cumsum(0).flip(0)
    place = int((above >= count).sum()) - 1
    return place, count - int(above[place] - histogram[place])


def _mask(shards: Shards, name: str, threshold: int, live: Tensor | None, ties: int | None) -> Tensor:
    """What lies above the threshold, and the first ``ties`` entries at it (None: all)."""
    lowest = threshold if ties is None else threshold + 1
    mask = shards.where(name, lambda entries: _keys(entries) >= lowest)
    alive = torch.ones_like(mask) if live is None else live.to(mask.device)
    if ties:
        equal = shards.where(name, lambda entries: _keys(entries) == threshold) & alive
        mask |= equal & (equal.reshape(-1).cumsum(0).view(equal.shape) <= ties)
    return mask & alive
