"""MLflow follows the journals: the only file that imports mlflow, and only once a run is tracked.

A thread of the driver reads a run's folder and brings an MLflow run level with it. Everything it needs is in
the folder (journal.jsonl, run.json, plan.json, figures/, final/), so that `sync` can do the same later from
any machine. Training never waits for it: a dead server only delays.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import posixpath
import re
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llf_ray.journal import ENDED, Tail, Tracking, beat, locked, read_run, replace_text, summary, update_run

__all__ = ["Tracker", "Tracking", "TrackingError", "flat_params", "record_environment", "sync"]

logger = logging.getLogger(__name__)

METRICS_A_BATCH = 1000  # MLflow's own limits, of a request and of a name or value
PARAMS_A_BATCH = 100
CHARACTERS_A_BATCH = 100_000  # of params: a request may have 1 MB, a character six bytes
KEY_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 5000

STATUS = {"finished": "FINISHED", "failed": "FAILED", "lost": "FAILED", "stopped": "KILLED"}
PACKAGES = ("ray", "torch", "torchvision", "deepspeed", "timm", "mlflow", "numpy", "llf_ray")
LONGEST_PAUSE = 60.0  # seconds between two attempts at a server that does not answer
HEARTBEAT = 30.0  # seconds

# MLflow's own patience is two minutes a request and seven requests: ours is in the loop around it
MANNERS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # usage data, sent from threads of its own
}


class TrackingError(RuntimeError):
    """The tracking server did not take everything; the message says how much waits and what to do."""


# ----------------------------------------------------------------------------------------- from run to MLflow


@dataclass(frozen=True)
class Point:
    """One value of one metric, as MLflow has it."""

    key: str
    value: float
    time: int  # milliseconds
    step: int


def named_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a journal record gives MLflow: "metrics" as they are, scores below their role, phases,
    operations, measures and probes below their kind.
    """
    kind = record["kind"]
    if kind == "metrics":
        return dict(record["values"])
    if kind == "score":
        return {f"{record['role']}/{name}": value for name, value in record["values"].items()}
    if kind == "measure":
        return {f"measure/{record['measure']}/{name}": value for name, value in record["values"].items()}
    if kind == "probe":
        return {f"probe/{record['perturbation']}/{name}": value for name, value in record["values"].items()}
    if kind == "phase":
        named = {"begun/phase": record["index"], "begun/generation": record.get("generation")}
        return named | {f"begun/direction/{group}": value for group, value in record.get("directions", {}).items()}
    if kind == "operation":
        named = {
            f"operation/{record['operation']}/{name}": record.get(name)
            for name in ("entries", "norm_before", "norm_after")
        }
        masks, effective = record.get("masks", {}), record.get("effective", {})
        live = {f"mask/{name}/live": live / entries for name, (live, entries) in masks.items()}
        reached = {f"mask/{name}/effective": number / masks[name][1] for name, number in effective.items()}
        return named | live | reached
    return {}


def plain_key(name: str) -> str:
    """A name in the characters that MLflow allows; it must also be a normal path, for stores that make it a
    file.
    """
    ends = re.compile(r"^[^\w.-]+|[^\w.-]+$", re.ASCII)
    inside = re.compile(r" *[^\w. -]+ *", re.ASCII)
    parts = [inside.sub("_", ends.sub("", part)) for part in name.split("/")]
    key = "/".join(part for part in parts if part.strip("."))
    return key if key and posixpath.normpath(key) == key else "unnamed"


class Keys:
    """One MLflow key per metric name. The first name in the journal gets the plain key; one that would
    collide gets a mark.

    It has memory because two names may become one ("a(b)", "a[b]"); being filled in the journal's order,
    which never changes, it is the same after a restart from the cursor's copy or from the journal's start.
    """

    def __init__(self, known: Mapping[str, str]) -> None:
        self.by_name = dict(known)
        self._taken = set(self.by_name.values())

    def __getitem__(self, name: str) -> str:
        if name not in self.by_name:
            key = plain_key(name)
            if key in self._taken or len(key) > KEY_LENGTH:
                key = f"{key[: KEY_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
            self.by_name[name] = key
            self._taken.add(key)
        return self.by_name[name]


