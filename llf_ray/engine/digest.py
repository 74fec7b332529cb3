"""The 64-bit digest of weights: a sum over entries, so shards add up to it and the order does not matter."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["MODULUS", "digest_of"]

MODULUS = 1 << 64
_CHUNK = 1 << 16  # entries at a time: a few 8-byte buffers of this size stay in the processor's cache


def _signed(number: int) -> int:
    """A number modulo 2^64 as the signed integer that torch stores."""
    number %= MODULUS
    return number - MODULUS if number >= MODULUS >> 1 else number


_INDEX = _signed(0x9E3779B97F4A7C15)
_BITS = _signed(0xD1342543DE82EF95)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shifted(value: Tensor, by: int, out: Tensor) -> Tensor:
    """Logical shift to the right: torch's own keeps the sign."""
    torch.bitwise_right_shift(value, by, out=out)
    return out.bitwise_and_((1 << (64 - by)) - 1)


def _integers(values: Tensor) -> Tensor:
    """Entries as int64: bits of fp32 (to which shorter floats widen exactly) and of fp64, integers as they are."""
    if values.dtype == torch.float64:
        return values.view(torch.int64)
    if values.is_floating_point():
        return values.float().view(torch.int32).to(torch.int64)
    return values.to(torch.int64)


def digest_of(name: str, start: int, values: Tensor) -> int:
    """Digest of a 1-D stretch that begins at flat index ``start`` of the full tensor ``name``.

    Per entry splitmix64's finaliser (Steele et al. 2014, doi:10.1145/2660193.2660195) of a mix of name, index and
    bits, summed modulo 2^64.
    """
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    total = 0
    counter = torch.arange(min(_CHUNK, values.numel()), dtype=torch.int64, device=values.device) * _INDEX
    for begin in range(0, values.numel(), _CHUNK):
        mixed = _integers(values[begin : begin + _CHUNK]) * _BITS
        mixed ^= counter[: mixed.numel()] + _signed(key + (start + begin) * _INDEX)
        other = torch.empty_like(mixed)
        mixed ^= _shifted(mixed, 30, other)
        mixed *= _FIRST
        mixed ^= _shifted(mixed, 27, other)
        mixed *= _SECOND
        mixed ^= _shifted(mixed, 31, other)
        total += int(mixed.sum())
    return total % MODULUS
