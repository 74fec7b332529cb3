"""What each Ray Train worker does: carry the runs of a driver, one after another, each with a fresh engine."""

from __future__ import annotations

import contextlib
import errno
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle

from llf_ray.cluster.actor import RemoteAdvice, SchedulerActor
from llf_ray.cluster.outcome import ended, step_kept, write_outcome
from llf_ray.config import SettingError
from llf_ray.data.base import BrokenData
from llf_ray.engine.team import Team
from llf_ray.engine.zero import ZeroEngine
from llf_ray.journal import locked, state_record
from llf_ray.train.adviser import STOP_REQUEST
from llf_ray.train.loop import train
from llf_ray.train.state import Run
from llf_ray.train.worker import Outcome

__all__ = ["ROOM", "TOKEN", "Work", "alone", "not_begun", "work"]

TOKEN = ".storage-token"  # what the driver leaves in a run's folder for the workers to find
ROOM = ".room"  # in the first run's folder: the placement group of the workers
STORAGE_PATIENCE = 10.0  # seconds that storage may take to show a file that another node wrote
LOCK_PATIENCE = 60.0  # seconds that the rank 0 of a killed driver may take to die


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the driver hands to every worker."""

    runs: Sequence[Run]
    actor: ActorHandle[SchedulerActor]
    token: str
    threads: int


def work(given: Work) -> list[tuple[str, Outcome]]:
    """Every rank calls: carry each run that has not ended; rank 0's list of (folder, outcome) reaches the driver."""
    torch.set_num_threads(given.threads)
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    team = Team.current(device)
    if team.rank == 0:
        _note_room(given.runs[0].folder)
    problem = _storage_problem(given, team)
    if problem:  # another try would see the same
        return [(str(run.folder), Outcome(state="failed", step=0, message=problem)) for run in given.runs]
    outcomes = []
    for run in given.runs:
        if team.share(ended(run.folder) if team.rank == 0 else None):
            continue
        outcomes.append((str(run.folder), _carry(run, given.actor, team)))
        gc.collect()  # the engine's cycles hold the last model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return outcomes


def _note_room(folder: Path) -> None:
    """Put down what we hold, for a driver whose controller dies: without a dashboard Ray never gives it back."""
    group = ray.util.get_current_placement_group()
    if group is not None:
        with contextlib.suppress(OSError):  # not the folder that we think, or a full disk: it comes to light later
            (folder / ROOM).write_text(group.id.hex())


def _storage_problem(given: Work, team: Team) -> str:
    """Every rank calls: on which nodes a run's folder is not the driver's own, or not writable; empty: on none."""
    seen = next((problem for run in given.runs if (problem := _folder_problem(run.folder, given.token, team.rank))), "")
    found = team.gather(f"node {ray.util.get_node_ip_address()}: {seen}" if seen else "")
    wrong = "; ".join(sorted({problem for problem in found if problem}))
    return wrong and f"{wrong}; set folder to a path on storage that every node shares"


def _folder_problem(folder: Path, token: str, rank: int) -> str:
    """What is wrong with a run's folder as this process sees it; network storage may need a moment."""
    end = time.monotonic() + STORAGE_PATIENCE
    while not _holds(folder / TOKEN, token):
        if time.monotonic() > end:
            return f"{folder} is not the folder that the driver wrote to"
        time.sleep(0.5)
    probe = folder / f".probe-{rank}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):  # a full disk has its own messages later on
            return f"{folder} cannot be written to ({error.strerror})"
    return ""


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def _carry(run: Run, actor: ActorHandle[SchedulerActor], team: Team) -> Outcome:
    """Every rank calls: one run from where its folder says it stands to its end or a stop."""
    first = team.rank == 0
    with alone(run.folder) if first else contextlib.nullcontext():
        advice = RemoteAdvice(actor, run.folder, run.plan)
        if first:
            advice.merge()
        if team.share((run.folder / STOP_REQUEST).exists() if first else None):
            outcome = not_begun(run)
        else:
            if first:
                advice.record([state_record("running")])
            outcome = _train(run, advice, team)
        if first:
            with contextlib.suppress(OSError):  # a full disk: the driver has the outcome from us
                write_outcome(run.folder, outcome)
            advice.record([state_record(outcome.state, outcome.message)])
    return outcome


def _train(run: Run, advice: RemoteAdvice, team: Team) -> Outcome:
    config = run.config
    try:
        engine = ZeroEngine(config.task.build(config.seed), run.groups, config.optim, config.engine, team)
    except SettingError as error:  # every rank has the same settings, so all are here
        return Outcome(state="failed", step=0, message=str(error))
    try:
        outcome = train(run, engine, advice, team)
    except BrokenData as error:  # met by one rank: the others end with the group, which finds the run ended
        with contextlib.suppress(OSError):
            write_outcome(run.folder, Outcome(state="failed", step=step_kept(run.folder), message=str(error)))
        raise
    engine.close()
    return outcome


def not_begun(run: Run) -> Outcome:
    """The outcome of a run whose turn did not come before the stop."""
    step = step_kept(run.folder) if run.folder.exists() else 0
    return Outcome(
        state="stopped",
        step=step,
        message=f"stopped at step {step} of {run.plan.total}, before its turn; nothing is lost",
    )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Rank 0 only: one rank 0 to a run. That of a driver that was killed, or on a lost node, may still be dying."""
    end = time.monotonic() + LOCK_PATIENCE
    while True:
        with locked(folder / ".worker.lock", wait=False) as mine:
            if mine:
                yield
                return
        if time.monotonic() > end:
            raise RuntimeError(f"another worker still carries {folder.name}: its old driver is gone but it is not")
        time.sleep(0.5)
