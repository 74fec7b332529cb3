"""What an operation sees and what it gives back. Both are values: an operation changes nothing it was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from llf_ray.forget.groups import Slot
from llf_ray.plan import Selection

__all__ = ["Change", "Count", "Edit", "Operation", "Shards", "View", "Whole"]

Change = Callable[[Tensor], Tensor]
Count = Callable[[str, int, Tensor], Tensor]
"""Whole numbers about a part of a tensor: its name, where the part starts in it, and the part, 1-D, perhaps empty."""


class Shards(Protocol):
    """Tensors where they lie: questions about them that need no gather. Every rank asks the same in the same order."""

    def tally(self, names: Sequence[str], count: Count) -> Tensor:
        """The sum of a count over all parts of these tensors; only the sum travels."""
        ...

    def where(self, name: str, test: Change) -> Tensor:
        """A full boolean mask, on the CPU, from a test of single entries: a byte an entry travels, no weight."""
        ...


@dataclass(frozen=True)
class Whole:
    """Full tensors by name, as one part each."""

    values: Mapping[str, Tensor]

    def tally(self, names: Sequence[str], count: Count) -> Tensor:
        """The sum of a count over these tensors."""
        total = count(names[0], 0, self.values[names[0]].reshape(-1))
        for name in names[1:]:
            total = total + count(name, 0, self.values[name].reshape(-1))
        return total

    def where(self, name: str, test: Change) -> Tensor:
        """A full boolean mask from a test of single entries."""
        value = self.values[name]
        return test(value.reshape(-1)).view(value.shape).cpu()


@dataclass(frozen=True, kw_only=True)
class View:
    """Full fp32 weights and buffers of a model, read one tensor at a time, in the model's order on every rank.

    ``values`` may gather from shards at each read. ``fresh(seed)`` is a whole newly initialised model's values.
    ``stores`` holds snapshots and masks by store name. ``channels(share)`` gives, for layers by module name, which
    kernels a block of that share of the channels keeps, (outputs, inputs), and which outputs, as booleans; None where
    nobody knows how the layers are wired. ``shards`` answers questions about ``values`` where they lie, for what would
    else need all of them at once; None where they are whole. Draws are keyed by (``seed``, ``key``, ``generation``,
    parameter name).
    """

    slots: Sequence[Slot]
    values: Mapping[str, Tensor]
    fresh: Callable[[int], Mapping[str, Tensor]]
    stores: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    channels: Callable[[float], Mapping[str, tuple[Tensor, Tensor]]] | None = None
    shards: Shards | None = None
    seed: int
    key: str
    generation: int


@dataclass(frozen=True, kw_only=True)
class Edit:
    """New values, stores to make, and moments to forget.

    ``values`` gives, by name, the new tensor from the old one, so that one tensor is held at a time; the old one may be
    the network's own memory and is only read. ``clear`` names
    moments to zero: None for the whole parameter, or a mask of its entries (True = zero). ``masks`` are stores of
    masks (1 = live); ``snapshot`` is the store that takes the weights as they are after ``values``; ``adopt`` names
    stores that take the final weights of other runs, by their folders.
    """

    values: Mapping[str, Change] = field(default_factory=dict)
    clear: Mapping[str, Tensor | None] = field(default_factory=dict)
    masks: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    snapshot: str | None = None
    adopt: Mapping[str, str] = field(default_factory=dict)


class Operation(Protocol):
    """A pure ``op(view) -> edit``; ``needs`` and ``makes`` name stores, ``select`` what it touches."""

    @property
    def label(self) -> str: ...

    @property
    def select(self) -> Selection | None: ...

    @property
    def needs(self) -> tuple[str, ...]: ...

    @property
    def makes(self) -> tuple[str, ...]: ...

    def __call__(self, view: View) -> Edit: ...