def points_of(record: Mapping[str, Any], keys: Keys) -> list[Point]:
    if "step" not in record:
        return []
    moment, step = int(record.get("time", 0.0) * 1000), int(record["step"])
    return [
        Point(keys[name], float(value), moment, step)
        for name, value in named_values(record).items()
        if isinstance(value, bool | int | float)
    ]


def flat_params(job: Mapping[str, Any]) -> dict[str, str]:
    """Params from the job in run.json, under the dotted keys that the command line uses (`config.flatten` of
    the job).

    Read from the stored form, not from rebuilt settings: a machine that only syncs need not have the job's
    classes.
    """
    leaves: dict[str, Any] = {}
    for name, value in job.items():
        if name != "type":
            leaves.update(_plain_leaves(value, name))
    return {key: str(value) for key, value in leaves.items()}


def _plain_leaves(value: Any, key: str) -> dict[str, Any]:
    if isinstance(value, list) and any(isinstance(item, dict) and "type" in item for item in value):
        value = {"mapping": {str(number): item for number, item in enumerate(value)}}
    if not isinstance(value, dict):
        return {key: _as_tuples(value)}
    named = (
        {}
        if "mapping" in value or "type" not in value
        else {key: str(value["type"]).rpartition(":")[2].rpartition(".")[2]}
    )
    for name, item in value.get("mapping", value).items():
        if "mapping" in value or name != "type":
            named.update(_plain_leaves(item, f"{key}.{name}"))
    return named


def _as_tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_as_tuples(item) for item in value)
    return value.get("mapping", value) if isinstance(value, dict) else value


def short(text: str, limit: int) -> str:
    mark = f" ... ({len(text)} characters; whole in settings.json)"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def batches_of(params: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    """Params in requests of a size that MLflow takes."""
    batch: list[tuple[str, str]] = []
    size = 0
    for key, value in params.items():
        if batch and (len(batch) == PARAMS_A_BATCH or size + len(key) + len(value) > CHARACTERS_A_BATCH):
            yield batch
            batch, size = [], 0
        batch.append((key, value))
        size += len(key) + len(value)
    if batch:
        yield batch


# ------------------------------------------------------------------------------------------------ environment


def record_environment(run_folder: Path) -> None:
    """Add to RUN/environment.json what this process runs on, unless the last entry says the same. No network,
    no mlflow.
    """
    path = run_folder / "environment.json"
    try:
        sessions = json.loads(path.read_text())["sessions"]
    except FileNotFoundError:
        sessions = []
    now = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git": {"package": _git_state(Path(__file__).parent), "job": _job_git_state(run_folder)},
    }
    if not sessions or {**sessions[-1], "time": None} != {**now, "time": None}:
        sessions.append({"time": time.time(), **now})
        replace_text(path, json.dumps({"sessions": sessions}, indent=1) + "\n")


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _job_git_state(run_folder: Path) -> dict[str, Any] | None:
    job_file = read_run(run_folder).get("job_file")
    return _git_state(Path(job_file).parent) if job_file else None


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and number of changed files; not the remote, whose address may hold a password."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "changed_files": len(git("status", "--porcelain").splitlines()),
        }
    return None


# ------------------------------------------------------------------------------------------------------ store


