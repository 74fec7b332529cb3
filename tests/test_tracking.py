"""MLflow gets every point of a run once, whatever dies when, and nothing waits for it."""

import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llf_ray import tracking
from llf_ray.config import flatten, to_plain
from llf_ray.journal import Journal, Tracking, locked, read_run, update_run
from llf_ray.tracking import Keys, Sender, Tracker, TrackingError, flat_params, plain_key, store_of, sync


def metrics(step: int, **values: float) -> dict:
    return {"kind": "metrics", "step": step, "time": 1000.0 + step, "values": values}


def state(name: str, message: str = "") -> dict:
    return {"kind": "state", "time": 2000.0, "state": name, "message": message}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests here: its first use takes seconds."""
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Tracking:
    return Tracking(experiment=request.node.name)


@pytest.fixture
def run(tmp_path: Path, settings: Tracking) -> Path:
    folder = tmp_path / "seal-seed0"
    job = {"type": "llf_ray.run:RunConfig", "name": "seal", "tracking": to_plain(settings)}
    update_run(folder, name="seal-seed0", created=999.0, job={**job, "optim": {"type": "a:Optim", "lr": 0.1}})
    return folder


@pytest.fixture
def stored(root: Path, settings: Tracking) -> Callable[[Path], Any]:
    """What MLflow has of a run folder: the run and, by key, the steps of its history."""

    def look(folder: Path, keys: tuple[str, ...] = ()) -> Any:
        client = tracking.connect(store_of(settings, root))
        found = client.get_run(read_run(folder)["mlflow_run_id"])
        steps = {key: [m.step for m in client.get_metric_history(found.info.run_id, key)] for key in keys}
        return SimpleNamespace(client=client, run=found, steps=steps, data=found.data, info=found.info)

    return look


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each (key, step) was sent: the SQL store would hide a repeat, other stores would not."""
    from mlflow import MlflowClient

    counts: Counter = Counter()
    real = MlflowClient.log_batch

    def log_batch(self: Any, run_id: str, metrics: Any = (), params: Any = (), tags: Any = (), **more: Any) -> Any:
        counts.update((metric.key, metric.step) for metric in metrics)
        return real(self, run_id, metrics, params, tags, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    return counts


def journal_of(run: Path) -> Journal:
    return Journal(run / "journal.jsonl")


def test_measures_that_come_after_the_end_are_sent_once_and_change_nothing_else(
    run: Path, root: Path, settings: Tracking, stored: Any, sent: Counter
) -> None:
    with journal_of(run) as journal:
        journal.append(metrics(10, **{"train/loss": 1.0}))
        journal.append(state("finished"))
    sync(run, settings, root=root)
    ended = stored(run).info.end_time
    record = {"kind": "measure", "measure": "few-shot/seed=1", "step": 10, "time": 9000.0}
    with journal_of(run) as journal:
        assert journal.append({**record, "values": {"flowers/5-shot/accuracy": 0.75}})
        assert not journal.append({**record, "values": {"flowers/5-shot/accuracy": 0.7}}), "the first stays"
        assert journal.append({**record, "measure": "depth", "values": {"mean": 3.5}})
    (run / "measures").mkdir()
    (run / "measures" / "depth.json").write_text("{}")
    for _ in range(2):
        sync(run, settings, root=root)
    found = stored(run)
    assert found.data.metrics["measure/few-shot/seed_1/flowers/5-shot/accuracy"] == 0.75
    assert found.data.metrics["measure/depth/mean"] == 3.5
    assert set(sent.values()) == {1}
    assert [file.path for file in found.client.list_artifacts(found.info.run_id, "measures")] == ["measures/depth.json"]
    assert found.info.end_time == ended
    assert found.info.status == "FINISHED"


def test_a_run_is_in_mlflow_with_all_it_has(
    run: Path, root: Path, settings: Tracking, stored: Any, tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (run / "plan.json").write_text("{}")
    with Tracker(run, settings, root=root, poll=0.05), journal_of(run) as journal:
        journal.append(state("running"))
        phase = {"kind": "phase", "step": 0, "time": 1000.0, "index": 0, "name": "ascent", "generation": 0}
        journal.append({**phase, "stop": 30, "total": 30, "directions": {"early": -0.01, "rest": 1.0}})
        for step in (10, 20, 30):
            journal.append(metrics(step, **{"train/loss": 1 / step, "direction/early": -0.01}))
        journal.append(
            {
                **{
                    "kind": "operation",
                    "step": 30,
                    "time": 1030.0,
                    "generation": 0,
                    "operation": "redraw(later)",
                },
                **{"entries": 12, "tensors": 2, "norm_before": 1.0, "norm_after": 2.0},
            }
        )
        score = {"kind": "score", "step": 30, "time": 1030.0, "role": "validation"}
        journal.append({**score, "values": {"accuracy": 0.5}})
        for folder in ("figures", "final"):
            (run / folder).mkdir()
            (run / folder / "thing.bin").write_bytes(b"x")
        journal.append(state("finished", "done"))
    found = stored(run, ("train/loss", "validation/accuracy"))
    assert found.steps == {"train/loss": [10, 20, 30], "validation/accuracy": [30]}
    assert found.data.metrics["begun/direction/early"] == -0.01
    assert found.data.metrics["operation/redraw_later/entries"] == 12
    assert found.data.params == {
        **{
            "name": "seal",
            "optim": "Optim",
            "optim.lr": "0.1",
            "tracking": "Tracking",
            "tracking.uri": "None",
        },
        **{"tracking.experiment": settings.experiment, "tracking.log_every": "10"},
        **{"tracking.evaluate_every": "1", "tracking.off": "False"},
    }
    assert (found.info.status, found.info.run_name) == ("FINISHED", "seal-seed0")
    assert (found.info.start_time, found.info.end_time) == (999_000, 2_000_000)
    artifacts = {a.path for a in found.client.list_artifacts(found.info.run_id)}
    assert artifacts == {"plan.json", "settings.json", "environment.json", "figures", "final"}
    assert found.client.list_artifacts(found.info.run_id, "final")[0].path == "final/thing.bin"
    assert str(root / "artifacts") in found.info.artifact_uri
    environment = json.loads((run / "environment.json").read_text())["sessions"][0]
    assert {"torch", "mlflow", "ray"} <= set(environment["packages"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [run.name]  # nothing beside the runs
    out, err = capfd.readouterr()
    assert out + err == ""


@pytest.mark.parametrize(("ended", "status"), [("failed", "FAILED"), ("stopped", "KILLED")])
def test_the_status_says_how_a_run_ended(
    run: Path, root: Path, settings: Tracking, stored: Any, ended: str, status: str
) -> None:
    with journal_of(run) as journal:
        journal.append(state("running"))
        journal.append(state(ended, "the loss is NaN"))
    sync(run, settings, root=root)
    assert stored(run).info.status == status
    assert stored(run).data.tags["llf_ray.message"] == "the loss is NaN"


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(
    run: Path, root: Path, settings: Tracking, stored: Any, sent: Counter
) -> None:
    for steps, ended in (((1, 2), "stopped"), ((2, 3), "finished")):
        with Tracker(run, settings, root=root, poll=0.05), journal_of(run) as journal:
            journal.append(state("running"))
            for step in steps:
                journal.append(metrics(step, loss=1.0))
            journal.append(state(ended))
    assert stored(run, ("loss",)).steps == {"loss": [1, 2, 3]}
    assert stored(run).info.status == "FINISHED"
    assert set(sent.values()) == {1}
    assert len(stored(run).client.search_runs([stored(run).info.experiment_id])) == 1


@pytest.mark.parametrize("lost", ["cursor not moved", "cursor file lost", "cursor of another run"])
def test_a_crash_between_batch_and_cursor_doubles_nothing(
    run: Path, root: Path, settings: Tracking, stored: Any, sent: Counter, lost: str
) -> None:
    store = store_of(settings, root)
    with journal_of(run) as journal:
        for step in range(5):
            journal.append(metrics(step, loss=1.0))
        sender = Sender(run, store)
        sender.send()
        cursor = (run / "tracking.json").read_text()
        for step in range(5, 10):
            journal.append(metrics(step, loss=1.0, accuracy=0.5))
        sender.send()
        if lost == "cursor not moved":
            (run / "tracking.json").write_text(cursor)
        elif lost == "cursor file lost":
            (run / "tracking.json").unlink()
        else:
            (run / "tracking.json").write_text(json.dumps({"run_id": "x", "offset": 10**6}))
        journal.append(metrics(10, loss=1.0, accuracy=0.5))
    again = Sender(run, store)
    assert again.send() == 2
    assert stored(run, ("loss", "accuracy")).steps == {"loss": [*range(11)], "accuracy": [*range(5, 11)]}
    assert set(sent.values()) == {1}


def test_a_crash_between_creating_a_run_and_noting_its_id_makes_no_second_run(
    run: Path, root: Path, settings: Tracking, stored: Any
) -> None:
    first = Sender(run, store_of(settings, root)).run_id
    update_run(run, mlflow_run_id=None)
    assert Sender(run, store_of(settings, root)).run_id == first


def test_a_run_deleted_in_mlflow_is_made_anew_with_all_points(
    run: Path, root: Path, settings: Tracking, stored: Any
) -> None:
    with journal_of(run) as journal:
        journal.append(metrics(1, loss=1.0))
    sync(run, settings, root=root)
    first = stored(run)
    first.client.delete_run(first.info.run_id)
    assert sync(run, settings, root=root).startswith("1 points")
    assert stored(run, ("loss",)).steps == {"loss": [1]}
    assert stored(run).info.run_id != first.info.run_id


def test_an_error_in_the_middle_delays_and_doubles_nothing(
    run: Path, root: Path, settings: Tracking, stored: Any, sent: Counter, monkeypatch: Any
) -> None:
    """The answer to a batch that arrived is lost: the sender cannot know, opens again and compares."""
    real, failures = Sender._send_points, iter([True, True])

    def lose_answer(self: Sender, points: Any) -> None:
        real(self, points)
        if points and next(failures, False):
            raise ConnectionError("the answer was lost")

    monkeypatch.setattr(Sender, "_send_points", lose_answer)
    with journal_of(run) as journal:
        journal.append(state("running"))
        tracker = Tracker(run, settings, root=root, poll=0.05).start()
        for step in range(20):
            journal.append(metrics(step, loss=1.0))
            time.sleep(0.01)
        journal.append(state("finished"))
        assert tracker.close() is None
    assert stored(run, ("loss",)).steps == {"loss": [*range(20)]}
    assert set(sent.values()) == {1}


def test_long_runs_go_in_batches_that_mlflow_takes(
    run: Path, root: Path, settings: Tracking, stored: Any, monkeypatch: Any
) -> None:
    from mlflow import MlflowClient

    sizes: list[int] = []
    real = MlflowClient.log_batch

    def log_batch(self: Any, run_id: str, metrics: Any = (), **more: Any) -> Any:
        sizes.append(len(metrics))
        return real(self, run_id, metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    with journal_of(run) as journal:
        journal.append(metrics(0, **{f"lr/{number}": 0.1 for number in range(1500)}))
        for step in range(1, 400):
            journal.append(metrics(step, a=1.0, b=2.0, c=float("nan")))
    assert sync(run, settings, root=root).startswith("2697 points")
    assert max(sizes) <= 1000
    assert stored(run, ("a", "c")).steps == {"a": [*range(1, 400)], "c": [*range(1, 400)]}


def test_params_of_any_number_and_length_are_taken(run: Path, root: Path, settings: Tracking, stored: Any) -> None:
    many = {"mapping": {f"group {number}(x)": number for number in range(250)}}
    job = {"type": "a:Job", "long": "ä" * 9000, "empty": "", "factors": many, "k" * 300: 1}
    update_run(run, job={**job, **{f"text{number}": "y" * 5900 for number in range(60)}})
    sync(run, settings, root=root)
    params = stored(run).data.params
    assert len(params) == 250 + 60 + 3
    assert len(params["long"]) == 6000
    assert "9000 characters; whole in settings.json" in params["long"]
    assert params["factors.group 7_x"] == "7"


def test_a_setting_that_a_resumed_run_changed_stands_beside_the_first(
    run: Path, root: Path, settings: Tracking, stored: Any
) -> None:
    sync(run, settings, root=root)
    job = read_run(run)["job"]
    update_run(run, job={**job, "optim": {**job["optim"], "lr": 0.5}, "new": 1})
    sync(run, settings, root=root)
    found = stored(run).data
    assert (found.params["optim.lr"], found.params["new"]) == ("0.1", "1")
    assert found.tags["changed.optim.lr"] == "0.5"


def test_the_trainings_of_a_comparison_hang_below_one_parent(
    run: Path, root: Path, settings: Tracking, stored: Any, tmp_path: Path
) -> None:
    parent = tmp_path / "compare"
    update_run(parent, name="compare", state="running")
    children = [parent / name for name in ("long", "seal")]
    trackers = []
    for child in children:  # both threads want the parent's run at once
        update_run(child, name=child.name, parent="..")
        trackers.append(Tracker(child, settings, root=root, poll=0.05).start())
    assert [tracker.close() for tracker in trackers] == [None, None]
    tags = {stored(child).data.tags["mlflow.parentRunId"] for child in children}
    assert tags == {read_run(parent)["mlflow_run_id"]}
    update_run(parent, state="finished")
    sync(parent, settings, root=root)
    assert stored(parent).info.status == "FINISHED"
    assert len(stored(parent).client.search_runs([stored(parent).info.experiment_id])) == 3


# ---------------------------------------------------------------------------------------------------- trouble


@pytest.fixture
def dead() -> Iterator[Tracking]:
    """A server that refuses connections."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield Tracking(uri=f"http://me:secret@127.0.0.1:{held.getsockname()[1]}", experiment="dead")


def test_a_dead_server_only_delays(
    run: Path,
    root: Path,
    settings: Tracking,
    dead: Tracking,
    stored: Any,
    sent: Counter,
    caplog: Any,
    monkeypatch: Any,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    caplog.set_level(logging.WARNING, "llf_ray")
    begun = time.monotonic()
    with journal_of(run) as journal:
        tracker = Tracker(run, dead, root=root, poll=0.05).start()
        journal.append(state("running"))
        for step in range(100):
            journal.append(metrics(step, loss=1.0, accuracy=0.5))
        journal.append(state("finished"))
    assert time.monotonic() - begun < 2  # the training did not wait
    message = tracker.close(wait=20)
    assert message is not None
    assert "200 points of seal-seed0 wait" in message
    assert f"llf-ray sync {run}" in message
    assert "secret" not in message + caplog.text
    assert len([record for record in caplog.records if record.name == "llf_ray.tracking"]) == 1
    with pytest.raises(TrackingError, match="200 points of seal-seed0 wait"):
        sync(run, dead, root=root)
    assert sync(run, settings, root=root).startswith("200 points of seal-seed0 sent to sqlite")
    assert stored(run, ("loss",)).steps == {"loss": [*range(100)]}
    assert stored(run).info.status == "FINISHED"
    assert set(sent.values()) == {1}


def test_a_server_that_never_answers_holds_nobody_up(run: Path, root: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hole = Tracking(uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with journal_of(run) as journal:
            journal.append(metrics(1, loss=1.0))
        tracker = Tracker(run, hole, root=root, poll=0.05).start()
        begun = time.monotonic()
        message = tracker.close(wait=1.5)
        assert time.monotonic() - begun < 5
        assert message is not None
        assert "1 points of seal-seed0 wait" in message


def test_two_processes_do_not_send_one_run(run: Path, root: Path, settings: Tracking) -> None:
    with locked(run / ".tracking.lock"), pytest.raises(TrackingError, match="by its own driver"):
        sync(run, settings, root=root)


def test_a_folder_without_a_run_cannot_be_synced(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="holds no run"):
        sync(tmp_path)


def test_tracking_that_is_off_only_notes_the_environment(run: Path, root: Path) -> None:
    with Tracker(run, Tracking(off=True), root=root) as tracker:
        pass
    assert tracker.close() is None
    assert "mlflow_run_id" not in read_run(run)
    assert (run / "environment.json").exists()


def test_a_damaged_folder_stops_the_tracking_and_not_the_training(run: Path, root: Path, caplog: Any) -> None:
    (run / "environment.json").write_text("{")
    tracker = Tracker(run, Tracking(), root=root).start()
    message = tracker.close()
    assert message is not None
    assert "JSONDecodeError" in message


def test_sync_finds_the_runs_own_settings_and_store(run: Path, root: Path, settings: Tracking, stored: Any) -> None:
    with Tracker(run, settings, root=root, poll=0.05):
        pass
    with journal_of(run) as journal:
        journal.append(metrics(1, loss=1.0))
    assert sync(run).startswith("1 points")
    assert stored(run, ("loss",)).steps == {"loss": [1]}


# ------------------------------------------------------------------------------------------------- pure parts


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("train/loss", "train/loss"),
        ("lr/blocks.0 (decay)", "lr/blocks.0_decay"),
        ("operation/redraw(later)/entries", "operation/redraw_later/entries"),
        ("/a//b/../c/", "a/b/c"),
        ("gr\u00f6\u00dfe", "gr_e"),
        ("(", "unnamed"),
    ],
)
def test_names_become_keys_that_mlflow_takes(name: str, key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert plain_key(name) == key
    _validate_metric_name(plain_key(name))


def test_names_that_would_collide_stay_apart_and_do_so_after_a_restart() -> None:
    keys = Keys({})
    names = ["a(b", "a[b", "a{b", "x" * 400, "x" * 401]
    made = [keys[name] for name in names]
    assert len(set(made)) == len(names)
    assert max(map(len, made)) <= 250
    assert [Keys(keys.by_name)[name] for name in reversed(names)] == made[::-1]


@dataclass(frozen=True, kw_only=True)
class Part:
    factor: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str = "x"
    part: Part = Part()
    parts: tuple[Part, ...] = (Part(), Part(factor=2.0))
    betas: tuple[float, ...] = (0.9, 0.999)
    by_name: dict[str, Any] = field(default_factory=lambda: {"early": Part(), "rest": 1.0})
    nothing: float | None = None
    empty: tuple[str, ...] = ()


def test_params_from_run_json_are_those_of_the_settings() -> None:
    expected = {key: str(value) for key, value in flatten(Whole()).items()}
    assert flat_params(json.loads(json.dumps(to_plain(Whole())))) == expected


def test_the_environment_is_noted_once_until_it_changes(run: Path, monkeypatch: Any) -> None:
    for _ in range(2):
        tracking.record_environment(run)
    monkeypatch.setattr(tracking.platform, "node", lambda: "another")
    tracking.record_environment(run)
    sessions = json.loads((run / "environment.json").read_text())["sessions"]
    assert [session["host"] == "another" for session in sessions] == [False, True]


def test_mlflows_patience_is_the_users_to_set(run: Path, root: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    tracking.set_manners()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
