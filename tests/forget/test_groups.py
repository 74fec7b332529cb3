"""What a selection means on real networks, and the coarsest groups in which a plan can be written."""

from __future__ import annotations

import random
from typing import Any

import pytest
import timm
import torch
from torch import nn

from llf_ray.config import SettingError
from llf_ray.forget.groups import Both, Either, Not, Select, Slot, block_of, fan_in, layout, partition, resolve
from llf_ray.forget.operations import WEIGHTS
from llf_ray.recipes.later_layer import LaterLayer, redraw
from tests.toy import Toy


def slots_of(name: str, **how: Any) -> tuple[Slot, ...]:
    with torch.device("meta"):
        return layout(timm.create_model(name, **how))


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[Slot, ...]]:
    """Layouts of the papers' networks and of a transformer."""
    return {
        "resnet18": slots_of("resnet18", num_classes=102),
        "resnet50": slots_of("resnet50", num_classes=200),
        "vit": slots_of("vit_tiny_patch16_224", num_classes=10),
    }


def share_reset(slots: tuple[Slot, ...], threshold: str | int) -> float:
    sizes = {slot.name: slot.size for slot in slots}
    forgotten = resolve(redraw(LaterLayer(threshold=threshold).later).select, slots)
    return sum(sizes[n] for n in forgotten) / sum(sizes[n] for n in resolve(WEIGHTS, slots))


@pytest.mark.parametrize(
    ("network", "threshold", "share"),
    [
        ("resnet18", "layer4", 0.7524),
        ("resnet18", "layer3", 0.9393),
        ("resnet50", "layer3", 0.9399),
        ("resnet18", 14, 0.7524),
        ("resnet18", 10, 0.9393),
        ("resnet50", 23, 0.9399),
    ],
)
def test_thresholds_forget_the_published_share(networks: Any, network: str, threshold: str | int, share: float) -> None:
    """By name, and by the papers' L, the number of the layer with down-sampling not counted."""
    assert share_reset(networks[network], threshold) == pytest.approx(share, abs=5e-5)


def test_a_threshold_at_the_first_layer_forgets_all_weights_and_no_normaliser(networks: Any) -> None:
    slots = networks["resnet18"]
    assert share_reset(slots, "conv1") == share_reset(slots, 1) == 1.0
    kinds = {slot.name: slot.kind for slot in slots}
    assert {kinds[name] for name in resolve(redraw(Select(since="conv1")).select, slots)} == {"weight"}