@dataclass(frozen=True, kw_only=True)
class Store:
    """An MLflow tracking store and where its artifacts go."""

    uri: str
    artifacts: str | None  # None: the server's own place
    experiment: str

    @property
    def shown(self) -> str:
        """The URI without user and password, for messages."""
        parts = urlsplit(self.uri)
        return self.uri if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def store_of(settings: Tracking, root: Path) -> Store:
    """The store that the settings name; by default a database and an artifact folder in ``root``.

    A server keeps artifacts in its own place. With a database alone MLflow would put them below the working
    directory of whoever comes first, so they go to ``root`` too.
    """
    uri = settings.uri if settings.uri is not None else f"sqlite:///{(root / 'mlflow.db').resolve()}"
    is_database = urlsplit(uri).scheme.partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")
    return Store(
        uri=uri,
        artifacts=str((root / "artifacts").resolve()) if is_database else None,
        experiment=settings.experiment,
    )


def set_manners() -> None:
    """Teach MLflow short patience and silence by its environment variables; the user's own values win."""
    for name, value in MANNERS.items():
        os.environ.setdefault(name, value)


def quiet_mlflow() -> Any:
    """Import mlflow without its chatter: what it logs goes to the root logger, if that has somewhere to
    go.
    """
    set_manners()
    import mlflow

    for name in ("mlflow", "alembic", "sqlalchemy.engine"):
        chatty = logging.getLogger(name)
        chatty.handlers = [logging.NullHandler()]
        chatty.propagate = True
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for every retry
    return mlflow


def connect(store: Store) -> Any:
    """An `MlflowClient`. The first use of a fresh database takes some ten seconds of migrations."""
    mlflow = quiet_mlflow()
    if store.uri.startswith("sqlite:///"):
        Path(store.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return mlflow.MlflowClient(tracking_uri=store.uri)


def experiment_id(client: Any, store: Store) -> str:
    from mlflow.exceptions import MlflowException

    for _ in range(2):
        found = client.get_experiment_by_name(store.experiment)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(store.experiment, artifact_location=store.artifacts))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another driver was faster
                raise
    raise TrackingError(f"experiment {store.experiment!r} can be neither found nor made")


def open_run(client: Any, store: Store, run_folder: Path) -> tuple[Any, bool]:
    """The MLflow run of a run folder, and whether it is new: by the id in run.json, else by its mark, else
    created.

    The mark, a tag, finds a run whose id a crash, or an answer lost on the way, kept from being written down.
    A run that was deleted in MLflow, or that another store has, is created anew. The lock is for a
    comparison: the trackers of all its trainings want its one run as parent.
    """
    with locked(run_folder / ".mlflow.lock"):
        run = read_run(run_folder)
        found = _active_run(client, run.get("mlflow_run_id"))
        if found is not None:
            return found, False
        mark = run.get("mlflow_mark") or update_run(run_folder, mlflow_mark=os.urandom(8).hex())["mlflow_mark"]
        experiment = experiment_id(client, store)
        same = client.search_runs([experiment], f"tags.`llf_ray.mark` = '{mark}'", max_results=1)
        found = same[0] if same else _create_run(client, store, experiment, run_folder, mark)
        update_run(run_folder, mlflow_run_id=found.info.run_id)
        return found, not same


def _create_run(client: Any, store: Store, experiment: str, run_folder: Path, mark: str) -> Any:
    now = summary(run_folder)
    tags = {"llf_ray.mark": mark, "llf_ray.folder": str(run_folder)}
    parent = parent_folder(run_folder)
    if parent is not None:
        tags["mlflow.parentRunId"] = open_run(client, store, parent)[0].info.run_id
    start = None if now.started is None else int(now.started * 1000)
    return client.create_run(experiment, start_time=start, run_name=now.name, tags=tags)


def _active_run(client: Any, run_id: str | None) -> Any | None:
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return found if found.info.lifecycle_stage == "active" else None


def parent_folder(run_folder: Path) -> Path | None:
    """The comparison or sweep that a run belongs to: ``parent`` in run.json, a path, from the run's folder if
    relative.
    """
    parent = read_run(run_folder).get("parent")
    if not parent:
        return None
    folder = (run_folder / parent).resolve()
    return folder if folder != run_folder.resolve() and (folder / "run.json").exists() else None


