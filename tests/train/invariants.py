"""What every method promises exactly, as checks that one process or several ranks carry out alike.

A check gets a way to train: `Way.watched` gives what an engine saw in front of every optimizer step, and the end.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from llf_ray.data.order import order
from llf_ray.engine.base import Optim
from llf_ray.forget.draw import key_of
from llf_ray.forget.groups import Both, Select
from llf_ray.forget.masks import Everything
from llf_ray.forget.operations import STATE, WEIGHTS, Forget
from llf_ray.nn.normaliser import freeze
from llf_ray.plan import FREEZE, Curve, DataRule, Generate, Length, Objective, Pass, Phase, Rule
from llf_ray.recipes.knowledge_evolution import KnowledgeEvolution
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.recipes.pruning import IterativePruning
from llf_ray.recipes.restarts import Restarts
from llf_ray.recipes.seal import Seal
from llf_ray.recipes.shrink_perturb import ShrinkAndPerturb
from llf_ray.run import RunConfig
from tests.local import PER_EPOCH, SGD, Watch, changed, same_bits, settings
from tests.toy import Toy
from tests.train.reference import batches

__all__ = ["CHECKS", "Way", "what_is_wrong"]

CALM = Toy()
CONSTANT = Curve(shape="constant")
ADAMW = Optim(name="adamw", lr=0.01, weight_decay=0.1)
RESTARTS = Restarts(generations=2, epochs=2, warmup_epochs=1)
SEAL = Seal(generations=2, epochs=3, ascent_epochs=1, ascent_rate=0.5, warmup_epochs=1, threshold="body")
START, END = 3 * PER_EPOCH, 4 * PER_EPOCH  # of its ascent
EARLY = {"stem.0.weight", "stem.1.weight", "stem.1.bias"}
DRAWN = ("stem.0.weight", "body.0.weight", "head.weight")


class Way(Protocol):
    """How runs are carried out: by one process, or by several ranks at a ZeRO stage."""

    workers: int

    def watched(self, config: RunConfig, *steps: int) -> tuple[Watch, dict[str, Tensor]]:
        """Train to the end; what was seen, weights and moments in front of ``steps`` only, and the final weights."""
        ...


def phases(recipe: Any, operation: Forget) -> list[Phase]:
    """A recipe's phases, with this operation alone at the start of each generation but the first."""
    return [replace(phase, entry=(operation,) if phase.generation else ()) for phase in recipe.plan()]


def grouped(recipe: Any) -> list[Phase]:
    """A recipe's phases with SEAL's two groups, which learn alike: the last bit of a vectorised update depends on how
    parameters lie in memory.
    """
    rule = Rule(select=Select(before="body", name="early"))
    return [replace(phase, rules=(rule,)) for phase in recipe.plan()]


def parameters(weights: Mapping[str, Tensor]) -> set[str]:
    return {name for name in weights if "running" not in name and "num_" not in name}


# ---------------------------------------------------------------------------------------------------- the invariants


def keeping_everything_is_no_operation(way: Way) -> None:
    """The same bits as warm restarts, moments included, where the optimizer lives on."""
    kept = Forget(select=STATE, keep=Everything(), fill="initial")
    step = 2 * PER_EPOCH
    for optim in (SGD, ADAMW):
        (plain, end), (other, other_end) = (
            way.watched(settings(living_on(plan), task=CALM, optim=optim), step)
            for plan in (RESTARTS.plan(), phases(RESTARTS, kept))
        )
        for name, moments in plain.moments[step].items():
            assert moments, name
            assert same_bits(moments, other.moments[step][name]), name
        assert same_bits(end, other_end)
        assert plain.losses == other.losses


def living_on(plan: Sequence[Phase]) -> list[Phase]:
    """The same phases under one optimizer."""
    return [replace(phase, optimizer="keep") for phase in plan]


def a_redraw_leaves_biases_and_normalisers(way: Way) -> None:
    """From the first layer on, fresh weights and old normalisers."""
    _, first = way.watched(settings(replace(RESTARTS, generations=1), task=CALM))
    recipe = LaterLayer(generations=2, epochs=2, warmup_epochs=1, threshold="stem")
    watch, _ = way.watched(settings(recipe, task=CALM), 2 * PER_EPOCH)
    assert changed(first, watch.weights[2 * PER_EPOCH]) == set(DRAWN)


