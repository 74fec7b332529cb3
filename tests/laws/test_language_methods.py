"""What each method of the language game forgets, to the bit, in runs of the game itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.recipes.iterated_learning import NeuralIteratedLearning
from llf_ray.recipes.partial_balanced import PartialBalancedForgetting
from llf_ray.recipes.receiver_reset import ReceiverReset
from llf_ray.recipes.seeded_learning import SeededIteratedLearning
from llf_ray.run import prepare
from llf_ray.tasks.language_game import tiny
from llf_ray.train.folder import create
from llf_ray.train.state import Stores, load_stand, newest
from tests.local import Watch, carry, final, resumed, same_bits, settings, stopping_at, watched, whole

ADAM = Optim(name="adam", lr=0.01, weight_decay=0.0)
PER_EPOCH = 4


def game(recipe: Any) -> Any:
    return settings(recipe, task=tiny, optim=ADAM, engine=EngineSettings(batch=4))


def of(role: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if name.startswith(role)}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Roles with a tensor that differs."""
    return {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}


def counts(watch: Watch, step: int, role: str) -> list[float]:
    """Sums of squares of second moments; 0 for an optimizer without memory."""
    moments = watch.moments[step]
    return [sum(float(m.square().sum()) for m in moments[name].values()) for name in of(role, watch.weights[step])]


def test_a_new_receiver_leaves_the_sender_as_it_is_and_takes_both_optimizers_with_it(tmp_path: Path) -> None:
    seen = watched(game(ReceiverReset(generations=2, epochs=1)), tmp_path / "run")
    without = watched(game(ReceiverReset(generations=1, epochs=2)), tmp_path / "without")
    reset = PER_EPOCH
    for name, value in of("sender", seen.weights[reset]).items():
        assert torch.equal(value, without.weights[reset][name])
    for name, value in of("receiver", seen.weights[reset]).items():
        assert not torch.equal(value, without.weights[reset][name])
        assert float(value.abs().max()) <= 1 / math.sqrt(5)  # torch's own draw for 5 units and features
    assert not any(counts(seen, reset, "sender") + counts(seen, reset, "receiver"))
    assert all(counts(without, reset, "sender"))


def test_partial_forgetting_keeps_the_tenth_that_began_largest_and_the_moments(tmp_path: Path) -> None:
    seen = watched(game(PartialBalancedForgetting(generations=3, epochs=1)), tmp_path / "run")
    plain = watched(game(PartialBalancedForgetting(generations=1, epochs=3)), tmp_path / "plain")
    start, reset = seen.weights[0], PER_EPOCH
    for name, first in start.items():
        number = first.numel() - math.ceil(round(0.9 * first.numel(), 6))
        largest = first.abs().flatten().argsort(descending=True, stable=True)[:number]
        kept = torch.zeros(first.numel(), dtype=torch.bool)
        kept[largest] = True
        before, after = plain.weights[reset][name].flatten(), seen.weights[reset][name].flatten()
        assert torch.equal(after[kept], before[kept])
        assert bool((after[~kept] != before[~kept]).all())
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(seen.moments[reset][name][moment], plain.moments[reset][name][moment])
        again = seen.weights[2 * reset][name].flatten()
        assert bool((again[~kept] != after[~kept]).all())
    cleared = watched(game(PartialBalancedForgetting(generations=2, epochs=1, moments=True)), tmp_path / "cleared")
    name = "sender.seed_0.cell.weight_hh"
    zero = cleared.moments[reset][name]["exp_avg_sq"] == 0
    assert 0.85 < float(zero.double().mean()) < 1


def test_a_generation_of_iterated_learning_is_the_published_order_of_events(tmp_path: Path) -> None:
    recipe = NeuralIteratedLearning(generations=2, guide=2, interact=3, imitate=4)
    plan = prepare(game(recipe)).plan
    assert [(phase.name, phase.generation, steps) for phase, steps in zip(plan.phases, plan.steps, strict=True)] == [
        ("guide", 0, 2),
        ("interact", 0, 3),
        ("imitate", 1, 4),
        ("guide", 1, 2),
        ("interact", 1, 3),
    ]
    seen = watched(game(recipe), tmp_path / "run")
    weights = seen.weights
    assert moved(weights[0], weights[2]) == {"receiver"}
    assert moved(weights[2], weights[4]) == {"sender", "receiver"}
    assert moved(weights[4], weights[5]) == {"sender", "receiver"}  # both are new
    assert not any(counts(seen, 5, "sender") + counts(seen, 5, "receiver"))
    assert moved(weights[5], weights[9]) == {"sender"}
    assert moved(weights[9], weights[11]) == {"receiver"}
    # what the sender's optimizer learned in imitation goes on in the game
    assert counts(seen, 9, "sender") == counts(seen, 11, "sender")
    assert all(counts(seen, 9, "sender"))
    assert moved(weights[11], weights[13]) == {"sender", "receiver"}


@pytest.mark.parametrize("step", [3, 6, 8, 11])
def test_a_game_that_stops_anywhere_goes_on_to_the_same_weights(step: int, tmp_path: Path) -> None:
    """In the game, in imitation of stored transcripts, and behind both."""
    recipe = NeuralIteratedLearning(generations=2, guide=2, interact=3, imitate=4)
    expected = final(whole(game(recipe), tmp_path / "whole"))
    stopped = tmp_path / "stopped"
    assert carry(create(prepare(game(recipe)), stopped), adviser=stopping_at(step)).state == "stopped"
    assert resumed(stopped).state == "finished"
    assert same_bits(final(stopped), expected)


def test_seeded_students_go_back_and_learn_what_the_teacher_says(tmp_path: Path) -> None:
    recipe = SeededIteratedLearning(generations=2, seed=3, interact=4, imitate=5, listen=2, batch=2)
    folder = tmp_path / "run"
    seen = watched(game(recipe), folder)
    weights = seen.weights
    for name, value in weights[3].items():
        assert torch.equal(weights[7][name], value)  # back where the teacher set out
    assert moved(weights[7], weights[12]) == {"sender"}
    assert moved(weights[12], weights[13]) == {"receiver"}
    kept = newest(folder / "checkpoints")[0]
    assert kept is not None
    made = Stores(folder, load_stand(kept).stores)["messages"]
    assert made["messages"].shape == (4, 2, 2)
    assert made["objects"].shape == (4, 2)
