"""Norms of layers against torch's own gradients of all examples at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llf_ray.measures.norms import layer_norms
from llf_ray.nn.resnet import ResNet


def test_norms_are_those_of_weights_and_of_the_gradient_over_all_examples() -> None:
    network = ResNet(num_classes=3, widths=(4, 8), blocks=(1, 1)).double()
    random = torch.Generator().manual_seed(0)
    images = torch.randn(10, 3, 8, 8, generator=random, dtype=torch.float64)
    labels = torch.arange(10) % 3
    network.conv1.weight.requires_grad_(False)
    found = layer_norms(network, [(images[:7], labels[:7]), (images[7:], labels[7:])])
    assert network.training
    assert all(weight.grad is None for weight in network.parameters())
    F.cross_entropy(network.eval()(images), labels).backward()
    assert list(found)[:3] == ["conv1", "bn1", "layer1.0.conv1"]
    assert "layer1" not in found
    for name, norms in found.items():
        parameters = list(network.get_submodule(name).parameters())
        whole = torch.cat([weight.detach().reshape(-1) for weight in parameters])
        assert norms.weight == pytest.approx(float(whole.norm()))
        slopes = [weight.grad.reshape(-1) for weight in parameters if weight.grad is not None]
        assert norms.gradient == pytest.approx(float(torch.cat(slopes).norm()) if slopes else 0.0, abs=1e-12)
    assert found["conv1"].gradient == 0.0
    assert found["fc"].gradient > 0


def test_without_examples_there_is_no_gradient() -> None:
    with pytest.raises(ValueError, match="there are no examples"):
        layer_norms(torch.nn.Linear(2, 2), [])
