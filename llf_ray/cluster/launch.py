"""The driver: carry runs on over Ray, watch them, and end tidily whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import shutil
import signal
import site
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import ray
from ray import cloudpickle
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import (
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from llf_ray.cluster.actor import SchedulerActor, list_spools, merge_spools, start_actor
from llf_ray.cluster.outcome import ended, read_outcome, step_kept, write_outcome
from llf_ray.cluster.session import (
    check_room,
    cluster_address,
    environment,
    free_room,
    logging_to,
    need,
    ray_session,
    wait_for_room,
)
from llf_ray.cluster.worker import ROOM, TOKEN, Work, work
from llf_ray.config import SettingError, to_plain
from llf_ray.data.base import ROOT_VARIABLE
from llf_ray.display import Display
from llf_ray.journal import Tail, driver_stamp, locked, note, read_run, state_record, update_run
from llf_ray.run import Resources
from llf_ray.tracking import Tracker, flat_params
from llf_ray.train.adviser import STOP_REQUEST, Adviser
from llf_ray.train.folder import OUTCOME, extend, is_longer
from llf_ray.train.state import Run
from llf_ray.train.worker import Outcome

__all__ = [
    "ALLOCATOR",
    "POLL",
    "SETTINGS",
    "Signals",
    "Watch",
    "execute",
    "held",
    "is_finished",
    "shipped",
    "stopped_early",
]

logger = logging.getLogger(__name__)

POLL = 0.3  # seconds between two looks at the journals
TRACKING_PATIENCE = 60.0  # seconds that the end waits for a tracking server
LINE = 400  # characters of an error that a person is shown
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon Ray notices that workers failed or ended
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""glibc gives large blocks back to the system at every free, so each step of a network on a CPU takes its activations'
pages anew: 850 page faults and 7 % of the time on the default job. Workers keep them."""
COLLATERAL = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")
"""What a rank says when it only lost its peer."""


def execute(
    runs: Sequence[Run],
    *,
    title: str,
    display: bool = True,
    verbose: bool = False,
    log_file: Path,
    on_signal: Callable[[int], None] | None = None,
    on_end: Callable[[Run], object] | None = None,
) -> list[Outcome]:
    """Carry runs on, one after another, in one worker group; how each ended, in their order.

    A run that has finished is left as it is. The first Ctrl-C or SIGTERM lets the workers write a checkpoint and stop;
    the second ends everything at once. ``on_signal`` hears of the first, for the exit code. ``on_end`` gets
    each run that ended, before its tracker takes what is in there.

    Raises:
        SettingError: nothing was started: a run is carried on elsewhere, or the cluster has not what the runs ask for.
    """
    if len({repr(run.config.resources) for run in runs}) > 1:
        raise SettingError("resources differ between runs that are to share one worker group")
    with contextlib.ExitStack() as stack:
        stack.enter_context(logging_to(log_file, verbose=verbose))
        left = [run for run in runs if not is_finished(run)]
        settled: Mapping[Path, Outcome] = {}
        for run in left:
            stack.enter_context(held(run.folder))
        if left:
            signals = stack.enter_context(Signals(on_signal))
            screen = stack.enter_context(Display([run.folder.name for run in left], title=title)) if display else None
            watch = stack.enter_context(Watch(left, screen, signals, on_end))
            settled = _Driver(left, signals, watch, log_file).drive()
        return [read_outcome(run.folder) or settled.get(run.folder) or stopped_early(run) for run in runs]


def is_finished(run: Run) -> bool:
    """Whether there is nothing left to train: it ended, and nobody made it longer since."""
    outcome = read_outcome(run.folder)
    return outcome is not None and outcome.state == "finished" and not is_longer(run)


