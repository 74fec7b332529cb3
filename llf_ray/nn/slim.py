"""Slim networks: convolution, normalisation and linear layers with fewer channels, the rest of the network as it was.

A network is narrowed by widths alone, so a saved slim network is the settings of the whole one, a table of widths and
its weights. Reading one needs torch, and timm where the network is timm's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.nn.recipe import network_of
from llf_ray.nn.weights import read_weights

__all__ = ["Width", "load_slim", "narrow", "save_slim"]

WIDTHS, WEIGHTS = "slim.json", "model.safetensors"
Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass(frozen=True)
class Width:
    """How many channels a layer reads and gives, and in how many groups."""

    inputs: int
    outputs: int
    groups: int = 1


def narrow(network: nn.Module, widths: Mapping[str, Width]) -> nn.Module:
    """Give the named layers other widths, in place; their new weights are not set. Returns the network.

    Raises:
        ValueError: a name that is no convolution, batch normalisation or linear layer of the network.
    """
    for name, width in widths.items():
        path, _, last = name.rpartition(".")
        parent = network.get_submodule(path)
        layer = getattr(parent, last, None)
        if isinstance(layer, Conv):
            layer.in_channels, layer.out_channels, layer.groups = width.inputs, width.outputs, width.groups
            shape = (width.outputs, width.inputs // width.groups, *layer.kernel_size)
            _resize(layer, {"weight": shape, "bias": (width.outputs,)})
        elif isinstance(layer, nn.Linear):
            layer.in_features, layer.out_features = width.inputs, width.outputs
            _resize(layer, {"weight": (width.outputs, width.inputs), "bias": (width.outputs,)})
        elif isinstance(layer, Norm):
            layer.num_features = width.outputs
            _resize(layer, dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (width.outputs,)))
        else:
            raise ValueError(f"{name} is {type(layer).__name__}: no layer that can be made slim")
    return network


def _resize(layer: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        value = getattr(layer, name, None)
        if isinstance(value, nn.Parameter):
            setattr(layer, name, nn.Parameter(value.new_empty(shape), requires_grad=value.requires_grad))
        elif isinstance(value, Tensor):
            setattr(layer, name, value.new_empty(shape))


def save_slim(folder: Path, network: nn.Module, widths: Mapping[str, Width], about: Mapping[str, Any]) -> None:
    """Write a slim network; ``about`` says how to make the whole one.

    Args:
        folder: where; made if it is not there.
        network: the slim network.
        widths: of every layer that differs from the whole network.
        about: a recipe, see `llf_ray.nn.recipe.network_of`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = {**about, "widths": {name: asdict(width) for name, width in widths.items()}}
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
    (folder / WIDTHS).write_text(json.dumps(plain, indent=1))


def load_slim(folder: str | Path) -> nn.Module:
    """The slim network in a folder, with its weights.

    Raises:
        SettingError: in one line, which file is missing, cannot be read, or does not fit the other.
    """
    widths = Path(folder) / WIDTHS
    try:
        about = json.loads(widths.read_text())
        network = network_of(about)
        narrow(network, {name: Width(**width) for name, width in about["widths"].items()})
    except FileNotFoundError:
        raise SettingError(f"no slim network in {folder}: it has no {WIDTHS}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SettingError(f"{widths} cannot be read as the widths of a slim network: {reason}") from None
    values = read_weights(Path(folder) / WEIGHTS)
    try:
        network.load_state_dict(values)
    except RuntimeError as error:
        raise SettingError(f"{Path(folder) / WEIGHTS} does not fit {WIDTHS}: {' '.join(str(error).split())}") from None
    return network
