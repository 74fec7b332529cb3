"""Mosaics: many small images of one size as tiles of a few large pictures, with the labels beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from llf_ray.config import check_number
from llf_ray.data.base import (
    PATH,
    Pixels,
    Role,
    Stack,
    check_settings,
    found,
    held_out,
    label_names,
    located,
    read_image,
)
from llf_ray.data.order import Indices

__all__ = ["Mosaic"]


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """``root/{train,test}_NNN.{png,webp}`` of square tiles, row by row, and ``root/y_{train,test}.npy``.

    A validation share is cut from the training part.
    """

    root: str = field(metadata=PATH)
    tile: int  # side of a tile in pixels
    channels: int = 3
    validation: float = 0.1  # share of each class of the training part that is cut off for validation
    seed: int = 0  # of the cut
    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)
        check_number("tile", self.tile, low=1)

    def classes(self) -> tuple[str, ...]:
        return label_names(self._labels("train"))

    def load(self, role: Role) -> Stack:
        part = "test" if role == "test" else "train"
        labels = self._labels(part)
        chosen = held_out(labels, role, self, cut_validation=role != "test")
        return Stack(np.ascontiguousarray(self._tiles(part, len(labels))[chosen]), labels[chosen])

    def _labels(self, part: str) -> Indices:
        root = found(located(self.root), "a folder of mosaics")
        path = found(root / f"y_{part}.npy", "the labels of the mosaics")
        try:
            labels = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read as an array of labels: {error}") from None
        return np.asarray(labels.reshape(-1), dtype=np.int64)

    def _tiles(self, part: str, count: int) -> Pixels:
        """All tiles of a part: (items, tile, tile, channels)."""
        root, side = located(self.root), self.tile
        files = sorted(path for path in root.glob(f"{part}_*") if path.suffix in (".png", ".webp"))
        tiles = []
        for path in files or [found(root / f"{part}_000.png", "mosaics of tiles")]:
            picture = read_image(path, self.channels)
            if picture.shape[0] % side or picture.shape[1] % side:
                raise ValueError(
                    f"{path} has {picture.shape[1]}x{picture.shape[0]} pixels: no whole number of tiles of "
                    f"tile = {side}"
                )
            grid = picture.reshape(picture.shape[0] // side, side, picture.shape[1] // side, side, self.channels)
            tiles.append(grid.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, self.channels))
        found_tiles = np.concatenate(tiles)
        if len(found_tiles) < count:
            raise ValueError(
                f"{root}: {len(found_tiles)} tiles in {len(files)} {part} mosaics, but {count} labels in y_{part}.npy"
            )
        return found_tiles[:count]
