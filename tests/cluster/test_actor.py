"""The scheduler actor and what rank 0 does without it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.actor import ActorHandle

from llf_ray.cluster.actor import RemoteAdvice, SchedulerActor, note, start_actor
from llf_ray.engine.base import Digest
from llf_ray.journal import read
from llf_ray.plan import Schedule
from llf_ray.train.adviser import CUT_REQUEST, ReplicasDiffer, read_cuts
from llf_ray.train.state import Run
from tests.cluster.faulty import children
from tests.cluster.tiny import tiny_run


@pytest.fixture(scope="module")
def run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory.mktemp("runs"), "advised")


@pytest.fixture(scope="module")
def actor(run: Run) -> Iterator[ActorHandle[SchedulerActor]]:
    actor = start_actor({str(run.folder): run.plan})
    yield actor
    ray.kill(actor)


def messages(run: Run) -> list[str]:
    return [record["message"] for record in read(run.folder / "journal.jsonl") if record["kind"] == "note"]


def actor_process() -> int:
    raylet = next(pid for pid, title in children(os.getpid()) if title.split(" ")[0].endswith("raylet"))
    return next(pid for pid, title in children(raylet) if title.startswith("ray::SchedulerActor"))


def metrics(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "metrics", "step": step, "time": 1.0, "values": {"train/loss": loss}}


def test_a_killed_actor_comes_back_with_what_its_folder_says(actor: ActorHandle[SchedulerActor], run: Run) -> None:
    advice = RemoteAdvice(actor, run.folder, run.plan)
    (run.folder / CUT_REQUEST).write_text(json.dumps({"phase": 0, "time": 0.0}))
    cut = advice.at(8, None)
    assert [(c.phase, c.step) for c in cut.cuts] == [(0, 8)]
    advice.record([note("before")])
    os.kill(actor_process(), signal.SIGKILL)
    assert advice.at(8, None) == cut
    advice.record([note("after")])
    assert [text for text in messages(run) if "phase" not in text] == ["before", "after"]
    assert not list(run.folder.glob("journal.spool-*"))


def test_rank_0_goes_on_alone_and_loses_nothing(actor: ActorHandle[SchedulerActor], run: Run) -> None:
    lost = start_actor({str(run.folder): run.plan})
    ray.kill(lost, no_restart=True)
    RemoteAdvice(actor, run.folder, run.plan).record([metrics(9, 1.0)])
    alone = RemoteAdvice(lost, run.folder, run.plan)
    (run.folder / CUT_REQUEST).write_text(json.dumps({"phase": 2, "time": 0.0}))
    known = messages(run)
    cut = alone.at(16, None)
    assert cut == Schedule(run.plan, read_cuts(run.folder)).at(16)
    assert [(c.phase, c.step) for c in cut.cuts] == [(0, 8), (2, 16)]
    alone.record([metrics(9, 9.0), metrics(10, 9.0)])
    assert alone.check(16, [Digest(shard=3, copy=5), Digest(shard=4, copy=5)]) == f"{7:016x}"
    assert messages(run) == known  # the journal is the actor's; ours waits beside it
    again = RemoteAdvice(actor, run.folder, run.plan)
    again.merge()
    assert any("cannot be reached" in text for text in messages(run))
    losses = [r["values"]["train/loss"] for r in read(run.folder / "journal.jsonl") if r["kind"] == "metrics"]
    assert losses == [1.0, 9.0]
    assert not list(run.folder.glob("journal.spool-*"))
    assert again.at(16, None) == cut


def test_a_question_that_comes_too_late_is_not_answered_twice(actor: ActorHandle[SchedulerActor], run: Run) -> None:
    with pytest.raises(ray.exceptions.RayTaskError, match="too late"):
        ray.get(actor.at.remote(str(run.folder), 3, None, time.time() - 1))


def test_different_replicas_reach_rank_0_as_one_line(actor: ActorHandle[SchedulerActor], run: Run) -> None:
    digests = [Digest(shard=1, copy=1), Digest(shard=0, copy=2)]
    wanted = r"^step 4: workers hold different weights \(rank 0: 0+1, rank 1: 0+2\); rank\(s\) \[1\]"
    with pytest.raises(ReplicasDiffer, match=wanted):
        RemoteAdvice(actor, run.folder, run.plan).check(4, digests)
