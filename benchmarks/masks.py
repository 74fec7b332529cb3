"""Masks: what a global magnitude threshold takes where weights are sharded, and what held entries add to a step.

The threshold: two ranks on CPU under ZeRO, ResNet50's weights, 20 % of them to go. Beside the counting that the
project does stands what it replaces: every rank gathers all magnitudes into one vector, and sorts it or asks for its
k-th value. Memory is what the process needed at most beside what it had, by the system's own count.

The step: one process, ResNet18 at batch 128, 80 % of the convolution and linear weights held at zero.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.cases import Noise, resnet, small_task
from benchmarks.harness import Block, Contender, Report, Size, Target, interleave, on_ranks, over_ranks, ratio, spread
from llf_ray.data.order import Draw
from llf_ray.engine.base import Engine, EngineSettings
from llf_ray.engine.local import LocalEngine
from llf_ray.engine.team import Team
from llf_ray.forget.largest import largest
from llf_ray.recipes.long import Long
from llf_ray.run import RunConfig, prepare
from llf_ray.tasks.classification import Classification

__all__ = ["measure", "step", "threshold"]

KEEP, HELD = 0.8, 0.8
STAGES = (1, 3)
COUNTED, SORTED, SELECTED = "counted from the parts", "gathered and sorted", "gathered, torch.kthvalue"
LIMIT = 1.03


def measure(size: Size) -> Report:
    """Both questions; the first where DeepSpeed is installed, on CPU."""
    rows, targets, notes = step(size)
    if size.device == "cpu" and importlib.util.find_spec("deepspeed") is not None:
        for stage in STAGES[:1] if size.tiny else STAGES:
            more, aims = threshold(stage, size)
            rows, targets = [*rows, *more], [*targets, *aims]
        notes.append("masks of ResNet50's weights by global magnitude; two ranks, times and bytes for both together")
        notes.append("extra MB: the most that a rank needed beside what it had; masks themselves take a byte a weight")
    return Report(name=f"masks-{size.device}", title="Masks", rows=rows, targets=targets, notes=notes)


# ----------------------------------------------------------------------------------------------------------- threshold


@dataclass(frozen=True)
class Weighed(Team):
    """A team that counts the bytes that its sums take."""

    moved: list[int] = field(default_factory=list)

    def total(self, tensor: Tensor) -> Tensor:
        """As every team."""
        self.moved.append(tensor.numel() * tensor.element_size())
        return super().total(tensor)


def threshold(stage: int, size: Size) -> tuple[list[dict[str, Any]], list[Target]]:
    """Rows of one ZeRO stage."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401  (once, in front of the forks)

    config = resnet("resnet50", num_items=100)
    task = replace(cast(Classification, config.task), data=Noise(num_items=100, num_classes=1000))
    config = replace(config, task=small_task() if size.tiny else task)
    config = replace(config, engine=EngineSettings(batch=50, stage=cast(Any, stage)), recipe=Long())
    prepare(config)

    def work(team: Team, folder: Path) -> dict[str, Any]:
        return _contest(config, Weighed(team.rank, team.size, team.device), size)

    found = on_ranks(work)
    blocks = {name: [Block(*block) for block in each] for name, each in found["blocks"].items()}
    rows = [
        {
            "what": f"{name}, ZeRO {stage}",
            "million weights": found["entries"] / 1e6,
            "ms": 1e3 * spread([block.wall for block in blocks[name]])[0],
            "time ratio": None if name == COUNTED else _ratio(blocks, COUNTED, name),
            "MB moved": found["moved"][name] / 1e6,
            "extra MB": found["memory"][name] / 1e6,
        }
        for name in blocks
    ]
    what = f"ZeRO {stage}: time of the counted mask over that of the gathered and sorted one"
    return rows, [Target(what=what, limit=1, least=False, found=_ratio(blocks, COUNTED, SORTED))]


def _ratio(blocks: dict[str, list[Block]], above: str, below: str) -> Any:
    return ratio([block.wall for block in blocks[above]], [block.wall for block in blocks[below]])


def _contest(config: RunConfig, team: Weighed, size: Size) -> dict[str, Any]:
    from llf_ray.engine.zero import ZeroEngine

    prepared = prepare(replace(config, resources=replace(config.resources, workers=team.size)))
    engine = ZeroEngine(config.task.build(0), prepared.groups, config.optim, config.engine, team)
    names = [slot.name for slot in prepared.slots if slot.kind == "weight"]
    contenders = {
        COUNTED: lambda: largest(engine, names, KEEP, lambda name: None),
        SELECTED: lambda: _selected(engine, names),
        SORTED: lambda: _sorted(engine, names),
    }
    _agree(contenders)
    moved, memory = {}, {}
    for name, run in contenders.items():
        team.moved.clear()
        memory[name] = max(team.gather(_peak(run)))
        moved[name] = sum(team.moved)
    every = [Contender(name=name, run=run) for name, run in contenders.items()]
    blocks = over_ranks(team.gather(interleave(every, rounds=size.rounds, wait=team.barrier)))
    entries = sum(slot.size for slot in prepared.slots if slot.name in set(names))
    return {
        "blocks": {name: [astuple(block) for block in each] for name, each in blocks.items()},
        "moved": moved,
        "memory": memory,
        "entries": entries,
    }


