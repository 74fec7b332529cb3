"""Labelled image files that are read when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llf_ray.data.base import Pixels, read_image
from llf_ray.data.order import Indices

__all__ = ["SUFFIXES", "Files", "check_headers"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MOST_CHECKED = 10_000  # headers that are looked at before a run; a larger set would keep its user waiting


@dataclass(frozen=True)
class Files:
    """One file an item."""

    paths: Sequence[Path]
    labels: Indices
    channels: int

    def image(self, index: int) -> Pixels:
        return read_image(self.paths[index], self.channels)


def check_headers(paths: Sequence[Path]) -> None:
    """Raise a ValueError that names the first file that does not start like an image; of very many, a sample
    is looked at.
    """
    for path in paths[:: len(paths) // MOST_CHECKED + 1]:
        try:
            with Image.open(path):
                pass
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be read as an image: {error}") from None
