"""The journal: one line a record, nothing twice, nothing lost, whatever dies when."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from llf_ray import journal as module
from llf_ray.config import SettingError
from llf_ray.journal import (
    Journal,
    Tail,
    Tracking,
    driver_stamp,
    is_lost,
    locked,
    read,
    read_run,
    run_folders,
    summary,
    update_run,
)


def metrics(step: int, **values: float) -> dict:
    return {"kind": "metrics", "step": step, "time": 100.0 + step, "values": values}


def phase(step: int, index: int = 0, **more: object) -> dict:
    record = {"kind": "phase", "step": step, "time": 100.0 + step, "index": index, "name": "descent"}
    return {**record, "generation": 0, "stop": step + 10, "total": 40, "directions": {"all": 1.0}, **more}


def state(name: str, time: float = 100.0) -> dict:
    return {"kind": "state", "time": time, "state": name, "message": ""}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "journal.jsonl"


def test_what_is_appended_is_read_back_in_order(path: Path) -> None:
    records = [
        state("running"),
        phase(0),
        metrics(1, loss=0.5),
        {"kind": "note", "time": 1.0, "message": "ä"},
    ]
    with Journal(path) as journal:
        assert all(journal.append(record) for record in records)
    assert list(read(path)) == records


def test_reading_where_nothing_was_written_gives_nothing(path: Path) -> None:
    assert list(read(path)) == []
    assert list(Tail(path).poll()) == []


def test_numbers_of_numpy_and_paths_are_written_as_plain_values(path: Path) -> None:
    with Journal(path) as journal:
        journal.append(metrics(1, loss=np.float32(0.5)))
        journal.append({"kind": "checkpoint", "step": 1, "time": 1.0, "folder": Path("checkpoints/a")})
    first, second = read(path)
    assert first["values"] == {"loss": 0.5}
    assert second["folder"] == "checkpoints/a"


@pytest.mark.parametrize(
    "record",
    [
        metrics(3, loss=1.0, rate=2.0),
        phase(0),
        {"kind": "score", "step": 3, "time": 1.0, "role": "validation", "values": {"accuracy": 0.5}},
        {"kind": "operation", "step": 3, "time": 1.0, "generation": 1, "operation": "redraw(later)"},
        {"kind": "checkpoint", "step": 3, "time": 1.0, "folder": "checkpoints/step-00000003"},
    ],
    ids=lambda record: record["kind"],
)
def test_a_repeat_is_dropped_also_after_a_restart(path: Path, record: dict) -> None:
    with Journal(path) as journal:
        assert journal.append(record)
        assert not journal.append({**record, "time": 2.0})
    with Journal(path) as journal:
        assert not journal.append({**record, "time": 3.0})
        assert journal.append({**record, "step": record["step"] + 1})
    assert len(list(read(path))) == 2


def test_of_a_partial_repeat_the_new_values_are_kept(path: Path) -> None:
    with Journal(path) as journal:
        journal.append(metrics(1, loss=1.0))
        journal.append(metrics(1, loss=9.0, accuracy=0.5))
    assert [record["values"] for record in read(path)] == [{"loss": 1.0}, {"accuracy": 0.5}]


def test_roles_do_not_hide_each_others_scores(path: Path) -> None:
    score = {"kind": "score", "step": 3, "time": 1.0, "role": "validation", "values": {"accuracy": 0.5}}
    with Journal(path) as journal:
        assert journal.append(score)
        assert journal.append({**score, "role": "test"})


def test_states_and_notes_may_repeat(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.append(state("running"))
        assert journal.append(state("running"))


def test_a_torn_last_line_is_not_read_and_is_cut_off_by_the_next_writer(path: Path) -> None:
    with Journal(path) as journal:
        journal.append(metrics(1, loss=1.0))
    with path.open("ab") as file:
        file.write(b'{"kind":"metrics","step":2,"val')
    assert [record["step"] for record in read(path)] == [1]
    with Journal(path) as journal:
        assert journal.append(metrics(2, loss=2.0))
    assert [record["step"] for record in read(path)] == [1, 2]
    assert path.read_bytes().count(b"\n") == 2


def test_lines_of_zeros_that_a_power_cut_leaves_at_the_end_are_cut_off(path: Path) -> None:
    with Journal(path) as journal:
        journal.append(metrics(1, loss=1.0))
    with path.open("ab") as file:
        file.write(b"\0\0\0\n\0\0")
    with Journal(path) as journal:
        journal.append(metrics(2, loss=2.0))
    assert [record["step"] for record in read(path)] == [1, 2]


def test_a_damaged_line_in_the_middle_becomes_a_note_and_hides_nothing_else(path: Path) -> None:
    with Journal(path) as journal:
        for step in (1, 2, 3):
            journal.append(metrics(step, loss=1.0))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"#" * 20 + b"\n" + lines[2])
    assert [record["kind"] for record in read(path)] == ["metrics", "note", "metrics"]
    with Journal(path) as journal:
        assert not journal.append(metrics(3, loss=1.0))
        assert journal.append(metrics(2, loss=1.0))


def test_a_full_disk_leaves_no_half_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with Journal(path) as journal:
        journal.append(metrics(1, loss=1.0))

        def write_half(file: int, data: bytes) -> int:
            if len(data) < 10:
                raise OSError(28, "No space left on device")
            return real(file, data[: len(data) // 2])

        with monkeypatch.context() as patch:
            patch.setattr(module.os, "write", write_half)
            with pytest.raises(OSError, match="No space left"):
                journal.append(metrics(2, loss=2.0))
        assert journal.append(metrics(2, loss=2.0))  # was not taken for written
    assert [record["step"] for record in read(path)] == [1, 2]


def test_a_tail_gives_each_record_once_and_waits_for_whole_lines(path: Path) -> None:
    tail = Tail(path)
    with Journal(path) as journal:
        journal.append(metrics(1, loss=1.0))
        assert [r["step"] for r in tail.poll()] == [1]
        assert list(tail.poll()) == []
        journal.append(metrics(2, loss=1.0))
        journal.append(metrics(3, loss=1.0))
        assert next(tail.poll())["step"] == 2  # stopping early loses nothing
        assert [r["step"] for r in Tail(path, tail.offset).poll()] == [3]
    with path.open("ab") as file:
        file.write(b'{"kind":"note","time":1.0,')
    assert [r["step"] for r in tail.poll()] == [3]
    with path.open("ab") as file:
        file.write(b'"message":"x"}\n')
    assert [r["kind"] for r in tail.poll()] == ["note"]


def test_a_writer_killed_at_any_moment_leaves_a_journal_that_goes_on(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llf_ray.journal import Journal\n"
        "j = Journal(Path(sys.argv[1]))\n"
        "for step in range(10**9):\n"
        "    j.append({'kind': 'metrics', 'step': step, 'values': {'loss': 0.1, 'accuracy': 0.2}})\n"
        "    if step == 200: print('go', flush=True)\n"
    )
    for _ in range(2):  # the second writer starts at step 0 again: all repeats up to where the first was
        worker = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert worker.stdout is not None
        worker.stdout.readline()
        worker.kill()
        worker.wait()
        worker.stdout.close()
    steps = [record["step"] for record in read(path)]
    assert steps == list(range(len(steps)))


def test_changes_of_run_json_from_many_threads_all_stay(tmp_path: Path) -> None:
    threads = [threading.Thread(target=update_run, args=(tmp_path,), kwargs={f"k{i}": i}) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_run(tmp_path) == {f"k{i}": i for i in range(8)}


def test_a_lock_is_refused_while_another_holds_it(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as first, locked(tmp_path / "lock", wait=False) as second:
        assert first
        assert not second
    with locked(tmp_path / "lock", wait=False) as third:
        assert third


# ---------------------------------------------------------------------------------------------------- summary


def test_the_summary_says_where_a_run_stands(path: Path) -> None:
    update_run(path.parent, name="seal", created=99.0, driver=driver_stamp(), mlflow_run_id="abc")
    with Journal(path) as journal:
        journal.append(state("running"))
        journal.append(phase(0))
        journal.append(phase(10, index=1, name="ascent", generation=1, generations=4, directions={"early": -0.01}))
        journal.append(metrics(11, **{"train/loss": 2.0}))
        journal.append(metrics(12, **{"train/loss": 1.0}))
        score = {"kind": "score", "step": 10, "time": 111.0, "role": "validation"}
        journal.append({**score, "values": {"accuracy": 0.5, "loss": 1.5}})
    found = summary(path.parent)
    assert (found.name, found.state, found.generation, found.generations) == ("seal", "running", 1, 4)
    assert (found.phase, found.step, found.stop, found.total) == ("ascent", 12, 20, 40)
    assert (found.started, found.updated, found.mlflow_run_id) == (99.0, 112.0, "abc")
    assert found.scores == {"validation": {"accuracy": 0.5, "loss": 1.5}}
    assert found.values == {"train/loss": 1.0}


def test_a_finished_run_has_the_steps_that_it_took(path: Path) -> None:
    """A cut in the last phase is in no phase record."""
    with Journal(path) as journal:
        journal.append(phase(0, total=640))
        journal.append(metrics(520, **{"train/loss": 1.0}))
        assert (summary(path.parent).step, summary(path.parent).total) == (520, 640)
        journal.append(state("finished"))
    assert (summary(path.parent).step, summary(path.parent).total) == (520, 520)


def test_a_finished_run_that_goes_on_has_its_new_total(path: Path) -> None:
    with Journal(path) as journal:
        journal.append(phase(0, total=40))
        journal.append({"kind": "score", "step": 40, "time": 1.0, "role": "test", "values": {"accuracy": 0.5}})
        journal.append(state("finished"))
        journal.append(state("running"))
        journal.append(phase(40, index=1, total=80))
    assert (summary(path.parent).step, summary(path.parent).total) == (40, 80)


def test_a_run_whose_driver_died_without_a_word_is_lost(path: Path) -> None:
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = module._process_start(worker.pid)
    update_run(path.parent, driver={"host": socket.gethostname(), "pid": worker.pid, "started": start})
    with Journal(path) as journal:
        journal.append(state("running"))
    assert summary(path.parent).state == "running"
    worker.kill()
    assert summary(path.parent).state in ("running", "lost")  # a zombie may be seen or not at this moment
    worker.wait()
    worker.stdin.close()
    assert summary(path.parent).state == "lost"
    assert "resume" in summary(path.parent).message


def test_a_pid_that_another_process_got_does_not_keep_a_run_alive(tmp_path: Path) -> None:
    update_run(tmp_path, driver={**driver_stamp(), "started": "1"})
    assert is_lost(tmp_path)


def test_a_driver_elsewhere_is_lost_after_long_silence(path: Path) -> None:
    update_run(path.parent, driver={"host": "another", "pid": 1, "started": None})
    with Journal(path) as journal:
        journal.append(state("running"))
    now = path.stat().st_mtime
    assert not is_lost(path.parent, now + 60)
    assert summary(path.parent, now + 2 * module.SILENCE).state == "lost"
    os.utime(path, (now, now))
    module.beat(path.parent)
    os.utime(path.parent / "heartbeat", (now + 1000, now + 1000))
    assert not is_lost(path.parent, now + 1100)


@pytest.mark.parametrize("ended", ["finished", "failed", "stopped"])
def test_a_run_that_ended_stays_what_it_says(path: Path, ended: str) -> None:
    update_run(path.parent, driver={"host": socket.gethostname(), "pid": 1, "started": "1"})
    with Journal(path) as journal:
        journal.append(state("running"))
        journal.append(state(ended))
    assert summary(path.parent).state == ended


def test_run_folders_are_found_by_age_also_inside_comparisons(tmp_path: Path) -> None:
    update_run(tmp_path / "b", created=2.0)
    update_run(tmp_path / "a", created="2020-01-01T00:00:00")
    update_run(tmp_path / "b" / "child", created=3.0)
    (tmp_path / "nothing").mkdir()
    names = [str(folder.relative_to(tmp_path)) for folder in run_folders(tmp_path)]
    assert names == ["b", "b/child", "a"]


def test_a_damaged_run_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_run(tmp_path)


# --------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("wrong", [{"log_every": 0}, {"evaluate_every": 0}, {"experiment": " "}])
def test_impossible_tracking_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        Tracking(**wrong)


def test_tracking_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Tracking().uri = "x"  # type: ignore[misc]


def test_readers_need_neither_torch_nor_mlflow_nor_ray() -> None:
    code = "import sys, json, llf_ray.display, llf_ray.tracking; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "mlflow", "ray", "numpy", "deepspeed"} & set(json.loads(out.stdout))
