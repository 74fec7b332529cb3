"""`llf-ray predict` on images in files, by a model that a real run left."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from llf_ray.cli import main
from llf_ray.config import SettingError
from llf_ray.data.order import Draw
from llf_ray.nn.cropr import Cropping, Steady
from llf_ray.studies.export import export_of
from llf_ray.studies.finished import open_finished
from llf_ray.studies.predict import images_at, open_model, predict
from llf_ray.tasks.classification import tiny as plain
from tests.local import whole
from tests.studies.shipped import TASK, config

FORMATS = ("bmp", "gif", "pgm", "png", "tif", "jp2")  # without loss, for grey pixels


@pytest.fixture
def model(exported: tuple[Path, str]) -> Path:
    """The exported folder."""
    return exported[0]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """The run's test images in files of several formats, some in a folder of their own, beside one that is no image."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    stack: Any = TASK.data.load("test")
    for number, pixels in enumerate(stack.images):
        place = folder / "more" if number >= 10 else folder
        options = {"irreversible": False} if FORMATS[number % 6] == "jp2" else {}
        Image.fromarray(pixels[:, :, 0]).save(place / f"{number:02}.{FORMATS[number % 6]}", **options)
    (folder / "notes.txt").write_text("no image")
    return folder


def asked(*words: Any) -> Any:
    return CliRunner().invoke(main, ["predict", *map(str, words)])


@pytest.mark.parametrize("file", ["", "model.safetensors", "model.onnx"])
@torch.no_grad()
def test_answers_are_those_of_the_runs_network_on_its_test_images(
    file: str, cropped_run: Path, model: Path, pictures: Path
) -> None:
    (batch,) = TASK.batches("test", [Draw(np.arange(20))], torch.device("cpu"))
    chances = open_finished(cropped_run).network()(batch.images).softmax(1)
    for size in (32, 3):
        done = asked(model / file, pictures, "--to", pictures / "answers.csv", "--top", 3, "--batch", size)
        assert done.exit_code == 0, done.output
        with (pictures / "answers.csv").open() as opened:
            rows = list(csv.DictReader(opened))
        assert [row["image"].rpartition("/")[2][:2] for row in rows] == [f"{number:02}" for number in range(20)]
        assert rows[10]["image"] == "more/10.tif"
        for row, own in zip(rows, chances, strict=True):
            shares, order = own.topk(3)
            assert [row[f"class_{rank}"] for rank in (1, 2, 3)] == [TASK.data.classes()[i] for i in order]
            assert [float(row[f"probability_{rank}"]) for rank in (1, 2, 3)] == pytest.approx(shares.tolist(), abs=2e-6)
    assert done.output.startswith("20 images: ")


def test_one_image_is_answered_on_the_terminal_and_in_json(model: Path, pictures: Path) -> None:
    done = asked(model, pictures / "03.png", "--top", 99)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("03.png: ")
    assert done.stdout.count(" %") == 10, "as many classes as there are"
    assert asked(model, pictures / "03.png", "--to", pictures / "new" / "a.json").exit_code == 0
    (answer,) = json.loads((pictures / "new" / "a.json").read_text())
    first = answer["classes"][0]
    assert f"{first['class']} {100 * first['probability']:.1f} %" in done.stdout
    assert len(answer["classes"]) == 5


def test_maps_are_drawn_for_each_image_and_on_one_sheet(model: Path, pictures: Path) -> None:
    for path in sorted(pictures.glob("*.*"))[4:10]:
        path.unlink()
    for path in sorted(pictures.glob("more/*.*"))[1:]:
        path.unlink()
    done = asked(model, pictures, "--maps", pictures.parent / "maps")
    assert done.exit_code == 0, done.output
    drawn = sorted(str(p.relative_to(pictures.parent / "maps")) for p in pictures.parent.glob("maps/**/*.png"))
    assert len(drawn) == 6
    assert {"overview.png", "images/00.bmp.png", "images/more/10.tif.png"} <= set(drawn)
    with Image.open(pictures.parent / "maps" / "overview.png") as sheet:
        assert min(sheet.size) > 600


@torch.no_grad()
def test_the_map_says_behind_which_block_each_patch_went(cropped_run: Path, model: Path) -> None:
    """Against a hook on each block that counts the tokens that reach it."""
    opened, network = open_model(model), open_finished(cropped_run).network()
    (batch,) = TASK.batches("test", [Draw(np.arange(4))], torch.device("cpu"))
    lengths: list[int] = []
    for block in network.blocks:  # type: ignore[union-attr]
        block.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    wanted, (scores, depth) = network(batch.images), opened.run(batch.images)
    torch.testing.assert_close(scores, wanted)
    assert depth is not None
    assert opened.after == (1, 2)
    assert lengths == [50, 37, 25, 50], "the last block sees all again"
    for image in depth:
        alive = [1 + int((image > block).sum()) for block in (0, 1, 2)]
        assert alive == lengths[:3]


