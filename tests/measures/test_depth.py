"""Prediction depth against a slow definition of it and scikit-learn's neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from llf_ray.config import SettingError
from llf_ray.measures import depth
from llf_ray.measures.depth import (
    knn_predictions,
    numbered_blocks,
    prediction_depth,
    prediction_depths,
    probe_features,
    residual_probes,
)
from llf_ray.nn.resnet import ResNet


def clouds(number: int, seed: int, classes: int = 4, width: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (number,), generator=random)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9)).double()
    return centres[labels] + torch.randn(number, width, generator=random).double(), labels


def by_definition(probes: list[int], final: int) -> int:
    for start in range(len(probes) + 1):
        if all(probe == final for probe in probes[start:]):
            return start
    raise AssertionError


def test_depth_is_the_first_probe_from_which_on_all_agree() -> None:
    random = torch.Generator().manual_seed(0)
    probes, final = torch.randint(3, (5, 400), generator=random), torch.randint(3, (400,), generator=random)
    probes[2:, :200] = final[:200]  # deep agreement is rare by chance
    probes[:, :50] = final[:50]
    found = prediction_depth(probes, final)
    assert found.tolist() == [by_definition(probes[:, i].tolist(), int(final[i])) for i in range(400)]
    assert set(found.tolist()) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("k", [1, 7, 30])
@pytest.mark.parametrize("block", [1, 13, 1000])
def test_neighbours_vote_as_scikit_learns_do(k: int, block: int) -> None:
    bank, labels = clouds(200, 0)
    queries, _ = clouds(90, 1)
    oracle = KNeighborsClassifier(n_neighbors=k, algorithm="brute").fit(bank.numpy(), labels.numpy())
    found = knn_predictions(bank, labels, queries, k=k, block=block)
    assert found.tolist() == oracle.predict(queries.numpy()).tolist()


def test_an_example_is_not_its_own_neighbour() -> None:
    bank, labels = clouds(120, 2)
    found = knn_predictions(bank, labels, bank, k=5, leave_one_out=True, block=17)
    for i in range(120):
        rest = [j for j in range(120) if j != i]
        oracle = KNeighborsClassifier(n_neighbors=5, algorithm="brute").fit(bank[rest].numpy(), labels[rest].numpy())
        assert int(found[i]) == int(oracle.predict(bank[i : i + 1].numpy())[0])
    assert torch.equal(knn_predictions(bank, labels, bank, k=1), labels)


def test_too_few_neighbours_are_an_error() -> None:
    bank, labels = clouds(30, 0)
    assert len(knn_predictions(bank, labels, bank, k=30)) == 30
    with pytest.raises(ValueError, match="k = 30: the bank has 30 entries, one of them the query"):
        knn_predictions(bank, labels, bank, k=30, leave_one_out=True)


def test_probes_are_the_stem_and_every_block() -> None:
    network = ResNet(num_classes=3, widths=(4, 8), blocks=(1, 2))
    assert residual_probes(network) == ("bn1", "layer1.0", "layer2.0", "layer2.1")
    blocks = residual_probes(timm.create_model("resnet18"))
    assert len(blocks) == 9
    assert blocks[1:3] == ("layer1.0", "layer1.1")
    assert residual_probes(timm.create_model("vit_tiny_patch16_224"))[-1] == "blocks.11"
    assert residual_probes(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))) == ("0", "1")


@pytest.mark.parametrize(
    ("name", "number", "stem", "last"),
    [
        ("densenet121", 58, "features.pool0", "features.denseblock4.denselayer16"),
        ("convnext_atto", 12, "stem", "stages.3.blocks.1"),
        ("swin_tiny_patch4_window7_224", 12, "patch_embed", "layers.3.blocks.1"),
        ("efficientnet_b0", 16, "bn1", "blocks.6.0"),
        ("mobilenetv2_100", 17, "bn1", "blocks.6.0"),
    ],
)
def test_nested_blocks_are_probed_one_by_one(name: str, number: int, stem: str, last: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    assert len(numbered_blocks(network)) == number
    found = residual_probes(network)
    assert (found[0], found[-1], len(found)) == (stem, last, number + 1)


def test_behind_a_dense_layer_is_all_that_the_next_one_sees() -> None:
    network = timm.create_model("densenet121", growth_rate=4, block_config=(2, 3)).eval()
    images, names = torch.randn(3, 3, 32, 32), residual_probes(network)
    features, _ = probe_features(network, [images], names, 3)
    assert [features[name].shape[1] for name in names] == [8, 12, 16, 12, 16, 20]
    whole, _ = probe_features(network, [images], ("features.denseblock1", "features.denseblock2"), 3)
    for block, layer in (("1", "denselayer2"), ("2", "denselayer3")):
        name = f"features.denseblock{block}"
        torch.testing.assert_close(features[f"{name}.{layer}"], whole[name])


@pytest.mark.parametrize(
    ("name", "last"),
    [("swin_tiny_patch4_window7_224", "layers.1.blocks.1"), ("swinv2_cr_tiny_224", "stages.1.blocks.1")],
)
def test_places_and_not_channels_are_pooled_where_channels_come_last(name: str, last: str) -> None:
    """The first network says that they do, the second one does not."""
    network = timm.create_model(name, img_size=32, window_size=4, embed_dim=12, depths=(1, 2), num_heads=(2, 3)).eval()
    assert hasattr(network, "output_fmt") == name.startswith("swin_")
    seen: list[Tensor] = []
    network.get_submodule(last).register_forward_hook(lambda module, given, output: seen.append(output))
    names = residual_probes(network)
    features, _ = probe_features(network, [torch.randn(3, 3, 32, 32)], names, 3)
    assert [features[name].shape[1] for name in names] == [12, 12, 24, 24]
    torch.testing.assert_close(features[last], seen[0].reshape(3, -1, 24).mean(1))


def test_a_module_that_gives_no_tensor_is_named() -> None:
    network = torch.nn.LSTM(4, 2)
    wrapped = torch.nn.Sequential(network)
    with pytest.raises(SettingError, match="module '0' gives a tuple, no tensor: it cannot be probed"):
        probe_features(wrapped, [torch.randn(2, 3, 4)], ("0",), 2)


def test_what_a_network_says_early_is_shallow_and_what_its_last_layer_decides_is_deep() -> None:
    """One class can be told from the pixels; the other two differ in a product of pixels that the network computes."""

    class Product(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Identity(), torch.nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            sign = self.second(10 * torch.stack([x[:, 0] * x[:, 1], x[:, 2]], 1))
            return torch.stack([sign[:, 0], -sign[:, 0], sign[:, 1] - 100], 1)

    random = torch.Generator().manual_seed(0)
    x = torch.randn(600, 43, generator=random) * 2  # forty pixels of noise
    x[:, :2] = torch.sign(x[:, :2])
    x[:, 2] = 0.0
    x[:200, 2] = 40.0
    network = Product().eval()
    labels = network(x).argmax(1)
    train = (lambda: [x[:250], x[250:]], labels)
    found = prediction_depths(network, {"train": train}, bank="train", names=("first", "second"), k=9)["train"]
    assert found.probes == ("input", "first", "second", "softmax")
    easy = labels == 2
    assert found.depth[easy].double().mean() < 0.2
    assert 0.5 < found.depth[~easy].double().mean() <= 2.0
    assert sum(found.histogram) == 600
    assert found.accuracy[2] >= found.accuracy[0]
    parts = {"train": train, "test": (lambda: [x[:100]], labels[:100])}
    both = prediction_depths(network, parts, bank="train", names=("first", "second"), k=1)
    assert both["test"].mean == 0.0, "with themselves in the bank, all are told at once"
    assert both["train"].mean > 0.1


def test_depths_do_not_depend_on_how_many_features_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is counted where it is searched in: never more than the limit, and the bank is seen once a pass."""
    network = ResNet(num_classes=3, widths=(4, 8), blocks=(1, 2)).eval()
    x, labels = torch.randn(70, 3, 8, 8), torch.arange(70) % 3
    seen = {"train": 0, "test": 0}

    def inputs(part: str, images: Tensor) -> Iterator[Tensor]:
        seen[part] += 1
        yield from images.split(16)

    parts = {
        "train": (partial(inputs, "train", x[:40]), labels[:40]),
        "test": (partial(inputs, "test", x[40:]), labels[40:]),
    }
    sizes = [4 * 70 * width for width in (192, 4, 4, 8, 8, 3)]  # input, stem, three blocks, softmax
    made: list[int] = []

    def counted(*how: Any) -> tuple[dict[str, Tensor], Tensor | None]:
        features, said = probe_features(*how)
        made.append(sum(values.nbytes for values in features.values()))
        return features, said

    monkeypatch.setattr(depth, "probe_features", counted)
    results = []
    for limit, passes in ((sum(sizes), 1), (sum(sizes) - 1, 2), (sizes[3] + sizes[4], 3), (sizes[3], 5), (1, 6)):
        seen.update(train=0, test=0)
        made.clear()
        results.append(prediction_depths(network, parts, bank="train", k=3, limit=limit))
        assert seen == {"train": passes + 1, "test": passes}, "and the bank's first batch once, for the widths"
        together = [sum(made[place : place + 2]) for place in range(1, len(made), 2)]
        assert len(together) == passes
        assert all(held <= limit or held in sizes for held in together), "one probe at least"
        assert sum(together) == sum(sizes)
    for found in results[1:]:
        for part in parts:
            assert torch.equal(found[part].depth, results[0][part].depth)
            assert found[part].accuracy == results[0][part].accuracy


