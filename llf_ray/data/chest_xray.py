"""ChestX-ray14 as the NIH and Kaggle distribute it (Wang et al. 2017, arXiv:1705.02315), for one finding a
picture.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llf_ray.config import SettingError, unknown
from llf_ray.data.base import PATH, Role, check_settings, found, held_out, located
from llf_ray.data.files import Files, check_files
from llf_ray.data.lists import lines, rows

__all__ = ["FINDINGS", "ChestXray"]

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "No Finding",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
COLUMNS = ("Image Index", "Finding Labels", "Patient ID")


@dataclass(frozen=True, kw_only=True)
class ChestXray:
    """X-ray pictures of chests with exactly one finding, one of ``findings``: Data_Entry_2017.csv (or
    _v2020), train_val_list.txt, test_list.txt, and the PNGs in ``root/images`` or ``root/images_NNN/images``.

    The default is the 7 findings of few-shot learning across domains (Guo et al. 2020, arXiv:1912.07200), which
    takes both parts as one. The official parts share no patient; validation is cut from the training part by
    patient, too.
    """

    root: str = field(metadata=PATH)  # the folder with the table
    findings: tuple[str, ...] = (
        "Atelectasis",
        "Cardiomegaly",
        "Effusion",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pneumothorax",
    )
    channels: int = 3  # the pictures are grey; three equal channels suit a network of colour pictures
    validation: float = 0.1  # share of the patients of each finding of the training part that is cut off
    seed: int = 0  # of the cut
    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)
        for finding in self.findings:
            if finding not in FINDINGS:
                raise unknown("finding", finding, FINDINGS)
        if len(set(self.findings)) != len(self.findings) or not self.findings:
            raise SettingError(f"findings = {self.findings!r}: must be at least one, each once")

    def classes(self) -> tuple[str, ...]:
        return self.findings

    def load(self, role: Role) -> Files:
        source = located(self.root) / ("test_list.txt" if role == "test" else "train_val_list.txt")
        table = self._table()
        entries = {row["Image Index"]: row for row in rows(table, f"the columns {', '.join(COLUMNS)}", COLUMNS)}
        names = lines(source, "an image a line")
        for name in names:
            if name not in entries:
                raise ValueError(f"{table} has no row of {name}, which {source.name} names")
        chosen = [entries[name] for name in names if entries[name]["Finding Labels"] in self.findings]
        labels = np.asarray([self.findings.index(row["Finding Labels"]) for row in chosen], dtype=np.int64)
        patients = np.asarray([row["Patient ID"] for row in chosen])
        folders = self._folders()
        for row in chosen:
            if row["Image Index"] not in folders:
                raise FileNotFoundError(
                    f"{located(self.root)} has no {row['Image Index']}, which {source.name} names: expected it in "
                    "images/ or in one of images_001/images to images_012/images"
                )
        paths = [folders[row["Image Index"]] / row["Image Index"] for row in chosen]
        return Files(paths, labels, self.channels).picked(
            held_out(labels, role, self, cut_validation=role != "test", groups=patients)
        )

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image."""
        check_files(self)

    def _table(self) -> Path:
        root = located(self.root)
        return next((root / name for name in TABLES if (root / name).is_file()), root / TABLES[0])

    def _folders(self) -> dict[str, Path]:
        """The folder of each image."""
        root = found(located(self.root), "the folder of ChestX-ray14")
        whole = [folder for folder in (root / "images", *sorted(root.glob("images_*/images"))) if folder.is_dir()]
        return {name: folder for folder in whole for name in os.listdir(folder)}
