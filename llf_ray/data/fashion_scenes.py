"""A set for detection out of what the project ships: several items of Fashion-MNIST on a crop of a real photograph,
with their boxes and masks, fixed by seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from llf_ray.config import check_number
from llf_ray.data.base import Pixels, Role, Stack, check_settings
from llf_ray.data.instances import Instances
from llf_ray.data.order import Indices, below, bits
from llf_ray.data.photographs import FADE, ROLE_SHARES, blend, photograph_blocks
from llf_ray.data.sample import FashionSample

__all__ = ["FashionScenes"]

SIDE, BLOCK = 128, 144  # of an image, and of the block of a photograph that it is cropped from
CELL = SIDE // 2  # of each quadrant one item at most, so that none hides another
SMALLEST, LARGEST = 28, 56  # side of an item's square
SOLID = FADE // 2  # grey level from which on a pixel belongs to an item

_SCENES = 26  # the word that keeps this file's streams apart from other users of the same seed
_OWNER, _BLOCK, _TOP, _LEFT, _NUMBER, _CELLS, _ITEM, _SIZE, _DOWN, _ACROSS = range(10)


@dataclass(frozen=True, eq=False)
class Composed:
    """Images that are put together when they are asked for."""

    role: Role
    number: int
    light: float
    seed: int

    def __len__(self) -> int:
        return self.number

    def labels_in(self, index: int) -> Indices:
        return _items(self.role).labels[self._chosen(index)]

    def scene(self, index: int) -> tuple[Pixels, Instances]:
        items, chosen = _items(self.role), self._chosen(index)
        places = np.argsort(bits(self._key(_CELLS), self._places(index)), kind="stable")[: len(chosen)]
        sides = SMALLEST + below(LARGEST - SMALLEST + 1, self._key(_SIZE), self._places(index))[: len(chosen)]
        shifts = [
            below(CELL - sides + 1, self._key(word), self._places(index)[: len(chosen)]) for word in (_DOWN, _ACROSS)
        ]
        picture = self._background(index)
        masks = np.zeros((len(chosen), SIDE, SIDE), dtype=bool)
        for n, item in enumerate(items.images[chosen]):
            side = int(sides[n])
            resized = Image.fromarray(item[:, :, 0]).resize((side, side), Image.Resampling.BICUBIC)
            grey = np.asarray(resized)[None, :, :, None]
            top, left = (CELL * (places[n] // 2) + shifts[0][n], CELL * (places[n] % 2) + shifts[1][n])
            picture = blend(grey, picture, np.array([top]), np.array([left]))
            masks[n, top : top + side, left : left + side] = grey[0, :, :, 0] >= SOLID
        return picture[0], Instances.of_masks(masks, items.labels[chosen])

    def _chosen(self, index: int) -> Indices:
        """Which items of the role are in an image: one to four."""
        number = 1 + int(below(4, self._key(_NUMBER), np.array([index]))[0])
        return below(len(_items(self.role).labels), self._key(_ITEM), self._places(index))[:number]

    def _background(self, index: int) -> Pixels:
        blocks = _photographs(self.role, self.seed)
        one = np.array([index])
        block = blocks[below(len(blocks), self._key(_BLOCK), one)[0]]
        top, left = (int(below(BLOCK - SIDE + 1, self._key(word), one)[0]) for word in (_TOP, _LEFT))
        crop = block[top : top + SIDE, left : left + SIDE]
        return (crop * np.float64(self.light)).astype(np.uint8)[None, :, :, None]

    def _places(self, index: int) -> Indices:
        return 4 * index + np.arange(4)

    def _key(self, word: int) -> tuple[int, ...]:
        return (_SCENES, self.seed, word, list(ROLE_SHARES).index(self.role))


@dataclass(frozen=True, kw_only=True)
class FashionScenes:
    """128x128 grey pictures with one to four items of 28 to 56 pixels, 10 classes: 500 train, 100 validation, 200
    test unless told otherwise; roles share neither items nor backgrounds.
    """

    light: float = 0.5  # brightness of the photographs: the brighter, the harder
    seed: int = 0
    num_train: int = 500
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)
        check_number("light", self.light, low=0.0, high=1.0)

    @property
    def channels(self) -> int:
        return 1

    def classes(self) -> tuple[str, ...]:
        return FashionSample().classes()

    def load(self, role: Role) -> Composed:
        numbers = {"train": self.num_train, "validation": 100, "test": 200}
        number = numbers[role] if role == "train" else min(numbers[role], self.num_held_out or numbers[role])
        return Composed(role, number, self.light, self.seed)


@lru_cache(maxsize=3)
def _items(role: Role) -> Stack:
    return FashionSample().load(role)


@lru_cache(maxsize=3)
def _photographs(role: Role, seed: int) -> Pixels:
    return photograph_blocks(role, BLOCK, (_SCENES, seed, _OWNER))
