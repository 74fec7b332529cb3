"""How many tokens live on behind each block of a transformer.

A schedule answers with the number of patches that are alive behind each block. Prefix tokens (class token, registers)
always live; a *length* counts them, too. Blocks are numbered from 1, as in the paper: "after block 6".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llf_ray.config import SettingError, check_number

__all__ = ["Budget", "EarlyCut", "KeepRate", "Lengths", "Schedule", "Shape", "Steady", "places", "smallest"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a schedule needs to know of a transformer and its images."""

    patches: int
    prefix: int  # tokens that are never cut: class token, distillation token, registers
    blocks: int
    fusion: bool  # the last block sees all tokens again, so that cutting right before it would be for nothing

    @property
    def last(self) -> int:
        """The last block that tokens may be cut behind."""
        return self.blocks - (2 if self.fusion else 1)


class Schedule(Protocol):
    """Settings that say how many patches live on behind each block."""

    @property
    def after(self) -> tuple[int, ...] | None:
        """Blocks that modules follow, from 1, ascending; None for every block that may have one."""
        ...

    def kept(self, shape: Shape) -> tuple[int, ...]:
        """Patches alive behind each of the blocks `places` names, never more than before.

        Raises:
            SettingError: a block outside the network, or no patch left.
        """
        ...

    def eased(self, share: float) -> Schedule:
        """The same schedule with ``share`` (0 to 1) of its pruning, for curricula."""
        ...


def places(schedule: Schedule | Budget, shape: Shape) -> tuple[int, ...]:
    """Blocks, from 1, that a module follows.

    Raises:
        SettingError: a position outside the network, or none at all.
    """
    if schedule.after is None:
        if shape.last < 1:
            raise SettingError(
                f"{schedule!r}: a network of {shape.blocks} blocks has no place to cut tokens at"
                + (" under last-layer fusion" if shape.fusion else "")
            )
        return tuple(range(1, shape.last + 1))
    if not schedule.after:
        raise SettingError("after = (): name the blocks, from 1, that tokens are cut behind, or leave it at None")
    for block in schedule.after:
        if not 1 <= block <= shape.last:
            why = ", and under last-layer fusion what is cut there would come back at once" if shape.fusion else ""
            raise SettingError(
                f"after = {schedule.after!r}: {block} is no place to cut tokens at; a network of {shape.blocks} blocks "
                f"has 1 to {shape.last} (nothing behind its last block{why})"
            )
    return schedule.after


def _checked(schedule: object, after: tuple[int, ...] | None, multiple: int) -> None:
    check_number("multiple", multiple, low=1)
    if after is not None and list(after) != sorted(set(after)):
        raise SettingError(f"after = {after!r}: each block once, in ascending order")


