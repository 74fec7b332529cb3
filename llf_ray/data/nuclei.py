"""Nuclei of cells under the microscope, one map of numbered nuclei an image (Data Science Bowl 2018; Caicedo et al.
2019, Nature Methods 16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from llf_ray.data.base import PATH, Pixels, Role, check_settings, cut_part, few, found, limit_of, located, read_image
from llf_ray.data.files import check_files, check_there, images_in
from llf_ray.data.instances import Instances
from llf_ray.data.order import Indices

__all__ = ["Nuclei", "NumberedScenes"]


@dataclass(frozen=True)
class NumberedScenes:
    """Images beside maps in which the pixels of object n have the number n, and the rest 0; one class."""

    paths: Sequence[Path]
    maps: Sequence[Path]
    channels: int

    def __len__(self) -> int:
        return len(self.paths)

    def labels_in(self, index: int) -> Indices:
        return np.zeros(len(self._numbers(index)[1]), dtype=np.int64)

    def scene(self, index: int) -> tuple[Pixels, Instances]:
        pixels = read_image(self.paths[index], self.channels)
        numbered, numbers = self._numbers(index)
        if numbered.shape != pixels.shape[:2]:
            raise ValueError(
                f"{self.maps[index]} has {numbered.shape[1]}x{numbered.shape[0]} pixels, but its image "
                f"{pixels.shape[1]}x{pixels.shape[0]}"
            )
        masks = numbered[None] == numbers[:, None, None]
        return pixels, Instances.of_masks(masks, np.zeros(len(masks), dtype=np.int64))

    def _numbers(self, index: int) -> tuple[Indices, Indices]:
        """The map, and the numbers of its objects."""
        path = self.maps[index]
        try:
            with Image.open(path) as picture:
                numbered = np.asarray(picture).astype(np.int64)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be read as a map of objects: {error}") from None
        if numbered.ndim != 2:
            raise ValueError(f"{path} has {numbered.shape[2]} channels, where one of numbers is expected")
        numbers = np.unique(numbered)
        return numbered, numbers[numbers > 0]


@dataclass(frozen=True, kw_only=True)
class Nuclei:
    """``root/images/ID.png`` and ``root/labels/ID.png``, the latter with 16 bits; cut into three by seed."""

    root: str = field(metadata=PATH)
    channels: int = 3
    validation: float = 0.15  # share of the images that is cut off
    test: float = 0.2  # share of the images that is cut off
    seed: int = 0  # of the cuts
    num_train: int | None = None  # at most this many training items
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)

    def classes(self) -> tuple[str, ...]:
        return ("nucleus",)

    def load(self, role: Role) -> NumberedScenes:
        folder = found(located(self.root) / "images", "a folder of images, and labels/ beside it")
        paths = images_in(folder)
        if not paths:
            raise ValueError(f"{folder} has no images")
        alike = np.zeros(len(paths), dtype=np.int64)
        chosen = cut_part(alike, role, {"validation": self.validation, "test": self.test}, self.seed)
        chosen = chosen[few(alike[chosen], limit_of(role, self.num_train, self.num_held_out))]
        paths = [paths[i] for i in chosen]
        maps = [located(self.root) / "labels" / path.name for path in paths]
        check_there(maps, folder)
        return NumberedScenes(paths, maps, self.channels)

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image."""
        check_files(self)
