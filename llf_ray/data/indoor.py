"""MIT67, indoor scenes, as ``indoorCVPR_09.tar`` unpacks (Quattoni and Torralba 2009, CVPR)."""

from __future__ import annotations

from dataclasses import dataclass, field

from llf_ray.data.base import PATH, Role, check_settings, held_out, located
from llf_ray.data.files import Files, check_files, check_there
from llf_ray.data.lists import labelled, lines

__all__ = ["IndoorScenes"]


@dataclass(frozen=True, kw_only=True)
class IndoorScenes:
    """Photographs of 67 kinds of rooms, 5,360 for training and 1,340 for test: ``root/Images/CLASS/*.jpg``, and
    TrainImages.txt and TestImages.txt, which come apart from the archive.

    Classes are the folders of the training list in alphabetical order; images that neither list names are left
    out. Validation is cut from the training part.
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
        return tuple(sorted({name.split("/")[0] for name in self._listed("TrainImages.txt")}))

    def load(self, role: Role) -> Files:
        root = located(self.root)
        source = "TestImages.txt" if role == "test" else "TrainImages.txt"
        names = self._listed(source)
        numbers = {name: label for label, name in enumerate(self.classes())}
        labels = labelled((name.split("/")[0] for name in names), numbers, root / source)
        paths = [root / "Images" / name for name in names]
        check_there(paths, root / source)
        return Files(paths, labels, self.channels).picked(held_out(labels, role, self, cut_validation=role != "test"))

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image."""
        check_files(self)

    def _listed(self, source: str) -> list[str]:
        path = located(self.root) / source
        names = lines(path, "an image a line, as CLASS/FILE")
        for name in names:
            if name.count("/") != 1:
                raise ValueError(f"{path}: the line {name!r} is not CLASS/FILE")
        return names
