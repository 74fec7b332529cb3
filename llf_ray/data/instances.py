"""What data sets of objects in images offer, and masks as boxes and as text."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llf_ray.data.base import Pixels, Role
from llf_ray.data.order import Indices

__all__ = [
    "Boxes",
    "InstanceData",
    "Instances",
    "Masks",
    "Scenes",
    "boxes_around",
    "packed",
]

Boxes = NDArray[np.float32]  # (objects, 4): x0, y0, x1, y1 in pixels, x1 and y1 just outside
Masks = NDArray[np.bool_]  # (objects, height, width)


@dataclass(frozen=True, eq=False)
class Instances:
    """The objects of one image, in its own pixels.

    ``labels`` (objects,) are classes from 0. ``crowd`` marks regions of many objects that nobody told apart: nothing is
    learned from them, and what is found inside one counts neither for nor against. ``area`` is the annotator's, in
    pixels; small, medium and large objects are told by it.
    """

    boxes: Boxes
    labels: Indices
    masks: Masks
    crowd: NDArray[np.bool_]
    area: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def picked(self, chosen: NDArray[Any]) -> Instances:
        """The objects at these positions."""
        return Instances(
            self.boxes[chosen], self.labels[chosen], self.masks[chosen], self.crowd[chosen], self.area[chosen]
        )

    @classmethod
    def of_masks(cls, masks: Masks, labels: Indices) -> Instances:
        """Objects that are told apart in every pixel: boxes and areas are those of the masks."""
        area = masks.reshape(len(masks), masks.shape[1] * masks.shape[2]).sum(1).astype(np.float32)
        return cls(boxes_around(masks), labels, masks, np.zeros(len(masks), dtype=bool), area)


class Scenes(Protocol):
    """The images of one role, with the objects in each."""

    def __len__(self) -> int: ...

    def scene(self, index: int) -> tuple[Pixels, Instances]:
        """One image and its objects; a broken file is a ValueError that names it."""
        ...

    def labels_in(self, index: int) -> Indices:
        """The classes of one image's objects, crowds left out, without a look at its pixels."""
        ...


class InstanceData(Hashable, Protocol):
    """Settings that say which data; reading happens in the methods. A ``check()`` looks at each file before a run."""

    @property
    def channels(self) -> int: ...

    def classes(self) -> tuple[str, ...]:
        """Names of the classes; label i is the i-th."""
        ...

    def load(self, role: Role) -> Scenes:
        """The images of a role, always in the same order. FileNotFoundError or ValueError, in one line, where they
        cannot be had.
        """
        ...


def boxes_around(masks: Masks) -> Boxes:
    """The box around each mask; zeros around an empty one."""
    if not len(masks):
        return np.zeros((0, 4), dtype=np.float32)
    edges = []
    for axis, length in ((1, masks.shape[2]), (2, masks.shape[1])):
        along = np.asarray(masks.any(axis))
        low = along.argmax(1)
        high = length - along[:, ::-1].argmax(1)
        edges.append((low, np.where(along.any(1), high, low)))
    (x0, x1), (y0, y1) = edges
    return np.stack([x0, y0, x1, y1], 1).astype(np.float32)


def packed(masks: Masks) -> list[dict[str, Any]]:
    """Masks as COCO's run lengths, a few hundred bytes each: what ranks send one another."""
    from pycocotools import mask as coder  # here: most runs have no masks

    return [coder.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