def test_broken_images_stop_or_are_passed_over_by_name(model: Path, pictures: Path) -> None:
    (pictures / "04.png").write_bytes(b"\x89PNG and no more")
    whole_file = (pictures / "more" / "15.png").read_bytes() if (pictures / "more" / "15.png").exists() else None
    (pictures / "more" / "x.png").write_bytes((whole_file or (pictures / "03.png").read_bytes())[:200])
    done = asked(model, pictures, "--to", pictures / "a.csv")
    assert done.exit_code == 2
    assert done.output.startswith(f"llf-ray: {pictures / '04.png'} cannot be read as an image: ")
    assert "--skip-broken" in done.output
    assert done.output.count("\n") == 1
    assert not (pictures / "a.csv").exists()
    done = asked(model, pictures, "--to", pictures / "a.csv", "--skip-broken")
    assert done.exit_code == 0, done.output
    assert f"passed over: {pictures / '04.png'} cannot be read" in done.output
    assert f"passed over: {pictures / 'more' / 'x.png'} cannot be read" in done.output
    assert "20 images, 2 passed over: " in done.output
    done = asked(model, pictures / "04.png", "--skip-broken")
    assert done.exit_code == 2
    assert "none of the 1 images can be read" in done.output


def changed(model: Path, place: Path, **settings: Any) -> Path:
    folder = Path(shutil.copytree(model, place))
    plain_settings = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**plain_settings, **settings}))
    return folder


def test_mistakes_are_one_line_with_the_nearest_name(model: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    few = changed(model, tmp_path / "few", classes=["a", "b"])
    blind = changed(model, tmp_path / "blind", images={"channels": 1})
    (tmp_path / "file").touch()
    for words, said in (
        (
            (model.parent / "exportd", pictures),
            f"{model.parent / 'exportd'} does not exist: expected an exported model",
        ),
        ((model.parent / "exportd", pictures), "did you mean 'exported'?"),
        ((tmp_path / "empty", pictures), "it has no model.json"),
        ((model / "model.pt2", pictures), "model.safetensors and model.onnx can be run here"),
        ((model, tmp_path / "picturs"), "did you mean 'pictures'?"),
        ((model, tmp_path / "empty"), f"{tmp_path / 'empty'} holds no image: no file at all"),
        ((model, tmp_path / "texts"), "holds no image: only .txt"),
        ((model, pictures, "--to", "a.txt"), "a.txt: answers are written as .csv or .json"),
        (
            (model, pictures, "--device", "cpuu"),
            "device 'cpuu' is not there; did you mean 'cpu'? (there are: auto, cpu",
        ),
        ((model, pictures, "--device", "xla"), "device 'xla' is not there"),
        ((model / "model.onnx", pictures, "--device", "cuda"), "device 'cuda': model.onnx runs on the CPU"),
        ((model / "model.onnx", pictures, "--maps", tmp_path / "m"), "model.onnx gives class scores alone"),
        ((model, pictures, "--top", 0), "top = 0: must be >= 1"),
        ((model, pictures, "--batch", 0), "batch = 0: must be >= 1"),
        ((model, pictures, "--to", tmp_path / "file" / "a.csv"), "File exists: "),
        ((few, pictures), "gives 10 scores, model.json names 2 classes"),
        ((blind, pictures), "does not say how images and classes are prepared: KeyError: "),
    ):
        done = asked(*words)
        assert done.exit_code == 2, (words, done.output)
        assert done.output.startswith("llf-ray: ")
        assert done.output.count("\n") == 1
        assert said in done.output


def test_models_that_cut_nothing_have_answers_and_say_that_they_have_no_maps(pictures: Path, tmp_path: Path) -> None:
    merging = replace(TASK.model, cropping=Cropping(schedule=Steady(rate=8), selector="merge", fusion=False))
    for name, task, said in (
        ("plain", replace(plain, label_smoothing=0.0), "it loses no tokens"),
        ("merging", replace(TASK, model=merging), "it merges tokens and cuts none"),
    ):
        model = open_model(export_of(whole(config(task), tmp_path / name)).folder)
        files, names = images_at(pictures)
        assert len(predict(model, files, names)) == 20
        with pytest.raises(SettingError, match=f"no keep maps of .*: {said}"):
            predict(model, files, names, maps=tmp_path / "maps")
