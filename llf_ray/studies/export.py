"""The network of a finished run as files that others can use: weights with settings, a program of torch, ONNX.

What only training needs is left out: a transformer that loses tokens is stripped first. Every file is read back and
held against the run's own network on test images before anyone trusts it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from llf_ray import __version__
from llf_ray.config import SettingError, unknown
from llf_ray.data.order import Draw
from llf_ray.data.preparation import Preparation
from llf_ray.display import size_words
from llf_ray.nn.cropr.flops import Count, count
from llf_ray.nn.cropr.schedule import Steady
from llf_ray.nn.cropr.settings import Cropping
from llf_ray.nn.cropr.stripped import (
    WEIGHTS,
    cropped_in,
    load_stripped,
    save_settings,
    save_stripped,
    strip,
    traced,
    unexportable,
)
from llf_ray.nn.cropr.transformer import apply
from llf_ray.nn.normaliser import without_normalisers
from llf_ray.nn.recipe import network_of
from llf_ray.nn.segmenter import Segmenter
from llf_ray.studies.finished import open_finished
from llf_ray.tasks.classification import Classification
from llf_ray.tasks.segmentation import Segmentation

__all__ = [
    "FORMATS",
    "ONNX",
    "PROGRAM",
    "Exported",
    "Written",
    "check_formats",
    "export_of",
    "onnx_session",
    "report",
    "save_onnx",
]

FORMATS = ("safetensors", "torch", "onnx")
PROGRAM, ONNX = "model.pt2", "model.onnx"
ONNX_BESIDE = f"{ONNX}.data"
ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "images", "scores"  # names in the ONNX graph

CHECKED = 32  # test images that files are checked on
UNEVEN = (1, 3)  # images of the first batches: a program must take batches of any size
TOLERANCE = 1e-3  # largest difference in scores, as a share of the largest score
MOST_INSIDE = 1 << 30  # bytes of weights that an ONNX file holds itself; protobuf ends at twice that

Scores = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file, or one and what lies beside it, and how it was found to compute: the largest difference in class scores,
    and the share of images, or of their pixels, with the same class.
    """

    format: str
    files: tuple[Path, ...]
    difference: float
    same: float
    sound: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written: where, numbers of the network as it is shipped and as it was trained, multiply-adds of an image
    with and without cuts, and each file; ``images`` of the test part checked them.
    """

    folder: Path
    numbers: int
    trained_numbers: int
    cost: Count
    dense_cost: Count
    written: tuple[Written, ...]
    images: int


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats, each once.

    Raises:
        SettingError: an unknown one, or one that needs a package that is not installed.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    if "onnx" in formats:
        _need_onnx("format onnx", ONNX_NEEDS)
    return tuple(dict.fromkeys(formats))


def _need_onnx(what: str, packages: Sequence[str]) -> None:
    gone = [package for package in packages if find_spec(package) is None]
    if gone:
        raise SettingError(f"{what}: {', '.join(gone)} is not installed: pip install 'llf_ray[export]'")


def export_of(run_folder: Path, folder: Path | None = None, formats: Sequence[str] = FORMATS[:1]) -> Exported:
    """Write the network of a finished run, and hold what was written against it.

    Args:
        run_folder: of a finished run of image classification or semantic segmentation.
        folder: where to write; None: ``exported`` in the run's folder. Files of an earlier export there go.
        formats: of `FORMATS`.

    Raises:
        SettingError: what cannot be exported, by name, before anything is written.
    """
    formats = check_formats(formats)
    finished = open_finished(run_folder)
    task = finished.run.config.task
    if not isinstance(task, Classification | Segmentation):
        raise SettingError(
            f"run {run_folder.name!r}: {type(task).__name__} has no network that turns images into class scores; "
            "strip() and traced() of llf_ray.nn.cropr take any network with a transformer that loses tokens"
        )
    trained = finished.network()
    try:
        network = strip(trained) if cropped_in(trained) else without_normalisers(finished.network())
    except ValueError as error:
        raise SettingError(f"run {run_folder.name!r}: {error}") from None
    why = unexportable(network)
    if why is not None and set(formats) - {"safetensors"}:
        raise SettingError(f"run {run_folder.name!r}: {why}; format safetensors can hold it")
    recipe = {name: value for name, value in task.network_recipe().items() if name != "cropping"}
    about = {
        "llf_ray": __version__,
        "run": finished.run.config.name,
        "network": recipe,
        "classes": list(task.data.classes()),
        "images": _preparation(task),
    }
    place = folder or run_folder / "exported"
    images = _test_images(task)
    held = _Held(trained, images)
    for name in (WEIGHTS, PROGRAM, ONNX, ONNX_BESIDE):  # of an earlier export: one folder holds one network
        (place / name).unlink(missing_ok=True)
    written = [_written(name, place, network, about, held) for name in formats]
    with torch.device("meta"):
        dense = _dense(recipe)
    shape = (1, *task.example().shape[1:])
    return Exported(
        folder=place,
        numbers=_numbers(network),
        trained_numbers=_numbers(trained),
        cost=count(network, shape),
        dense_cost=count(dense, shape),
        written=tuple(written),
        images=len(images),
    )


def _preparation(task: Classification | Segmentation) -> dict[str, Any]:
    """How test images are prepared, as plain data; "pad" takes the longer side to the square and fills it up with
    zeros, right and below, after scaling.
    """
    size: Any = tuple(task.example().shape[1:])
    if isinstance(task, Classification):
        return asdict(Preparation.of(task.augment, task.scaling(), size))
    return {**dict(zip(("channels", "height", "width"), size, strict=True)), **asdict(task.scaling()), "resize": "pad"}


def _dense(recipe: Mapping[str, Any]) -> nn.Module:
    """The network that loses no tokens."""
    network = network_of(recipe)
    if "segmenter" not in recipe:
        return network
    nothing = Cropping(schedule=Steady(rate=0), selector="variance", fusion=False)
    return Segmenter(apply(network, nothing), **recipe["segmenter"])


def _test_images(task: Classification | Segmentation) -> Tensor:
    """The first images of the test part, as the network sees them."""
    number = min(CHECKED, task.num_items("test"), getattr(task, "scored_together", CHECKED))
    (batch,) = task.batches("test", [Draw(np.arange(number))], torch.device("cpu"))
    images: Tensor = batch.images
    return images


def _numbers(network: nn.Module) -> int:
    """Parameters, and what took the place of some: the vectors of stripped modules."""
    vectors = sum(value.numel() for name, value in network.named_buffers() if name.endswith(".cropr.direction"))
    return vectors + sum(parameter.numel() for parameter in network.parameters())


class _Held:
    """Holds what was written against the network that was trained; its scores are computed once, hence a class."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.images = images
        with torch.no_grad():
            self.scores = network(images)

    def against(self, name: str, files: Sequence[Path], scores: Scores, sizes: Sequence[int] = ()) -> Written:
        """``scores`` are asked in batches of ``sizes``, then of all that are left."""
        ends = [end for end in np.cumsum(sizes).tolist() if end < len(self.images)]
        with torch.no_grad():
            found = torch.cat([scores(part) for part in self.images.tensor_split(ends)])
        difference = float((found - self.scores).abs().max())
        return Written(
            format=name,
            files=tuple(files),
            difference=difference,
            same=float((found.argmax(1) == self.scores.argmax(1)).double().mean()),
            sound=difference <= TOLERANCE * float(self.scores.abs().max()),
        )


