"""Random values that depend on what they are for, not on who draws them or when.

Every stream is keyed by (run seed, operation, generation, parameter name) and drawn in full on the CPU generator, so a
draw is the same on any number of workers, at any ZeRO stage and after any restart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llf_ray.forget.groups import fan_in

__all__ = ["generator", "key_of", "uniform_fan_in"]


def key_of(*parts: object) -> int:
    """A 63-bit seed from any values that print exactly: numbers, texts."""
    digest = hashlib.blake2b("\x1f".join(repr(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by `key_of`."""
    return torch.Generator().manual_seed(key_of(*parts))


def uniform_fan_in(shape: Sequence[int], random: torch.Generator) -> Tensor:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the redraw of the KE, LLF and SEAL code, std 1/sqrt(3 fan_in).

    It is sqrt(6) smaller in std than the Kaiming-normal draw that those networks start from (Taha et al. 2021, code).
    """
    bound = 1 / math.sqrt(max(1, fan_in(shape)))
    return torch.empty(*shape).uniform_(-bound, bound, generator=random)
