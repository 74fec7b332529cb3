"""Whole runs over Ray's workers: what ends as it should, and what goes on by itself after an accident."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llf_ray.cluster.launch import execute
from llf_ray.journal import Tracking, read, read_run, summary
from llf_ray.train.adviser import STOP_REQUEST
from llf_ray.train.folder import load_module
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


@pytest.fixture(scope="module")
def together(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Outcome]]:
    """One worker group, three runs: one undisturbed, one whose worker and whose actor are killed, one that diverges."""
    root = tmp_path_factory.mktemp("runs")
    job = root / "own_job.py"
    job.write_text(OWN_JOB)
    own = load_module(job).Own(recipe=RECIPE)  # a class that no worker can import
    runs = [
        tiny_run(root, "whole", tracking=NOWHERE),
        tiny_run(
            root, "struck", task=Faulty(flags=str(root), kill="worker"), recipe=Struck(recipe=RECIPE, flags=str(root))
        ),
        tiny_run(root, "diverges", task=Faulty(flags=str(root), poison=True), recipe=own, job_file=job),
    ]
    outcomes = execute(runs, title="together", display=False, log_file=root / "driver.log")
    return root, {run.folder.name: outcome for run, outcome in zip(runs, outcomes, strict=True)}


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read(folder / "journal.jsonl") if record["kind"] == kind]


def curves(folder: Path) -> dict[tuple[str, int], float]:
    """Every metric that does not depend on the clock."""
    return {
        (name, record["step"]): value
        for kind in ("metrics", "score")
        for record in records(folder, kind)
        for name, value in record["values"].items()
        if name != "images_per_second"
    }


def weights(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


def test_a_run_ends_with_everything_in_its_folder(together: tuple[Path, dict[str, Outcome]]) -> None:
    root, outcomes = together
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


def test_a_killed_worker_and_a_killed_actor_change_nothing(together: tuple[Path, dict[str, Outcome]]) -> None:
    root, outcomes = together
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


def test_a_run_that_diverges_ends_alone(together: tuple[Path, dict[str, Outcome]]) -> None:
    root, outcomes = together
    assert outcomes["diverges"].state == "failed"
    assert "phase 'ascent' of generation 1" in outcomes["diverges"].message
    assert "the weights of step-00000012" in outcomes["diverges"].message
    assert summary(root / "diverges").state == "failed"


def test_a_dead_tracking_server_delays_nothing_and_is_named(together: tuple[Path, dict[str, Outcome]]) -> None:
    root, _ = together
    (line,) = [line for line in (root / "driver.log").read_text().splitlines() if "llf-ray sync" in line]
    assert "127.0.0.1:9" in line
    assert "points of whole wait" in line


def test_sigterm_in_mid_ascent_keeps_the_state_and_a_second_start_ends_the_same(
    together: tuple[Path, dict[str, Outcome]], tmp_path: Path
) -> None:
    root, _ = together
    stop = tmp_path / "stopped" / STOP_REQUEST
    runs = [
        tiny_run(tmp_path, "stopped", task=Faulty(flags=str(tmp_path), generation=2, wait_for=str(stop))),
        tiny_run(tmp_path, "waiting"),
    ]
    heard: list[int] = []

    def terminate() -> None:
        while not (tmp_path / "reached").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    first, second = execute(runs, title="", display=False, log_file=tmp_path / "driver.log", on_signal=heard.append)
    assert heard == [signal.SIGTERM]
    assert (first.state, second.state) == ("stopped", "stopped")
    assert 24 < first.step < 28, first  # inside the ascent of generation 2
    assert second.step == 0
    assert "before its turn" in second.message
    again = execute(runs[:1], title="", display=False, log_file=tmp_path / "driver.log")
    assert again[0].state == "finished"
    assert weights(tmp_path / "stopped") == weights(root / "whole")
    assert curves(tmp_path / "stopped") == curves(root / "whole")
    settings = json.loads((tmp_path / "stopped" / "final" / "settings.json").read_text())
    assert settings["scores"] == again[0].scores
