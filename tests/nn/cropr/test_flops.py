"""Parameters and multiply-adds against the published numbers, and the closed form against torch's counter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

from llf_ray.nn.cropr import (
    Budget,
    Count,
    Cropping,
    EarlyCut,
    KeepRate,
    Lengths,
    Shape,
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
    ("network", "dense", "table"),
    [
        (
            LARGE,
            (59.6, 61.6),
            {
                (Steady(rate=8), True): (33.9, 34.7),
                (Steady(rate=8), False): (31.6, 32.3),
                (STEP, False): (37.0, 37.9),
                (STEP, True): (38.9, 39.8),
            },
        ),
        (
            EVA,
            (310.1, 361.7),
            {(Steady(rate=40), True): (182.5, 204.0), (Steady(rate=40), False): (170.9, 190.3)},
        ),
    ],
    ids=["ViT-L", "EVA-02-L"],
)
def test_the_published_multiply_adds_in_both_countings(network, dense, table):
    """10^9 an image, linear layers alone and with attention, by torch's counter and by the closed form."""
    name, settings, side = network
    plain = on_paper(name, **settings)
    costs = block_costs(plain)

    def agree(found: Count, closed: Count, published: tuple[float, float]) -> None:
        assert (found.linear, found.attention) == (closed.linear, closed.attention)
        assert (found.linear / 1e9, found.total / 1e9) == pytest.approx(published, abs=0.051)

    agree(count(plain, (1, 3, side, side)), costs.of([plain.patch_embed.num_patches + 1] * len(plain.blocks)), dense)
    for (schedule, fusion), published in table.items():
        model = apply(copy.deepcopy(plain), Cropping(schedule=schedule, fusion=fusion, selector="random"))
        closed = costs.of(lengths(shape_of(model), model.after, model.kept))
        agree(count(model, (1, 3, side, side)), closed, published)


def test_an_early_cut_of_80_percent_saves_what_was_computed():
    model: Any = on_paper(EVA[0], **EVA[1])
    costs, dense = block_costs(model), [1025] * 24
    shape = Shape(patches=1024, prefix=1, blocks=24, fusion=False)
    for block, share in ((1, 0.764), (3, 0.698)):
        kept = EarlyCut(pruned=0.8, block=block).kept(shape)
        assert 1 - costs.pruned(shape, (block,), kept).linear / costs.of(dense).linear == pytest.approx(share, abs=2e-3)


SCHEDULES = (Steady(rate=2), KeepRate(keep=0.6), EarlyCut(pruned=0.7), Lengths(tokens=(15, 15), after=(1, 2)))
ALIKE = {"DeiT", "DeiT III", "MAE", "DINO", "DINOv2", "CLIP", "CLIP, quick GELU", "InternViT", "RADIO", "FlexiViT"} | {
    family for family in FAMILIES if family.startswith(("DINOv3", "EVA", "rotary, mixed", "rotary with", "MAE, "))
}


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=pytest.mark.slow) if family in ALIKE else family for family in FAMILIES]
)
def test_the_closed_form_is_what_torchs_counter_counts(family):
    """Of the dense model and of the pruned one, scores of the modules included."""
    plain: Any = made(family)
    costs = block_costs(plain)
    size = (3, *plain.patch_embed.img_size)
    dense = costs.of([plain.patch_embed.num_patches + plain.num_prefix_tokens] * len(plain.blocks))
    found = count(plain, (3, *size))
    assert (found.linear, found.attention) == (3 * dense.linear, 3 * dense.attention)
    model = strip(apply(plain, Cropping(schedule=KeepRate(keep=0.6)), outputs=2))
    closed = costs.pruned(shape_of(model), model.after, model.kept)
    found = count(model, (3, *size))
    assert (found.linear, found.attention) == (3 * closed.linear, 3 * closed.attention)


@pytest.mark.parametrize("fusion", [True, False], ids=["fusion", "no fusion"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_closed_form_holds_under_every_schedule(schedule, fusion):
    plain: Any = made("AugReg")
    costs = block_costs(plain)
    model = strip(apply(plain, Cropping(schedule=schedule, fusion=fusion), outputs=2))
    closed = costs.pruned(shape_of(model), model.after, model.kept)
    found = count(model, (1, 3, 64, 64))
    assert (found.linear, found.attention) == (closed.linear, closed.attention)


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
    cropping = Cropping(schedule=Steady(rate=2), selector=selector, fusion=False)
    with torch.device("meta"):
        model = apply(timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=4, img_size=64), cropping)
    real = apply(made("AugReg", embed_dim=192, num_classes=1000), cropping)
    assert count(model, (2, 3, 64, 64)) == count(real, (2, 3, 64, 64))


@pytest.mark.parametrize(("attention", "fusion"), [(True, True), (False, False)])
def test_a_budget_is_kept_by_the_smallest_rate(attention, fusion):
    def network() -> nn.Module:
        return on_paper("vit_small_patch16_224", depth=5)

    def share(rate: int) -> float:
        with torch.device("meta"):
            found = count(
                strip(apply(network(), Cropping(schedule=Steady(rate=rate), fusion=fusion))), (1, 3, 224, 224)
            )
        return found.total / dense.total if attention else found.linear / dense.linear

    dense = count(network(), (1, 3, 224, 224))
    with torch.device("meta"):
        model = apply(network(), Cropping(schedule=Budget(flops=0.7, attention=attention), fusion=fusion))
    rate = model.cropping.schedule.rate
    assert share(rate) <= 0.7 < share(rate - 1)
