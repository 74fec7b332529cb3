"""Feature maps of several strides from the one map of a plain vision transformer (ViTDet, Li et al. 2022,
arXiv:2203.16527): the last block's tokens, in raster order, scaled up by deconvolutions and down by pooling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from llf_ray.config import SettingError

__all__ = ["SimpleFeaturePyramid"]


class SimpleFeaturePyramid(nn.Module):
    """One map (B, D, h, w) of stride ``patch`` to a map (B, C, h', w') for each of ``strides``, by name ``p4``, ``p8``.

    Between two deconvolutions lie a LayerNorm over channels and GELU; behind each level a 1x1 and a 3x3 convolution,
    both without bias and with a LayerNorm.
    """

    def __init__(self, width: int, patch: int, strides: Sequence[int], channels: int) -> None:
        """``width`` D of the tokens, ``patch`` side of a token in pixels, ``channels`` C of the maps.

        Raises:
            SettingError: a stride that doubling and halving does not lead to from the patch, or too much doubling.
        """
        super().__init__()
        self.names = tuple(f"p{stride}" for stride in strides)
        self.levels = nn.ModuleDict(
            {name: _level(width, patch, stride, channels) for name, stride in zip(self.names, strides, strict=True)}
        )

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Maps by name, from the smallest stride to the largest."""
        return {name: level(tokens) for name, level in self.levels.items()}


def _level(width: int, patch: int, stride: int, channels: int) -> nn.Sequential:
    steps = math.log2(patch / stride)
    if steps != int(steps):
        raise SettingError(f"stride {stride}: must be the patch's side, {patch}, times or by a power of two")
    if width % 2 ** max(int(steps), 0):
        raise SettingError(
            f"stride {stride}: {int(steps)} deconvolutions halve the width {width} of the tokens as often"
        )
    layers: list[nn.Module] = []
    for step in range(int(steps)):
        if step:
            layers += [LayerNorm2d(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2))
        width //= 2
    if steps < 0:
        layers.append(nn.MaxPool2d(2 ** int(-steps)))
    layers += [
        nn.Conv2d(width, channels, kernel_size=1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels),
    ]
    return nn.Sequential(*layers)
