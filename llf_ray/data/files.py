"""Labelled image files that are read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from llf_ray.data.base import ROLES, Pixels, Role, read_image
from llf_ray.data.order import Indices

__all__ = ["SUFFIXES", "Files", "check_files", "check_there", "images_in"]

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

    def picked(self, chosen: Indices) -> Files:
        """The items at these positions."""
        return Files([self.paths[i] for i in chosen], self.labels[chosen], self.channels)


class _Listed(Protocol):
    @property
    def paths(self) -> Sequence[Path]: ...


class _OfFiles(Protocol):
    def load(self, role: Role) -> _Listed: ...


def check_files(data: _OfFiles) -> None:
    """Raise a ValueError that names a file of any role that does not start like an image; of very many, a
    sample is looked at.
    """
    for role in ROLES:
        paths = data.load(role).paths
        for path in paths[:: len(paths) // MOST_CHECKED + 1]:
            try:
                with Image.open(path):
                    pass
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"{path} cannot be read as an image: {error}") from None


def check_there(paths: Sequence[Path], source: Path) -> None:
    """Raise a FileNotFoundError that names the first of the images of a list that is not there.

    Each folder is read once: a look at each file would take minutes where the folder is on a network.
    """
    inside = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {p.parent for p in paths}}
    missing = [path for path in paths if path.name not in inside[path.parent]]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} does not exist, but {source} names it "
            f"({len(missing):,} of its {len(paths):,} images are not there: is everything unpacked?)"
        )


def images_in(folder: Path) -> list[Path]:
    """The image files right inside a folder, in alphabetical order."""
    names = (entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    return [folder / name for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES]
