"""What every data set offers: classes, channels and three roles of labelled images; and the ways to find and
to split files.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llf_ray.config import SettingError, check_number, nearest
from llf_ray.data.order import Indices, bits

__all__ = [
    "PATH",
    "ROLES",
    "ROOT_VARIABLE",
    "RUN_PATH",
    "DataSet",
    "Items",
    "Pixels",
    "Role",
    "Stack",
    "anchored",
    "check_settings",
    "cut",
    "cut_part",
    "few",
    "found",
    "held_out",
    "label_names",
    "limit_of",
    "located",
    "read_image",
    "square",
    "stacked",
]

Role: TypeAlias = Literal["train", "validation", "test"]
ROLES: tuple[Role, ...] = get_args(Role)
ROOT_VARIABLE = "LLF_RAY_DATA"  # the folder that relative paths of data start from

Pixels = NDArray[np.uint8]  # an image: (height, width, channels)

PATH = {"path": "data"}  # metadata of a setting that is a path below the folder of data, see `anchored`
RUN_PATH = {"path": "run"}  # of one that is a path from here

T = TypeVar("T")
_SPLIT = 2  # the word that keeps the split's stream apart from other users of the same seed


class BrokenData(ValueError):
    """An item that cannot be read, found while training: another try would end the same way."""


class Items(Protocol):
    """The labelled images of one role."""

    @property
    def labels(self) -> Indices:
        """The class of each item, (items,)."""
        ...

    def image(self, index: int) -> Pixels:
        """One image; a broken file is a ValueError that names it."""
        ...


@dataclass(frozen=True, eq=False)
class Stack:
    """Images of one size, in memory: (items, height, width, channels)."""

    images: Pixels
    labels: Indices

    def image(self, index: int) -> Pixels:
        return np.asarray(self.images[index])


class DataSet(Hashable, Protocol):
    """Settings that say which data; reading happens in the methods."""

    @property
    def channels(self) -> int: ...

    def classes(self) -> tuple[str, ...]:
        """Names of the classes; label i is the i-th."""
        ...

    def load(self, role: Role) -> Items:
        """The items of a role, always in the same order. FileNotFoundError or ValueError, in one line, where
        they cannot be had.
        """
        ...


class _OfChannels(Protocol):
    @property
    def channels(self) -> int: ...


def check_settings(settings: _OfChannels) -> None:
    """The checks that the settings of all data sets share; those that a data set does not have are passed
    over.
    """
    channels, validation, test = (
        settings.channels,
        getattr(settings, "validation", 0.0),
        getattr(settings, "test", 0.0),
    )
    if channels not in (1, 3):
        raise SettingError(f"channels = {channels}: must be 1 (grey) or 3 (colour)")
    for name in ("validation", "test"):
        check_number(name, getattr(settings, name, None), above=0.0)
    for name in ("num_train", "num_held_out"):
        check_number(name, getattr(settings, name, None), low=1)
    if validation + test >= 1:
        raise SettingError(f"validation = {validation!r}: what is held out must leave some of the data for training")


def anchored(settings: T) -> T:
    """The settings with absolute paths, for workers that start in another folder; dataclasses inside are
    done, too.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        kind = field.metadata.get("path")
        if kind and value:
            changes[field.name] = str(located(value) if kind == "data" else Path(value).expanduser().absolute())
        elif dataclasses.is_dataclass(value):
            changes[field.name] = anchored(value)
    return dataclasses.replace(settings, **changes)  # type: ignore[type-var]


def located(path: str) -> Path:
    """A path of a setting: relative ones start from the folder in ``LLF_RAY_DATA`` where that is set, else
    from here.
    """
    return (Path(os.environ.get(ROOT_VARIABLE) or ".") / Path(path).expanduser()).absolute()


