"""From an image file to what an exported network sees: the test images' way of a run, as plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llf_ray.config import SettingError, check_number
from llf_ray.data.augment import Augment, Scaling, TimmAugment, timm_transform
from llf_ray.data.base import Pixels, square

__all__ = ["Preparation"]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """``resize`` names the way: "square" takes the shorter side to the network's (bicubic) and the square in the
    centre; "timm" is timm's evaluation transform with ``interpolation`` and ``crop``, of the image resized to a square
    of side ``stretch`` where that is set; "none" takes images of the network's size alone.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]  # of each channel, of pixel values from 0 to 1
    std: tuple[float, ...]
    resize: Literal["square", "timm", "none"] = "square"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop: float = 1.0  # share of the side that the centre crop keeps
    stretch: int | None = None

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width"):
            check_number(name, getattr(self, name), low=1)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise SettingError(
                    f"{name} = {values!r}: one number for each of the {self.channels} channels is needed"
                )
        if self.resize != "none" and self.height != self.width:
            raise SettingError(f"resize = {self.resize!r}: makes squares, and the network takes {self._size}")

    @classmethod
    def of(cls, augment: Augment | TimmAugment, scaling: Scaling, size: tuple[int, ...]) -> Preparation:
        """How a run prepares its test images; ``size`` is (channels, height, width) of what the network sees."""
        channels, height, width = size
        common = {"channels": channels, "height": height, "width": width, "mean": scaling.mean, "std": scaling.std}
        if isinstance(augment, Augment):
            return cls(**common, resize="square" if height == width else "none")  # type: ignore[arg-type]
        return cls(
            **common,  # type: ignore[arg-type]
            resize="timm",
            interpolation="bilinear" if augment.interpolation == "bilinear" else "bicubic",
            crop=augment.crop,
            stretch=augment.stretch,
        )

    @property
    def _size(self) -> str:
        return f"{self.height} x {self.width} pixels"

    @property
    def scaling(self) -> Scaling:
        return Scaling(mean=self.mean, std=self.std)

    def transform(self) -> Callable[[Pixels], Tensor]:
        """One image (H, W, channels) of any size to (channels, height, width), scaled; a ValueError for an image whose
        size cannot be had.
        """
        if self.resize == "timm":
            augment = TimmAugment(
                size=self.height, interpolation=self.interpolation, crop=self.crop, stretch=self.stretch
            )
            return timm_transform(augment, self.scaling, self.channels, training=False)
        return self._scaled

    def _scaled(self, pixels: Pixels) -> Tensor:
        if self.resize == "none" and pixels.shape[:2] != (self.height, self.width):
            high, wide = pixels.shape[:2]
            raise ValueError(f"has {high} x {wide} pixels, and the network takes {self._size}")
        fitting = square(pixels, self.height) if self.resize == "square" else pixels
        return self.scaling.scaled(torch.from_numpy(fitting.copy())[None])[0]

    def pictured(self, image: Tensor) -> Pixels:
        """What a prepared image (channels, height, width) looks like: (height, width, channels), 0 to 255."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        shown = (image.cpu().float() * std + mean) * 255
        pixels: Pixels = shown.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        return pixels
