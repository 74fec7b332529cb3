"""A pruned transformer is what the paper says, token for token, in every family; without pruning it is timm's own."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.nn.cropr import (
    Budget,
    Cropping,
    CroprOptions,
    EarlyCut,
    KeepRate,
    Lengths,
    Scorer,
    Steady,
    apply,
    image_shape,
    module_names,
    refusal,
    shape_of,
    strip,
)
from tests.nn.cropr.families import FAMILIES, GRID, ROTARY, made
from tests.nn.cropr.oracle import cropped

PATCHES = GRID**2
SOME = ("AugReg", "DeiT distilled", "DINOv2 with registers", "SigLIP", "EVA-02", "rotary, mixed", "DINOv3")


def pictures(model: Any, number: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(number, 3, *model.patch_embed.img_size, generator=random, dtype=torch.float64)


def pruned(family: str, cropping: Cropping, **changed: Any) -> Any:
    """A small model of a family with modules whose weights are all noise."""
    model = apply(made(family, **changed), cropping, outputs=3)
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name in module_names(model):
            for value in model.get_submodule(name).parameters():
                value.copy_(torch.randn(value.shape, generator=random) * 0.3)
    return model


# ---------------------------------------------------------------------------------------------------- rate 0 is timm's


@pytest.mark.parametrize("fusion", [True, False], ids=["fusion", "no fusion"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_pruning_every_family_is_timms_own(family, fusion):
    plain = made(family)
    model = apply(copy.deepcopy(plain), Cropping(schedule=Steady(rate=0), fusion=fusion), outputs=2)
    images = pictures(plain, 2)
    with torch.no_grad():
        assert torch.equal(model(images), plain(images))
        assert torch.equal(model(images, detailed=True).output, plain(images))
        assert torch.equal(model.forward_features(images), plain.forward_features(images))


@pytest.mark.parametrize("family", SOME)
def test_parameters_keep_timms_names_and_modules_add_theirs(family):
    plain = made(family)
    model = pruned(family, Cropping(schedule=Steady(rate=2)))
    theirs, ours = set(plain.state_dict()), set(model.state_dict())
    assert theirs <= ours
    assert module_names(model) == ("blocks.0.cropr", "blocks.1.cropr")
    assert {name.split(".cropr.")[0] for name in ours - theirs} == {"blocks.0", "blocks.1"}
    assert isinstance(model, type(plain)), "timm's own functions still know it"


@pytest.mark.slow
def test_every_plain_transformer_of_timm_can_be_pruned_and_any_other_is_refused():
    """Without memory for weights; 271 names in timm 1.0.31."""
    files = (
        "vision_transformer",
        "vision_transformer_hybrid",
        "deit",
        "eva",
        "vitamin",
        "beit",
        "cait",
        "xcit",
        "hiera",
    )
    pruned = 0
    for name in sorted({name for file in files for name in timm.list_models(module=file)}):
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
            if type(model) not in (VisionTransformer, VisionTransformerDistilled, Eva):
                assert refusal(model), name
                continue
            model = apply(model, Cropping(schedule=EarlyCut(pruned=0.5)), outputs=2).eval()
            images = torch.empty(2, *image_shape(model))
            assert model(images).shape[0] == 2, name
            assert model(images, grid=True).shape == (2, *model.grid, model.embed_dim), name
        pruned += 1
    assert pruned > 250


def test_every_family_name_is_one_of_timms():
    known = set(timm.list_models()) | set(timm.list_pretrained())
    assert {name for name, _ in FAMILIES.values()} <= known


# ------------------------------------------------------------------------------------------------ the pruned forward


@pytest.mark.parametrize("fusion", [True, False], ids=["fusion", "no fusion"])
@pytest.mark.parametrize("family", SOME)
def test_outputs_and_gradients_equal_those_of_one_image_at_a_time(family, fusion):
    cropping = Cropping(schedule=KeepRate(keep=0.7), fusion=fusion, queries=2)
    model = pruned(family, cropping)
    images = pictures(model, 3)
    weigh = torch.randn(3, dtype=torch.float64)
    main, side = torch.randn(model.num_classes, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)

    seen = model(images, detailed=True)
    loss = (weigh * (seen.output @ main)).sum() + sum((answer * side).sum() for answer in seen.auxiliary)
    loss.backward()
    ours = {name: value.grad for name, value in model.named_parameters()}

    other = copy.deepcopy(model)
    other.zero_grad()
    kept = dict(zip(model.after, model.kept, strict=True))
    cuts = [cropped(other, image, kept, fusion=fusion) for image in images]
    loss = sum(w * (cut.output @ main) for w, cut in zip(weigh, cuts, strict=True))
    loss = loss + sum((answer * side).sum() for cut in cuts for answer in cut.answers)
    loss.backward()

    for number, cut in enumerate(cuts):
        torch.testing.assert_close(seen.output[number], cut.output, rtol=1e-9, atol=1e-9)
        for answer, slow in zip(seen.auxiliary, cut.answers, strict=True):
            torch.testing.assert_close(answer[number], slow, rtol=1e-9, atol=1e-9)
        depths = [cut.depths.get(place, len(model.blocks)) for place in range(PATCHES)]
        assert seen.depth[number].flatten().tolist() == depths
    for name, value in other.named_parameters():
        if value.grad is None:
            assert ours[name] is None or not ours[name].any(), name
        else:
            assert torch.allclose(ours[name], value.grad, rtol=1e-8, atol=1e-9), name


@pytest.mark.parametrize("fusion", [True, False], ids=["fusion", "no fusion"])
@pytest.mark.parametrize("family", SOME)
def test_a_grid_has_every_token_at_its_place_and_zeros_where_one_is_gone(family, fusion):
    model = pruned(family, Cropping(schedule=KeepRate(keep=0.7), fusion=fusion))
    images = pictures(model, 2)
    kept = dict(zip(model.after, model.kept, strict=True))
    with torch.no_grad():
        found = model(images, grid=True).flatten(1, 2)
        for number, image in enumerate(images):
            cut = cropped(model, image, kept, fusion=fusion)
            wanted = torch.zeros(PATCHES, model.embed_dim, dtype=torch.float64)
            wanted[cut.places] = cut.tokens[model.num_prefix_tokens :]
            torch.testing.assert_close(found[number], wanted, rtol=1e-9, atol=1e-9)
            assert len(cut.places) == (PATCHES if fusion else model.kept[-1])


@pytest.mark.parametrize("sees", ["class", "prefix", "patches"])
def test_an_aggregator_sees_the_prefix_tokens_that_it_may(sees):
    model = pruned("DINOv2 with registers", Cropping(schedule=KeepRate(keep=0.7), sees=sees))
    images = pictures(model, 2)
    kept = dict(zip(model.after, model.kept, strict=True))
    with torch.no_grad():
        seen = model(images, detailed=True)
        for number, image in enumerate(images):
            slow = cropped(model, image, kept, fusion=True, sees=sees)
            for answer, wanted in zip(seen.auxiliary, slow.answers, strict=True):
                torch.testing.assert_close(answer[number], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["AugReg", "SigLIP", "DINOv2 with registers", "EVA-02"])
def test_position_coded_tokens_come_back_in_raster_order(family):
    model = pruned(family, Cropping(schedule=Steady(rate=3)))
    for block in model.blocks:
        block.forward = lambda tokens, **_: tokens
    model.norm = nn.Identity()
    codes = torch.arange(PATCHES, dtype=torch.float64)[:, None] * torch.ones(model.embed_dim, dtype=torch.float64)
    codes = codes + torch.randn(4, PATCHES, model.embed_dim, dtype=torch.float64) * 1e-3  # each image its own order
    original = model._embedded

    def coded(images: Tensor) -> Any:
        tokens, table, mixed = original(images)
        return torch.cat([tokens[:, : model.num_prefix_tokens], codes], 1), table, mixed

    model._embedded = coded
    with torch.no_grad():
        assert torch.equal(model(pictures(model, 4), grid=True).flatten(1, 2), codes)


class Known(nn.Module):
    """Scores that are known beforehand, (B, M) or (M,)."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, tokens: Tensor, seen: Tensor | None = None) -> tuple[Tensor, None]:
        missing = tokens.shape[1] - self.scores.shape[-1]
        return F.pad(self.scores, (missing, 0)).expand(len(tokens), -1), None


