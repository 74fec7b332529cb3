"""Curvature against the whole Hessian of small networks, by torch.func, and its eigenvalues by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian

from llf_ray.measures.curvature import curvature, hessian_product
from llf_ray.nn.resnet import ResNet

Batches = list[tuple[Tensor, Tensor]]


def small(dtype: torch.dtype) -> tuple[nn.Module, Batches]:
    """145 weights, batch normalisation with statistics of its own, batches of unequal size."""
    random = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 5)).to(dtype)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=random))
    x, y = torch.randn(50, 6, generator=random, dtype=dtype), torch.randint(5, (50,), generator=random)
    network(x)  # in training mode: statistics that are not 0 and 1
    return network, [(x[:32], y[:32]), (x[32:], y[32:])]


def smoothed(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels, label_smoothing=0.1)


def whole_hessian(network: nn.Module, batches: Batches) -> np.ndarray:
    """The matrix, by forward over reverse derivatives of one function of all examples."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    parameters = dict(network.named_parameters())
    buffers = dict(network.named_buffers())

    def loss(values: dict[str, Tensor]) -> Tensor:
        return smoothed(functional_call(network.eval(), (values, buffers), x), y)

    found = hessian(loss)({name: value.detach() for name, value in parameters.items()})
    rows = [
        torch.cat(
            [found[a][b].reshape(parameters[a].numel(), parameters[b].numel()) for b in parameters],
            1,
        )
        for a in parameters
    ]
    return torch.cat(rows).detach().double().numpy()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_eigenvalues_and_trace_are_those_of_the_whole_hessian(dtype: torch.dtype) -> None:
    network, batches = small(dtype)
    network.train()
    found = curvature(network, batches, smoothed, top=5, probes=400)
    assert network.training
    matrix = whole_hessian(network, batches)
    values = np.linalg.eigvalsh(matrix)
    assert values[0] < -0.01 < 0.01 < values[-1], "both signs are there"
    assert found.top == pytest.approx(values[::-1][:5], rel=2e-3)
    assert found.smallest == pytest.approx(values[0], abs=2e-3 * values[-1])
    assert found.trace == pytest.approx(np.trace(matrix), abs=4 * found.trace_error)
    # the variance of v'Hv over random signs is twice the sum of squares off the diagonal
    spread = np.sqrt(2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / 400)
    assert found.trace_error == pytest.approx(spread, rel=0.25)
    assert found.error < 5e-3 * values[-1]
    assert (found.num_weights, found.num_examples, found.notes) == (145, 50, ())


def test_a_product_is_the_matrix_times_the_vector() -> None:
    network, batches = small(torch.float64)
    vector = [torch.randn_like(weight) for weight in network.parameters()]
    found = torch.cat([part.reshape(-1) for part in hessian_product(network, batches, vector, smoothed)])
    wanted = whole_hessian(network, batches) @ torch.cat([part.reshape(-1) for part in vector]).numpy()
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-10)


def test_a_convex_loss_has_no_negative_eigenvalue_and_a_saddle_has_one() -> None:
    random = torch.Generator().manual_seed(1)
    x, y = torch.randn(60, 5, generator=random), torch.randint(3, (60,), generator=random)
    linear = curvature(nn.Linear(5, 3), [(x, y)], probes=2)
    assert linear.smallest == pytest.approx(0.0, abs=1e-3)
    saddle = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False))
    for weight in saddle.parameters():
        nn.init.zeros_(weight)  # a deep linear network at zero: flat in each layer, bent between them
    found = curvature(saddle, [(x, y)], probes=2).smallest
    assert found is not None
    assert found < -0.01


def test_what_was_not_found_is_said_in_words() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 60), nn.Tanh(), nn.Linear(60, 5)).double()
    _, batches = small(torch.float64)
    found = curvature(network, batches, smoothed, top=5, probes=2, tolerance=1e-14, restarts=1)
    assert len(found.top) < 5
    assert found.smallest is None
    assert found.notes[0].endswith("of the 5 largest eigenvalues reached the tolerance of 1e-14 in 1 restarts")
    assert found.notes[1] == "the smallest eigenvalue did not reach the tolerance of 1e-14 in 1 restarts"


def test_the_seed_decides_and_the_network_is_left_as_it_was() -> None:
    network = ResNet(num_classes=3, widths=(4, 8), blocks=(1, 1), in_chans=1)
    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = [(images[:8], torch.arange(8) % 3), (images[8:], torch.arange(4) % 3)]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    one, other, third = (curvature(network, batches, top=1, probes=3, seed=seed) for seed in (0, 0, 1))
    assert one == other
    assert one.trace != third.trace
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


def test_attention_has_a_curvature_too() -> None:
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=3
    )
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    vector = [torch.ones_like(weight) for weight in network.parameters()]
    product = hessian_product(network, [(images, torch.tensor([0, 1, 2, 0]))], vector)
    slopes = []
    for sign in (1, -1):  # central difference of the gradient along the vector
        with torch.no_grad():
            for weight in network.parameters():
                weight += sign * 1e-3
        loss = F.cross_entropy(network.eval()(images), torch.tensor([0, 1, 2, 0]))
        slopes.append(torch.autograd.grad(loss, list(network.parameters())))
        with torch.no_grad():
            for weight in network.parameters():
                weight -= sign * 1e-3
    wanted = torch.cat([((up - down) / 2e-3).reshape(-1) for up, down in zip(*slopes, strict=True)])
    found = torch.cat([part.reshape(-1) for part in product])
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_what_has_no_curvature_says_why() -> None:
    with pytest.raises(ValueError, match="there are no examples"):
        curvature(nn.Linear(5, 3), [])
    with pytest.raises(ValueError, match="top = 5: the network has 3 weights"):
        curvature(nn.Linear(2, 1), [(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))])
