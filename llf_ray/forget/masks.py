"""Where keep masks come from: 1 = live (kept), 0 = forgotten or held at zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from llf_ray.config import check_number
from llf_ray.forget.draw import generator
from llf_ray.forget.edit import View, Whole
from llf_ray.forget.groups import Slot
from llf_ray.forget.largest import largest

__all__ = ["Bernoulli", "Everything", "KernelBlock", "Magnitude", "MaskSource", "Nothing", "Saved", "Shuffled"]


@dataclass(frozen=True)
class Everything:
    """Keep every entry."""

    label = "everything"
    needs = ()
    needs_masks = ()

    def masks(self, view: View, slots: Sequence[Slot]) -> Mapping[str, Tensor]:
        """All ones."""
        return {slot.name: torch.ones(slot.shape, dtype=torch.bool) for slot in slots}


@dataclass(frozen=True)
class Nothing:
    """Keep no entry."""

    label = "nothing"
    needs = ()
    needs_masks = ()

    def masks(self, view: View, slots: Sequence[Slot]) -> Mapping[str, Tensor]:
        """All zeros."""
        return {slot.name: torch.zeros(slot.shape, dtype=torch.bool) for slot in slots}


@dataclass(frozen=True, kw_only=True)
class Bernoulli:
    """Keep each entry with probability ``keep``; ``fixed`` draws once for the run (WELS, Taha et al. 2021).

    All fixed masks of one ``name`` come from one draw, wherever they are asked for, so that a smaller ``keep`` keeps a
    part of what a larger one does.
    """

    keep: float
    fixed: bool = True
    name: str = ""

    needs = ()
    needs_masks = ()

    def __post_init__(self) -> None:
        check_number("keep", self.keep, low=0, high=1)

    @property
    def label(self) -> str:
        """Short name."""
        return f"{_percent(self.keep)} at random"

    def masks(self, view: View, slots: Sequence[Slot]) -> Mapping[str, Tensor]:
        """Independent draws, keyed by parameter."""
        # a fixed mask must not change with the boundary that asks for it
        key = ("bernoulli", self.name) if self.fixed else ("bernoulli", self.name, view.key, view.generation)
        draws = {slot.name: generator(view.seed, *key, slot.name) for slot in slots}
        return {slot.name: torch.rand(slot.shape, generator=draws[slot.name]) < self.keep for slot in slots}


@dataclass(frozen=True, kw_only=True)
class KernelBlock:
    """Keep the first ``ceil(share * out)`` kernels of each layer, of their inputs those that are kept before it.

    KELS (Taha et al. 2021). The first layer keeps all inputs, the last one all outputs. Where the view knows how layers
    are wired, inputs follow concatenations and depthwise convolutions; else they are the first ``ceil(share * in)``.
    """

    share: float
    needs = ()
    needs_masks = ()

    def __post_init__(self) -> None:
        check_number("share", self.share, above=0, high=1)

    @property
    def label(self) -> str:
        """Short name."""
        return f"kernel block {_percent(self.share)}"

    def masks(self, view: View, slots: Sequence[Slot]) -> Mapping[str, Tensor]:
        """A block of ones at the low end of both axes; one axis for biases."""
        last = max(slot.count for slot in view.slots)
        wired = view.channels(self.share) if view.channels is not None else {}
        result = {}
        for slot in slots:
            if slot.module in wired and slot.shape:
                block, outputs = wired[slot.module]
                kernels = block if len(slot.shape) > 1 else outputs
                result[slot.name] = kernels.view(*kernels.shape, *[1] * (len(slot.shape) - kernels.dim())).expand(
                    slot.shape
                )
                continue
            mask = torch.zeros(slot.shape, dtype=torch.bool)
            if not slot.shape:  # a normaliser's counter
                result[slot.name] = ~mask
                continue
            number = slot.shape[0] if slot.count == last else math.ceil(self.share * slot.shape[0])
            inputs = (
                slice(None) if slot.count <= 1 or len(slot.shape) < 2 else slice(math.ceil(self.share * slot.shape[1]))
            )
            mask[(slice(number), inputs) if len(slot.shape) > 1 else slice(number)] = True
            result[slot.name] = mask
        return result


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """Keep the share ``keep`` of largest |w|, of each tensor or of all together; ties go to the lower index.

    ``of`` reads the values of a snapshot in place of the current ones; ``within`` counts and keeps only entries that
    are live in a stored mask (iterative pruning: 80 % of the survivors).
    """

    keep: float
    scope: Literal["tensor", "global"] = "tensor"
    of: str = ""
    within: str = ""

    def __post_init__(self) -> None:
        check_number("keep", self.keep, low=0, high=1)

    @property
    def needs(self) -> tuple[str, ...]:
        """Stores that it reads."""
        return tuple(name for name in (self.of, self.within) if name)

    @property
    def needs_masks(self) -> tuple[str, ...]:
        """Those of them that hold masks."""
        return (self.within,) if self.within else ()

    @property
    def label(self) -> str:
        """Short name."""
        return f"{_percent(self.keep)} largest per {'tensor' if self.scope == 'tensor' else 'network'}"

    def masks(self, view: View, slots: Sequence[Slot]) -> Mapping[str, Tensor]:
        """Exact selection by (|w|, index), the same on every rank; of all together without gathering them."""

        def live(name: str) -> Tensor | None:
            return view.stores[self.within][name].bool() if self.within else None

        names = [slot.name for slot in slots]
        values = view.stores[self.of] if self.of else view.values
        if self.scope == "global":
            lying = view.shards if view.shards is not None and not self.of else Whole(values)
            return largest(lying, names, self.keep, live)
        return {name: largest(Whole({name: values[name]}), [name], self.keep, live)[name] for name in names}


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A mask that an earlier operation stored."""

    name: str

    @property
    def needs(self) -> tuple[str, ...]:
        """The store."""
        return (self.name,)

    @property
    def needs_masks(self) -> tuple[str, ...]:
        """The store."""
        return (self.name,)

    @property
    def label(self) -> str:
        """Short name."""
        return f"mask {self.name}"

    def masks(self, view: View, slots: Sequence[Slot]) -> Mapping[str, Tensor]:
        """As stored; a parameter that the store does not hold is kept whole."""
        stored = view.stores[self.name]
        return {
            s.name: stored[s.name].bool() if s.name in stored else torch.ones(s.shape, dtype=torch.bool) for s in slots
        }


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """A stored mask, the entries of each tensor in a random order: as many are live, at other places.

    The control of Frankle & Carbin 2019 for what the places of a mask are worth.
    """

    of: Saved

    @property
    def needs(self) -> tuple[str, ...]:
        """The store."""
        return self.of.needs

    @property
    def needs_masks(self) -> tuple[str, ...]:
        """The store."""
        return self.of.needs_masks

    @property
    def label(self) -> str:
        """Short name."""
        return f"{self.of.label}, shuffled"

    def masks(self, view: View, slots: Sequence[Slot]) -> Mapping[str, Tensor]:
        """Permutations, keyed by parameter; a parameter that the store does not hold is kept whole."""
        result = {}
        for name, mask in self.of.masks(view, slots).items():
            random = generator(view.seed, "shuffle", view.key, view.generation, name)
            result[name] = mask.reshape(-1)[torch.randperm(mask.numel(), generator=random)].view(mask.shape)
        return result


MaskSource = Everything | Nothing | Bernoulli | KernelBlock | Magnitude | Saved | Shuffled


def _percent(share: float) -> str:
    """Three digits that count, written out: small shares have no exponent."""
    return f"{np.format_float_positional(100 * share, precision=3, fractional=False, trim='-')}%"