def without_attention(block: Any) -> None:
    """Each token then goes through the block by itself."""
    with torch.no_grad():
        for name, value in block.attn.named_parameters():
            if name.startswith("proj"):
                value.zero_()


def test_keeping_known_patches_is_the_dense_model_on_these_patches_alone():
    model = pruned("AugReg", Cropping(schedule=EarlyCut(pruned=0.5), fusion=False))
    without_attention(model.blocks[0])
    wanted = [11, 0, 5, 9, 2, 15, 6, 8]
    scores = torch.zeros(PATCHES)
    scores[wanted] = 1.0
    model.blocks[0].cropr = Known(scores)
    images = pictures(model, 2)
    plain = made("AugReg")
    without_attention(plain.blocks[0])
    with torch.no_grad():
        tokens = plain._pos_embed(plain.patch_embed(images))
        alone = plain.norm(plain.blocks(torch.cat([tokens[:, :1], tokens[:, 1:][:, wanted]], 1)))
        torch.testing.assert_close(model(images), plain.forward_head(alone), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("corner", [(0, 0), (1, 2)])
def test_a_rotary_model_that_keeps_a_rectangle_is_the_dense_model_on_the_cut_out_image(corner):
    """Rotary positions are relative: without class token and absolute ones it does not matter where a window lies."""
    changed = {"class_token": False, "global_pool": "avg"}
    high, wide = corner
    window = torch.zeros(GRID, GRID)
    window[high : high + 2, wide : wide + 2] = 1.0
    model = pruned("rotary", Cropping(schedule=EarlyCut(pruned=0.75), fusion=False), **changed)
    model.blocks[0].cropr = Known(window.flatten())
    small = made("rotary", img_size=32, **changed)
    small.load_state_dict(made("rotary", **changed).state_dict())
    for network in (model, small):
        without_attention(network.blocks[0])
    images = pictures(model, 3)  # as many as heads
    cut_out = images[:, :, 16 * high : 16 * high + 32, 16 * wide : 16 * wide + 32]
    with torch.no_grad():
        torch.testing.assert_close(model(images), small(cut_out), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("family", ROTARY)
def test_rotary_tables_follow_each_images_own_tokens_whether_or_not_images_are_as_many_as_heads(family, batch):
    model = pruned(family, Cropping(schedule=KeepRate(keep=0.6)))
    images = pictures(model, batch)
    kept = dict(zip(model.after, model.kept, strict=True))
    with torch.no_grad():
        found = model(images)
        for number, image in enumerate(images):
            torch.testing.assert_close(
                found[number], cropped(model, image, kept, fusion=True).output, rtol=1e-9, atol=1e-9
            )


# -------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("family", SOME)
def test_neither_loss_reaches_what_the_other_one_teaches(family):
    model = pruned(family, Cropping(schedule=KeepRate(keep=0.7), queries=2)).train()
    modules = module_names(model)
    images = pictures(model, 2)

    def own(name: str) -> bool:
        return name.startswith(modules)

    def moved() -> set[str]:
        return {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}

    sum(answer.square().sum() for answer in model(images, detailed=True).auxiliary).backward()
    assert moved()
    assert all(own(name) for name in moved())
    model.zero_grad()
    model(images, detailed=True).output.square().sum().backward()
    assert moved()
    assert not any(own(name) for name in moved())


def test_with_detach_off_the_auxiliary_loss_reaches_the_network():
    cropping = Cropping(schedule=KeepRate(keep=0.7), options=CroprOptions(detach=False))
    model = pruned("AugReg", cropping)
    sum(answer.sum() for answer in model(pictures(model, 2), detailed=True).auxiliary).backward()
    assert model.patch_embed.proj.weight.grad.any()


def test_of_a_frozen_network_only_the_modules_learn_and_the_loss_falls():
    model = pruned("AugReg", Cropping(schedule=KeepRate(keep=0.7))).float().train()
    modules = module_names(model)
    for name, value in model.named_parameters():
        value.requires_grad_(name.startswith(modules))
    before = {name: value.clone() for name, value in model.named_parameters()}
    images, labels = pictures(model, 8).float(), torch.arange(8) % 3
    adam = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=5e-3)
    losses = []
    for _ in range(20):
        answers = model(images, detailed=True).auxiliary
        loss = sum(F.cross_entropy(answer[:, 0], labels) for answer in answers)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(modules)}


