"""The model that is shipped: one vector for each module, no aggregators, no auxiliary heads."""

from __future__ import annotations

import copy

from torch import nn

from llf_ray.config import SettingError
from llf_ray.nn.cropr.module import Cropr, Scorer
from llf_ray.nn.cropr.transformer import Cropped

__all__ = ["strip"]


def strip(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that chooses as ``model`` does and holds nothing that only training needs.

    Queries of each module are folded into one vector (`Cropr.direction`), so that scoring costs one product with it
    whatever the number of queries. ``model`` may hold the transformer somewhere inside, as dense tasks do.
    """
    copied = copy.deepcopy(model).eval()
    if not any(isinstance(module, Cropped) for module in copied.modules()):
        raise SettingError(f"strip: {type(model).__name__} holds no transformer that loses tokens")
    for module in copied.modules():
        if isinstance(module, Cropped):
            for block in module.blocks:
                if isinstance(getattr(block, "cropr", None), Cropr):
                    block.cropr = Scorer.of(block.cropr)
    return copied
