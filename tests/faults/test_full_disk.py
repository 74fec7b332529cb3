"""A disk that fills up while a run writes to it: a real one, where we may mount it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llf_ray.cluster.launch import execute
from llf_ray.journal import read, summary
from llf_ray.train.folder import open_run
from tests.cluster.faulty import Faulty
from tests.cluster.tiny import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_a_message_and_loses_nothing_that_was_kept(
    local_ray: None, small_disk: Path, tmp_path: Path
) -> None:
    ballast = small_disk / "ballast"
    run = tiny_run(small_disk, "crowded", task=Faulty(flags=str(tmp_path), fill=str(ballast)))
    (outcome,) = execute([run], title="", display=False, log_file=tmp_path / "first.log")
    assert (tmp_path / "filled").exists()
    assert outcome.state == "failed"
    assert "free space and resume" in outcome.message
    assert (run.folder / "checkpoints" / "step-00000012").exists()

    ballast.unlink()
    again = [open_run(run.folder), tiny_run(tmp_path, "whole")]
    crowded, whole = execute(again, title="", display=False, log_file=tmp_path / "second.log")
    assert crowded.state == summary(run.folder).state == "finished"
    assert crowded.digest == whole.digest
    steps = [record["step"] for record in read(run.folder / "journal.jsonl") if record["kind"] == "metrics"]
    assert sorted(steps) == list(range(1, 37))