@pytest.mark.parametrize("family", ["AugReg", "EVA-02", "rotary, mixed"])
@pytest.mark.parametrize("frozen", [False, True], ids=["all learns", "frozen network"])
def test_gradient_checkpointing_changes_no_gradient(family, frozen):
    model = pruned(family, Cropping(schedule=KeepRate(keep=0.7))).train()
    if frozen:
        for name, value in model.named_parameters():
            value.requires_grad_(".cropr." in name)
    images = pictures(model, 2)

    def gradients(checkpointed: bool) -> dict[str, Tensor | None]:
        model.set_grad_checkpointing(checkpointed)
        model.zero_grad()
        seen = model(images, detailed=True)
        (seen.output.sum() + sum(answer.sum() for answer in seen.auxiliary)).backward()
        return {name: value.grad for name, value in model.named_parameters()}

    plain, saving = gradients(False), gradients(True)
    assert any(value is not None for value in plain.values())
    for name, value in plain.items():
        assert (value is None) == (saving[name] is None), name
        if value is not None:
            torch.testing.assert_close(saving[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["AugReg", "EVA-02", "SigLIP"])
def test_half_precision_runs_and_stays_close(family):
    model = pruned(family, Cropping(schedule=KeepRate(keep=0.7))).float().train()
    images = pictures(model, 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        seen = model(images, detailed=True)
        (seen.output.float().sum() + sum(answer.float().sum() for answer in seen.auxiliary)).backward()
    assert seen.output.dtype == torch.bfloat16
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        dense = model(images, kept=(PATCHES,) * len(model.after))
    with torch.no_grad():
        torch.testing.assert_close(dense.float(), model(images, kept=(PATCHES,) * len(model.after)), rtol=0.1, atol=0.2)


# ------------------------------------------------------------------------------------------------- copies and curricula


@pytest.mark.parametrize("family", ["AugReg", "DeiT distilled", "EVA-02"])
def test_copied_and_pickled_models_say_the_same(family):
    model = pruned(family, Cropping(schedule=KeepRate(keep=0.7)))
    images = pictures(model, 2)
    with torch.no_grad():
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(images), model(images))


def test_a_state_dict_carries_a_pruned_model_over():
    model = pruned("EVA-02", Cropping(schedule=KeepRate(keep=0.7)))
    other = apply(made("EVA-02", seed=5), Cropping(schedule=KeepRate(keep=0.7)), outputs=3)
    other.load_state_dict(model.state_dict())
    images = pictures(model, 2)
    with torch.no_grad():
        assert torch.equal(other(images), model(images))


def test_pruning_grows_over_the_first_epochs_as_published():
    """The rates of the official segmentation log, 64 epochs: 0, 1, 2, 3, 5, ..., 38, 40, and 40 to the end."""
    cropping = Cropping(schedule=Steady(rate=40), ramp=32)
    rates = [cropping.at(epoch).rate for epoch in range(64)]
    assert rates[:5] == [0, 1, 2, 3, 5]
    assert rates[30:] == [38, *[40] * 33]
    assert rates[:32] == [math.floor(40 * epoch / 31) for epoch in range(32)]


def test_a_curriculum_gives_each_epoch_its_own_lengths():
    model = pruned("AugReg", Cropping(schedule=Steady(rate=4, absorb=False), fusion=False, ramp=5))
    assert [model.kept_at(epoch) for epoch in (0, 1, 2, 4, 9)] == [
        (16, 16, 16),
        (15, 14, 13),
        (14, 12, 10),
        (12, 8, 4),
        (12, 8, 4),
    ]
    lengths = []
    model.blocks[-1].register_forward_hook(lambda block, given, out: lengths.append(out.shape[1] - 1))
    images = pictures(model, 1)
    for epoch in (0, 2, 9):
        model(images, kept=model.kept_at(epoch))
    assert lengths == [16, 10, 4]


@pytest.mark.parametrize("family", ["any image size", "DINOv3"])
def test_images_of_another_size_are_pruned_by_the_same_schedule(family):
    model = pruned(family, Cropping(schedule=KeepRate(keep=0.5)))
    plain = made(family)
    images = torch.randn(2, 3, 96, 48, dtype=torch.float64)
    kept = KeepRate(keep=0.5).kept(model._shape((6, 3)))
    with torch.no_grad():
        assert torch.equal(model(images, kept=(18,) * len(model.after)), plain(images))
        assert model(images, grid=True).shape == (2, 6, 3, model.embed_dim)
        found = model(images)
        for number, image in enumerate(images):
            slow = cropped(model, image, dict(zip(model.after, kept, strict=True)), fusion=True)
            torch.testing.assert_close(found[number], slow.output, rtol=1e-9, atol=1e-9)


def test_a_model_whose_input_size_is_changed_counts_its_patches_anew():
    model = pruned("AugReg", Cropping(schedule=KeepRate(keep=0.5)))
    model.set_input_size((96, 96))
    assert (model.grid, shape_of(model).patches, model.kept) == ((6, 6), 36, (18, 9))
    assert model(pictures(model, 1), grid=True).shape == (1, 6, 6, model.embed_dim)


def test_queries_of_patches_go_with_the_grid_that_they_were_made_for():
    model = pruned("AugReg", Cropping(schedule=KeepRate(keep=0.5), queries="patches"))
    assert model(pictures(model, 1), detailed=True).auxiliary[0].shape[1] == 16
    model.set_input_size((96, 96))
    model(pictures(model, 1))  # to choose tokens any number of queries will do
    with pytest.raises(SettingError, match=r"the modules have 16, .* these images have 6 x 6 patches"):
        model(pictures(model, 1), detailed=True)


def test_what_lies_between_blocks_is_refused_rather_than_that_of_the_dense_model():
    for family in ("AugReg", "EVA-02"):
        model = pruned(family, Cropping(schedule=Steady(rate=2)))
        with pytest.raises(SettingError, match=r"forward_intermediates: .* grid=True"):
            model.forward_intermediates(pictures(model, 1))


def test_the_last_block_has_no_stochastic_depth_and_the_others_keep_theirs():
    for family in ("AugReg", "attention and MLP side by side", "two attentions side by side", "EVA-02"):
        model = apply(made(family, drop_path_rate=0.3), Cropping(schedule=Steady(rate=1)), outputs=2)
        rates = [
            [module.drop_prob for module in block.modules() if isinstance(module, DropPath)] for block in model.blocks
        ]
        assert not any(rates[-1]), family
        assert all(rate > 0 for rate in rates[1]), family
        assert rates[1], family


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer cannot lose tokens: it attends within windows"),
        ("swinv2_tiny_window8_256", "SwinTransformerV2 cannot lose tokens: it attends within windows"),
        ("samvit_base_patch16_224", "VisionTransformerSAM cannot lose tokens: it attends within windows"),
        ("beit_base_patch16_224", "Beit cannot lose tokens: its attention has a bias for each relative position"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos cannot lose tokens: its attention has a bias"),
        ("cait_xxs24_224", "Cait cannot lose tokens: its class token joins behind"),
        ("xcit_nano_12_p16_224", "Xcit cannot lose tokens: it attends across channels"),
        ("hiera_tiny_224", "Hiera cannot lose tokens: it pools tokens within windows"),
        ("mvitv2_tiny", "MultiScaleVit cannot lose tokens: it pools tokens on a fixed grid"),
        ("pvt_v2_b0", "PyramidVisionTransformerV2 cannot lose tokens: it shrinks keys and values"),
        ("maxvit_tiny_tf_224", "MaxxVit cannot lose tokens: it attends within windows and grids"),
        ("naflexvit_base_patch16_gap", "NaFlexVit cannot lose tokens: it packs images of many sizes"),
        ("resnet18", "ResNet cannot lose tokens: it is none of timm's plain vision transformers"),
    ],
)
def test_what_cannot_be_pruned_is_refused_by_name_with_the_reason(name, reason):
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    assert (refusal(model) or "").startswith(reason)
    with pytest.raises(SettingError, match="cannot lose tokens"):
        apply(model, Cropping())


