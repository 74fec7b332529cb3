"""Feature maps of several strides from one, and what a detector makes of tokens that were cut on the way."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from llf_ray.config import SettingError
from llf_ray.nn.cropr import Cropping, Steady, apply
from llf_ray.nn.detector import Detector
from llf_ray.nn.detector_settings import Heads
from llf_ray.nn.pyramid import SimpleFeaturePyramid

HEADS = Heads(
    channels=8,
    anchors=(8, 16, 32, 64),
    proposals=(60, 30),
    proposals_learned=16,
    regions_learned=16,
    proposal_convs=1,
    box_convs=1,
    box_width=16,
    mask_convs=1,
    detections=10,
)


def backbone(seed=0, **options):
    torch.manual_seed(seed)
    options = {"img_size": 64, "depth": 4, "embed_dim": 32, "num_heads": 2, "num_classes": 0} | options
    return timm.create_model("vit_tiny_patch16_224", **options)


def normed(values, layer):
    """LayerNorm over channels, spelled out."""
    mean = values.mean(1, keepdim=True)
    var = ((values - mean) ** 2).mean(1, keepdim=True)
    return (values - mean) / (var + layer.eps).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]


def test_levels_are_those_of_the_paper():
    """Patch 16: two deconvolutions with LayerNorm and GELU between, one, none, pooling; then 1x1 and 3x3."""
    pyramid = SimpleFeaturePyramid(24, 16, (4, 8, 16, 32), 6).double()
    for parameter in pyramid.parameters():
        nn.init.normal_(parameter, std=0.5)
    tokens = torch.randn(2, 24, 4, 6, dtype=torch.float64)
    maps = pyramid(tokens)
    assert {name: tuple(level.shape) for name, level in maps.items()} == {
        "p4": (2, 6, 16, 24),
        "p8": (2, 6, 8, 12),
        "p16": (2, 6, 4, 6),
        "p32": (2, 6, 2, 3),
    }

    def up(values, layer):
        return F.conv_transpose2d(values, layer.weight, layer.bias, stride=2)

    for name, level in pyramid.levels.items():
        layers = list(level)
        found = tokens
        if name == "p4":
            found = up(F.gelu(normed(up(found, layers[0]), layers[1])), layers[3])
        if name == "p8":
            found = up(found, layers[0])
        if name == "p32":
            found = found.unflatten(3, (3, 2)).unflatten(2, (2, 2)).amax((3, 5))
        narrow, first, wide, second = layers[-4:]
        assert narrow.bias is None
        assert wide.bias is None
        found = normed(torch.einsum("oi,bihw->bohw", narrow.weight[:, :, 0, 0], found), first)
        found = normed(F.conv2d(found, wide.weight, padding=1), second)
        torch.testing.assert_close(maps[name], found)


def test_any_patch_reaches_strides_by_doubling_and_halving():
    maps = SimpleFeaturePyramid(16, 8, (4, 8, 16, 32), 4)(torch.randn(1, 16, 8, 8))
    assert [level.shape[2] for level in maps.values()] == [16, 8, 4, 2]
    with pytest.raises(SettingError, match="stride 4: must be the patch's side, 14, times or by a power of two"):
        SimpleFeaturePyramid(16, 14, (4,), 4)
    with pytest.raises(SettingError, match="stride 4: 2 deconvolutions halve the width 6"):
        SimpleFeaturePyramid(6, 16, (4,), 4)


def test_a_feature_stays_where_its_patch_is_though_tokens_were_cut():
    """Blocks that add nothing leave every token as it was: the map is that of the dense model, in raster order."""
    dense, cut = backbone(), apply(backbone(), Cropping(schedule=Steady(rate=5)), outputs=3)
    for network in (dense, cut):
        for block in network.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        whole = Detector(dense, 3, HEADS).eval()._tokens(images, None)[0]
        found = Detector(cut, 3, HEADS).eval()._tokens(images, None)[0]
    assert whole.shape == (2, 4, 4, 32)
    torch.testing.assert_close(found, whole)


def test_at_rate_zero_the_detector_is_the_dense_one():
    torch.manual_seed(1)
    dense = Detector(backbone(), 3, HEADS).eval()
    cut = Detector(apply(backbone(), Cropping(schedule=Steady(rate=0)), outputs=3), 3, HEADS).eval()
    missing, extra = cut.load_state_dict(dense.state_dict(), strict=False)
    assert not extra
    assert all(".cropr." in name for name in missing)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for one, other in zip(dense(images), cut(images), strict=True):
            for name in ("boxes", "labels", "scores", "masks"):
                assert torch.equal(getattr(one, name), getattr(other, name))
    assert dense.depth(images) is None
    assert (cut.depth(images) == 4).all()


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "eva02_tiny_patch14_224", "deit_tiny_patch16_224"])
def test_families_give_their_tokens(name):
    """What a family has behind its tokens is gone: attention pooling, a norm behind an average."""
    torch.manual_seed(0)
    network = timm.create_model(name, img_size=64, patch_size=16, depth=2, embed_dim=32, num_heads=2, num_classes=0)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.eval().forward_features(images)[:, network.num_prefix_tokens :].unflatten(1, (4, 4))
        model = Detector(network, 3, HEADS).eval()
        assert torch.equal(model._tokens(images, None)[0], expected)
    calls = []
    network.register_forward_pre_hook(lambda *_: calls.append(1))
    model(images)
    assert calls, "engines fetch a module's own weights in front of its forward"


def test_a_distilled_transformer_is_refused_where_it_gives_no_tokens():
    network = timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, depth=3, num_classes=0)
    with pytest.raises(SettingError, match="a dense VisionTransformerDistilled gives two tokens"):
        Detector(network, 3, HEADS)
    Detector(apply(network, Cropping(schedule=Steady(rate=0)), outputs=3), 3, HEADS)


def test_every_parameter_learns_and_no_buffer_is_kept():
    for pooled in ("", "avg", "token"):  # what timm has behind the tokens goes
        model = Detector(backbone(global_pool=pooled), 3, HEADS).train()
        boxes = torch.tensor([[4.0, 4, 40, 50], [20, 30, 60, 60]], dtype=torch.float64)
        target = {"boxes": boxes, "labels": torch.tensor([0, 2]), "masks": torch.ones(2, 64, 64, dtype=torch.bool)}
        sum(model(torch.randn(1, 3, 64, 64), [target]).losses.values()).backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
        assert not list(model.buffers())


def test_half_precision_keeps_pixels_apart():
    """Boxes and losses are fp32 whatever the weights are."""
    model = Detector(backbone(), 3, replace(HEADS, masks=False)).train().bfloat16()
    target = {"boxes": torch.tensor([[4.0, 4, 40, 50]], dtype=torch.float64), "labels": torch.tensor([1])}
    losses = model(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16), [target]).losses
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    found = model.eval()(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16))[0]
    assert found.boxes.dtype == torch.float32
    assert found.masks is None


def test_targets_go_with_training_mode_alone():
    model = Detector(backbone(), 3, HEADS)
    with pytest.raises(ValueError, match="targets go with training mode"):
        model.train()(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="targets go with training mode"):
        model.eval()(torch.randn(1, 3, 64, 64), [])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"anchors": (8, 16)}, "anchors = .*one side for each of strides"),
        ({"strides": (4, 8, 16, 64)}, "strides = .*each must be twice the one before"),
        ({"ratios": ()}, "at least one of each"),
        ({"overlap": 1.5}, "overlap = 1.5"),
        ({"mask_convs": 0}, "mask_convs = 0"),
    ],
)
def test_impossible_heads_are_refused(wrong, message):
    with pytest.raises(SettingError, match=message):
        replace(HEADS, **wrong)
