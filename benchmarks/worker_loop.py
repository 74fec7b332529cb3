"""The worker's training loop against a plain PyTorch loop with the same data order, model, loss and optimizer.

On CPU: two processes with gloo, forked from one parent, against DistributedDataParallel; on one GPU: one process with
the local engine against a plain loop. One block is one epoch, with all that lies between two evaluations: the question,
the phase's rules, the steps and the pulses. Ray carries none of it.

DistributedDataParallel is set as fast as it goes for the same work: no broadcast of buffers at each step (ours go out
at boundaries), gradients as views of the buckets, a fused optimizer, learning rates worked out beforehand.
"""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import default_job, resnet, small_task
from benchmarks.harness import Block, Contender, Report, Size, Target, interleave, on_ranks, over_ranks, ratio, spread
from llf_ray.data.order import Draw, order, share_of
from llf_ray.engine.base import Engine, divide_batch
from llf_ray.engine.local import LocalEngine
from llf_ray.engine.team import Team
from llf_ray.plan import locate, rates
from llf_ray.recipes.long import Long
from llf_ray.run import Prepared, RunConfig, prepare
from llf_ray.train.adviser import Adviser
from llf_ray.train.folder import create
from llf_ray.train.state import Run, Stand
from llf_ray.train.worker import Worker

__all__ = ["Ours", "Plain", "measure"]

STAGES = (0, 1, 2, 3)
TARGET = 0.95
PLAIN, WORKER, STEPS, ALONE = "plain", "worker", "engine.step", "no exchange"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A job. An epoch of it is a block."""

    name: str
    config: RunConfig


def measure(size: Size) -> Report:
    """Every case on the device; on CPU at every ZeRO stage, where DeepSpeed is installed."""
    cuda = size.device == "cuda"
    cpu_stages: tuple[int | None, ...] = (0,) if size.tiny else STAGES
    if importlib.util.find_spec("deepspeed") is None:
        cpu_stages = ()
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    for case in cases(size):
        for stage in (None,) if cuda else cpu_stages:
            found = alone(case, size) if stage is None else launch(case, stage, size)
            rows += found.rows()
            if stage in (None, 0):
                what = f"{case.name}: images/s of the worker loop over those of the plain loop"
                targets.append(Target(what=what, limit=TARGET, least=True, found=found.ratio(WORKER)))
            if stage == 0:
                what = f"{case.name}: the same per second of CPU time"
                targets.append(Target(what=what, limit=TARGET, least=True, found=found.ratio(WORKER, cpu=True)))
    notes = [
        "ratio: speed over the plain loop's beside it, by wall and by CPU time; spread: quartile distance over median",
        "ResNet18 learns pictures of noise that lie in memory",
        "'engine.step' is the engine without the worker around it, 'no exchange' the plain loop of each rank by itself",
    ]
    if not cuda and not cpu_stages:
        notes.append("two ranks on CPU: not measured, DeepSpeed is not installed")
    return Report(
        name=f"worker_loop-{size.device}",
        title="Training loop against plain PyTorch",
        rows=rows,
        targets=targets,
        notes=notes,
    )


def cases(size: Size) -> list[Case]:
    """The default job and ResNet18."""
    if size.tiny:
        return [Case(name="tiny", config=replace(default_job, task=small_task()))]
    large = Case(name="ResNet18 at 64", config=resnet("resnet18", num_items=200))
    return [Case(name="default job", config=default_job), large]


# ---------------------------------------------------------------------------------------------------------- contenders


class Ours:
    """The worker's loop, one epoch at a time: all that `llf_ray.train.loop.train` does between two evaluations."""

    def __init__(self, run: Run, engine: Engine, team: Team) -> None:
        adviser = cast(Adviser, Adviser(run.folder, run.plan) if team.rank == 0 else None)
        self.worker, self.stand = Worker(run, engine, adviser, team), Stand(seed=run.config.seed)
        answer, self.stand, _ = self.worker.ask(self.stand)
        self.stand = self.worker.cross(answer, self.stand)

    def __call__(self) -> None:
        answer, self.stand, _ = self.worker.ask(self.stand)
        self.worker.begin(answer, self.stand)
        self.stand, *_ = self.worker.learn(answer, self.stand)

    @property
    def loss(self) -> float:
        """Mean over the ranks' last epoch."""
        return self.stand.loss_sum / self.stand.steps_seen


