"""Scores of a whole role: every rank a part, tallies that add up exactly."""

from __future__ import annotations

import math
from contextlib import nullcontext

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
    passes; ranks without an item left repeat their last batch and do not count it.
    """
    engine.sync_buffers()
    training = engine.module.training
    engine.module.eval()
    draws = _evaluation_draws(config, team, role)
    tallies: dict[str, list[Tensor]] = {}
    with engine.average_weights() if config.optim.averaged is not None else nullcontext():
        for (_, counts), batch in zip(
            draws, config.task.batches(role, (draw for draw, _ in draws), team.device), strict=True
        ):
            for name, tally in config.task.score(engine.module, batch).items():
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
    return {name: total / count for name, (total, count) in zip(names, team.total(mine).tolist(), strict=True)}


def _evaluation_draws(config: RunConfig, team: Team, role: Role) -> list[tuple[Draw, bool]]:
    num_items = config.task.num_items(role)
    size = max(divide_batch(config.engine, team.size)[0], SMALLEST)
    indices = np.arange(num_items)
    parts = [indices[start : start + size] for start in range(0, num_items, size)]
    rounds = math.ceil(len(parts) / team.size)
    mine = [parts[r * team.size + team.rank] if r * team.size + team.rank < len(parts) else None for r in range(rounds)]
    return [(Draw(part if part is not None else parts[0], None), part is not None) for part in mine]
