"""Contenders run in turn, medians with their spread, ratios with an interval, one table and one JSON file.

Two numbers taken at different times on a shared machine cannot be compared. So contenders run in short blocks,
alternately (forth and back, so that a drift cancels), a ratio is the median over rounds of the ratios inside a round,
and its interval comes from drawing rounds anew (bootstrap). CPU time stands beside wall time: it does not count the
time for which another program had the processor.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import math
import os
import platform
import random
import resource
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from llf_ray.engine.team import Team

__all__ = [
    "Block",
    "Contender",
    "Ratio",
    "Report",
    "Size",
    "Target",
    "environment",
    "interleave",
    "keep_freed_memory",
    "on_ranks",
    "over_ranks",
    "ratio",
    "save",
    "show",
    "spread",
    "table",
]

RESULTS = Path(__file__).parent / "results"
RESAMPLES = 2000
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured: where, how many rounds, and whether tiny, which only shows that everything runs."""

    device: Literal["cpu", "cuda"] = "cpu"
    rounds: int = 15
    tiny: bool = False


@dataclass(frozen=True)
class Block:
    """Seconds that one block took, by the clock and of processors (all threads, all ranks); and its page faults."""

    wall: float
    cpu: float
    faults: int = 0


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that runs in blocks of equal work."""

    name: str
    run: Callable[[], object]


def interleave(
    contenders: Sequence[Contender], *, rounds: int, warm_up: int = 1, wait: Callable[[], object] = lambda: None
) -> dict[str, list[Block]]:
    """Blocks of each contender, by name, one a round.

    ``wait`` runs in front of and behind each block: a barrier of the ranks, the end of what a GPU has queued.
    """
    found: dict[str, list[Block]] = {contender.name: [] for contender in contenders}
    for number in range(-warm_up, rounds):
        for contender in contenders if number % 2 == 0 else list(reversed(contenders)):
            wait()
            faults, wall, cpu = _faults(), time.perf_counter(), time.process_time()
            contender.run()
            wait()
            block = Block(time.perf_counter() - wall, time.process_time() - cpu, _faults() - faults)
            if number >= 0:
                found[contender.name].append(block)
    return found


def keep_freed_memory() -> None:
    """As every worker does (`ALLOCATOR` in llf_ray/cluster/launch.py): else a step may map memory anew each time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 2**31 - 1)


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def over_ranks(blocks: Sequence[Mapping[str, Sequence[Block]]]) -> dict[str, list[Block]]:
    """One block of all ranks: it lasts until the last is ready, and costs what all spent."""
    return {
        name: [
            Block(max(b.wall for b in same), sum(b.cpu for b in same), sum(b.faults for b in same))
            for same in zip(*(rank[name] for rank in blocks), strict=True)
        ]
        for name in blocks[0]
    }


# -------------------------------------------------------------------------------------------------------------- ranks


def on_ranks(work: Callable[[Team, Path], Any], *, world: int = 2, limit: float = 900) -> Any:
    """What ``work(team, folder)`` gives on rank 0, as JSON keeps it: on CPU ranks that are forked from this process.

    They find here what was imported and read before. ``limit`` is in seconds, for all of it.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        context = mp.get_context("fork")
        ranks = [context.Process(target=_rank, args=(work, rank, world, folder)) for rank in range(world)]
        for rank in ranks:
            rank.start()
        _join(ranks, limit)
        errors = [file.read_text() for file in sorted(folder.glob("error-*"))]
        if errors or not (folder / "found.json").exists():
            raise RuntimeError("\n".join(errors) or f"no result within {limit} s")
        return json.loads((folder / "found.json").read_text())


def _join(ranks: Sequence[Any], limit: float) -> None:
    """Wait for all; when one fails or time is up, end the others, which would wait for it in a collective."""
    deadline, running = time.monotonic() + limit, list(ranks)
    while running and time.monotonic() < deadline and not any(rank.exitcode for rank in ranks):
        wait_for_any([rank.sentinel for rank in running], timeout=1)
        running = [rank for rank in running if rank.is_alive()]
    for rank in running:
        rank.kill()
        rank.join()


def _rank(work: Callable[[Team, Path], Any], rank: int, world: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    try:
        store = dist.FileStore(str(folder / "store"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        found = work(Team(rank, world, torch.device("cpu")), folder)
        if rank == 0:
            (folder / "found.json").write_text(json.dumps(found))
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        os._exit(1)  # and with it the other rank, which waits for this one
    os._exit(0)  # libraries register handlers in the parent that are not for us to run


# -------------------------------------------------------------------------------------------------------- arithmetic


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Median and distance between the quartiles."""
    if len(values) == 1:
        return values[0], 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, high - low


@dataclass(frozen=True)
class Ratio:
    """A ratio and the interval that 95 % of its bootstrap draws lie in."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def ratio(above: Sequence[float], below: Sequence[float], *, seed: int = 0) -> Ratio:
    """Median over rounds of ``above / below``, pair by pair, with a bootstrap interval over rounds."""
    pairs = [a / b for a, b in zip(above, below, strict=True)]
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return Ratio(statistics.median(pairs), medians[RESAMPLES // 40], medians[-RESAMPLES // 40 - 1])


# ------------------------------------------------------------------------------------------------------------ reports


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a ratio is to be, and what it is."""

    what: str
    limit: float
    least: bool  # the ratio must be at least the limit, else at most
    found: Ratio

    @property
    def verdict(self) -> Literal["met", "missed", "within the noise"]:
        """Missed or met where the whole interval says so."""
        low, high = (self.found.low, self.found.high) if self.least else (-self.found.high, -self.found.low)
        limit = self.limit if self.least else -self.limit
        if low >= limit:
            return "met"
        return "missed" if high < limit else "within the noise"

    def __str__(self) -> str:
        return f"{self.what} {'>=' if self.least else '<='} {self.limit:g}: {self.found}, {self.verdict}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one benchmark found: a table of named columns, targets, and what one must know to read them."""

    name: str
    title: str
    rows: Sequence[Mapping[str, Any]]
    targets: Sequence[Target] = ()
    notes: Sequence[str] = ()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text: columns in order of appearance, numbers to the right, what a row lacks as ``-``."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    numeric = [any(isinstance(row.get(column), int | float | Ratio) for row in rows) for column in columns]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool | str | Ratio):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def show(report: Report) -> str:
    """A report as text."""
    parts = [report.title, "", table(report.rows), "", *(f"target: {target}" for target in report.targets)]
    return "\n".join([*parts, *(f"note: {note}" for note in report.notes)]) + "\n"


def save(report: Report, folder: Path = RESULTS) -> Path:
    """Write a report beside its environment as JSON; the file."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        **asdict(report),
        "targets": [{**asdict(target), "verdict": target.verdict} for target in report.targets],
        "environment": environment(),
        "time": time.time(),
    }
    file = folder / f"{report.name}.json"
    file.write_text(json.dumps(plain, indent=1) + "\n")
    return file


def environment() -> dict[str, Any]:
    """What speed depends on: versions, processor, GPU, load. No host names and no paths."""
    versions: dict[str, str | None] = {}
    for package in ("torch", "deepspeed", "ray", "timm", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "versions": versions,
        "system": platform.system(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),  # of one minute: above the cores in use, others were at work too
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
