"""Image arrays in one NumPy archive."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llf_ray.config import nearest
from llf_ray.data.base import PATH, Role, Stack, check_settings, found, held_out, label_names, located
from llf_ray.data.order import Indices

__all__ = ["Arrays"]

# role -> names of images and labels: MedMNIST's, and Keras's
LAYOUTS: tuple[dict[Role, tuple[str, str]], ...] = (
    {
        "train": ("train_images", "train_labels"),
        "validation": ("val_images", "val_labels"),
        "test": ("test_images", "test_labels"),
    },
    {"train": ("x_train", "y_train"), "validation": ("x_val", "y_val"), "test": ("x_test", "y_test")},
)


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """An ``.npz`` with uint8 images (items, height, width[, channels]) and labels, named as in MedMNIST or
    Keras.

    A validation share is cut from the training part where the file has no such part.
    """

    path: str = field(metadata=PATH)
    channels: int = 1
    validation: float = 0.1  # share of each class of train that is cut off where the file has no such part
    seed: int = 0  # of the cut
    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)

    def classes(self) -> tuple[str, ...]:
        _, layout = self._names()
        return label_names(self._labels(layout["train"][1]))

    def load(self, role: Role) -> Stack:
        names, layout = self._names()
        shared = role == "validation" and layout["validation"][0] not in names
        images_name, labels_name = layout["train" if shared else role]
        images, labels = self._read(images_name), self._labels(labels_name)
        images = images[..., None] if images.ndim == 3 else images
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[3] != self.channels
            or len(images) != len(labels)
        ):
            raise ValueError(
                f"{located(self.path)}: {images_name} is {images.dtype} of shape {images.shape} with "
                f"{len(labels)} labels: expected uint8 "
                f"(items, height, width) or (items, height, width, {self.channels}), as channels = "
                f"{self.channels}, and a label for each"
            )
        chosen = held_out(labels, role, self, cut_validation=role != "test" and layout["validation"][0] not in names)
        return Stack(np.ascontiguousarray(images[chosen]), labels[chosen])

    def _names(self) -> tuple[list[str], dict[Role, tuple[str, str]]]:
        path = found(located(self.path), "a NumPy archive (.npz)")
        try:
            with np.load(path, allow_pickle=False) as archive:
                names = list(archive.files)
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read as a NumPy archive: {error}") from None
        for layout in LAYOUTS:
            if {*layout["train"], *layout["test"]} <= set(names):
                return names, layout
        wanted = " or ".join(", ".join((*layout["train"], *layout["test"])) for layout in LAYOUTS)
        near = nearest("train_images", names)
        raise ValueError(
            f"{path} holds {', '.join(names)}: expected {wanted}" + (f"; nearest is {near!r}" if near else "")
        )

    def _read(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        path = located(self.path)
        try:
            with np.load(path, allow_pickle=False) as archive:
                return np.asarray(archive[name])
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path}: {name} cannot be read: {error}") from None

    def _labels(self, name: str) -> Indices:
        return self._read(name).reshape(-1).astype(np.int64)