# ---------------------------------------------------------------------------------------------------- sending


@dataclass
class Cursor:
    """How far an MLflow run has got with a journal: RUN/tracking.json. Lost or stale, the journal is compared
    instead.
    """

    run_id: str
    offset: int = 0
    keys: dict[str, str] = field(default_factory=dict)  # metric name -> MLflow key, where they differ
    artifacts: dict[str, list[int]] = field(default_factory=dict)  # path -> size, mtime when it was sent


def read_cursor(run_folder: Path, run_id: str) -> Cursor:
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        cursor = Cursor(**json.loads((run_folder / "tracking.json").read_text()))
        if cursor.run_id == run_id:
            return cursor
    return Cursor(run_id=run_id)


class Sender:
    """Brings one MLflow run level with its folder. Any call may raise whatever MLflow raises; then make a new
    one.

    No point is sent twice: the cursor moves after each batch, and after each opening the points behind the
    cursor are compared with what MLflow has, since a crash or a lost answer may have come between the batch
    and the cursor.
    """

    def __init__(self, run_folder: Path, store: Store) -> None:
        self.run_folder = run_folder
        self.journal = run_folder / "journal.jsonl"
        self.client = connect(store)
        # bytes up to here may have been sent before; nobody but us sends while we hold the lock
        size = self.journal.stat().st_size if self.journal.exists() else 0
        run, is_new = open_run(self.client, store, run_folder)
        self.run_id: str = run.info.run_id
        self.cursor = read_cursor(run_folder, self.run_id)
        self._keys = Keys(self.cursor.keys)
        self._doubtful_until = 0 if is_new else size
        self._there: dict[str, set[int]] = {}
        self._last: dict[str, int] = {}
        self._send_settings({} if is_new else run.data.params)
        if summary(run_folder).state not in ENDED:
            self.client.update_run(self.run_id, status="RUNNING")

    def send(self) -> int:
        """Send what the journal has behind the cursor; returns the number of points."""
        num_sent = 0
        tail = Tail(self.journal, self.cursor.offset)
        records = tail.poll()
        while True:
            points: list[Point] = []
            for record in records:
                points += self._wanted(points_of(record, self._keys), tail.offset)
                if len(points) >= METRICS_A_BATCH:
                    break
            if tail.offset == self.cursor.offset:
                break
            self._send_points(points)
            self._move_cursor(tail.offset)
            num_sent += len(points)
        job = [str(path.relative_to(self.run_folder)) for path in sorted(self.run_folder.glob("job/*.py"))]
        self._send_files(["plan.json", "environment.json", *job])
        return num_sent

    def finish(self) -> None:
        """Send figures and the final model, and say how the run ended."""
        folders = [self.run_folder / name for name in ("figures", "final", "tables", "measures")]
        files = sorted(path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.is_file())
        self._send_files([str(path.relative_to(self.run_folder)) for path in files])
        now = summary(self.run_folder)
        if now.state in STATUS:
            if now.message:
                self.client.set_tag(self.run_id, "llf_ray.message", now.message[:TAG_LENGTH])
            end = None if now.updated is None else int(now.updated * 1000)
            self.client.set_terminated(self.run_id, STATUS[now.state], end)

    def _wanted(self, points: Iterable[Point], end: int) -> list[Point]:
        wanted = []
        for point in points:
            if self._last.get(point.key) == point.step:
                continue  # the same operation twice at one boundary
            self._last[point.key] = point.step
            if end > self._doubtful_until or point.step not in self._steps_there(point.key):
                wanted.append(point)
        return wanted

    def _steps_there(self, key: str) -> set[int]:
        if key not in self._there:
            self._there[key] = {metric.step for metric in self.client.get_metric_history(self.run_id, key)}
        return self._there[key]

    def _send_points(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        left = iter(points)
        while batch := list(islice(left, METRICS_A_BATCH)):
            self.client.log_batch(self.run_id, metrics=[Metric(p.key, p.value, p.time, p.step) for p in batch])

    def _move_cursor(self, offset: int) -> None:
        self.cursor.offset = offset
        if offset > self._doubtful_until:
            self._there.clear()
        self._write_cursor()

    def _write_cursor(self) -> None:
        self.cursor.keys = self._keys.by_name
        replace_text(self.run_folder / "tracking.json", json.dumps(vars(self.cursor)) + "\n")

    def _send_settings(self, there: Mapping[str, str]) -> None:
        """Params of the job. MLflow keeps the first value: one that a resumed run changed goes into a tag
        beside it.
        """
        from mlflow.entities import Param, RunTag

        job = read_run(self.run_folder).get("job")
        if not job:
            return
        params = {plain_key(key)[:KEY_LENGTH]: short(value, PARAM_LENGTH) for key, value in flat_params(job).items()}
        for batch in batches_of({key: value for key, value in params.items() if key not in there}):
            self.client.log_batch(self.run_id, params=[Param(key, value) for key, value in batch])
        changed = {
            f"changed.{key}"[:KEY_LENGTH]: short(v, TAG_LENGTH) for key, v in params.items() if there.get(key, v) != v
        }
        for batch in batches_of(changed):
            self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in batch])
        text = json.dumps(job, indent=1)
        sign = [len(text), int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)]
        if self.cursor.artifacts.get("settings.json") != sign:
            self.client.log_text(self.run_id, text, "settings.json")
            self.cursor.artifacts["settings.json"] = sign
            self._write_cursor()

    def _send_files(self, names: Iterable[str]) -> None:
        """Send artifacts that are new or changed."""
        for name in names:
            path = self.run_folder / name
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            sign = [found.st_size, found.st_mtime_ns]
            if self.cursor.artifacts.get(name) != sign:
                self.client.log_artifact(self.run_id, str(path), posixpath.dirname(name) or None)
                self.cursor.artifacts[name] = sign
                self._write_cursor()


