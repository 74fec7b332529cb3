"""Hugging Face data sets, where the user has the optional package ``datasets``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llf_ray.config import SettingError, nearest
from llf_ray.data.base import Pixels, Role, check_settings, held_out, label_names
from llf_ray.data.order import Indices
from llf_ray.data.torchvision_sets import as_pixels

__all__ = ["HuggingFace"]

PARTS: Mapping[Role, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}


@dataclass(frozen=True, kw_only=True)
class HuggingFace:
    """``datasets.load_dataset(name, configuration)`` with a column of images and one of class labels.

    A validation share is cut from the training part where the source has none; a source with validation but
    no test part gives its validation part as test.
    """

    name: str
    configuration: str | None = None
    revision: str | None = None
    image: str = "image"  # column
    label: str = "label"  # column
    channels: int = 3
    validation: float = 0.1  # share of each class of train that is cut off where the source has no such part
    seed: int = 0  # of the cut
    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)

    def classes(self) -> tuple[str, ...]:
        source = self._source(self._whole(), "train")
        names = getattr(source.features[self.label], "names", None)
        return tuple(names) if names else label_names(source[self.label])

    def load(self, role: Role) -> Rows:
        whole = self._whole()
        source = self._source(whole, role)
        labels = np.asarray(source[self.label], dtype=np.int64)
        chosen = held_out(
            labels, role, self, cut_validation=role != "test" and self._parts(whole)["validation"] == "train"
        )
        return Rows(source, chosen, labels[chosen], self.image, self.channels, self.name)

    def _source(self, whole: Any, role: Role) -> Any:
        source = whole[self._parts(whole)[role]]
        for column in (self.image, self.label):
            if column not in source.features:
                near = nearest(column, source.features)
                hint = f"; did you mean {near!r}?" if near else ""
                raise ValueError(
                    f"{self.name} has no column {column!r}{hint} (there are: {', '.join(source.features)})"
                )
        return source

    def _parts(self, whole: Any) -> dict[Role, str]:
        """The source's part for each role; the training part's name where validation is cut from it."""
        there = list(whole)
        named = {role: next((name for name in names if name in there), None) for role, names in PARTS.items()}
        train, validation, test = named["train"], named["validation"], named["test"]
        if train is None or (test or validation) is None:
            raise ValueError(f"{self.name} has the parts {', '.join(there)}: expected train and test (or validation)")
        if test is None:
            return {"train": train, "validation": train, "test": str(validation)}
        return {"train": train, "validation": validation or train, "test": test}

    def _whole(self) -> Any:
        try:
            import datasets  # here: an optional dependency
        except ImportError:
            raise SettingError("HuggingFace needs the package 'datasets': pip install 'llf_ray[huggingface]'") from None
        try:
            return datasets.load_dataset(self.name, self.configuration, revision=self.revision)
        except Exception as error:  # the library raises errors of many kinds, its own among them
            reason = " ".join(str(error).split())
            raise FileNotFoundError(f"the Hugging Face data set {self.name!r} could not be loaded: {reason}") from None


@dataclass(frozen=True)
class Rows:
    """Chosen rows of a table with a column of images."""

    source: Any
    chosen: Indices
    labels: Indices
    column: str
    channels: int
    name: str

    def image(self, index: int) -> Pixels:
        row = int(self.chosen[index])
        return as_pixels(self.source[row][self.column], self.channels, f"{self.name}, row {row}")