def an_ascent_that_descends_is_a_warm_restart(way: Way) -> None:
    """With direction +1, decay as ever and no new optimizer at k; with one, or undecayed, not."""
    first, ascent, descent = SEAL.plan()

    def descending(optim: Optim, *, decay: float | None = None, at_k: Literal["keep", "rebuild"] = "keep") -> Any:
        down = replace(ascent, rules=(replace(ascent.rules[0], direction=1.0, weight_decay=decay),))
        return way.watched(settings([first, down, replace(descent, optimizer=at_k)], optim=optim))[1]

    for optim in (SGD, ADAMW):
        _, end = way.watched(settings(grouped(Restarts(generations=2, epochs=3, warmup_epochs=1)), optim=optim))
        assert same_bits(descending(optim), end)
        assert not same_bits(descending(optim, at_k="rebuild"), end), "the new optimizer at k is a difference"
        assert not same_bits(descending(optim, decay=0.0), end)


def an_ascent_is_torchs_own_maximising(way: Way) -> None:
    """Each step by torch's own optimizer, on the gradient that autograd finds at the weights in front of it.

    A negative rate is the same without decay and another thing with it, since decay would turn into growth.
    """
    for decay in (0.0, 0.1):
        first, ascent, descent = SEAL.plan()
        up = replace(ascent, rules=(replace(ascent.rules[0], weight_decay=decay),))
        watch, _ = way.watched(settings([first, up, descent], task=CALM), *range(START, END + 1))
        maximising, negative = Annealing(decay, maximize=True), Annealing(decay, maximize=False)
        for step, batch in zip(range(START, END), batches(generation=1, epochs=1), strict=True):
            before, after = watch.weights[step], watch.weights[step + 1]
            rate = SGD.lr * (step - START + 1) / PER_EPOCH  # all of the ascent lies in the warm-up
            expected = maximising.step(before, batch, rate, way.workers)
            for name, value in expected.items():
                torch.testing.assert_close(after[name], value, msg=lambda text, name=name: f"{name}: {text}")
            other = negative.step(before, batch, rate, way.workers)
            apart = max(float((after[name] - other[name]).abs().max()) for name in EARLY)
            assert apart < 1e-5 if decay == 0 else apart > 1e-4, apart


class Annealing:
    """The ascent in torch's SGD: early parameters maximise the loss or have a negative rate, the others learn as ever.

    Its momentum is its own, and starts at nothing as that of an ascent does.
    """

    def __init__(self, decay: float, *, maximize: bool) -> None:
        self.net, self.scale = CALM.build(0), 0.5 if maximize else -0.5
        rest = dict(self.net.named_parameters())
        early = [rest.pop(name) for name in sorted(EARLY)]
        self.optimizer = torch.optim.SGD(
            [{"params": early, "weight_decay": decay, "maximize": maximize}, {"params": list(rest.values())}],
            lr=1.0,
            momentum=SGD.momentum,
            weight_decay=SGD.weight_decay,
        )

    def step(
        self, weights: Mapping[str, Tensor], batch: tuple[Tensor, Tensor], rate: float, workers: int
    ) -> dict[str, Tensor]:
        """Parameters one step behind these weights, by the mean of the workers' gradients."""
        self.net.load_state_dict(weights)
        self.net.train()
        self.optimizer.zero_grad()
        for images, labels in zip(*(part.chunk(workers) for part in batch), strict=True):
            (nn.functional.cross_entropy(self.net(images), labels) / workers).backward()
        early, rest = self.optimizer.param_groups
        early["lr"], rest["lr"] = self.scale * rate, rate  # torch refuses a negative rate in its constructor only
        self.optimizer.step()
        return {name: value.detach().clone() for name, value in self.net.named_parameters()}


def kept_kernels_pass_a_boundary_untouched(way: Way) -> None:
    """The first ceil(0.6 C_out) x ceil(0.6 C_in) kernels."""
    recipe = KnowledgeEvolution(generations=2, epochs=2, warmup_epochs=0, split="kernels", keep=0.6)
    watch, _ = way.watched(settings(recipe, task=CALM), 2 * PER_EPOCH)
    _, end = way.watched(settings(replace(recipe, generations=1), task=CALM))
    before, after = end["body.0.weight"], watch.weights[2 * PER_EPOCH]["body.0.weight"]
    kept = torch.zeros_like(before, dtype=torch.bool)
    kept[: math.ceil(0.6 * 7), : math.ceil(0.6 * 5)] = True
    assert torch.equal(before == after, kept)


