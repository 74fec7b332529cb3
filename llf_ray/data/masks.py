"""Images with the class of every pixel: what data sets for segmentation offer, and pairs of files."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llf_ray.config import nearest
from llf_ray.data.base import ROLES, Pixels, Role, found, read_image
from llf_ray.data.files import MOST_CHECKED, images_in
from llf_ray.data.order import Indices

__all__ = [
    "IGNORED",
    "MOST_CLASSES",
    "Labels",
    "MaskFiles",
    "MaskSet",
    "MaskStack",
    "MaskedImages",
    "check_masks",
    "paired",
]

IGNORED = 255  # the label of a pixel that counts neither in losses nor in scores
MOST_CLASSES = IGNORED
MOST_MASKS_READ = 200  # of a role, before a run; the others are looked at when they are read

Labels = NDArray[np.uint8]  # the class of each pixel, or IGNORED: (height, width)


class MaskedImages(Protocol):
    """The images of one role, each with the class of every pixel."""

    def __len__(self) -> int: ...

    def pair(self, index: int) -> tuple[Pixels, Labels]:
        """An image (height, width, channels) and its labels, of the same height and width; what is broken is a
        ValueError that names the file.
        """
        ...


class MaskSet(Hashable, Protocol):
    """Settings that say which images with masks; reading happens in the methods."""

    @property
    def channels(self) -> int: ...

    def classes(self) -> tuple[str, ...]:
        """Names of the classes; label i is the i-th."""
        ...

    def load(self, role: Role) -> MaskedImages:
        """The images of a role, always in the same order. FileNotFoundError or ValueError, in one line, where they
        cannot be had.
        """
        ...


@dataclass(frozen=True)
class MaskFiles:
    """Two files an image: the picture, and a picture whose grey levels or palette indices are ids.

    ``classes`` says which label each id stands for, `IGNORED` among them; any other id is an error.
    """

    images: Sequence[Path]
    masks: Sequence[Path]
    channels: int
    classes: Mapping[int, int]

    def __len__(self) -> int:
        return len(self.images)

    def pair(self, index: int) -> tuple[Pixels, Labels]:
        image, labels = read_image(self.images[index], self.channels), self.labels(index)
        if image.shape[:2] != labels.shape:
            raise _unequal(self.images[index], image.shape[1::-1], self.masks[index], labels.shape[::-1])
        return image, labels

    def labels(self, index: int) -> Labels:
        """The labels alone."""
        path = self.masks[index]
        ids = _read_ids(path)
        labels = self._table[np.minimum(ids, len(self._table) - 1)]
        if (labels < 0).any():
            wrong = int(ids[labels < 0][0])
            raise ValueError(
                f"{path} has the id {wrong}: ids are {_ranges([*self.classes])}"
                f" ({int((labels < 0).sum()):,} of {labels.size:,} pixels have another)"
            )
        return labels.astype(np.uint8)

    def picked(self, chosen: Indices) -> MaskFiles:
        """The images at these positions."""
        return MaskFiles([self.images[i] for i in chosen], [self.masks[i] for i in chosen], self.channels, self.classes)

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        """The label of each id, -1 where there is none; the last entry stands for all larger ids."""
        table = np.full(max(self.classes) + 2, -1, dtype=np.int16)
        for number, label in self.classes.items():
            table[number] = label
        return table


def paired(images: Path, masks: Path, suffix: str = ".png") -> tuple[list[Path], list[Path]]:
    """The images of a folder and the mask of each: the file of its name with ``suffix`` in the other folder.

    Raises:
        FileNotFoundError: a folder, or the mask of an image, by name, with the nearest that is there.
        ValueError: no images.
    """
    pictures = images_in(found(images, "a folder of images"))
    if not pictures:
        raise ValueError(f"{images} has no images")
    there = {path.name for path in found(masks, f"masks of the images in {images.name}").iterdir()}
    wanted = [masks / f"{path.stem}{suffix}" for path in pictures]
    missing = [path for path in wanted if path.name not in there]
    if missing:
        near = nearest(missing[0].name, sorted(there))
        raise FileNotFoundError(
            f"{missing[0]} does not exist: expected a mask for each of the {len(wanted):,} images in {images}, and "
            f"{len(missing):,} have none" + (f"; nearest is {near!r}" if near else "")
        )
    return pictures, wanted


@dataclass(frozen=True, eq=False)
class MaskStack:
    """Images of one size, in memory, and their labels: (items, height, width, channels), (items, height, width)."""

    images: Pixels
    labels: Labels

    def __len__(self) -> int:
        return len(self.images)

    def pair(self, index: int) -> tuple[Pixels, Labels]:
        return np.asarray(self.images[index]), np.asarray(self.labels[index])


class _OfMasks(Protocol):
    def load(self, role: Role) -> MaskFiles: ...


def check_masks(data: _OfMasks) -> None:
    """Raise a ValueError that names a file which is no image, a mask of another size than its image, or a mask with an
    id outside; of very many files a sample is looked at, and of masks' pixels a smaller one.
    """
    for role in ROLES:
        files = data.load(role)
        for index in range(0, len(files), len(files) // MOST_CHECKED + 1):
            image, mask = files.images[index], files.masks[index]
            sizes = [_size(path) for path in (image, mask)]
            if sizes[0] != sizes[1]:
                raise _unequal(image, sizes[0], mask, sizes[1])
        for index in range(0, len(files), len(files) // MOST_MASKS_READ + 1):
            files.labels(index)


def _size(path: Path) -> tuple[int, int]:
    """Width and height, from the header."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None


def _unequal(image: Path, size: tuple[int, ...], mask: Path, other: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"{mask} has {other[0]}x{other[1]} pixels, but its image {image} has {size[0]}x{size[1]}: a mask has a pixel "
        "for each of its image"
    )


def _read_ids(path: Path) -> NDArray[np.int64]:
    """Grey levels or palette indices, (height, width)."""
    try:
        with Image.open(path) as picture:
            ids = np.asarray(picture)
            mode = picture.mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: it was there when the folder was listed") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None
    if ids.ndim != 2 or ids.dtype.kind not in "bui" or (ids.size and int(ids.min()) < 0):
        raise ValueError(
            f"{path} is no mask: its pixels ({mode}) are no ids; grey levels or palette indices are needed"
        )
    return ids.astype(np.int64)


def _ranges(numbers: Sequence[int]) -> str:
    """Whole numbers as text: ``0 to 10, 255``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join(" to ".join(str(end) for end in part) for part in parts)
