"""`llf-ray slim` on a finished run of knowledge evolution, small but real."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from llf_ray.cli import main
from llf_ray.config import SettingError
from llf_ray.engine.base import EngineSettings
from llf_ray.nn.slim import load_slim
from llf_ray.recipes.knowledge_evolution import FIT, KnowledgeEvolution
from llf_ray.recipes.long import Long
from llf_ray.run import Comparison, prepare
from llf_ray.studies.slim import slim_of
from llf_ray.tasks.classification import Normalised, SmallResNet, tiny
from llf_ray.train.folder import create
from llf_ray.train.state import Stores, load_stand, newest
from tests.local import journal, same_bits, settings, whole

KELS = KnowledgeEvolution(generations=2, epochs=1, warmup_epochs=0, keep=0.5)
TASK = replace(tiny, label_smoothing=0.0)
CONFIG = settings(KELS, task=TASK, engine=EngineSettings(batch=20))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(CONFIG, tmp_path_factory.mktemp("runs") / "kels")


def test_the_slim_network_of_a_run_is_written_scored_and_read_back(run: Path) -> None:
    found = slim_of(run)
    assert found.difference < 1e-5
    assert found.share == 0.5
    assert found.parameters < found.whole_parameters / 2
    assert set(found.scores) == set(found.whole_scores) >= {"accuracy", "loss"}
    (score,) = [record["values"] for record in journal(run, "score") if record["role"] == "test"]
    assert found.whole_scores == pytest.approx(score), "what the run itself found"
    network = load_slim(run / "slim").eval()
    whole_weights = load_file(run / "final" / "model.safetensors")
    kept = network.state_dict()["layer1.0.conv1.weight"]
    assert torch.equal(kept, whole_weights["layer1.0.conv1.weight"][:2, :2])
    assert sum(p.numel() for p in network.parameters()) == found.parameters


def test_the_slim_network_of_a_generation_is_that_of_a_run_that_ended_there(run: Path, tmp_path: Path) -> None:
    """In front of the redraw that follows; the run's end is its last generation's."""
    shorter = whole(replace(CONFIG, recipe=replace(KELS, generations=1)), tmp_path / "shorter")
    words = ["slim", run.name, "--generation", "0", "--folder", str(run.parent)]
    assert CliRunner().invoke(main, words).exit_code == 0
    first = load_slim(run / "slim-generation0").state_dict()
    assert same_bits(first, load_slim(slim_of(shorter, tmp_path / "slim").folder).state_dict())
    last = load_slim(slim_of(run, tmp_path / "last", generation=1).folder).state_dict()
    assert same_bits(last, load_slim(slim_of(run, tmp_path / "end").folder).state_dict())
    assert not torch.equal(first["layer1.0.conv1.weight"], last["layer1.0.conv1.weight"])


def test_a_generation_whose_end_is_not_there_is_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="has generations 0 to 1, not 2"):
        slim_of(run, generation=2)
    lost = Path(shutil.copytree(run, tmp_path / "lost"))
    for folder in (lost / "checkpoints").glob("step-*"):
        shutil.rmtree(folder)
    with pytest.raises(SettingError, match=r"run 'lost': the end of generation 0: step-0\S* was not kept$"):
        slim_of(lost, generation=0)


def test_the_mask_that_was_held_is_that_of_the_slim_network(run: Path, tmp_path: Path) -> None:
    last = newest(run / "checkpoints")[0]
    assert last is not None
    masks = Stores(run, load_stand(last).stores)[FIT]
    network = load_slim(slim_of(run, tmp_path).folder)
    compared = [name for name in network.state_dict() if name in masks]
    assert len(compared) == len(masks)
    for name in compared:
        assert int(masks[name].sum()) == network.state_dict()[name].numel(), name


@pytest.mark.parametrize("command", [("slim",), ("measure", "calibration")])
def test_weights_cut_short_are_one_line_with_the_file(command: tuple[str, ...], run: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "broken")) / "final" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:3000])
    done = CliRunner().invoke(main, [command[0], "broken", *command[1:], "--folder", str(tmp_path)])
    assert done.exit_code == 2
    assert done.output.startswith(f"llf-ray: {broken} cannot be read as a file of weights: SafetensorError: ")
    assert done.output.count("\n") == 1


def test_an_arm_of_a_comparison_gives_the_slim_network_of_the_same_run_alone(run: Path, tmp_path: Path) -> None:
    """Where another arm needs normalisers, all have them."""
    task = replace(TASK, model=Normalised(model=TASK.model, after=("layer1", "layer2")))
    comparison = Comparison(name="compared", base=replace(CONFIG, task=task), arms={"kels": KELS}, seeds=(CONFIG.seed,))
    (config,) = comparison.runs().values()
    found = slim_of(whole(config, tmp_path / "arm"))
    assert found.difference < 1e-5
    assert same_bits(load_slim(found.folder).state_dict(), load_slim(slim_of(run, tmp_path).folder).state_dict())


def test_a_network_that_gives_no_slim_one_trains_where_none_is_wanted(tmp_path: Path) -> None:
    task = replace(TASK, model=SmallResNet(widths=(4, 8), blocks=(1, 1), stem_stride=2, shortcut="pad"))
    folder = whole(replace(CONFIG, task=task, recipe=replace(KELS, slim=False)), tmp_path / "run")
    (operation,) = [r for r in journal(folder, "operation") if r["generation"] == 1]
    assert operation["entries"] > 0
    with pytest.raises(SettingError, match="run 'run': channels that are added or joined do not line up"):
        slim_of(folder)


def test_the_command_says_what_it_wrote(run: Path, tmp_path: Path) -> None:
    words = ["slim", run.name, "--folder", str(run.parent), "--out", str(tmp_path / "here")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "50 % of the channels of each layer" in result.output
    assert "test accuracy: " in result.output
    assert f"written: {tmp_path / 'here'}" in result.output
    assert (tmp_path / "here" / "slim.json").exists()


def test_a_run_without_a_slim_network_says_why(tmp_path: Path) -> None:
    long = settings(Long(generations=1, epochs=1), task=TASK, engine=EngineSettings(batch=20))
    create(prepare(CONFIG), tmp_path / "begun")
    for folder, said in (
        (whole(long, tmp_path / "plain"), "comes from the one mask of kernels of its plan: this has no such mask"),
        (tmp_path / "begun", "run 'begun' is not finished"),
    ):
        result = CliRunner().invoke(main, ["slim", folder.name, "--folder", str(tmp_path)])
        assert result.exit_code == 2
        assert said in result.output