def pruning_nothing_is_dense_training(way: Way) -> None:
    """At a rate of 0, rewound to step 0 or, without momentum, which is not, to k; in one order of the data."""
    recipe = IterativePruning(generations=2, epochs=2, warmup_epochs=1, rate=0.0, repeat_order=True)
    _, pruned = way.watched(settings(recipe, task=CALM))
    _, dense = way.watched(settings(Long(generations=1, epochs=2, warmup_epochs=1), task=CALM))
    assert same_bits(pruned, dense)
    plain = replace(SGD, momentum=0.0)
    for k in (0.5, 1.25):  # inside the warm-up, and behind an epoch
        rewound = replace(recipe, rewind_epochs=k)
        watch, end = way.watched(settings(rewound, task=CALM, optim=plain))
        _, first = way.watched(settings(replace(rewound, generations=1), task=CALM, optim=plain))
        assert same_bits(end, first)
        steps = round((2 - k) * PER_EPOCH)
        assert watch.losses[-steps:] == watch.losses[-2 * steps : -steps]


def shrink_and_perturb_has_its_two_ends(way: Way) -> None:
    """(1, 0) is a warm start, (0, 1) a fresh model."""
    recipe = ShrinkAndPerturb(generations=2, epochs=2)
    step = 2 * PER_EPOCH
    warm, _ = way.watched(settings(replace(recipe, shrink=1, perturb=0), task=CALM), step - 1, step)
    fresh, _ = way.watched(settings(replace(recipe, shrink=0, perturb=1), task=CALM), step - 1, step)
    assert same_bits({n: warm.weights[step - 1][n] for n in DRAWN}, {n: fresh.weights[step - 1][n] for n in DRAWN})
    # the same plan whose weights nobody touches, and the fresh model that the operation's key stands for
    statistics = Forget(select=Select(kinds=("statistic",), name="statistics"), fill="initial")
    untouched, _ = way.watched(settings(phases(recipe, statistics), task=CALM), step)
    model = CALM.initial(key_of(0, "learn/entry/0", 1, "model")).state_dict()
    own = parameters(warm.weights[step])
    assert same_bits({n: warm.weights[step][n] for n in own}, {n: untouched.weights[step][n] for n in own}), (
        "a warm start"
    )
    assert same_bits({n: fresh.weights[step][n] for n in own}, {n: model[n] for n in own}), "a fresh model"


def a_redraw_is_uniform_with_the_layers_own_deviation(way: Way) -> None:
    """std = 1 / sqrt(3 fan_in), sqrt(6) below the Kaiming-normal draw; pooled over seeds."""
    ratios: list[Tensor] = []
    for seed in range(3):
        recipe = LaterLayer(generations=2, epochs=1, warmup_epochs=0, threshold="body")
        watch, _ = way.watched(settings(recipe, task=CALM, seed=seed), PER_EPOCH)
        weight = watch.weights[PER_EPOCH]["body.0.weight"]
        fan_in = weight[0].numel()
        assert float(weight.abs().max()) <= fan_in**-0.5
        ratios.append(weight.flatten() * math.sqrt(fan_in / 2))  # in units of the Kaiming-normal deviation
    assert abs(float(torch.cat(ratios).std()) * math.sqrt(6) - 1) < 0.05


# ----------------------------------------------------------------------------------------------------- SEAL exactly


def an_ascent_raises_the_loss_and_leaves_held_layers(way: Way) -> None:
    recipe = replace(SEAL, hold_descenders=True, ascent_rate=10.0, epochs=6, ascent_epochs=3)
    first, last = 6 * PER_EPOCH, 9 * PER_EPOCH
    watch, _ = way.watched(settings(recipe), first, last)
    before, after = watch.losses[first - PER_EPOCH : first], watch.losses[last - PER_EPOCH : last]
    assert sum(after) > sum(before)
    moved = changed(watch.weights[first], watch.weights[last])
    assert moved & parameters(watch.weights[first]) == EARLY
    statistics = {name for name in watch.weights[first] if "running" in name}
    assert statistics <= moved, "they follow, held or not"


def ascent_and_descent_have_the_papers_rates(way: Way) -> None:
    """Rates, decay, empty moments, statistics that follow."""
    watch, _ = way.watched(settings(SEAL), *range(2 * START))
    for step in range(START, END):
        early, rest = watch.groups[step]["early"], watch.groups[step]["rest"]
        assert (early["direction"], early["weight_decay"]) == (-0.5, 0.0)
        assert (rest["direction"], rest["weight_decay"]) == (1.0, SGD.weight_decay)
        assert math.isclose(early["lr"], 0.5 * rest["lr"])
        statistics = {name for name in watch.weights[0] if "running" in name}
        assert statistics <= changed(watch.weights[step], watch.weights[step + 1])
    for step in [*range(START), *range(END, 2 * START)]:
        early, rest = ({k: v for k, v in watch.groups[step][n].items() if k != "name"} for n in ("early", "rest"))
        assert early == rest
    assert [step for step, moments in enumerate(watch.moments) if is_empty(moments)] == [0, START, END]


