"""What a driver makes of errors, logs and its environment; no Ray is started."""

from __future__ import annotations

import logging
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError

from llf_ray.cluster.launch import _heart, execute
from llf_ray.cluster.outcome import read_outcome, write_outcome
from llf_ray.cluster.session import _native_chatter, _raylet_to_log, environment, logging_to
from llf_ray.config import SettingError
from llf_ray.run import Resources
from llf_ray.train.worker import Outcome
from tests.cluster.tiny import tiny_run


def test_the_cause_is_named_before_what_followed_from_it() -> None:
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    error = WorkerGroupError("...", {0: gloo, 1: ValueError("image 7 is broken\nTraceback ...")})
    assert _heart(error) == "worker 1 failed: ValueError: image 7 is broken"
    assert _heart(WorkerGroupError("...", {0: gloo, 1: ActorDiedError()})).startswith("worker 1 died: killed")
    assert _heart(WorkerGroupError("...", {0: gloo})).startswith("worker 0 failed: RuntimeError: [gloo")
    assert _heart(ControllerError(ValueError("no room"))) == "the workers could not be started: no room"


def test_what_is_logged_goes_to_the_file_and_everything_is_as_before(tmp_path: Path, capsys) -> None:
    root, chatty = logging.getLogger(), logging.getLogger("ray")
    before = root.handlers[:], root.level, chatty.handlers[:], chatty.propagate
    with logging_to(tmp_path / "logs" / "driver.log", verbose=False):
        logging.getLogger("ray.somewhere").warning("chatter")
        warnings.warn("old", UserWarning, stacklevel=1)
    assert (root.handlers[:], root.level, chatty.handlers[:], chatty.propagate) == before
    text = (tmp_path / "logs" / "driver.log").read_text()
    assert "WARNING ray.somewhere: chatter" in text
    assert "UserWarning: old" in text
    assert capsys.readouterr() == ("", "")


def test_what_ray_and_its_native_code_print_goes_to_the_log(caplog: pytest.LogCaptureFixture, capfd) -> None:
    caplog.set_level(logging.INFO)
    with _native_chatter():
        os.write(2, b"gcs_client.cc: no answer\n")
    with _raylet_to_log():
        message = {"lines": ["A worker died", "or was killed"], "pid": "raylet", "is_err": False}
        ray._private.worker.print_to_stdstream(message, ignore_prefix=False)
    said = [record.message for record in caplog.records]
    assert said == ["gcs_client.cc: no answer", "raylet: A worker died or was killed"]
    assert capfd.readouterr() == ("", "")
    os.write(2, b"as before\n")
    assert capfd.readouterr().err == "as before\n"


def test_the_users_environment_wins_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLF_RAY_TEST_SET", "mine")
    with environment({"LLF_RAY_TEST_SET": "ours", "LLF_RAY_TEST_FREE": "ours"}):
        assert (os.environ["LLF_RAY_TEST_SET"], os.environ["LLF_RAY_TEST_FREE"]) == ("mine", "ours")
    assert "LLF_RAY_TEST_FREE" not in os.environ


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "over")
    outcome = Outcome(state="finished", step=36, scores={"test/accuracy": 0.5}, digest="ab")
    write_outcome(run.folder, outcome)
    assert execute([run], title="", display=False, log_file=tmp_path / "driver.log") == [outcome]
    assert read_outcome(run.folder) == outcome
    assert not (run.folder / "journal.jsonl").exists()


def test_runs_of_one_group_must_ask_for_the_same(tmp_path: Path) -> None:
    one, two = tiny_run(tmp_path, "one"), tiny_run(tmp_path, "two")
    two = replace(two, config=replace(two.config, resources=Resources(workers=1)))
    with pytest.raises(SettingError, match=re.escape("resources differ between runs")):
        execute([one, two], title="", display=False, log_file=tmp_path / "driver.log")
