"""The language study at its quick size: what it writes, that it goes on where it was, and what it says."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import llf_ray.cluster.apart
from llf_ray.cli import main
from llf_ray.cluster.launch import held
from llf_ray.cluster.outcome import read_outcome, write_outcome
from llf_ray.config import SettingError
from llf_ray.measures.language import ease_of_teaching
from llf_ray.run import prepare
from llf_ray.studies import forgetting, language
from llf_ray.studies.claims import QUICK
from llf_ray.studies.language import NEURAL, NONE, begin, carry_out, conclusions, markdown, study_of, write
from llf_ray.studies.price import threads
from llf_ray.tasks.language_game import LanguageGame
from llf_ray.train.state import Run
from llf_ray.train.worker import Outcome
from tests.local import carry, stopping_at


class Study(NamedTuple):
    """A study that was carried out: its folder, its result, and what each call trained and measured."""

    folder: Path
    result: dict[str, Any]
    done: list[list[str]]


def here(patch: pytest.MonkeyPatch, stop: str = "") -> list[list[str]]:
    """Carry studies out in this process, one part after the other; gives what each call trains and measures. The
    training ``stop`` stops early the first time.
    """
    done: list[list[str]] = []
    kept: list[object] = []

    def execute_apart(runs: Sequence[Run], *, log_file: Path, keep: object, **rest: object) -> list[Outcome]:
        kept.append(keep)
        log_file.touch()
        done.append([])
        for run in runs:
            before = read_outcome(run.folder)
            if before is None or before.state != "finished":
                done[-1].append(run.folder.name)
                early = {"adviser": stopping_at(50)} if before is None and run.folder.name == stop else {}
                with threads(1):
                    write_outcome(run.folder, carry(run, **early))
        return [outcome for run in runs if (outcome := read_outcome(run.folder)) is not None]

    def map_apart(function, items, resources, *, log_file, on_signal, on_end, keep):  # type: ignore[no-untyped-def]
        assert resources.workers == 1
        assert keep is kept[-1], "both calls share one Ray"
        done.append([name for _, _, name in items])
        with threads(1):
            for number, item in enumerate(items, 1):
                function(item)
                on_end(number)

    patch.setattr(llf_ray.cluster.apart, "execute_apart", execute_apart)
    patch.setattr(llf_ray.cluster.apart, "map_apart", map_apart)
    return done


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Stopped in the middle of one training, and carried on by a second call."""
    folder = tmp_path_factory.mktemp("studies") / "language"
    with pytest.MonkeyPatch.context() as patch:
        done = here(patch, stop="partial-balanced")
        for _ in range(2):
            carry_out(study_of("quick"), folder, begin(study_of("quick"), folder))
    return Study(folder, write(study_of("quick"), folder)[0], done)


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


def test_it_writes_numbers_table_and_pictures(study: Study) -> None:
    folder, result, _ = study
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    text = (folder / "table.md").read_text()
    for name in ("none", "receiver reset", "partial balanced", "neural iterated", "seeded iterated"):
        assert f"| {name} | 180 |" in text
    assert "| neural iterated | 180 | 210 |" in text
    assert text.count("kept |") == 2
    for picture in ("similarity", "teaching", "probe"):
        assert (folder / "figures" / f"{picture}.png").stat().st_size > 10_000


def test_scores_are_those_of_the_runs(study: Study) -> None:
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
    assert all(len(arm["curve"]["steps"]) > 2 for arm in result["arms"].values()), "none is scored as others are"


def test_new_receivers_learn_with_the_entropy_of_their_game(study: Study) -> None:
    for name, entropy, other in (("none", 0.05, 0.1), ("base: none", 0.1, 0.05)):
        game = study_of("quick").arms()[name].task
        assert isinstance(game, LanguageGame)
        teaching = json.loads((language._run_folder(study.folder, name) / "teaching.json").read_text())
        learned = [
            ease_of_teaching(
                torch.tensor(teaching["messages"]),
                game.features(),
                num_symbols=game.symbols,
                hidden=game.hidden,
                num_candidates=game.candidates,
                rectify=game.rectify,
                num_receivers=3,
                steps=40,
                entropy=weight,
            ).tolist()
            for weight in (entropy, other)
        ]
        assert teaching["curves"] == learned[0] != learned[1]