def test_a_pruned_model_is_not_pruned_once_more():
    model = pruned("AugReg", Cropping(schedule=Steady(rate=2)))
    with pytest.raises(SettingError, match="loses tokens already"):
        apply(model, Cropping(schedule=Steady(rate=2)))


def test_rotary_tables_made_for_each_image_are_refused():
    settings = {"embed_dim": 192, "depth": 4, "num_heads": 3, "num_kv_heads": 3, "img_size": 64}
    model = timm.create_model("vit_base_patch16_sapiens2", rope_type="mrope", rope_rescale_coords=None, **settings)
    with pytest.raises(SettingError, match="MRope"):
        apply(model, Cropping(schedule=Steady(rate=2)))


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (Steady(rate=8), "cut more than the 16 patches that there are; at most 7 leaves one"),
        (Steady(rate=2, after=(3,)), "3 is no place to cut tokens at; a network of 4 blocks has 1 to 2"),
        (EarlyCut(block=9), "9 is no place"),
        (Lengths(tokens=(30,), after=(1,)), "must lie between 2 and 17"),
        (Budget(flops=0.01), "cannot be reached"),
    ],
)
def test_a_schedule_that_does_not_fit_the_network_says_what_would(schedule, words):
    with pytest.raises(SettingError, match="\n?".join(words.split("\n"))):
        apply(made("AugReg"), Cropping(schedule=schedule))


