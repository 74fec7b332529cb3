"""The engine contract, as checks that run anywhere an engine runs: in this process, or on each rank of a small team.

Oracles are plain torch: each rank's batches in turn, gradients averaged, torch's own optimizers.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import math
import os
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llf_ray.config import SettingError
from llf_ray.engine.base import EngineSettings, GroupRule, Optim
from llf_ray.engine.local import LocalEngine
from llf_ray.engine.pieces import Pieces
from llf_ray.engine.team import Team
from llf_ray.forget.groups import Group
from llf_ray.forget.largest import largest

Batch = tuple[Tensor, Tensor]

SGD = Optim(name="sgd", lr=0.05, momentum=0.9, weight_decay=1e-2)
ADAMW = Optim(name="adamw", lr=0.01, weight_decay=0.1)
GROUPS = (
    Group(name="early", parameters=("conv.weight", "middle.weight")),
    Group(name="plain", parameters=("norm.weight", "norm.bias", "middle.bias", "head.bias"), decay=False),
    Group(name="late", parameters=("head.weight",), factor=0.5),
)
ITEMS = 8  # of one rank in one step


class Net(nn.Module):
    """Batch normalisation, and sizes (189, 7, 7, 315, 5, 15, 3) that no team divides."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(7) if norm else nn.GroupNorm(1, 7)
        self.middle = nn.Conv2d(7, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.middle(self.norm(self.conv(images)).relu()).relu().mean((2, 3)))


class Recomputing(Net):
    """The same, keeping less."""

    recompute = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.recompute = enable

    def forward(self, images: Tensor) -> Tensor:
        whole = super().forward
        return checkpoint(whole, images, use_reentrant=False) if self.recompute else whole(images)


def net(seed: int = 0, norm: bool = True) -> Net:
    torch.manual_seed(seed)
    return Net(norm)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def items(step: int, rank: int, number: int = ITEMS) -> Batch:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(number, 3, 6, 6, generator=generator), torch.randint(3, (number,), generator=generator)


def parts(batch: Batch, number: int) -> list[Batch]:
    return list(zip(batch[0].chunk(number), batch[1].chunk(number), strict=True))


def bits(value: Tensor) -> Tensor:
    return (
        value.detach().contiguous().view(torch.int32)
        if value.dtype == torch.float32
        else value.detach().to(torch.int64)
    )


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(bits(one), bits(other)))


