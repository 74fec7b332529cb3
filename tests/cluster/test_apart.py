"""Trainings side by side in Ray tasks: the same weights as alone, a stop that loses nothing, one failure of several."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llf_ray.cluster import apart
from llf_ray.cluster.apart import execute_apart, map_apart
from llf_ray.config import SettingError
from llf_ray.journal import Tracking, read, summary
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.run import Resources, RunConfig, prepare
from llf_ray.train.adviser import STOP_REQUEST
from llf_ray.train.folder import create, open_run
from tests.local import carry, final, same_bits, settings
from tests.toy import Toy

LATER = LaterLayer(generations=2, epochs=2, warmup_epochs=1, threshold="body")
pytestmark = pytest.mark.timeout(600)


def config(seed: int, **changes) -> RunConfig:
    base = settings(LATER, task=Toy(), resources=Resources(workers=1, cpus=1), tracking=Tracking(off=True, log_every=1))
    return replace(base, seed=seed, **changes)


def test_runs_side_by_side_are_the_runs_alone(local_ray: None, tmp_path: Path) -> None:
    runs = [create(prepare(config(seed)), tmp_path / "apart" / f"seed{seed}") for seed in (0, 1)]
    mad = config(2)
    runs.append(create(prepare(replace(mad, optim=replace(mad.optim, lr=1e9))), tmp_path / "apart" / "mad"))
    ended: list[str] = []
    outcomes = execute_apart(
        runs,
        title="apart",
        display=False,
        log_file=tmp_path / "driver.log",
        on_end=lambda run: ended.append(run.folder.name),
    )
    assert [outcome.state for outcome in outcomes] == ["finished", "finished", "failed"]
    assert [summary(run.folder).state for run in runs] == ["finished", "finished", "failed"]
    for seed in (0, 1):
        alone = create(prepare(config(seed)), tmp_path / "alone" / f"seed{seed}")
        carry(alone)
        assert same_bits(final(alone.folder), final(runs[seed].folder))
    again = execute_apart(runs[:2], title="apart", display=False, log_file=tmp_path / "driver.log")
    assert [outcome.step for outcome in again] == [16, 16]
    states = [record["state"] for record in read(runs[0].folder / "journal.jsonl") if record["kind"] == "state"]
    assert states == ["running", "finished"], "what is finished is left as it is"


def test_what_is_examined_comes_back_in_order(local_ray: None, tmp_path: Path) -> None:
    told: list[int] = []
    found = map_apart(abs, [-3, 2, -1], Resources(workers=1), log_file=tmp_path / "log", on_end=told.append)
    assert found == [3, 2, 1]
    assert told == [1, 2, 3]


def test_a_signal_ends_an_examination_and_is_heard(local_ray: None, tmp_path: Path) -> None:
    heard: list[int] = []

    def end(number: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        map_apart(abs, [-3] * 9, Resources(workers=1), log_file=tmp_path / "log", on_signal=heard.append, on_end=end)
    assert heard == [signal.SIGTERM]


def test_calls_that_share_a_stack_share_one_ray(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []

    @contextlib.contextmanager
    def session(resources: Resources) -> Iterator[None]:
        yield
        ended.append(True)

    monkeypatch.setattr(apart, "ray_session", session)
    with contextlib.ExitStack() as keep:
        run = create(prepare(config(0)), tmp_path / "run")
        execute_apart([run], title="", display=False, log_file=tmp_path / "log", keep=keep)
        assert map_apart(abs, [-3], Resources(workers=1), log_file=tmp_path / "log", keep=keep) == [3]
        assert not ended
    assert ended
    ended.clear()
    map_apart(abs, [-3], Resources(workers=1), log_file=tmp_path / "log")
    assert ended == [True], "without one a call ends what it began"


def test_what_cannot_start_is_said(local_ray: None, tmp_path: Path) -> None:
    two = create(prepare(config(0, resources=Resources(workers=2))), tmp_path / "two")
    with pytest.raises(SettingError, match=r"resources\.workers = 2: side by side each training has one"):
        execute_apart([two], title="", display=False, log_file=tmp_path / "log")
    big = create(prepare(config(0, resources=Resources(workers=1, cpus=999))), tmp_path / "big")
    with pytest.raises(SettingError, match=r"no node has room for one training \(999 CPU\)"):
        execute_apart([big], title="", display=False, log_file=tmp_path / "log")
    assert open_run(big.folder).config.resources.cpus == 999
    assert not (big.folder / STOP_REQUEST).exists()
