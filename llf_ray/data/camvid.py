"""CamVid, street scenes from a moving car (Brostow et al. 2009, Pattern Recognition Letters 30:88), with the 11 classes
of SegNet (Badrinarayanan et al. 2017, arXiv:1511.00561).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from llf_ray.data.base import PATH, Role, check_settings, found, limit_of, located
from llf_ray.data.masks import IGNORED, MaskFiles, check_masks, paired

__all__ = ["CamVid"]

CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)
VOID = 11  # the id of what has none of these classes
PARTS: Mapping[Role, str] = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class CamVid:
    """``root/{train,val,test}/*`` and ``root/{train,val,test}annot/*.png``, as SegNet's tutorial distributes it: 367,
    101 and 233 frames, of any size. Roles are the parts as they are.
    """

    root: str = field(default="camvid", metadata=PATH)
    num_train: int | None = None  # at most this many training images, evenly spread over the films
    num_held_out: int | None = None  # at most this many validation images and this many test images

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def channels(self) -> int:
        return 3

    def classes(self) -> tuple[str, ...]:
        return CLASSES

    def load(self, role: Role) -> MaskFiles:
        root = found(located(self.root), "the folder of CamVid: train/, trainannot/, val/, valannot/, ...")
        part = PARTS[role]
        ids = {**{number: number for number in range(len(CLASSES))}, VOID: IGNORED}
        files = MaskFiles(*paired(root / part, root / f"{part}annot"), self.channels, ids)
        limit = limit_of(role, self.num_train, self.num_held_out)
        if limit is None or limit >= len(files):
            return files
        return files.picked(np.arange(limit) * len(files) // limit)  # frames that follow one another are much alike

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image or no mask of it."""
        check_masks(self)
