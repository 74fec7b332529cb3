"""Scores of a whole role: every rank a part; tallies that add up exactly, records where scores do not add up."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llf_ray.data.order import Draw
from llf_ray.engine.base import Engine, divide_batch
from llf_ray.engine.team import Team
from llf_ray.run import RunConfig
from llf_ray.tasks.base import Role

__all__ = ["evaluate"]

SMALLEST = 100  # items of a batch: without gradients a batch may be larger than a training step's


@torch.no_grad()
def evaluate(config: RunConfig, engine: Engine, team: Team, role: Role) -> dict[str, float]:
    """Every rank calls: scores of a role, with averaged weights where the run has them and rank 0's buffers.

    Items are dealt to ranks in turn, in batches of one size, so that under ZeRO-3 every rank runs equally many forward
    passes; ranks without an item left repeat their last batch and do not count it. Records of scores that do not add up
    go to rank 0, in the order of the items, so that the number of ranks changes nothing.
    """
    task: Any = config.task
    engine.sync_buffers()
    training = engine.module.training
    engine.module.eval()
    draws = _evaluation_draws(config, team, role)
    tallies: dict[str, list[Tensor]] = {}
    records: list[tuple[int, Any]] = []
    with engine.average_weights() if config.optim.averaged is not None else nullcontext():
        for (draw, counts), batch in zip(
            draws, task.batches(role, (draw for draw, _ in draws), team.device), strict=True
        ):
            if hasattr(task, "evidence"):
                found, record = task.evidence(engine.module, batch)
                records += [(int(draw.indices[0]), record)] if counts else []
            else:
                found = task.score(engine.module, batch)
            for name, tally in found.items():
                if counts:
                    pair = torch.stack(
                        [tally.total.double().cpu(), torch.as_tensor(tally.count, dtype=torch.float64).cpu()]
                    )
                    tallies.setdefault(name, []).append(pair)
    engine.module.train(training)
    names = team.share(sorted(tallies) if team.rank == 0 else None)
    mine = torch.stack(
        [
            torch.stack(tallies[name]).sum(0) if name in tallies else torch.zeros(2, dtype=torch.float64)
            for name in names
        ]
    )
    values = {name: total / count for name, (total, count) in zip(names, team.total(mine).tolist(), strict=True)}
    if hasattr(task, "evidence"):
        everyone = sorted((pair for own in team.gather(records) for pair in own), key=lambda pair: pair[0])
        values |= team.share(task.conclude(role, [record for _, record in everyone]) if team.rank == 0 else None)
    return values


def _evaluation_draws(config: RunConfig, team: Team, role: Role) -> list[tuple[Draw, bool]]:
    num_items = config.task.num_items(role)
    micro = divide_batch(config.engine, team.size)[0]
    size = max(micro, getattr(config.task, "scored_together", SMALLEST))
    indices = np.arange(num_items)
    parts = [indices[start : start + size] for start in range(0, num_items, size)]
    rounds = math.ceil(len(parts) / team.size)
    mine = [parts[r * team.size + team.rank] if r * team.size + team.rank < len(parts) else None for r in range(rounds)]
    return [(Draw(part if part is not None else parts[0], None), part is not None) for part in mine]
