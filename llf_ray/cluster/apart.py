"""Many short trainings side by side: each in a Ray task of its own, on one worker, as many as there is room for.

A worker group takes seconds to come up and trains one run at a time on all its ranks. A study has dozens of trainings
of a minute: here each takes one worker's share of the cluster, with plain torch and the same loop.

A study calls here twice, to train and to examine. It gives both calls one stack, ``keep``: the first that needs Ray
starts it, and it ends with the stack. A process that starts a second Ray may crash when it ends.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch

from llf_ray.cluster.actor import merge_spools
from llf_ray.cluster.launch import ALLOCATOR, POLL, SETTINGS, Signals, Watch, held, is_finished, shipped, stopped_early
from llf_ray.cluster.outcome import read_outcome, step_kept, write_outcome
from llf_ray.cluster.session import environment, logging_to, need, num_fitting, ray_session
from llf_ray.cluster.worker import alone, not_begun
from llf_ray.config import SettingError
from llf_ray.display import Display
from llf_ray.engine.local import LocalEngine
from llf_ray.engine.team import Team
from llf_ray.journal import state_record
from llf_ray.run import Resources
from llf_ray.train.adviser import STOP_REQUEST, Adviser
from llf_ray.train.loop import train
from llf_ray.train.state import Run
from llf_ray.train.worker import Outcome

__all__ = ["execute_apart", "map_apart"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


def execute_apart(
    runs: Sequence[Run],
    *,
    title: str,
    display: bool = True,
    verbose: bool = False,
    log_file: Path,
    on_signal: Callable[[int], None] | None = None,
    on_end: Callable[[Run], object] | None = None,
    keep: contextlib.ExitStack | None = None,
) -> list[Outcome]:
    """Carry runs of one worker on, side by side; how each ended, in their order. Otherwise as `launch.execute`.

    A task whose process dies is done again from the run's newest checkpoint, ``resources.retries`` times.

    Raises:
        SettingError: nothing was started: a run wants several workers, is carried on elsewhere, or the cluster has not
        what it asks for.
    """
    for run in runs:
        if run.config.resources.workers != 1:
            raise SettingError(
                f"run {run.folder.name!r}: resources.workers = {run.config.resources.workers}: side by side each "
                "training has one"
            )
    with contextlib.ExitStack() as stack:
        (keep or stack).enter_context(logging_to(log_file, verbose=verbose))
        left = [run for run in runs if not is_finished(run)]
        for run in left:
            stack.enter_context(held(run.folder))
        if left:
            signals = stack.enter_context(Signals(on_signal))
            screen = stack.enter_context(Display([run.folder.name for run in left], title=title)) if display else None
            watch = stack.enter_context(Watch(left, screen, signals, on_end))
            try:
                with _session(left[0].config.resources, keep), shipped(left):
                    signals.install()  # ray.init has put its own in place
                    _drive(left, signals, watch)
            except KeyboardInterrupt:
                watch.hurry = True
                if keep is not None:
                    keep.close()  # nothing may train on while it is settled
            for run in left:
                _settle(run)
        return [read_outcome(run.folder) or stopped_early(run) for run in runs]


def map_apart(
    function: Callable[[T], R],
    items: Sequence[T],
    resources: Resources,
    *,
    log_file: Path,
    on_signal: Callable[[int], None] | None = None,
    on_end: Callable[[int], object] = lambda number: None,
    keep: contextlib.ExitStack | None = None,
) -> list[R]:
    """``function`` of each item, side by side on one worker's share of the cluster each, in their order.

    ``on_end`` hears how many are done, after each.

    Raises:
        Exception: what the function raises, as soon as it does for one item.
        KeyboardInterrupt: a signal came; ``on_signal`` has heard which.
    """
    if not items:
        return []
    with contextlib.ExitStack() as stack:
        (keep or stack).enter_context(logging_to(log_file, verbose=False))
        signals = stack.enter_context(Signals(on_signal))
        stack.enter_context(_session(resources, keep))
        signals.install()  # ray.init has put its own in place
        return _mapped(function, items, resources, signals, on_end)


def _mapped(
    function: Callable[[T], R],
    items: Sequence[T],
    resources: Resources,
    signals: Signals,
    on_end: Callable[[int], object],
) -> list[R]:
    """In a function of its own: what refers to Ray's objects is gone before Ray is."""
    task = _remote(_call, resources)
    refs = [task.remote(function, item, _threads(resources)) for item in items]
    waiting = list(refs)
    while waiting:
        done, waiting = ray.wait(waiting, timeout=POLL)
        signals.check()
        for ref in done:
            ray.get(ref)
            on_end(len(refs) - len(waiting))
    return list(ray.get(refs))


