"""From images to the tensors that a network sees: two ways, both keyed by sample, so that batches and workers
do not matter.

`Augment` works on whole batches of small images in memory. `TimmAugment` runs timm's transforms image by
image and needs no equal sizes. Either says how test images are treated, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from llf_ray.config import SettingError, check_number
from llf_ray.data.base import Pixels
from llf_ray.data.order import Draw, below, bits, uniform

__all__ = [
    "Augment",
    "Scaling",
    "TimmAugment",
    "check_scaling",
    "mix",
    "seeded",
    "shift_and_flip",
    "timm_transform",
    "word_of",
]

_AUGMENT, _MIX, _TIMM = 4, 5, 6  # words that keep these streams apart from other users of the same seed
_TOP, _LEFT, _FLIP = range(3)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Small images, held in memory: random shifts (zeros come in at the border) and mirror images."""

    size: int | None = (
        None  # side of the squares that images become when they are read; None: they have one size already
    )
    shift: int = 0  # pixels, in each direction
    flip: float = 0.0  # probability of a mirror image

    def __post_init__(self) -> None:
        check_number("size", self.size, low=1)
        check_number("shift", self.shift, low=0)
        check_number("flip", self.flip, low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class TimmAugment:
    """timm's transforms: random resized crops, mirror images, colour, AutoAugment and its relatives, random
    erasing.

    ``policy`` is timm's own text: "rand-m9-mstd0.5-inc1", "augmix-m5-w4-d2", "original", "3a". It replaces
    ``colour``. With ``stretch`` every image, of test too, is first resized to a square of that side, whatever its
    shape.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area in a random crop
    ratio: tuple[float, float] = (0.75, 1.3333333333333333)  # width by height of a random crop
    flip: float = 0.5
    vertical_flip: float = 0.0
    colour: float = 0.0  # strength of changes of brightness, contrast and saturation
    policy: str | None = None
    erase: float = 0.0  # probability of filling a rectangle with noise
    interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic"
    crop: float = 0.875  # share of the side that the centre crop of a test image keeps
    stretch: int | None = None  # pixels; None: crops are taken from the image as it is

    def __post_init__(self) -> None:
        check_number("size", self.size, low=1)
        check_number("stretch", self.stretch, low=1)
        for name in ("flip", "vertical_flip", "erase"):
            check_number(name, getattr(self, name), low=0.0, high=1.0)
        check_number("colour", self.colour, low=0.0)
        check_number("crop", self.crop, above=0.0, high=1.0)
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise SettingError(f"{name} = {(low, high)!r}: must be two numbers above 0, the smaller first")
        if self.policy is not None and self.policy.split("-")[0] not in (
            "rand",
            "augmix",
            "original",
            "originalr",
            "v0",
            "v0r",
            "3a",
        ):
            raise SettingError(
                f"policy = {self.policy!r}: must start with rand, augmix, original, originalr, v0, v0r or 3a"
            )


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Mean and standard deviation of each channel, of pixel values from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def measured(cls, images: Iterable[Pixels]) -> Scaling:
        """Mean and deviation of each channel over images (..., height, width, channels); deviations of at least one
        grey level.
        """
        counts = np.sum([_counted(pixels) for pixels in images], axis=0)
        values = np.arange(256) / 255
        shares = counts / counts.sum(1, keepdims=True)
        mean = shares @ values
        std = np.sqrt(shares @ values**2 - mean**2)
        return cls(mean=tuple(mean.tolist()), std=tuple(np.maximum(std, 1 / 255).tolist()))

    def scaled(self, pictures: Tensor) -> Tensor:
        """uint8 (B, H, W, C) to float32 (B, C, H, W), mean 0 and deviation 1."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=pictures.device) for values in (self.mean, self.std)
        )
        scaled = (pictures.float() - 255 * mean) / (255 * std)
        return scaled.permute(0, 3, 1, 2).contiguous()


def _counted(images: Pixels) -> NDArray[np.int64]:
    """How often each channel has each of the 256 values: (channels, 256)."""
    pixels = images.reshape(-1, images.shape[-1])
    return np.stack([np.bincount(pixels[:, channel], minlength=256) for channel in range(pixels.shape[1])])


def check_scaling(mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: int) -> None:
    """Raise unless both are None or one number a channel each, deviations above 0."""
    if (mean is None) != (std is None):
        raise SettingError(f"mean = {mean!r}, std = {std!r}: both or neither")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise SettingError(f"{name} = {values!r}: one number for each of the {channels} channels is needed")
    if std is not None and min(std) <= 0:
        raise SettingError(f"std = {std!r}: must be > 0")


