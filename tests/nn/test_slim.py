"""Slim networks compute what the whole network does with zeros in place of its forgotten part, for any wiring."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import googlenet

from llf_ray.config import SettingError
from llf_ray.nn.channels import extract, kept_channels
from llf_ray.nn.normaliser import with_normalisers
from llf_ray.nn.resnet import ResNet
from llf_ray.nn.slim import Width, load_slim, narrow, save_slim
from llf_ray.studies.slim import without_forgotten

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet26": {},
    "densenet121": {"growth_rate": 8, "block_config": (2, 3, 2, 2), "memory_efficient": False},
    "mobilenetv2_035": {},
    "efficientnet_b0": {},
    "seresnet18": {},
    "vgg11_bn": {"mlp_ratio": 0.01},
    "googlenet": {"aux_logits": False, "init_weights": False},
}


def trained(network: nn.Module) -> nn.Module:
    """Statistics and affine parameters as after training: nothing is zero or one by accident."""
    random = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -1.0, 1.0),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -1.0, 1.0),
            ):
                assert value is not None
                value.uniform_(low, high, generator=random)
    return network.eval()


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    create = googlenet if name == "googlenet" else partial(timm.create_model, name)
    return trained(create(num_classes=7, **NETWORKS[name]))


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_slim_network_equals_the_dense_one_with_its_forgotten_part_zeroed(name: str, share: float) -> None:
    network, images = made(name), torch.randn(2, 3, 64, 64)
    before = copy.deepcopy(network.state_dict())
    slim, widths = extract(network, images[:1], share)
    zeroed = without_forgotten(network, kept_channels(network, images[:1], share))
    with torch.no_grad():
        torch.testing.assert_close(slim(images), zeroed(images), rtol=1e-4, atol=1e-4)
        assert share < 1 or torch.equal(slim(images), network(images))
    sizes = [sum(p.numel() for p in net.parameters()) for net in (slim, network)]
    assert share == 1 or sizes[0] < 1.2 * share**2 * sizes[1] + 0.05 * sizes[1]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "left as it was"
    assert not any(layer._forward_hooks for layer in network.modules())
    assert widths


def test_the_block_of_a_plain_network_is_the_papers() -> None:
    """First layer all inputs, last layer all outputs, else the first ceil(share C) of both."""
    network = ResNet(num_classes=7, widths=(5, 9), blocks=(1, 1))
    kept = kept_channels(network, torch.zeros(1, 3, 16, 16), 0.5)
    sizes = {name: (int(k.outputs.sum()), int(k.inputs.sum())) for name, k in kept.items()}
    assert sizes["conv1"] == (3, 3)
    assert sizes["layer1.0.conv1"] == (3, 3)
    assert sizes["layer2.0.conv1"] == sizes["layer2.0.downsample.0"] == (5, 3)
    assert sizes["fc"] == (7, 5)
    assert all(bool(k.outputs[: sizes[name][0]].all()) for name, k in kept.items())


def test_concatenated_inputs_are_kept_segment_by_segment() -> None:
    network = made("densenet121")
    kept = kept_channels(network, torch.zeros(1, 3, 64, 64), 0.5)
    # the first dense layer reads the stem's 16 channels, the second those and 8 more
    second = kept["features.denseblock1.denselayer2.conv1"].inputs
    assert second.tolist() == [True] * 8 + [False] * 8 + [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: timm.create_model("resnext26ts", num_classes=3), "groups get different numbers of channels"),
        (lambda: timm.create_model("convnext_atto", num_classes=3), "only networks with batch normalisation"),
        (lambda: ResNet(num_classes=3, widths=(8, 16), blocks=(1, 1), shortcut="pad"), "do not line up"),
    ],
)
def test_what_cannot_be_made_slim_says_why(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        extract(make().eval(), torch.zeros(1, 3, 64, 64), 0.6)  # type: ignore[operator]


def test_a_saved_slim_network_is_read_with_torch_and_timm_alone(tmp_path: Path) -> None:
    network = made("resnet18")
    slim, widths = extract(network, torch.zeros(1, 3, 64, 64), 0.5)
    save_slim(tmp_path / "slim", slim, widths, {"timm": "resnet18", "options": {"num_classes": 7}})
    images = torch.randn(2, 3, 64, 64)
    torch.save((images, slim(images).detach()), tmp_path / "pair.pt")
    code = (
        "import sys, torch; from llf_ray.nn.slim import load_slim;"
        f"images, scores = torch.load({str(tmp_path / 'pair.pt')!r});"
        f"net = load_slim({str(tmp_path / 'slim')!r}).eval();"
        "assert torch.equal(net(images), scores);"
        "print(sorted(n for n in ('ray', 'deepspeed', 'mlflow', 'sklearn') if n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    own = ResNet(num_classes=7, widths=(8, 16), blocks=(1, 1)).eval()
    slim, widths = extract(own, torch.zeros(1, 3, 16, 16), 0.5)
    save_slim(tmp_path / "own", slim, widths, {"resnet": {"num_classes": 7, "widths": [8, 16], "blocks": [1, 1]}})
    assert sum(p.numel() for p in load_slim(tmp_path / "own").parameters()) == sum(p.numel() for p in slim.parameters())


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:100]), r" cannot be read as a file of"),
        ("model.safetensors", Path.unlink, " does not exist: expected a file of weights"),
        (
            "model.safetensors",
            lambda file: save_file({"x": torch.zeros(1)}, file),
            r" does not fit slim\.json: ",
        ),
        ("slim.json", lambda file: file.write_text('{"resnet": '), " cannot be read as the widths .*: JSONDecodeError"),
        ("slim.json", lambda file: file.write_text("{}"), " cannot be read as the widths of a slim network: KeyError"),
        ("slim.json", Path.unlink, "^no slim network in .*: it has no slim.json"),
    ],
)
def test_a_damaged_slim_network_is_one_line_that_names_the_file(file: str, damage, said: str, tmp_path: Path) -> None:
    own = ResNet(num_classes=7, widths=(8, 16), blocks=(1, 1)).eval()
    slim, widths = extract(own, torch.zeros(1, 3, 16, 16), 0.5)
    save_slim(tmp_path, slim, widths, {"resnet": {"num_classes": 7, "widths": [8, 16], "blocks": [1, 1]}})
    damage(tmp_path / file)
    with pytest.raises(SettingError, match=said) as caught:
        load_slim(tmp_path)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_normalisers_that_change_nothing_are_left_out_and_others_say_so() -> None:
    network, images = made("resnet18"), torch.randn(2, 3, 64, 64)
    slim, widths = extract(network, images[:1], 0.5)
    network = with_normalisers(network, {"layer1": 64, "layer2.0": 128})
    again, same = extract(network, images[:1], 0.5)
    assert same == widths
    assert again.state_dict().keys() == slim.state_dict().keys()
    assert torch.equal(again(images), slim(images))
    assert "layer1.normaliser.mean" in network.state_dict(), "left as it was"
    network.get_buffer("layer2.0.normaliser.std")[3] = 2.0
    with pytest.raises(ValueError, match=r"the normaliser behind layer2\.0 was switched on"):
        extract(network, images[:1], 0.5)


def test_a_layer_that_is_not_there_or_cannot_be_narrowed_is_named() -> None:
    network = ResNet(num_classes=3, widths=(8,), blocks=(1,))
    with pytest.raises(ValueError, match="layer1 is Sequential: no layer that can be made slim"):
        narrow(network, {"layer1": Width(2, 2)})
