"""Effective weights are those whose removal changes an output: by removing each of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llf_ray.nn.paths import effective
from llf_ray.nn.resnet import ResNet


class Residual(nn.Module):
    """Sums, joins, groups, pools, gates and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.twice = nn.Conv2d(4, 4, 1)
        self.gate = nn.Linear(4, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(images)), inplace=True)
        y = x + F.relu(self.depthwise(x))
        y = self.pool(y)
        z = F.relu(self.twice(F.relu(self.twice(y))))
        gated = z * torch.sigmoid(self.gate(z.mean((2, 3))))[:, :, None, None]
        return self.head(torch.cat([y.mean((2, 3)), gated.mean((2, 3))], 1))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


NETWORKS = {
    "perceptron": (perceptron, (1, 4)),
    "convolutions": (convolutions, (1, 2, 8, 8)),
    "residual": (Residual, (1, 2, 7, 7)),
}


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.named_parameters() if value.dim() > 1}


def drawn(network: nn.Module, share: float, seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {name: torch.rand(value.shape, generator=random) < share for name, value in weights_of(network).items()}


class Passing(nn.Module):
    """A normalisation at its start, without its statistics."""

    def forward(self, values: Tensor) -> Tensor:
        return values


def by_removal(network: nn.Module, shape: tuple[int, ...], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zero each live entry in turn: does an output change for some positive weights, small ones so that gates open?"""
    plain = copy.deepcopy(network).double().eval()
    for name, module in list(plain.named_children()):
        if isinstance(module, nn.BatchNorm2d):
            setattr(plain, name, Passing())
    found = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = torch.rand(4, *shape[1:], dtype=torch.float64) + 0.1
        with torch.no_grad():
            for name, value in plain.named_parameters():
                value.copy_(0.3 * torch.rand_like(value) + 0.03 if name in masks else torch.zeros_like(value))
                if name in masks:
                    value.mul_(masks[name])
            whole = plain(inputs)
            for name, mask in masks.items():
                entries = plain.get_parameter(name).view(-1)
                for place in mask.view(-1).nonzero().flatten().tolist():
                    kept = entries[place].clone()
                    entries[place] = 0.0
                    change = (plain(inputs) - whole).abs().max()
                    entries[place] = kept
                    found[name].view(-1)[place] |= bool(change > 1e-12)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.15, 0.35, 0.7])
@pytest.mark.parametrize("name", NETWORKS)
def test_effective_weights_are_those_whose_removal_changes_an_output(name: str, share: float, seed: int) -> None:
    make, shape = NETWORKS[name]
    network = make()
    masks = drawn(network, share, seed)
    before = copy.deepcopy(network.state_dict())
    found, wanted = effective(network, torch.zeros(shape), masks), by_removal(network, shape, masks)
    assert {n: m.tolist() for n, m in found.items()} == {n: m.tolist() for n, m in wanted.items()}
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "left as it was"
    assert not any(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, dilation=2), nn.AdaptiveMaxPool2d(2)]
)
def test_all_of_a_window_counts(pool: nn.Module) -> None:
    """A tap that is nowhere the largest of its window would be with other weights."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), pool, nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 1, 9, 9))
    masks = {"0.weight": torch.ones(2, 1, 3, 3, dtype=torch.bool)}
    assert bool(effective(network, torch.zeros(1, 1, 9, 9), masks)["0.weight"].all())


def test_by_hand() -> None:
    """Two hidden units: one is fed by nobody, one is read by nobody."""
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    first = torch.tensor([[False, False], [True, True], [True, False]])
    second = torch.tensor([[True, False, True]])
    found = effective(network, torch.zeros(1, 2), {"0.weight": first, "2.weight": second})
    assert found["0.weight"].tolist() == [[False, False], [False, False], [True, False]]
    assert found["2.weight"].tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [
        ("resnet18", 64, {}),
        ("densenet121", 64, {"growth_rate": 8, "block_config": (2, 3, 2, 2)}),
        ("mobilenetv3_small_050", 160, {}),  # on smaller images the rims of wide filters see nothing but padding
        ("convnext_atto", 160, {"depths": (1, 1, 1, 1)}),
        ("vit_tiny_patch16_224", 64, {"img_size": 64, "depth": 2}),
    ],
)
def test_all_of_a_whole_network_is_effective_and_nothing_behind_a_cut(
    name: str, side: int, options: dict[str, object]
) -> None:
    network = timm.create_model(name, num_classes=5, **options)
    weights = {
        path + ".weight": module.weight
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    masks = {path: torch.ones_like(value, dtype=torch.bool) for path, value in weights.items()}
    found = effective(network, torch.zeros(1, 3, side, side), masks)
    short = {path: int((~mask).sum()) for path, mask in found.items() if not bool(mask.all())}
    assert not short
    (*_, last) = masks
    found = effective(network, torch.zeros(1, 3, side, side), {**masks, last: torch.zeros_like(masks[last])})
    assert not any(bool(mask.any()) for mask in found.values()), "nothing reaches the output"


def test_depth_does_not_wear_a_thin_path_out() -> None:
    """A single chain of weights through 400 layers."""
    network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(400)))
    chain = torch.zeros(8, 8, dtype=torch.bool)
    chain[0, 0] = True
    masks = {f"{layer}.weight": chain for layer in range(400)}
    assert all(torch.equal(mask, chain) for mask in effective(network, torch.zeros(1, 8), masks).values())


def test_zero_padded_shortcuts_are_paths() -> None:
    network = ResNet(num_classes=3, widths=(4, 8), blocks=(1, 1), shortcut="pad")
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in weights_of(network).items()}
    masks["layer2.0.conv1.weight"] = torch.zeros_like(masks["layer2.0.conv1.weight"])
    found = effective(network, torch.zeros(1, 3, 8, 8), masks)
    assert not bool(found["layer2.0.conv2.weight"].any()), "fed by a dead layer"
    assert bool(found["layer1.0.conv2.weight"].all()), "read beside it"
    assert found["fc.weight"].all(0).tolist() == [False] * 2 + [True] * 4 + [False] * 2