class Plain:
    """What one writes without us. ``wrap`` is DistributedDataParallel or nothing."""

    def __init__(self, prepared: Prepared, team: Team, wrap: Callable[[nn.Module], nn.Module]) -> None:
        self.config, self.team, self.epoch, self.losses = prepared.config, team, -1, torch.zeros(())
        optim = self.config.optim
        self.network = self.config.task.build(self.config.seed).to(team.device)
        if self.config.engine.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.model = wrap(self.network).train()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=optim.lr,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        plan = prepared.plan
        self.rates = [optim.lr * rates(plan, locate(plan, step))["rest"] for step in range(plan.total)]
        self.step = 0

    def __call__(self) -> None:
        self.epoch += 1
        losses = []
        for batch in self.config.task.batches("train", self.draws(), self.team.device):
            self.optimizer.param_groups[0]["lr"] = self.rates[self.step]
            self.optimizer.zero_grad(set_to_none=True)
            if self.config.engine.channels_last:
                batch = replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last))
            loss, _ = self.config.task.loss(self.model, batch)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
            self.step += 1
            if self.step % self.config.tracking.log_every == 0:  # what a plain loop prints: its own rank's loss
                float(torch.stack(losses[-self.config.tracking.log_every :]).mean())
        self.losses = torch.stack(losses).cpu()

    def draws(self) -> Iterator[Draw]:
        """This rank's part of each batch of the epoch."""
        num_items, batch, seed = self.config.task.num_items("train"), self.config.engine.batch, self.config.seed
        items = order(num_items, seed, 0, self.epoch)
        micro, _ = divide_batch(self.config.engine, self.team.size)
        for start in range(0, num_items - batch + 1, batch):
            for indices in share_of(items[start : start + batch], self.team.rank, self.team.size, micro):
                yield Draw(indices, (seed, 0, self.epoch))

    @property
    def loss(self) -> float:
        """Mean over the ranks' last epoch."""
        return float(self.team.total(self.losses.mean().double())) / self.team.size


class Bare(Plain):
    """The plain loop around an engine's step: what the engine costs without the worker."""

    def __init__(self, prepared: Prepared, team: Team, engine: Engine) -> None:
        super().__init__(prepared, team, lambda module: module)
        self.engine = engine
        engine.module.train()

    def __call__(self) -> None:
        self.epoch += 1
        task, losses = self.config.task, []
        for batch in task.batches("train", self.draws(), self.team.device):
            value = self.rates[self.step] / self.config.optim.lr
            self.engine.set_rates({group.name: value for group in self.engine.groups})
            losses.append(self.engine.step([batch], lambda model, batch: task.loss(model, batch)[0]))
            self.step += 1
        self.losses = torch.stack(losses).cpu()


