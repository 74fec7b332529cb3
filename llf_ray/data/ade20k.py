"""ADE20K in 150 classes, as the MIT scene-parsing challenge distributes it (Zhou et al. 2017, CVPR)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from llf_ray.data.base import PATH, Role, check_settings, found, held_out, located
from llf_ray.data.lists import lines
from llf_ray.data.masks import IGNORED, MaskFiles, check_masks, paired

__all__ = ["Ade20k"]

NUM_CLASSES = 150
NAMES = "objectInfo150.txt"


@dataclass(frozen=True, kw_only=True)
class Ade20k:
    """``root/images/{training,validation}/*.jpg`` and ``root/annotations/{training,validation}/*.png`` of
    ADEChallengeData2016.zip: 20,210 and 2,000 images, id 0 is ignored, ids 1 to 150 are the classes.

    The official validation part is our test, as papers report it; our validation is cut from the training part. Names
    come from ``root/objectInfo150.txt`` where it is there.
    """

    root: str = field(default="ADEChallengeData2016", metadata=PATH)
    validation: float = 0.01  # share of the training part that is cut off for validation
    seed: int = 0  # of the cut
    num_train: int | None = None  # at most this many training images
    num_held_out: int | None = None  # at most this many validation images and this many test images

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def channels(self) -> int:
        return 3

    def classes(self) -> tuple[str, ...]:
        path = located(self.root) / NAMES
        if not path.is_file():
            return tuple(f"class {number}" for number in range(1, NUM_CLASSES + 1))
        rows = [line.split(None, 4) for line in lines(path, "the names of the classes")]  # 1 0.1576 11664 1172 wall
        names = {row[0]: row[4].split(",")[0] for row in rows if len(row) == 5}
        missing = [number for number in range(1, NUM_CLASSES + 1) if str(number) not in names]
        if missing:
            raise ValueError(
                f"{path} has no row of class {missing[0]}: one row for each of 1 to {NUM_CLASSES} is needed"
            )
        return tuple(names[str(number)] for number in range(1, NUM_CLASSES + 1))

    def load(self, role: Role) -> MaskFiles:
        root = found(located(self.root), "the folder ADEChallengeData2016: images/ and annotations/")
        part = "validation" if role == "test" else "training"
        ids = {0: IGNORED, **{number: number - 1 for number in range(1, NUM_CLASSES + 1)}}
        files = MaskFiles(*paired(root / "images" / part, root / "annotations" / part), self.channels, ids)
        alike = np.zeros(len(files), dtype=np.int64)  # a picture has many classes: none to balance the cut by
        return files.picked(held_out(alike, role, self, cut_validation=role != "test"))

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image or no mask of it."""
        check_masks(self)
