"""ISIC 2018, task 3: lesions of the skin, as the challenge's archives unpack (Codella et al. 2019,
arXiv:1902.03368; Tschandl et al. 2018, Scientific Data 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llf_ray.data.base import PATH, Role, check_settings, cut_part, few, limit_of, located
from llf_ray.data.files import Files, check_files, check_there
from llf_ray.data.lists import rows

__all__ = ["Isic"]

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
PARTS: Mapping[Role, str] = {"train": "Training", "validation": "Validation", "test": "Test"}
MARKS: Mapping[str, int] = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"


@dataclass(frozen=True, kw_only=True)
class Isic:
    """Dermatoscopic pictures of 7 diagnoses, 10,015 for training: ``root/ISIC2018_Task3_Training_Input/*.jpg``
    and ``root/ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv``.

    Validation (193) and test (1,512) are the challenge's own where ``root`` has their GroundTruth folders; else a
    share of the training part is cut off. Many lesions were taken several times, so a cut keeps the pictures of
    a lesion together, by the challenge's list of groups.
    """

    root: str = field(metadata=PATH)  # the folder with ISIC2018_Task3_Training_Input
    channels: int = 3
    validation: float = 0.1  # share of the lesions of each class cut off for validation where that part is not there
    test: float = 0.2  # share of the lesions of each class that is cut off for test where that part is not there
    by_lesion: bool = True  # False: the cuts go by picture, and need no list of groups; parts then share lesions
    seed: int = 0  # of the cuts
    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)

    def classes(self) -> tuple[str, ...]:
        return CLASSES

    def load(self, role: Role) -> Files:
        shares: Mapping[Role, float] = {"validation": self.validation, "test": self.test}
        missing = {part: share for part, share in shares.items() if not self._truth(part).parent.is_dir()}
        files = self._listed("train" if role in missing else role)
        if missing and (role == "train" or role in missing):
            lesions = self._lesions(files) if self.by_lesion else None
            files = files.picked(cut_part(files.labels, role, missing, self.seed, lesions))
        return files.picked(few(files.labels, limit_of(role, self.num_train, self.num_held_out)))

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image."""
        check_files(self)

    def _truth(self, role: Role) -> Path:
        name = f"ISIC2018_Task3_{PARTS[role]}_GroundTruth"
        return located(self.root) / name / f"{name}.csv"

    def _listed(self, role: Role) -> Files:
        source = self._truth(role)
        table = rows(source, f"a row an image, with the columns image, {', '.join(CLASSES)}", ("image", *CLASSES))
        labels = []
        for row in table:
            marks = [MARKS.get(row[name]) for name in CLASSES]
            if sorted(map(str, marks)) != ["0"] * (len(CLASSES) - 1) + ["1"]:
                raise ValueError(f"{source}: {row['image']} must have a 1.0 in one column and 0.0 in the others")
            labels.append(marks.index(1))
        folder = located(self.root) / f"ISIC2018_Task3_{PARTS[role]}_Input"
        paths = [folder / f"{row['image']}.jpg" for row in table]
        check_there(paths, source)
        return Files(paths, np.asarray(labels, dtype=np.int64), self.channels)

    def _lesions(self, files: Files) -> NDArray[Any]:
        """The lesion of each training image."""
        source = located(self.root) / GROUPINGS
        expected = "the lesion of each image, from the challenge's page, since parts are cut (or by_lesion = False)"
        lesions = {row["image"]: row["lesion_id"] for row in rows(source, expected, ("image", "lesion_id"))}
        for path in files.paths:
            if path.stem not in lesions:
                raise ValueError(f"{source} has no lesion for {path.stem}, which the training part has")
        return np.asarray([lesions[path.stem] for path in files.paths])
