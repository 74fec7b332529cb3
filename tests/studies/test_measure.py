"""`llf-ray measure` on finished runs, small but real: what it finds, what it reads back, and whom it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from llf_ray.cli import main
from llf_ray.data.base import ROLES
from llf_ray.engine.base import EngineSettings
from llf_ray.journal import Journal, Tracking, update_run
from llf_ray.measures import curvature as curvatures
from llf_ray.measures.depth import prediction_depths
from llf_ray.measures.features import pooled_features
from llf_ray.measures.few_shot import few_shot
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.run import Comparison, prepare
from llf_ray.studies import measure as study
from llf_ray.studies.compare import begin
from llf_ray.tasks.classification import tiny
from llf_ray.tracking import Keys, TrackingError, points_of
from llf_ray.train.folder import create
from tests.local import carry, journal, settings, whole

LONG = Long(generations=1, epochs=2, warmup_epochs=0)
CONFIG = settings(LONG, task=tiny, engine=EngineSettings(batch=20))
TARGETS = '''"""Others."""
from llf_ray.data import FashionSample
targets = {
    "clothes": FashionSample(num_train=200, num_held_out=100),
    "few": FashionSample(num_train=20, num_held_out=10),
}
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(CONFIG, tmp_path_factory.mktemp("runs") / "long")


@pytest.fixture
def targets(tmp_path: Path) -> str:
    (tmp_path / "others.py").write_text(TARGETS)
    return str(tmp_path / "others.py")


def measured(run: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["measure", run.name, "--folder", str(run.parent), *words])


def kept(run: Path, name: str) -> dict:
    return json.loads((run / "measures" / f"{name}.json").read_text())


def test_measures_of_a_run_are_printed_kept_drawn_and_journalled(run: Path) -> None:
    result = measured(run, "depth", "calibration", "norms")
    assert result.exit_code == 0, result.output
    for words in ("mean depth, test", "expected calibration error", "layer2.0.conv1", "softmax"):
        assert words in result.output
    subject = study.open_subject(run)
    labels = torch.from_numpy(tiny.data.load("train").labels)
    own = prediction_depths(subject.network, {"own": (lambda: subject.images("train"), labels)}, bank="own")["own"]
    assert kept(run, "depth")["values"]["train_mean"] == own.mean
    about = kept(run, "depth")["about"]
    assert about["checkpoint"] == "last step"
    assert about["step"] == 4
    (score,) = [record["values"] for record in journal(run, "score") if record["role"] == "test"]
    assert kept(run, "calibration")["values"]["accuracy"] == pytest.approx(score["accuracy"]), "the final weights"
    assert kept(run, "calibration")["values"]["likelihood"] == pytest.approx(score["loss"], rel=1e-5)
    assert {path.name for path in (run / "measures").glob("*.png")} >= {"depth.png", "calibration.png"}
    points = [point.key for record in journal(run, "measure") for point in points_of(record, Keys({}))]
    assert {"measure/depth/mean", "measure/norms/weight/conv1", "measure/calibration/brier"} <= set(points)
    assert len(points) == len(set(points))


def test_what_has_not_changed_is_read_back_and_what_has_is_measured_anew(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, names = study.open_subject(run), ("norms",)
    first = study.measure_run(subject, names)["norms"]
    told: list[str] = []
    again = study.measure_run(subject, names, tell=told.append)["norms"]
    assert again.again
    assert told == []
    assert again.taken.values == first.taken.values
    other = study.measure_run(subject, names, study.Protocol(images=10))["norms"]
    assert not other.again
    assert other.taken.values["gradient"] != first.taken.values["gradient"]
    named = {record["measure"] for record in journal(run, "measure")}
    assert "norms/images=10" in named, "under a name of its own: of one name and step MLflow keeps the first"
    moved = replace(subject, weights="0")
    assert not study.measure_run(moved, names, study.Protocol(images=10))["norms"].again


def test_other_data_are_probed_with_the_networks_own_eyes(run: Path, targets: str) -> None:
    words = (
        "transfer",
        "few-shot",
        "--target",
        f"{targets}:clothes",
        "--shots",
        "2,5",
        "--episodes",
        "9",
        "--seed",
        "3",
    )
    result = measured(run, *words)
    assert result.exit_code == 0, result.output
    assert "clothes 5-shot accuracy" in result.output
    subject, data = study.open_subject(run), study.read_targets([f"{targets}:clothes"])["clothes"]
    task = replace(tiny, data=data, mean=tiny.scaling().mean, std=tiny.scaling().std)
    parts = [
        pooled_features(subject.network, subject.batches(role, task=task)) for role in ("train", "validation", "test")
    ]
    features, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "labels"))
    wanted = few_shot(features, labels, shots=5, episodes=9, seed=3)
    assert kept(run, "few-shot")["values"]["clothes/5-shot/accuracy"] == pytest.approx(wanted.mean)
    assert kept(run, "few-shot")["about"]["settings"] == {"seed": 3, "shots": [2, 5], "episodes": 9}
    assert 0.1 < kept(run, "transfer")["values"]["clothes/accuracy"] <= 1.0
    assert measured(run, *words).output.count("nothing changed: transfer, few-shot") == 1


def test_more_images_than_there_are_is_said(run: Path) -> None:
    result = measured(run, "norms", "--images", "10000000")
    assert result.exit_code == 0, result.output
    number = CONFIG.task.num_items("train")
    assert f"norms: all {number} training images were taken: there are no 10,000,000" in result.output
    assert "there are no" not in measured(run, "norms", "--images", str(number)).output


def test_curvature_is_of_the_training_loss_on_training_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def watch(network: torch.nn.Module, batches: list, loss: object, **how: object) -> curvatures.Curvature:
        seen.update(number=sum(len(labels) for _, labels in batches), loss=loss, how=how)
        return curvatures.curvature(network, batches, loss, top=1, probes=2, seed=0)  # type: ignore[arg-type]

    monkeypatch.setattr(study, "curvature", watch)
    found = study.measure_run(study.open_subject(run), ("curvature",), study.Protocol(images=16))["curvature"]
    assert seen["number"] == 16
    scores, labels = torch.randn(4, 10), torch.arange(4)
    smoothed = torch.nn.functional.cross_entropy(scores, labels, label_smoothing=tiny.label_smoothing)
    assert seen["loss"](scores, labels) == smoothed
    assert found.taken.values["largest"] > 0
    assert found.taken.details["num_examples"] == 16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dept"], "measure 'dept' does not exist; did you mean 'depth'?"),
        (["transfer"], "measure 'transfer' needs other data: --target FILE"),
        (
            ["few-shot", "--target", "TARGETS:flowers"],
            "TARGETS: target 'flowers' does not exist; did you mean 'clothes'?",
        ),
        (["few-shot", "--target", "TARGETS:few", "--shots", "5"], "target 'few': shots = 5: class '"),
        (["few-shot", "--target", "TARGETS", "--shots", "5,5"], "shots = (5, 5): one or more numbers are needed"),
        (["few-shot", "--target", "TARGETS", "--target", "TARGETS:few"], "there is a target 'few' already"),
        (["depth", "--target", "nothing.py"], "nothing.py does not exist"),
        (["depth", "--images", "0"], "images = 0"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_computed(
    run: Path, targets: str, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "_features", None)  # whoever computes anything fails otherwise
    result = measured(run, *(word.replace("TARGETS", targets) for word in words))
    assert result.exit_code == 2, result.output
    assert said.replace("TARGETS", targets) in result.output
    assert result.output.startswith("llf-ray: ")
    assert result.output.count("\n") == 1


def test_colour_for_a_grey_network_and_files_without_targets_are_refused(run: Path, tmp_path: Path) -> None:
    colour = np.zeros((20, 8, 8, 3), dtype=np.uint8)
    parts = {f"x_{role}": colour for role in ROLES} | {f"y_{role}": np.arange(20) % 2 for role in ROLES}
    np.savez(tmp_path / "colour.npz", **parts)
    for text, said in (
        (
            '"""x"""\nfrom llf_ray.data import Arrays\ntargets = {"a": Arrays(path="/nowhere/x.npz", channels=3)}\n',
            "target 'a': /nowhere does not exist",
        ),
        (
            '"""x"""\nfrom llf_ray.data import Arrays\n'
            f'targets = {{"a": Arrays(path="{tmp_path}/colour.npz", channels=3)}}\n',
            "target 'a': channels = 3: the network sees 1",
        ),
        ('"""x"""\ntargets = {"a": 3}\n', "target 'a' is 3: a data set of llf_ray.data is needed"),
        ('"""x"""\n', "a file of targets holds `targets ="),
        ('"""x"""\ntargets = {"a/b": 3}\n', "target 'a/b': letters, digits"),
    ):
        file = tmp_path / "wrong.py"
        file.write_text(text)
        result = measured(run, "transfer", "--target", str(file))
        assert result.exit_code == 2
        assert said in result.output


def test_a_job_is_a_target_by_its_name(tmp_path: Path) -> None:
    jobs = Path(__file__).parents[2] / "jobs"
    assert list(study.read_targets([str(jobs / "long_small.py")])) == ["long-small"]
    assert list(study.read_targets([str(jobs / "compare_schedules.py")])) == ["compare-schedules"]


def test_a_runs_own_data_give_episodes_from_test_alone() -> None:
    assert study._roles(tiny, tiny.data) == ("test",)
    assert study._roles(tiny, replace(tiny.data, num_train=30)) == ("train", "validation", "test")


def test_unfinished_runs_and_other_tasks_are_refused(tmp_path: Path) -> None:
    create(prepare(CONFIG), tmp_path / "begun")
    result = measured(tmp_path / "begun", "depth")
    assert result.exit_code == 2
    assert "run 'begun' is not finished" in result.output
    toy = whole(settings(LONG), tmp_path / "toy")
    result = measured(toy, "depth")
    assert result.exit_code == 2
    assert "measures are of networks that classify images, not of Toy" in result.output
    with Journal(toy / "journal.jsonl") as more:  # carried on, with the weights of its old end still there
        more.append({"kind": "metrics", "step": 99, "time": 1.0, "values": {"train/loss": 1.0}})
    assert "run 'toy' is not finished" in measured(toy, "depth").output


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = replace(CONFIG, folder=str(tmp_path_factory.mktemp("cmp")), tracking=Tracking(off=True))
    arms = {"long": LONG, "later": LaterLayer(generations=2, epochs=1, warmup_epochs=0, threshold="layer2")}
    folder, runs = begin(Comparison(name="both", base=base, arms=arms, seeds=(0, 1)))
    for made in runs:
        (made.folder / "outcome.json").write_text(json.dumps(asdict(carry(made))))
    return folder


def test_a_comparison_is_measured_by_arm_and_seed(comparison: Path) -> None:
    result = measured(comparison, "depth", "calibration")
    assert result.exit_code == 0, result.output
    assert "measured at the last step" in result.output
    found = json.loads((comparison / "measures" / "result.json").read_text())["depth"]["mean"]
    each = {
        (arm, seed): kept(comparison / f"{arm}-seed{seed}", "depth")["values"]["mean"]
        for arm in ("long", "later")
        for seed in (0, 1)
    }
    assert found["long"]["mean"] == pytest.approx((each["long", 0] + each["long", 1]) / 2)
    assert found["later"]["by_seed"] == {"0": each["later", 0], "1": each["later", 1]}
    assert found["later"]["minus_first"]["by_seed"]["1"] == pytest.approx(each["later", 1] - each["long", 1])
    assert f"{found['later']['mean']:.4g}" in result.output
    assert "| depth | mean depth, test |" in (comparison / "tables" / "measures.md").read_text()
    assert {path.name for path in (comparison / "measures").iterdir()} == {
        "depth.png",
        "calibration.png",
        "result.json",
    }


def test_a_comparison_with_an_unfinished_training_is_refused(comparison: Path) -> None:
    outcome = comparison / "later-seed1" / "outcome.json"
    text = outcome.read_text()
    outcome.write_text(json.dumps({**json.loads(text), "state": "stopped"}))
    result = measured(comparison, "depth")
    outcome.write_text(text)
    assert result.exit_code == 2
    assert "comparison 'both': later-seed1 not finished" in result.output


def test_only_what_was_tracked_is_published(comparison: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr("llf_ray.tracking.sync", lambda folder: sent.append(folder.name))
    assert study.publish_measures(comparison) is None
    assert sent == []
    update_run(comparison / "long-seed1", tracking_root=str(comparison))
    assert study.publish_measures(comparison) is None
    assert sent == ["long-seed1"]

    def dead(folder: Path) -> str:
        raise TrackingError("3 points wait")

    monkeypatch.setattr("llf_ray.tracking.sync", dead)
    assert study.publish_measures(comparison / "long-seed1") == "3 points wait"