def num_waiting(run_folder: Path) -> int:
    """Points in the journal behind the cursor."""
    run_id = read_run(run_folder).get("mlflow_run_id") or ""
    keys = Keys({})
    tail = Tail(run_folder / "journal.jsonl", read_cursor(run_folder, run_id).offset)
    return sum(len(points_of(record, keys)) for record in tail.poll())


def _reason(error: BaseException) -> str:
    """One line of why: the innermost error of the transport where there is one; its wrappers only repeat addresses.

    Passwords in addresses are left out.
    """
    inner: BaseException | None = error
    while inner is not None:
        error = inner if isinstance(inner, OSError) else error
        inner = inner.__cause__ or inner.__context__
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {re.sub(r'//[^/@ ]*@', '//', first)}"[:200]


class Tracker:
    """The background thread of a driver that keeps MLflow level with one run. Its errors never reach the
    training.

    `trouble` says in one line why the server is behind, or is None. `close` gives it a last chance, for
    ``wait`` seconds at most, and returns one line if points are left over.
    """

    def __init__(self, run_folder: Path, settings: Tracking, *, root: Path | None = None, poll: float = 2.0) -> None:
        self.run_folder = run_folder
        self.settings = settings
        self.root = root if root is not None else run_folder.parent
        self.store = store_of(settings, self.root)
        self.trouble: str | None = None
        self._poll = poll
        self._ending = threading.Event()
        self._given_up = threading.Event()
        self._level = False
        # a daemon: a server that hangs must not keep the driver from leaving
        self._thread = threading.Thread(target=self._work, name=f"tracking {run_folder.name}", daemon=True)

    def start(self) -> Tracker:
        """Begin to follow. With tracking off only the environment is noted, in the run's folder."""
        set_manners()  # here, not in the thread: another may be copying the environment then
        self._thread.start()
        return self

    def close(self, wait: float = 30.0) -> str | None:
        """Send the rest; None when MLflow has all, else a line that says how much waits and how to send it."""
        self._ending.set()
        self._thread.join(wait)
        self._given_up.set()
        if self._level or self.settings.off:
            return None
        why = self.trouble or f"no answer from {self.store.shown} within {wait:.0f} s"
        return _left_over(self.run_folder, why)

    def __enter__(self) -> Tracker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        message = self.close()
        if message is not None:
            logger.warning(message)

    def _work(self) -> None:
        try:
            record_environment(self.run_folder)
            if self.settings.off:
                return
            update_run(self.run_folder, tracking_root=str(self.root.resolve()))
            lock = self.run_folder / ".tracking.lock"
            with locked(lock, wait=False) as mine:
                if mine:
                    self._follow()
                    return
            self.trouble = "another process is sending this run"
            with locked(lock):
                self._follow()
        except (OSError, ValueError) as error:  # the run's own folder: full, gone, damaged
            self.trouble = f"{self.run_folder}: {_reason(error)}"
            logger.exception("tracking of %s has stopped; the training goes on", self.run_folder)

    def _follow(self) -> None:
        sender: Sender | None = None
        pause, last_beat, chances = 1.0, 0.0, 2
        while not self._given_up.is_set():
            is_last = self._ending.is_set()
            if time.monotonic() - last_beat > HEARTBEAT:
                beat(self.run_folder)
                last_beat = time.monotonic()
            try:
                if sender is None:
                    sender = Sender(self.run_folder, self.store)
                sender.send()
                self.trouble, pause = None, 1.0
                if is_last:
                    sender.finish()
                    self._level = True
                    return
                self._ending.wait(self._poll)
            except Exception as error:  # of MLflow, its transport, its database: none may end a training
                sender = None  # what arrived of the last batch is unknown: open again and compare
                if self.trouble is None:
                    logger.warning(
                        "%s does not take metrics now, they wait in %s: %s",
                        self.store.shown,
                        self.run_folder,
                        _reason(error),
                    )
                self.trouble = f"{self.store.shown} does not take metrics ({_reason(error)})"
                if is_last:
                    chances -= 1
                    if chances == 0:
                        return
                    self._given_up.wait(1.0)
                else:
                    self._ending.wait(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)


