"""What is shipped computes what was trained, holds nothing else, and runs where none of the rest is installed."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.nn.cropr import (
    Cropping,
    CroprOptions,
    KeepRate,
    Lengths,
    Steady,
    apply,
    load_stripped,
    save_stripped,
    strip,
    traced,
)
from llf_ray.nn.cropr.module import Cropr, Scorer
from llf_ray.nn.cropr.stripped import read_settings
from llf_ray.nn.resnet import ResNet

SMALL: dict[str, Any] = {"num_classes": 7, "embed_dim": 24, "depth": 4, "num_heads": 3}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64}),
    "registers": ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 56}),
    "no class token": ("vit_base_patch16_siglip_224", {**SMALL, "img_size": 64}),
    "rotary": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 56}),
    "mixed rotary": ("vit_small_patch16_rope_mixed_224", {**SMALL, "img_size": 64}),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "several queries": {"queries": 5},
    "a query for each patch": {"queries": "patches"},
    "heads": {"queries": 2, "options": CroprOptions(heads=3)},
    "projections": {"queries": 3, "options": CroprOptions(project=("query", "key", "value"))},
    "biases": {"queries": 3, "options": CroprOptions(project=("query", "key"), bias=True, heads=2)},
    "keys alone": {"options": CroprOptions(project=("key",), bias=True)},
    "norm": {"queries": 2, "options": CroprOptions(norm=True)},
    "all": {"queries": 4, "options": CroprOptions(heads=2, project=("query", "key", "value"), bias=True, norm=True)},
    "no MLP": {"options": CroprOptions(mlp_ratio=0.0)},
    "inverted": {"selector": "non_salient"},
}


def trained(family: str, cropping: Cropping, **options: Any) -> Any:
    """A cropped transformer as after training: no weight is zero or one by accident."""
    torch.manual_seed(0)
    name, made = FAMILIES[family]
    model = apply(timm.create_model(name, **{**made, **options}), cropping)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, Cropr):
                module.queries.mul_(3)
    return model.eval()


def images_for(model: Any, number: int = 3) -> Tensor:
    return torch.randn(number, 3, *model.patch_embed.img_size)


@pytest.mark.parametrize("fusion", [True, False], ids=["fusion", "no fusion"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_stripped_model_says_what_the_trained_one_does_and_holds_one_vector_for_each_module(
    variant: str, fusion: bool
) -> None:
    model = trained("class token", Cropping(schedule=Steady(rate=3), fusion=fusion, **VARIANTS[variant])).double()
    before, images = copy.deepcopy(model.state_dict()), images_for(model).double()
    stripped = strip(model)
    whole, left = model(images, detailed=True), stripped(images, detailed=True)
    torch.testing.assert_close(left.output, whole.output, rtol=1e-12, atol=1e-12)
    assert torch.equal(left.depth, whole.depth), "the same patches are cut at the same places"
    assert len(whole.depth.unique()) > 2
    own = [name for name in stripped.state_dict() if ".cropr." in name]
    places = range(2 if fusion else 3)
    assert own == [f"blocks.{place}.cropr.direction" for place in places]
    assert sum(stripped.state_dict()[name].numel() for name in own) == len(places) * 24, "(L - 2) D, or (L - 1) D"
    assert sum(p.numel() for p in stripped.parameters()) == sum(
        p.numel() for name, p in model.named_parameters() if ".cropr." not in name
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "left as it was"


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_vector_scores_as_all_queries_and_heads_do(variant: str) -> None:
    """The oracle multiplies every query with every token, head by head, and adds up the logits."""
    cropping = Cropping(**VARIANTS[variant])
    queries = 16 if cropping.queries == "patches" else cropping.queries
    module = Cropr(24, 7, queries, cropping.options).double()
    for parameter in module.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    tokens = torch.randn(2, 11, 24, dtype=torch.float64)
    heads = cropping.options.heads
    keys = module.key(module.norm(tokens)).unflatten(2, (heads, -1))
    asked = module.query(module.queries).unflatten(1, (heads, -1))
    logits = torch.einsum("nhd,bmhd->bhnm", asked, keys).sum((1, 2))
    for scores in (module.scores(tokens), Scorer.of(module)(tokens)[0]):
        shifts = scores - logits  # biases add what all tokens of an image share
        torch.testing.assert_close(shifts, shifts[:, :1].expand_as(shifts), rtol=1e-10, atol=1e-10)


class Dense(nn.Module):
    """A transformer inside another network, as dense tasks have it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(24, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images, grid=True)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("family", ["class token", "rotary"])
