"""Image folders: one folder a class, with or without folders for the roles above them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llf_ray.config import nearest
from llf_ray.data.base import PATH, Role, check_settings, cut_part, few, found, limit_of, located
from llf_ray.data.files import SUFFIXES, Files, check_files, images_in

__all__ = ["Folder"]

VALIDATION_NAMES = ("validation", "valid", "val")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """``root/CLASS/*`` cut into three by seed, or ``root/{train,val,test}/CLASS/*`` as it is.

    Classes are the folders' names in alphabetical order. Where train/ has no validation folder beside it, a
    share of train/ is cut off; where it has no test folder (ImageNet's layout), the validation folder is the
    test set, and a share of train/ is cut off.
    """

    root: str = field(metadata=PATH)
    channels: int = 3
    validation: float = 0.15  # share of each class that is cut off for validation where the source has no such part
    test: float = 0.2  # share of each class that is cut off for test where the source has no parts at all
    seed: int = 0  # of the cuts
    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)

    def classes(self) -> tuple[str, ...]:
        root = self._root()
        names = _folders(root / "train" if (root / "train").is_dir() else root)
        if not names:
            raise ValueError(f"{root} has no folders: expected one folder a class, or train/ with one folder a class")
        return names

    def load(self, role: Role) -> Files:
        files = self._all_of(role)
        return files.picked(few(files.labels, limit_of(role, self.num_train, self.num_held_out)))

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image."""
        check_files(self)

    def _root(self) -> Path:
        return found(located(self.root), "an image folder, one folder a class or train/ and test/ above them")

    def _all_of(self, role: Role) -> Files:
        root, source = self._root(), self._sources()
        if source[role] != source["train"]:
            return self._listed(root / source[role])
        files = self._listed(root / source["train"])
        shares: Mapping[Role, float] = {"validation": self.validation, "test": self.test}
        missing = {part: share for part, share in shares.items() if source[part] == source["train"]}
        return files.picked(cut_part(files.labels, role, missing, self.seed))

    def _sources(self) -> dict[Role, str]:
        """The folder that each role's items lie in; the training part's where they must be cut off from it."""
        root = self._root()
        if not (root / "train").is_dir():
            return {"train": ".", "validation": ".", "test": "."}
        validation = next((name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
        if (root / "test").is_dir():
            return {"train": "train", "validation": validation or "train", "test": "test"}
        if validation is None:
            near = nearest("test", _folders(root))
            hint = f"; did you mean {near!r}?" if near and near != "train" else ""
            raise FileNotFoundError(
                f"{root / 'test'} does not exist: beside train/ a folder test/ or val/ is expected{hint}"
            )
        return {"train": "train", "validation": "train", "test": validation}

    def _listed(self, folder: Path) -> Files:
        classes = self.classes()
        paths: list[Path] = []
        labels: list[int] = []
        for name in _folders(folder):
            if name not in classes:
                near = nearest(name, classes)
                raise ValueError(
                    f"{folder / name} is no class of train/" + (f"; did you mean {near!r}?" if near else "")
                )
        for label, name in enumerate(classes):
            inside = images_in(found(folder / name, "a folder of images of this class"))
            if not inside:
                raise ValueError(f"{folder / name} has no images ({', '.join(sorted(SUFFIXES))})")
            paths += inside
            labels += [label] * len(inside)
        return Files(paths, np.asarray(labels, dtype=np.int64), self.channels)


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    )
