"""Wrong labels on purpose, to see what a network does with examples that it can only learn by heart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llf_ray.data.base import Items, Pixels, Stack
from llf_ray.data.order import Indices, below, uniform

__all__ = ["Relabelled", "drawn_labels", "relabelled"]

_MISLABEL = 7  # the word that keeps this file's streams apart from other users of the same seed
_WHICH, _LABEL = range(2)


@dataclass(frozen=True, eq=False)
class Relabelled:
    """Items with other labels."""

    items: Items
    labels: Indices

    def image(self, index: int) -> Pixels:
        return self.items.image(index)


def drawn_labels(labels: Indices, num_classes: int, share: float, seed: int) -> tuple[Indices, NDArray[np.bool_]]:
    """Labels of which each is replaced with probability ``share`` by a uniform draw, and which were, both (items,).

    A draw may hit the true class, so of what is replaced about 1 in ``num_classes`` is right by accident, as in the
    code of Zhou et al. 2022 (arXiv:2202.00155). An item's draw depends on ``seed`` and its place alone.
    """
    places = np.arange(len(labels))
    replaced = uniform((_MISLABEL, seed, _WHICH), places) < share
    drawn = below(num_classes, (_MISLABEL, seed, _LABEL), places)
    return np.where(replaced, drawn, labels), replaced


def relabelled(items: Items, labels: Indices) -> Items:
    """The items with these labels; a stack stays one."""
    return replace(items, labels=labels) if isinstance(items, Stack) else Relabelled(items, labels)