def stopped_early(run: Run) -> Outcome:
    """The outcome of a run that was stopped before its workers had written one."""
    step = step_kept(run.folder)
    return Outcome(state="stopped", step=step, message=f"stopped at once; step {step} of {run.plan.total} is kept")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """This driver's claim on a run.

    Raises:
        SettingError: another driver has it, or its disk is full or read-only.
    """
    with locked(folder / ".driver.lock", wait=False) as mine:
        if not mine:
            driver = read_run(folder).get("driver") or {}
            who = f"process {driver.get('pid')} on {driver.get('host')}" if driver else "another process"
            watch = f"watch it with `llf-ray watch {folder.name}`, or stop it first"
            raise SettingError(f"run {folder.name!r} is being carried on by {who}: {watch}")
        try:
            (folder / OUTCOME).unlink(missing_ok=True)
            (folder / STOP_REQUEST).unlink(missing_ok=True)
            update_run(folder, driver=driver_stamp(), state="starting")
        except OSError as error:
            raise SettingError(f"run {folder.name!r} cannot be carried on: {folder}: {error.strerror}") from None
        yield


# ------------------------------------------------------------------------------------------------------------- driver


class _Driver:
    """Takes runs through worker groups until each has an outcome; remembers those that the disk may not have taken."""

    def __init__(self, runs: Sequence[Run], signals: Signals, watch: Watch, log_file: Path) -> None:
        self.runs, self.signals, self.watch, self.log_file = list(runs), signals, watch, log_file
        self.resources: Resources = runs[0].config.resources
        self.actor: ActorHandle[SchedulerActor] | None = None
        self.token = secrets.token_hex(8)
        self.settled: dict[Path, Outcome] = {}

    def drive(self) -> Mapping[Path, Outcome]:
        """From no Ray to no Ray, with an outcome for every run; those that rank 0 did not write, which a full disk may
        have refused from us as well.
        """
        settings = SETTINGS | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(self.resources.start_timeout)}
        if not cluster_address(self.resources):
            settings["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # nobody takes this machine away; one process less
        try:
            with environment(settings), shipped(self.runs), ray_session(self.resources):
                self.signals.install()  # ray.init has put its own in place
                check_room(self.resources)
                self._tell(self.runs[0], "starting")
                wait_for_room(self.resources, self.signals.check)
                for run in self.runs:
                    self._remember(run)
                self.actor = start_actor({str(run.folder): run.plan for run in self.runs})
                try:
                    self._leave_tokens()
                    self._carry()
                finally:
                    self._dismiss_actor()
        except KeyboardInterrupt:  # a signal before the workers were up, or the second one
            self.watch.hurry = True
            for run in self._left():
                self._settle(run, stopped_early(run))
        except SettingError as error:
            self.watch.hurry = True
            for run in self._left():
                self._settle(run, Outcome(state="failed", step=step_kept(run.folder), message=str(error)))
            raise
        finally:
            self._tidy()
        return self.settled

    def _leave_tokens(self) -> None:
        for run in self.runs:
            try:
                (run.folder / TOKEN).write_text(self.token)
            except OSError as error:
                raise SettingError(f"{run.folder} cannot be written to: {error.strerror}") from None

    def _left(self) -> list[Run]:
        return [run for run in self.runs if run.folder not in self.settled and not ended(run.folder)]

    def _carry(self) -> None:
        """Worker groups, until no run is left: one is enough unless a run uses up its retries or a controller dies."""
        lost_controllers = 0
        while left := self._left():
            self.signals.check()
            error = self._fit(left)
            if error is None:
                return
            logger.error("workers failed", exc_info=error)
            if isinstance(error, RayActorError) and lost_controllers < self.resources.retries:
                lost_controllers += 1
                free_room(left[0].folder / ROOM)
            elif left := self._left():
                # what one run's workers died of need not touch the next; what kept workers from starting does
                hopeless = left[:1] if isinstance(error, WorkerGroupError) else left
                for run in hopeless:
                    message = f"{_heart(error)} ({self.resources.retries} retries; more in {self.log_file})"
                    self._settle(run, Outcome(state="failed", step=step_kept(run.folder), message=message))
                if after := self._left():
                    self._tell(after[0], "starting")

    def _fit(self, left: Sequence[Run]) -> BaseException | None:
        """One worker group with Ray's own retries, in a thread: this one serves the screen and the signals."""
        trainer = self._trainer(left)
        found: list[Any] = []
        failed: list[BaseException] = []

        def fit() -> None:
            try:
                result: Any = trainer.fit()
                found.extend(result.return_value or [])
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=fit, name="workers", daemon=True)
        thread.start()
        asked = False
        while thread.is_alive():
            thread.join(POLL)
            self.watch.look()
            if self.signals.heard and not asked:
                asked = True
                self.watch.say("stopping: the workers write a checkpoint first (once more: stop at once)")
                for run in left:
                    with contextlib.suppress(OSError):
                        (run.folder / STOP_REQUEST).touch()
        for folder, outcome in found:
            run = next(run for run in left if str(run.folder) == folder)
            if not ended(run.folder):  # rank 0 could not write it
                self._settle(run, outcome)
        return failed[0] if failed else None

    def _trainer(self, left: Sequence[Run]) -> TorchTrainer:
        resources = self.resources
        assert self.actor is not None
        given = Work(
            runs=tuple(left),
            actor=self.actor,
            token=self.token,
            threads=resources.threads or max(1, int(resources.cpus)),
        )
        variables = ALLOCATOR | {
            "OMP_NUM_THREADS": str(given.threads),
            ROOT_VARIABLE: os.environ.get(ROOT_VARIABLE) or os.getcwd(),
        }
        return TorchTrainer(
            _train_loop,
            train_loop_config={"given": given},
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker=need(resources),
                placement_strategy=resources.placement,
            ),
            run_config=RunConfig(  # type: ignore[call-arg]  # what Ray declares is the old version's
                name=f"attempt-{time.time_ns()}",
                storage_path=str(left[0].folder / ".ray"),
                failure_config=FailureConfig(  # type: ignore[call-arg]
                    max_failures=resources.retries, controller_failure_limit=resources.retries
                ),
                callbacks=[_Failures([run.folder for run in left], self.actor, self.log_file)],  # type: ignore[list-item]
                worker_runtime_env={"env_vars": variables},
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )

    def _settle(self, run: Run, outcome: Outcome) -> None:
        """Give a run an outcome that rank 0 could not write."""
        self.settled[run.folder] = outcome
        with contextlib.suppress(OSError):
            write_outcome(run.folder, outcome)
        self._tell(run, outcome.state, outcome.message)

    def _remember(self, run: Run) -> None:
        """Settings that a resumed run was given anew are its settings from now on."""
        extend(run)
        before, now = read_run(run.folder).get("job"), to_plain(run.config)
        if before is None or json.dumps(before, sort_keys=True) == json.dumps(now, sort_keys=True):
            return
        update_run(run.folder, job=now)
        old, new = flat_params(before), flat_params(now)
        changes = [f"{key}={value} (was {old.get(key, 'none')})" for key, value in new.items() if old.get(key) != value]
        self._record(run, note(f"resumed with {', '.join(changes)}"))

    def _tell(self, run: Run, state: str, message: str = "") -> None:
        """A state in the run's journal."""
        self._record(run, state_record(state, message))

    def _record(self, run: Run, record: Mapping[str, Any]) -> None:
        """Into the run's journal, by whoever may write there."""
        if self.actor is None:
            adviser = Adviser(run.folder, run.plan)
            adviser.record([record])
            adviser.journal.close()
            return
        with contextlib.suppress(GetTimeoutError, RayActorError):
            ray.get(self.actor.record.remote(str(run.folder), [record]), timeout=30)

    def _dismiss_actor(self) -> None:
        actor, self.actor = self.actor, None
        if actor is not None and ray.is_initialized():
            ray.kill(actor)

    def _tidy(self) -> None:
        """Leave the folders as the next driver wants them."""
        for run in self.runs:
            for name in (TOKEN, ROOM):
                (run.folder / name).unlink(missing_ok=True)
            shutil.rmtree(run.folder / ".ray", ignore_errors=True)
            if list_spools(run.folder):
                adviser = Adviser(run.folder, run.plan)
                merge_spools(adviser)
                adviser.journal.close()
            if not ended(run.folder) and run.folder in self.settled:
                self._settle(run, self.settled[run.folder])  # a disk that was full may have room again
            outcome = read_outcome(run.folder)
            with contextlib.suppress(OSError):
                update_run(run.folder, state=outcome.state if outcome else "stopped")
        self.watch.look()


