"""Fewer resources than asked for: said before anything starts, in terms of what was asked."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import ray
from click.testing import CliRunner

from llf_ray.cli import main
from llf_ray.cluster import worker
from llf_ray.cluster.launch import execute
from llf_ray.cluster.session import check_room, num_fitting, ray_session, wait_for_room
from llf_ray.config import SettingError
from llf_ray.journal import locked, read_run, summary, update_run
from llf_ray.run import Resources
from tests.cluster.tiny import tiny_run

NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}, {"CPU": 3.0, "GPU": 2.0}]


@pytest.mark.parametrize(
    ("resources", "room"),
    [
        (Resources(cpus=2), 7),
        (Resources(cpus=2, gpus=1), 2),
        (Resources(cpus=0.5), 30),
        (Resources(cpus=2, placement="STRICT_PACK"), 4),
        (Resources(cpus=4, placement="STRICT_SPREAD"), 2),
        (Resources(cpus=1, custom={"fast_disk": 1}), 0),
    ],
)
def test_room_is_counted_node_by_node(resources: Resources, room: int) -> None:
    assert num_fitting(resources, NODES) == room


@pytest.mark.parametrize(
    ("resources", "complaint"),
    [
        (
            Resources(workers=9),
            "resources.workers = 9 with 1 CPU each, placed PACK: this machine has 4 CPU, room for 4 such worker(s); "
            "missing: 5 CPU; set resources.workers=4",
        ),
        (
            Resources(workers=1, gpus=1),
            "this machine has 4 CPU, 0 GPU, room for 0 such worker(s); missing: 1 GPU; ask less for each worker",
        ),
        (Resources(workers=2, placement="STRICT_SPREAD"), "room for 1 such worker(s); set resources.workers=1"),
    ],
)
def test_what_is_missing_is_said_at_once(local_ray: None, resources: Resources, complaint: str) -> None:
    with pytest.raises(SettingError, match=re.escape(complaint)):
        check_room(resources)


def test_a_busy_cluster_is_waited_for_no_longer_than_asked(local_ray: None) -> None:
    busy = ray.util.placement_group([{"CPU": 3}])
    assert busy.wait(20)
    try:
        with pytest.raises(SettingError, match=re.escape("(free now: 1 CPU; waited resources.start_timeout = 0.5 s)")):
            wait_for_room(Resources(workers=2, start_timeout=0.5))
    finally:
        ray.util.remove_placement_group(busy)
    wait_for_room(Resources(workers=4, start_timeout=20))


def test_a_run_without_room_says_so_in_its_journal_and_waits_for_better_times(local_ray: None, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "large", resources=Resources(workers=6))
    with pytest.raises(SettingError, match=re.escape("missing: 2 CPU")):
        execute([run], title="", display=False, log_file=tmp_path / "driver.log")
    assert summary(run.folder).state == read_run(run.folder)["state"] == "failed"
    assert "missing: 2 CPU" in summary(run.folder).message


def test_a_job_that_is_refused_leaves_its_name_free(local_ray: None, tmp_path: Path) -> None:
    job = Path(__file__).parents[2] / "jobs" / "seal_small.py"
    result = CliRunner().invoke(main, ["run", str(job), f"folder={tmp_path}", "resources.workers=5"])
    assert result.exit_code == 2, result.output
    assert "missing: 1 CPU" in result.output
    assert not list(tmp_path.iterdir())


def test_a_run_is_carried_on_by_one_driver_at_a_time(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "mine")
    update_run(run.folder, driver={"host": "there", "pid": 123})
    with (
        locked(run.folder / ".driver.lock"),
        pytest.raises(SettingError, match="run 'mine' is being carried on by process 123 on there"),
    ):
        execute([run], title="", display=False, log_file=tmp_path / "driver.log")


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_an_address_from_outside_the_cluster_is_explained(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SettingError, match=r"RAY_ADDRESS = .*`ray job submit --address"), ray_session(Resources()):
        pass


def test_a_folder_that_another_node_does_not_share_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STORAGE_PATIENCE", 0.1)
    (tmp_path / worker.TOKEN).write_text("another cluster's")
    begun = time.monotonic()
    assert "is not the folder that the driver wrote to" in worker._folder_problem(tmp_path, "ours", 1)
    assert time.monotonic() - begun < 5
    (tmp_path / worker.TOKEN).write_text("ours")
    assert worker._folder_problem(tmp_path, "ours", 1) == ""