def close(one: Tensor, other: Tensor, what: str, *, rtol: float = 1e-4, atol: float = 2e-6) -> None:
    torch.testing.assert_close(one, other, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


class Plain:
    """Plain torch on one process, for a team of ranks: each rank's batch in turn, gradients averaged."""

    def __init__(
        self,
        module: nn.Module,
        optim: Optim,
        size: int,
        *,
        direction: Mapping[str, float] | None = None,
        clip: float | None = None,
        clips: Mapping[str, float] | None = None,
    ) -> None:
        self.module, self.size, self.clip, self.clips = module, size, clip, dict(clips or {})
        self.parameters = dict(module.named_parameters())
        made: list[dict[str, Any]] = []
        for group in GROUPS:
            way = (direction or {}).get(group.name, 1.0)
            if way == 0:
                continue
            made.append(
                {
                    "params": [self.parameters[name] for name in group.parameters],
                    "lr": optim.lr * group.factor * abs(way),
                    "weight_decay": optim.weight_decay if group.decay else 0.0,
                    "maximize": way < 0,
                }
            )
        if optim.name == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(made, momentum=optim.momentum, foreach=False)
        else:
            self.optimizer = torch.optim.AdamW(made, betas=optim.betas, foreach=False)

    def step(self, number: int) -> float:
        losses = []
        for rank in range(self.size):
            value = loss(self.module, items(number, rank))
            (value / self.size).backward()
            losses.append(float(value.detach()))
        for group in GROUPS:
            if group.name in self.clips:
                nn.utils.clip_grad_norm_([self.parameters[n] for n in group.parameters], self.clips[group.name])
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
        self.optimizer.step()
        for parameter in self.parameters.values():
            parameter.grad = None
        return losses[0]


@dataclass
class Lab:
    """One way to run: which engine, which stage and precision, on which team."""

    team: Team
    stage: int | None  # None: the local engine
    precision: str
    folder: Path
    open: list[Any] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{'local' if self.stage is None else f'zero{self.stage}'}-{self.precision}"

    @property
    def low(self) -> bool:
        return self.precision == "bf16"

    def make(self, optim: Optim = ADAMW, module: nn.Module | None = None, **settings: Any) -> Any:
        module = module if module is not None else net()
        wanted = EngineSettings(
            stage=self.stage or 0,  # type: ignore[arg-type]
            precision=self.precision,  # type: ignore[arg-type]
            batch=ITEMS * self.team.size,
            **settings,
        )
        if self.stage is None:
            engine: Any = LocalEngine(module, GROUPS, optim, wanted, self.team)
        else:
            from llf_ray.engine.zero import ZeroEngine

            engine = ZeroEngine(module, GROUPS, optim, wanted, self.team)
        self.open.append(engine)
        return engine

    def run(self, engine: Any, numbers: Sequence[int]) -> list[Tensor]:
        return [engine.step([items(number, self.team.rank)], loss) for number in numbers]

    def close(self) -> None:
        while self.open:
            self.open.pop().close()


def rules(optim: Optim, **direction: float) -> dict[str, GroupRule]:
    return {
        group.name: GroupRule(direction=direction.get(group.name, 1.0), lr=optim.lr, weight_decay=optim.weight_decay)
        for group in GROUPS
    }


def weights(engine: Any) -> dict[str, Tensor]:
    return {name: engine.read(name) for name in (*engine.names, *engine.buffers)}


def state(engine: Any) -> dict[str, Any]:
    return {name: (dict(engine.moments(name)), dict(engine.counts(name))) for name in engine.names}


def unmoved(before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: Sequence[str]) -> None:
    for name in names:
        assert same(before[name], after[name]), f"{name} moved"


def state_unmoved(before: dict[str, Any], after: dict[str, Any], names: Sequence[str]) -> None:
    for name in names:
        assert before[name][1] == after[name][1], f"counts of {name}: {before[name][1]} -> {after[name][1]}"
        assert before[name][0].keys() == after[name][0].keys()
        unmoved(before[name][0], after[name][0], list(before[name][0]))


def of_group(name: str) -> tuple[str, ...]:
    return next(group.parameters for group in GROUPS if group.name == name)


def plain_net(engine: Any, *, average: bool = False) -> Net:
    found = net()
    found.load_state_dict({n: engine.read(n, average=average) for n in (*engine.names, *engine.buffers)})
    return found


def agree(engine: Any, plain: Plain, what: str, names: Sequence[str] = ()) -> None:
    for name in names or engine.names:
        close(engine.read(name), plain.parameters[name].detach(), f"{what}, {name}")


# ------------------------------------------------------------------------------------------------------------- checks


def steps_are_those_of_plain_torch(lab: Lab) -> None:
    for optim in (SGD,) if lab.low else (SGD, ADAMW):
        engine, plain = lab.make(optim), Plain(net(), optim, lab.team.size)
        for number in range(4):
            value, expected = float(lab.run(engine, [number])[0]), plain.step(number)
            if lab.team.rank == 0:
                assert abs(value - expected) < (0.03 if lab.low else 1e-5), f"loss {value}, not {expected}"
        for name in engine.names:
            # bf16 keeps 8 bits: gradients of a percent, on moves of some hundredths
            close(engine.read(name), plain.parameters[name].detach(), name, atol=4e-3 if lab.low else 2e-6)
        engine.sync_buffers()


def other_optimizers_step_alike(lab: Lab) -> None:
    """Elementwise whatever the layout: compared with the optimizer's own class on the whole parameters."""
    if lab.low:
        return
    for name in ("nesterov", "adam", "nadam", "radam", "rmsprop", "lion"):
        optim = Optim(name=name, lr=1e-3, weight_decay=0.0)
        engine, module = lab.make(optim), net()
        alone = LocalEngine(
            module, GROUPS, optim, EngineSettings(batch=ITEMS * lab.team.size, accumulation=lab.team.size)
        )
        for number in range(3):
            lab.run(engine, [number])
            alone.step([items(number, rank) for rank in range(lab.team.size)], loss)
        for parameter in engine.names:
            close(engine.read(parameter), alone.read(parameter), f"{name}, {parameter}", atol=2e-5)
        lab.close()


def evaluation_computes_with_the_weights_that_are_read(lab: Lab) -> None:
    engine = lab.make()
    lab.run(engine, range(2))
    engine.sync_buffers()
    expected = plain_net(engine).eval()
    engine.module.eval()
    with torch.no_grad():
        for number in (50, 51):
            images = items(number, 0)[0]
            found = engine.module(images)
            assert found.dtype == torch.float32
            close(found, expected(images), "evaluation", atol=3e-2 if lab.low else 1e-5)
    engine.module.train()
    with engine.gathered():
        for name, parameter in engine.module.named_parameters():
            assert parameter.shape == engine.read(name).shape if lab.stage != 3 else parameter.numel() > 0
    before = weights(engine)
    lab.run(engine, [2])
    assert not same(before["conv.weight"], engine.read("conv.weight"))


def write_is_seen_and_kept(lab: Lab) -> None:
    engine = lab.make(optim=replace(ADAMW, averaged=0.5))
    lab.run(engine, range(2))
    engine.module.eval()
    images = items(60, 0)[0]
    with torch.no_grad():
        engine.module(images)  # ZeRO-3 may prefetch behind a forward: a write must not be lost to it
    for name in ("middle.weight", "norm.bias", "conv.weight"):
        before = weights(engine)
        value = torch.randn(before[name].shape, generator=torch.Generator().manual_seed(3))
        engine.write(name, value)
        after = weights(engine)
        assert same(after[name], value)
        unmoved(before, after, [other for other in before if other != name])
        engine.verify()
        with torch.no_grad():
            close(engine.module(images), plain_net(engine).eval()(images), "forward", atol=5e-2 if lab.low else 1e-5)
    engine.write("norm.running_mean", torch.arange(7.0))
    assert same(engine.read("norm.running_mean"), torch.arange(7.0))
    engine.module.train()
    written = weights(engine)
    engine.set_rates({group.name: 0.0 for group in GROUPS})
    lab.run(engine, [3])
    unmoved(written, weights(engine), engine.names)
    engine.set_rates({group.name: 1.0 for group in GROUPS})
    lab.run(engine, [4])
    for name in engine.names:
        moved = (engine.read(name) - written[name]).abs().max()
        assert 0 < moved < 0.1, f"{name} moved by {moved} from what was written"
    engine.verify()
    engine.write("head.weight", torch.ones(3, 5), average=True)
    assert same(engine.read("head.weight", average=True), torch.ones(3, 5))
    assert not same(engine.read("head.weight"), torch.ones(3, 5))


def every_bit_pattern_survives(lab: Lab) -> None:
    engine = lab.make()
    odd = torch.tensor([-0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1.0, 3e38])
    odd.view(torch.int32)[1] = 0x7FC12345  # a NaN with a message
    lab.run(engine, [0])
    engine.write("norm.weight", odd)
    assert same(engine.read("norm.weight"), odd)
    engine.verify()
    folder = lab.folder / f"odd-{lab.label}"
    folder.mkdir(exist_ok=True)
    engine.save_weights(folder)
    lab.team.barrier()
    other = lab.make()
    other.load(folder)
    assert same(other.read("norm.weight"), odd)
    total = sum(found.shard for found in lab.team.gather(engine.digest())) % 2**64
    assert total == sum(found.shard for found in lab.team.gather(other.digest())) % 2**64
    engine.write("norm.weight", odd.abs())
    assert total != sum(found.shard for found in lab.team.gather(engine.digest())) % 2**64, "-0.0 is not 0.0"


def a_fresh_optimizer_steps_like_a_new_one(lab: Lab) -> None:
    for optim in (SGD, ADAMW):
        engine = lab.make(optim)
        lab.run(engine, range(4))
        engine.fresh_optimizer()
        assert all(not engine.moments(name) and not engine.counts(name) for name in engine.names)
        expected = lab.make(optim, module=plain_net(engine))
        plain = Plain(plain_net(engine), optim, lab.team.size)
        for number in (7, 8):
            lab.run(engine, [number])
            lab.run(expected, [number])
            plain.step(number)
        unmoved(weights(expected), weights(engine), engine.names)
        state_unmoved(state(expected), state(engine), engine.names)
        if not lab.low:
            agree(engine, plain, optim.name)
        lab.close()


def a_cleared_group_starts_anew_and_others_go_on(lab: Lab) -> None:
    engine, plain = lab.make(ADAMW), Plain(net(), ADAMW, lab.team.size)
    for number in range(5):
        lab.run(engine, [number])
        plain.step(number)
    before = state(engine)
    engine.clear(["early"])
    after = state(engine)
    state_unmoved(before, after, of_group("plain") + of_group("late"))
    for name in of_group("early"):
        assert after[name] == ({}, {})
        plain.optimizer.state.pop(plain.parameters[name])
    if lab.low:
        lab.run(engine, [5])
    else:
        for number in (5, 6, 7):  # bias correction starts again: a stale step count shows in the second move
            lab.run(engine, [number])
            plain.step(number)
        agree(engine, plain, "after clear")
    assert engine.counts("conv.weight")["step"] < engine.counts("head.weight")["step"]


def cleared_entries_lose_their_moments_only(lab: Lab) -> None:
    engine = lab.make(ADAMW)
    lab.run(engine, range(3))
    chosen = torch.rand(5, 7, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.4
    before, kept = state(engine), weights(engine)
    engine.clear(entries={"middle.weight": chosen})
    after = state(engine)
    state_unmoved(before, after, [name for name in engine.names if name != "middle.weight"])
    for key, value in after["middle.weight"][0].items():
        assert bool((value[chosen] == 0).all())
        assert same(value[~chosen], before["middle.weight"][0][key][~chosen])
    engine.clear(entries={"middle.weight": None, "head.bias": None})
    at_last = state(engine)
    state_unmoved(after, at_last, [name for name in engine.names if name not in ("middle.weight", "head.bias")])
    for name in ("middle.weight", "head.bias"):
        assert all(bool((value == 0).all()) for value in at_last[name][0].values())
    unmoved(kept, weights(engine), engine.names)


def reading_without_a_copy_gives_the_same(lab: Lab) -> None:
    engine = lab.make(replace(SGD, averaged=0.5))
    lab.run(engine, range(2))
    for name in (*engine.names, *engine.buffers):
        for average in (False, True):
            assert same(engine.read(name, average=average), engine.read(name, average=average, copy=False))
    kept = weights(engine)
    copy = engine.read("middle.weight")
    copy.zero_()
    unmoved(kept, weights(engine), engine.names)


def direction_zero_moves_nothing(lab: Lab) -> None:
    for optim in (SGD, ADAMW):
        engine = lab.make(optim)
        lab.run(engine, range(2))
        engine.set_rules(rules(optim, early=0.0))
        before, kept = state(engine), weights(engine)
        lab.run(engine, [2, 3])
        after, now = state(engine), weights(engine)
        unmoved(kept, now, of_group("early"))
        state_unmoved(before, after, of_group("early"))
        for name in of_group("late") + of_group("plain"):
            assert not same(kept[name], now[name]), f"{name} stood still"
        engine.verify()
        engine.set_rules(rules(optim))
        lab.run(engine, [4])
        assert not same(now["conv.weight"], engine.read("conv.weight"))
        lab.close()
    engine = lab.make(ADAMW)
    engine.set_rules(rules(ADAMW, early=0.0))
    lab.run(engine, [0])  # held from the very first step: no state appears
    assert engine.moments("conv.weight") == {}
    assert engine.counts("conv.weight") == {}
    assert engine.counts("head.weight")["step"] == 1


def ascent_is_torchs_maximize_at_the_scaled_rate(lab: Lab) -> None:
    for optim in (SGD, ADAMW):
        engine = lab.make(optim)
        engine.set_rules(rules(optim, early=-0.2))
        lab.run(engine, [0])
        if lab.low:  # the first step of bf16 agrees in sign where the gradient is not tiny
            continue
        plain = Plain(net(), optim, lab.team.size, direction={"early": -0.2})
        plain.step(0)
        for number in (1, 2):
            lab.run(engine, [number])
            plain.step(number)
        agree(engine, plain, f"{optim.name} ascent")
        lab.close()


def halving_the_ascent_halves_its_first_step(lab: Lab) -> None:
    optim = replace(ADAMW, weight_decay=0.0)
    moves = []
    for strength in (-0.02, -0.01):
        engine = lab.make(optim)
        lab.run(engine, range(2))
        engine.set_rules(rules(optim, early=strength))
        before = engine.read("middle.weight")
        lab.run(engine, [2])
        moves.append(engine.read("middle.weight") - before)
        lab.close()
    close(moves[0], 2 * moves[1], "first step of the ascent", rtol=1e-3, atol=1e-7)
    assert moves[0].abs().max() > 1e-4


def decay_keeps_its_sign_under_ascent(lab: Lab) -> None:
    def flat(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model, batch) * 0.0

    for optim in (SGD, ADAMW):
        engine = lab.make(optim)
        engine.set_rules(rules(optim, early=-0.5, late=-0.5))
        before = weights(engine)
        engine.step([items(0, lab.team.rank)], flat)
        for group in GROUPS:
            factor = 1 - (optim.lr * optim.weight_decay * group.factor * 0.5 if group.decay else 0.0)
            for name in group.parameters:
                close(engine.read(name), before[name] * factor, f"{optim.name}, {name}", rtol=1e-6)
        lab.close()


def rates_and_rules_reach_the_step(lab: Lab) -> None:
    optim = replace(SGD, momentum=0.0, weight_decay=0.0)
    moves = {}
    for rate in (1.0, 0.25):
        engine = lab.make(optim)
        before = engine.read("head.weight")
        engine.set_rates({"early": 0.0, "plain": 1.0, "late": rate})
        lab.run(engine, [0])
        moves[rate] = engine.read("head.weight") - before
        unmoved({"w": net().conv.weight}, {"w": engine.read("conv.weight")}, ["w"])
        lab.close()
    close(moves[1.0], 4 * moves[0.25], "a quarter of the rate", rtol=1e-3, atol=1e-6)
    engine = lab.make(optim)
    for wrong in ({"early": 1.0}, {"early": 1.0, "plain": 1.0, "late": 1.0, "none": 1.0}):
        with expected_error(SettingError):
            engine.set_rates(wrong)


def new_rules_leave_moments_and_counts(lab: Lab) -> None:
    engine = lab.make(ADAMW)
    engine.set_rules(rules(ADAMW))
    lab.run(engine, range(2))
    before = state(engine)
    engine.set_rules(rules(ADAMW, early=-1.0, late=0.0))
    state_unmoved(before, state(engine), engine.names)


def held_entries_stay_zero(lab: Lab) -> None:
    engine = lab.make(replace(ADAMW, averaged=0.9))
    lab.run(engine, range(2))
    generator = torch.Generator().manual_seed(2)
    masks = {
        name: torch.rand(engine.read(name).shape, generator=generator) < 0.6
        for name in ("middle.weight", "conv.weight")
    }
    live = {name: engine.read(name)[mask] for name, mask in masks.items()}
    engine.hold_at_zero(masks)

    def zero() -> None:
        for name, mask in masks.items():
            assert bool((engine.read(name)[~mask] == 0).all()), name
            assert bool((engine.read(name, average=True)[~mask] == 0).all()), f"average of {name}"
            for key, value in engine.moments(name).items():
                assert bool((value[~mask] == 0).all()), f"{key} of {name}"
        engine.verify()

    zero()
    assert all(same(engine.read(name)[mask], live[name]) for name, mask in masks.items())
    for number in (2, 3, 4):
        lab.run(engine, [number])
        zero()
    engine.write("conv.weight", torch.ones(7, 3, 3, 3))
    zero()
    engine.set_rules(rules(ADAMW, early=-0.1))
    lab.run(engine, [5])
    zero()
    engine.hold_at_zero({})
    lab.run(engine, [6])
    assert bool((engine.read("conv.weight")[~masks["conv.weight"]] != 0).any())


def magnitudes_are_counted_where_they_lie(lab: Lab) -> None:
    """A global magnitude mask is that of a stable sort of the full weights, which no rank reads where it
    has but a part.
    """
    engine = lab.make()
    lab.run(engine, range(2))
    for name in ("conv.weight", "middle.weight", "head.weight"):  # many ties, across tensors and ranks
        engine.write(name, (engine.read(name) * 20).round() / 20)
    full = {name: engine.read(name).cpu() for name in engine.names}
    generator = torch.Generator().manual_seed(4)
    live = {name: torch.rand(value.shape, generator=generator) < 0.7 for name, value in full.items()}
    alive = torch.cat([mask.reshape(-1) for mask in live.values()])
    sizes = torch.cat([value.reshape(-1) for value in full.values()]).abs().masked_fill(~alive, -1)
    order = sizes.argsort(descending=True, stable=True)
    read, asked = engine.read, list[str]()

    def watched(name: str, **how: Any) -> Tensor:
        asked.append(name)
        return read(name, **how)

    engine.read = watched
    for keep in (0.0, 0.3, 0.5, 0.51, 0.8, 1.0):
        kept = torch.zeros_like(alive)
        kept[order[: int(alive.sum()) - math.ceil(round((1 - keep) * int(alive.sum()), 6))]] = True
        found = largest(engine, engine.names, keep, live.__getitem__)
        assert torch.equal(torch.cat([found[name].reshape(-1) for name in engine.names]), kept), keep
        assert all(mask.shape == full[name].shape for name, mask in found.items())
    engine.read = read
    assert not asked or not engine._split or engine._full_copy("conv.weight") is not None
    count = engine.tally([*engine.names, *engine.buffers], lambda name, start, part: torch.tensor(part.numel()))
    assert int(count) == sum(value.numel() for value in weights(engine).values()), "each entry counts once"


def averages_are_those_written_by_hand(lab: Lab) -> None:
    engine = lab.make(replace(SGD, averaged=0.8))
    by_hand = {name: value.clone() for name, value in weights(engine).items()}
    for number in range(4):
        lab.run(engine, [number])
        for name, value in weights(engine).items():
            by_hand[name] = 0.8 * by_hand[name] + 0.2 * value if value.is_floating_point() else value
    for name, value in by_hand.items():
        close(engine.read(name, average=True), value, name, rtol=1e-5, atol=1e-6)
    engine.sync_buffers()
    before, images = weights(engine), items(70, 0)[0]
    expected = plain_net(engine, average=True).eval()
    engine.module.eval()
    with torch.no_grad():
        own = engine.module(images)
        with engine.average_weights():
            close(engine.module(images), expected(images), "averaged", atol=3e-2 if lab.low else 1e-5)
        assert same(engine.module(images), own)
    engine.module.train()
    unmoved(before, weights(engine), list(before))
    engine.verify()
    lab.run(engine, [5])
    with expected_error(ValueError):
        lab.make(SGD).read("head.weight", average=True)


def clipping_is_torchs(lab: Lab) -> None:
    if lab.low:
        return
    limits = {"early": 0.05, "late": 0.01}
    engine = lab.make(SGD, clip=0.1)
    plain = Plain(net(), SGD, lab.team.size, clip=0.1)
    lab.run(engine, range(3))
    for number in range(3):
        plain.step(number)
    agree(engine, plain, "global clip")
    engine, plain = lab.make(SGD), Plain(net(), SGD, lab.team.size, clips=limits)
    engine.set_rules({name: replace(rule, clip=limits.get(name)) for name, rule in rules(SGD).items()})
    lab.run(engine, range(3))
    for number in range(3):
        plain.step(number)
    agree(engine, plain, "clip by group")


def accumulation_equals_one_big_batch(lab: Lab) -> None:
    results = []
    for accumulation in (1, 4):
        engine = lab.make(SGD, module=net(norm=False), accumulation=accumulation)
        losses = [engine.step(parts(items(number, lab.team.rank), accumulation), loss) for number in range(3)]
        results.append((float(losses[-1]), engine.read("conv.weight")))
        assert engine.counts("conv.weight") == {}
        lab.close()
    tolerance = 2e-2 if lab.low else 1e-5
    assert abs(results[0][0] - results[1][0]) < tolerance
    close(results[0][1], results[1][1], "accumulated", atol=5e-3 if lab.low else 1e-6)
    engine = lab.make(SGD, micro_batch=2)
    assert engine.accumulation == 4


def buffers_are_those_of_rank_zero(lab: Lab) -> None:
    engine = lab.make()
    lab.run(engine, range(3))
    before = lab.team.gather({name: engine.read(name) for name in engine.buffers})
    engine.sync_buffers()
    unmoved(before[0], weights(engine), engine.buffers)
    if lab.team.size > 1:
        assert not same(before[0]["norm.running_mean"], before[1]["norm.running_mean"])


def replicas_agree_and_tampering_shows(lab: Lab) -> None:
    engine = lab.make()
    lab.run(engine, range(2))
    found = lab.team.gather(engine.digest())
    assert len({each.copy for each in found}) == 1
    if lab.stage in (None, 0) and not lab.low:
        assert sum(each.shard for each in found) % 2**64 == found[0].copy
    engine.verify()
    parameter: Any = dict(engine.module.named_parameters())["middle.weight"]
    if lab.stage == 3 and lab.team.size > 1:  # what ZeRO-3 keeps whole on every rank is compared, too
        spoilt = dict(engine.module.named_parameters())["head.bias"].data
        kept = spoilt.clone()
        spoilt += float(lab.team.rank)
        copies = {each.copy for each in lab.team.gather(engine.digest())}
        spoilt.copy_(kept)
        assert len(copies) == 2
    tampered = parameter.ds_tensor.data if lab.stage == 3 else parameter.data
    tampered.view(-1)[3] += 1.0
    now = lab.team.gather(engine.digest())
    if lab.stage in (None, 0) and not lab.low:
        assert now != found
    else:  # every copy is spoilt alike: the rank that owns the entry sees it
        try:
            engine.verify()
            seen = False
        except RuntimeError:
            seen = True
        assert any(lab.team.gather(seen))


def gradients_that_are_not_finite_stop(lab: Lab) -> None:
    if (lab.stage in (None, 0) and not lab.low) or lab.stage is None:
        return  # torch writes them into the weights; the loop sees the loss

    def broken(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model, batch) * float("inf")

    engine = lab.make()
    before = weights(engine)
    with expected_error(FloatingPointError):
        engine.step([items(0, lab.team.rank)], broken)
    unmoved(before, weights(engine), engine.names)


def losses_may_use_the_model_as_they_like(lab: Lab) -> None:
    def twice(model: Any, batch: Batch) -> Tensor:
        first, second = model(batch[0]), model(batch[0].flip(-1))
        return nn.functional.cross_entropy(first, batch[1]) + (first - second).square().mean()

    def part(model: Any, batch: Batch) -> Tensor:
        return model(batch[0])[:, 0].square().mean() + 0.0 * model.head.weight.float().sum()

    engine = lab.make(SGD)
    engine.step([items(0, lab.team.rank)], twice)
    engine.step([items(1, lab.team.rank)], part)
    engine.verify()


def unused_parameters_only_decay(lab: Lab) -> None:
    def headless(model: Any, batch: Batch) -> Tensor:
        return model.conv(batch[0].to(model.conv.weight.dtype)).float().square().mean()

    engine = lab.make(replace(SGD, lr=0.1))
    before = weights(engine)
    engine.step([items(0, lab.team.rank)], headless)
    close(engine.read("head.weight"), before["head.weight"] * (1 - 0.05 * 1e-2), "unused", rtol=1e-6)


def a_parameter_that_one_rank_does_not_use_gets_half_the_gradient(lab: Lab) -> None:
    """What a rank does not use is zero there; messages must still meet their own on the other rank."""
    if lab.stage != 0 or lab.low or lab.team.size == 1:
        return

    def partly(model: Any, batch: Batch) -> Tensor:
        if lab.team.rank == 0:
            return loss(model, batch)
        return model.conv(batch[0]).square().mean() + 0.0 * model.head.bias.sum()

    plain, batches = net(), [items(0, rank) for rank in range(lab.team.size)]
    loss(plain, batches[0]).backward()
    engine = lab.make(replace(SGD, lr=0.1, momentum=0.0, weight_decay=0.0), module=net())
    before = engine.read("middle.weight")
    engine.step([batches[lab.team.rank]], partly)
    assert plain.middle.weight.grad is not None
    change = -0.1 * plain.middle.weight.grad / lab.team.size
    close(engine.read("middle.weight") - before, change, "half the gradient", rtol=1e-4, atol=1e-7)
    assert len({each.copy for each in lab.team.gather(engine.digest())}) == 1


def asked_of_a_model_that_cannot(lab: Lab) -> None:
    with expected_error(SettingError):
        lab.make(checkpoint_gradients=True)
    frozen = net()
    frozen.head.bias.requires_grad_(False)
    with expected_error(SettingError):
        lab.make(module=frozen)
    assert lab.open == []


def checkpointed_gradients_are_the_same(lab: Lab) -> None:
    modules = [Recomputing(norm=False), Recomputing(norm=False)]
    modules[1].load_state_dict(modules[0].state_dict())
    engines = [lab.make(SGD, module=m, checkpoint_gradients=c) for m, c in zip(modules, (True, False), strict=True)]
    assert [module.recompute for module in modules] == [True, False]
    for engine in engines:
        lab.run(engine, range(3))
    for name in engines[0].names:
        close(engines[0].read(name), engines[1].read(name), name, rtol=1e-6, atol=1e-7)


def channels_last_changes_no_result(lab: Lab) -> None:
    engine, other = lab.make(SGD, channels_last=True), lab.make(SGD)
    lab.run(engine, range(2))
    lab.run(other, range(2))
    for name in engine.names:
        close(engine.read(name), other.read(name), name, atol=4e-3 if lab.low else 2e-6)
    value = torch.randn(5, 7, 3, 3)
    lab.team.spread(value)
    engine.write("middle.weight", value)
    assert same(engine.read("middle.weight"), value)
    assert len({each.copy for each in lab.team.gather(engine.digest())}) == 1


def closing_frees_the_model(lab: Lab) -> None:
    module = net()
    engine = lab.make(module=module)
    lab.run(engine, [0])
    gone = [weakref.ref(module), weakref.ref(module.conv.weight)]
    lab.close()
    del engine, module
    gc.collect()
    assert [ref() is None for ref in gone] == [True, True]


def save_for_the_others(lab: Lab) -> None:
    """Not a law by itself: what `loads_what_any_other_saved` reads."""
    engine = lab.make(replace(ADAMW, averaged=0.9))
    engine.set_rules(rules(ADAMW, early=-0.1))
    lab.run(engine, range(3))
    engine.set_rules(rules(ADAMW, early=-0.1, late=0.0))
    folder = lab.folder / lab.label
    folder.mkdir(exist_ok=True)
    names = engine.save(folder)
    assert all((folder / name).is_file() for name in names)
    kept = {
        "weights": weights(engine),
        "averages": {name: engine.read(name, average=True) for name in (*engine.names, *engine.buffers)},
        "state": state(engine),
        "digest": sum(found.shard for found in lab.team.gather(engine.digest())) % 2**64,
    }
    lab.run(engine, [3])
    kept["next"] = weights(engine)
    if lab.team.rank == 0:
        torch.save(kept, folder / "kept.pt")
    lab.team.barrier()


def loads_what_any_other_saved(lab: Lab) -> None:
    engine = lab.make(replace(ADAMW, averaged=0.9), module=net(seed=9))
    for path in sorted(lab.folder.glob("*/kept.pt")):
        kept, own = torch.load(path, weights_only=True), path.parent.name == lab.label
        lab.run(engine, [8])  # whatever was there before
        engine.load(path.parent)
        what = f"{path.parent.name} in {lab.label}"
        unmoved(kept["weights"], weights(engine), list(kept["weights"]))
        for name, value in kept["averages"].items():
            assert same(engine.read(name, average=True), value), f"{what}: average of {name}"
        state_unmoved(kept["state"], state(engine), engine.names)
        engine.verify()
        digest = sum(found.shard for found in lab.team.gather(engine.digest())) % 2**64
        assert digest == kept["digest"], what
        engine.set_rules(rules(ADAMW, early=-0.1, late=0.0))  # as saved: nothing is cleared
        state_unmoved(kept["state"], state(engine), engine.names)
        size = 1 if path.parent.name.startswith("local") else 2
        if not lab.low and not path.parent.name.endswith("bf16") and size == lab.team.size:
            lab.run(engine, [3])
            for name in engine.names:
                if own:
                    assert same(engine.read(name), kept["next"][name]), f"{what}: next step of {name}"
                else:
                    close(engine.read(name), kept["next"][name], f"{what}: next step of {name}", atol=2e-5)
        elif own:
            lab.run(engine, [3])
            unmoved(kept["next"], weights(engine), engine.names)
        engine.load(path.parent, moments=False)
        assert all(engine.moments(name) == {} for name in engine.names)


def what_does_not_fit_is_not_loaded(lab: Lab) -> None:
    with expected_error(ValueError):
        lab.make(SGD).load(lab.folder / lab.label)  # moments of AdamW
    engine = lab.make(SGD)
    engine.load(lab.folder / lab.label, moments=False)
    lab.run(engine, [0])
    other = lab.make(module=net(norm=False))
    before = weights(other)
    with expected_error(ValueError):
        other.load(lab.folder / lab.label)  # statistics that this network does not have
    unmoved(before, weights(other), other.names)


def saved_weights_are_read_by_name(lab: Lab) -> None:
    engine = lab.make()
    lab.run(engine, [0])
    folder = lab.folder / f"snapshot-{lab.label}"
    folder.mkdir(exist_ok=True)
    engine.save_weights(folder)
    lab.team.barrier()
    pieces = Pieces(folder)
    assert pieces.kinds() == ("buffer", "weight")
    for name in engine.names:
        assert same(pieces.full("weight", name), engine.read(name))
    middle = engine.read("middle.weight").reshape(-1)
    assert same(pieces.slice("weight", "middle.weight", 100, 260), middle[100:260])
    lab.team.barrier()


SAVING = (save_for_the_others,)
CHECKS: tuple[Callable[[Lab], None], ...] = (
    steps_are_those_of_plain_torch,
    other_optimizers_step_alike,
    evaluation_computes_with_the_weights_that_are_read,
    write_is_seen_and_kept,
    every_bit_pattern_survives,
    a_fresh_optimizer_steps_like_a_new_one,
    a_cleared_group_starts_anew_and_others_go_on,
    cleared_entries_lose_their_moments_only,
    reading_without_a_copy_gives_the_same,
    direction_zero_moves_nothing,
    ascent_is_torchs_maximize_at_the_scaled_rate,
    halving_the_ascent_halves_its_first_step,
    decay_keeps_its_sign_under_ascent,
    rates_and_rules_reach_the_step,
    new_rules_leave_moments_and_counts,
    held_entries_stay_zero,
    magnitudes_are_counted_where_they_lie,
    averages_are_those_written_by_hand,
    clipping_is_torchs,
    accumulation_equals_one_big_batch,
    buffers_are_those_of_rank_zero,
    replicas_agree_and_tampering_shows,
    gradients_that_are_not_finite_stop,
    losses_may_use_the_model_as_they_like,
    unused_parameters_only_decay,
    a_parameter_that_one_rank_does_not_use_gets_half_the_gradient,
    asked_of_a_model_that_cannot,
    checkpointed_gradients_are_the_same,
    channels_last_changes_no_result,
    closing_frees_the_model,
    what_does_not_fit_is_not_loaded,
    saved_weights_are_read_by_name,
    loads_what_any_other_saved,
)


@contextlib.contextmanager
def expected_error(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


def perform(lab: Lab, check: Callable[[Lab], None]) -> str:
    """Run one check; what went wrong, or nothing."""
    torch.manual_seed(0)
    try:
        check(lab)
    except Exception:
        return traceback.format_exc(limit=-4)
    finally:
        with contextlib.suppress(Exception):
            lab.close()
    return ""


LABS = tuple((stage, precision) for precision in ("fp32", "bf16") for stage in (0, 1, 2, 3))  # on two ranks
ALONE = ((0, "fp32"), (1, "fp32"), (3, "bf16"))  # on one


def rank_main(rank: int, size: int, folder: Path, only: str = "") -> None:
    """All checks at all stages on one rank of a team; writes {lab: {check: error}} to a file."""
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(580, exit=True)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=size)
    from llf_ray.engine import zero

    zero.PERSISTENT = 20  # of the small network some parameters, not all, are kept whole under ZeRO-3
    zero.LARGE = 200  # and some gradients are exchanged while backward goes on
    team = Team.current("cpu")
    labs = [Lab(team, stage, precision, folder) for stage, precision in (LABS if size > 1 else ALONE)]
    found: dict[str, dict[str, str]] = {lab.label: {} for lab in labs}
    seconds: dict[str, dict[str, float]] = {lab.label: {} for lab in labs}
    for check in (*SAVING, *CHECKS):
        if only not in check.__name__ and check not in SAVING:
            continue
        for lab in labs:
            began = time.process_time()
            errors = team.gather(perform(lab, check))
            gc.freeze()  # DeepSpeed collects garbage whenever it builds an engine: spare it the libraries
            found[lab.label][check.__name__] = next((f"rank {r}: {e}" for r, e in enumerate(errors) if e), "")
            seconds[lab.label][check.__name__] = round(time.process_time() - began, 2)
    (folder / f"seconds-{rank}.json").write_text(json.dumps(seconds))
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    rank_main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "")