def test_an_image_of_a_size_that_the_model_cannot_take_is_named():
    model = pruned("AugReg", Cropping(schedule=Steady(rate=2)))
    with pytest.raises(SettingError, match="images of 64 x 80: the model takes 64 x 64"):
        model(torch.zeros(1, 3, 64, 80, dtype=torch.float64))
    free = pruned("any image size", Cropping(schedule=Steady(rate=2)))
    with pytest.raises(SettingError, match=r"images of 64 x 70: .* multiples of 16 x 16"):
        free(torch.zeros(1, 3, 64, 70, dtype=torch.float64))
    with pytest.raises(SettingError, match="rate = 2: 2 modules cut more than the 4 patches"):
        free(torch.zeros(1, 3, 32, 32, dtype=torch.float64))


@pytest.mark.parametrize("family", ["SigLIP", "SO150M"])
def test_class_attention_needs_a_class_token(family):
    with pytest.raises(SettingError, match="no class token"):
        apply(made(family), Cropping(schedule=Steady(rate=2), selector="class_attention"))


@pytest.mark.parametrize(
    "family", ["EVA-02", "attention and MLP side by side", "norm behind", "differential attention"]
)
def test_merging_names_the_block_that_it_cannot_work_in(family):
    with pytest.raises(SettingError, match="selector = 'merge'"):
        apply(made(family), Cropping(schedule=Steady(rate=2), selector="merge", fusion=False))


