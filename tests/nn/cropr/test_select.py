"""The rivals choose what their names say, on the same schedule."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llf_ray.nn.cropr import Cropping, CroprOptions, EarlyCut, KeepRate, apply, module_names
from llf_ray.nn.cropr.select import attended, class_attention, draw, patch_variance, ranked
from tests.nn.cropr.families import GRID, made
from tests.nn.cropr.oracle import embedded

PATCHES = GRID**2


def network(selector: str, family: str = "AugReg", **changed: Any) -> Any:
    settings = {"schedule": EarlyCut(pruned=0.5), **changed}
    return apply(made(family), Cropping(selector=selector, **settings), outputs=2)


def pictures(number: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, 16 * GRID, 16 * GRID, generator=random, dtype=torch.float64)


def survivors(model: Any, images: Tensor) -> Tensor:
    """Which patches live on to the end, (B, patches)."""
    with torch.no_grad():
        return (model(images, detailed=True).depth == len(model.blocks)).flatten(1)


def test_non_salient_keeps_the_patches_that_cropr_cuts():
    model = network("cropr")
    opposite = copy.deepcopy(model)
    opposite.cropping = Cropping(schedule=EarlyCut(pruned=0.5), selector="non_salient")
    images = pictures(5)
    assert torch.equal(survivors(opposite, images), ~survivors(model, images)), "half of the patches each"


def test_rivals_without_an_auxiliary_task_add_no_parameter():
    for selector in ("random", "variance", "class_attention"):
        model = network(selector)
        assert module_names(model) == ()
        assert set(model.state_dict()) == set(made("AugReg").state_dict())
        assert model(pictures(2), detailed=True).auxiliary == ()


def test_random_scores_repeat_in_evaluation_and_differ_from_module_to_module():
    like = torch.zeros(3, 50, 8)
    assert torch.equal(draw(like, 1, training=False), draw(like, 1, training=False))
    assert not torch.equal(draw(like, 1, training=False), draw(like, 2, training=False))
    state = torch.get_rng_state()
    draw(like, 1, training=False)
    assert torch.equal(torch.get_rng_state(), state), "evaluation takes nothing from the ambient generator"


def test_random_scores_in_training_come_from_the_ambient_generator():
    like = torch.zeros(3, 50, 8)
    torch.manual_seed(4)
    first, second = draw(like, 1, training=True), draw(like, 1, training=True)
    torch.manual_seed(4)
    assert torch.equal(draw(like, 2, training=True), first)
    assert not torch.equal(first, second)


def test_random_pruning_takes_every_patch_equally_often():
    model = network("random").train()
    model.blocks[-1].eval()
    images = pictures(1).expand(400, -1, -1, -1)
    share = survivors(model, images).double().mean(0)
    assert share.min() > 0.35
    assert share.max() < 0.65
    assert share.mean() == 0.5


@pytest.mark.parametrize("grid", [(4, 4), (2, 8), (3, 5)])
def test_variance_is_that_of_each_patchs_pixels(grid):
    high, wide = grid
    images = torch.rand(2, 3, 6 * high, 7 * wide, generator=torch.Generator().manual_seed(0))
    cut = images.numpy().astype(np.float64).reshape(2, 3, high, 6, wide, 7).transpose(0, 2, 4, 1, 3, 5)
    wanted = cut.reshape(2, high * wide, -1).var(-1)
    np.testing.assert_allclose(patch_variance(images, grid).numpy(), wanted, rtol=1e-4, atol=1e-7)


def test_flat_patches_go_first():
    images = pictures(3)
    flat = torch.zeros(PATCHES, dtype=torch.bool)
    flat[[1, 2, 5, 7, 8, 11, 12, 14]] = True
    soft = flat.view(GRID, GRID).repeat_interleave(16, 0).repeat_interleave(16, 1)
    images = torch.where(soft, images * 0.01 + 3.0, images)
    for family in ("AugReg", "EVA-02"):
        size = made(family).patch_embed.img_size
        shown = torch.nn.functional.interpolate(images, size=size, mode="nearest")
        assert torch.equal(survivors(network("variance", family), shown), ~flat.expand(3, -1))


@pytest.mark.parametrize(
    "family", ["AugReg", "DINOv2 with registers", "qk-norm", "EVA-02", "attention and MLP side by side"]
)
def test_class_attention_is_the_attention_row_of_the_class_token(family):
    """By hand: the block's attention without the fused kernel, whose softmax is caught."""
    model: Any = made(family)
    tokens, table, _ = embedded(model, torch.randn(2, 3, *model.patch_embed.img_size, dtype=torch.float64))
    block = model.blocks[0]
    given = {} if table is None else {"rope": table}
    attention = getattr(block, "attn", block)
    caught: list[Tensor] = []

    def catch(module: Any, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0])

    attention.fused_attn = False
    attention.attn_drop.register_forward_pre_hook(catch)  # what it is given are the weights
    with torch.no_grad():
        plain = block(tokens, **given)
        attention.fused_attn = True
        with attended(attention) as found:
            torch.testing.assert_close(block(tokens, **given), plain, rtol=1e-9, atol=1e-9)
    prefix = model.num_prefix_tokens
    wanted = caught[0].mean(1)[:, 0, prefix:]
    torch.testing.assert_close(class_attention(found, prefix), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fused", [True, False])
def test_class_attention_keeps_what_the_class_token_attends_to(fused):
    model = network("class_attention", schedule=EarlyCut(pruned=0.5))
    plain: Any = made("AugReg")
    images = pictures(3)
    with torch.no_grad():
        block = plain.blocks[0]
        tokens = block.norm1(embedded(plain, images)[0])
        heads = block.attn.num_heads
        q, k, _ = block.attn.qkv(tokens).reshape(3, PATCHES + 1, 3, heads, -1).permute(2, 0, 3, 1, 4)
        row = (q[:, :, 0:1] @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)[:, 0, 1:]
    wanted = row.argsort(1, descending=True)[:, : PATCHES // 2].sort(1).values
    for each in model.blocks:
        each.attn.fused_attn = fused
    found = survivors(model, images).nonzero()[:, 1].view(3, -1)
    assert torch.equal(found, wanted)
    assert all(each.attn.fused_attn is fused for each in model.blocks), "left as it was"


def test_what_is_not_kept_is_left_over():
    scores = torch.rand(4, 19, generator=torch.Generator().manual_seed(0))
    kept, others = ranked(scores, 7, both=True)
    assert torch.equal(torch.cat([kept, others], 1).sort(1).values, torch.arange(19).expand(4, -1))
    assert scores.gather(1, kept).min(1).values.ge(scores.gather(1, others).max(1).values).all()
    alone, nothing = ranked(scores, 7, both=False)
    assert nothing is None
    assert torch.equal(alone.sort(1).values, kept.sort(1).values)


@pytest.mark.parametrize("selector", ["random", "variance", "class_attention", "cropr", "non_salient"])
@pytest.mark.parametrize("family", ["AugReg", "DINOv2 with registers", "EVA-02", "rotary, mixed"])
def test_every_selector_keeps_the_same_numbers_in_every_kind_of_model(selector, family):
    model = network(selector, family, schedule=KeepRate(keep=0.7))
    images = torch.randn(2, 3, *model.patch_embed.img_size, dtype=torch.float64)
    with torch.no_grad():
        depth = model(images, detailed=True).depth.flatten(1)
        assert torch.equal(model(images), model(images, detailed=True).output)
    for block, kept in zip(model.after, model.kept, strict=True):
        assert (depth > block).sum(1).tolist() == [kept, kept]


def test_drawing_kept_tokens_happens_in_training_alone():
    model = network("cropr", options=CroprOptions(sampled=100.0)).train()
    images = pictures(1).expand(200, -1, -1, -1)
    drawn = survivors(model, images).double().mean(0)
    assert drawn.max() < 0.7, "so hot that nearly nothing but chance is left"
    assert drawn.min() > 0.3
    fixed = survivors(model.eval(), images)
    assert torch.equal(fixed, fixed[:1].expand(200, -1))
    ranked_cold = copy.deepcopy(model).train()
    ranked_cold.cropping = Cropping(schedule=EarlyCut(pruned=0.5), options=CroprOptions(sampled=1e-9))
    assert torch.equal(survivors(ranked_cold, images), fixed)
