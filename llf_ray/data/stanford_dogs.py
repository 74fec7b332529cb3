"""Stanford Dogs as ``images.tar`` and ``lists.tar`` unpack (Khosla et al. 2011, FGVC workshop at CVPR)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llf_ray.data.base import PATH, Role, check_settings, held_out, located
from llf_ray.data.files import Files, check_files, check_there
from llf_ray.data.lists import matlab
from llf_ray.data.order import Indices

__all__ = ["StanfordDogs"]


@dataclass(frozen=True, kw_only=True)
class StanfordDogs:
    """Photographs of 120 breeds, 12,000 for training and 8,580 for test: ``root/Images/nXXXXXXXX-BREED/*.jpg``,
    and train_list.mat and test_list.mat in ``root`` or in ``root/lists``.

    Validation is cut from the training part. The pictures are from ImageNet's training part: a network that has
    seen ImageNet has seen them.
    """

    root: str = field(metadata=PATH)  # the folder with Images
    channels: int = 3
    validation: float = 0.1  # share of each class of the training part that is cut off
    seed: int = 0  # of the cut
    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)

    def classes(self) -> tuple[str, ...]:
        return tuple(folder.partition("-")[2].replace("_", " ") or folder for folder in self._folders())

    def load(self, role: Role) -> Files:
        source, names, labels = self._listed("test" if role == "test" else "train")
        folders = self._folders()
        for name, label in zip(names, labels.tolist(), strict=True):
            if label not in range(len(folders)) or name.split("/")[0] != folders[label]:
                raise ValueError(
                    f"{source}: {name} has the label {label + 1}: labels must be from 1 to {len(folders)}, one for "
                    "each folder of Images"
                )
        paths = [located(self.root) / "Images" / name for name in names]
        check_there(paths, source)
        files = Files(paths, labels, self.channels)
        return files.picked(held_out(labels, role, self, cut_validation=role != "test"))

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image."""
        check_files(self)

    def _folders(self) -> tuple[str, ...]:
        """The folder of each class, in the order of the labels."""
        source, names, labels = self._listed("train")
        folders = {label: name.split("/")[0] for name, label in zip(names, labels.tolist(), strict=True)}
        if sorted(folders) != list(range(len(folders))):
            raise ValueError(f"{source}: labels must be from 1 to the number of classes, each of them there")
        return tuple(folders[label] for label in range(len(folders)))

    def _listed(self, part: str) -> tuple[Path, list[str], Indices]:
        """A list's file, the images that it names and their labels from 0."""
        root = located(self.root)
        source = (root / "lists" if (root / "lists").is_dir() else root) / f"{part}_list.mat"
        content = matlab(source, "the variables file_list and labels, from lists.tar", ("file_list", "labels"))
        names, labels = content["file_list"].tolist(), content["labels"].astype(np.int64) - 1
        if len(names) != len(labels):
            raise ValueError(f"{source}: file_list has {len(names)} images, but labels has {len(labels)}")
        return source, names, labels
