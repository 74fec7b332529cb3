"""A run's folder as others read it: the journal (append-only, the truth for MLflow, display and watch),
run.json, state.

Plain Python. One process writes a journal; anyone may read it at any time, from any machine that sees the
folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from llf_ray.config import SettingError, check_number, unknown

__all__ = [
    "ENDED",
    "FRACTIONS",
    "LOST",
    "Journal",
    "RunSummary",
    "Tail",
    "Tracking",
    "beat",
    "blank_summary",
    "driver_stamp",
    "is_lost",
    "locked",
    "note",
    "read",
    "read_run",
    "replace_text",
    "run_folders",
    "state_record",
    "summary",
    "update_run",
]

ENDED = ("stopped", "failed", "finished", "lost")  # nothing more comes unless the run is resumed
# scores that people read in per cent
FRACTIONS = (
    "accuracy",
    "accuracy_top5",
    "class_accuracy",
    "exact_match",
    "held_out_accuracy",
    "miou",
    "pixel_accuracy",
    "top1",
    "top5",
    "word_accuracy",
)
LOST = "its driver is gone; `llf-ray resume` goes on from the last checkpoint"
URI_SCHEMES = (
    "http",
    "https",
    "file",
    "sqlite",
    "postgresql",
    "mysql",
    "mssql",
    "databricks",
    "uc",
)  # what MLflow takes
SILENCE = 900.0  # seconds without a sign from a driver that we cannot look up, before its run counts as lost

_METRICS = b'{"kind":"metrics"'


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where and how often a run is logged. It lives here so that a job can be read without MLflow."""

    uri: str | None = None  # any MLflow tracking URI; None: SQLite and an artifact folder beside the runs
    experiment: str = "llf_ray"
    log_every: int = 10  # optimizer steps
    evaluate_every: int = 1  # epochs
    off: bool = False

    def __post_init__(self) -> None:
        check_number("log_every", self.log_every, low=1)
        check_number("evaluate_every", self.evaluate_every, low=1)
        if self.uri is not None and "://" in self.uri:
            scheme = self.uri.partition("://")[0].partition("+")[0]
            if scheme not in URI_SCHEMES:
                raise unknown("kind of address in uri", scheme, URI_SCHEMES)
        if not self.experiment.strip():
            raise SettingError(f"experiment = {self.experiment!r}: a name is needed")


# ---------------------------------------------------------------------------------------------------- writing


def note(message: str) -> dict[str, Any]:
    """A record for people."""
    return {"kind": "note", "time": time.time(), "message": message}


def state_record(state: str, message: str = "") -> dict[str, Any]:
    """A record of what has become of a run."""
    return {"kind": "state", "time": time.time(), "state": state, "message": message}


# ---------------------------------------------------------------------------------------------------- reading


