"""The scheduler actor and what rank 0 does without it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import ray

from llf_ray.cluster.actor import RemoteAdvice, note, start_actor
from llf_ray.engine.base import Digest
from llf_ray.journal import read
from llf_ray.plan import Schedule
from llf_ray.train.adviser import CUT_REQUEST, ReplicasDiffer, read_cuts
from llf_ray.train.state import Run
from tests.cluster.faulty import children
from tests.cluster.tiny import tiny_run


@pytest.fixture
def run(local_ray: None, tmp_path: Path) -> Run:
    return tiny_run(tmp_path, "advised")


def messages(run: Run) -> list[str]:
    return [record["message"] for record in read(run.folder / "journal.jsonl") if record["kind"] == "note"]


def actor_process() -> int:
    raylet = next(pid for pid, title in children(os.getpid()) if title.split(" ")[0].endswith("raylet"))
    return next(pid for pid, title in children(raylet) if title.startswith("ray::SchedulerActor"))


def test_a_killed_actor_comes_back_with_what_its_folder_says(run: Run) -> None:
    actor = start_actor({str(run.folder): run.plan})
    try:
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
    finally:
        ray.kill(actor)


def test_rank_0_goes_on_alone_and_loses_nothing(run: Run) -> None:
    actor = start_actor({str(run.folder): run.plan})
    advice = RemoteAdvice(actor, run.folder, run.plan, timeout=30)
    advice.record([{"kind": "metrics", "step": 1, "time": 1.0, "values": {"train/loss": 1.0}}])
    ray.kill(actor, no_restart=True)
    (run.folder / CUT_REQUEST).write_text(json.dumps({"phase": 0, "time": 0.0}))
    cut = advice.at(8, None)
    assert cut == Schedule(run.plan, read_cuts(run.folder)).at(8)
    assert [(c.phase, c.step) for c in cut.cuts] == [(0, 8)]
    advice.record([{"kind": "metrics", "step": step, "time": 1.0, "values": {"train/loss": 9.0}} for step in (1, 2)])
    assert advice.check(8, [Digest(shard=3, copy=None), Digest(shard=4, copy=None)]) == f"{7:016x}"
    assert len(messages(run)) == 0  # the journal is the actor's; ours waits beside it
    again = start_actor({str(run.folder): run.plan})
    try:
        RemoteAdvice(again, run.folder, run.plan).merge()
        assert any("cannot be reached" in text for text in messages(run))
        losses = [
            (r["step"], r["values"]["train/loss"]) for r in read(run.folder / "journal.jsonl") if r["kind"] == "metrics"
        ]
        assert losses == [(1, 1.0), (2, 9.0)]
        assert not list(run.folder.glob("journal.spool-*"))
        assert RemoteAdvice(again, run.folder, run.plan).at(8, None) == cut
    finally:
        ray.kill(again)


def test_a_question_that_comes_too_late_is_not_answered_twice(run: Run) -> None:
    actor = start_actor({str(run.folder): run.plan})
    try:
        with pytest.raises(ray.exceptions.RayTaskError, match="too late"):
            ray.get(actor.at.remote(str(run.folder), 3, None, time.time() - 1))
    finally:
        ray.kill(actor)


def test_different_replicas_reach_rank_0_as_one_line(run: Run) -> None:
    actor = start_actor({str(run.folder): run.plan})
    try:
        advice = RemoteAdvice(actor, run.folder, run.plan)
        with pytest.raises(
            ReplicasDiffer,
            match=r"^step 4: workers hold different weights \(rank 0: 0+1, rank 1: 0+2\); rank\(s\) \[1\]",
        ):
            advice.check(4, [Digest(shard=1, copy=1), Digest(shard=0, copy=2)])
    finally:
        ray.kill(actor)
