"""The scheduler actor, and how rank 0 reaches it.

The actor is `llf_ray.train.adviser.Adviser` behind Ray, for all runs of a driver: the one writer of their journals and
cuts. All it knows is in the runs' folders, so one that dies is started again by Ray and goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llf_ray.engine.base import Digest
from llf_ray.journal import note, read
from llf_ray.plan import Answer, Observed, Plan
from llf_ray.train.adviser import Adviser

__all__ = ["RemoteAdvice", "SchedulerActor", "list_spools", "merge_spools", "start_actor"]

T = TypeVar("T")

SPOOL = "journal.spool-{}.jsonl"


class SchedulerActor:
    """Answers rank 0 of each run and keeps its record. Every method may be called twice: all are idempotent."""

    def __init__(self, plans: Mapping[str, Plan]) -> None:
        """``plans`` by run folder; Ray calls this again, with the same, when it starts the actor anew."""
        self._plans = plans
        self._advisers: dict[str, Adviser] = {}

    def _adviser(self, folder: str) -> Adviser:
        if folder not in self._advisers:
            self._advisers[folder] = Adviser(Path(folder), self._plans[folder])
        return self._advisers[folder]

    def at(self, folder: str, step: int, observed: Observed | None, expires: float) -> Answer:
        """Where a run stands. A question that waited until ``expires`` is not answered: rank 0 has helped itself."""
        if time.time() > expires:
            raise GetTimeoutError(f"the question about step {step} came too late")
        return self._adviser(folder).at(step, observed)

    def record(self, folder: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Append to a run's journal."""
        self._adviser(folder).record(records)

    def check(self, folder: str, step: int, digests: Sequence[Digest]) -> str:
        """Compare the replicas of all ranks; the model's digest."""
        return self._adviser(folder).check(step, digests)

    def merge(self, folder: str) -> None:
        """Take over what rank 0 wrote down while it could not reach us."""
        merge_spools(self._adviser(folder))


def start_actor(plans: Mapping[str, Plan]) -> ActorHandle[SchedulerActor]:
    """The actor, on the driver's node: it lives as long as the driver, whatever becomes of the workers."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind = ray.remote(SchedulerActor).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
    )
    return kind.remote(dict(plans))  # type: ignore[return-value]


def list_spools(run_folder: Path) -> list[Path]:
    """What rank 0 wrote down while it was alone, oldest first."""
    return sorted(run_folder.glob(SPOOL.format("*")))


def merge_spools(adviser: Adviser) -> None:
    """Move the records of all spools into the journal, which drops what it has; a spool goes when all of it is written.

    Nobody may be writing one: the run's rank 0 calls before it starts, the driver after it ended.
    """
    for path in list_spools(adviser.folder):
        adviser.record(list(read(path)))
        if not adviser.num_waiting:
            path.unlink()


class RemoteAdvice:
    """What rank 0 asks, answered by the actor; once it cannot be reached, for the rest of the run by rank 0 itself.

    Alone, rank 0 works the answer out from the same plan and cuts; its records wait in a spool beside the journal,
    whose only writer is the actor.
    """

    def __init__(self, actor: ActorHandle[SchedulerActor], folder: Path, plan: Plan, *, timeout: float = 60.0) -> None:
        self._actor, self._folder, self._plan, self._timeout = actor, folder, plan, timeout
        self._alone: Adviser | None = None

    def at(self, step: int, observed: Observed | None) -> Answer:
        """Where the run stands at ``step``."""
        # a late answer might make a cut that nobody hears of; the other half bears clocks that differ
        expires = time.time() + self._timeout / 2
        return self._ask(
            lambda actor, run: actor.at.remote(run, step, observed, expires), lambda own: own.at(step, observed)
        )

    def record(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append to the journal; what a full disk does not take waits in memory, here or in the actor's."""
        self._ask(lambda actor, run: actor.record.remote(run, records), lambda own: own.record(records))

    def check(self, step: int, digests: Sequence[Digest]) -> str:
        """Compare the replicas of all ranks; the model's digest."""
        return self._ask(
            lambda actor, run: actor.check.remote(run, step, digests), lambda own: own.check(step, digests)
        )

    def merge(self) -> None:
        """Hand over what an earlier rank 0 of this run spooled."""
        self._ask(lambda actor, run: actor.merge.remote(run), lambda own: None)

    def _ask(self, remote: Callable[[Any, str], Any], own: Callable[[Adviser], T]) -> T:
        if self._alone is None:
            try:
                return ray.get(remote(self._actor, str(self._folder)), timeout=self._timeout)
            except (GetTimeoutError, RayActorError) as error:
                self._go_alone(error)
            except RayTaskError as error:
                if isinstance(error.cause, GetTimeoutError):
                    self._go_alone(error.cause)
                else:
                    raise error.cause from None  # its own class and its one line, without the actor's traceback
        assert self._alone is not None
        return own(self._alone)

    def _go_alone(self, error: Exception) -> None:
        self._alone = Adviser(self._folder, self._plan, journal=SPOOL.format(f"{time.time_ns()}-{os.getpid()}"))
        why = type(error).__name__
        self._alone.record([note(f"the scheduler actor cannot be reached ({why}): rank 0 reads the plan itself")])
