"""CUB-200-2011 as ``CUB_200_2011.tgz`` unpacks (Wah et al. 2011, Caltech CNS-TR-2011-001)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from llf_ray.data.base import PATH, Role, check_settings, held_out, located
from llf_ray.data.files import Files, check_files, check_there
from llf_ray.data.lists import numbered

__all__ = ["Cub"]


@dataclass(frozen=True, kw_only=True)
class Cub:
    """Photographs of 200 kinds of birds, 5,994 for training and 5,794 for test: ``root/images/CLASS/*.jpg`` and
    the lists images.txt, image_class_labels.txt, train_test_split.txt and classes.txt.

    Validation is cut from the training part.
    """

    root: str = field(metadata=PATH)  # the folder with images.txt
    channels: int = 3
    validation: float = 0.1  # share of each class of the training part that is cut off
    seed: int = 0  # of the cut
    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)

    def classes(self) -> tuple[str, ...]:
        names = numbered(located(self.root) / "classes.txt", "the number and the name of a class a line")
        if sorted(names) != list(range(1, len(names) + 1)):
            raise ValueError(
                f"{located(self.root) / 'classes.txt'}: classes must be numbered from 1 to {len(names)}, their number"
            )
        return tuple(names[number].partition(".")[2].replace("_", " ") or names[number] for number in sorted(names))

    def load(self, role: Role) -> Files:
        root = located(self.root)
        images = numbered(root / "images.txt", "the number and the path of an image a line")
        marks = self._of_each("train_test_split.txt", images, allowed=range(2))
        labels = self._of_each("image_class_labels.txt", images, allowed=range(1, len(self.classes()) + 1))
        wanted = int(role != "test")
        chosen = [number for number in images if marks[number] == wanted]
        paths = [root / "images" / images[number] for number in chosen]
        check_there(paths, root / "images.txt")
        files = Files(paths, np.asarray([labels[number] - 1 for number in chosen], dtype=np.int64), self.channels)
        return files.picked(held_out(files.labels, role, self, cut_validation=role != "test"))

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image."""
        check_files(self)

    def _of_each(self, name: str, images: Mapping[int, str], allowed: range) -> dict[int, int]:
        """A list's value for each image."""
        path = located(self.root) / name
        values = numbered(path, "the number of an image and a whole number a line")
        for number, image in images.items():
            value = values.get(number, "missing")
            if not value.isdecimal() or int(value) not in allowed:
                raise ValueError(
                    f"{path}: the value of image {number} ({image}) is {value}: must be from {allowed[0]} to "
                    f"{allowed[-1]}"
                )
        return {number: int(values[number]) for number in images}