def test_a_transformer_inside_another_network_is_stripped_where_it_is_and_exported_with_it(family: str) -> None:
    model = Dense(trained(family, Cropping(schedule=KeepRate(keep=0.7), queries="patches"))).train()
    stripped, images = strip(model), images_for(model.encoder)
    assert model.training
    assert not stripped.training
    with torch.no_grad():
        wanted = model.eval()(images)
        torch.testing.assert_close(stripped(images), wanted)
        torch.testing.assert_close(traced(stripped, images[:2]).module()(images), wanted)
    assert not any(isinstance(module, Cropr) for module in stripped.modules())
    with pytest.raises(SettingError, match=r"Dense has its Cropped.* inside: save that one alone"):
        save_stripped(Path("nowhere"), stripped, {"network": {}})


def test_stripping_again_changes_nothing_and_a_plain_network_is_refused() -> None:
    model = trained("class token", Cropping(schedule=Steady(rate=2)))
    once = strip(model)
    again = strip(once)
    assert again.state_dict().keys() == once.state_dict().keys()
    with pytest.raises(SettingError, match="strip: ResNet holds no transformer that loses tokens"):
        strip(ResNet(num_classes=3, widths=(4,), blocks=(1,)))


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_saved_model_is_read_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    name, options = FAMILIES[family]
    model = trained(family, Cropping(schedule=Lengths(tokens=(13, 9), after=(1, 2)), options=CroprOptions(norm=True)))
    about = {"network": {"timm": name, "options": options}, "classes": list("abcdefg")}
    save_stripped(tmp_path, strip(model), about)
    images = images_for(model)
    read = load_stripped(tmp_path)
    assert not read.training
    torch.testing.assert_close(read(images), model(images))
    assert torch.equal(read(images), strip(model)(images))
    settings = read_settings(tmp_path)
    assert settings["cropping"]["tokens"] == [13, 9]
    assert settings["cropping"]["after"] == [1, 2]
    assert settings["classes"] == list("abcdefg")


@pytest.mark.parametrize("selector", ["random", "variance", "class_attention", "merge"])
@torch.no_grad()
def test_rivals_are_saved_alike(selector: Any, tmp_path: Path) -> None:
    model = trained("class token", Cropping(schedule=Steady(rate=2), selector=selector, fusion=False))
    save_stripped(
        tmp_path, strip(model), {"network": {"timm": "vit_tiny_patch16_224", "options": FAMILIES["class token"][1]}}
    )
    images = images_for(model)
    assert torch.equal(load_stripped(tmp_path)(images), model(images))


def test_a_network_that_loses_no_tokens_is_saved_alike(tmp_path: Path) -> None:
    network = ResNet(num_classes=7, widths=(4, 8), blocks=(1, 1)).eval()
    recipe = {"resnet": {"num_classes": 7, "widths": [4, 8], "blocks": [1, 1]}}
    save_stripped(tmp_path, network, {"network": recipe})
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_stripped(tmp_path)(images), network(images))
    assert read_settings(tmp_path)["cropping"] is None


