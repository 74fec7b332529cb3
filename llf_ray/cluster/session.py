"""A quiet Ray for one driver: started here or joined, with room for the workers, and left as it was found."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from llf_ray.config import SettingError
from llf_ray.run import Resources

__all__ = [
    "check_room",
    "cluster_address",
    "environment",
    "free_room",
    "logging_to",
    "need",
    "num_fitting",
    "ray_session",
    "wait_for_room",
]

logger = logging.getLogger(__name__)

OBJECT_STORE = 200 * 2**20  # bytes; no data goes through Ray, only settings and answers
CHATTY = ("ray", "ray.train", "ray.data", "ray.tune")


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for as long as it lasts; what the user has set stays."""
    mine = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


@contextlib.contextmanager
def logging_to(path: Path, *, verbose: bool) -> Iterator[None]:
    """All that this process logs goes to a file; with ``verbose`` to the screen as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    before = [(log, log.handlers[:], log.propagate, log.level) for log in (root, *map(logging.getLogger, CHATTY))]
    for log, *_ in before[1:]:
        log.handlers, log.propagate = [], True
        log.setLevel(logging.WARNING)
    root.handlers = [file, *([logging.StreamHandler()] if verbose else [])]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for log, handlers, propagate, level in before:
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
        file.close()


@contextlib.contextmanager
def ray_session(resources: Resources) -> Iterator[None]:
    """Ray in this process: what is there, else the cluster of the settings or RAY_ADDRESS, else one that ends with us.

    Raises:
        SettingError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = cluster_address(resources)
    where = f"resources.address = {address!r}" if resources.address else f"RAY_ADDRESS = {address!r}"
    if address and "://" in address:
        raise SettingError(f"{where}: a driver runs inside the cluster; see `ray job submit --address {address}`")
    try:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
        if address:
            with _native_chatter():
                ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if not address:
            raise
        raise SettingError(f"{where}: no Ray cluster answers there ({str(error).strip().splitlines()[0]})") from None
    try:
        about = ray.get_runtime_context()
        logger.info("Ray's own logs are in %s/logs", Path(about.get_temp_dir(), about.get_session_name()))
        with _raylet_to_log():
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _native_chatter() -> Iterator[None]:
    """What native code writes to stderr goes to the log: Ray's client tells of every attempt to reach a cluster."""
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        screen = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            file.seek(0)
            for line in file:
                logger.info("%s", line.rstrip())


@contextlib.contextmanager
def _raylet_to_log() -> Iterator[None]:
    """Ray prints what its raylet reports on the driver's stdout, also with `log_to_driver` off; no setting turns it."""
    worker: Any = ray._private.worker
    printer = getattr(worker, "print_worker_logs", None)
    if printer is None:
        yield
        return

    def log(batch: Mapping[str, Any], *_: Any, **__: Any) -> None:
        logger.warning("%s: %s", batch.get("pid"), " ".join(str(line) for line in batch.get("lines", ())))

    worker.print_worker_logs = log
    try:
        yield
    finally:
        worker.print_worker_logs = printer


def cluster_address(resources: Resources) -> str:
    """Where the cluster is; empty: a Ray of our own on this machine."""
    address = resources.address or os.environ.get("RAY_ADDRESS") or ""
    return "" if address == "local" else address


# ---------------------------------------------------------------------------------------------------------- room


def need(resources: Resources) -> dict[str, float]:
    """What one worker takes, in Ray's names."""
    return {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {}), **resources.custom}


def num_fitting(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers the empty nodes have room for, placed as asked."""
    wanted = {name: amount for name, amount in need(resources).items() if amount}
    each = [min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items()) for node in nodes]
    if resources.placement == "STRICT_PACK":
        return max(each, default=0)
    return sum(min(room, 1) if resources.placement == "STRICT_SPREAD" else room for room in each)


def check_room(resources: Resources) -> None:
    """Refuse what can never start.

    A cluster that can add nodes (its autoscaler says so) may have less for now: `wait_for_room` bounds the wait.

    Raises:
        SettingError: what is asked for, what there is and what is missing.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if num_fitting(resources, nodes) < resources.workers and not _may_grow():
        raise SettingError(_too_little(resources, nodes))


def wait_for_room(resources: Resources, check: Callable[[], None] = lambda: None) -> None:
    """Wait until all workers can start at once, for ``start_timeout`` seconds at most; the autoscaler hears of it.

    ``check`` is called about once a second and may raise.

    Raises:
        SettingError: what is asked for, what there is, what is free.
    """
    group = placement_group([need(resources)] * resources.workers, strategy=resources.placement)
    end = time.monotonic() + resources.start_timeout
    try:
        check()
        while not group.wait(min(1.0, max(0.0, end - time.monotonic()))):
            check()
            if time.monotonic() >= end:
                nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                free = _listed(ray.available_resources(), need(resources))
                waited = f"waited resources.start_timeout = {resources.start_timeout:g} s"
                raise SettingError(f"{_too_little(resources, nodes)} (free now: {free}; {waited})")
    finally:
        remove_placement_group(group)


def free_room(path: Path) -> None:
    """Give back what the workers of a dead controller hold, and end them, where they have put it down."""
    with contextlib.suppress(FileNotFoundError):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(path.read_text()))))


def _too_little(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> str:
    each, room = need(resources), num_fitting(resources, nodes)
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in each}
    missing = {name: amount * resources.workers - total[name] for name, amount in each.items()}
    missing = {name: amount for name, amount in missing.items() if amount > 0}
    where = "this machine has" if len(nodes) == 1 else f"the cluster has {len(nodes)} nodes with"
    words = [
        f"resources.workers = {resources.workers} with {_listed(each, each)} each, placed {resources.placement}: "
        f"{where} {_listed(total, each)}, room for {room} such worker(s)",
        *([f"missing: {_listed(missing, missing)}"] if missing else []),
        f"set resources.workers={room}, or ask less for each" if room else "ask less for each worker",
    ]
    return "; ".join(words)


def _listed(amounts: Mapping[str, float], names: Mapping[str, float]) -> str:
    return ", ".join(f"{amounts.get(name, 0.0):g} {name}" for name in names)


def _may_grow() -> bool:
    """Whether an autoscaler watches this cluster and may add some kind of node. Ray has no public way to ask."""
    try:
        config = ray._private.state.state.get_cluster_config()
    except Exception:
        return False
    groups = config.node_group_configs if config else []
    return any(group.max_count == -1 or group.max_count > group.min_count for group in groups if group.max_count)
