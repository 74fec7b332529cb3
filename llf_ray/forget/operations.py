"""The operations: theta <- M * K(theta) + (1 - M) * F, and the few around it (snapshot, mask, rescale, statistics).

*Reset* means a new draw, *rewind* going back to earlier values. Each operation is a frozen value with ``op(view) ->
edit``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

import torch
from torch import Tensor

from llf_ray.config import SettingError, check_number
from llf_ray.forget.draw import generator, key_of, uniform_fan_in
from llf_ray.forget.edit import Change, Edit, View
from llf_ray.forget.groups import Either, Select, Slot, resolve
from llf_ray.forget.masks import Bernoulli, Everything, KernelBlock, MaskSource, Nothing
from llf_ray.plan import Selection

__all__ = [
    "EVERYTHING",
    "STATE",
    "WEIGHTS",
    "Adopt",
    "Forget",
    "KeepMask",
    "Rescale",
    "ShrinkPerturb",
    "Snapshot",
]

WEIGHTS = Select(kinds=("weight",), name="weights")
"""Weights of convolutions and linear layers: what the KE, LLF and SEAL code resets (no bias, no normaliser)."""
EVERYTHING = Select(name="all weights")
"""All that an optimizer moves."""
STATE = Either((Select(), Select(kinds=("statistic",), name="statistics")))
"""All that a checkpoint of the network holds: parameters, and the statistics of normalisers."""


@dataclass(frozen=True, kw_only=True)
class Forget:
    """Keep what ``keep`` keeps, put ``fill`` in place of the rest.

    ``fill``: "uniform" (U(+-1/sqrt(fan_in)) for weights and biases, what the KE, LLF and SEAL code draws; entries
    without inputs take a fresh model's), "normal" (N(0, std^2), what Chen et al. 2023, arXiv:2307.01163, draw for an
    embedding; normalisers take a fresh model's), "initial" (a freshly initialised model's values), "zero", or "store"
    (rewind to the values in ``store``). ``kept``: "same", or "store": kept entries go back to ``store`` (iterative
    pruning with rewinding). ``fixed`` draws the same values in every generation. ``moments`` also zeroes the moments of
    what was forgotten, for phases that keep their optimizer.
    """

    select: Selection = WEIGHTS
    keep: MaskSource = Nothing()
    kept: Literal["same", "store"] = "same"
    fill: Literal["uniform", "normal", "initial", "zero", "store"] = "uniform"
    std: float | None = None
    store: str = ""
    fixed: bool = False
    moments: bool = True

    makes = ()

    def __post_init__(self) -> None:
        if ("store" in (self.kept, self.fill)) != bool(self.store):
            raise SettingError(
                f"store = {self.store!r}: "
                + ("nothing reads it; set fill or kept to 'store'" if self.store else "name what to rewind to")
            )
        if (self.std is None) == (self.fill == "normal"):
            raise SettingError(
                f"std = {self.std!r}: fill = {self.fill!r} " + ("has none" if self.std is not None else "needs one")
            )
        check_number("std", self.std, above=0)

    @property
    def label(self) -> str:
        """What it does, in a few words."""
        verb = {
            "uniform": "redraw",
            "normal": f"redraw by N(0, {self.std or 0:g}^2)",
            "initial": "re-initialise",
            "zero": "zero",
            "store": f"rewind to {self.store}:",
        }[self.fill]
        if self.kept == "store":
            keeping = f" outside {self.keep.label}, those inside go back to {self.store}"
        else:
            keeping = "" if isinstance(self.keep, Nothing) else f", keeping {self.keep.label}"
        return f"{verb} {self.select.label}{keeping}" + (" (same draw)" if self.fixed else "")

    @property
    def needs(self) -> tuple[str, ...]:
        """Stores that it reads."""
        own = (self.store,) if "store" in (self.kept, self.fill) else ()
        return (*own, *self.keep.needs)

    @property
    def needs_masks(self) -> tuple[str, ...]:
        """Those of them that hold masks."""
        return self.keep.needs_masks

    def __call__(self, view: View) -> Edit:
        """The edit: one change a tensor."""
        slots = _slots(self.select, view)
        masks = None if isinstance(self.keep, Nothing) else self.keep.masks(view, slots)
        fill = self._fill(view)
        values = {slot.name: self._change(slot, view, fill, masks) for slot in slots}
        clear = {slot.name: None if masks is None else ~masks[slot.name] for slot in slots if slot.kind != "statistic"}
        return Edit(values=values, clear=clear if self.moments else {})

    def _change(
        self, slot: Slot, view: View, fill: Callable[[Slot], Tensor], masks: Mapping[str, Tensor] | None
    ) -> Change:
        def change(old: Tensor) -> Tensor:
            filled = fill(slot).to(old.dtype)
            if masks is None:
                return filled
            kept = view.stores[self.store][slot.name].to(old.dtype) if self.kept == "store" else old
            return torch.where(masks[slot.name].to(old.device), kept.to(old.device), filled.to(old.device))

        return change

    def _fill(self, view: View) -> Callable[[Slot], Tensor]:
        generation = 0 if self.fixed else view.generation
        if self.fill == "zero":
            return lambda slot: torch.zeros(slot.shape)
        if self.fill == "store":
            return lambda slot: view.stores[self.store][slot.name]
        fresh = _Fresh(view, key_of(view.seed, view.key, generation, "model"))
        if self.fill == "initial":
            return lambda slot: fresh[slot.name]
        weights = {slot.module: slot.shape for slot in view.slots if slot.kind == "weight"}

        def draw(slot: Slot) -> Tensor:
            random = generator(view.seed, view.key, generation, slot.name)
            if self.std is not None and slot.kind not in {"norm", "statistic"}:
                return torch.empty(*slot.shape).normal_(0, self.std, generator=random)
            if self.std is None and slot.kind == "weight":
                return uniform_fan_in(slot.shape, random)
            if (
                self.std is None and slot.kind == "bias"
            ):  # torch's default for a linear layer: the bound is its weight's
                return _bias(slot, weights[slot.module], random)
            return fresh[slot.name]

        return draw


def _bias(slot: Slot, weight: Sequence[int], random: torch.Generator) -> Tensor:
    """U(+-1/sqrt(fan_in)) with the fan-in of the layer's weight, as torch draws a bias."""
    inputs = max(1, torch.Size(weight[1:]).numel())
    return torch.empty(*slot.shape).uniform_(-(inputs**-0.5), inputs**-0.5, generator=random)


