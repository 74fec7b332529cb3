"""Parameters and multiply-adds against the published numbers, and the closed form against torch's counter."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from llf_ray.nn.cropr import (
    Budget,
    Cropping,
    EarlyCut,
    KeepRate,
    Lengths,
    Schedule,
    Steady,
    apply,
    block_costs,
    count,
    lengths,
    shape_of,
    strip,
)
from tests.nn.cropr.families import FAMILIES, made

LARGE = ("vit_large_patch16_224.mae", {"global_pool": "avg", "num_classes": 1000}, 224)
EVA = ("eva02_large_patch14_448", {"img_size": 448}, 448)
STEP = Steady(rate=50, after=(6, 12, 18), absorb=False)


def on_paper(name: str, **changed: Any) -> nn.Module:
    """A model that takes no memory."""
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, **changed).eval()


def parameters(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def test_parameters_of_the_published_classifier():
    model = on_paper(LARGE[0], **LARGE[1])
    assert parameters(model) == 304_326_632
    with torch.device("meta"):
        model = apply(model, Cropping(schedule=Steady(rate=8)))
    assert parameters(model) == 511_651_288
    assert parameters(model.blocks[0].cropr) == 9_423_848
    assert len(model.after) == 22


def test_parameters_of_the_published_segmenter():
    """Its decoder is a linear layer for each token behind a norm, as timm's head under mean pooling is."""
    backbone = {"img_size": 512, "patch_size": 16, "num_classes": 150}
    model = on_paper("eva02_large_patch14_224.mim_m38m", **backbone)
    assert parameters(model) == 304_393_302
    with torch.device("meta"):
        model = apply(model, Cropping(schedule=Steady(rate=40), queries="patches"))
    assert parameters(model) == 515_596_602
    assert parameters(model.blocks[0].cropr) == 9_600_150


def test_what_is_left_at_inference_is_a_vector_for_each_module():
    with torch.device("meta"):
        model = apply(on_paper(LARGE[0], **LARGE[1]), Cropping(schedule=Steady(rate=8)))
    stripped = strip(model)
    assert parameters(stripped) == 304_326_632
    added = set(stripped.state_dict()) - set(on_paper(LARGE[0], **LARGE[1]).state_dict())
    assert sum(stripped.state_dict()[name].numel() for name in added) == 22 * 1024


@pytest.mark.parametrize(
    ("network", "schedule", "fusion", "linear", "total"),
    [
        (LARGE, None, False, 59.6, 61.6),
        (LARGE, Steady(rate=8), True, 33.9, 34.7),
        (LARGE, Steady(rate=8), False, 31.6, 32.3),
        (LARGE, STEP, False, 37.0, 37.9),
        (LARGE, STEP, True, 38.9, 39.8),
        (EVA, None, False, 310.1, 361.7),
        (EVA, Steady(rate=40), True, 182.5, 204.0),
        (EVA, Steady(rate=40), False, 170.9, 190.3),
    ],
)
def test_the_published_multiply_adds_in_both_countings(
    network: tuple[str, dict[str, Any], int], schedule: Schedule | None, fusion: bool, linear: float, total: float
):
    """10^9 an image, by torch's counter and by the closed form."""
    name, settings, side = network
    model = on_paper(name, **settings)
    costs = block_costs(model)
    if schedule is None:
        closed = costs.of([model.patch_embed.num_patches + 1] * len(model.blocks))
    else:
        model = apply(model, Cropping(schedule=schedule, fusion=fusion, selector="random"))
        shape = shape_of(model)
        closed = costs.of(lengths(shape, model.after, model.kept))
    found = count(model, (1, 3, side, side))
    assert (found.linear, found.total) == (closed.linear, closed.total)
    assert found.linear / 1e9 == pytest.approx(linear, abs=0.051)
    assert found.total / 1e9 == pytest.approx(total, abs=0.051)


@pytest.mark.parametrize(("block", "share"), [(1, 0.764), (3, 0.698)])
def test_an_early_cut_of_80_percent_saves_what_was_computed(block, share):
    model = on_paper(EVA[0], **EVA[1])
    dense = count(model, (1, 3, 448, 448))
    with torch.device("meta"):
        model = apply(model, Cropping(schedule=EarlyCut(pruned=0.8, block=block), fusion=False))
    assert 1 - count(model, (1, 3, 448, 448)).linear / dense.linear == pytest.approx(share, abs=2e-3)


SCHEDULES = (Steady(rate=2), KeepRate(keep=0.6), EarlyCut(pruned=0.7), Lengths(tokens=(15, 15), after=(1, 2)))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("fusion", [True, False], ids=["fusion", "no fusion"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_closed_form_is_what_torchs_counter_counts(family, fusion, batch):
    """Scores of the modules included."""
    plain: Any = made(family)
    costs = block_costs(plain)
    size = (3, *plain.patch_embed.img_size)
    dense = costs.of([plain.patch_embed.num_patches + plain.num_prefix_tokens] * len(plain.blocks))
    found = count(plain, (batch, *size))
    assert (found.linear, found.attention) == (batch * dense.linear, batch * dense.attention)
    for schedule in SCHEDULES:
        model = apply(made(family), Cropping(schedule=schedule, fusion=fusion), outputs=2)
        closed = costs.pruned(shape_of(model), model.after, model.kept)
        found = count(strip(model), (batch, *size))
        assert (found.linear, found.attention) == (batch * closed.linear, batch * closed.attention), schedule


def test_counting_computes_nothing_and_changes_nothing():
    model = apply(made("AugReg"), Cropping(schedule=Steady(rate=2))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    count(model, (64, 3, 64, 64))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("selector", ["cropr", "random", "variance", "class_attention", "merge"])
def test_every_selector_can_be_counted_without_memory(selector):
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
        model = apply(model, Cropping(schedule=Steady(rate=8), selector=selector, fusion=False))
    real = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    real = apply(real, Cropping(schedule=Steady(rate=8), selector=selector, fusion=False))
    assert count(model, (2, 3, 224, 224)) == count(real, (2, 3, 224, 224))


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("fusion", [True, False], ids=["fusion", "no fusion"])
def test_a_budget_is_kept_by_the_smallest_rate(attention, fusion):
    plain = on_paper("vit_small_patch16_224")
    dense = count(plain, (1, 3, 224, 224))
    with torch.device("meta"):
        model = apply(plain, Cropping(schedule=Budget(flops=0.7, attention=attention), fusion=fusion))

    def share(rate: int) -> float:
        kept = Steady(rate=rate).kept(shape_of(model))
        with torch.device("meta"):
            other = on_paper("vit_small_patch16_224")
            other = strip(apply(other, Cropping(schedule=Steady(rate=rate), fusion=fusion)))
        assert other.kept == kept
        found = count(other, (1, 3, 224, 224))
        return found.total / dense.total if attention else found.linear / dense.linear

    rate = model.cropping.schedule.rate
    assert share(rate) <= 0.7 < share(rate - 1)
