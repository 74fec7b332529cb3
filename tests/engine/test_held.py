"""Entries that are held at zero, where the contract's small network does not reach."""

from __future__ import annotations

import math

import pytest
import torch

from llf_ray.engine.base import EngineSettings
from llf_ray.engine.local import LocalEngine
from tests.engine.contract import ADAMW, GROUPS, SGD, items, loss, net


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=lambda optim: optim.name)
def test_held_entries_are_zero_in_every_layout_and_copy(optim: object, precision: str) -> None:
    """Masters, the copies that the network computes with, and moments; live ones are those of rows that are dense."""
    found = []
    for channels_last in (False, True):
        settings = EngineSettings(batch=8, precision=precision, channels_last=channels_last)  # type: ignore[arg-type]
        engine = LocalEngine(net(), GROUPS, optim, settings)  # type: ignore[arg-type]
        mask = torch.rand(7, 3, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
        engine.hold_at_zero({"conv.weight": mask})
        for number in range(3):
            engine.step([items(number, 0)], loss)
            assert bool((engine.read("conv.weight")[~mask] == 0).all())
            assert bool((dict(engine.module.named_parameters())["conv.weight"][~mask] == 0).all())
            assert all(bool((value[~mask] == 0).all()) for value in engine.moments("conv.weight").values())
            assert bool((engine.read("conv.weight")[mask] != 0).all())
        engine.verify()
        found.append(engine.read("conv.weight"))
    torch.testing.assert_close(found[0], found[1], rtol=2e-2, atol=1e-2 if precision == "bf16" else 1e-5)


def test_what_is_held_is_plus_zero_whatever_was_there() -> None:
    engine = LocalEngine(net(), GROUPS, SGD, EngineSettings(batch=8))
    odd = torch.tensor([math.nan, -math.nan, math.inf, -0.0, -1.0, 1e-42]).repeat(32)[:189].view(7, 3, 3, 3)
    engine.write("conv.weight", odd)
    engine.hold_at_zero({"conv.weight": torch.zeros(7, 3, 3, 3, dtype=torch.bool)})
    assert not bool(engine.read("conv.weight").view(torch.int32).any())
    engine.verify()
    engine.module.conv.weight.data[0, 0, 0, 0] = 1.0  # type: ignore[union-attr,index]
    with pytest.raises(RuntimeError, match="held at zero are not zero"):
        engine.verify()