@dataclass(frozen=True, kw_only=True)
class Steady:
    """``rate`` tokens fewer behind each module, as in the paper.

    Of the prefix the first module takes as many tokens away in addition (the paper's R + 1 with a class token), so that
    lengths are ``patches - i rate`` and stay multiples of what ``rate`` and the number of patches are multiples of;
    ``absorb=False`` leaves that out (the paper's schedule of 50 tokens after blocks 6, 12 and 18). At rate 0 nothing is
    cut. Lengths are rounded up to a ``multiple``.
    """

    rate: int
    after: tuple[int, ...] | None = None
    absorb: bool = True
    multiple: int = 1

    def __post_init__(self) -> None:
        check_number("rate", self.rate, low=0)
        _checked(self, self.after, self.multiple)

    def kept(self, shape: Shape) -> tuple[int, ...]:
        extra = shape.prefix if self.absorb and self.rate else 0
        wanted = [shape.patches - extra - self.rate * (i + 1) for i in range(len(places(self, shape)))]
        if wanted[-1] < 1:
            raise SettingError(
                f"rate = {self.rate}: {len(wanted)} modules cut more than the {shape.patches} patches that there are; "
                f"at most {self.most(shape)} leaves one"
            )
        return _rounded(wanted, shape, self.multiple)

    def most(self, shape: Shape) -> int:
        """The largest rate that leaves a patch."""
        extra = shape.prefix if self.absorb else 0
        return max(0, (shape.patches - extra - 1) // len(places(self, shape)))

    def eased(self, share: float) -> Steady:
        return dataclasses.replace(self, rate=int(self.rate * share + 1e-9))


@dataclass(frozen=True, kw_only=True)
class KeepRate:
    """Each module keeps the share ``keep`` of the patches that reach it, as in DynamicViT and EViT."""

    keep: float
    after: tuple[int, ...] | None = None
    multiple: int = 1

    def __post_init__(self) -> None:
        check_number("keep", self.keep, above=0.0, high=1.0)
        _checked(self, self.after, self.multiple)

    def kept(self, shape: Shape) -> tuple[int, ...]:
        wanted, alive = [], shape.patches
        for _ in places(self, shape):
            alive = math.ceil(self.keep * alive - 1e-9)
            wanted.append(alive)
        return _rounded(wanted, shape, self.multiple)

    def eased(self, share: float) -> KeepRate:
        return dataclasses.replace(self, keep=1 - (1 - self.keep) * share)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """The number of tokens behind each block of ``after``, prefix tokens included."""

    tokens: tuple[int, ...]
    after: tuple[int, ...]
    part: float = 1.0  # of the pruning that `tokens` means: for curricula

    def __post_init__(self) -> None:
        _checked(self, self.after, 1)
        check_number("part", self.part, low=0.0, high=1.0)
        if len(self.tokens) != len(self.after):
            raise SettingError(f"tokens = {self.tokens!r}, after = {self.after!r}: one length for each block")
        if list(self.tokens) != sorted(self.tokens, reverse=True):
            raise SettingError(f"tokens = {self.tokens!r}: lengths cannot grow from block to block")

    def kept(self, shape: Shape) -> tuple[int, ...]:
        places(self, shape)
        if not shape.prefix < self.tokens[-1] <= self.tokens[0] <= shape.prefix + shape.patches:
            raise SettingError(
                f"tokens = {self.tokens!r}: must lie between {shape.prefix + 1} and {shape.prefix + shape.patches}, "
                f"the {shape.prefix} tokens that are never cut and 1 to {shape.patches} patches"
            )
        gone = (int((shape.prefix + shape.patches - length) * self.part + 1e-9) for length in self.tokens)
        return tuple(shape.patches - cut for cut in gone)

    def eased(self, share: float) -> Lengths:
        return dataclasses.replace(self, part=self.part * share)


@dataclass(frozen=True, kw_only=True)
class EarlyCut:
    """The share ``pruned`` of the patches at once, behind one early block."""

    pruned: float = 0.8
    block: int = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        check_number("pruned", self.pruned, low=0.0, below=1.0)
        _checked(self, None, self.multiple)

    @property
    def after(self) -> tuple[int, ...]:
        return (self.block,)

    def kept(self, shape: Shape) -> tuple[int, ...]:
        places(self, shape)
        return _rounded([max(1, shape.patches - round(self.pruned * shape.patches))], shape, self.multiple)

    def eased(self, share: float) -> EarlyCut:
        return dataclasses.replace(self, pruned=self.pruned * share)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The smallest `Steady` rate whose FLOPs are at most the share ``flops`` of the dense model's.

    ``attention`` counts the attention products, too (the paper does not). `llf_ray.nn.cropr.rate_for_latency` solves
    for measured time, which differs from machine to machine and is therefore no setting.
    """

    flops: float
    attention: bool = True
    after: tuple[int, ...] | None = None
    absorb: bool = True
    multiple: int = 1

    def __post_init__(self) -> None:
        check_number("flops", self.flops, above=0.0, high=1.0)
        _checked(self, self.after, self.multiple)

    def solved(self, shape: Shape, cost: Callable[[tuple[int, ...]], float]) -> Steady:
        """The schedule that keeps within the budget.

        Args:
            shape: of transformer and images.
            cost: share of the dense model's FLOPs, from the patches alive behind each of `places`.

        Raises:
            SettingError: no rate is enough.
        """

        def share(rate: int) -> float:
            return cost(self._steady(rate).kept(shape))

        most = self._steady(0).most(shape)
        if share(most) > self.flops:
            raise SettingError(
                f"flops = {self.flops:g}: cannot be reached; cutting {most} tokens behind each module, which leaves "
                f"next to none, still costs {share(most):.3f} of the dense model"
                + ("; last-layer fusion costs a whole block" if shape.fusion else "")
            )
        return self._steady(smallest(lambda rate: share(rate) <= self.flops, most))

    def _steady(self, rate: int) -> Steady:
        return Steady(rate=rate, after=self.after, absorb=self.absorb, multiple=self.multiple)


def smallest(enough: Callable[[int], bool], most: int) -> int:
    """The smallest number up to ``most`` that is enough; all larger ones are."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _rounded(wanted: Sequence[int], shape: Shape, multiple: int) -> tuple[int, ...]:
    """Patches whose lengths are rounded up to a multiple: never fewer than wanted, never more than before."""
    kept, alive = [], shape.patches
    for patches in wanted:
        length = math.ceil((patches + shape.prefix) / multiple) * multiple
        alive = min(alive, length - shape.prefix)
        kept.append(alive)
    return tuple(kept)
