"""The bundled sample of Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747; MIT licence), made by
``scripts/make_sample.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llf_ray.data.base import Role, Stack, check_settings, found, limit_of, read_image

__all__ = ["COLUMNS", "FOLDER", "NUM_ITEMS", "FashionSample"]

FOLDER = Path(__file__).parent / "fashion_sample"
COLUMNS = 100  # items in a row of a mosaic
NUM_ITEMS: Mapping[Role, int] = {"train": 2000, "validation": 1000, "test": 4000}
CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@dataclass(frozen=True, kw_only=True)
class FashionSample:
    """28x28 grey pictures of clothes, 10 classes: 2,000 train, 1,000 validation, 4,000 test. Item i is of
    class i modulo 10.
    """

    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def channels(self) -> int:
        return 1

    def classes(self) -> tuple[str, ...]:
        return CLASSES

    def load(self, role: Role) -> Stack:
        file = found(FOLDER / f"{role}.png", "the sample inside the package: run scripts/make_sample.py")
        picture = read_image(file, channels=1)
        rows = picture.reshape(-1, 28, COLUMNS, 28).transpose(0, 2, 1, 3)
        images = rows.reshape(-1, 28, 28, 1)[: limit_of(role, self.num_train, self.num_held_out)]
        return Stack(np.ascontiguousarray(images), np.arange(len(images)) % len(CLASSES))
