"""Token merging against its definition, pair by pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.nn.cropr import Cropping, EarlyCut, KeepRate, Steady, apply
from llf_ray.nn.cropr.merge import most_merged, paired
from tests.nn.cropr.families import GRID, made
from tests.nn.cropr.oracle import embedded

PATCHES = GRID**2


def slow_merged(keys: Tensor, tokens: Tensor, sizes: Tensor, number: int, prefix: int) -> tuple[Tensor, Tensor]:
    """One image: keys (heads, M, d), tokens (M, D), sizes (M,); its tokens and sizes with ``number`` merged away."""
    metric = keys.mean(0)[prefix:]
    even, odd = range(0, len(metric), 2), range(1, len(metric), 2)
    nearest = {}
    for a in even:
        likeness = {b: float(torch.cosine_similarity(metric[a], metric[b], dim=0)) for b in odd}
        best = max(likeness, key=lambda b: likeness[b])
        nearest[a] = (likeness[best], best)
    closest = sorted(even, key=lambda a: -nearest[a][0])
    gone = closest[:number]
    groups = {place: {place} for place in range(len(metric)) if place not in gone}
    for a in gone:
        groups[nearest[a][1]].add(a)
    places = closest[number:] + list(odd)
    rows, weights = [*tokens[:prefix]], [*sizes[:prefix]]
    for place in places:
        members = sorted(groups[place])
        weight = sum(sizes[prefix + member] for member in members)
        rows.append(sum(sizes[prefix + member] * tokens[prefix + member] for member in members) / weight)
        weights.append(weight)
    return torch.stack(rows), torch.stack(weights)


def in_order(rows: Tensor, sizes: Tensor) -> Tensor:
    """Sizes and tokens, sorted by the first number of each token: merging may permute them."""
    return torch.cat([sizes[:, None], rows], 1)[rows[:, 0].argsort()]


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("patches", [16, 17, 2])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_closest_pairs_become_their_weighted_means(prefix, patches, share):
    random = torch.Generator().manual_seed(patches)
    length = prefix + patches
    keys = torch.randn(3, 2, length, 4, generator=random, dtype=torch.float64)
    tokens = torch.randn(3, length, 6, generator=random, dtype=torch.float64)
    sizes = torch.randint(1, 5, (3, length), generator=random).double()
    number = int(share * most_merged(length, prefix))
    merged, weights = paired(keys, number, prefix).merged(tokens, sizes)
    assert merged.shape == (3, length - number, 6)
    for image in range(3):
        rows, masses = slow_merged(keys[image], tokens[image], sizes[image], number, prefix)
        torch.testing.assert_close(merged[image, :prefix], tokens[image, :prefix])
        found, wanted = (merged[image, prefix:], weights[image, prefix:]), (rows[prefix:], masses[prefix:])
        torch.testing.assert_close(in_order(*found), in_order(*wanted))
    torch.testing.assert_close(weights.sum(1), sizes.sum(1))


def slow_forward(model: Any, image: Tensor, targets: dict[int, int], proportional: bool) -> tuple[Tensor, Tensor]:
    """Class scores and sizes of one image, attention written out, (classes,) and (M,)."""
    prefix = model.num_prefix_tokens
    tokens = embedded(model, image[None])[0][0]
    sizes = torch.ones(len(tokens), dtype=tokens.dtype)
    alive = len(tokens) - prefix
    for number, block in enumerate(model.blocks, 1):
        attn, inner = block.attn, block.norm1(tokens)
        q, k, v = attn.qkv(inner).reshape(len(tokens), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
        q, k = attn.q_norm(q), attn.k_norm(k)
        logits = q @ k.mT / q.shape[-1] ** 0.5
        if proportional:
            logits = logits + sizes.log()
        mixed = attn.proj((logits.softmax(-1) @ v).transpose(0, 1).flatten(1))
        tokens = tokens + block.ls1(mixed)
        target = targets.get(number, alive)
        if target < alive:
            tokens, sizes = slow_merged(k, tokens, sizes, alive - target, prefix)
            alive = target
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    return model.forward_head(model.norm(tokens[None]))[0], sizes


@pytest.mark.parametrize("proportional", [True, False], ids=["proportional", "not proportional"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("family", ["AugReg", "DINOv2 with registers", "SigLIP", "qk-norm"])
def test_a_model_that_merges_equals_one_image_at_a_time(family, fused, proportional):
    cropping = Cropping(schedule=KeepRate(keep=0.7), selector="merge", fusion=False, proportional=proportional)
    model = apply(made(family), cropping)
    for block in model.blocks:
        block.attn.fused_attn = fused
    images = torch.randn(3, 3, *model.patch_embed.img_size, dtype=torch.float64)
    targets = dict(zip(model.after, model.kept, strict=True))
    assert model.kept[-1] < PATCHES
    with torch.no_grad():
        found = model(images)
        for number, image in enumerate(images):
            output, sizes = slow_forward(model, image, targets, proportional)
            torch.testing.assert_close(found[number], output, rtol=1e-9, atol=1e-9)
            assert sizes.sum() == PATCHES + model.num_prefix_tokens


def test_without_merging_it_is_timms_own():
    plain = made("AugReg")
    model = apply(made("AugReg"), Cropping(schedule=Steady(rate=0), selector="merge", fusion=False))
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images), rtol=1e-12, atol=1e-12)


def test_gradients_flow_through_merged_tokens_and_training_lowers_the_loss():
    cropping = Cropping(schedule=KeepRate(keep=0.6), selector="merge", fusion=False)
    model = apply(made("AugReg"), cropping).train()
    images, labels = torch.randn(8, 3, 64, 64, dtype=torch.float64), torch.arange(8) % 5
    images.requires_grad_()
    adam = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(images), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert all(value.grad is not None and value.grad.any() for value in model.parameters())
    assert images.grad is not None
    assert images.grad.flatten(1).any(1).all()
    assert losses[-1] < 0.5 * losses[0]


def test_a_merging_that_takes_more_than_half_is_refused():
    with pytest.raises(SettingError, match="12 of 16 patches behind block 1; one merging takes away at most half, 8"):
        apply(made("AugReg"), Cropping(schedule=EarlyCut(pruned=0.75), selector="merge", fusion=False))
    free: Any = apply(
        made("any image size"), Cropping(schedule=Steady(rate=6, after=(1,)), selector="merge", fusion=False)
    )
    with pytest.raises(SettingError, match="one merging takes away at most half"):
        free(torch.zeros(1, 3, 64, 32, dtype=torch.float64))


def test_merged_tokens_have_no_place_on_a_grid():
    model = apply(made("AugReg"), Cropping(schedule=Steady(rate=1), selector="merge", fusion=False))
    with pytest.raises(SettingError, match="no place of their own"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.float64), grid=True)


def test_merged_tokens_cannot_be_put_back():
    with pytest.raises(SettingError, match="fusion = False"):
        Cropping(selector="merge")
