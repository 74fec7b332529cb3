"""Oxford Flowers 102 as ``102flowers.tgz`` unpacks (Nilsback and Zisserman 2008, ICVGIP)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from llf_ray.data.base import PATH, Role, check_settings, few, limit_of, located
from llf_ray.data.files import Files, check_files, check_there
from llf_ray.data.lists import matlab

__all__ = ["Flowers102"]

NUM_CLASSES = 102
PARTS: Mapping[Role, str] = {"train": "trnid", "validation": "valid", "test": "tstid"}


@dataclass(frozen=True, kw_only=True)
class Flowers102:
    """Photographs of 102 kinds of flowers, 1,020 for training, 1,020 for validation and 6,149 for test:
    ``root/jpg/image_NNNNN.jpg``, imagelabels.mat and setid.mat.

    torchvision's ``flowers-102`` folder has this layout. Its own reader takes the published files only, by their
    MD5; this one reads any in the layout.
    """

    root: str = field(metadata=PATH)  # the folder with jpg
    channels: int = 3
    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)

    def classes(self) -> tuple[str, ...]:
        from torchvision.datasets import Flowers102 as Named  # here: it takes seconds; the archive has no names

        return tuple(Named.classes)

    def load(self, role: Role) -> Files:
        root = located(self.root)
        sets = matlab(root / "setid.mat", "the numbers of the images of each part", tuple(PARTS.values()))
        every = matlab(root / "imagelabels.mat", "the label of each image", ("labels",))["labels"].astype(np.int64)
        numbers = sets[PARTS[role]].astype(np.int64)
        for number in numbers:
            if not 1 <= number <= len(every):
                raise ValueError(f"{root / 'setid.mat'}: no label of image {number}: imagelabels.mat has {len(every)}")
            if not 1 <= every[number - 1] <= NUM_CLASSES:
                raise ValueError(
                    f"{root / 'imagelabels.mat'}: the label of image {number} is {every[number - 1]}: must be from 1 "
                    f"to {NUM_CLASSES}"
                )
        paths = [root / "jpg" / f"image_{number:05}.jpg" for number in numbers]
        check_there(paths, root / "setid.mat")
        files = Files(paths, every[numbers - 1] - 1, self.channels)
        return files.picked(few(files.labels, limit_of(role, self.num_train, self.num_held_out)))

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image."""
        check_files(self)