def _left_over(run_folder: Path, why: str) -> str:
    waiting = num_waiting(run_folder)
    what = f"{waiting} points of {run_folder.name} wait" if waiting else f"the last state of {run_folder.name} waits"
    return f"{what} to be tracked, {why}; `llf-ray sync {run_folder}` sends what is left"


def sync(
    run_folder: Path, settings: Tracking | None = None, *, root: Path | None = None, uri: str | None = None
) -> str:
    """Send what the journal has and MLflow lacks, now and in this thread; returns one line of what was done.

    Without settings the run's own are taken; ``uri`` replaces theirs. Another store gets the whole run, and later
    points with it.

    Raises:
        TrackingError: the server does not answer or does not accept; what was sent until then is kept.
    """
    run = read_run(run_folder)
    if not run:
        raise TrackingError(f"{run_folder} holds no run (it has no run.json)")
    if settings is None:
        stored = (run.get("job") or {}).get("tracking") or {}
        settings = Tracking(**{name: value for name, value in stored.items() if name != "type"})
    if uri is not None:
        settings = replace(settings, uri=uri)
    if root is None:
        root = Path(run["tracking_root"]) if "tracking_root" in run else run_folder.parent
    store = store_of(settings, root)
    with locked(run_folder / ".tracking.lock", wait=False) as mine:
        if not mine:
            raise TrackingError(f"{run_folder.name} is being sent by its own driver")
        try:
            sender = Sender(run_folder, store)
            num_sent = sender.send()
            sender.finish()
        except Exception as error:
            raise TrackingError(
                _left_over(run_folder, f"{store.shown} does not take them ({_reason(error)})")
            ) from error
    return f"{num_sent} points of {run_folder.name} sent to {store.shown}"
