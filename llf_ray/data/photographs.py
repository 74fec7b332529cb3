"""The default task's data: items of Fashion-MNIST, each at a random place on a crop of a real photograph,
fixed by seed.

Plain Fashion-MNIST leaves generalisation little room to improve. Here the evidence is a part of the picture,
and 2,000 training images do not show what a background can look like.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from llf_ray.config import SettingError, check_number
from llf_ray.data.base import DataSet, Pixels, Role, Stack, check_settings, few, found, limit_of, read_image
from llf_ray.data.order import Indices, below, uniform
from llf_ray.data.sample import FashionSample

__all__ = ["PHOTOGRAPHS", "FashionOnPhotographs", "blend", "photograph_blocks", "photograph_folder"]

# Those of scikit-image's photographs that are in its wheel and lossless: a JPEG's pixels would depend on the
# decoder.
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "motorcycle_left",
)
BLOCK = 72  # photographs are cut into blocks of this side; a block serves one role only
FADE = 32
ROLE_SHARES: dict[Role, tuple[float, float]] = {
    "train": (0.0, 0.6),
    "validation": (0.6, 0.75),
    "test": (0.75, 1.0),
}

_PHOTOGRAPHS = 3  # the word that keeps this file's streams apart from other users of the same seed
_OWNER, _BLOCK, _CROP_TOP, _CROP_LEFT, _ITEM_TOP, _ITEM_LEFT = range(6)


@dataclass(frozen=True, kw_only=True)
class FashionOnPhotographs:
    """36x36 grey pictures, 10 classes: 2,000 train, 1,000 validation, 4,000 test; roles share neither items
    nor backgrounds.

    ``items`` says where the pieces of clothing are from in place of the bundled ones: more of them, grey, no larger
    than ``size``. The larger the picture, the smaller the part of it that is evidence.
    """

    size: int = 36
    light: float = 0.5  # brightness of the photographs: the brighter, the harder
    seed: int = 0  # of places and backgrounds; the items are always the same
    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items
    items: DataSet | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        check_number("size", self.size, low=28, high=BLOCK)
        if self.items is not None and self.items.channels != 1:
            raise SettingError(f"items = {self.items!r}: must be grey pictures (channels=1)")
        check_number("light", self.light, low=0.0, high=1.0)

    @property
    def channels(self) -> int:
        return 1

    def classes(self) -> tuple[str, ...]:
        return (self.items or FashionSample()).classes()

    def load(self, role: Role) -> Stack:
        return self.layered(role)[0]

    def layered(self, role: Role) -> tuple[Stack, NDArray[np.bool_]]:
        """The pictures, and where the item is seen rather than the photograph: (items, size, size)."""
        items = self._chosen(role)
        numbers = np.arange(len(items.labels))
        backgrounds = self._backgrounds(role, numbers)
        room = self.size - items.images.shape[1] + 1
        top, left = (below(room, self._key(stream, role), numbers) for stream in (_ITEM_TOP, _ITEM_LEFT))
        opaque = np.zeros(backgrounds.shape[:3], dtype=bool)
        opaque[_placed(items.images.shape, top, left)] = items.images[..., 0] >= FADE // 2
        return Stack(blend(items.images, backgrounds, top, left), items.labels), opaque

    def _chosen(self, role: Role) -> Stack:
        if self.items is None:
            return FashionSample(num_train=self.num_train, num_held_out=self.num_held_out).load(role)
        source = self.items.load(role)
        chosen = few(source.labels, limit_of(role, self.num_train, self.num_held_out))
        images = [source.image(int(index)) for index in chosen]
        odd = next((image.shape for image in images if image.shape != images[0].shape), images[0].shape)
        if odd != images[0].shape or max(odd[:2]) > self.size:
            raise SettingError(
                f"items = {self.items!r}: pictures of one size, at most {self.size} x {self.size}, are needed; one is "
                f"{odd[0]} x {odd[1]}"
            )
        return Stack(np.stack(images), source.labels[chosen])

    def _key(self, stream: int, role: Role) -> tuple[int, ...]:
        return (_PHOTOGRAPHS, self.seed, stream, list(ROLE_SHARES).index(role))

    def _backgrounds(self, role: Role, numbers: Indices) -> Pixels:
        """One crop an item, from a block of the role."""
        blocks = photograph_blocks(role, BLOCK, (_PHOTOGRAPHS, self.seed, _OWNER))
        chosen = blocks[below(len(blocks), self._key(_BLOCK, role), numbers)]
        places = BLOCK - self.size + 1
        top, left = (below(places, self._key(stream, role), numbers) for stream in (_CROP_TOP, _CROP_LEFT))
        windows = sliding_window_view(chosen, (self.size, self.size), axis=(1, 2))  # item, top, left, row, column
        crops = windows[numbers, top, left][..., None]
        return (crops * np.float64(self.light)).astype(np.uint8)


def photograph_blocks(role: Role, side: int, key: tuple[int, ...]) -> Pixels:
    """The blocks of all photographs that belong to a role, each to one, by draws of this key: (blocks, side, side)."""
    folder = photograph_folder()
    blocks = np.concatenate([_cut_into_blocks(_grey(folder, name), side) for name in PHOTOGRAPHS])
    low, high = ROLE_SHARES[role]
    owner = uniform(key, np.arange(len(blocks)))
    return blocks[(owner >= low) & (owner < high)]


def blend(items: Pixels, backgrounds: Pixels, top: Indices, left: Indices) -> Pixels:
    """Items on backgrounds, each at its place; opaque, but the darkest ``FADE`` grey levels fade out.

    Items come on black with a rim of nearly black pixels, which would show as specks.
    """
    result = backgrounds.copy()
    where = _placed(items.shape, top, left)
    opacity = np.minimum(items, FADE).astype(np.uint32)
    blended = (opacity * items + (FADE - opacity) * result[where] + FADE // 2) // FADE
    result[where] = blended.astype(np.uint8)
    return result


def _placed(shape: tuple[int, ...], top: Indices, left: Indices) -> tuple[Indices, Indices, Indices]:
    """Numbers, rows and columns of the pixels that items of ``shape`` (items, height, width, ...) cover."""
    number = np.arange(shape[0])[:, None, None]
    rows = top[:, None, None] + np.arange(shape[1])[None, :, None]
    columns = left[:, None, None] + np.arange(shape[2])[None, None, :]
    return number, rows, columns


def photograph_folder() -> Path:
    """Where scikit-image keeps its pictures, found without importing it: its import would offer to download
    others.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        raise SettingError(
            "FashionOnPhotographs needs the photographs of scikit-image, which is not installed: "
            "pip install scikit-image"
        )
    return Path(package.submodule_search_locations[0]) / "data"


def _grey(folder: Path, name: str) -> Pixels:
    file = found(folder / f"{name}.png", "a photograph that scikit-image's wheel ships")
    return read_image(file, channels=1)[:, :, 0]


def _cut_into_blocks(photograph: Pixels, side: int) -> Pixels:
    rows, columns = (length // side for length in photograph.shape)
    whole = photograph[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return whole.transpose(0, 2, 1, 3).reshape(-1, side, side)
