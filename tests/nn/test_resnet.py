"""The small residual network."""

import json
import math

import pytest
import torch

from llf_ray.nn import ResNet


def resnet(**changes):
    torch.manual_seed(0)
    return ResNet(**{"num_classes": 5, "in_chans": 1, "widths": (4, 8, 8), "blocks": (1, 2, 1), **changes})


def test_layers_have_the_names_and_shapes_of_timms_networks():
    network = resnet()
    names = [name for name, _ in network.named_children()]
    assert names == ["conv1", "bn1", "layer1", "layer2", "layer3", "fc"]
    assert {"layer2.0.downsample.0.weight", "layer2.1.bn2.running_mean"} <= set(network.state_dict())
    assert network(torch.zeros(2, 1, 15, 12)).shape == (2, 5)


def test_a_network_of_timms_shape_takes_timms_weights():
    import timm

    theirs = timm.create_model("resnet18", num_classes=5, in_chans=1)
    ours = ResNet(num_classes=5, in_chans=1, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2))
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items() if name != "conv1.weight"}
    assert shapes == {n: tuple(v.shape) for n, v in ours.state_dict().items() if n != "conv1.weight"}


@pytest.mark.parametrize(("blocks", "parameters"), [(3, 0.27e6), (9, 0.85e6)])
def test_the_papers_networks_for_cifar_have_its_number_of_parameters(blocks, parameters):
    network = ResNet(num_classes=10, widths=(16, 32, 64), blocks=(blocks,) * 3, shortcut="pad")
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=0.02)
    assert not any("downsample" in name for name in network.state_dict())


def test_weights_start_kaiming_normal():
    network = ResNet(num_classes=100, widths=(64, 128), blocks=(1, 1))
    for part in (network.layer2[0].conv2, network.fc):
        assert part.weight.std().item() == pytest.approx(math.sqrt(2 / part.weight[0].numel()), rel=0.05)
        assert abs(part.weight.mean().item()) < 0.01
    assert network.fc.bias.abs().sum() == 0
    assert (network.bn1.weight == 1).all()


def test_a_network_comes_back_from_its_settings():
    settings = {"num_classes": 3, "in_chans": 1, "widths": [4, 6], "blocks": [1, 1], "stem_stride": 2}
    network = ResNet(**json.loads(json.dumps(settings)))
    other = ResNet(**settings)
    other.load_state_dict(network.state_dict())
    images = torch.randn(2, 1, 9, 9)
    assert torch.equal(network.eval()(images), other.eval()(images))


@pytest.mark.parametrize("shortcut", ["conv", "pad"])
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(shortcut):
    images, target = torch.randn(6, 1, 12, 12), torch.arange(6) % 5
    results = []
    for enable in (False, True):
        network = resnet(shortcut=shortcut)
        network.set_grad_checkpointing(enable)
        torch.nn.functional.cross_entropy(network(images), target).backward()
        results.append(([p.grad for p in network.parameters()], dict(network.named_buffers())))
    (plain_gradients, plain_buffers), (gradients, buffers) = results
    assert all(torch.equal(a, b) for a, b in zip(plain_gradients, gradients, strict=True))
    assert all(torch.equal(plain_buffers[name], buffers[name]) for name in plain_buffers)
    assert buffers["bn1.num_batches_tracked"] == buffers["layer2.1.bn2.num_batches_tracked"] == 1


def test_every_parameter_gets_a_gradient():
    network = resnet()
    network(torch.randn(4, 1, 12, 12)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