def _train_loop(config: dict[str, Any]) -> Any:
    return work(config["given"])


class _Failures(UserCallback):
    """In Ray's controller: puts a failed worker group on record, in full in the driver's log file."""

    def __init__(self, folders: Sequence[Path], actor: ActorHandle[SchedulerActor], log_file: Path) -> None:
        self._folders, self._actor, self._log_file = folders, actor, log_file

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Ray calls when workers have failed, before it decides whether to start them again."""
        with contextlib.suppress(OSError), self._log_file.open("a") as file:
            for rank, error in sorted(worker_exceptions.items()):
                file.write(f"worker {rank} failed: {error}\n")
        active = next((folder for folder in self._folders if not ended(folder)), None)
        if active is not None:
            self._actor.record.remote(str(active), [note(_first_failure(worker_exceptions))])


# ------------------------------------------------------------------------------------------------------------- errors


def _heart(error: BaseException) -> str:
    """What a person needs of an error, in one line."""
    if isinstance(error, WorkerGroupError):
        return _first_failure(error.worker_failures)
    if isinstance(error, ControllerError):
        return f"the workers could not be started: {_line(error.controller_failure)}"
    if isinstance(error, RayActorError):
        return "Ray's controller of the workers died"
    return f"{'Ray' if isinstance(error, TrainingFailedError) else type(error).__name__}: {_line(error)}"


def _first_failure(failures: Mapping[int, Exception]) -> str:
    """The failure that the others followed from, by all appearance."""
    texts = {rank: _words(error) for rank, error in sorted(failures.items())}
    rank = min(texts, key=lambda rank: (any(sign in texts[rank] for sign in COLLATERAL), rank))
    return f"worker {rank} {texts[rank]}"


def _words(error: BaseException) -> str:
    # what Ray wraps: the user's exception with its traceback, or why a worker does not answer
    error = getattr(error, "_base_exc", None) or getattr(error, "health_check_failure", None) or error
    if isinstance(error, RayActorError):
        return "died: killed, out of memory, or its node was lost"
    return f"failed: {type(error).__name__}: {_line(error)}"


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or ["no message"])[0][:LINE]


# ------------------------------------------------------------------------------------------------------------- people


class Signals:
    """Ctrl-C and SIGTERM. The first only counts, and is looked for where it can be heeded; the second interrupts."""

    def __init__(self, on_signal: Callable[[int], None] | None) -> None:
        self.heard = 0
        self._on_signal = on_signal
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take the signals over; outside of the main thread they stay whose they are."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.signal(number, self._hear)
                self._before.setdefault(number, before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard += 1
        if self.heard == 1 and self._on_signal is not None:
            self._on_signal(number)
        if self.heard > 1:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Interrupt here if a signal has come."""
        if self.heard:
            raise KeyboardInterrupt

    def __enter__(self) -> Signals:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


