"""What an operation sees and what it gives back. Both are values: an operation changes nothing it was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from llf_ray.forget.groups import Slot
from llf_ray.plan import Selection

__all__ = ["Change", "Edit", "Operation", "View"]

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class View:
    """Full fp32 weights and buffers of a model, read one tensor at a time, in the model's order on every rank.

    ``values`` may gather from shards at each read. ``fresh(seed)`` is a whole newly initialised model's values.
    ``stores`` holds snapshots and masks by store name. ``channels(share)`` gives, for layers by module name, which
    kernels a block of that share of the channels keeps, (outputs, inputs), and which outputs, as booleans; None where
    nobody knows how the layers are wired. Draws are keyed by (``seed``, ``key``, ``generation``,
    parameter name).
    """

    slots: Sequence[Slot]
    values: Mapping[str, Tensor]
    fresh: Callable[[int], Mapping[str, Tensor]]
    stores: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    channels: Callable[[float], Mapping[str, tuple[Tensor, Tensor]]] | None = None
    seed: int
    key: str
    generation: int


@dataclass(frozen=True, kw_only=True)
class Edit:
    """New values, stores to make, and moments to forget.

    ``values`` gives, by name, the new tensor from the old one, so that one tensor is held at a time; the old one may be
    the network's own memory and is only read. ``clear`` names
    moments to zero: None for the whole parameter, or a mask of its entries (True = zero). ``masks`` are stores of
    masks (1 = live); ``snapshot`` is the store that takes the weights as they are after ``values``.
    """

    values: Mapping[str, Change] = field(default_factory=dict)
    clear: Mapping[str, Tensor | None] = field(default_factory=dict)
    masks: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    snapshot: str | None = None


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