@torch.no_grad()
def test_a_saved_model_is_read_where_nothing_else_of_the_package_can_be(tmp_path: Path) -> None:
    """In a process where every part but nn, and every package but torch's, timm's and safetensors', is missing."""
    name, options = FAMILIES["rotary"]
    model = trained("rotary", Cropping(schedule=Steady(rate=2), queries=3))
    save_stripped(tmp_path, strip(model), {"network": {"timm": name, "options": options}})
    images = images_for(model)
    save_file({"images": images, "scores": strip(model)(images)}, tmp_path / "pair.safetensors")
    parts = "cluster data display engine figures forget journal measures plan recipes run studies tasks tracking train"
    missing = [
        *(f"llf_ray.{part}" for part in parts.split()),
        "ray",
        "deepspeed",
        "mlflow",
        "click",
        "matplotlib",
        "rich",
    ]
    missing += ["onnx", "onnxruntime", "onnxscript", "sklearn", "skimage", "scipy", "nflows", "pandas"]
    program = f"""
import sys
for name in {missing!r}:
    sys.modules[name] = None  # importing it now raises ImportError
import torch
from safetensors.torch import load_file
from llf_ray.nn.cropr import load_stripped
pair = load_file({str(tmp_path / "pair.safetensors")!r})
with torch.no_grad():
    assert torch.equal(load_stripped({str(tmp_path)!r})(pair["images"]), pair["scores"])
print(sorted(name for name in sys.modules if name.startswith("llf_ray.") and sys.modules[name] is not None
             and not name.startswith("llf_ray.nn")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['llf_ray.config']"


def test_a_model_with_auxiliary_heads_is_not_saved(tmp_path: Path) -> None:
    model = trained("class token", Cropping(schedule=Steady(rate=2)))
    with pytest.raises(SettingError, match="has auxiliary heads: save what strip"):
        save_stripped(tmp_path / "new", model, {"network": {}})
    assert not (tmp_path / "new").exists()


def other_settings(**changes: Any) -> Any:
    def damage(file: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def other_weights(change: Any) -> Any:
    def damage(file: Path) -> None:
        values = load_file(file)
        change(values)
        save_file(values, file)

    return damage


DAMAGES: list[tuple[str, Any, str]] = [
    ("model.json", Path.unlink, r"^no exported model in .*: it has no model\.json"),
    ("model.json", lambda file: file.write_text('{"format": '), r"cannot be read as the settings of an .*: JSONDecode"),
    ("model.json", lambda file: file.write_text("{}"), r"cannot be read as the settings of an .*: KeyError: 'format'"),
    ("model.json", lambda file: file.write_text("[1]"), r"cannot be read as the settings of an .*: TypeError"),
    ("model.json", other_settings(format=7), r"model\.json: format = 7: this llf_ray reads format 1"),
    ("model.json", other_settings(network={}), r"cannot be read as the settings of an exported model: KeyError"),
    (
        "model.json",
        other_settings(network={"timm": "vit_tiny_path16", "options": {}}),
        r"cannot be read .*: Unknown model \(vit_tiny_path16\)",
    ),
    (
        "model.json",
        other_settings(cropping={"after": [9], "tokens": [5], "selector": "cropr", "fusion": True, "norm": False,
                                 "proportional": True}),
        r"model\.json: after = \(9,\): 9 is no place to cut tokens at; a network of 4 blocks has 1 to 2",
    ),
    ("model.safetensors", Path.unlink, r"model\.safetensors does not exist: expected a file of weights"),
    ("model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:99]), r"cannot be read as a file of"),
    (
        "model.safetensors",
        other_weights(lambda values: values.pop("blocks.1.cropr.direction")),
        r"is of another architecture than model\.json names: missing blocks\.1\.cropr\.direction$",
    ),
    (
        "model.safetensors",
        other_weights(lambda values: values.update({"head.weight": torch.zeros(9, 24), "x": torch.zeros(1)})),
        r": unknown x; of another shape head\.weight \(9, 24\) for \(7, 24\)$",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("file", "damage", "said"), DAMAGES)
def test_a_damaged_folder_is_one_line_that_names_the_file(file: str, damage: Any, said: str, tmp_path: Path) -> None:
    name, options = FAMILIES["class token"]
    model = trained("class token", Cropping(schedule=Steady(rate=2)))
    save_stripped(tmp_path, strip(model), {"network": {"timm": name, "options": options}})
    damage(tmp_path / file)
    with pytest.raises(SettingError, match=said) as caught:
        load_stripped(tmp_path)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_the_trained_model_are_said_to_be_of_another_architecture(tmp_path: Path) -> None:
    name, options = FAMILIES["class token"]
    model = trained("class token", Cropping(schedule=Steady(rate=2)))
    save_stripped(tmp_path, strip(model), {"network": {"timm": name, "options": options}})
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    said = r"missing blocks\.0\.cropr\.direction, blocks\.1\.cropr\.direction; unknown blocks\.0\.cropr\.head.* in all"
    with pytest.raises(SettingError, match=said):
        load_stripped(tmp_path)


# ------------------------------------------------------------------------------------------------------------- program


@pytest.mark.parametrize(
    ("family", "fusion"),
    [("class token", True), ("class token", False), ("rotary", True), ("mixed rotary", False)],
    ids=str,
)
def test_the_exported_program_takes_any_batch(family: str, fusion: bool) -> None:
    """Three images are as many as the heads have, where a rotary table of a wrong shape would go unseen."""
    model = trained(family, Cropping(schedule=Steady(rate=3), fusion=fusion, queries=2))
    images = images_for(model, 5)
    program = traced(strip(model), images[:2])
    with torch.no_grad():
        wanted = model(images)
        for number in (1, 3, 5):
            torch.testing.assert_close(program.module()(images[:number]), wanted[:number], rtol=1e-5, atol=1e-5)
    assert not any("mlp_norm" in name or "queries" in name for name in program.state_dict)


@pytest.mark.parametrize("selector", ["variance", "class_attention", "merge", "non_salient"])
def test_rivals_are_exported_alike(selector: Any) -> None:
    model = trained("class token", Cropping(schedule=Steady(rate=3), selector=selector, fusion=False))
    images = images_for(model, 5)
    with torch.no_grad():
        torch.testing.assert_close(traced(strip(model), images[:2]).module()(images), model(images))


def test_what_cannot_be_exported_is_named() -> None:
    for selector, said in (
        ("random", "export: selector 'random' draws anew"),
        ("cropr", "has auxiliary heads: export"),
    ):
        model = trained("class token", Cropping(schedule=Steady(rate=3), selector=selector))  # type: ignore[arg-type]
        with pytest.raises(SettingError, match=said):
            traced(model, images_for(model, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "fusion"), [("class token", True), ("rotary", False)], ids=str)
def test_a_stripped_model_compiles_in_one_graph(family: str, fusion: bool) -> None:
    model = trained(family, Cropping(schedule=Steady(rate=3), fusion=fusion), depth=3)
    images = images_for(model, 4)
    compiled = torch.compile(strip(model), fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)