def _lines(path: Path, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """Whole lines from a byte offset, each with the offset behind it. A last line without its end is still
    being written.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                yield line, offset
    except FileNotFoundError:
        return


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "kind" in record else None


def _record(line: bytes, end: int) -> dict[str, Any]:
    """A line's record. Damage in the middle of a file shows as a note: a bad sector must not hide the rest of
    a run.
    """
    record = _parse(line)
    if record is None:
        return {
            "kind": "note",
            "time": 0.0,
            "message": f"the journal is damaged before byte {end}; one line is left out",
        }
    return record


def read(path: Path) -> Iterator[dict[str, Any]]:
    """All records of a journal; none where there is no journal yet."""
    for line, end in _lines(path):
        yield _record(line, end)


class Tail:
    """Reads what was added to a journal since the last look; ``offset`` is the byte behind the last record
    handed out.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset

    def poll(self) -> Iterator[dict[str, Any]]:
        """Records added since. The offset moves with each record: a caller may stop early and go on later."""
        with contextlib.suppress(FileNotFoundError):
            # shorter than before: a restarted writer has cut off a damaged end
            self.offset = min(self.offset, self.path.stat().st_size)
        for line, end in _lines(self.path, self.offset):
            self.offset = end
            yield _record(line, end)


# ---------------------------------------------------------------------------------------------------- writing


class Journal:
    """The one writer of a journal. Opening reads what is there, so a restarted writer drops what it has
    already written.

    What counts as the same: the same metric at the same step (within "metrics", each role of "score", each
    "measure" and each perturbation of "probe"); the same phase index, operation (of one generation) or
    checkpoint folder at the same step. Of a repeat the first stays. States and notes are always kept. A last
    line that a crash has torn is cut off.
    Every whole line is with the kernel when `append` returns, and on the disk for all but metrics.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._events: set[tuple[Any, ...]] = set()
        # names written, by (kind or role, step); one run uses few sets of names, so each is kept once
        self._names: dict[tuple[str, int], frozenset[str]] = {}
        self._sets: dict[frozenset[str], frozenset[str]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        end = 0
        for line, behind in _lines(path):
            record = _parse(line)
            if record is not None:
                end = behind
                self._remember(record)
        os.ftruncate(self._file, end)

    def append(self, record: Mapping[str, Any]) -> bool:
        """Write what is new in a record; False where nothing is. A full disk raises OSError and leaves no
        half line.
        """
        with self._lock:
            new = self._new_part(record)
            if new is None:
                return False
            plain = {"kind": new["kind"], **({} if "time" in new else {"time": time.time()}), **new}
            self._write(json.dumps(plain, separators=(",", ":"), default=_plain).encode() + b"\n")
            if new["kind"] != "metrics":
                os.fsync(self._file)
            self._remember(new)
            return True

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        start = os.lseek(self._file, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, start)
            raise

    def _new_part(self, record: Mapping[str, Any]) -> Mapping[str, Any] | None:
        scope = _scope(record)
        if scope is None:
            event = _event(record)
            return None if event is not None and event in self._events else record
        known = self._names.get((scope, record["step"]), frozenset())
        values = {name: value for name, value in record["values"].items() if name not in known}
        return {**record, "values": values} if values else None

    def _remember(self, record: Mapping[str, Any]) -> None:
        scope = _scope(record)
        if scope is None:
            event = _event(record)
            if event is not None:
                self._events.add(event)
            return
        key = (scope, record["step"])
        names = self._names.get(key, frozenset()) | frozenset(record["values"])
        self._names[key] = self._sets.setdefault(names, names)


def _scope(record: Mapping[str, Any]) -> str | None:
    """Within what a record's values are unique per step, or None where it has no values."""
    if record["kind"] == "metrics":
        return "metrics"
    if record["kind"] == "measure":
        return f"measure/{record['measure']}"
    if record["kind"] == "probe":
        return f"probe/{record['perturbation']}"
    return f"score/{record['role']}" if record["kind"] == "score" else None


def _event(record: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What makes a record of another kind the same as an earlier one; None: never the same."""
    names = {
        "phase": ("index",),
        "operation": ("generation", "phase", "operation", "position"),
        "checkpoint": ("folder",),
    }.get(record["kind"])
    return None if names is None else (record["kind"], record["step"], *(record.get(name) for name in names))


def _plain(value: Any) -> Any:
    """For json: numbers of numpy and torch, paths."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot stand in a journal")


# --------------------------------------------------------------------------------------------------- run.json


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an advisory lock on a file; gives False where another process holds it and ``wait`` is off.

    File systems without locks count as unlocked: the lock keeps two honest processes apart, no more.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        except OSError:
            pass
        yield held
    finally:
        os.close(file)


def read_run(run_folder: Path) -> dict[str, Any]:
    """run.json, or nothing where the folder is no run."""
    try:
        found = json.loads((run_folder / "run.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise ValueError(f"{run_folder / 'run.json'} is damaged: {error}") from None
    return found if isinstance(found, dict) else {}


def update_run(run_folder: Path, **changes: Any) -> dict[str, Any]:
    """Change fields of run.json. Several threads and processes may: none undoes another's change, none sees
    half a file.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    with locked(run_folder / ".run.lock"):
        run = read_run(run_folder) | changes
        replace_text(run_folder / "run.json", json.dumps(run, indent=1, default=_plain) + "\n")
    return run


def replace_text(path: Path, text: str) -> None:
    """Write a whole file or leave the old one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def run_folders(root: Path) -> list[Path]:
    """Run folders under ``root``, also inside comparisons and sweeps, oldest first."""
    found = {path.parent for pattern in ("*/run.json", "*/*/run.json") for path in root.glob(pattern)}
    return sorted(found, key=lambda folder: (blank_summary(folder).started or 0.0, str(folder)))


def _created(run: Mapping[str, Any]) -> float | None:
    created = run.get("created")
    if isinstance(created, int | float):
        return float(created)
    with contextlib.suppress(TypeError, ValueError):
        return datetime.fromisoformat(created).timestamp()  # type: ignore[arg-type]
    return None


# ------------------------------------------------------------------------------------------------------ state


def driver_stamp() -> dict[str, Any]:
    """This process, for the field ``driver`` of run.json: enough to tell later whether it still lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _process_start(os.getpid())}


def _process_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: a pid may be used again, the pair may not. None: not
    told here.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] == "Z" else after_name[19]


def _lives(pid: int, started: str | None) -> bool:
    if started is not None:
        return _process_start(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def beat(run_folder: Path) -> None:
    """A sign of life for readers on other machines, for stretches in which nothing is journalled."""
    with contextlib.suppress(OSError):
        (run_folder / "heartbeat").touch()


def is_lost(run_folder: Path, now: float | None = None) -> bool:
    """Whether the driver of a run that says "starting" or "running" is gone.

    On the driver's machine its process is looked up (pid and start time). Elsewhere, and where run.json names
    no driver, the run is lost when neither journal nor heartbeat has moved for `SILENCE` seconds, by the
    storage's clock and ours.
    """
    driver = read_run(run_folder).get("driver")
    if driver and driver.get("host") == socket.gethostname():
        return not _lives(int(driver["pid"]), driver.get("started"))
    signs = [
        path.stat().st_mtime
        for name in ("journal.jsonl", "heartbeat", "run.json")
        if (path := run_folder / name).exists()
    ]
    return bool(signs) and (time.time() if now is None else now) - max(signs) > SILENCE


@dataclass
class RunSummary:
    """Where a run stands, as far as its journal says; `see` moves it on by one record."""

    folder: Path
    name: str
    state: str = "waiting"  # nothing journalled yet
    message: str = ""  # of the last state
    generation: int | None = None
    generations: int | None = None  # where the phase records say it
    phase: str = ""
    phase_index: int | None = None
    phases: int | None = None
    step: int = 0
    stop: int | None = None  # step at which the phase ends
    total: int | None = None  # steps of the whole plan
    directions: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)  # last metrics
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # last, by role
    masks: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # by mask, the operation that stored it last
    started: float | None = None
    updated: float | None = None
    parent: str | None = None  # the folder of its comparison or sweep, from the run's own if relative
    mlflow_run_id: str | None = None

    def see(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "measure":
            return  # taken of the weights when the run is over: no news of the run
        moment = record.get("time") or None
        if moment is not None:
            self.started = moment if self.started is None else self.started
            self.updated = moment
        self.step = max(self.step, record.get("step", 0))
        kind = record["kind"]
        if kind == "state":
            self.state, self.message = record["state"], record.get("message", "")
        elif kind == "phase":
            self.phase, self.phase_index = record["name"], record["index"]
            self.generation, self.stop = record.get("generation"), record.get("stop")
            self.total = record.get("total", self.total)
            self.generations = record.get("generations", self.generations)
            self.phases = record.get("phases", self.phases)
            self.directions = dict(record.get("directions", {}))
        elif kind == "metrics":
            self.values.update(record["values"])
        elif kind == "score":
            self.scores.setdefault(record["role"], {}).update(record["values"])
        elif kind == "operation":
            self.masks.update(dict.fromkeys(record.get("masks", {}), record))
        if self.total is not None and (self.state == "finished" or record.get("role") == "test"):
            self.total = self.step  # test is scored at the end alone; of a cut in the last phase no phase record tells


def blank_summary(run_folder: Path) -> RunSummary:
    """What run.json alone says; a damaged one is a state, so that a list of runs still shows the others."""
    try:
        run = read_run(run_folder)
    except ValueError as error:
        return RunSummary(folder=run_folder, name=run_folder.name, state="damaged", message=str(error))
    return RunSummary(
        folder=run_folder,
        name=run.get("name", run_folder.name),
        state=run.get("state", "waiting"),
        started=_created(run),
        parent=run.get("parent"),
        mlflow_run_id=run.get("mlflow_run_id"),
    )


def summary(run_folder: Path, now: float | None = None) -> RunSummary:
    """Where a run stands. Its state is honest: a run whose driver died without a word is "lost" (see
    `is_lost`).
    """
    found = blank_summary(run_folder)
    if found.state == "damaged":
        return found
    last_metrics: tuple[bytes, int] | None = None
    for line, end in _lines(run_folder / "journal.jsonl"):
        if line.startswith(_METRICS):  # nearly all lines: only the last is worth parsing
            last_metrics = line, end
        else:
            found.see(_record(line, end))
    if last_metrics is not None:
        updated = found.updated
        found.see(_record(*last_metrics))
        found.updated = max(filter(None, (updated, found.updated)), default=None)
    if found.state in ("starting", "running") and is_lost(run_folder, now):
        found.state = "lost"
        found.message = LOST
    return found
