"""The largest magnitudes by counting are those of a stable sort, however tensors are divided."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llf_ray.config import SettingError
from llf_ray.forget import largest as module
from llf_ray.forget.edit import Whole
from llf_ray.forget.largest import largest

SMALLEST = struct.unpack("f", b"\1\0\0\0")[0]  # a denormal, as are the next
ODD = (0.0, -0.0, SMALLEST, -SMALLEST, 5 * SMALLEST, 1e-38, 1.0, -1.0, 1.0000001, 2.0, -2.0, 3e38, -3e38, 0.1, -0.1)


class Split:
    """Tensors in parts, as ranks would hold them, and how many bytes their answers took."""

    def __init__(self, values: Mapping[str, Tensor], cuts: Sequence[int]) -> None:
        self.values, self.cuts, self.moved = values, cuts, 0

    def tally(self, names: Sequence[str], count: Callable[[str, int, Tensor], Tensor]) -> Tensor:
        total = count(names[0], 0, torch.empty(0))
        for name in names:
            flat = self.values[name].reshape(-1)
            places = sorted({0, len(flat), *(cut for cut in self.cuts if cut < len(flat))})
            for start, stop in pairwise(places):
                total = total + count(name, start, flat[start:stop])
        self.moved += total.numel() * total.element_size()
        return total

    def where(self, name: str, test: Callable[[Tensor], Tensor]) -> Tensor:
        value = self.values[name]
        self.moved += value.numel()
        return torch.cat([test(part) for part in value.reshape(-1).split(3)]).view(value.shape)


def by_sorting(values: Mapping[str, Tensor], keep: float, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All magnitudes in one row, dead ones last, sorted from the largest on; ties stay in order."""
    sizes = torch.cat([value.double().abs().reshape(-1) for value in values.values()])
    alive = torch.cat([live[name].reshape(-1) for name in values])
    number = int(alive.sum()) - math.ceil(round((1 - keep) * int(alive.sum()), 6))
    order = torch.argsort(torch.where(alive, sizes, torch.full_like(sizes, -1)), descending=True, stable=True)
    kept = torch.zeros_like(alive)
    kept[order[:number]] = True
    parts = kept.split([value.numel() for value in values.values()])
    return {name: part.view(values[name].shape) for name, part in zip(values, parts, strict=True)}


WEIGHT = st.sampled_from(ODD) | st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.lists(WEIGHT, min_size=1, max_size=20), min_size=1, max_size=4),
    keep=st.floats(0, 1),
    cuts=st.lists(st.integers(1, 19), max_size=3),
    seed=st.integers(0, 99),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
)
def test_counting_equals_a_stable_sort(
    parts: list[list[float]], keep: float, cuts: list[int], seed: int, share: float
) -> None:
    values = {f"w{place}": torch.tensor(part) for place, part in enumerate(parts)}
    random = torch.Generator().manual_seed(seed)
    live = {name: torch.rand(value.shape, generator=random) < share for name, value in values.items()}
    wanted = by_sorting(values, keep, live)
    for shards in (Whole(values), Split(values, cuts)):
        found = largest(shards, list(values), keep, live.__getitem__)
        assert {n: m.tolist() for n, m in found.items()} == {n: m.tolist() for n, m in wanted.items()}


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.8, 1.0])
def test_shapes_scalars_and_stretches_do_not_matter(keep: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRETCH", 100)
    random = torch.Generator().manual_seed(0)
    values = {
        "conv": torch.randn(16, 3, 3, 3, generator=random),
        "scale": torch.tensor(0.5),
        "transposed": torch.randn(40, 30, generator=random).half().float().t(),  # many ties, rows that are not dense
    }
    everything = {name: torch.ones_like(value, dtype=torch.bool) for name, value in values.items()}
    found = largest(Split(values, (7, 500)), list(values), keep, lambda name: None)
    wanted = by_sorting(values, keep, everything)
    assert all(torch.equal(found[name], wanted[name]) for name in values)


def test_ties_go_to_earlier_tensors_and_lower_indices() -> None:
    values = {"a": torch.ones(3), "b": -torch.ones(4), "c": torch.tensor([2.0, 1.0])}
    found = largest(Whole(values), list(values), 6 / 9, lambda name: None)
    assert {name: mask.int().tolist() for name, mask in found.items()} == {
        "a": [1, 1, 1],
        "b": [1, 1, 0, 0],
        "c": [1, 0],
    }


@pytest.mark.parametrize("wrong", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("live", [True, False])
def test_what_is_not_finite_is_refused_also_where_it_is_dead(wrong: float, live: bool) -> None:
    values = {"a": torch.tensor([1.0, wrong, 2.0])}
    with pytest.raises(SettingError, match="not finite"):
        largest(Whole(values), ["a"], 0.5, lambda name: torch.tensor([True, live, True]))


def test_a_threshold_moves_histograms_and_masks_and_no_weights() -> None:
    values = {"a": torch.randn(300_000), "b": torch.randn(200_000)}
    shards = Split(values, (1000,))
    largest(shards, ["a", "b"], 0.8, lambda name: None)
    assert shards.moved < 8 * ((1 << 16) + (1 << 15) + 2 + 2) + 500_000 + 1
