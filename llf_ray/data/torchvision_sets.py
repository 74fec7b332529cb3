"""torchvision's own data sets, by the name of their class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llf_ray.config import SettingError, nearest
from llf_ray.data.base import PATH, Pixels, Role, check_settings, held_out, label_names, located
from llf_ray.data.order import Indices

__all__ = ["NAMES", "Torchvision", "Wrapped"]

# What torchvision calls the parts: for train, validation (None: cut from train) and test.
PARTS: Mapping[str, tuple[str, str | None, str]] = {
    "Country211": ("train", "valid", "test"),
    "DTD": ("train", "val", "test"),
    "FGVCAircraft": ("train", "val", "test"),
    "Food101": ("train", None, "test"),
    "GTSRB": ("train", None, "test"),
    "ImageNet": ("train", None, "val"),
    "Imagenette": ("train", None, "val"),
    "OxfordIIITPet": ("trainval", None, "test"),
    "PCAM": ("train", "val", "test"),
    "RenderedSST2": ("train", "val", "test"),
    "STL10": ("train", None, "test"),
    "SVHN": ("train", None, "test"),
    "StanfordCars": ("train", None, "test"),
}
FLAGGED = (
    "CIFAR10",
    "CIFAR100",
    "FashionMNIST",
    "KMNIST",
    "MNIST",
    "QMNIST",
    "USPS",
)  # those that take train=True or False
NAMES = tuple(sorted((*PARTS, *FLAGGED)))


@dataclass(frozen=True, kw_only=True)
class Torchvision:
    """One of torchvision's classification sets, for instance ``Torchvision(name="CIFAR100",
    root="torchvision")``.

    A validation share is cut from the training part where the source has none.
    """

    name: str
    root: str = field(metadata=PATH)
    download: bool = False
    channels: int = 3
    validation: float = 0.1  # share of each class of train that is cut off where the source has no such part
    seed: int = 0  # of the cut
    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)
        if self.name not in NAMES:
            near = nearest(self.name, NAMES)
            hint = f"; did you mean {near!r}?" if near else ""
            raise SettingError(
                f"name = {self.name!r}: not one of torchvision's data sets here{hint} (there are: {', '.join(NAMES)})"
            )

    def classes(self) -> tuple[str, ...]:
        source = self._source("train")
        names = getattr(source, "classes", None)
        if names is None:
            return label_names(labels_of(source))
        return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)

    def load(self, role: Role) -> Wrapped:
        source = self._source(role)
        labels = labels_of(source)
        has_validation = self.name in PARTS and PARTS[self.name][1] is not None
        chosen = held_out(labels, role, self, cut_validation=role != "test" and not has_validation)
        return Wrapped(source, chosen, labels[chosen], self.channels, f"{self.name} in {located(self.root)}")

    def _source(self, role: Role) -> Any:
        import torchvision.datasets  # here: it takes seconds, and a run on other data needs none of it

        make = getattr(torchvision.datasets, self.name)
        root = located(self.root)
        if self.name in FLAGGED:
            part: dict[str, Any] = {"train": role != "test"}
        else:
            train, validation, test = PARTS[self.name]
            part = {"split": {"train": train, "validation": validation or train, "test": test}[role]}
        if "download" in inspect.signature(make).parameters:
            part["download"] = self.download
        try:
            return make(str(root), **part)
        except (RuntimeError, OSError, ValueError, KeyError) as error:  # KeyError: a list names an unknown class
            reason = (not self.download and _broken(make, root)) or " ".join(str(error).split())
            raise FileNotFoundError(
                f"torchvision's {self.name} could not be read from {root} (download = {self.download}): {reason}"
            ) from None


def _broken(source: Any, root: Path) -> str:
    """Which of a set's published files is missing or another one, where torchvision has their MD5 sums; else nothing.

    torchvision itself says only that some file is.
    """
    from torchvision.datasets.utils import check_integrity

    meta = getattr(source, "meta", None)
    files = [*getattr(source, "train_list", ()), *getattr(source, "test_list", ())]
    files += [(meta["filename"], meta["md5"])] if meta else []
    for name, checksum in files:
        path = root / source.base_folder / name
        if not check_integrity(str(path), checksum):
            return f"{path} is not the published file (by its MD5)" if path.exists() else f"{path} does not exist"
    return ""


@dataclass(frozen=True)
class Wrapped:
    """Chosen items of a sequence of (picture, label) pairs."""

    source: Any
    chosen: Indices
    labels: Indices
    channels: int
    name: str

    def image(self, index: int) -> Pixels:
        return as_pixels(
            self.source[int(self.chosen[index])][0], self.channels, f"{self.name}, item {self.chosen[index]}"
        )


def as_pixels(picture: Image.Image, channels: int, name: str) -> Pixels:
    """A picture of a library's data set as grey (1) or colour (3)."""
    try:
        pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as an image: {error}") from None
    return pixels.reshape(*pixels.shape[:2], channels)


def labels_of(source: Any) -> Indices:
    """The labels of a torchvision data set, by one of the names that torchvision has for them, without
    reading images.
    """
    for name in ("targets", "labels", "_labels"):
        if hasattr(source, name):
            return np.asarray(getattr(source, name)).reshape(len(source), -1)[:, 0].astype(np.int64)
    if hasattr(source, "_samples"):
        return np.asarray([label for _, label in source._samples], dtype=np.int64)
    return np.asarray([source[index][1] for index in range(len(source))], dtype=np.int64)
