"""An exported model on images of one's own: classes with probabilities, and what was cut where."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from llf_ray.config import SettingError, check_number, nearest
from llf_ray.data.base import Pixels, found, read_image
from llf_ray.data.preparation import Preparation
from llf_ray.figures import KeepMap, keep_map, keep_maps
from llf_ray.nn.cropr.stripped import SETTINGS, WEIGHTS, load_stripped, read_settings
from llf_ray.nn.cropr.transformer import Cropped
from llf_ray.studies.export import ONNX, onnx_session

__all__ = [
    "Model",
    "Prediction",
    "check_target",
    "conclusion",
    "device_of",
    "images_at",
    "line",
    "open_model",
    "predict",
    "write",
]

ON_SHEET = 24  # images of the overview
WRITERS = (".csv", ".json")
# files of these that are found in a folder PIL knows by name alone, and hands to other programs where there are some
STUBS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """An exported model: ``run`` gives class scores (B, classes), and the depth of each patch (B, h, w), or None where
    nothing is cut or cannot be known.
    """

    path: Path
    classes: tuple[str, ...]
    prepared: Preparation
    device: torch.device
    run: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    blocks: int = 0  # of a transformer that loses tokens
    after: tuple[int, ...] = ()  # its blocks, from 1, that patches are cut behind
    no_maps: str = ""  # why there are no depths


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of an image, likeliest first."""

    image: str
    classes: tuple[tuple[str, float], ...]


def open_model(path: Path, device: str = "auto") -> Model:
    """An exported model.

    Args:
        path: the folder, where weights go before ONNX; or one of the two files.
        device: as torch names it; "auto" for an accelerator where there is one. ONNX runs on the CPU.

    Raises:
        SettingError: no exported model, a broken one, or a device that is not there.
    """
    try:
        found(path, "an exported model: what `llf-ray export` writes", data=False)
    except FileNotFoundError as error:
        raise SettingError(str(error)) from None
    folder = path if path.is_dir() else path.parent
    name = path.name if path.is_file() else next((n for n in (WEIGHTS, ONNX) if (folder / n).exists()), WEIGHTS)
    if name not in (WEIGHTS, ONNX):
        raise SettingError(
            f"{path}: of an exported model, {WEIGHTS} and {ONNX} can be run here (a program of torch holds pickled "
            "parts: load it yourself if you trust it)"
        )
    settings = read_settings(folder)
    if "segmenter" in settings.get("network", ()):
        raise SettingError(
            f"{path} says the class of every pixel, and whole images are asked for: load_stripped gives its network"
        )
    try:
        classes, plain = tuple(settings["classes"]), dict(settings["images"])
        prepared = Preparation(**{**plain, "mean": tuple(plain["mean"]), "std": tuple(plain["std"])})
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SettingError(f"{folder / SETTINGS} does not say how images and classes are prepared: {reason}") from None
    if name == ONNX:
        return _of_onnx(folder / name, classes, prepared, device)
    return _of_weights(folder / name, classes, prepared, device_of(device))


def device_of(name: str) -> torch.device:
    """A device that is there.

    Raises:
        SettingError: it is not.
    """
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kinds = ["cpu", *([there.type] if there is not None else [])]
    if name == "auto":
        return torch.device(kinds[-1])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    number = torch.accelerator.device_count() if device is not None and device.type != "cpu" else 1
    if device is None or device.type not in kinds or (device.index or 0) >= number:
        near = nearest(name, ["auto", *kinds])
        hint = f"; did you mean {near!r}?" if near and near != name else ""
        raise SettingError(f"device {name!r} is not there{hint} (there are: auto, {', '.join(kinds)})")
    return device


def _of_onnx(path: Path, classes: tuple[str, ...], prepared: Preparation, device: str) -> Model:
    if device not in ("auto", "cpu"):
        raise SettingError(f"device {device!r}: {path.name} runs on the CPU; {WEIGHTS} runs anywhere")
    scores = onnx_session(path)
    return Model(
        path=path,
        classes=classes,
        prepared=prepared,
        device=torch.device("cpu"),
        run=lambda images: (scores(images), None),
        no_maps=f"{path.name} gives class scores alone; export format safetensors, too",
    )


def _of_weights(path: Path, classes: tuple[str, ...], prepared: Preparation, device: torch.device) -> Model:
    network = load_stripped(path.parent).to(device)
    common: Any = {"path": path, "classes": classes, "prepared": prepared, "device": device}
    if not isinstance(network, Cropped):
        return Model(**common, run=lambda images: (network(images), None), no_maps="it loses no tokens")
    if network.cropping.selector == "merge":
        return Model(**common, run=lambda images: (network(images), None), no_maps="it merges tokens and cuts none")
    places = tuple(
        block
        for block, before, kept in zip(network.after, (_patches(network), *network.kept), network.kept, strict=False)
        if kept < before
    )
    return Model(**common, run=lambda images: _seen(network, images), blocks=len(network.blocks), after=places)


def _patches(network: Cropped) -> int:
    return network.grid[0] * network.grid[1]


