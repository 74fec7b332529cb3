"""The language game: a batch of games against a loop over single games, and eight seeds side by side against one.

A loop takes the same optimizer step from the same games, played and differentiated one after the other. All train with
the local engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import numpy as np
import torch
from torch import nn

from benchmarks.harness import Contender, Report, Size, Target, interleave, ratio, spread
from llf_ray.data.order import Draw, order
from llf_ray.engine.base import EngineSettings, GroupRule, Optim
from llf_ray.engine.local import LocalEngine
from llf_ray.engine.team import Team
from llf_ray.forget.groups import layout, partition
from llf_ray.studies.price import threads
from llf_ray.tasks.language_game import Games, LanguageGame, li_bowling

__all__ = ["measure"]

BATCH, STEPS, SEEDS = 100, 20, 8
LOOP, ONE, MANY = "a loop over single games", "a batch of games", f"{SEEDS} seeds side by side"
BATCHED, BESIDE = 20.0, 3.0
RATE = 1e-3
WEIGHTS_AFTER = 50  # steps after which a seed's weights are compared with its own run's


def measure(size: Size) -> Report:
    """Li & Bowling's game, 100 games a step, on one process with as many threads as there are cores."""
    device = torch.device(size.device)
    game, batch, steps = (li_bowling(games=20, hidden=8), 10, 2) if size.tiny else (li_bowling(), BATCH, STEPS)
    many = replace(game, seeds=tuple(range(SEEDS)))
    number = torch.get_num_threads() if device.type == "cpu" else 1
    with threads(number):
        contenders = [
            Contender(name=LOOP, run=_steps(game, batch, 1, device, single=True)),
            Contender(name=ONE, run=_steps(game, batch, steps, device)),
            Contender(name=MANY, run=_steps(many, batch, steps, device)),
        ]
        wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
        blocks = interleave(contenders, rounds=size.rounds, wait=wait)
        difference = _difference(game, many, batch, 2 if size.tiny else WEIGHTS_AFTER, device)
    taken = {LOOP: 1, ONE: steps, MANY: steps}
    games = {LOOP: batch, ONE: batch * steps, MANY: batch * steps * SEEDS}
    speeds = {name: [games[name] / block.wall for block in found] for name, found in blocks.items()}
    rows = []
    for name, found in blocks.items():
        speed, quartiles = spread(speeds[name])
        milliseconds = 1e3 * spread([block.wall for block in found])[0] / taken[name]
        rows.append({"what": name, "games/s": speed, "spread": quartiles, "ms a step": milliseconds})
    return Report(
        name=f"language_game-{size.device}",
        title="The language game: games a second",
        rows=rows,
        targets=[
            Target(what="batch over loop", limit=BATCHED, least=True, found=ratio(speeds[ONE], speeds[LOOP])),
            Target(what=f"{SEEDS} seeds over one", limit=BESIDE, least=True, found=ratio(speeds[MANY], speeds[ONE])),
        ],
        notes=[
            f"one process, {number} threads, local engine, Adam; a step is {batch} games of every seed",
            f"largest difference of a weight from the seed's own run after {WEIGHTS_AFTER} steps: {difference:.2g}",
        ],
    )


def _engine(game: LanguageGame, batch: int, device: torch.device) -> LocalEngine:
    players = game.initial(0)
    groups = partition(layout(players), [])
    optim = Optim(name="adam", lr=RATE, weight_decay=0.0)
    engine = LocalEngine(players, groups, optim, EngineSettings(batch=batch), Team.alone(device))
    engine.set_rules({group.name: GroupRule(lr=RATE) for group in groups})
    engine.set_rates({group.name: 1.0 for group in groups})
    return engine


def _batches(game: LanguageGame, batch: int, device: torch.device) -> Iterator[Games]:
    def draws() -> Iterator[Draw]:
        for epoch in count():
            shuffled = order(game.games, 0, 0, epoch)
            for start in range(0, game.games, batch):
                yield Draw(shuffled[start : start + batch], (0, 0, epoch))

    return game.batches("train", draws(), device)


def _steps(
    game: LanguageGame, batch: int, steps: int, device: torch.device, *, single: bool = False
) -> Callable[[], object]:
    engine, batches = _engine(game, batch, device), _batches(game, batch, device)

    def loss(model: nn.Module, games: Games) -> torch.Tensor:
        return game.loss(model, games)[0]

    def one_by_one(model: nn.Module, games: Games) -> torch.Tensor:
        total = torch.zeros((), device=device)
        for place in range(batch):
            value = game.loss(model, games.at(np.array([place])))[0] / batch
            value.backward()
            total += value.detach()
        return total.requires_grad_()  # the gradients are there already

    def run() -> None:
        for _ in range(steps):
            engine.step([next(batches)], one_by_one if single else loss)

    return run


def _difference(game: LanguageGame, many: LanguageGame, batch: int, steps: int, device: torch.device) -> float:
    """The largest difference of a weight between a seed's own run and the same seed among others."""
    found = []
    for one in (game, many):
        engine, batches = _engine(one, batch, device), _batches(one, batch, device)
        for _ in range(steps):
            engine.step([next(batches)], lambda model, games, one=one: one.loss(model, games)[0])
        found.append({name: engine.read(name) for name in engine.names})
    return max(float((value - found[1][name]).abs().max()) for name, value in found[0].items())