@pytest.mark.parametrize("family", ["two attentions side by side", "differential attention"])
def test_class_attention_names_the_attention_that_it_cannot_read(family):
    with pytest.raises(SettingError, match="selector = 'class_attention'"):
        apply(
            made(family, class_token=True, num_classes=5), Cropping(schedule=Steady(rate=2), selector="class_attention")
        )


def test_patch_dropout_is_refused():
    with pytest.raises(SettingError, match="patch dropout"):
        apply(made("AugReg", patch_drop_rate=0.5), Cropping(schedule=Steady(rate=2)))


# ------------------------------------------------------------------------------------------------------ deployment


@pytest.mark.parametrize("family", SOME)
def test_folded_queries_choose_as_all_of_them_do(family):
    options = CroprOptions(heads=2, project=("query", "key"), bias=True, norm=True)
    model = pruned(family, Cropping(schedule=KeepRate(keep=0.7), queries="patches", options=options))
    stripped = strip(model)
    assert all(isinstance(stripped.get_submodule(name), Scorer) for name in module_names(stripped))
    images = pictures(model, 2)
    with torch.no_grad():
        torch.testing.assert_close(stripped(images), model(images), rtol=1e-9, atol=1e-9)
        assert torch.equal(stripped(images, detailed=True).depth, model(images, detailed=True).depth)
