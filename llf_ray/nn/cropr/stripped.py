"""The model that is shipped: one vector for each module, no aggregators, no auxiliary heads; its files and its program.

A folder of a shipped model is a file of weights and one of settings: how to make the network, what is cut in it in
concrete numbers, and whatever its maker says of its images and classes. Reading one needs torch, timm and safetensors.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from llf_ray.config import SettingError
from llf_ray.nn.cropr.module import Cropr, Scorer
from llf_ray.nn.cropr.schedule import Lengths
from llf_ray.nn.cropr.settings import Cropping, CroprOptions
from llf_ray.nn.cropr.transformer import Cropped, apply
from llf_ray.nn.recipe import network_of
from llf_ray.nn.segmenter import Segmenter
from llf_ray.nn.weights import read_weights

__all__ = [
    "SETTINGS",
    "WEIGHTS",
    "cropped_in",
    "load_stripped",
    "read_settings",
    "save_settings",
    "save_stripped",
    "strip",
    "traced",
    "unexportable",
]

FORMAT = 1
SETTINGS, WEIGHTS = "model.json", "model.safetensors"


def strip(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that chooses as ``model`` does and holds nothing that only training needs.

    Queries of each module are folded into one vector (`Cropr.direction`), so that scoring costs one product with it
    whatever the number of queries. ``model`` may hold the transformer somewhere inside, as dense tasks do.
    """
    if not cropped_in(model):
        raise SettingError(f"strip: {type(model).__name__} holds no transformer that loses tokens")
    copied = copy.deepcopy(model).eval()
    for transformer in cropped_in(copied):
        for block in transformer.blocks:
            if isinstance(getattr(block, "cropr", None), Cropr):
                block.cropr = Scorer.of(block.cropr)
    return copied


def cropped_in(model: nn.Module) -> tuple[Cropped, ...]:
    """The transformers that lose tokens in a model, itself included."""
    return tuple(module for module in model.modules() if isinstance(module, Cropped))


# --------------------------------------------------------------------------------------------------------------- files


def save_stripped(folder: Path, model: nn.Module, about: Mapping[str, Any]) -> None:
    """Write a network without what only training needs: a stripped one, or one that loses no tokens.

    Args:
        folder: where; made if it is not there.
        model: the network.
        about: JSON-ready; under "network" the recipe of the network before it loses tokens (see
            `llf_ray.nn.recipe.network_of`), and in it, for a `Segmenter` on it, "segmenter" with the number of classes.
            All else is kept as it is.

    Raises:
        SettingError: a network that was not stripped, or that is more than a recipe makes.
    """
    save_settings(folder, model, about)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)


def save_settings(folder: Path, model: nn.Module, about: Mapping[str, Any]) -> None:
    """The settings alone, for a folder whose weights lie in a program; as `save_stripped`."""
    inside = cropped_in(model)
    if inside and not isinstance(model, Cropped | Segmenter):
        raise SettingError(
            f"{type(model).__name__} has its {type(inside[0]).__name__} inside: save that one alone, or traced() of all"
        )
    if any(isinstance(module, Cropr) for module in model.modules()):
        raise SettingError(f"{type(model).__name__} has auxiliary heads: save what strip() makes of it")
    cropping = _concrete(inside[0]) if inside else None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps({"format": FORMAT, **about, "cropping": cropping}, indent=1))