def _call(function: Callable[[T], R], item: T, threads: int) -> R:
    torch.set_num_threads(threads)
    return function(item)


@contextlib.contextmanager
def _session(resources: Resources, keep: contextlib.ExitStack | None) -> Iterator[None]:
    """Ray until the end of the block, or of ``keep``."""
    with contextlib.ExitStack() as own:
        stack = keep or own
        stack.enter_context(environment(SETTINGS | ALLOCATOR))
        stack.enter_context(ray_session(resources))
        wanted = need(resources)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
            asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
            raise SettingError(f"resources: no node has room for one training ({asked})")
        yield


def _threads(resources: Resources) -> int:
    return resources.threads or max(1, int(resources.cpus))


def _remote(function: Callable[..., Any], resources: Resources) -> Any:
    return ray.remote(function).options(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        resources=dict(resources.custom),
        max_retries=resources.retries,
    )


def _drive(runs: Sequence[Run], signals: Signals, watch: Watch) -> None:
    """Until every task has ended. A first signal lets those that train write a checkpoint, and the rest not begin.

    Ray takes waiting tasks in any order, so few wait with it: runs begin in the order in which they were given, and a
    study that is stopped has whole seeds.
    """
    queue, training = list(runs), dict[Any, Run]()
    asked = False
    while queue or training:
        while queue and not asked and len(training) < _most(queue[0].config.resources):
            run = queue.pop(0)
            training[_remote(_carry, run.config.resources).remote(run)] = run
        done, _ = ray.wait(list(training), timeout=POLL)
        for ref in done:
            run = training.pop(ref)
            try:
                ray.get(ref)
            except Exception as error:
                words = " ".join(str(error).split())
                logger.exception("%s failed", run.folder.name)
                _write(run, Outcome(state="failed", step=step_kept(run.folder), message=words[-400:]))
        if signals.heard and not asked:
            asked = True
            queue.clear()
            for run in training.values():
                (run.folder / STOP_REQUEST).touch()
        watch.look()


def _most(resources: Resources) -> int:
    """As many tasks as there is room for, and half as many again that wait: an autoscaler sees that more is wanted."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(2, math.ceil(1.5 * num_fitting(resources, nodes)))


def _carry(run: Run) -> None:
    """In a process of its own: one run from where its folder says it stands to its end or a stop."""
    resources = run.config.resources
    torch.set_num_threads(_threads(resources))
    team = Team.alone("cuda" if resources.gpus and torch.cuda.is_available() else "cpu")
    with alone(run.folder):
        adviser = Adviser(run.folder, run.plan)
        merge_spools(adviser)
        try:
            if (run.folder / STOP_REQUEST).exists():
                outcome = not_begun(run)
            else:
                adviser.record([state_record("running")])
                outcome = _trained(run, adviser, team)
            write_outcome(run.folder, outcome)
            adviser.record([state_record(outcome.state, outcome.message)])
        finally:
            adviser.journal.close()


def _trained(run: Run, adviser: Adviser, team: Team) -> Outcome:
    config = run.config
    try:
        engine = LocalEngine(config.task.build(config.seed), run.groups, config.optim, config.engine, team)
    except SettingError as error:
        return Outcome(state="failed", step=0, message=str(error))
    outcome = train(run, engine, adviser, team)
    engine.close()
    return outcome


def _settle(run: Run) -> None:
    """A run without an outcome gets one: its process was ended at once."""
    if read_outcome(run.folder) is None:
        _write(run, stopped_early(run))


def _write(run: Run, outcome: Outcome) -> None:
    """The driver's word on a run whose process can say nothing more."""
    adviser = Adviser(run.folder, run.plan)
    write_outcome(run.folder, outcome)
    adviser.record([state_record(outcome.state, outcome.message)])
    adviser.journal.close()
