"""Features are what the classifier sees, and looking at them leaves a network as it was."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from llf_ray.measures.features import Labelled, as_evaluated, class_scores, pooled_features
from llf_ray.nn.resnet import ResNet


def batches(number: int, side: int = 16, channels: int = 3) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(number, channels, side, side, generator=random)
    return list(zip(images.split(3), torch.arange(number).split(3), strict=True))


@pytest.mark.parametrize(
    ("name", "head"),
    [("resnet18", "fc"), ("vit_tiny_patch16_224", "head"), ("mobilenetv3_small_050", "classifier"), ("ours", "fc")],
)
def test_the_head_turns_features_into_the_networks_scores(name: str, head: str) -> None:
    options = {"img_size": 32} if name.startswith("vit") else {}
    if name == "ours":
        network: nn.Module = ResNet(num_classes=5, widths=(4, 8), blocks=(1, 1))
    else:
        network = timm.create_model(name, num_classes=5, **options)
    images = batches(7, 32)
    found, scores = pooled_features(network, images), class_scores(network, images)
    assert found.labels.tolist() == scores.labels.tolist() == list(range(7))
    with torch.no_grad():
        torch.testing.assert_close(network.get_submodule(head)(found.values), scores.values)
        network.eval()
        torch.testing.assert_close(scores.values[:3], network(images[0][0]))


def test_looking_changes_neither_statistics_nor_modes() -> None:
    network = ResNet(num_classes=3, widths=(4, 8), blocks=(1, 1)).train()
    network.layer1.eval()  # as a plan that holds a part's statistics leaves it
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pooled_features(network, batches(4))
    class_scores(network, batches(4))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not network.layer1.training
    assert network.layer2.training
    assert not any(module._forward_pre_hooks for module in network.modules())
    with pytest.raises(RuntimeError, match="inside"), as_evaluated(network):
        raise RuntimeError("inside")
    assert network.training


def test_what_has_no_features_says_so() -> None:
    with pytest.raises(ValueError, match="Sequential has no linear layer"):
        pooled_features(nn.Sequential(nn.Flatten()), batches(2))
    with pytest.raises(ValueError, match="there are no images"):
        pooled_features(nn.Linear(2, 2), [])
    with pytest.raises(ValueError, match=r"\(N, D\) and \(N,\) are needed"):
        Labelled(torch.zeros(3, 2), torch.zeros(2))
