"""The LeNet 300-100 of pruning papers."""

import torch

from llf_ray.nn.perceptron import Perceptron
from llf_ray.nn.slim import load_slim, save_slim
from llf_ray.tasks import MultiLayerPerceptron


def test_it_is_a_chain_of_linear_layers():
    torch.manual_seed(0)
    network = Perceptron(num_classes=10, inputs=784)
    assert sum(value.numel() for value in network.parameters()) == 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    inputs = torch.randn(5, 1, 28, 28)
    chain = torch.nn.Sequential(
        torch.nn.Flatten(), network.fc1, torch.nn.ReLU(), network.fc2, torch.nn.ReLU(), network.fc
    )
    assert torch.equal(network(inputs), chain(inputs))
    assert abs(float(network.fc1.weight.detach().std()) / (2 / 784) ** 0.5 - 1) < 0.02, "Kaiming-normal"


def test_it_comes_back_from_plain_data(tmp_path):
    model = MultiLayerPerceptron(size=8, widths=(12,))
    network = model.make(3, 1)
    save_slim(tmp_path, network, {}, model.recipe(3, 1))
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(load_slim(tmp_path)(images), network(images))
