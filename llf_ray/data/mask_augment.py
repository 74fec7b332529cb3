"""From images with masks to what a network sees, image by image.

Training images are resized by a random factor, cropped to a square, mirrored and changed in colour, as mmsegmentation
does for Segmenter; all of it is a function of (seed, generation, epoch, sample). Images that are scored are resized as
a whole, so that their longer side fills the square, and padded: one pass an image, no sliding window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from llf_ray.config import SettingError, check_number
from llf_ray.data.base import Pixels
from llf_ray.data.masks import IGNORED, Labels
from llf_ray.data.order import uniform

__all__ = ["MaskAugment", "View", "distorted", "fitted", "varied", "whole"]

_VARY = 9  # the word that keeps this file's streams apart from other users of the same seed
_TRIES = 10  # crops that are looked at before one is taken as it is
_SCALE, _FLIP, _COLOURS, _CROPS = 0, 1, 2, 16  # which of a sample's numbers decides what
_NUMBERS = _CROPS + 2 * _TRIES
_PER_SAMPLE = 64  # numbers of a sample's stream


@dataclass(frozen=True, kw_only=True)
class MaskAugment:
    """Random views of an image with its mask. The defaults are those of Segmenter on ADE20K but for the size.

    At a factor of 1 the shorter side of a training image becomes ``size``. A crop in which one class has
    ``most_of_one`` of the labelled pixels or more is drawn again, up to ten times. ``colour`` is the strength of
    photometric distortion: at 1, each with probability 1/2, brightness changes by up to an eighth, contrast and
    saturation by up to a half, and hue by up to a tenth of the circle.
    """

    size: int  # side of the squares that the network sees
    scale: tuple[float, float] = (0.5, 2.0)
    most_of_one: float = 0.75
    flip: float = 0.5
    colour: float = 1.0

    def __post_init__(self) -> None:
        check_number("size", self.size, low=1)
        check_number("most_of_one", self.most_of_one, above=0.0, high=1.0)
        check_number("flip", self.flip, low=0.0, high=1.0)
        check_number("colour", self.colour, low=0.0, high=2.0)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise SettingError(f"scale = {self.scale!r}: must be two numbers above 0, the smaller first")


class View(NamedTuple):
    """What the network sees of an image: uint8 (C, S, S), labels, and how much of the square, from the upper left, is
    image: (height, width).
    """

    image: Tensor
    labels: Tensor
    extent: tuple[int, int]


def varied(image: Pixels, labels: Labels, augment: MaskAugment, key: tuple[int, ...], index: int) -> View:
    """A random view of sample ``index`` in the epoch of ``key``, its labels (S, S); `IGNORED` outside of the image."""
    number = uniform((_VARY, *key), np.int64(index) * _PER_SAMPLE + np.arange(_NUMBERS))
    size, (low, high) = augment.size, augment.scale
    factor = (low + (high - low) * number[_SCALE]) * size / min(labels.shape)
    shape = [max(1, round(side * factor)) for side in labels.shape]
    picture = _resized(image, shape)
    mask = F.interpolate(torch.tensor(labels)[None, None], shape, mode="nearest-exact")[0, 0]
    top, left = _crop(mask.numpy(), augment, number[_CROPS:])
    picture, mask = (part[..., top : top + size, left : left + size] for part in (picture, mask))
    if number[_FLIP] < augment.flip:
        picture, mask = picture.flip(-1), mask.flip(-1)
    picture = distorted(picture.contiguous(), augment.colour, number[_COLOURS:_CROPS])
    extent = mask.shape[0], mask.shape[1]
    return View(_padded(picture, size, 0), _padded(mask.to(torch.int64), size, IGNORED), extent)


def _crop(labels: Labels, augment: MaskAugment, number: NDArray[np.float64]) -> tuple[int, int]:
    """Top and left of the first crop that no class fills, or of the last that is tried."""
    room = [max(0, side - augment.size) + 1 for side in labels.shape]
    for down, right in number.reshape(_TRIES, 2):
        top, left = int(down * room[0]), int(right * room[1])
        inside = labels[top : top + augment.size, left : left + augment.size]
        counts = np.bincount(inside.ravel(), minlength=IGNORED + 1)[:IGNORED]
        if np.count_nonzero(counts) > 1 and counts.max() < augment.most_of_one * counts.sum():
            break
    return top, left


def distorted(picture: Tensor, strength: float, number: NDArray[np.float64]) -> Tensor:
    """Photometric distortion (Liu et al. 2016, arXiv:1512.02325) of uint8 (C, H, W), by nine numbers in [0, 1).

    Brightness is multiplied rather than shifted, which is what torchvision offers.
    """
    if not strength:
        return picture
    from torchvision.transforms.v2 import functional as vision  # here: it takes seconds

    wanted, amount = number[:4] < 0.5, strength * (2 * number[4:8] - 1)
    contrast = 1 + amount[1] / 2
    if wanted[0]:
        picture = vision.adjust_brightness(picture, 1 + amount[0] / 8)
    early = number[8] < 0.5
    if wanted[1] and early:
        picture = vision.adjust_contrast(picture, contrast)
    if wanted[2]:
        picture = vision.adjust_saturation(picture, 1 + amount[2] / 2)
    if wanted[3]:
        picture = vision.adjust_hue(picture, amount[3] / 10)
    return vision.adjust_contrast(picture, contrast) if wanted[1] and not early else picture


def whole(image: Pixels, labels: Labels, size: int) -> View:
    """A whole image in the upper left of a square, its longer side filling it; labels in their own size."""
    height, width = image.shape[:2]
    factor = size / max(height, width)
    extent = max(1, round(height * factor)), max(1, round(width * factor))
    return View(_padded(_resized(image, list(extent)), size, 0), torch.from_numpy(labels.astype(np.int64)), extent)


def _resized(image: Pixels, shape: list[int]) -> Tensor:
    """(H, W, C) as (C, ``shape``), bilinear, antialiased."""
    picture = torch.tensor(image).permute(2, 0, 1)[None]  # a copy: what is read may be write-protected
    return F.interpolate(picture, shape, mode="bilinear", align_corners=False, antialias=True)[0]


def _padded(values: Tensor, size: int, value: int) -> Tensor:
    """Rows and columns of ``value`` below and to the right, up to a square."""
    return F.pad(values, (0, size - values.shape[-1], 0, size - values.shape[-2]), value=value)


def fitted(scores: Tensor, extent: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Scores (C, S, S) of what `whole` made, for the image in its own size: (C, height, width), resized bilinearly."""
    inside = scores[None, :, : extent[0], : extent[1]]
    return F.interpolate(inside, size=shape, mode="bilinear", align_corners=False)[0]