def test_a_stopped_study_goes_on_where_it_was(study: Study) -> None:
    first, second, measured = study.done
    assert len(first) == 8
    assert first[:2] == ["neural-iterated", "seeded-iterated"], "the longest first"
    assert second == ["partial-balanced"]
    assert set(measured) == {"probe.json", *study_of("quick").arms()}
    assert study.result["arms"]["partial balanced"]["optimizer_steps"] == 180


def test_what_a_folder_holds_is_not_done_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, result, _ = study
    done, said, settings = here(monkeypatch), list[str](), study_of("quick")
    (folder / "runs" / "receiver-reset" / "teaching.json").unlink()
    journal = (folder / "runs" / "receiver-reset" / "journal.jsonl").read_text()
    outcomes = carry_out(settings, folder, begin(settings, folder), say=said.append)
    assert {outcome.state for outcome in outcomes} == {"finished"}
    assert done == [[], ["receiver reset"]]
    assert said == ["measured 1 of 1 parts"]
    assert (folder / "runs" / "receiver-reset" / "journal.jsonl").read_text() == journal
    assert {**write(settings, folder)[0], "seconds": 0} == {**result, "seconds": 0}


def test_a_second_call_on_a_folder_at_work_is_refused(tmp_path: Path) -> None:
    settings = study_of("quick")
    runs = begin(settings, tmp_path / "language")
    with held(runs[3].folder), pytest.raises(SettingError, match=f"run '{runs[3].folder.name}' is being carried on by"):
        carry_out(settings, tmp_path / "language", runs, display=False)


def test_another_study_s_folder_is_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="other settings"):
        begin(study_of("quick", 4), study.folder)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SettingError, match="holds no language study"):
        begin(study_of("quick"), tmp_path)
    with pytest.raises(SettingError, match="did you mean 'small'"):
        study_of("smal")
    with pytest.raises(SettingError, match="--seeds 2: must be 3 or more, for an interval"):
        study_of("quick", 2)


@pytest.mark.parametrize(
    ("gain", "word"),
    [
        ((0.3, 0.31, 0.32), "reproduced, +0.310"),
        ((0.0, 0.01, 0.0), "not reproduced, +0.003 (-0.011 to +0.018); the difference is less than 0.15"),
        # the interval holds the margin, whatever the mean
        ((0.2, 0.3, 0.4), "not reproduced, +0.300 (+0.052 to +0.548); within the noise of seeds"),
    ],
)
def test_a_claim_is_judged_by_its_interval(study: Study, gain: tuple[float, ...], word: str) -> None:
    result = {**copy.deepcopy(study.result), "size": "small"}
    none = {str(seed): 0.3 for seed in range(3)}
    scores = {str(seed): 0.3 + gain[seed] for seed in range(3)}
    result["arms"][NEURAL]["minus_none"]["topographic_similarity"] = language._plain(scores, none)
    assert f": {word}" in conclusions(result)[0]
    assert conclusions(result)[0] in markdown(result)
    assert result["arms"][NONE]["minus_none"]["accuracy"]["mean"] == 0


def test_of_the_quick_size_nothing_is_judged(study: Study) -> None:
    first, *claims = conclusions(study.result)
    assert first == QUICK
    assert claims
    assert all(": cannot be tested here, " in line for line in claims), "the words of the study of forgetting"


def test_a_similarity_that_is_zero_by_definition_is_no_measurement(study: Study) -> None:
    result = copy.deepcopy(study.result)
    for arm in result["arms"].values():
        arm["scores"]["distinct_messages"] = {"0": 3.0, "1": 2.0, "2": 5.0}
    assert "by definition" not in markdown(result)
    result["arms"]["receiver reset"]["scores"]["distinct_messages"] |= {"0": 1.0, "2": 1.0}
    text = markdown(result)
    assert "One message for all objects, so 0 by definition: receiver reset, seed 0, 2.\n" in text
    assert "an edge may lie where no score can" in text