def _seen(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    seen = network(images, detailed=True)
    return seen.output, seen.depth


# -------------------------------------------------------------------------------------------------------------- images


def images_at(path: Path) -> tuple[list[Path], list[str]]:
    """Image files, and their names: a file's own, or those below a folder, at any depth, in alphabetical order.

    Raises:
        SettingError: nothing there, or no image in it.
    """
    try:
        found(path, "an image, or a folder of images", data=False)
    except FileNotFoundError as error:
        raise SettingError(str(error)) from None
    if path.is_file():
        return [path], [path.name]
    suffixes = _suffixes()
    below = sorted(p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
    files = [file for file in below if file.suffix.lower() in suffixes and file.is_file()]
    if not files:
        others = sorted({file.suffix or file.name for file in below if file.is_file()})
        held = f"only {', '.join(others[:8])}" if others else "no file at all"
        raise SettingError(f"{path} holds no image: {held}")
    return files, [str(file.relative_to(path)) for file in files]


def _suffixes() -> frozenset[str]:
    """Of the formats that PIL reads by itself."""
    known = Image.registered_extensions()  # it also makes PIL look for its formats
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in STUBS)


@torch.no_grad()
def predict(
    model: Model,
    files: Sequence[Path],
    names: Sequence[str],
    *,
    top: int = 5,
    batch: int = 32,
    maps: Path | None = None,
    skip_broken: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Prediction]:
    """Classes of images, in their order.

    Args:
        model: see `open_model`.
        files: images.
        names: of them, for the answer; maps are named alike.
        top: how many classes of each image, likeliest first.
        batch: images at a time.
        maps: a folder for keep maps: a picture for each image, and an overview of the first ones.
        skip_broken: pass over images that cannot be read, and ``tell`` their names.
        tell: what is done with a line for the user.

    Raises:
        SettingError: an image that cannot be read, unless it is to be passed over; none that can; no maps to be had.
    """
    check_number("top", top, low=1)
    check_number("batch", batch, low=1)
    if maps is not None and model.no_maps:
        raise SettingError(f"no keep maps of {model.path}: {model.no_maps}")
    answers: list[Prediction] = []
    sheet: list[KeepMap] = []
    read = _read(model, files, names, skip_broken, tell)
    while part := list(islice(read, batch)):
        images = torch.stack([image for _, image in part])
        scores, depth = model.run(images.to(model.device))
        if scores.shape[1] != len(model.classes):
            raise SettingError(
                f"{model.path} gives {scores.shape[1]} scores, {SETTINGS} names {len(model.classes)} classes"
            )
        chances, order = scores.float().softmax(1).topk(min(top, len(model.classes)))
        for place, (name, image) in enumerate(part):
            likeliest = zip(order[place].tolist(), chances[place].tolist(), strict=True)
            answers.append(Prediction(image=name, classes=tuple((model.classes[i], share) for i, share in likeliest)))
            if maps is not None and depth is not None:
                picture = _map(answers[-1], model.prepared.pictured(image), depth[place].cpu().numpy())
                keep_map(picture, model.after, model.blocks, maps / "images" / f"{name}.png")
                sheet += [picture] if len(sheet) < ON_SHEET else []
    if not answers:
        raise SettingError(f"none of the {len(files)} images can be read")
    if maps is not None:
        title = "what is cut where" + (
            f": the first {len(sheet)} of {len(answers)}" if len(answers) > len(sheet) else ""
        )
        keep_maps(title, sheet, model.after, model.blocks, maps / "overview.png")
    return answers


def _read(
    model: Model, files: Sequence[Path], names: Sequence[str], skip_broken: bool, tell: Callable[[str], None]
) -> Iterator[tuple[str, Tensor]]:
    """Prepared images that can be read, with their names."""
    transform = model.prepared.transform()
    for file, name in zip(files, names, strict=True):
        try:
            image = _prepared(file, model.prepared.channels, transform)
        except (ValueError, OSError) as error:
            if not skip_broken:
                raise SettingError(f"{error} (--skip-broken passes over such files)") from None
            tell(f"passed over: {error}")
            continue
        yield name, image


def _prepared(file: Path, channels: int, transform: Callable[[Pixels], Tensor]) -> Tensor:
    pixels = read_image(file, channels)
    try:
        return transform(pixels)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from None


def _map(answer: Prediction, pixels: Pixels, depth: NDArray[Any]) -> KeepMap:
    name, share = answer.classes[0]
    return KeepMap(name=answer.image, answer=f"{name} {100 * share:.1f} %", pixels=pixels, depth=depth)


# -------------------------------------------------------------------------------------------------------------- answers


def check_target(path: Path) -> None:
    """Raise unless answers can be written there."""
    if path.suffix.lower() not in WRITERS:
        raise SettingError(f"{path}: answers are written as {' or '.join(WRITERS)}")


def write(answers: Sequence[Prediction], path: Path) -> None:
    """A line for each image, by the file's suffix: CSV with columns image, class_1, probability_1, class_2, ..., or
    JSON.
    """
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".json":
        path.write_text(json.dumps([_plain(answer) for answer in answers], indent=1))
        return
    ranks = range(1, len(answers[0].classes) + 1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *(f"{word}_{rank}" for rank in ranks for word in ("class", "probability"))])
        for answer in answers:
            writer.writerow([answer.image, *(part for name, p in answer.classes for part in (name, f"{p:.6f}"))])


def line(answer: Prediction) -> str:
    """An image and its classes, for a terminal."""
    return f"{answer.image}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in answer.classes)


def conclusion(answers: Sequence[Prediction], asked: int) -> str:
    """How many images have an answer, and of which classes they are."""
    counts = Counter(answer.classes[0][0] for answer in answers)
    often = ", ".join(f"{name} {number}" for name, number in counts.most_common(5))
    more = f" and {len(counts) - 5} more classes" if len(counts) > 5 else ""
    gone = f", {asked - len(answers)} passed over" if asked > len(answers) else ""
    return f"{len(answers)} image{'s' * (len(answers) != 1)}{gone}: {often}{more}"


def _plain(answer: Prediction) -> Mapping[str, Any]:
    classes = [{"class": name, "probability": round(share, 6)} for name, share in answer.classes]
    return {"image": answer.image, "classes": classes}