def found(path: Path, expected: str, *, data: bool = True) -> Path:
    """The path, or a FileNotFoundError: the outermost folder that is missing, what was expected there, and the nearest
    name that exists. Where relative paths of data start is said of ``data`` that are looked for below it.
    """
    if path.exists():
        return path
    parent = next(folder for folder in path.parents if folder.is_dir())
    missing = parent / path.relative_to(parent).parts[0]
    inside = "" if missing == path else f"{path.relative_to(missing)} in it, "
    near = nearest(missing.name, sorted(entry.name for entry in parent.iterdir()))
    hint = f"; did you mean {near!r}?" if near else ""
    root = os.environ.get(ROOT_VARIABLE)
    start = f"is {root}" if root else "is not set: they start here"
    from_root = data and path.is_relative_to(located("."))
    where = f" (relative paths of data start from {ROOT_VARIABLE}, which {start})" if from_root else ""
    raise FileNotFoundError(f"{missing} does not exist: expected {inside}{expected}{hint}{where}")


def read_image(path: Path, channels: int) -> Pixels:
    """One image file as grey (1) or colour (3)."""
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: it was there when the folder was listed") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None
    return pixels.reshape(*pixels.shape[:2], channels)


def square(pixels: Pixels, size: int) -> Pixels:
    """Shorter side resized to ``size`` (bicubic), then the square in the centre."""
    height, width, channels = pixels.shape
    if (height, width) == (size, size):
        return pixels
    scale = size / min(height, width)
    picture = Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)
    picture = picture.resize(
        (max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size))).reshape(size, size, channels)


def stacked(items: Items, size: int) -> Stack:
    """All images of a role in memory, as squares of one size."""
    return Stack(np.stack([square(items.image(index), size) for index in range(len(items.labels))]), items.labels)


def cut(
    labels: Indices, share: float, seed: int, stream: int, groups: NDArray[Any] | None = None
) -> tuple[Indices, Indices]:
    """Positions that stay and positions that are cut away, both in order: ``share`` of each class, at least
    one, by seed.

    With ``groups`` (items,), items of one group, a patient's pictures say, go together: the share is one of
    groups, and a group's class is that of its first item.
    """
    if groups is not None:
        _, first, member = np.unique(groups, return_index=True, return_inverse=True)
        gone = np.isin(member, cut(labels[first], share, seed, stream)[1])
        return np.nonzero(~gone)[0], np.nonzero(gone)[0]
    away = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        mixed = members[np.argsort(bits((_SPLIT, seed, stream), members), kind="stable")]
        away[mixed[: max(1, round(share * len(members)))]] = True
    return np.nonzero(~away)[0], np.nonzero(away)[0]


def cut_part(
    labels: Indices, role: Role, shares: Mapping[Role, float], seed: int, groups: NDArray[Any] | None = None
) -> Indices:
    """Positions of a role in a training part that the roles of ``shares`` are cut off from; groups as in `cut`.

    Test is cut before validation, so that another validation share leaves it as it is.
    """
    chosen, left = np.arange(len(labels)), 1.0
    for part in reversed(ROLES):
        if part in shares:
            inside = None if groups is None else groups[chosen]
            kept, away = cut(labels[chosen], shares[part] / left, seed, len(part), inside)
            if part == role:
                return chosen[away]
            chosen, left = chosen[kept], left - shares[part]
    return chosen


def few(labels: Indices, number: int | None) -> Indices:
    """Positions of the first ``number`` items, classes taking turns; all, as they are, for None or where
    there are fewer.
    """
    if number is None or number >= len(labels):
        return np.arange(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        turn[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, turn))[:number])


def limit_of(role: Role, num_train: int | None, num_held_out: int | None) -> int | None:
    """How many items a role may have."""
    return num_train if role == "train" else num_held_out


def label_names(labels: Iterable[int]) -> tuple[str, ...]:
    """Numbers as names, for sources that have no others."""
    return tuple(str(label) for label in range(max(labels) + 1))


class _Cuts(Protocol):
    """The settings that `held_out` needs."""

    @property
    def validation(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def num_train(self) -> int | None: ...
    @property
    def num_held_out(self) -> int | None: ...


def held_out(
    labels: Indices, role: Role, settings: _Cuts, *, cut_validation: bool, groups: NDArray[Any] | None = None
) -> Indices:
    """Positions of a role in the source's part that it lies in: the training part serves train and validation
    where it is cut; groups as in `cut`.
    """
    chosen = np.arange(len(labels))
    if cut_validation:
        kept, away = cut(labels, settings.validation, settings.seed, 0, groups)
        chosen = away if role == "validation" else kept
    return chosen[few(labels[chosen], limit_of(role, settings.num_train, settings.num_held_out))]
