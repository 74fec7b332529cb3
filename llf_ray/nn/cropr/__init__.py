"""Token Cropr: vision transformers of timm that lose tokens (Bergner et al., arXiv:2412.00965).

What needs timm is imported when it is first asked for: timm takes seconds, and settings do without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llf_ray.nn.cropr.schedule import Budget, EarlyCut, KeepRate, Lengths, Schedule, Shape, Steady, places
from llf_ray.nn.cropr.settings import Cropping, CroprOptions

if TYPE_CHECKING:
    from llf_ray.nn.cropr.flops import BlockCosts, Count, block_costs, count, image_shape, lengths
    from llf_ray.nn.cropr.latency import rate_for_latency, relative_time
    from llf_ray.nn.cropr.module import Cropr, Scorer
    from llf_ray.nn.cropr.stripped import load_stripped, save_stripped, strip, traced
    from llf_ray.nn.cropr.transformer import Cropped, Seen, apply, module_names, refusal, shape_of

__all__ = [
    "BlockCosts",
    "Budget",
    "Count",
    "Cropped",
    "Cropping",
    "Cropr",
    "CroprOptions",
    "EarlyCut",
    "KeepRate",
    "Lengths",
    "Schedule",
    "Scorer",
    "Seen",
    "Shape",
    "Steady",
    "apply",
    "block_costs",
    "count",
    "image_shape",
    "lengths",
    "load_stripped",
    "module_names",
    "places",
    "rate_for_latency",
    "refusal",
    "relative_time",
    "save_stripped",
    "shape_of",
    "strip",
    "traced",
]

_LATE = {
    "flops": ("BlockCosts", "Count", "block_costs", "count", "image_shape", "lengths"),
    "latency": ("rate_for_latency", "relative_time"),
    "module": ("Cropr", "Scorer"),
    "stripped": ("load_stripped", "save_stripped", "strip", "traced"),
    "transformer": ("Cropped", "Seen", "apply", "module_names", "refusal", "shape_of"),
}


def __getattr__(name: str) -> Any:
    for file, names in _LATE.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
