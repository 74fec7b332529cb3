"""Where weights start: drawn anew, timm's pretrained, a file, or another run's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from llf_ray.config import nearest
from llf_ray.data.augment import Scaling
from llf_ray.data.base import PATH, RUN_PATH, found, located
from llf_ray.nn.weights import read_weights

__all__ = [
    "Fresh",
    "FromFile",
    "FromRun",
    "Pretrained",
    "Start",
    "fitting",
    "load_into",
    "same_network",
    "starting_weights",
    "stated_scaling",
]

Head: TypeAlias = Literal["same", "fresh"]


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Drawn anew by the network's own initialisation, from the run's seed."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """timm's pretrained weights for the model's name."""


@dataclass(frozen=True, kw_only=True)
class FromFile:
    """A safetensors file, or what ``torch.save`` wrote and ``weights_only`` can read.

    ``rename`` replaces beginnings of names: ``{"linear.": "fc."}``. With ``head="fresh"`` a classifier of
    another size is drawn anew, and what a file has of a classifier that the network lacks is left behind.
    """

    path: str = field(metadata=PATH)
    head: Head = "same"
    rename: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FromRun:
    """The final weights of another run of this project, by its folder (from the working directory)."""

    run: str = field(metadata=RUN_PATH)
    head: Head = "same"


Start: TypeAlias = Fresh | Pretrained | FromFile | FromRun


def stated_scaling(task: Any) -> Scaling | None:
    """What a task's pixels are scaled by where its settings say so, or its pretrained weights expect it; None where the
    training images must be measured.
    """
    if task.mean is not None and task.std is not None:
        return Scaling(mean=task.mean, std=task.std)
    if isinstance(task.start, Pretrained) and hasattr(task.model, "pretrained_scaling"):
        expected = task.model.pretrained_scaling()
        if expected is not None and len(expected[0]) == task.data.channels:
            return Scaling(mean=expected[0], std=expected[1])
    return None


def weights_file(start: Start) -> Path | None:
    """The file that a start reads; None where it reads none. FileNotFoundError where it is not there."""
    if isinstance(start, FromFile):
        return found(located(start.path), "a file of weights (.safetensors, .pt, .pth)")
    if isinstance(start, FromRun):
        return found(
            Path(start.run).expanduser().absolute() / "final" / "model.safetensors",
            "the final weights of a finished run",
            data=False,
        )
    return None


def starting_weights(start: Start) -> dict[str, Tensor] | None:
    """Weights and buffers by name, as a start's file has them; None for a start without a file."""
    path = weights_file(start)
    if path is None:
        return None
    values = read_weights(path)
    if all(name.startswith("module.") for name in values):  # written by a parallel wrapper
        values = {name.removeprefix("module."): value for name, value in values.items()}
    rename = start.rename if isinstance(start, FromFile) else {}
    return {_renamed(name, rename): value for name, value in values.items()}


def load_into(network: nn.Module, start: Start, head: tuple[str, ...]) -> None:
    """Put a start's weights into a network; ``head`` names the modules that may keep their own under
    ``head="fresh"``.

    Raises:
        ValueError: in one line, which tensors are missing, not in the model, or of another shape.
    """
    values = fitting(network, start, head)
    if values is not None:
        network.load_state_dict(values)


def fitting(network: nn.Module, start: Start, head: tuple[str, ...]) -> dict[str, Tensor] | None:
    """What `load_into` loads; None for a start without a file. Of the network only names and shapes count, and the
    values of a head that stays.

    Raises:
        ValueError: in one line, which tensors are missing, not in the model, or of another shape.
    """
    values = starting_weights(start)
    if values is None:
        return None
    own = network.state_dict()
    if isinstance(start, FromFile | FromRun) and start.head == "fresh":
        modules = tuple(f"{module}." for module in head)
        values = {
            name: value
            for name, value in values.items()
            if not name.startswith(modules) or (name in own and value.shape == own[name].shape)
        }
        values = {**{name: value for name, value in own.items() if name.startswith(modules)}, **values}
    # counters of batches that older files lack: nothing reads them as long as statistics are running means
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    values = {**counters, **values}
    problems = _problems(own, values, " (a classifier of another size: head=fresh)")
    if problems:
        raise ValueError(f"{weights_file(start)} does not fit the model: {'; '.join(problems)}")
    return values


def same_network(network: nn.Module, start: Start) -> None:
    """Raise unless a start's file holds the weights of this very network, names and shapes.

    Raises:
        ValueError: in one line, which tensors are missing, not in the model, or of another shape. FileNotFoundError:
            there is no file.
    """
    problems = _problems(network.state_dict(), starting_weights(start) or {})
    if problems:
        raise ValueError(f"{weights_file(start)} is not of this network: {'; '.join(problems)}")


def _problems(own: Mapping[str, Tensor], values: Mapping[str, Tensor], advice: str = "") -> list[str]:
    missing = [name for name in own if name not in values]
    extra = [name for name in values if name not in own]
    shapes = [
        f"{name} is {tuple(values[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in values and values[name].shape != own[name].shape
    ]
    problems = []
    if missing:
        near = nearest(missing[0], extra)
        problems.append(
            f"missing {_some(missing)}" + (f" (the file has {near!r}: see rename)" if near and advice else "")
        )
    if extra:
        problems.append(f"not in the model: {_some(extra)}")
    if shapes:
        problems.append(f"other shapes: {_some(shapes)}{advice}")
    return problems


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    for old, new in rename.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