def _written(name: str, folder: Path, network: nn.Module, about: Mapping[str, Any], held: _Held) -> Written:
    """One format; the settings, which say how images are prepared, lie beside each."""
    if name == "safetensors":
        save_stripped(folder, network, about)
        return held.against(name, [folder / WEIGHTS], load_stripped(folder))
    save_settings(folder, network, about)
    program = traced(network, torch.zeros(2, *held.images.shape[1:]))  # a program keeps its example: nobody's image
    if name == "torch":
        torch.export.save(program, folder / PROGRAM)
        return held.against(name, [folder / PROGRAM], torch.export.load(folder / PROGRAM).module(), UNEVEN)
    files = save_onnx(program, folder / ONNX, sum(value.nbytes for value in network.state_dict().values()))
    return held.against(name, files, onnx_session(folder / ONNX), UNEVEN)


def save_onnx(program: ExportedProgram, path: Path, size: int) -> list[Path]:
    """Write an ONNX graph with a batch of any size; weights of ``size`` bytes beside it where they are many."""
    beside = path.with_name(f"{path.name}.data")
    beside.unlink(missing_ok=True)
    with _quiet("onnxscript", "onnx_ir"):
        torch.onnx.export(
            program,
            (),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamo=True,
            external_data=size > MOST_INSIDE,
            verbose=False,
        )
    return [path, *([beside] if beside.exists() else [])]


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Without these loggers' remarks on what they could not make smaller."""
    kept = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in kept.items():
            logging.getLogger(name).setLevel(level)


def onnx_session(path: Path) -> Scores:
    """Class scores by ONNX Runtime on the CPU.

    Raises:
        SettingError: ONNX Runtime is not installed, or the file cannot be read.
    """
    _need_onnx(str(path), ["onnxruntime"])
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors are of many kinds, none of them public
        reason = " ".join(str(error).split())[:200]
        raise SettingError(f"{path} cannot be read as an ONNX model: {reason}") from None

    def scores(images: Tensor) -> Tensor:
        (found,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(found)

    return scores


def report(made: Exported) -> list[str]:
    """What was written, a line each."""
    lines = [
        f"{made.numbers:,} numbers of the {made.trained_numbers:,} parameters that were trained",
        f"multiply-adds of an image, attention counted: {_amount(made.cost.total)} of {_amount(made.dense_cost.total)} "
        f"without cuts ({made.cost.total / made.dense_cost.total:.0%})",
    ]
    if made.numbers == made.trained_numbers:
        lines[0] = f"{made.numbers:,} parameters, all that were trained"
    if made.cost == made.dense_cost:
        lines[1] = f"multiply-adds of an image, attention counted: {_amount(made.cost.total)}"
    for one in made.written:
        files = ", ".join(file.name for file in one.files)
        held = f"scores differ by at most {one.difference:.2g}, the class is the same for {100 * one.same:.4g} %"
        lines.append(f"{one.format}: {files}, {size_words(one.size)}; on {made.images} test images {held}")
    return [*lines, f"written: {made.folder}"]


def _amount(number: int) -> str:
    """``34.7 G``."""
    value, letter = next(
        (number / size, letter) for size, letter in ((1e9, "G"), (1e6, "M"), (1, "")) if number >= size
    )
    return f"{value:.3g} {letter}".rstrip()
