"""What a driver survives, and what survives a driver."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from llf_ray.cluster import launch
from llf_ray.cluster.launch import execute
from llf_ray.journal import read, summary
from llf_ray.run import Resources
from llf_ray.train.adviser import STOP_REQUEST
from llf_ray.train.folder import open_run
from tests.cluster.faulty import Faulty
from tests.cluster.tiny import tiny_run

ROOT = Path(__file__).parents[2]
Start = Callable[..., subprocess.Popen[str]]
pytestmark = pytest.mark.slow


def messages(folder: Path, kind: str = "note") -> list[str]:
    return [record["message"] for record in read(folder / "journal.jsonl") if record["kind"] == kind]


def weights(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


@pytest.fixture
def driver() -> Iterator[Start]:
    """Starts drivers, each the first process of a group; none outlives its test."""
    started: list[subprocess.Popen[str]] = []

    def start(root: Path, *names: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        command = [sys.executable, "-m", "tests.faults.driver", str(root), *names]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.1)


def session_of(log_file: Path) -> str:
    """The name of the Ray session that a driver started, as its log file has it."""
    (name,) = set(re.findall(r"/(session_[^/]+)/", log_file.read_text()))
    return str(name)


def processes_of(session: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words, environment = (folder / "cmdline").read_text(), (folder / "environ").read_text()
            except (OSError, UnicodeDecodeError):
                continue
            if session in words or session in environment:
                found.append(f"{folder.name}: {words}")
    return found


def gone(session: str, seconds: float = 30) -> list[str]:
    """What is left of a session after a while."""
    end = time.monotonic() + seconds
    while (left := processes_of(session)) and time.monotonic() < end:
        time.sleep(0.3)
    return left


def test_a_run_whose_retries_are_used_up_fails_with_the_workers_own_error_and_the_next_goes_on(
    local_ray: None, tmp_path: Path
) -> None:
    runs = [tiny_run(tmp_path, "broken", task=Faulty(flags=str(tmp_path), broken=True)), tiny_run(tmp_path, "whole")]
    log_file = tmp_path / "driver.log"
    broken, whole = execute(runs, title="", display=False, log_file=log_file)
    assert broken.state == "failed"
    assert re.fullmatch(
        rf"worker \d failed: LookupError: nobody expected this \(1 retries; more in {log_file}\)", broken.message
    )
    assert broken.step == 12
    assert "at all" in log_file.read_text()
    assert "in _accident" in log_file.read_text()  # the workers' own traceback
    assert summary(runs[0].folder).message == broken.message
    assert whole.state == "finished"


def test_an_item_that_cannot_be_read_ends_its_run_at_once_and_the_next_goes_on(local_ray: None, tmp_path: Path) -> None:
    task = Faulty(flags=str(tmp_path), unreadable=True)
    runs = [tiny_run(tmp_path, "unreadable", task=task), tiny_run(tmp_path, "whole")]
    unreadable, whole = execute(runs, title="", display=False, log_file=tmp_path / "driver.log")
    assert (unreadable.state, unreadable.message) == ("failed", "picture.jpg is cut off")
    assert whole.state == "finished"


def test_storage_that_the_workers_do_not_share_is_no_riddle(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "TOKEN", ".elsewhere")  # as if the workers saw another disk
    run = tiny_run(tmp_path, "alone")
    (outcome,) = launch.execute([run], title="", display=False, log_file=tmp_path / "driver.log")
    assert outcome.state == summary(run.folder).state == "failed"
    assert f"{run.folder} is not the folder that the driver wrote to" in outcome.message
    assert "set folder to a path on storage that every node shares" in outcome.message


def test_a_killed_controller_is_replaced(local_ray: None, tmp_path: Path) -> None:
    runs = [
        tiny_run(tmp_path, "struck", task=Faulty(flags=str(tmp_path), kill="controller")),
        tiny_run(tmp_path, "whole"),
    ]
    struck, whole = execute(runs, title="", display=False, log_file=tmp_path / "driver.log")
    assert (tmp_path / "controller").exists()
    end = time.monotonic() + 20
    while ray.available_resources().get("CPU") != 4 and time.monotonic() < end:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 4  # the dead one's workers hold nothing
    assert (struck.state, struck.digest) == (whole.state, whole.digest) == ("finished", whole.digest)
    assert weights(tmp_path / "struck") == weights(tmp_path / "whole")


def test_a_killed_driver_leaves_no_process_and_its_run_goes_on_elsewhere(
    local_ray: None, driver: Start, tmp_path: Path
) -> None:
    task = Faulty(flags=str(tmp_path), wait_for=str(tmp_path / "never"))
    struck, whole = tiny_run(tmp_path, "struck", task=task), tiny_run(tmp_path, "whole")
    process = driver(tmp_path, "struck")
    wait_for(tmp_path / "reached", process)
    process.kill()
    process.wait()
    assert gone(session_of(tmp_path / "driver.log")) == []
    assert summary(struck.folder).state == "lost"
    first, second = execute([open_run(struck.folder), whole], title="", display=False, log_file=tmp_path / "second.log")
    assert first.digest == second.digest
    assert weights(struck.folder) == weights(whole.folder)


def test_ctrl_c_on_a_terminal_reaches_every_process_and_still_stops_tidily(driver: Start, tmp_path: Path) -> None:
    stop = tmp_path / "typed" / STOP_REQUEST
    run = tiny_run(tmp_path, "typed", task=Faulty(flags=str(tmp_path), wait_for=str(stop)))
    process = driver(tmp_path, "typed")
    wait_for(tmp_path / "reached", process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, errors
    (outcome,) = json.loads(printed)
    assert outcome["state"] == summary(run.folder).state == "stopped"
    assert outcome["message"] == "stopped at step 14 of 36; nothing is lost"
    assert gone(session_of(tmp_path / "driver.log")) == []
    assert errors == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_everything_at_once(number: int, driver: Start, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "held", task=Faulty(flags=str(tmp_path), wait_for=str(tmp_path / "never")))
    process = driver(tmp_path, "held")
    wait_for(tmp_path / "reached", process)
    process.send_signal(number)
    wait_for(run.folder / "stop.request", process)
    begun = time.monotonic()
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert process.returncode == 128 + number, errors
    (outcome,) = json.loads(printed)
    assert outcome["state"] == summary(run.folder).state == "stopped"
    assert outcome["message"] == "stopped at once; step 12 of 36 is kept"
    assert gone(session_of(tmp_path / "driver.log")) == []


def test_a_signal_before_the_workers_are_up_stops_as_well(driver: Start, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "early", resources=Resources(workers=2, cpus=1))
    process = driver(tmp_path, "early")
    wait_for(run.folder / "journal.jsonl", process)
    process.terminate()
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert json.loads(printed)[0]["state"] == summary(run.folder).state == "stopped"
    assert gone(session_of(tmp_path / "driver.log")) == []
    assert errors == ""
