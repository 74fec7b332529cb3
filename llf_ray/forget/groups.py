"""Which parameters a rule or an operation means: a model's ordered layers, selections over them, optimizer groups.

A selection is resolved once against the ordered list of layers, never by a substring that latches:
``Select(before="layer3")`` is every layer in front of the first one inside the module ``layer3``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from llf_ray.config import SettingError, unknown
from llf_ray.plan import Selection

__all__ = [
    "Both",
    "Either",
    "Group",
    "Kind",
    "Not",
    "Select",
    "Slot",
    "block_of",
    "fan_in",
    "layout",
    "partition",
    "resolve",
]

Kind = Literal["weight", "bias", "norm", "embedding", "other", "statistic"]
KINDS: tuple[Kind, ...] = ("weight", "bias", "norm", "embedding", "other", "statistic")

_DENSE = (nn.Linear, nn.modules.conv._ConvNd)
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_SHORTCUTS = ("downsample", "shortcut")
_DENSE_LAYER = re.compile(r"denselayer\d+")  # DenseNets number the name itself


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One parameter or buffer of a model.

    ``kind``: "weight" (of a convolution or linear layer, or what a module names in ``weights_of_its_own``), "bias" (of
    one), "norm" (affine of a normaliser), "embedding", "other" (tokens, positions, scales), "statistic" (a buffer).
    ``layer`` is the place of its module among the modules that own entries, ``count`` the 1-based number of the last
    convolution or linear layer up to here, shortcuts not counted.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    kind: Kind
    layer: int
    count: int
    floating: bool = True

    @property
    def size(self) -> int:
        """Number of entries."""
        total = 1
        for length in self.shape:
            total *= length
        return total


def layout(model: nn.Module) -> tuple[Slot, ...]:
    """Parameters, then buffers that are saved, in the model's order.

    A shared parameter appears once, under its first name.
    """
    parameters, buffers, seen, layer, count = [], [], set[int](), 0, 0
    for path, module in model.named_modules():
        own = list(module.named_parameters(recurse=False))
        saved = [(n, b) for n, b in module.named_buffers(recurse=False) if n not in module._non_persistent_buffers_set]
        if isinstance(module, _DENSE) and not any(part in _SHORTCUTS for part in path.split(".")):
            count += 1
        prefix = f"{path}." if path else ""
        for name, value in own:
            if id(value) not in seen:
                seen.add(id(value))
                shape = tuple(getattr(value, "ds_shape", value.shape))
                parameters.append(
                    Slot(
                        name=prefix + name, module=path, shape=shape, kind=_kind(module, name), layer=layer, count=count
                    )
                )
        for name, value in saved:
            floating = value.is_floating_point()
            slot = Slot(
                name=prefix + name,
                module=path,
                shape=tuple(value.shape),
                kind="statistic",
                layer=layer,
                count=count,
                floating=floating,
            )
            buffers.append(slot)
        layer += bool(own or saved)
    return (*parameters, *buffers)


def _kind(module: nn.Module, name: str) -> Kind:
    if name in getattr(module, "weights_of_its_own", ()):
        return "weight"
    if isinstance(module, _NORMS) or "norm" in type(module).__name__.lower():
        return "norm"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, _DENSE):
        return "bias" if name == "bias" else "weight"
    return "other"


def block_of(name: str) -> str:
    """The block that an entry or a module is in: its path up to the number (``layer3.0``, ``blocks.6``,
    ``stages.2.blocks.1``, ``features.denseblock1.denselayer2``), or empty.
    """
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit() or _DENSE_LAYER.fullmatch(part)]
    if not numbers:
        return ""
    nested = [place for place in numbers[1:] if place == numbers[0] + 1 or parts[place - 1] in ("blocks", "layers")]
    return ".".join(parts[: (nested or numbers)[0] + 1])


def fan_in(shape: Sequence[int]) -> int:
    """Inputs of one output unit: the product of all lengths but the first."""
    total = 1
    for length in shape[1:]:
        total *= length
    return total


@dataclass(frozen=True, kw_only=True)
class Select:
    """Entries by place and kind.

    ``since``/``before`` bound a stretch of the ordered layers: the first layer inside that module (a path such as
    ``layer3`` or ``blocks.6``), or the n-th convolution or linear layer (a whole number from 1, shortcuts not
    counted). ``modules`` keeps only what lies in one of these modules or has this name; ``kinds`` keeps only these
    kinds (all when empty; statistics, which are buffers, only when named). ``name`` is what displays call it.
    """

    since: str | int | None = None
    before: str | int | None = None
    modules: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = ()
    name: str = ""

    @property
    def label(self) -> str:
        """Short name for displays, logs and optimizer groups."""
        if self.name:
            return self.name
        place = ("" if self.since is None else f"from {self.since}") + (
            "" if self.before is None else (" " if self.since is not None else "") + f"before {self.before}"
        )
        return ", ".join(part for part in (place, "+".join(self.modules), "+".join(self.kinds)) if part) or "all"


@dataclass(frozen=True)
class Not:
    """Everything that ``inner`` does not select (statistics excepted)."""

    inner: Selection

    @property
    def label(self) -> str:
        """Short name."""
        return f"not ({self.inner.label})"


@dataclass(frozen=True)
class Either:
    """What at least one part selects."""

    parts: tuple[Selection, ...]

    @property
    def label(self) -> str:
        """Short name."""
        return " and ".join(part.label for part in self.parts)


@dataclass(frozen=True)
class Both:
    """What every part selects."""

    parts: tuple[Selection, ...]

    @property
    def label(self) -> str:
        """Short name."""
        return " ".join(part.label for part in self.parts)


def resolve(selection: Selection, slots: Sequence[Slot]) -> tuple[str, ...]:
    """Names that a selection means, in the model's order.

    Raises:
        SettingError: a layer the model does not have (with the nearest that it has), or a selection that matches
        nothing.
    """
    names = _names(selection, slots)
    found = tuple(slot.name for slot in slots if slot.name in names)
    if not found:
        raise SettingError(f"group {selection.label!r} matches no parameter of the model")
    return found


def _names(selection: Selection, slots: Sequence[Slot]) -> set[str]:
    match selection:
        case Not():
            inside = _names(selection.inner, slots)
            return {slot.name for slot in slots if slot.name not in inside and slot.kind != "statistic"}
        case Either():
            return set().union(*(_names(part, slots) for part in selection.parts))
        case Both() if selection.parts:
            return set.intersection(*(_names(part, slots) for part in selection.parts))
        case Both():
            return set()
        case Select():
            return _selected(selection, slots)
    raise SettingError(f"{selection!r} is no selection: use Select, Not, Either or Both")


def _selected(select: Select, slots: Sequence[Slot]) -> set[str]:
    low = _place(select.since, slots) if select.since is not None else 0
    high = _place(select.before, slots) if select.before is not None else len(slots) + 1
    for kind in select.kinds:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
    kinds = select.kinds or KINDS[:-1]
    for module in select.modules:
        if not any(_inside(slot, module) for slot in slots):
            raise unknown("layer", module, _paths(slots))
    return {
        slot.name
        for slot in slots
        if low <= slot.layer < high
        and slot.kind in kinds
        and (not select.modules or any(_inside(slot, m) for m in select.modules))
    }


def _inside(slot: Slot, module: str) -> bool:
    return slot.name == module or slot.name.startswith(f"{module}.")


def _place(where: str | int, slots: Sequence[Slot]) -> int:
    if isinstance(where, int):
        found = [slot.layer for slot in slots if slot.count >= where and slot.kind == "weight"]
        most = max((slot.count for slot in slots), default=0)
        if not found or where < 1:
            raise SettingError(
                f"layer {where} does not exist: the model has {most} convolution and linear layers, counted from 1"
            )
        return min(found)
    found = [slot.layer for slot in slots if _inside(slot, where)]
    if not found:
        raise unknown("layer", where, _paths(slots))
    return min(found)


def _paths(slots: Sequence[Slot]) -> list[str]:
    paths: dict[str, None] = {}
    for slot in slots:
        parts = slot.module.split(".") if slot.module else [slot.name]
        for length in range(1, len(parts) + 1):
            paths.setdefault(".".join(parts[:length]))
    return sorted(paths, key=lambda path: (path.count("."), list(paths).index(path)))


@dataclass(frozen=True, kw_only=True)
class Group:
    """An optimizer group: parameters that share every rule, rate, reset and decay of the whole plan.

    ``labels`` are the selections they belong to; ``factor`` is the layer-wise learning-rate factor.
    """

    name: str
    parameters: tuple[str, ...]
    labels: tuple[str, ...] = ()
    decay: bool = True
    factor: float = 1.0


def partition(
    slots: Sequence[Slot],
    selections: Iterable[Selection],
    *,
    decays: Callable[[Slot], bool] = lambda slot: True,
    factor: Callable[[Slot], float] = lambda slot: 1.0,
) -> tuple[Group, ...]:
    """The coarsest partition of the parameters in which every selection is a union of groups, split by decay and rate
    factor.
    """
    parameters = [slot for slot in slots if slot.kind != "statistic"]
    members = {selection.label: set(resolve(selection, slots)) for selection in selections}
    cells: dict[tuple[tuple[str, ...], bool, float], list[str]] = {}
    for slot in parameters:
        labels = tuple(label for label, names in members.items() if slot.name in names)
        cells.setdefault((labels, decays(slot), factor(slot)), []).append(slot.name)
    both = {labels for labels, decay, _ in cells if decay} & {labels for labels, decay, _ in cells if not decay}
    scales = {factor for _, _, factor in cells}
    many = len(scales) > 1
    digits = next((n for n in (3, 6, 9) if len({f"{scale:.{n}g}" for scale in scales}) == len(scales)), 17)
    return tuple(
        Group(
            name=(" & ".join(labels) or "rest")
            + (" (no decay)" if labels in both and not decay else "")
            + (f" x{scale:.{digits}g}" if many else ""),
            parameters=tuple(names),
            labels=labels,
            decay=decay,
            factor=scale,
        )
        for (labels, decay, scale), names in cells.items()
    )
