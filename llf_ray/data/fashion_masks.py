"""The bundled images with masks: pieces of clothing on photographs, and which pixels they cover."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llf_ray.data.base import Role
from llf_ray.data.masks import MaskStack
from llf_ray.data.photographs import FashionOnPhotographs

__all__ = ["FashionMasks"]


@dataclass(frozen=True, kw_only=True)
class FashionMasks:
    """The pictures of `FashionOnPhotographs`; label 0 is the photograph, labels 1 to 10 are the kinds of clothing.

    A pixel is clothing where the item covers at least half of the photograph, as `blend` has it: a dark spot in an item
    through which the photograph shows is photograph. ``kinds=False`` asks only whether there is clothing.
    """

    pictures: FashionOnPhotographs = FashionOnPhotographs()
    kinds: bool = True

    @property
    def channels(self) -> int:
        return self.pictures.channels

    def classes(self) -> tuple[str, ...]:
        return ("photograph", *self.pictures.classes()) if self.kinds else ("photograph", "clothing")

    def load(self, role: Role) -> MaskStack:
        stack, opaque = self.pictures.layered(role)
        kind = stack.labels + 1 if self.kinds else np.ones_like(stack.labels)
        return MaskStack(stack.images, (opaque * kind[:, None, None]).astype(np.uint8))