class _Fresh(Mapping[str, Tensor]):
    """A fresh model's values, built at the first read: most redraws never need one."""

    def __init__(self, view: View, seed: int) -> None:
        self._view, self._seed = view, seed
        self._values: Mapping[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._values is None:
            self._values = self._view.fresh(self._seed)
        return self._values[name]

    def __iter__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204
        return iter(self._values or {})

    def __len__(self) -> int:
        return len(self._view.slots)


@dataclass(frozen=True, kw_only=True)
class ShrinkPerturb:
    """theta <- shrink * theta + perturb * theta_fresh, a whole fresh model's (Ash & Adams 2020, arXiv:1910.08475)."""

    select: Selection = Select()
    shrink: float = 0.4
    perturb: float = 0.1

    needs = ()
    makes = ()

    def __post_init__(self) -> None:
        check_number("shrink", self.shrink, low=0, high=1)
        check_number("perturb", self.perturb, low=0)

    @property
    def label(self) -> str:
        """What it does, in a few words."""
        return f"{self.shrink:g} x {self.select.label} + {self.perturb:g} x fresh"

    def __call__(self, view: View) -> Edit:
        """The edit; moments of everything selected are forgotten."""
        fresh = _Fresh(view, key_of(view.seed, view.key, view.generation, "model"))
        names = [slot.name for slot in _slots(self.select, view)]

        def change(name: str) -> Change:
            return lambda old: self.shrink * old + self.perturb * fresh[name].to(old)

        return Edit(values={name: change(name) for name in names}, clear=dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True)
class Rescale:
    """Give every selected tensor the L2 norm it has in a snapshot; near-zero norms become zeros.

    From layer-wise re-initialisation (Alabdulmohsin et al. 2021).
    """

    select: Selection = Select()
    store: str

    makes = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The snapshot."""
        return (self.store,)

    @property
    def label(self) -> str:
        """What it does, in a few words."""
        return f"rescale {self.select.label} to the norms of {self.store}"

    def __call__(self, view: View) -> Edit:
        """The edit; moments stay."""

        def change(name: str) -> Change:
            def rescaled(old: Tensor) -> Tensor:
                # in float64, then rounded: sums in fp32 depend on the number of threads
                target, norm = (value.double().norm().item() for value in (view.stores[self.store][name], old))
                factor = torch.tensor(target / norm if norm > 1e-12 else 0.0, dtype=old.dtype, device=old.device)
                return old * factor if target > 1e-12 and norm > 1e-12 else torch.zeros_like(old)

            return rescaled

        return Edit(values={slot.name: change(slot.name) for slot in _slots(self.select, view)})


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Keep the weights and buffers as they are now in a store."""

    store: str

    select = None
    needs = ()

    @property
    def makes(self) -> tuple[str, ...]:
        """The store."""
        return (self.store,)

    @property
    def label(self) -> str:
        """What it does, in a few words."""
        return f"keep snapshot {self.store}"

    def __call__(self, view: View) -> Edit:
        """No value changes."""
        return Edit(snapshot=self.store)


@dataclass(frozen=True, kw_only=True)
class Adopt:
    """Put the final weights of another run of the same network into a store: a teacher, or what to go back to.

    ``run`` is its folder, from the working directory.
    """

    store: str
    run: str

    select = None
    needs = ()

    @property
    def makes(self) -> tuple[str, ...]:
        """The store."""
        return (self.store,)

    @property
    def label(self) -> str:
        """What it does, in a few words."""
        return f"take {self.store} from run {PurePath(self.run).name}"

    def __call__(self, view: View) -> Edit:
        """No value changes."""
        return Edit(adopt={self.store: self.run})


@dataclass(frozen=True, kw_only=True)
class KeepMask:
    """Make a keep mask and store it; later phases hold its dead entries at zero or forget them."""

    store: str
    source: MaskSource
    select: Selection = WEIGHTS

    kind = "masks"

    @property
    def needs(self) -> tuple[str, ...]:
        """Stores that the source reads."""
        return self.source.needs

    @property
    def needs_masks(self) -> tuple[str, ...]:
        """Those of them that hold masks."""
        return self.source.needs_masks

    @property
    def makes(self) -> tuple[str, ...]:
        """The store."""
        return (self.store,)

    @property
    def label(self) -> str:
        """What it does, in a few words."""
        kept = "all" if isinstance(self.source, Everything) else f"{self.source.label} of"
        return f"mask {self.store}: keep {kept} {self.select.label}"

    def __call__(self, view: View) -> Edit:
        """No value changes."""
        return Edit(masks={self.store: self.source.masks(view, _slots(self.select, view))})


def _slots(select: Selection, view: View) -> list[Slot]:
    names = set(resolve(select, view.slots))
    return [slot for slot in view.slots if slot.name in names]


tiny = (
    Forget(),
    Forget(select=Select(), keep=Bernoulli(keep=0.5), fill="initial"),
    Forget(keep=KernelBlock(share=0.5), fill="zero"),
    ShrinkPerturb(),
    Snapshot(store="start"),
)