def _gathered(engine: Engine, names: Sequence[str]) -> Tensor:
    return torch.cat([engine.read(name).abs().reshape(-1) for name in names])


def _dropped(entries: int) -> int:
    return math.ceil(round((1 - KEEP) * entries, 6))


def _sorted(engine: Engine, names: Sequence[str]) -> Tensor:
    """Exact, ties by index."""
    sizes = _gathered(engine, names)
    kept = torch.zeros(len(sizes), dtype=torch.bool)
    kept[torch.argsort(sizes, descending=True, stable=True)[: len(sizes) - _dropped(len(sizes))]] = True
    return kept


def _selected(engine: Engine, names: Sequence[str]) -> Tensor:
    """Ties at the threshold all go."""
    sizes = _gathered(engine, names)
    return sizes > torch.kthvalue(sizes, max(1, _dropped(len(sizes)))).values


def _agree(contenders: dict[str, Callable[[], Any]]) -> None:
    counted = torch.cat([mask.reshape(-1) for mask in contenders[COUNTED]().values()])
    if not torch.equal(counted, contenders[SORTED]()):
        raise RuntimeError("the counted mask is not the sorted one")


def _peak(run: Callable[[], object]) -> int:
    """Bytes that a call needs at most beside what the process has; 0 where the system does not say."""
    libc, status = ctypes.CDLL(None), Path("/proc/self/status")
    if not status.exists() or not hasattr(libc, "malloc_trim"):
        return 0
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts again from here
    before = _status(status, "VmRSS")
    run()
    return _status(status, "VmHWM") - before


def _status(status: Path, key: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


# ---------------------------------------------------------------------------------------------------------------- step


def step(size: Size) -> tuple[list[dict[str, Any]], list[Target], list[str]]:
    """Steps of one engine with and without its masks in force, in turn."""
    config = resnet("resnet18", num_items=256)
    if size.tiny:
        config = replace(config, task=small_task())
    batch = 20 if size.tiny else 128
    config = replace(
        config,
        engine=EngineSettings(batch=batch),
        recipe=Long(generations=1, epochs=2),
        resources=replace(config.resources, workers=1),
    )
    prepared, team = prepare(config), Team.alone(size.device)
    task: Any = config.task
    data = next(iter(task.batches("train", [Draw(torch.arange(batch).numpy(), (0, 0, 0))], team.device)))
    engine = LocalEngine(config.task.build(0), prepared.groups, config.optim, config.engine, team)
    engine.module.train()
    random = torch.Generator().manual_seed(0)
    weights = [slot for slot in prepared.slots if slot.kind == "weight"]
    engine.hold_at_zero({slot.name: torch.rand(slot.shape, generator=random) >= HELD for slot in weights})
    # one network, the same memory and nearly the same values: only whether its masks are in force differs
    live: dict[Tensor, Tensor] = engine._live
    number = 1 if size.tiny or size.device == "cpu" else 20

    def steps(in_force: dict[Tensor, Tensor]) -> Callable[[], None]:
        def run() -> None:
            engine._live = in_force
            for _ in range(number):
                engine.step([data], lambda model, items: task.loss(model, items)[0])

        return run

    def holding() -> None:
        engine._live = live
        for _ in range(number):
            engine._after_update(engine._optimizer, (), {})

    contenders = [
        Contender(name="dense", run=steps({})),
        Contender(name="masked", run=steps(live)),
        Contender(name="what holding adds, by itself", run=holding),
    ]
    wait = torch.cuda.synchronize if size.device == "cuda" else lambda: None
    blocks = interleave(contenders, rounds=size.rounds, wait=wait)
    rows = [
        {
            "what": f"a step of ResNet18 at 64 pixels, batch {batch}, {name}",
            "million weights": sum(slot.size for slot in prepared.slots if slot.kind == "weight") / 1e6,
            "ms": 1e3 * spread([block.wall for block in each])[0] / number,
            "time ratio": None if name == "dense" else _ratio(blocks, name, "dense"),
        }
        for name, each in blocks.items()
    ]
    target = Target(
        what=f"ResNet18, batch {batch}: a step with masks over one without",
        limit=LIMIT,
        least=False,
        found=_ratio(blocks, "masked", "dense"),
    )
    apart = Target(
        what="what holding adds, by itself, over a step without",
        limit=LIMIT - 1,
        least=False,
        found=_ratio(blocks, contenders[-1].name, "dense"),
    )
    by_cpu = ratio([block.cpu for block in blocks["masked"]], [block.cpu for block in blocks["dense"]])
    cpu = Target(what="the same in CPU time", limit=LIMIT, least=False, found=by_cpu)
    return rows, [target, cpu, apart] if size.device == "cpu" else [target, apart], []
