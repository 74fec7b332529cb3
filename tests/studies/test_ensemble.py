"""`llf-ray ensemble` on finished runs, against probabilities that are averaged by hand."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from llf_ray.cli import main
from llf_ray.journal import Tracking
from llf_ray.recipes.born_again import BornAgain
from llf_ray.recipes.long import Long
from llf_ray.run import Checkpoints, prepare
from llf_ray.studies.ensemble import FILE, ensemble_of
from llf_ray.train.folder import create
from llf_ray.train.state import checkpoint_at
from tests.local import SGD, final, journal, settings, whole
from tests.toy import Toy

RECIPE = BornAgain(generations=3, epochs=3, warmup_epochs=0)
TASK = Toy(noise=0.5)
CONFIG = settings(RECIPE, task=TASK, tracking=Tracking(off=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(CONFIG, tmp_path_factory.mktemp("runs") / "born-again")


def probabilities(folder: Path) -> Tensor:
    """Of a run's final weights on the test part."""
    network = TASK.initial(0)
    network.load_state_dict(final(folder))
    with torch.no_grad():
        return network.eval()(TASK.data("test")[0]).double().softmax(1)


def damage(folder: Path, *generations: int) -> None:
    """Cut the weights of these generations' ends short."""
    for generation in generations:
        end = checkpoint_at(folder / "checkpoints", 12 * (generation + 1))
        os.truncate(end / "pieces-00000-of-00001.safetensors", 1000)


def test_generations_are_scored_alone_and_together(run: Path, tmp_path: Path) -> None:
    found = ensemble_of(run)
    labels = TASK.data("test")[1]
    assert [member.generation for member in found.members] == [0, 1, 2]
    total = torch.zeros(len(labels), 3, dtype=torch.float64)
    for number, member in enumerate(found.members, start=1):
        # a run of fewer generations ends with the weights that this one had there
        shorter = whole(replace(CONFIG, recipe=replace(RECIPE, generations=number)), tmp_path / str(number))
        own = probabilities(shorter)
        total += own
        for mean, scores in ((own, member.alone), (total / number, member.together)):
            assert scores["accuracy"] == pytest.approx(float((mean.argmax(1) == labels).double().mean()))
            assert scores["loss"] == pytest.approx(float(nn.functional.nll_loss(mean.log(), labels)), rel=1e-5)
    (score,) = [record["values"] for record in journal(run, "score") if record["role"] == "test"]
    assert found.members[-1].alone == pytest.approx(score), "what the run itself found"


def test_the_result_is_in_the_folder_and_once_in_the_journal(run: Path) -> None:
    for _ in range(2):
        found = ensemble_of(run)
    plain = json.loads((run / FILE).read_text())
    assert [member["generation"] for member in plain] == [0, 1, 2]
    assert plain[-1]["together"] == found.scores
    named = [r for r in journal(run, "metrics") if any(name.startswith("ensemble/") for name in r["values"])]
    assert [record["values"] for record in named] == [{f"ensemble/test/{k}": v for k, v in found.scores.items()}]
    assert named[0]["step"] == found.members[-1].step == prepare(CONFIG).plan.total


def test_averaged_weights_stand_for_a_run_that_has_them(tmp_path: Path) -> None:
    config = replace(CONFIG, optim=replace(SGD, averaged=0.9), recipe=replace(RECIPE, generations=2))
    folder = whole(config, tmp_path / "averaged")
    (score,) = [record["values"] for record in journal(folder, "score") if record["role"] == "test"]
    assert ensemble_of(folder).members[-1].alone == pytest.approx(score)


def test_the_command_says_what_it_found(run: Path) -> None:
    result = CliRunner().invoke(main, ["ensemble", run.name, "--folder", str(run.parent)])
    assert result.exit_code == 0, result.output
    assert result.output.count("up to here together") == 2 * 3
    assert "all 3 together: test accuracy" in result.output
    assert str(run / FILE) in result.output


def test_what_has_no_ensemble_says_why(tmp_path: Path) -> None:
    whole(settings(Long(generations=1, epochs=1), task=TASK), tmp_path / "one")
    forgetful = replace(CONFIG, checkpoints=Checkpoints(keep=1, keep_generations=False))
    whole(forgetful, tmp_path / "forgetful")
    create(prepare(CONFIG), tmp_path / "begun")
    damage(whole(CONFIG, tmp_path / "damaged"), 1, 2)
    for name, said in (
        ("one", "run 'one' has one generation: an ensemble needs two\n"),
        (
            "forgetful",
            "an ensemble needs two generations, 0 of 3 can be read (generation 0: step-00000012 was not kept; "
            "generation 1: step-00000024 was not kept; "
            "generation 2: step-00000036 was not kept; checkpoints.keep_generations = True keeps them)\n",
        ),
        (
            "damaged",
            "1 of 3 can be read (generation 1: step-00000024: pieces-00000-of-00001.safetensors has 1000",
        ),
        ("begun", "run 'begun' is not finished"),
    ):
        result = CliRunner().invoke(main, ["ensemble", name, "--folder", str(tmp_path)])
        assert result.exit_code == 2
        assert said in result.output
        assert ("keep_generations" in result.output) == (name == "forgetful")


def test_a_damaged_generation_is_left_out_and_said(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "damaged"))
    damage(folder, 1)
    result = CliRunner().invoke(main, ["ensemble", "damaged", "--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "all 2 together" in result.output
    assert "left out: generation 1: step-00000024: pieces-00000-of-00001.safetensors has 1000 bytes" in result.output
