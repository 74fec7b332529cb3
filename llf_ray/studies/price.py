"""What a run will cost: a few steps of one worker's share, taken here, and the arithmetic of ZeRO's memory."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Group as Stacked
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor, nn

from llf_ray.data.order import Draw, order
from llf_ray.display import size_words
from llf_ray.engine.base import EngineSettings, bytes_per_worker, divide_batch
from llf_ray.engine.local import LocalEngine
from llf_ray.engine.team import Team
from llf_ray.plan import spans
from llf_ray.run import Prepared, group_rules
from llf_ray.studies.show import table_like
from llf_ray.train.evaluation import SMALLEST

__all__ = ["Price", "price", "report", "threads"]

STEPS, WARM_UP = 20, 3
Stage = Literal[0, 1, 2, 3]


@dataclass(frozen=True, kw_only=True)
class Price:
    """What was measured on this machine: seconds of an optimizer step and of scoring an item, bytes kept for a
    backward pass.
    """

    device: str
    threads: int
    seconds_per_step: float
    slowest_step: float
    seconds_per_scored_item: float
    activations: int
    loss: float


def price(prepared: Prepared) -> Price:
    """Train one worker's share of `STEPS` steps in this process, on the task's own data, and score one batch. Nothing
    is kept.
    """
    config = prepared.config
    workers = config.resources.workers
    device = torch.device("cuda" if config.resources.gpus and torch.cuda.is_available() else "cpu")
    micro, accumulation = divide_batch(config.engine, workers)
    alone = replace(config.engine, stage=0, batch=config.engine.batch // workers, micro_batch=micro, accumulation=None)
    with threads(config.resources.threads or max(1, int(config.resources.cpus))), torch.random.fork_rng():
        engine = LocalEngine(config.task.build(config.seed), prepared.groups, config.optim, alone, Team.alone(device))
        try:
            return _measure(prepared, engine, micro, accumulation, device)
        finally:
            engine.close()


def _measure(prepared: Prepared, engine: LocalEngine, micro: int, accumulation: int, device: torch.device) -> Price:
    task, count = prepared.config.task, (WARM_UP + STEPS) * accumulation
    engine.set_rules(group_rules(prepared.plan.phases[0], engine.groups, prepared.config.optim))
    engine.set_rates({group.name: 0.01 for group in engine.groups})  # the speed of a step does not depend on its rate
    engine.module.train()
    items = np.resize(order(task.num_items("train"), 0, 0, 0), count * micro).reshape(count, micro)
    batches = task.batches("train", (Draw(indices, (0, 0, 0)) for indices in items), device)
    kept = Kept(engine.module)
    seconds, loss = [], torch.zeros(())
    for step in range(WARM_UP + STEPS):
        begin = time.perf_counter()
        with kept if step == 0 else _nothing():
            loss = engine.step(
                (next(batches) for _ in range(accumulation)), lambda model, batch: task.loss(model, batch)[0]
            )
        _wait(device)
        seconds.append(time.perf_counter() - begin)
    return Price(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        threads=torch.get_num_threads(),
        seconds_per_step=statistics.median(seconds[WARM_UP:]),
        slowest_step=max(seconds[WARM_UP:]),
        seconds_per_scored_item=_scoring(prepared, engine, device),
        activations=kept.most // accumulation,
        loss=float(loss),
    )


def _scoring(prepared: Prepared, engine: LocalEngine, device: torch.device) -> float:
    task = prepared.config.task
    size = min(SMALLEST, task.num_items("validation"))
    engine.module.eval()
    seconds = []
    with torch.no_grad():
        for batch in task.batches("validation", [Draw(np.arange(size), None)] * 3, device):
            begin = time.perf_counter()
            task.score(engine.module, batch)
            _wait(device)
            seconds.append(time.perf_counter() - begin)
    return min(seconds) / size


class Kept:
    """Counts the bytes that autograd keeps for a backward pass, each storage once, weights apart. A context, hence a
    class.
    """

    def __init__(self, model: nn.Module) -> None:
        self.own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
        self.seen: dict[int, int] = {}
        self._hooks: Any = None

    @property
    def most(self) -> int:
        """Bytes of all micro-batches seen."""
        return sum(self.seen.values())

    def __enter__(self) -> Kept:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.seen[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Inside, torch computes with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --------------------------------------------------------------------------------------------------------------- words


def report(prepared: Prepared, found: Price, *, trainings: int = 1) -> RenderableType:
    """The bill: time of the whole plan at the speed that was measured, and memory per worker at every ZeRO stage."""
    config, plan = prepared.config, prepared.plan
    workers = config.resources.workers
    steps = plan.total * found.seconds_per_step
    scoring = _scored_items(prepared) / workers * found.seconds_per_scored_item
    hours = (steps + scoring) * trainings / 3600
    lines = [
        f"measured here ({platform.node()}, {found.device}, {found.threads} thread(s)), "
        f"one worker's share of {config.engine.batch // workers} items a step: "
        f"{1e3 * found.seconds_per_step:.3g} ms a step (median of {STEPS}, slowest {1e3 * found.slowest_step:.3g} ms), "
        f"{1e3 * found.seconds_per_scored_item:.3g} ms an item scored",
        f"{plan.total:,} steps: {_hours(steps)}; scoring validation and test: {_hours(scoring)}"
        + (f"; {trainings} trainings: {_hours(hours * 3600)}" if trainings > 1 else ""),
        f"the whole plan: at least {_hours(hours * 3600)} on {workers} worker(s), each as fast as this one alone = "
        f"{_hours(hours * 3600 * workers)} of worker time",
        "on top come checkpoints and the start"
        + (
            ", and the exchange of gradients; workers that share one machine slow one another "
            "(two on two cores of one processor by about a half)"
            if workers > 1
            else ""
        ),
    ]
    return Stacked(
        Text("\nTime", style="bold"),
        *(Text(line) for line in lines),
        Text("\nMemory of one worker", style="bold"),
        _memory(prepared, found),
    )


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.2f} h"


def _scored_items(prepared: Prepared) -> int:
    """Items scored over the run: validation every few epochs and at phase ends, both at the end."""
    plan, config = prepared.plan, prepared.config
    every = config.tracking.evaluate_every
    moments: set[int] = set()
    generation_start: dict[int, int] = {}
    for index, (phase, (start, stop)) in enumerate(zip(plan.phases, spans(plan), strict=True)):
        begin, asked = generation_start.setdefault(phase.generation, start), plan.asks_every(index)
        first = begin + math.ceil((start - begin + 1) / asked) * asked
        moments |= {stop, *(step for step in range(first, stop, asked) if plan.is_scored(index, step - begin, every))}
    return len(moments) * config.task.num_items("validation") + config.task.num_items("test")


def _memory(prepared: Prepared, found: Price) -> RenderableType:
    config = prepared.config
    number = sum(slot.size for slot in prepared.slots if slot.kind != "statistic")
    columns = ("ZeRO", "weights", "gradients", "masters", "moments", "averaged", "activations", "together")
    table = table_like(*columns, right=range(1, len(columns)))
    for stage in get_args(Stage):
        settings: EngineSettings = replace(config.engine, stage=stage)
        memory = bytes_per_worker(number, settings, config.optim, config.resources.workers)
        parts = (memory.weights, memory.gradients, memory.masters, memory.moments, memory.averaged, found.activations)
        mark = " (this job)" if stage == config.engine.stage else ""
        table.add_row(f"{stage}{mark}", *(size_words(part) for part in (*parts, sum(parts))))
    note = "activations: kept by autograd for one micro-batch; buffers of the collectives and the libraries come on top"
    return Stacked(table, Text(note, style="dim"))
