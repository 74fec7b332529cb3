"""Sample order and keyed randomness: pure functions of (seed, generation, epoch, sample), so no loader has
state to save.

All randomness of the data comes from `bits`, a counter-based generator: the value for a sample depends on the
key and the sample's number alone, never on what was drawn before it, the number of workers or NumPy's
version.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Draw", "Indices", "below", "bits", "order", "share_of", "uniform"]

Indices = NDArray[np.int64]
Words = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ORDER, _ANY_GENERATION = (
    1,
    -1,
)  # words that keep the streams of this file apart from other users of the same seed


@dataclass(frozen=True, eq=False)
class Draw:
    """One micro-batch to be read: which samples, and the key of their augmentation (None: no augmentation)."""

    indices: Indices
    key: tuple[int, ...] | None = None  # (seed, generation, epoch)


def bits(key: tuple[int, ...], counters: Indices | Words) -> Words:
    """64 random bits for each counter: splitmix64's finaliser (Steele et al. 2014, OOPSLA) over key words and
    counter.
    """
    with np.errstate(over="ignore"):
        state: Words | np.uint64 = np.uint64(len(key))
        for word in key:
            state = _mixed(state + _GOLDEN + np.uint64(word % 2**64))
        return np.asarray(_mixed(_mixed(counters.astype(np.uint64) + _GOLDEN) ^ state))


def _mixed(words: Words | np.uint64) -> Words | np.uint64:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def below(limit: int | Indices, key: tuple[int, ...], counters: Indices) -> Indices:
    """A whole number in [0, limit) for each counter; ``limit`` (< 2^31) may differ from counter to counter."""
    scaled = (bits(key, counters) >> np.uint64(32)) * np.asarray(limit).astype(np.uint64)
    return (scaled >> np.uint64(32)).astype(np.int64)


def uniform(key: tuple[int, ...], counters: Indices) -> NDArray[np.float64]:
    """A number in [0, 1) for each counter."""
    return (bits(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def order(num_items: int, seed: int, generation: int | None, epoch: int) -> Indices:
    """The order of an epoch: a permutation of ``range(num_items)``; generation None: the same in every
    generation.
    """
    key = (_ORDER, seed, _ANY_GENERATION if generation is None else generation, epoch)
    return np.argsort(bits(key, np.arange(num_items)), kind="stable").astype(np.int64)


def share_of(batch: Indices, rank: int, size: int, micro: int) -> list[Indices]:
    """This rank's contiguous share of a global batch, in micro-batches of at most ``micro`` samples.

    The shares of all ranks are the batch, in order; they are equally long where ``size`` divides it.
    """
    if not 0 <= rank < size or micro < 1:
        raise ValueError(f"rank {rank} of {size} with micro-batches of {micro}: needs 0 <= rank < size and micro >= 1")
    share = batch[rank * len(batch) // size : (rank + 1) * len(batch) // size]
    return [share[start : start + micro] for start in range(0, len(share), micro)]
