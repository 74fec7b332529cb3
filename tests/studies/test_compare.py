"""A comparison's arithmetic against numpy's, its folder, and what becomes of one that was stopped."""

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

import llf_ray.studies.compare
import llf_ray.tracking
from llf_ray.config import SettingError
from llf_ray.journal import Journal, Tracking, read, read_run, update_run
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.recipes.pruning import IterativePruning
from llf_ray.recipes.seal import Seal
from llf_ray.run import Comparison
from llf_ray.studies.compare import (
    adjust,
    against,
    begin,
    free_folder,
    is_comparison,
    markdown,
    prepare_arms,
    publish,
    read_result,
    reopen,
    report,
    spread,
    unfinished,
    write,
)
from llf_ray.studies.show import show_comparison
from llf_ray.tracking import TrackingError, parent_folder
from tests.local import carry, settings

ARMS = {
    "long": Long(generations=3, epochs=2, warmup_epochs=1),
    "seal": Seal(generations=3, epochs=2, ascent_epochs=1, ascent_rate=0.5, warmup_epochs=1, threshold="body"),
    "later_layer": LaterLayer(generations=3, epochs=2, warmup_epochs=1, threshold="body"),
}


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    """The picture of the plans is what takes longest, and tried elsewhere."""
    monkeypatch.setattr(llf_ray.studies.compare, "draw", lambda prepared, path: path)


def made(tmp_path: Path, seeds: int = 2, **changes) -> Comparison:
    base = settings(ARMS["long"], folder=str(tmp_path / "runs"), tracking=Tracking(off=True))
    return replace(Comparison(name="cmp", base=base, arms=ARMS, seeds=tuple(range(seeds))), **changes)


def score(folder: Path, test: float | None, seconds: float = 10.0) -> None:
    """Put a training on record that rose evenly to its score."""
    with Journal(folder / "journal.jsonl") as journal:
        journal.append({"kind": "state", "time": time.time(), "state": "running", "message": ""})
        for step in (8, 16, 24):
            value = (test or 0.9) * step / 24 - 0.01
            scored = {"kind": "score", "step": step, "time": time.time(), "role": "validation", "phase": 0}
            journal.append({**scored, "values": {"accuracy": value, "loss": 1.0}})
        if test is None:
            return
        journal.append(
            {
                "kind": "score",
                "step": 24,
                "time": time.time(),
                "role": "test",
                "values": {"accuracy": test, "loss": 1.0},
            }
        )
        journal.append({"kind": "state", "time": time.time(), "state": "finished", "message": ""})
    outcome = {
        "state": "finished",
        "step": 24,
        "message": "",
        "scores": {},
        "digest": "",
        "seconds": {"steps": 0.8 * seconds, "evaluation": 0.2 * seconds},
    }
    (folder / "outcome.json").write_text(json.dumps(outcome))


def scored(tmp_path: Path, seeds: int) -> tuple[Path, dict[str, np.ndarray]]:
    """A comparison with made-up test scores, and the scores by arm."""
    folder, _ = begin(made(tmp_path, seeds))
    random = np.random.default_rng(3)
    tests = {arm: 0.7 + 0.1 * random.random(seeds) for arm in ARMS}
    for arm, values in tests.items():
        for seed, value in enumerate(values):
            score(folder / f"{arm}-seed{seed}", float(value))
    update_run(folder, seconds=100.0)
    return folder, tests


def printed(result) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report(result))
    return console.export_text()


# --------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("seeds", [1, 2, 3, 7])
def test_means_spreads_and_paired_differences_are_numpys(seeds, tmp_path):
    folder, tests = scored(tmp_path, seeds)
    result = read_result(folder)
    assert result.complete
    for arm in result.arms:
        values, first = tests[arm.arm], tests["long"]
        assert arm.mean == pytest.approx(values.mean())
        if seeds == 1:
            assert arm.spread is None
        else:
            assert arm.spread == pytest.approx(np.ptp(values) if seeds == 2 else values.std(ddof=1))
        assert arm.validation_mean == pytest.approx((values - 0.01).mean())
        if arm.arm == "long":
            assert arm.against is None
            continue
        assert arm.against is not None
        differences = values - first
        np.testing.assert_allclose(list(arm.against.by_seed.values()), differences)
        assert arm.against.mean == pytest.approx(differences.mean())
        if seeds < 3:
            assert arm.against.interval is None
        else:
            expected = stats.ttest_rel(values, first).confidence_interval(0.95)
            assert arm.against.interval == pytest.approx((expected.low, expected.high))


