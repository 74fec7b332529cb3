"""Normalisers that are measured once and stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llf_ray.nn.normaliser import freeze, normaliser_of, recalibrate, widths_behind, with_normalisers
from llf_ray.nn.resnet import ResNet


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet(num_classes=3, in_chans=1, widths=(4, 6), blocks=(1, 1)).eval()


BATCHES = [torch.randn(8, 1, 12, 12, generator=torch.Generator().manual_seed(n)) for n in range(3)]


def normalised() -> nn.Module:
    return with_normalisers(network(), {"layer1": 4, "layer2.0": 6})


def test_before_it_is_measured_a_normaliser_changes_no_bit_and_no_name() -> None:
    plain, other = network(), normalised()
    assert torch.equal(plain(BATCHES[0]), other(BATCHES[0]))
    assert set(other.state_dict()) - set(plain.state_dict()) == {
        f"{block}.normaliser.{name}" for block in ("layer1", "layer2.0") for name in ("mean", "std")
    }
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_behind_a_frozen_block_channels_have_mean_0_and_deviation_1_and_nothing_else_moved() -> None:
    net = normalised()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    freeze(net, "layer1", BATCHES)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"layer1.normaliser.mean", "layer1.normaliser.std"}
    assert not net.training
    # the oracle: what the plain block gives, batch normalisation as in training
    plain = network().train()
    given = torch.cat([plain.layer1(torch.relu(plain.bn1(plain.conv1(batch)))) for batch in BATCHES])  # type: ignore[operator]
    found = normaliser_of(net, "layer1")
    assert found is not None
    torch.testing.assert_close(found.mean, given.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.std, given.std((0, 2, 3)), rtol=1e-5, atol=1e-6)
    after = found(given)
    torch.testing.assert_close(after.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.std((0, 2, 3)), torch.ones(4), atol=1e-5, rtol=0)


def test_measuring_again_measures_the_block_and_not_what_was_made_of_it() -> None:
    net = normalised()
    freeze(net, "layer1", BATCHES[:1])
    once = net.state_dict()["layer1.normaliser.std"].clone()
    freeze(net, "layer1", BATCHES[1:])
    freeze(net, "layer1", BATCHES[:1])
    assert torch.equal(net.state_dict()["layer1.normaliser.std"], once)


def test_a_channel_that_never_moves_is_shifted_and_not_blown_up() -> None:
    net = normalised()
    with torch.no_grad():  # channel 2 of the block gives 0 behind its last ReLU
        net.get_parameter("layer1.0.bn2.weight")[2] = 0
        net.get_parameter("layer1.0.bn2.bias")[2] = -1e4
    freeze(net, "layer1", BATCHES)
    assert net.get_buffer("layer1.normaliser.std")[2] == 1
    assert net(BATCHES[0]).isfinite().all()


def test_tokens_are_normalised_along_their_last_axis() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    widths = widths_behind(net, ["0"], torch.randn(2, 7, 5))
    assert widths == {"0": 4}
    tokens = torch.randn(3, 7, 5)
    given = net[0](tokens).detach()
    freeze(with_normalisers(net, widths), "0", [tokens])
    torch.testing.assert_close(net.get_buffer("0.normaliser.mean"), given.mean((0, 1)))
    torch.testing.assert_close(net.get_buffer("0.normaliser.std"), given.flatten(0, 1).std(0))


def test_recalibrated_statistics_are_plain_means_over_the_batches() -> None:
    net = normalised()
    weights = {name: value.clone() for name, value in net.named_parameters()}
    recalibrate(net, BATCHES)
    given = [net.conv1(batch) for batch in BATCHES]  # type: ignore[operator]
    mean = torch.stack([maps.mean((0, 2, 3)) for maps in given]).mean(0)
    variance = torch.stack([maps.var((0, 2, 3)) for maps in given]).mean(0)
    torch.testing.assert_close(net.get_buffer("bn1.running_mean"), mean)
    torch.testing.assert_close(net.get_buffer("bn1.running_var"), variance)
    assert int(net.get_buffer("bn1.num_batches_tracked")) == 3
    assert all(torch.equal(value, weights[name]) for name, value in net.named_parameters())
    assert all(norm.momentum == 0.1 and not norm.training for norm in net.modules() if isinstance(norm, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (["layer9"], "block 'layer9' does not exist"),
        (["fc"], "block 'fc' does not give a map"),
    ],
)
def test_a_block_that_cannot_be_normalised_is_named(blocks: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        widths_behind(network(), blocks, BATCHES[0])


def test_widths_are_found_without_memory() -> None:
    with torch.device("meta"):
        net: Any = ResNet(num_classes=3, widths=(4, 6), blocks=(1, 1))
        assert widths_behind(net, ["layer1", "layer2.0"], torch.empty(2, 3, 64, 64)) == {"layer1": 4, "layer2.0": 6}
    assert net.training
