"""`llf-ray export` on finished runs, small but real."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from click.testing import CliRunner

from llf_ray.cli import main
from llf_ray.config import SettingError
from llf_ray.data.order import Draw
from llf_ray.nn.cropr import Cropping, Steady, apply, load_stripped, strip, traced
from llf_ray.nn.cropr.module import Cropr
from llf_ray.recipes.long import Long
from llf_ray.run import prepare
from llf_ray.studies import export as study
from llf_ray.studies.export import Written, export_of, onnx_session, save_onnx
from llf_ray.studies.finished import open_finished
from llf_ray.tasks.classification import Normalised
from llf_ray.tasks.classification import tiny as plain
from llf_ray.train.folder import create
from tests.local import settings, whole
from tests.studies.shipped import SMALL, TASK, config


def some_images() -> torch.Tensor:
    (batch,) = TASK.batches("test", [Draw(np.arange(20))], torch.device("cpu"))
    return batch.images


@torch.no_grad()
def test_all_formats_compute_what_the_runs_network_does(cropped_run: Path, exported: tuple[Path, str]) -> None:
    network, images = open_finished(cropped_run).network(), some_images()
    wanted = network(images)
    assert any(isinstance(module, Cropr) for module in network.modules())
    weights = load_stripped(exported[0])
    assert not any(isinstance(module, Cropr) for module in weights.modules())
    program = torch.export.load(exported[0] / "model.pt2").module()
    graph = onnx_session(exported[0] / "model.onnx")
    for compute in (weights, program, graph):
        for number in (1, 20):
            torch.testing.assert_close(compute(images[:number]), wanted[:number], rtol=1e-4, atol=1e-5)


def test_the_onnx_graph_is_plain_and_takes_any_batch(exported: tuple[Path, str]) -> None:
    graph = onnx.load(exported[0] / "model.onnx").graph
    operators = {node.op_type for node in graph.node}
    assert {"TopK", "Concat", "MatMul"} <= operators
    assert operators & {"GatherElements", "Gather"}
    assert not operators & {"Loop", "If", "Scan", "NonZero"}, "lengths are the same for every image"
    assert all(not node.domain for node in graph.node), "operators of the standard alone"
    (given,), (answer,) = graph.input, graph.output
    assert (given.name, answer.name) == ("images", "scores")
    first, *others = given.type.tensor_type.shape.dim
    assert first.dim_param
    assert [axis.dim_value for axis in others] == [1, 28, 28]


@pytest.mark.slow
@pytest.mark.parametrize("fusion", [True, False], ids=["fusion", "no fusion"])
@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "eva02_tiny_patch14_224",
        "vit_small_patch16_rope_mixed_224",
    ],
)
@torch.no_grad()
def test_every_family_goes_through_onnx(name: str, fusion: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_classes": 7, "embed_dim": 24, "depth": 4, "num_heads": 3, "img_size": 112}
    model = apply(timm.create_model(name, **options), Cropping(schedule=Steady(rate=9), fusion=fusion)).eval()
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    images = torch.randn(5, 3, 112, 112)
    save_onnx(traced(strip(model), images[:2]), tmp_path / "m.onnx", 0)
    scores = onnx_session(tmp_path / "m.onnx")
    for number in (1, 3, 5):  # three images are as many as there are heads
        torch.testing.assert_close(scores(images[:number]), model(images[:number]), rtol=1e-4, atol=1e-5)


def test_the_command_says_what_it_wrote_and_how_well_it_fits(cropped_run: Path, exported: tuple[Path, str]) -> None:
    folder, said = exported
    network = open_finished(cropped_run).network()
    own = sum(p.numel() for name, p in network.named_parameters() if ".cropr." not in name) + 2 * 24
    assert said.startswith(
        f"{own:,} numbers of the {sum(p.numel() for p in network.parameters()):,} parameters that were trained\n"
    )
    for name, file in (("safetensors", "model.safetensors"), ("torch", "model.pt2"), ("onnx", "model.onnx")):
        assert f"{name}: {file}, " in said
        assert (folder / file).stat().st_size > 4 * own
    assert said.count("the class is the same for 100 %\n") == 3
    assert said.endswith(f"written: {folder}\n")


def test_the_settings_hold_all_that_a_user_needs(exported: tuple[Path, str]) -> None:
    found = json.loads((exported[0] / "model.json").read_text())
    scaling = TASK.scaling()
    assert found["format"] == 1
    assert found["run"] == "toy"
    assert found["network"]["timm"] == "vit_tiny_patch16_224"
    assert found["network"]["options"] == {"num_classes": 10, "in_chans": 1, **SMALL.options}
    assert found["cropping"]["after"] == [1, 2]
    assert found["cropping"]["tokens"] == [37, 25], "49 patches and the class token, less 12 + 1, less 12"
    assert found["classes"] == list(TASK.data.classes())
    assert found["images"]["mean"] == list(scaling.mean)
    assert found["images"]["std"] == list(scaling.std)
    assert (found["images"]["height"], found["images"]["resize"]) == (28, "square")


def test_any_network_of_classification_is_exported(tmp_path: Path) -> None:
    task = replace(plain, label_smoothing=0.0, model=Normalised(model=plain.model, after=("layer1",)))
    found = export_of(whole(config(task), tmp_path / "plain"), tmp_path / "here", study.FORMATS[:2])
    assert [one.sound for one in found.written] == [True, True]
    assert found.cost == found.dense_cost
    assert found.numbers == found.trained_numbers
    assert not [name for name in load_stripped(tmp_path / "here").state_dict() if "normaliser" in name]


def test_a_folder_holds_one_network(cropped_run: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data", "notes.txt"):
        (tmp_path / name).touch()
    export_of(cropped_run, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors", "notes.txt"]
    export_of(cropped_run, tmp_path, ("torch",))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.pt2", "notes.txt"]


def test_a_network_that_says_the_class_of_every_pixel_is_exported(tmp_path: Path) -> None:
    from llf_ray.tasks.segmentation import tiny as task  # made when it is asked for, hence here

    folder = whole(config(task), tmp_path / "pixels")
    found = export_of(folder, formats=study.FORMATS[:2])
    assert [(one.sound, one.same) for one in found.written] == [(True, 1.0), (True, 1.0)]
    assert 0 < found.cost.total < found.dense_cost.total
    images = torch.randn(3, *task.example().shape[1:])
    with torch.no_grad():
        wanted = open_finished(folder).network()(images)
        torch.testing.assert_close(load_stripped(folder / "exported")(images), wanted)
    done = CliRunner().invoke(main, ["predict", str(folder / "exported"), str(tmp_path)])
    assert "says the class of every pixel, and whole images are asked for" in done.output


def test_a_network_that_a_program_cannot_hold_goes_by_its_weights(tmp_path: Path) -> None:
    drawn = replace(TASK.model, cropping=Cropping(schedule=Steady(rate=12), selector="random"))
    folder = whole(config(replace(TASK, model=drawn)), tmp_path / "drawn")
    with pytest.raises(
        SettingError, match=r"run 'drawn': selector 'random' draws anew .*; format safetensors can hold it"
    ):
        export_of(folder, formats=("safetensors", "onnx"))
    assert not (folder / "exported").exists(), "nothing is written before all is known to work"
    (one,) = export_of(folder).written
    assert one.sound


def test_mistakes_are_one_line_before_anything_is_written(
    cropped_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(prepare(config()), tmp_path / "begun")
    toy = whole(settings(Long(generations=1, epochs=1)), tmp_path / "toy")
    with pytest.raises(SettingError, match="format 'onxx' does not exist; did you mean 'onnx'"):
        export_of(cropped_run, tmp_path / "new", ("onxx",))
    with pytest.raises(SettingError, match="run 'begun' is not finished"):
        export_of(tmp_path / "begun", tmp_path / "new")
    with pytest.raises(SettingError, match="run 'toy': Toy has no network that turns images into class scores"):
        export_of(toy, tmp_path / "new")
    monkeypatch.setattr(study, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(
        SettingError, match=r"format onnx: onnxscript is not installed: pip install 'llf_ray\[export\]'"
    ):
        export_of(cropped_run, tmp_path / "new", ("onnx",))
    assert not (tmp_path / "new").exists()


def test_a_file_that_computes_something_else_is_a_failure(
    cropped_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(folder: Path) -> Any:
        network = load_stripped(folder)
        return lambda images: network(images) + 1.0

    monkeypatch.setattr(study, "load_stripped", wrong)
    done = CliRunner().invoke(main, ["export", str(cropped_run), "--to", str(tmp_path / "new")])
    assert done.exit_code == 1
    assert f"llf-ray: safetensors in {tmp_path / 'new'} does not compute what the run's network does" in done.output


def test_sizes_count_what_lies_beside_a_file(tmp_path: Path) -> None:
    for name, size in (("a", 3), ("b", 5)):
        (tmp_path / name).write_bytes(b"x" * size)
    written = Written(format="onnx", files=(tmp_path / "a", tmp_path / "b"), difference=0.0, same=1.0, sound=True)
    assert written.size == 8