def test_the_table_says_what_it_holds(tmp_path):
    folder, tests = scored(tmp_path, 2)
    result = read_result(folder)
    text, page = printed(result), markdown(result)
    first, other = tests["long"], tests["later_layer"]
    for shown in (text, page):
        assert f"{100 * first.mean():.2f}" in shown
        assert f"{100 * np.ptp(other):.2f}" in shown
        assert ", ".join(f"{100 * d:+.2f}" for d in other - first) in shown
        assert "range" in shown
        assert "80 to 80 % of each training, 48 % of the 1:40 from the start" in shown
    assert "Of two seeds the range" in page
    three = markdown(read_result(scored(tmp_path / "more", 3)[0]))
    assert "| std |" in three
    assert "95% interval" in three


def test_results_are_written_as_table_numbers_and_figure(tmp_path):
    folder, tests = scored(tmp_path, 3)
    for path in write(folder, read_result(folder)):
        assert path.stat().st_size > 100
    found = json.loads((folder / "tables" / "result.json").read_text())
    np.testing.assert_allclose([found["arms"]["seal"]["test"][str(seed)] for seed in range(3)], tests["seal"])
    assert found["arms"]["seal"]["curves"]["1"][-1][0] == 24
    assert len(found["arms"]["seal"]["minus_first"]["interval"]) == 2


def test_spread_of_one_two_and_more():
    assert spread([0.5]) is None
    assert spread([0.5, 0.7]) == pytest.approx(0.2)
    assert spread([1.0, 2.0, 4.0]) == pytest.approx(np.std([1, 2, 4], ddof=1))


def test_seeds_that_one_arm_lacks_are_left_out_of_the_pairs():
    found = against({0: 0.5, 1: None, 2: 0.7}, {0: 0.4, 1: 0.3, 2: None})
    assert found.by_seed == {0: pytest.approx(0.1)}
    assert found.interval is None


def test_an_unfinished_comparison_shows_what_there_is(tmp_path):
    folder, _ = begin(made(tmp_path))
    score(folder / "long-seed0", 0.75)
    score(folder / "seal-seed0", None)
    result = read_result(folder)
    assert not result.complete
    assert "not finished: long-seed1, seal-seed0, seal-seed1" in printed(result)
    assert result.arms[0].mean == pytest.approx(0.75)
    assert [arm.mean for arm in result.arms[1:]] == [None, None]
    assert len(result.arms[1].trainings[0].curve) == 3
    write(folder, result)


def test_generations_and_ascents_of_the_figure_are_the_plans(tmp_path):
    folder, _ = scored(tmp_path, 1)
    long, seal, later = read_result(folder).arms
    assert [arm.total for arm in (long, seal, later)] == [24, 24, 24]
    assert [long.generations, seal.generations] == [(), (8, 16)]
    assert seal.ascents == ((8, 12), (16, 20))
    assert long.ascents == later.ascents == ()


def test_what_is_trained_aside_counts_neither_in_the_budget_nor_in_the_curve(tmp_path):
    """A control beside the run that it is a control of: level by level at the same step."""
    ticket = IterativePruning(generations=4, epochs=2, warmup_epochs=1)
    arms = {"ticket": ticket, "random": replace(ticket, control="random")}
    folder, runs = begin(made(tmp_path, 1, arms=arms))
    assert [run.plan.total for run in runs] == [32, 48]
    assert "equal budgets" in plans(arms)
    assert "random trains 16 more aside" in plans(arms)
    for run in runs:
        carry(run)
    one, other = read_result(folder).arms
    assert (one.total, one.generations, one.aside) == (other.total, other.generations, 0) == (32, (8, 16, 24), 0)
    assert other.aside == 16
    curves = [dict(arm.trainings[0].curve) for arm in (one, other)]
    assert set(curves[0]) == set(curves[1]) == set(range(4, 33, 4))
    records = read(folder / "random-seed0" / "journal.jsonl")
    scores = {r["step"]: r for r in records if r["kind"] == "score" and r["role"] == "validation"}
    for counted, step in ((4, 4), (8, 8), (12, 20), (16, 24), (20, 36), (24, 40), (28, 44), (32, 48)):
        assert curves[1][counted] == scores[step]["values"]["accuracy"]
    assert "random takes 16 steps more" in markdown(read_result(folder))


def plans(arms) -> str:
    comparison = Comparison(name="cmp", base=settings(ARMS["long"]), arms=arms, seeds=(0,))
    text = io.StringIO()
    Console(file=text, width=200).print(show_comparison(comparison, prepare_arms(comparison)))
    return text.getvalue()