def test_features_lie_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    card, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert [depth._room(card, needed) for needed in (400, 500, 501)] == [card, card, cpu]
    assert depth._room(cpu, 1) == cpu


def test_as_many_inputs_as_classes_are_needed() -> None:
    network = ResNet(num_classes=3, widths=(4,), blocks=(1,)).eval()
    for number, said in ((5, "more inputs where there should be 5"), (7, "6 inputs where there should be 7")):
        with pytest.raises(ValueError, match=said):
            probe_features(network, torch.randn(6, 3, 8, 8).split(4), ("input", "softmax"), number)


def test_features_are_those_of_the_modules() -> None:
    network = ResNet(num_classes=3, widths=(4, 8), blocks=(1, 1)).eval()
    images = torch.randn(6, 3, 16, 16)
    probes = ("input", *residual_probes(network), "softmax")
    features, said = probe_features(network, [images[:4], images[4:]], probes, 6)
    assert {name: value.shape[1] for name, value in features.items()} == {
        "input": 768,
        "bn1": 4,
        "layer1.0": 4,
        "layer2.0": 8,
        "softmax": 3,
    }
    with torch.no_grad():
        torch.testing.assert_close(features["softmax"], network(images).softmax(1))
        assert said is not None
        assert torch.equal(said, network(images).argmax(1))
    assert torch.equal(features["input"], images.flatten(1))
    assert probe_features(network, [images], ("input",), 6)[1] is None
    assert not any(module._forward_hooks for module in network.modules())