@pytest.mark.parametrize(
    ("select", "said"),
    [
        (Select(since="layr3"), "layer 'layr3' does not exist; did you mean 'layer3'?"),
        (Select(before="layer5"), "layer 'layer5' does not exist; did you mean 'layer"),
        (Select(since="layer3.0.conv3"), "layer 'layer3.0.conv3' does not exist; did you mean 'layer3.0.conv"),
        (Select(since="ayer3"), "layer 'ayer3' does not exist; did you mean 'layer3'?"),
        (Select(modules=("layer3", "head")), "layer 'head' does not exist"),
        (Select(since=19), "layer 19 does not exist: the model has 18 convolution and linear layers, counted from 1"),
        (Select(since=0), "layer 0 does not exist"),
        (Select(kinds=("wieght",)), "kind 'wieght' does not exist; did you mean 'weight'?"),  # type: ignore[arg-type]
        (Select(before="conv1"), "group 'before conv1' matches no parameter"),
        (Select(since="layer3", before="layer2"), "group 'from layer3 before layer2' matches no parameter"),
        (Select(kinds=("embedding",)), "group 'embedding' matches no parameter"),
        (Both((Select(before="layer2"), Select(since="layer2"))), "matches no parameter"),
        (Both(()), "matches no parameter"),
        (Either(()), "matches no parameter"),
        (Not(Select()), "group 'not (all)' matches no parameter"),
        (Both((WEIGHTS, Select(modules=("layer9",)))), "layer 'layer9' does not exist"),
        ("layer3", "is no selection"),
    ],
)
def test_a_selection_that_means_nothing_is_an_error(networks: Any, select: Any, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        resolve(select, networks["resnet18"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_in_front_of_and_from_a_threshold_are_the_whole_network(networks: Any) -> None:
    for slots, places in (
        (networks["resnet50"], ("layer1", "layer3.2", "fc", 7)),
        (networks["vit"], ("blocks.6", "head")),
    ):
        for place in places:
            early, later = resolve(Select(before=place), slots), resolve(Select(since=place), slots)
            assert not set(early) & set(later)
            assert [*early, *later] == [slot.name for slot in slots if slot.kind != "statistic"]


def test_shortcuts_belong_to_their_stage_though_their_normaliser_is_not_called_bn(networks: Any) -> None:
    early = resolve(Select(before="layer3"), networks["resnet18"])
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.weight", "bn1.bias"} <= set(early)
    assert not any(name.startswith(("layer3", "layer4", "fc")) for name in early)
    norms = resolve(Select(kinds=("norm",)), networks["resnet18"])
    assert "layer2.0.downsample.1.weight" in norms


def test_kinds_are_told_apart_in_a_transformer(networks: Any) -> None:
    kinds = {slot.name: slot.kind for slot in networks["vit"]}
    assert kinds["cls_token"] == kinds["pos_embed"] == "other"
    assert kinds["blocks.0.norm1.weight"] == kinds["norm.bias"] == "norm"
    assert kinds["patch_embed.proj.weight"] == kinds["blocks.3.attn.qkv.weight"] == kinds["head.weight"] == "weight"
    assert kinds["head.bias"] == "bias"


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("layer3.0.downsample.0.weight", "layer3.0"),
        ("blocks.6.mlp.fc1.weight", "blocks.6"),
        ("blocks.4.2.conv_pw.weight", "blocks.4.2"),
        ("stages.2.blocks.1.mlp.fc1.weight", "stages.2.blocks.1"),
        ("stages.2.downsample.1.weight", "stages.2"),
        ("layers.0.blocks.11.attn.qkv.weight", "layers.0.blocks.11"),
        ("features.denseblock1.denselayer12.conv2.weight", "features.denseblock1.denselayer12"),
        ("features.transition1.conv.weight", ""),
        ("conv1.weight", ""),
    ],
)
def test_an_entry_is_in_the_innermost_block_that_has_a_number(name: str, block: str) -> None:
    assert block_of(name) == block


def test_a_name_is_a_path_and_never_a_substring(networks: Any) -> None:
    found = resolve(Select(modules=("blocks.1",)), networks["vit"])
    assert all(name.startswith("blocks.1.") for name in found)
    assert len(found) == 12
    assert resolve(Select(modules=("cls_token",)), networks["vit"]) == ("cls_token",)


def test_statistics_are_selected_only_by_name(networks: Any) -> None:
    slots = networks["resnet18"]
    assert not any("running" in name for name in resolve(Either((Select(), Not(WEIGHTS))), slots))
    statistics = resolve(Select(kinds=("statistic",), since="layer4"), slots)
    assert statistics
    assert all(name.startswith("layer4") and name.split(".")[-1] != "weight" for name in statistics)


def test_selections_are_sets(networks: Any) -> None:
    slots = networks["resnet18"]
    everything, weights = set(resolve(Select(), slots)), set(resolve(WEIGHTS, slots))
    early, later = Select(before="layer3"), Select(since="layer3")
    assert set(resolve(Not(WEIGHTS), slots)) == everything - weights
    assert set(resolve(Either((early, later)), slots)) == everything
    assert set(resolve(Both((early, WEIGHTS)), slots)) == set(resolve(early, slots)) & weights
    assert resolve(Not(Not(early)), slots) == resolve(early, slots)


def test_a_layout_is_the_models_own_order_with_what_it_saves() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.norm = nn.BatchNorm1d(3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("kept", torch.zeros(2))
            self.register_buffer("scratch", torch.zeros(2), persistent=False)

    net = Shared()
    slots = layout(net)
    assert [s.name for s in slots if s.kind != "statistic"] == [name for name, _ in net.named_parameters()]
    assert {s.name for s in slots if s.kind == "statistic"} == {n for n, _ in net.named_buffers()} - {"scratch"}
    kinds = {s.name: s.kind for s in slots}
    assert (kinds["embed.weight"], kinds["scale"], kinds["norm.bias"]) == ("embedding", "other", "norm")
    with torch.device("meta"):
        assert layout(Shared()) == slots
    assert sum(s.size for s in slots if s.kind != "statistic") == sum(p.numel() for p in net.parameters())


def test_fan_in_is_that_of_torch() -> None:
    for layer in (nn.Linear(7, 3), nn.Conv2d(6, 4, (3, 5)), nn.Conv1d(8, 4, 3, groups=2)):
        expected, _ = nn.init._calculate_fan_in_and_fan_out(layer.weight)
        assert fan_in(layer.weight.shape) == expected


# ------------------------------------------------------------------------------------------------------------ partition


@pytest.mark.parametrize("seed", range(6))
def test_groups_are_the_coarsest_in_which_every_selection_is_a_union(seed: int) -> None:
    """Two parameters share a group exactly when nothing in the plan tells them apart."""
    slots = layout(Toy().initial(0))
    names = [slot.name for slot in slots if slot.kind != "statistic"]
    dice = random.Random(seed)
    selections = [
        Select(modules=tuple(dice.sample(names, dice.randint(1, 4))), name=f"s{n}") for n in range(dice.randint(0, 4))
    ]
    members = [set(resolve(select, slots)) for select in selections]
    decays = lambda slot: len(slot.shape) > 1  # noqa: E731
    groups = partition(slots, selections, decays=decays)
    by_name = {slot.name: slot for slot in slots}
    assert sorted(name for group in groups for name in group.parameters) == sorted(names)
    assert len({group.name for group in groups}) == len(groups)
    where = {name: place for place, group in enumerate(groups) for name in group.parameters}
    for one in names:
        for other in names:
            alike = all((one in m) == (other in m) for m in members) and decays(by_name[one]) == decays(by_name[other])
            assert (where[one] == where[other]) == alike


def test_groups_are_named_after_what_they_are() -> None:
    slots = layout(Toy().initial(0))
    early, head = Select(before="body", name="early"), Select(modules=("head",), name="head")
    groups = partition(slots, [early, head, WEIGHTS])
    assert [group.name for group in groups] == ["early & weights", "early", "weights", "rest", "head & weights", "head"]
    assert [group.name for group in partition(slots, [])] == ["rest"]
    halves = partition(slots, [early], decays=lambda slot: len(slot.shape) > 1)
    assert [group.name for group in halves] == ["early", "early (no decay)", "rest", "rest (no decay)"]
    scaled = partition(slots, [], factor=lambda slot: 0.5 if slot.name.startswith("stem") else 1.0)
    assert [(group.name, group.factor) for group in scaled] == [("rest x0.5", 0.5), ("rest x1", 1.0)]