# ------------------------------------------------------------------------------------------------------------ folders


def test_a_comparison_has_one_folder_for_each_training(tmp_path):
    folder, runs = begin(made(tmp_path))
    assert [run.folder.name for run in runs] == [f"{arm}-seed{seed}" for seed in (0, 1) for arm in ARMS]
    assert is_comparison(folder)
    assert not is_comparison(runs[0].folder)
    assert parent_folder(runs[0].folder) == folder
    assert [run.config.seed for run in runs] == [0, 0, 0, 1, 1, 1]
    assert {run.plan.total for run in runs} == {24}
    with pytest.raises(SettingError, match="name 'cmp' is in use"):
        begin(made(tmp_path))
    assert free_folder(folder, again=True).name == "cmp-2"
    again, _ = begin(made(tmp_path), again=True)
    assert (again.name, read_run(again)["name"]) == ("cmp-2", "cmp-2")


def test_unequal_budgets_are_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(SettingError, match=r"unequal budgets.*long 24, seal 24, later_layer 32"):
        begin(made(tmp_path, arms={**ARMS, "later_layer": replace(ARMS["later_layer"], generations=4)}))
    assert not (tmp_path / "runs").exists()


def test_reopening_gives_the_unfinished_trainings(tmp_path):
    comparison = made(tmp_path)
    folder, runs = begin(comparison)
    score(runs[0].folder, 0.7)
    assert unfinished(folder) == [run.folder.name for run in runs[1:]]
    found, left = reopen(folder, {"resources.retries": "7"})
    assert found.arms == comparison.arms
    assert [run.folder for run in left] == [run.folder for run in runs[1:]]
    assert {run.config.resources.retries for run in left} == {7}


def test_settings_go_to_the_base_or_to_every_arm(tmp_path):
    comparison = made(tmp_path)
    changed = adjust(
        comparison,
        {"optim.lr": "0.5", "recipe.epochs": "3", "arms.seal.ascent_rate": "0.1"},
        num_seeds=3,
        arms=["seal", "long"],
    )
    assert changed.base.optim.lr == 0.5
    assert list(changed.arms) == ["seal", "long"]
    assert [arm.epochs for arm in changed.arms.values()] == [3, 3]
    assert changed.arms["seal"].ascent_rate == 0.1
    assert changed.seeds == (0, 1, 2)
    assert adjust(comparison, {"name": "other", "seeds": "4,5"}).name == "other"


# ----------------------------------------------------------------------------------------------------------- tracking


def test_the_parent_run_is_sent_to_the_store_of_its_trainings(tmp_path, monkeypatch):
    folder, runs = begin(made(tmp_path, base=settings(ARMS["long"], folder=str(tmp_path / "runs"))))
    sent = []
    monkeypatch.setattr(
        llf_ray.tracking, "sync", lambda where, given, *, root, uri: sent.append((where, given, root, uri))
    )
    assert publish(folder) is None
    assert not sent, "no training was tracked yet"
    update_run(runs[0].folder, tracking_root=str(tmp_path / "store"))
    assert publish(folder) is None
    assert publish(folder, "http://there") is None
    assert sent == [(folder, Tracking(log_every=1), tmp_path / "store", uri) for uri in (None, "http://there")]

    def refuse(where, given, *, root, uri):
        raise TrackingError("the server does not answer")

    monkeypatch.setattr(llf_ray.tracking, "sync", refuse)
    assert publish(folder) == "the server does not answer"
    off, _ = begin(made(tmp_path, name="off"))
    assert publish(off) is None


@pytest.mark.slow
def test_mlflow_has_one_parent_with_a_child_for_each_training(tmp_path):
    """The first use of a fresh database takes MLflow some seconds."""
    from llf_ray.tracking import Tracker, connect, store_of

    base = settings(ARMS["long"], folder=str(tmp_path / "runs"))
    folder, runs = begin(made(tmp_path, base=base, seeds=1))
    for number, run in enumerate(runs):
        score(run.folder, 0.7 + number / 100)
        with Tracker(run.folder, base.tracking, root=tmp_path / "runs"):
            pass
    update_run(folder, state="finished")
    write(folder, read_result(folder))
    assert publish(folder) is None
    client = connect(store_of(base.tracking, tmp_path / "runs"))
    (experiment,) = [e for e in client.search_experiments() if e.name == "llf_ray"]
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(found) == {"cmp", "long-seed0", "seal-seed0", "later_layer-seed0"}
    parent = found.pop("cmp")
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= {"figures", "tables"}
