"""Your own images with masks, in folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llf_ray.config import SettingError
from llf_ray.data.base import PATH, Role, check_settings, cut_part, few, found, limit_of, located
from llf_ray.data.folder import VALIDATION_NAMES
from llf_ray.data.masks import IGNORED, MOST_CLASSES, MaskFiles, check_masks, paired
from llf_ray.data.order import Indices

__all__ = ["MaskFolder"]


@dataclass(frozen=True, kw_only=True)
class MaskFolder:
    """``root/{images,masks}/*`` cut into three by seed, or ``root/{train,val,test}/{images,masks}/*`` as it is.

    A mask has its image's name and the ending ``suffix``; its grey levels or palette indices are the places of classes
    in ``names``, from 0, or one of ``ignored``. Where train/ has no validation folder beside it, a share of it is cut
    off; where it has no test folder, the validation folder is the test set, and a share of train/ is cut off.
    """

    root: str = field(metadata=PATH)
    names: tuple[str, ...]  # of the classes
    ignored: tuple[int, ...] = (255,)  # ids of pixels that do not count
    suffix: str = ".png"  # of masks
    channels: int = 3
    validation: float = 0.15  # share that is cut off for validation where the source has no such part
    test: float = 0.2  # share that is cut off for test where the source has no parts at all
    seed: int = 0  # of the cuts
    num_train: int | None = None  # at most this many training images
    num_held_out: int | None = None  # at most this many validation images and this many test images

    def __post_init__(self) -> None:
        check_settings(self)
        if not 1 < len(self.names) <= MOST_CLASSES or len(set(self.names)) < len(self.names):
            raise SettingError(f"names = {self.names!r}: 2 to {MOST_CLASSES} classes, each once")
        inside = [number for number in self.ignored if not len(self.names) <= number < 2**16]
        if inside:
            raise SettingError(
                f"ignored = {self.ignored!r}: {inside[0]} is the id of {self.names[inside[0]]!r}"
                if 0 <= inside[0] < len(self.names)
                else f"ignored = {self.ignored!r}: ids are 0 to 65535"
            )

    def classes(self) -> tuple[str, ...]:
        return self.names

    def load(self, role: Role) -> MaskFiles:
        files = self._all_of(role)
        return files.picked(few(_alike(files), limit_of(role, self.num_train, self.num_held_out)))

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image or no mask of it."""
        check_masks(self)

    def _all_of(self, role: Role) -> MaskFiles:
        root = found(located(self.root), "a folder with images/ and masks/, or with train/ and test/ that have both")
        source = self._sources(root)
        files = self._listed(root / source[role])
        if source[role] != source["train"]:
            return files
        shares: Mapping[Role, float] = {"validation": self.validation, "test": self.test}
        missing = {part: share for part, share in shares.items() if source[part] == source["train"]}
        return files.picked(cut_part(_alike(files), role, missing, self.seed))

    def _sources(self, root: Path) -> dict[Role, str]:
        """The folder that each role's images lie in; the training part's where they must be cut off from it."""
        if not (root / "train").is_dir():
            return {"train": ".", "validation": ".", "test": "."}
        validation = next((name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
        if (root / "test").is_dir():
            return {"train": "train", "validation": validation or "train", "test": "test"}
        if validation is None:
            found(root / "test", "beside train/ a folder test/ or val/")
        return {"train": "train", "validation": "train", "test": validation or "test"}

    def _listed(self, folder: Path) -> MaskFiles:
        ids = {number: number for number in range(len(self.names))} | dict.fromkeys(self.ignored, IGNORED)
        return MaskFiles(*paired(folder / "images", folder / "masks", self.suffix), self.channels, ids)


def _alike(files: MaskFiles) -> Indices:
    """One class for all: an image has several, and none to balance a cut by."""
    return np.zeros(len(files), dtype=np.int64)
