"""The toy task with accidents: each happens once, at a place in the data that is the same in every run."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from llf_ray.data.base import BrokenData
from llf_ray.data.order import Draw
from llf_ray.forget.edit import Edit, View
from llf_ray.plan import Phase
from llf_ray.recipes.seal import Seal
from llf_ray.tasks.base import Role
from tests.toy import Toy


@dataclass(frozen=True, kw_only=True)
class Faulty:
    """Accidents happen at the second micro-batch of epoch 0 of ``generation``; ``flags`` remembers that they did.

    ``kill``: rank 1 kills itself ("worker"), or Ray's controller of the workers. ``poison``: NaN in the images.
    ``broken``: an exception. ``unreadable``: an item that one rank cannot read. ``fill``: a file takes all room that
    its disk has left. ``wait_for``: raise a flag, then wait until that file exists.
    """

    flags: str
    generation: int = 1
    kill: Literal["", "worker", "controller"] = ""
    poison: bool = False
    broken: bool = False
    unreadable: bool = False
    fill: str = ""
    wait_for: str = ""
    task: Toy = Toy()
    metric: str = "accuracy"

    def prepare(self) -> None:
        self.task.prepare()

    def num_items(self, role: Role) -> int:
        return self.task.num_items(role)

    def skeleton(self) -> nn.Module:
        return self.task.skeleton()

    def build(self, seed: int) -> nn.Module:
        return self.task.build(seed)

    def initial(self, seed: int) -> nn.Module:
        return self.task.initial(seed)

    def loss(self, model: nn.Module, batch: Any) -> Any:
        return self.task.loss(model, batch)

    def score(self, model: nn.Module, batch: Any) -> Any:
        return self.task.score(model, batch)

    def batches(self, role: Role, draws: Iterable[Draw], device: torch.device) -> Iterator[Any]:
        """The toy's batches, and the accidents."""
        kept = list(draws)
        for place, (draw, batch) in enumerate(zip(kept, self.task.batches(role, kept, device), strict=True)):
            here = role == "train" and place == 1 and draw.key is not None and draw.key[1:] == (self.generation, 0)
            yield self._accident(batch) if here else batch

    def _accident(self, batch: Any) -> Any:
        if self.kill and dist.get_rank() == 1 and first(self.flags, self.kill):
            os.kill(os.getpid() if self.kill == "worker" else beside_us("ray::TrainController"), signal.SIGKILL)
        if self.unreadable and dist.get_rank() == 1:
            raise BrokenData("picture.jpg is cut off")
        if self.broken:
            raise LookupError("nobody expected this\nat all")
        if self.fill and dist.get_rank() == 0 and first(self.flags, "filled"):
            fill_up(Path(self.fill))
        if self.wait_for and dist.get_rank() == 0 and first(self.flags, "reached"):
            end = time.monotonic() + 60
            while not Path(self.wait_for).exists() and time.monotonic() < end:
                time.sleep(0.05)
        return (batch[0] * float("nan"), batch[1]) if self.poison else batch


@dataclass(frozen=True, kw_only=True)
class Struck:
    """Another recipe whose last generation begins with the death of the scheduler actor, after its own operations."""

    recipe: Seal
    flags: str

    def plan(self) -> tuple[Phase, ...]:
        phases = list(self.recipe.plan())
        place = next(i for i, phase in enumerate(phases) if phase.generation == self.recipe.generations - 1)
        phases[place] = replace(phases[place], entry=(*phases[place].entry, KillActor(flags=self.flags)))
        return tuple(phases)


@dataclass(frozen=True, kw_only=True)
class KillActor:
    """An operation that changes nothing but the list of processes, once."""

    flags: str
    select: None = None
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    label: str = "kill the actor"

    def __call__(self, view: View) -> Edit:
        if dist.get_rank() == 0 and first(self.flags, "actor"):
            os.kill(beside_us("ray::SchedulerActor"), signal.SIGKILL)
        return Edit()


def fill_up(path: Path) -> None:
    """Write until the disk is full, down to the last page."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def first(folder: str, name: str) -> bool:
    """Whether nobody has passed here before."""
    try:
        Path(folder, name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def beside_us(title: str) -> int:
    """The one process with such a title among those that our own node's Ray has started."""
    (pid,) = (pid for pid, found in children(os.getppid()) if found.startswith(title))
    return pid


def children(parent: int) -> list[tuple[int, str]]:
    """Processes that ``parent`` started: (pid, command line)."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found.append((int(folder.name), (folder / "cmdline").read_text().replace("\0", " ")))
            except OSError:
                continue
    return found