def shift_and_flip(pictures: Tensor, draw: Draw, augment: Augment) -> Tensor:
    """Each picture of a batch (B, H, W, C) shifted and mirrored by its own key; unchanged where the draw has
    no key.
    """
    if draw.key is None or not (augment.shift or augment.flip):
        return pictures
    _, height, width, _ = pictures.shape
    room = 2 * augment.shift + 1
    top, left = (torch.from_numpy(below(room, _stream(draw.key, which), draw.indices)) for which in (_TOP, _LEFT))
    mirrored = torch.from_numpy(uniform(_stream(draw.key, _FLIP), draw.indices) < augment.flip)
    columns = torch.arange(width).expand(len(pictures), width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns) + left[:, None]
    rows = torch.arange(height) + top[:, None]
    padded = F.pad(pictures, (0, 0, *(augment.shift,) * 4))
    return padded[torch.arange(len(pictures))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _stream(key: tuple[int, ...], which: int) -> tuple[int, ...]:
    return (_AUGMENT, *key, which)


def mix(
    images: Tensor, labels: Tensor, draw: Draw, classes: int, *, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Images blended with those of the reversed micro-batch, and the blended classes (B, classes).

    ``mixup`` (Zhang et al. 2018, arXiv:1710.09412) and ``cutmix`` (Yun et al. 2019, arXiv:1905.04899) are the
    alphas of Beta(alpha, alpha); where both are above 0, each step takes one of them at random, as timm does.
    Keyed by the draw's key and first sample.
    """
    assert draw.key is not None
    word = bits((_MIX, *draw.key), draw.indices[:1])[0]
    generator = np.random.Generator(np.random.PCG64(int(word)))
    cutting = cutmix > 0 and (mixup == 0 or generator.random() < 0.5)
    alpha = cutmix if cutting else mixup
    share = float(generator.beta(alpha, alpha))
    if cutting:
        height, width = images.shape[2:]
        rows, columns = (_interval(generator, length, (1 - share) ** 0.5) for length in (height, width))
        images = images.clone()
        images[:, :, rows, columns] = images.flip(0)[:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        images = share * images + (1 - share) * images.flip(0)
    target = F.one_hot(labels, classes).float()
    return images, share * target + (1 - share) * target.flip(0)


def _interval(generator: np.random.Generator, length: int, share: float) -> slice:
    """Around a random middle, ``share`` of the length, less what lies outside."""
    middle, half = int(generator.integers(length)), int(length * share) // 2
    return slice(max(middle - half, 0), min(middle + half, length))


def timm_transform(
    augment: TimmAugment, scaling: Scaling, channels: int, *, training: bool
) -> Callable[[Pixels], Tensor]:
    """One image (H, W, C) to one tensor (C, size, size); random in training, drawn from the ambient
    generators (see `seeded`).
    """
    from timm.data.transforms_factory import (
        create_transform,
    )  # here: it takes seconds, and a run of small images needs none of it

    fixed = "bicubic" if augment.interpolation == "random" else augment.interpolation
    common: dict[str, Any] = {
        "input_size": (3, augment.size, augment.size),
        "mean": _three(scaling.mean),
        "std": _three(scaling.std),
        "interpolation": augment.interpolation if training else fixed,
    }
    if training:
        transform = create_transform(
            **common,
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.flip,
            vflip=augment.vertical_flip,
            color_jitter=augment.colour,
            auto_augment=augment.policy,
            re_prob=augment.erase,
            re_mode="pixel",
        )
    else:
        transform = create_transform(**common, is_training=False, crop_pct=augment.crop)

    def apply(pixels: Pixels) -> Tensor:
        # timm's colour operations want three channels; a grey picture goes in as three equal ones
        picture = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy() if channels == 1 else pixels)
        if augment.stretch is not None:
            picture = picture.resize((augment.stretch, augment.stretch), Image.Resampling[fixed.upper()])
        tensor: Tensor = transform(picture)
        return tensor[:channels]

    return apply


def _three(values: tuple[float, ...]) -> tuple[float, ...]:
    return values * 3 if len(values) == 1 else values


def word_of(key: tuple[int, ...], index: int) -> int:
    """The seed of one sample's transforms."""
    return int(bits((_TIMM, *key), np.asarray([index], dtype=np.int64))[0] >> np.uint64(1))


@contextmanager
def seeded(word: int) -> Iterator[None]:
    """Python's, NumPy's and torch's CPU generators start from ``word`` inside and are as before afterwards."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(word)
    np.random.seed(word % 2**32)
    torch.default_generator.manual_seed(word)  # not torch.manual_seed: that would move the GPU's generators, too
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