class Watch:
    """Follows the journals for the screen, and starts and ends the trackers with their runs.

    In a ``hurry`` no tracker is waited for: what it has not sent `llf-ray sync` can send later.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        screen: Display | None,
        signals: Signals,
        on_end: Callable[[Run], object] | None = None,
    ) -> None:
        self.hurry = False
        self._on_end = on_end
        self._signals = signals
        self._runs = {run.folder.name: run for run in runs}
        self._screen = screen
        self._tails = {name: Tail(run.folder / "journal.jsonl") for name, run in self._runs.items()}
        self._trackers: dict[str, Tracker] = {}
        self._closing: dict[str, threading.Thread] = {}
        self._told: set[str] = set()
        self._left_over: list[str] = []
        for name, tail in self._tails.items():
            for record in tail.poll():  # of the past: part of the picture, no news
                if screen is not None:
                    screen.absorb(name, record)

    def look(self) -> None:
        """Take in what the journals have gained. Neither a screen nor a tracker may take a training with it."""
        for name, tail in self._tails.items():
            try:
                for record in tail.poll():
                    if self._screen is not None:
                        self._screen.update(name, record)
                    if name not in self._trackers and not self.hurry:
                        self._trackers[name] = self._tracker(self._runs[name])
                        self._trackers[name].start()
            except Exception:
                logger.exception("%s: the journal could not be followed just now; the training goes on", name)
            tracker = self._trackers.get(name)
            if tracker is not None and tracker.trouble and name not in self._told:
                self._told.add(name)
                self.say(f"{name}: {tracker.trouble}; points wait in the run's folder and are sent when it answers")
            if name in self._trackers and name not in self._closing and ended(self._runs[name].folder):
                self._close(name)

    def say(self, message: str) -> None:
        """One line for a person."""
        logger.info(message)
        if self._screen is not None:
            self._screen.console.print(message, highlight=False)

    def _tracker(self, run: Run) -> Tracker:
        root = Path(read_run(run.folder).get("tracking_root") or Path(run.config.folder).resolve())
        return Tracker(run.folder, run.config.tracking, root=root)

    def _close(self, name: str) -> None:
        """A server that does not answer must not hold up the next run."""
        if self._on_end is not None:
            try:
                self._on_end(self._runs[name])
            except Exception:
                logger.exception("%s: what follows a run's end failed; its results are whole", name)

        def close() -> None:
            try:
                message = self._trackers[name].close(TRACKING_PATIENCE)
            except Exception:
                logger.exception("%s: the tracker did not end well; `llf-ray sync` sends what is left", name)
            else:
                self._left_over += [message] if message is not None else []

        self._closing[name] = threading.Thread(target=close, name=f"closing {name}", daemon=True)
        self._closing[name].start()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        if self.hurry:
            return
        for name in self._trackers:
            if name not in self._closing:
                self._close(name)
        heard, end = self._signals.heard, time.monotonic() + TRACKING_PATIENCE + 5
        with contextlib.suppress(KeyboardInterrupt):
            for thread in self._closing.values():
                while thread.is_alive() and self._signals.heard == heard and time.monotonic() < end:
                    thread.join(POLL)
        for message in self._left_over:
            self.say(message)


# ------------------------------------------------------------------------------------------------------ what is shipped


@contextlib.contextmanager
def shipped(runs: Sequence[Run]) -> Iterator[None]:
    """Send classes of job files along with the runs: workers cannot import them."""
    modules = [
        sys.modules[name]
        for name in sorted({name for run in runs for name in _modules((run.config, run.plan))})
        if name in sys.modules
    ]
    own = [module for module in modules if not _installed(module)]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def _modules(value: Any) -> Iterator[str]:
    """Modules of all settings classes in a tree."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value).__module__
        for field in dataclasses.fields(value):
            yield from _modules(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _modules(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _modules(item)


def _installed(module: ModuleType) -> bool:
    if module.__name__ == "__main__" or module.__name__.partition(".")[0] == "llf_ray":
        return True  # the first goes by value anyway
    paths = (sysconfig.get_paths()["stdlib"], *site.getsitepackages(), site.getusersitepackages())
    return not module.__file__ or any(Path(module.__file__).is_relative_to(path) for path in paths)