def read_settings(folder: str | Path) -> dict[str, Any]:
    """All that is known of a saved model: what `save_stripped` was told, and its "cropping", None for a network that
    loses no tokens.

    Raises:
        SettingError: in one line, no such file, one that cannot be read, or one of another format.
    """
    path = Path(folder) / SETTINGS
    try:
        settings = json.loads(path.read_text())
        version = settings["format"]
    except FileNotFoundError:
        raise SettingError(f"no exported model in {folder}: it has no {SETTINGS}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from None
    if version != FORMAT:
        raise SettingError(
            f"{path}: format = {version!r}: this llf_ray reads format {FORMAT}; another version wrote it"
        )
    return dict(settings)


def load_stripped(folder: str | Path) -> nn.Module:
    """The network in a folder, with its weights, in evaluation mode.

    Raises:
        SettingError: in one line, which file is missing or cannot be read, or the tensors by which weights are those of
            another architecture.
    """
    settings = read_settings(folder)
    try:
        network = network_of(settings["network"])
        if settings["cropping"] is not None:
            network = _cropped(network, settings["cropping"])
        if "segmenter" in settings["network"]:
            network = Segmenter(cast("Cropped", network), **settings["network"]["segmenter"])
    except SettingError as error:
        raise SettingError(f"{Path(folder) / SETTINGS}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, AssertionError) as error:
        raise _unreadable(Path(folder) / SETTINGS, error) from None
    path = Path(folder) / WEIGHTS
    values = read_weights(path)
    other = _misfits(network.state_dict(), values)
    if other:
        raise SettingError(f"{path} is of another architecture than {SETTINGS} names: {other}")
    network.load_state_dict(values)
    return network.eval()


def _unreadable(path: Path, error: Exception) -> SettingError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return SettingError(f"{path} cannot be read as the settings of an exported model: {reason}")


def _concrete(model: Cropped) -> dict[str, Any]:
    """What is cut, in numbers: ``tokens`` alive behind each block of ``after``, prefix included."""
    return {
        "after": list(model.after),
        "tokens": [model.num_prefix_tokens + kept for kept in model.kept],
        "selector": model.cropping.selector,
        "fusion": model.cropping.fusion,
        "norm": model.cropping.options.norm,  # a LayerNorm in front of the scores
        "proportional": model.cropping.proportional,
    }


def _cropped(network: nn.Module, plain: Mapping[str, Any]) -> nn.Module:
    """The network with cuts as `_concrete` describes them; vectors of its modules are not set."""
    cropping = Cropping(
        schedule=Lengths(tokens=tuple(plain["tokens"]), after=tuple(plain["after"])),
        selector=plain["selector"],
        fusion=plain["fusion"],
        options=CroprOptions(norm=plain["norm"], mlp_ratio=0.0),
        proportional=plain["proportional"],
    )
    return strip(apply(network, cropping, outputs=1))


def _misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Names of tensors that are missing, unknown or of another shape; nothing where all fit."""
    shapes = [
        f"{name} {tuple(given[name].shape)} for {tuple(value.shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    kinds = {
        "missing": [name for name in own if name not in given],
        "unknown": [name for name in given if name not in own],
        "of another shape": shapes,
    }
    return "; ".join(f"{kind} {_some(names)}" for kind, names in kinds.items() if names)


def _some(names: Sequence[str], number: int = 3) -> str:
    return ", ".join(names[:number]) + (f", ... ({len(names)} in all)" if len(names) > number else "")


# ------------------------------------------------------------------------------------------------------------- program


def unexportable(model: nn.Module) -> str | None:
    """Why a model has no program that runs without Python, or None."""
    for transformer in cropped_in(model):
        cut = transformer.kept and transformer.kept[-1] < transformer.grid[0] * transformer.grid[1]
        if transformer.cropping.selector == "random" and cut:
            return "selector 'random' draws anew in every pass, from a generator of its own that no program holds"
        if any(isinstance(module, Cropr) for module in transformer.modules()):
            return f"{type(transformer).__name__} has auxiliary heads: export what strip() makes of it"
    return None


def traced(model: nn.Module, images: Tensor) -> ExportedProgram:
    """The program of a network for batches of any size, by ``torch.export``; it needs torch alone.

    Args:
        model: in evaluation mode.
        images: an example, (B, C, H, W) with B of 2 or more: with one image torch would take the batch for fixed.

    Raises:
        SettingError: what cannot be exported, by name.
    """
    why = unexportable(model)
    if why is not None:
        raise SettingError(f"export: {why}")
    with torch.no_grad():
        return torch.export.export(model, (images,), dynamic_shapes=({0: Dim("batch")},))
