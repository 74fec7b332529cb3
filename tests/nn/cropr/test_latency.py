"""The rate for a share of the dense model's time: found by halves, and by a real clock."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llf_ray.config import SettingError
from llf_ray.nn.cropr import Cropping, Cropr, EarlyCut, Steady, apply, latency, rate_for_latency, relative_time
from tests.nn.cropr.families import made


def network(size: int = 128, width: int = 48, **changed: Any) -> Any:
    settings = {"schedule": Steady(rate=1), "fusion": False, **changed}
    return apply(made("AugReg", img_size=size, embed_dim=width), Cropping(**settings), outputs=2).float()


def proportional(model: Any, kept: tuple[int, ...], other: tuple[int, ...], **_: Any) -> float:
    """A machine whose time is the number of tokens."""
    return (64 + sum(kept)) / (64 + sum(other))


@pytest.mark.parametrize("share", [1.0, 0.9, 0.7, 0.5, 0.45])
@pytest.mark.parametrize(
    "schedule", [Steady(rate=1), Steady(rate=1, after=(1, 3)), Steady(rate=1, multiple=8), EarlyCut(block=2)]
)
def test_the_smallest_rate_that_is_fast_enough(monkeypatch, schedule, share):
    monkeypatch.setattr(latency, "relative_time", proportional)
    model = network(schedule=schedule)

    def taken(rate: int) -> float:
        like = schedule if isinstance(schedule, Steady) else Steady(rate=1, after=schedule.after)
        kept = Steady(rate=rate, after=like.after, multiple=like.multiple).kept(model._shape(model.grid))
        return proportional(model, kept, (64,) * len(kept))

    rates = range(65)
    enough = []
    for rate in rates:
        try:
            if taken(rate) <= share:
                enough.append(rate)
        except SettingError:
            break
    if not enough:
        with pytest.raises(SettingError, match="cannot be reached at batch 1 on cpu"):
            rate_for_latency(model, share)
        return
    found = rate_for_latency(model, share)
    assert found.rate == enough[0]
    assert found.after == schedule.after
    assert found.multiple == schedule.multiple


def test_a_real_clock_finds_a_rate_that_is_fast_enough_and_leaves_the_model_alone():
    model = network(size=256, width=192).train()
    found = rate_for_latency(model, 0.75, rounds=5)
    assert 0 < found.rate <= 84
    shape = model._shape(model.grid)
    fast = relative_time(model.eval(), found.kept(shape), (256, 256, 256), rounds=9)
    assert fast < 0.9, "of a noisy machine"
    assert all(isinstance(model.blocks[number].cropr, Cropr) for number in range(3))
    assert torch.is_grad_enabled()


def test_time_relative_to_itself_is_one():
    assert relative_time(network().eval(), (64, 64, 64), (64, 64, 64), rounds=1) == 1.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"share": 0.0}, "share"), ({"share": 1.5}, "share"), ({"share": 0.5, "batch": 0}, "batch")],
)
def test_bad_settings_say_what_is_wrong(settings, words):
    with pytest.raises(SettingError, match=words):
        rate_for_latency(network(), **settings)
