"""COCO128: the first 128 images of COCO's train2017, and as many of val2017, re-encoded small."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from llf_ray.data.base import PATH, Role, check_settings, cut, few, limit_of, located
from llf_ray.data.coco import Annotation, CocoScenes, Listed, read_annotations, read_json
from llf_ray.data.files import check_files, check_there

__all__ = ["Coco128"]


@dataclass(frozen=True, kw_only=True)
class Coco128:
    """``root/images/{train,val}2017/*.jpg``; for train2017 COCO's own annotations,
    ``root/instances_train2017.json.gz``, in pixels of the original sizes, which are scaled to those of the images; for
    val2017 polygons, ``root/polygons_val2017.json.gz``: lines of a class number and points from 0 to 1, by the stem of
    the image.

    Half of val2017 is the validation part, half the test part. With ``held_out="train2017"`` both are the training
    images: what a detector makes of images that it knows.
    """

    root: str = field(metadata=PATH)
    channels: int = 3
    held_out: Literal["val2017", "train2017"] = "val2017"
    seed: int = 0  # of the cut
    num_train: int | None = None  # at most this many training items; held out under "train2017" are the same
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)

    def classes(self) -> tuple[str, ...]:
        return tuple(self._own()[0].values())

    def load(self, role: Role) -> CocoScenes:
        if role == "train" or self.held_out == "train2017":
            source, images = self._file("instances_train"), self._own()[1]
            images = [image for image in images if any(not one.crowd for one in image.objects)]
            images = images[: self.num_train]
            if role != "train":
                images = images[: self.num_held_out]
        else:
            source = self._file("polygons_val")
            images = self._of_lines(source)
            halves = cut(np.zeros(len(images), dtype=np.int64), 0.5, self.seed, 0)
            images = [images[i] for i in halves[int(role == "test")]]
            chosen = few(np.zeros(len(images), dtype=np.int64), limit_of(role, None, self.num_held_out))
            images = [images[i] for i in chosen]
        return CocoScenes(images, source, self.channels, crowds=role != "train", scaled=True)

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image."""
        check_files(self)

    def _own(self) -> tuple[dict[int, str], list[Listed]]:
        return read_annotations(self._file("instances_train"), self._folder("train"))

    def _file(self, name: str) -> Path:
        return located(self.root) / f"{name}2017.json.gz"

    def _folder(self, part: str) -> Path:
        return located(self.root) / "images" / f"{part}2017"

    def _of_lines(self, source: Path) -> list[Listed]:
        lines = read_json(source, "lines of polygons by the stem of the image")
        label_of = {number: label for label, number in enumerate(self._own()[0])}
        paths = [self._folder("val") / f"{stem}.jpg" for stem in lines]
        check_there(paths, source)
        images = []
        for path, texts in zip(paths, lines.values(), strict=True):
            try:
                with Image.open(path) as picture:
                    wide, high = picture.size
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"{path} cannot be read as an image: {error}") from None
            objects = []
            for text in texts:
                number, *values = text.split()
                if not number.isdecimal() or int(number) not in label_of or len(values) < 6 or len(values) % 2:
                    raise ValueError(
                        f"{source}: {path.stem} has the line {text[:40]!r}: expected the number of a class and points"
                    )
                points = np.asarray(values, dtype=np.float64).reshape(-1, 2) * (wide, high)
                (x, y), (right, bottom) = points.min(0), points.max(0)
                if right <= x or bottom <= y:
                    raise ValueError(f"{source}: {path.stem} has an empty object: {text[:40]!r}")
                area = _area(points)
                box = (float(x), float(y), float(right - x), float(bottom - y))
                objects.append(Annotation(box, [points.reshape(-1).tolist()], label_of[int(number)], False, area))
            images.append(Listed(path, high, wide, tuple(objects)))
        return images


def _area(points: np.ndarray) -> float:
    """Of a polygon, by the shoelace formula."""
    x, y = points[:, 0], points[:, 1]
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)
