"""Jobs as users submit them: through the job API of a real head, onto a cluster of two raylets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient
from safetensors.torch import load_file

from llf_ray.config import flatten
from llf_ray.journal import read, read_run, run_folders, summary
from llf_ray.train.folder import load_module

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))
SMALL = "seal_small.py"
TINY = {  # of these, a job gets what it has
    "recipe.generations": "2",
    "recipe.epochs": "8",
    "recipe.guide": "2",
    "recipe.interact": "8",
    "recipe.imitate": "4",
    "recipe.listen": "4",
    "recipe.seed": "8",
    "task.model.widths": "4,4,8,8",
    "task.model.model.widths": "4,4,8,8",
    "task.data.num_train": "200",
    "task.data.num_held_out": "40",
    "task.data.num_monolingual": "100",
    "task.data.num_validation": "20",
    "task.data.num_test": "20",
    "task.games": "112",
}
pytestmark = pytest.mark.timeout(900)  # a slow or busy machine is no failure


@pytest.fixture(scope="module")
def head() -> Iterator[JobSubmissionClient]:
    """A client of a fresh head with two raylets of one CPU each."""
    # a job's entry point says `python`: on a cluster that is the environment's, here it must be this one
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), "PATH": path}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "tests.cluster.head"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = next(line for line in process.stdout if line.startswith("http"))
        yield JobSubmissionClient(address.strip())
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def settings_of(job: str) -> list[str]:
    """Settings that make a job tiny, and spread its workers."""
    module = load_module(ROOT / "jobs" / job)
    config = module.config if hasattr(module, "config") else module.comparison.base
    own = flatten(config)
    tiny = {key: value for key, value in TINY.items() if key in own}
    if own.get("task.model") == "MultiLayerPerceptron":  # as many widths as it has layers
        tiny["task.model.widths"] = "8,4"
    return ["resources.placement=STRICT_SPREAD", *(f"{key}={value}" for key, value in tiny.items())]


def submit(client: JobSubmissionClient, job: str, runs: Path, *more: str) -> tuple[JobStatus, str]:
    """Run a job file of ours with tiny settings to its end; its status and what it printed."""
    words = " ".join([f"python {ROOT / 'jobs' / job}", *settings_of(job), f"folder={runs}", *more])
    submission = patiently(client, words)
    end = time.monotonic() + 800
    while not (status := client.get_job_status(submission)).is_terminal() and time.monotonic() < end:
        time.sleep(0.5)
    return status, client.get_job_logs(submission)


def patiently(client: JobSubmissionClient, entrypoint: str) -> str:
    """Submit; the first raylet's agent may need a moment more than the dashboard."""
    end = time.monotonic() + 120
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.5)


def test_a_submitted_job_trains_with_one_worker_on_each_of_two_raylets(
    head: JobSubmissionClient, tmp_path: Path
) -> None:
    status, printed = submit(head, SMALL, tmp_path)
    assert status == JobStatus.SUCCEEDED, printed
    folder = tmp_path / "seal-small"
    now = summary(folder)
    assert (now.state, now.step, now.total) == ("finished", 32, 32)
    assert [record["name"] for record in read(folder / "journal.jsonl") if record["kind"] == "phase"] == [
        "train",
        "ascent",
        "descent",
    ]
    assert load_file(folder / "final" / "model.safetensors")["conv1.weight"].isfinite().all()
    assert (tmp_path / "mlflow.db").exists()
    lines = printed.strip().splitlines()
    assert lines[-1] == f"log: {folder / 'driver.log'}"
    assert not [line for line in lines if "WARNING" in line or "(raylet)" in line or "Traceback" in line], printed


@pytest.mark.slow
@pytest.mark.parametrize("job", [job for job in JOBS if job != SMALL])
def test_every_job_can_be_submitted(head: JobSubmissionClient, tmp_path: Path, job: str) -> None:
    more = ["--seeds 1"] if job.startswith("compare") else []
    status, printed = submit(head, job, tmp_path, *more)
    assert status == JobStatus.SUCCEEDED, printed
    runs = [folder for folder in run_folders(tmp_path) if read_run(folder).get("plan")]
    assert runs
    assert {summary(folder).state for folder in runs} == {"finished"}