def test_what_was_never_learned_is_not_counted_as_forgotten(study: Study, tmp_path: Path) -> None:
    """Of four seeds the first knows both halves at all steps, the second from the last on, the others never."""
    (tmp_path / "runs").symlink_to(study.folder / "runs")
    probe = {
        "steps": [10, 20, 30, 40],
        "before": [[[1, 1]] * 4, [[1, 0]] * 3 + [[1, 1]], [[1, 0]] * 4, [[0, 0]] * 4],
        "retention": {
            "x": [
                [[0.9, 0.9], [0.9, 0.9], [0.8, 0.5], [0.6, 0.5]],
                [[0.2, None]] * 3 + [[0.5, 0.3]],
                [[0.2, None]] * 4,
                [[None, None]] * 4,
            ]
        },
    }
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    (tmp_path / "study.json").write_text((study.folder / "study.json").read_text())
    result, written = write(study_of("quick"), tmp_path)
    found = result["probe"]["selectivity"]["x"]
    assert found["by_seed"] == {"0": pytest.approx(0.2), "1": pytest.approx(0.2)}
    assert found["retention"] == [pytest.approx(0.6), pytest.approx(0.4)], "of the same steps"
    assert result["probe"]["left_out"] == [2, 3]
    text = markdown(result)
    assert "| x | 0.600 | 0.400 | +0.200 |" in text
    assert "right of before: 38 % of the examinations. Left out, without any: seed 2, 3." in text
    assert (tmp_path / "figures" / "probe.png") in written

    def never(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    assert json.loads((tmp_path / "result.json").read_text(), parse_constant=never) == json.loads(json.dumps(result))
    assert language._without_nan(np.array([[0.5, np.nan]])) == [[0.5, None]]
    (tmp_path / "probe.json").write_text(json.dumps({**probe, "before": [[[1, 0]] * 4] * 4}))
    nothing = {**write(study_of("quick"), tmp_path)[0], "size": "small"}
    assert "| x | - | - | - |" in markdown(nothing)
    assert "2022): cannot be tested here, senders never learned one of the halves." in conclusions(nothing)[-1]


def test_the_command_line_runs_it(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    command = ["study", "language", "--size", "quick", "--folder", str(study.folder.parent), "--name", "language"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "language: 8 trainings of 3 seeds each" in done.output
    assert "Neural iterated learning gains 0.15" in done.output
    assert f"table: {study.folder.resolve() / 'table.md'}" in done.output
    assert done.output.endswith(f"log: {study.folder.resolve() / 'driver.log'}\n")


def test_a_stop_is_said_with_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute_apart(runs: Sequence[Run], **rest: object) -> list[Outcome]:
        failed = Outcome(state="failed", step=3, message="no room on the disk")
        return [failed, *(Outcome(state="stopped", step=3, message="") for _ in runs[1:])]

    monkeypatch.setattr(llf_ray.cluster.apart, "execute_apart", execute_apart)
    done = CliRunner().invoke(main, ["study", "language", "--size", "quick", "--folder", str(tmp_path)])
    assert done.exit_code == 1
    assert "neural-iterated failed: no room on the disk\ngo on with the same command\n" in done.output
    assert (tmp_path / "language-quick" / "study.json").exists()


def test_both_studies_have_the_same_options() -> None:
    (one, other) = (
        {option.name: option for option in main.commands["study"].commands[name].params}  # type: ignore[attr-defined]
        for name in ("forgetting", "language")
    )
    assert set(other) <= set(one)
    assert set(one) - set(other) == {"data_root", "tables"}, "what only a study of images, with partial results, has"
    assert one["size"].default == other["size"].default == "small"
    assert one["folder"].default == other["folder"].default
    assert set(language.SIZES) < set(forgetting.SIZES)
    for option, sizes in ((one["size"], forgetting.SIZES), (other["size"], language.SIZES)):
        assert option.metavar == f"[{'|'.join(sizes)}]", "help says what there is"


@pytest.mark.slow
def test_parts_that_go_side_by_side_find_the_same(study: Study, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from llf_ray.cli import main; main()", "study", "language", "--size", "quick"]
    done = subprocess.run(
        [*command, "--plain", "--folder", str(tmp_path)], capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "language-quick" / "result.json").read_text())
    assert {**found, "seconds": 0} == {**json.loads((study.folder / "result.json").read_text()), "seconds": 0}
