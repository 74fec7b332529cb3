"""Token Cropr: vision transformers of timm that lose tokens (Bergner et al., arXiv:2412.00965)."""

from llf_ray.nn.cropr.flops import BlockCosts, Count, block_costs, count, lengths
from llf_ray.nn.cropr.module import Cropr, CroprOptions, Scorer
from llf_ray.nn.cropr.schedule import Budget, EarlyCut, KeepRate, Lengths, Schedule, Shape, Steady, places
from llf_ray.nn.cropr.stripped import load_stripped, save_stripped, strip, traced
from llf_ray.nn.cropr.transformer import Cropped, Cropping, Seen, apply, module_names, refusal, shape_of

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
    "lengths",
    "load_stripped",
    "module_names",
    "places",
    "refusal",
    "save_stripped",
    "shape_of",
    "strip",
    "traced",
]
