"""What a boundary costs: redrawing all weights against a copy of the same bytes, and its share of a generation.

Applying an edit reads, draws, writes and puts on record what changed. The generator's own time is measured apart, by
drawing the same numbers into memory that is there already; what is left is compared with a plain copy.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import default_job, later_layer, resnet, small_task
from benchmarks.harness import Block, Contender, Ratio, Report, Size, Target, interleave, ratio, spread
from llf_ray.data.order import Draw
from llf_ray.engine.local import LocalEngine
from llf_ray.engine.team import Team
from llf_ray.forget.draw import generator
from llf_ray.forget.edit import Change, Edit
from llf_ray.forget.groups import Select, Slot, fan_in
from llf_ray.forget.operations import Forget
from llf_ray.run import Prepared, RunConfig, prepare
from llf_ray.studies.price import threads
from llf_ray.train.adviser import Adviser
from llf_ray.train.boundary import apply_edit, view_of
from llf_ray.train.folder import create
from llf_ray.train.loop import train
from llf_ray.train.state import Run

__all__ = ["measure", "shares"]

EVERYTHING = Forget(select=Select(kinds=("weight", "bias"), name="all weights"))
APPLY, AT_HAND, FORGET = "redraw all weights", "the same, values at hand", "the same, momentum forgotten too"
COPY, NEW, DRAW, DIGEST = "copy", "copy to new memory", "random generator", "digest"
COPIES, SHARE = 3.0, 0.01
WARM_UP, CALLS = 5, 50  # questions to the scheduler actor


def measure(size: Size) -> Report:
    """Both sizes of network, and the default job's generations."""
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    networks = [resnet(name, num_items=100) for name in ("resnet18", "resnet50")]
    for config in [replace(default_job, task=small_task())] if size.tiny else networks:
        blocks, num_bytes = redraw(config, size)
        rows += _rows(config.name, blocks, num_bytes, size)
        targets += _targets(config.name, blocks, size)
    rows_of_shares, target = shares(size)
    return Report(
        name=f"boundary-{size.device}",
        title="Boundaries: redrawing all weights, and the boundaries' share of training",
        rows=[*rows, *rows_of_shares],
        targets=[*targets, target],
        notes=[
            "one process, one thread, local engine; a question goes through a real scheduler actor if there is Ray",
            "copies: time (CPU; on a GPU the clock) over that of the copy; of a redraw, less the generator's own",
            "ratios of the redraw are of CPU time, on a GPU of time by the clock; the generator is always the CPU's",
            "'values at hand' applies values that were drawn before: read, compare, write, record",
        ],
    )


# --------------------------------------------------------------------------------------------------- redraw all weights


def redraw(config: RunConfig, size: Size) -> tuple[dict[str, list[Block]], int]:
    """Blocks of applying the redraw and of what it is compared with; bytes of what is redrawn."""
    prepared = prepare(replace(config, resources=replace(config.resources, workers=1)))
    engine, moved = _engine(prepared, size), _engine(prepared, size)
    _step(moved, prepared)
    slots = [slot for slot in prepared.slots if slot.kind in ("weight", "bias")]
    sources = {slot.name: engine.read(slot.name) for slot in slots}
    copies = {name: torch.empty_like(value) for name, value in sources.items()}
    drawn = {slot.name: torch.zeros(slot.shape) for slot in slots}
    at_hand = Edit(values={name: _given(value) for name, value in drawn.items()})

    def apply(engine: LocalEngine, edit: Edit | None = None) -> None:
        view = view_of(engine, prepared.config, prepared.slots, {}, "benchmark", 1)
        apply_edit(engine, edit or EVERYTHING(view), averaged=False)

    contenders = [
        Contender(name=APPLY, run=lambda: apply(engine)),
        Contender(name=AT_HAND, run=lambda: apply(engine, at_hand)),
        Contender(name=FORGET, run=lambda: apply(moved)),
        Contender(name=COPY, run=lambda: [copies[n].copy_(value) for n, value in sources.items()]),
        Contender(name=NEW, run=lambda: [value.clone() for value in sources.values()]),
        Contender(name=DRAW, run=lambda: [_draw(drawn[slot.name], slot) for slot in slots]),
        Contender(name=DIGEST, run=engine.digest),
    ]
    with threads(1):
        blocks = interleave(contenders, rounds=size.rounds, warm_up=1 if size.tiny else 2, wait=_wait(size))
    return blocks, sum(slot.size * 4 for slot in slots)


def _given(value: Tensor) -> Change:
    return lambda old: value


def _step(engine: LocalEngine, prepared: Prepared) -> None:
    """One optimizer step, so that there is momentum."""
    task, items = prepared.config.task, np.arange(prepared.config.engine.batch)
    batches = task.batches("train", [Draw(items, (0, 0, 0))], engine.team.device)
    engine.step(batches, lambda model, batch: task.loss(model, batch)[0])


def _draw(values: Tensor, slot: Slot) -> Tensor:
    bound = max(1, fan_in(slot.shape)) ** -0.5
    return values.uniform_(-bound, bound, generator=generator(0, "benchmark", 1, slot.name))


