"""Who answers rank 0: the plan, its cuts and the run's journal, in one process.

The scheduler actor is this class behind Ray; a run without Ray, and rank 0 when the actor cannot be reached, use it as
it is. It holds nothing that the run's folder lacks, so a new one picks up where the last stood.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from llf_ray.engine.base import Digest
from llf_ray.journal import Journal, note, read
from llf_ray.plan import Answer, Cut, Observed, Plan, Schedule

__all__ = ["Advice", "Adviser", "ReplicasDiffer", "read_cuts", "total_digest"]

CUTS, CUT_REQUEST, STOP_REQUEST, JOURNAL = "cuts.jsonl", "cut.request", "stop.request", "journal.jsonl"


class ReplicasDiffer(RuntimeError):
    """Two workers hold different copies of the same weights."""


class Advice(Protocol):
    """What rank 0 asks for. Every call may be made twice: all are idempotent."""

    def at(self, step: int, observed: Observed | None) -> Answer: ...

    def record(self, records: Sequence[Mapping[str, Any]]) -> None: ...

    def check(self, step: int, digests: Sequence[Digest]) -> str: ...


def read_cuts(run_folder: Path) -> list[Cut]:
    """The cuts of a run, in the order they were made; a torn last line was never acted on and is dropped."""
    path = run_folder / CUTS
    cuts = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            cuts.append(Cut(**json.loads(line)))
    return cuts


def total_digest(digests: Sequence[Digest]) -> int:
    """The model's digest from what every rank found: shards add up modulo 2^64."""
    return sum(digest.shard for digest in digests) % 2**64


class Adviser:
    """Answers for one run and writes its journal and cuts; one process only.

    ``journal`` names another file for whoever must not write the run's own (rank 0 without its actor).
    """

    def __init__(self, run_folder: Path, plan: Plan, *, journal: str = JOURNAL) -> None:
        self.folder = run_folder
        self.schedule = Schedule(plan, read_cuts(run_folder))
        self.journal = Journal(run_folder / journal)
        self._waiting: list[Mapping[str, Any]] = []

    def at(self, step: int, observed: Observed | None = None) -> Answer:
        """Where the run stands at ``step``; decides first whether its phase ends here."""
        self.schedule.cuts = read_cuts(self.folder)  # the folder is the truth: rank 0 may have cut while it was alone
        asked = self._asked(step)
        cut = self.schedule.decide(step, observed, asked=asked)
        if cut is not None and self._keep(cut) and asked:
            (self.folder / CUT_REQUEST).unlink(missing_ok=True)
        return self.schedule.at(step)

    def _asked(self, step: int) -> bool:
        """Whether a person asked to end this phase; a request for a phase that is over is dropped.

        Steps that a crash undid are done again first: a cut must not lie behind what is on record.
        """
        request = self.folder / CUT_REQUEST
        if not request.exists():
            return False
        here = self.schedule.at(step).position.index
        try:
            wanted = int(json.loads(request.read_text())["phase"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            request.unlink(missing_ok=True)
            self.record([note(f"{CUT_REQUEST} cannot be read ({type(error).__name__}: {error}) and is dropped")])
            return False
        if wanted < here:
            request.unlink(missing_ok=True)
        return wanted == here and step >= self._reached()

    def _reached(self) -> int:
        """The last step on record, in the run's own journal and, beside it, in ours."""
        journals = {self.folder / JOURNAL, self.journal.path}
        return max((r["step"] for path in journals for r in read(path) if r["kind"] == "metrics"), default=0)

    def _keep(self, cut: Cut) -> bool:
        """A cut is on disk before anyone acts on it; what the disk does not take is no cut, and is asked for again."""
        path = self.folder / CUTS
        end = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.truncate(end)
                file.write(json.dumps(asdict(cut)).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, end)  # lest it be read back later
            self.record([note(f"the phase does not end at step {cut.step}: the cut cannot be kept ({error})")])
            return False
        self.schedule.cuts.append(cut)
        phase = self.schedule.plan.phases[cut.phase]
        self.record([note(f"phase {phase.name!r} of generation {phase.generation} ends at step {cut.step}: {cut.why}")])
        return True

    def record(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append to the journal; what cannot be written (a full disk) waits for the next call and is never dropped."""
        self._waiting.extend(records)
        while self._waiting:
            try:
                self.journal.append(self._waiting[0])
            except OSError:
                return
            self._waiting.pop(0)

    @property
    def num_waiting(self) -> int:
        """Records that the disk has not taken yet."""
        return len(self._waiting)

    def check(self, step: int, digests: Sequence[Digest]) -> str:
        """The model's digest in hex, after comparing what every rank holds.

        Raises:
            ReplicasDiffer: naming the ranks that disagree with rank 0.
        """
        copies = [digest.copy for digest in digests]
        odd = [rank for rank, copy in enumerate(copies) if copy != copies[0]]
        if odd:
            seen = ", ".join(f"rank {rank}: {copy:016x}" for rank, copy in enumerate(copies))
            raise ReplicasDiffer(
                f"step {step}: workers hold different weights ({seen}); rank(s) {odd} differ from rank 0"
            )
        return f"{total_digest(digests):016x}"
