"""Settings, the division of a batch, the price in bytes, and the digest against a slow definition of it."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llf_ray.config import SettingError
from llf_ray.engine.base import EngineSettings, Optim, bytes_per_worker, divide_batch
from llf_ray.engine.digest import digest_of
from llf_ray.engine.team import Team


@given(share=st.integers(1, 60), workers=st.integers(1, 8), accumulation=st.integers(1, 60))
def test_a_divided_batch_multiplies_back(share: int, workers: int, accumulation: int) -> None:
    batch = share * workers
    if share % accumulation:
        with pytest.raises(SettingError, match=f"accumulation = {accumulation}: must divide a worker's {share}"):
            divide_batch(EngineSettings(batch=batch, accumulation=accumulation), workers)
        return
    micro, number = divide_batch(EngineSettings(batch=batch, accumulation=accumulation), workers)
    assert micro * number * workers == batch
    assert number == accumulation
    assert divide_batch(EngineSettings(batch=batch, micro_batch=micro), workers) == (micro, number)


def test_a_batch_that_does_not_divide_names_its_neighbours() -> None:
    with pytest.raises(SettingError, match=r"batch = 50: 3 workers need a multiple of 3, for example 48 or 51"):
        divide_batch(EngineSettings(batch=50), 3)
    with pytest.raises(SettingError, match=r"micro_batch = 4: must divide a worker's 25 items \(1, 5, 25\)"):
        divide_batch(EngineSettings(batch=50, micro_batch=4), 2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Optim(lr=0.0),
        lambda: Optim(betas=(0.9, 1.0)),
        lambda: Optim(averaged=1.5),
        lambda: Optim(name="nesterov", momentum=0.0),
        lambda: EngineSettings(batch=0),
        lambda: EngineSettings(clip=0.0),
        lambda: EngineSettings(micro_batch=2, accumulation=2),
    ],
)
def test_impossible_settings_are_refused(wrong: object) -> None:
    with pytest.raises(SettingError):
        wrong()  # type: ignore[operator]


def test_bytes_per_worker_follow_the_stages() -> None:
    """ZeRO's own arithmetic (Rajbhandari et al. 2020, arXiv:1910.02054, section 3): 16 bytes a weight in mixed-
    precision Adam.
    """
    adam = Optim(name="adamw")
    totals = [
        bytes_per_worker(1_000_000, EngineSettings(stage=s, precision="bf16"), adam, 64).total for s in (0, 1, 2, 3)
    ]
    assert totals[0] == 16_000_000
    assert totals[1] == 4_000_000 + 12 * 15_625
    assert totals[2] == 2_000_000 + 14 * 15_625
    assert totals[3] == 16 * 15_625
    assert bytes_per_worker(1000, EngineSettings(), Optim(name="sgd"), 2).total == 12_000
    assert bytes_per_worker(1000, EngineSettings(), Optim(name="sgd", momentum=0.0, averaged=0.9), 2).total == 12_000


def slow_digest(name: str, values: list[float]) -> int:
    mask = 2**64 - 1
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    total = 0
    for index, value in enumerate(values):
        (bits,) = struct.unpack("<i", struct.pack("<f", value))
        mixed = (bits * 0xD1342543DE82EF95 & mask) ^ (key + index * 0x9E3779B97F4A7C15 & mask)
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
        total += mixed ^ mixed >> 31
    return total & mask


@given(values=st.lists(st.floats(width=32), max_size=40), cut=st.integers(0, 40))
def test_the_digest_is_a_sum_over_entries_whatever_the_cut(values: list[float], cut: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    parts = digest_of("a", 0, tensor[:cut]) + digest_of("a", min(cut, len(values)), tensor[cut:])
    assert parts % 2**64 == digest_of("a", 0, tensor) == slow_digest("a", tensor.tolist())


def test_the_digest_sees_every_change() -> None:
    values = torch.randn(100_000)
    swapped = values.clone()
    swapped[[5, 70_000]] = values[[70_000, 5]]
    negative = torch.zeros(3)
    negative[1] = -0.0
    assert digest_of("a", 0, values) != digest_of("a", 0, swapped)
    assert digest_of("a", 0, values) != digest_of("b", 0, values)
    assert digest_of("a", 0, values) != digest_of("a", 1, values)
    assert digest_of("a", 0, torch.zeros(3)) != digest_of("a", 0, negative)
    assert digest_of("a", 0, values.bfloat16()) == digest_of("a", 0, values.bfloat16().float())


def test_a_team_of_one_needs_no_process_group() -> None:
    team = Team.alone()
    assert team.share({"a": 1}) == {"a": 1}
    assert team.gather(3) == [3]
    values = torch.ones(2)
    assert team.total(values) is not values
    team.barrier()
    with pytest.raises(ValueError, match="rank = 2"):
        Team(2, 2, torch.device("cpu"))