def _distributed(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 renames the argument, 2.11 knows only this name
        return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


# --------------------------------------------------------------------------------------------------------- measurement


@dataclass(frozen=True, kw_only=True)
class Found:
    """Blocks of every contender of one case, and the work in a block."""

    case: str
    stage: int | None
    blocks: Mapping[str, Sequence[Block]]
    steps: int
    images: int
    flops: float
    bytes: float  # of gradients, in one step

    def ratio(self, name: str, *, cpu: bool = False) -> Any:
        """Speed over the plain loop's."""
        base, own = ([b.cpu if cpu else b.wall for b in self.blocks[n]] for n in (PLAIN, name))
        return ratio(base, own)

    def rows(self) -> list[dict[str, Any]]:
        """One row a contender."""
        rows = []
        for name, blocks in self.blocks.items():
            wall, apart = spread([block.wall for block in blocks])
            plain = "plain loop" if self.stage is None else "plain DDP"
            engine = "local" if self.stage is None else f"ZeRO {self.stage}"
            label = {PLAIN: plain, ALONE: ALONE}.get(name, f"{name}, {engine}")
            rows.append(
                {
                    "case": self.case,
                    "loop": label,
                    "images/s": self.images / wall,
                    "spread": f"{100 * apart / wall:.0f} %",
                    "ms/step": 1e3 * wall / self.steps,
                    "CPU ms/step": 1e3 * spread([block.cpu for block in blocks])[0] / self.steps,
                    "ratio": None if name == PLAIN else self.ratio(name),
                    "CPU ratio": None if name == PLAIN else self.ratio(name, cpu=True),
                    "GFLOP/s": self.flops / wall / 1e9,
                    "MB exchanged/step": None if name == ALONE else self.bytes / 1e6,
                }
            )
        return rows


def alone(case: Case, size: Size) -> Found:
    """One process, the local engine, the size's device."""
    team = Team.alone(size.device)
    with tempfile.TemporaryDirectory() as folder:
        return contest(case, None, size, team, Path(folder), LocalEngine)


def launch(case: Case, stage: int, size: Size) -> Found:
    """Two ranks on CPU, forked from this process, which has imported everything and read the data."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401  (once, in front of the forks)

    prepare(_of(case, 0, size))

    def work(team: Team, folder: Path) -> dict[str, Any]:
        warnings.filterwarnings("ignore", message="Grad strides do not match")  # torch's, on its own 1x1 convolutions
        from llf_ray.engine.zero import ZeroEngine

        found = contest(case, stage, size, team, folder, ZeroEngine)
        return {**vars(found), "blocks": {name: [astuple(b) for b in blocks] for name, blocks in found.blocks.items()}}

    plain = on_ranks(work)
    blocks = {name: [Block(*block) for block in found] for name, found in plain.pop("blocks").items()}
    return Found(**plain, blocks=blocks)


def _of(case: Case, stage: int | None, size: Size) -> RunConfig:
    """The case's job, long enough for all blocks."""
    return replace(
        case.config,
        engine=replace(case.config.engine, stage=cast(Any, stage or 0)),
        recipe=Long(generations=1, epochs=size.rounds + 1, warmup_epochs=1),
    )


def contest(case: Case, stage: int | None, size: Size, team: Team, folder: Path, engine_type: Any) -> Found:
    """Every rank calls: the contenders in turn."""
    config = _of(case, stage, size)
    config = replace(config, resources=replace(config.resources, workers=team.size))
    prepared = prepare(config)
    steps = prepared.plan.epoch_steps[0]

    def engine() -> Engine:
        built = config.task.build(config.seed)
        return cast(Engine, engine_type(built, prepared.groups, config.optim, config.engine, team))

    run = team.share(create(prepared, folder / "run") if team.rank == 0 else None)
    own = engine()
    ours = Ours(run, own, team)
    plain = Plain(prepared, team, _distributed if team.size > 1 else lambda module: module)
    contenders = [Contender(name=PLAIN, run=plain), Contender(name=WORKER, run=ours)]
    if stage in (None, 0):
        contenders.append(Contender(name=STEPS, run=Bare(prepared, team, engine())))
    if stage == 0:
        contenders.append(Contender(name=ALONE, run=Plain(prepared, team, lambda module: module)))

    def wait() -> None:
        if team.device.type == "cuda":
            torch.cuda.synchronize()
        team.barrier()

    gc.collect()
    interleave(contenders, rounds=0, wait=wait)  # the warm-up, from equal weights
    if not math.isclose(ours.loss, plain.loss, rel_tol=0.02):
        raise RuntimeError(f"the two loops do not learn the same: losses {ours.loss} and {plain.loss} after one epoch")
    blocks = over_ranks(team.gather(interleave(contenders, rounds=size.rounds, warm_up=0, wait=wait)))
    return Found(
        case=case.name,
        stage=stage,
        blocks=blocks,
        steps=steps,
        images=steps * config.engine.batch,
        flops=_flops(plain, config, team) * team.size * steps,
        bytes=4.0 * sum(parameter.numel() for parameter in plain.network.parameters()) if team.size > 1 else 0.0,
    )


def _flops(plain: Plain, config: RunConfig, team: Team) -> float:
    """Of one rank's forward and backward pass in one step."""
    batch = next(iter(config.task.batches("train", plain.draws(), team.device)))
    with FlopCounterMode(display=False) as counter:
        config.task.loss(plain.network, batch)[0].backward()
    return float(counter.get_total_flops())
