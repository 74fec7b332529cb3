"""Images and their objects as the squares that a detector sees, and what it finds there back in the image's own pixels.

Training: large-scale jitter (Ghiasi et al. 2021, arXiv:2012.07177) and mirror images, drawn for each sample by its own
key. Otherwise the longer side becomes the square's, and the rest is padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llf_ray.config import SettingError, check_number
from llf_ray.data.base import Pixels
from llf_ray.data.instances import Instances, boxes_around
from llf_ray.data.order import uniform

__all__ = ["LargeScaleJitter", "Placement", "placed"]

_JITTER = 27  # the word that keeps these streams apart from other users of the same seed
_SCALE, _TOP, _LEFT, _FLIP = range(4)
LEAST = 1.0  # pixels of width and height that must be left of an object


@dataclass(frozen=True, kw_only=True)
class LargeScaleJitter:
    """Squares of side ``size``, a whole number of patches.

    In training the image is first resized so that its longer side is ``size`` times a number of ``scale``, drawn
    evenly; then a square is cropped at a random place, or what is missing is padded at the bottom and on the right.
    """

    size: int
    scale: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5  # probability of a mirror image

    def __post_init__(self) -> None:
        check_number("size", self.size, low=1)
        check_number("flip", self.flip, low=0.0, high=1.0)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise SettingError(f"scale = {self.scale!r}: must be two numbers above 0, the smaller first")

    def place(self, height: int, width: int, key: tuple[int, ...] | None, sample: int) -> Placement:
        """Where an image of this size comes to lie in its square; ``key`` None: as in evaluation."""
        if key is None:
            return Placement.resized(height, width, self.size, 1.0)
        draws = [float(uniform((_JITTER, *key, word), np.array([sample]))[0]) for word in range(4)]
        low, high = self.scale
        whole = Placement.resized(height, width, self.size, low + (high - low) * draws[_SCALE])
        room = [max(length - self.size, 0) for length in (whole.height, whole.width)]
        top, left = (int(draw * (most + 1)) for draw, most in zip((draws[_TOP], draws[_LEFT]), room, strict=True))
        return Placement(self.size, whole.height, whole.width, top, left, draws[_FLIP] < self.flip)


@dataclass(frozen=True)
class Placement:
    """An image in its square: resized to ``height`` x ``width``, cropped from ``top``, ``left`` on, mirrored last."""

    size: int
    height: int
    width: int
    top: int = 0
    left: int = 0
    mirrored: bool = False

    @classmethod
    def resized(cls, height: int, width: int, size: int, scale: float) -> Placement:
        """The longer side is ``scale`` times the square's."""
        factor = scale * size / max(height, width)
        return cls(size, max(1, round(height * factor)), max(1, round(width * factor)))

    def back(self, boxes: Tensor, height: int, width: int, *, cut: bool = True) -> Tensor:
        """Boxes (N, 4) of the square in pixels of an image of this height and width, cut off at its edges where they
        reach into the padding.
        """
        x0, y0, x1, y1 = boxes.unbind(1)
        if self.mirrored:
            x0, x1 = self.size - x1, self.size - x0
        across, down = width / self.width, height / self.height
        columns, rows = ([(x + self.left) * across for x in (x0, x1)], [(y + self.top) * down for y in (y0, y1)])
        if cut:
            columns, rows = [x.clamp(0, width) for x in columns], [y.clamp(0, height) for y in rows]
        return torch.stack([columns[0], rows[0], columns[1], rows[1]], 1)


def placed(
    pixels: Pixels, instances: Instances, where: Placement, padding: tuple[int, ...]
) -> tuple[Pixels, Instances]:
    """The square (size, size, C), and the objects of which something is left in it.

    ``padding`` is the colour around the image. Boxes of objects that the crop cuts are those of what is left of their
    masks.
    """
    height, width = pixels.shape[:2]
    square = np.empty((where.size, where.size, pixels.shape[2]), dtype=np.uint8)
    square[:] = padding
    shown = _resized(pixels, where)
    square[: shown.shape[0], : shown.shape[1]] = shown
    scale = np.array([where.width / width, where.height / height] * 2)
    corners = instances.boxes * scale - [where.left, where.top, where.left, where.top]
    boxes = corners.clip(0, [shown.shape[1], shown.shape[0]] * 2)
    left = (boxes[:, 2] - boxes[:, 0] >= LEAST) & (boxes[:, 3] - boxes[:, 1] >= LEAST)
    masks = np.zeros((int(left.sum()), where.size, where.size), dtype=bool)
    masks[:, : shown.shape[0], : shown.shape[1]] = _picked(instances.masks[left], where, shown.shape[:2])
    found = instances.picked(left)
    cut = (np.abs(boxes - corners) > 1e-6).any(1)[left]
    boxes = np.where(cut[:, None], boxes_around(masks), boxes[left]).astype(np.float32)
    found = Instances(boxes, found.labels, masks, found.crowd, found.area * (scale[0] * scale[1]).astype(np.float32))
    found = found.picked(np.asarray(masks.any((1, 2))))
    if where.mirrored:
        square = square[:, ::-1]
        mirrored = np.stack(
            [where.size - found.boxes[:, 2], found.boxes[:, 1], where.size - found.boxes[:, 0], found.boxes[:, 3]], 1
        )
        found = Instances(mirrored, found.labels, found.masks[:, :, ::-1], found.crowd, found.area)
    return np.ascontiguousarray(square), found


def _resized(pixels: Pixels, where: Placement) -> Pixels:
    """The part of the resized image that the square shows, by torchvision's bilinear filter without aliasing."""
    from torchvision.transforms.v2 import functional  # here: it takes a second, and most runs do without

    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)  # a copy: what PIL gives cannot be written to
    image = functional.resize(image, [where.height, where.width], antialias=True)
    shown = image[:, where.top : where.top + where.size, where.left : where.left + where.size]
    return np.asarray(shown.permute(1, 2, 0).numpy())


def _picked(masks: np.ndarray, where: Placement, shown: tuple[int, ...]) -> np.ndarray:
    """The nearest pixels of masks; only those that the square shows are looked at."""
    rows, columns = (
        ((np.arange(start, start + number) + 0.5) * length / resized).astype(np.int64).clip(0, length - 1)
        for start, number, length, resized in zip(
            (where.top, where.left), shown, masks.shape[1:], (where.height, where.width), strict=True
        )
    )
    return masks[:, rows[:, None], columns]
