"""Whole runs over Ray's workers: what ends as it should, and what goes on by itself after an accident."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llf_ray.cluster.launch import execute
from llf_ray.journal import Tracking, read, read_run, summary
from llf_ray.train.adviser import STOP_REQUEST
from llf_ray.train.folder import load_module, open_run
from llf_ray.train.worker import Outcome
from tests.cluster.faulty import Faulty, Struck
from tests.cluster.tiny import RECIPE, tiny_run
from tests.toy import Toy

OWN_JOB = """
from dataclasses import dataclass

from llf_ray.recipes.seal import Seal

@dataclass(frozen=True, kw_only=True)
class Own:
    recipe: Seal

    def plan(self):
        return self.recipe.plan()
"""
NOWHERE = Tracking(log_every=1, uri="http://127.0.0.1:9")  # the discard port: nobody answers
pytestmark = pytest.mark.timeout(900)  # a slow or busy machine is no failure


@dataclass(frozen=True, kw_only=True)
class Day:
    """What two drivers did, one after the other: how their runs ended, and the signals that the first one heard."""

    root: Path
    first: Mapping[str, Outcome]
    second: Outcome
    heard: Sequence[int]


@pytest.fixture(scope="module")
def day(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Day:
    """One worker group for five runs, since to start one is what takes long; another for what the first left over.

    One run is undisturbed; the worker and the actor of one are killed; one diverges; SIGTERM comes in the middle of an
    ascent of one, and before the turn of the last.
    """
    root = tmp_path_factory.mktemp("runs")
    job = root / "own_job.py"
    job.write_text(OWN_JOB)
    own = load_module(job).Own(recipe=RECIPE)  # a class that no worker can import
    stopped = Faulty(flags=str(root), generation=2, wait_for=str(root / "stopped" / STOP_REQUEST))
    runs = [
        tiny_run(root, "whole", tracking=NOWHERE),
        tiny_run(
            root, "struck", task=Faulty(flags=str(root), kill="worker"), recipe=Struck(recipe=RECIPE, flags=str(root))
        ),
        tiny_run(root, "diverges", task=Faulty(flags=str(root), poison=True), recipe=own, job_file=job),
        tiny_run(root, "stopped", task=stopped),
        tiny_run(root, "waiting"),
    ]
    heard: list[int] = []
    with signal_at(root / "reached", signal.SIGTERM):
        outcomes = execute(runs, title="", display=False, log_file=root / "driver.log", on_signal=heard.append)
    again = open_run(root / "stopped", {"checkpoints.keep": "3"})
    (second,) = execute([again], title="", display=False, log_file=root / "second.log")
    first = {run.folder.name: outcome for run, outcome in zip(runs, outcomes, strict=True)}
    return Day(root=root, first=first, second=second, heard=heard)


@contextlib.contextmanager
def signal_at(path: Path, number: int) -> Iterator[None]:
    """Send ourselves a signal when a file appears."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if path.exists():
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read(folder / "journal.jsonl") if record["kind"] == kind]


def curves(folder: Path) -> dict[tuple[str, int], float]:
    """Every metric that does not depend on the clock."""
    return {
        (name, record["step"]): value
        for kind in ("metrics", "score")
        for record in records(folder, kind)
        for name, value in record["values"].items()
        if name != "examples_per_second"
    }


def weights(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


def test_a_run_ends_with_everything_in_its_folder(day: Day) -> None:
    root, outcomes = day.root, day.first
    folder, outcome = root / "whole", outcomes["whole"]
    assert (outcome.state, outcome.step) == ("finished", 36)
    assert set(outcome.scores) == {"validation/accuracy", "validation/loss", "test/accuracy", "test/loss"}
    assert [record["name"] for record in records(folder, "phase")] == [
        "train",
        "ascent",
        "descent",
        "ascent",
        "descent",
    ]
    assert [record["step"] for record in records(folder, "metrics")] == list(range(1, 37))
    assert [record["state"] for record in records(folder, "state")] == ["starting", "running", "finished"]
    assert all(record["digest"] for record in records(folder, "operation"))
    assert read_run(folder)["state"] == summary(folder).state == "finished"
    assert not list(folder.glob(".ray")) + list(folder.glob(".storage-token"))
    model = Toy().build(seed=1)
    model.load_state_dict(load_file(folder / "final" / "model.safetensors"))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_killed_worker_and_a_killed_actor_change_nothing(day: Day) -> None:
    root, outcomes = day.root, day.first
    assert (root / "worker").exists()
    assert (root / "actor").exists()
    assert outcomes["struck"].state == "finished"
    assert outcomes["struck"].digest == outcomes["whole"].digest
    assert weights(root / "struck") == weights(root / "whole")
    assert curves(root / "struck") == curves(root / "whole")
    seen = Counter(
        (record["step"], name) for record in records(root / "struck", "metrics") for name in record["values"]
    )
    assert set(seen.values()) == {1}
    notes = [record["message"] for record in records(root / "struck", "note")]
    assert any("worker 1 died" in message or "worker 0 failed" in message for message in notes), notes
    assert {record["operation"] for record in records(root / "struck", "operation")} >= {"kill the actor"}
    assert any(message.startswith("resumed at step") for message in notes), notes


def test_a_run_that_diverges_ends_alone(day: Day) -> None:
    root, outcomes = day.root, day.first
    assert outcomes["diverges"].state == "failed"
    assert "phase 'ascent' of generation 1" in outcomes["diverges"].message
    assert "the weights of step-00000012" in outcomes["diverges"].message
    assert summary(root / "diverges").state == "failed"


def test_a_dead_tracking_server_delays_nothing_and_is_named(day: Day) -> None:
    (line,) = [line for line in (day.root / "driver.log").read_text().splitlines() if "llf-ray sync" in line]
    assert "127.0.0.1:9" in line
    assert "points of whole wait" in line


def test_sigterm_in_mid_ascent_keeps_the_state_and_a_second_driver_ends_the_same(day: Day) -> None:
    root, stopped = day.root, day.first["stopped"]
    assert day.heard == [signal.SIGTERM]
    assert stopped.state == "stopped"
    assert 24 < stopped.step < 28, stopped  # inside the ascent of generation 2
    assert day.second.state == "finished"
    assert weights(root / "stopped") == weights(root / "whole")
    assert curves(root / "stopped") == curves(root / "whole")
    settings = json.loads((root / "stopped" / "final" / "settings.json").read_text())
    assert settings["scores"] == day.second.scores


def test_settings_given_at_resume_are_kept(day: Day) -> None:
    folder = day.root / "stopped"
    assert open_run(folder).config.checkpoints.keep == 3
    notes = [record["message"] for record in records(folder, "note")]
    assert "resumed with checkpoints.keep=3 (was 2)" in notes


def test_a_run_whose_turn_had_not_come_is_stopped_without_a_step(day: Day) -> None:
    waiting = day.first["waiting"]
    assert (waiting.state, waiting.step) == ("stopped", 0)
    assert "before its turn" in waiting.message
    assert summary(day.root / "waiting").state == "stopped"
