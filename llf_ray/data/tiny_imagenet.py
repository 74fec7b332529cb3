"""Tiny-ImageNet-200 as ``tiny-imagenet-200.zip`` unpacks (Le and Yang 2015, Stanford CS 231N)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llf_ray.data.base import PATH, Role, check_settings, found, held_out, located
from llf_ray.data.files import Files, check_files, check_there, images_in
from llf_ray.data.lists import labelled, lines

__all__ = ["TinyImageNet"]


@dataclass(frozen=True, kw_only=True)
class TinyImageNet:
    """64x64 photographs of 200 classes: ``root/train/WNID/images/*.JPEG``, 500 a class, and ``root/val/images``
    with ``val_annotations.txt``, 50 a class.

    Classes are in the order of wnids.txt, named by words.txt. The official validation part is the test set,
    since the labels of the official test part were never published; validation is cut from train.
    """

    root: str = field(metadata=PATH)  # the folder with wnids.txt
    channels: int = 3
    validation: float = 0.1  # share of each class of train that is cut off
    seed: int = 0  # of the cut
    num_train: int | None = None  # at most this many training items, classes balanced
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)

    def classes(self) -> tuple[str, ...]:
        root = located(self.root)
        named = (line.partition("\t") for line in lines(root / "words.txt", "a WordNet number and its words a line"))
        words = {number: name for number, _, name in named}
        for number in self._numbers():
            if not words.get(number):
                raise ValueError(f"{root / 'words.txt'} has no words for {number}, which wnids.txt names")
        return tuple(words[number] for number in self._numbers())

    def load(self, role: Role) -> Files:
        files = self._tested() if role == "test" else self._trained()
        return files.picked(held_out(files.labels, role, self, cut_validation=role != "test"))

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image."""
        check_files(self)

    def _numbers(self) -> dict[str, int]:
        """The WordNet number of each class, and its label."""
        numbers = lines(located(self.root) / "wnids.txt", "the WordNet number of a class a line")
        return {number: label for label, number in enumerate(dict.fromkeys(numbers))}

    def _trained(self) -> Files:
        paths: list[Path] = []
        labels: list[int] = []
        for number, label in self._numbers().items():
            folder = located(self.root) / "train" / number / "images"
            inside = images_in(found(folder, "the training images of this class"))
            if not inside:
                raise ValueError(f"{folder} has no images")
            paths += inside
            labels += [label] * len(inside)
        return Files(paths, np.asarray(labels, dtype=np.int64), self.channels)

    def _tested(self) -> Files:
        folder = located(self.root) / "val"
        source = folder / "val_annotations.txt"
        annotations = [line.split("\t") for line in lines(source, "an image, its class and a box a line")]
        for annotation in annotations:
            if len(annotation) < 2:
                raise ValueError(f"{source}: the line {annotation[0]!r} has no class: expected tabs between its parts")
        paths = [folder / "images" / name for name, *_ in annotations]
        check_there(paths, source)
        return Files(paths, labelled((number for _, number, *_ in annotations), self._numbers(), source), self.channels)