def _rows(name: str, blocks: dict[str, list[Block]], num_bytes: int, size: Size) -> list[dict[str, Any]]:
    rows = []
    for contender, own in blocks.items():
        wall, apart = spread([block.wall for block in own])
        rows.append(
            {
                "case": name,
                "what": contender,
                "ms": 1e3 * wall,
                "spread": f"{100 * apart / wall:.0f} %",
                "CPU ms": 1e3 * spread([block.cpu for block in own])[0],
                "MB": num_bytes / 1e6,
                "GB/s": num_bytes / wall / 1e9,
                "page faults": round(spread([block.faults for block in own])[0]),
                "copies": None if contender == COPY else _in_copies(blocks, contender, size),
            }
        )
    return rows


def _in_copies(blocks: dict[str, list[Block]], name: str, size: Size) -> Ratio:
    """Time as a multiple of the copy's; of a redraw, what the generator does not take."""
    own, copy, draw = (_times(blocks[n], size) for n in (name, COPY, DRAW))
    if name in (APPLY, FORGET):
        own = [all_of_it - drawing for all_of_it, drawing in zip(own, draw, strict=True)]
    return ratio(own, copy)


def _times(blocks: list[Block], size: Size) -> list[float]:
    """Seconds of processors, which other programs do not change much; with a GPU at work, by the clock."""
    return [block.wall if size.device == "cuda" else block.cpu for block in blocks]


def _targets(name: str, blocks: dict[str, list[Block]], size: Size) -> list[Target]:
    targets = []
    for kind in (COPY, NEW):
        copies, draws = _times(blocks[kind], size), _times(blocks[DRAW], size)
        allowed = [COPIES * copy + draw for copy, draw in zip(copies, draws, strict=True)]
        what = f"{name}: redraw all weights over {COPIES:g} x {kind} + the generator's own time"
        found = ratio(_times(blocks[APPLY], size), allowed)
        targets.append(Target(what=what, limit=1.0, least=False, found=found))
    return targets


# ---------------------------------------------------------------------------------------------------- share of training


def shares(size: Size) -> tuple[list[dict[str, Any]], Target]:
    """Questions and boundaries of a real run of later-layer forgetting, as shares of the time of its generations.

    The run has short generations; what a generation of the default length takes follows from its seconds per epoch.
    """
    recipe = replace(later_layer, generations=2 if size.tiny else 4, epochs=1 if size.tiny else 3)
    base = replace(default_job, recipe=recipe, resources=replace(default_job.resources, workers=1))
    if size.tiny:
        base = replace(base, task=small_task())
    prepared = prepare(base)
    with tempfile.TemporaryDirectory() as folder, threads(1):
        run = create(prepared, Path(folder) / "run")
        engine = _engine(prepared, size)
        outcome = train(run, engine, Adviser(run.folder, run.plan), Team.alone(size.device))
        engine.close()
        call = None if size.tiny else _actor_call(run)
    assert outcome.state == "finished", outcome
    seconds = dict(outcome.seconds)
    epochs, default_epochs = recipe.generations * recipe.epochs, later_layer.epochs
    boundaries = recipe.generations + 1  # a plan's first phase and its end have one, too
    at_boundary, asking = seconds["boundary"] / boundaries, seconds["ask"] / epochs + (call or 0.0)
    epoch = (sum(seconds.values()) - seconds["boundary"] - seconds["ask"] - seconds.get("start", 0.0)) / epochs
    ours = at_boundary + asking * default_epochs
    share = ours / (ours + epoch * default_epochs)
    rows = [
        {"case": "default job", "what": what, "ms": 1e3 * value}
        for what, value in (
            ("a boundary (operations, digest, proof)", at_boundary),
            ("a question" + (" through Ray" if call else ""), asking),
            ("steps of an epoch", seconds["steps"] / epochs),
            ("an epoch with evaluation and checkpoints", epoch),
        )
    ]
    what = f"default job: questions and boundaries as a share of a generation of {default_epochs:g} epochs"
    return rows, Target(what=what, limit=SHARE, least=False, found=Ratio(share, share, share))


def _actor_call(run: Run) -> float | None:
    """Seconds of a question to the scheduler actor, there and back; None where Ray is not installed."""
    try:
        from llf_ray.cluster.actor import RemoteAdvice, start_actor
        from llf_ray.cluster.session import ray_session
    except ImportError:
        return None
    with ray_session(run.config.resources):
        advice = RemoteAdvice(start_actor({str(run.folder): run.plan}), run.folder, run.plan)
        begun = 0.0
        for call in range(WARM_UP + CALLS):
            if call == WARM_UP:
                begun = time.perf_counter()
            advice.at(0, None)
        return (time.perf_counter() - begun) / CALLS


def _engine(prepared: Prepared, size: Size) -> LocalEngine:
    config = prepared.config
    return LocalEngine(
        config.task.build(config.seed), prepared.groups, config.optim, config.engine, Team.alone(size.device)
    )


def _wait(size: Size) -> Callable[[], object]:
    return torch.cuda.synchronize if size.device == "cuda" else lambda: None