def is_empty(moments: Any) -> bool:
    """No moments, or none but zeros: a sharded optimizer may keep the room for them."""
    return not any(bool(value.any()) for found in moments.values() for value in found.values())


def the_first_generation_is_plain_training(way: Way) -> None:
    seal, _ = way.watched(settings(SEAL), START)
    plain, end = way.watched(settings(grouped(Restarts(generations=1, epochs=3, warmup_epochs=1))))
    assert plain.losses == seal.losses[:START]
    assert same_bits(end, seal.weights[START])


def forgetting_acts_on_the_weights_that_learn(way: Way) -> None:
    """A redraw of some layers is seen by the next step's gradient and kept by its update: the loss jumps, and what was
    drawn is where the next step starts.
    """
    later = Forget(select=Both((Select(since="body", name="later"), WEIGHTS)))
    step = 2 * PER_EPOCH
    watch, _ = way.watched(settings(phases(RESTARTS, later), task=CALM), step, step + 1)
    plain, _ = way.watched(settings(RESTARTS, task=CALM), step + 1)
    assert watch.losses[:step] == plain.losses[:step]
    assert abs(watch.losses[step] - plain.losses[step]) > 0.05
    drawn, after = watch.weights[step]["body.0.weight"], watch.weights[step + 1]["body.0.weight"]
    learned = plain.weights[step + 1]["body.0.weight"]
    assert (after - drawn).norm() < 0.2 * (after - learned).norm()


def what_a_task_carries_out_is_the_same_for_everyone(way: Way) -> None:
    """A normaliser is measured on whole batches of the phase's own order, alike on every rank; data that were generated
    are learned from, in batches of their own.
    """
    still = (Rule(select=Select(name="everything"), direction=0.0),)
    task = Toy(normalised=True)

    def phase(name: str, generation: int, **changes: Any) -> Phase:
        return Phase(name=name, generation=generation, length=Length(steps=2), curve=CONSTANT, **changes)

    plan = [
        phase("hold", 0, rules=still),
        phase("measured", 1, rules=still, entry=(Pass(what=FREEZE, where="stem", batches=2),)),
        phase("imitate", 2, entry=(Generate(what="noise", store="made"),), objective=Objective(kind="imitate")),
    ]
    plan[2] = replace(plan[2], data=DataRule(source="made", batch=4))
    watch, end = way.watched(settings(plan, task=task), 2, 4)
    net = task.build(0).eval()
    images, _ = task.data("train")
    shuffled = order(48, 0, 1, 0)
    freeze(net, "stem", [images[shuffled[:12]], images[shuffled[12:24]]])
    for name in ("stem.normaliser.mean", "stem.normaliser.std"):
        torch.testing.assert_close(watch.weights[2][name], net.state_dict()[name])
    own = parameters(watch.weights[4]) - {name for name in end if "normaliser" in name}
    assert same_bits({n: watch.weights[4][n] for n in own}, {n: net.state_dict()[n] for n in own}), "held so far"
    assert own <= changed(watch.weights[4], end), "and then learned"


def what_is_wrong(check: Callable[[Way], None], way: Way) -> str:
    """An empty text where the check holds, else its traceback."""
    try:
        check(way)
    except Exception:
        return traceback.format_exc()
    return ""


CHECKS: dict[str, Callable[[Way], None]] = {
    check.__name__: check
    for check in (
        keeping_everything_is_no_operation,
        a_redraw_leaves_biases_and_normalisers,
        an_ascent_that_descends_is_a_warm_restart,
        an_ascent_is_torchs_own_maximising,
        kept_kernels_pass_a_boundary_untouched,
        pruning_nothing_is_dense_training,
        shrink_and_perturb_has_its_two_ends,
        a_redraw_is_uniform_with_the_layers_own_deviation,
        an_ascent_raises_the_loss_and_leaves_held_layers,
        ascent_and_descent_have_the_papers_rates,
        the_first_generation_is_plain_training,
        forgetting_acts_on_the_weights_that_learn,
        what_a_task_carries_out_is_the_same_for_everyone,
    )
}
