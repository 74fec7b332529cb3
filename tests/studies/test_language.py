"""The language study at its quick size: what it writes, that it goes on where it was, and what it says."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llf_ray.cli import main
from llf_ray.config import SettingError
from llf_ray.run import prepare
from llf_ray.studies import language
from llf_ray.studies.language import NEURAL, NONE, conclusions, markdown, run_study, study_of


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    folder, said = tmp_path_factory.mktemp("studies") / "language", list[str]()
    return folder, run_study("quick", folder, processes=1, say=said.append), said


@pytest.mark.parametrize("size", ["quick", "small"])
def test_all_methods_of_a_game_play_equally_many_steps(size: str) -> None:
    steps: dict[bool, set[int]] = {True: set(), False: set()}
    for name, config in study_of(size).arms().items():
        plan = prepare(config).plan
        played = dict(language._game_steps(plan))
        steps[name.startswith("base")].add(max(played.values()))
        last = plan.phases[-1]
        assert played[plan.total] == max(played.values())  # no method ends on imitation
        assert last.objective.kind == "task"
    assert all(len(found) == 1 for found in steps.values()), steps
    assert size != "small" or steps[False] == {30_000}


def test_it_writes_numbers_table_and_pictures(study: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, result, said = study
    assert len(said) == 10
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    text = (folder / "table.md").read_text()
    for name in ("none", "receiver reset", "partial balanced", "neural iterated", "seeded iterated"):
        assert f"| {name} | 180 |" in text
    assert "| neural iterated | 180 | 210 |" in text
    assert text.count("kept |") == 2
    for picture in ("similarity", "teaching", "probe"):
        assert (folder / "figures" / f"{picture}.png").stat().st_size > 10_000


def test_scores_are_those_of_the_runs(study: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, result, _ = study
    for name in ("none", "partial-balanced"):
        outcome = json.loads((folder / "runs" / name / "outcome.json").read_text())["scores"]
        found = result["arms"][name.replace("-", " ")]
        for seed in ("0", "1", "2"):
            for key in ("accuracy", "topographic_similarity"):
                assert found["scores"][key][seed] == pytest.approx(outcome[f"test/{key}/seed_{seed}"])
        curve = json.loads((folder / "runs" / name / "teaching.json").read_text())["curves"][1]
        assert found["scores"]["ease"]["1"] == pytest.approx(sum(curve) / len(curve))
        assert found["curve"]["steps"][-1] == 180


def test_what_a_folder_holds_is_not_done_again(study: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, result, _ = study
    (folder / "runs" / "receiver-reset" / "teaching.json").unlink()
    journal = (folder / "runs" / "receiver-reset" / "journal.jsonl").read_text()
    said: list[str] = []
    again = run_study("quick", folder, processes=1, say=said.append)
    assert said[0] == "1 of 9 parts to do, 1 at a time"
    assert (folder / "runs" / "receiver-reset" / "journal.jsonl").read_text() == journal
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_another_study_s_folder_is_refused(study: tuple[Path, dict[str, Any], list[str]], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="other settings"):
        run_study("quick", study[0], num_seeds=4)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SettingError, match="holds no language study"):
        run_study("quick", tmp_path)
    with pytest.raises(SettingError, match="did you mean 'small'"):
        study_of("smal")
    with pytest.raises(SettingError, match="seeds = 2: must be >= 3"):
        study_of("quick", 2)


@pytest.mark.parametrize(
    ("gain", "word"),
    [((0.3, 0.31, 0.32), "reproduced"), ((0.0, 0.01, 0.0), "not reproduced"), ((0.0, 0.9, 0.4), "und")],
)
def test_a_claim_is_judged_by_its_interval(
    study: tuple[Path, dict[str, Any], list[str]], gain: tuple[float, ...], word: str
) -> None:
    result = copy.deepcopy(study[1])
    none = {str(seed): 0.3 for seed in range(3)}
    scores = {str(seed): 0.3 + gain[seed] for seed in range(3)}
    result["arms"][NEURAL]["minus_none"]["topographic_similarity"] = language._plain(scores, none)
    assert f": {word}" in conclusions(result)[0]
    assert conclusions(result)[0] in markdown(result)
    assert result["arms"][NONE]["minus_none"]["accuracy"]["mean"] == 0


def test_the_command_line_runs_it(study: tuple[Path, dict[str, Any], list[str]]) -> None:
    done = CliRunner().invoke(main, ["study", "language", "--size", "quick", "--folder", str(study[0])])
    assert done.exit_code == 0, done.output
    assert "Neural iterated learning gains 0.15" in done.output
    assert f"table: {study[0] / 'table.md'}" in done.output
    wrong = CliRunner().invoke(main, ["study", "language", "--size", "smal"])
    assert wrong.exit_code == 2
    assert wrong.output == "llf-ray: size 'smal' does not exist; did you mean 'small'? (there are: quick, small)\n"


@pytest.mark.slow
def test_parts_that_go_side_by_side_find_the_same(
    study: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "language"
    command = [sys.executable, "-c", "from llf_ray.cli import main; main()", "study", "language", "--size", "quick"]
    done = subprocess.run(
        [*command, "--processes", "2", "--folder", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "result.json").read_text())
    assert {**found, "seconds": 0} == {**json.loads((study[0] / "result.json").read_text()), "seconds": 0}
