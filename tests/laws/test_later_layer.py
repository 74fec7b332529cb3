"""What later-layer forgetting and its published ablations do to weights and moments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llf_ray.forget.groups import Select
from llf_ray.forget.masks import Bernoulli
from llf_ray.forget.operations import Forget
from llf_ray.plan import Length, Phase
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.restarts import Restarts
from tests.local import ADAMW, PER_EPOCH, Watch, changed, final, journal, same_bits, settings, watched, whole

LATER = LaterLayer(generations=3, epochs=1, warmup_epochs=0, threshold="body", head="head")
BODY, HEAD = {"body.0.weight"}, {"head.weight"}


def redrawn(folder: Path, generation: int) -> set[str]:
    """What the operations at the start of a generation changed."""
    (operation,) = [r for r in journal(folder, "operation") if r["generation"] == generation]
    return {touched["name"] for touched in operation["touched"] if touched["entries"]}


def test_each_generation_draws_the_later_weights_anew(tmp_path: Path) -> None:
    watch = watched(settings(LATER), tmp_path / "run")
    first, second = (watch.weights[PER_EPOCH * g] for g in (1, 2))
    assert redrawn(tmp_path / "run", 1) == redrawn(tmp_path / "run", 2) == BODY | HEAD
    assert not torch.equal(first["head.weight"], second["head.weight"])
    assert not any(watch.moments[PER_EPOCH].values()), "under a new optimizer"


def test_forgetting_from_the_first_layer_on_leaves_only_biases_and_normalisers(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    watch = watched(settings(replace(LATER, threshold="stem")), folder)
    assert redrawn(folder, 1) == {"stem.0.weight"} | BODY | HEAD
    restarts = watched(settings(Restarts(generations=3, epochs=1, warmup_epochs=0)), tmp_path / "restarts")
    assert changed(watch.weights[PER_EPOCH], restarts.weights[PER_EPOCH]) == {"stem.0.weight"} | BODY | HEAD


def test_reversed_the_early_weights_are_drawn_anew(tmp_path: Path) -> None:
    whole(settings(replace(LATER, reverse=True)), tmp_path / "run")
    assert redrawn(tmp_path / "run", 1) == {"stem.0.weight"}


def test_a_fixed_draw_is_the_same_in_every_generation(tmp_path: Path) -> None:
    watch = watched(settings(replace(LATER, fixed=True)), tmp_path / "run")
    first, second = (watch.weights[PER_EPOCH * g] for g in (1, 2))
    for name in BODY | HEAD:
        assert torch.equal(first[name], second[name])


def test_held_layers_stay_where_the_redraw_left_them_and_the_head_always_learns(tmp_path: Path) -> None:
    parameters = {"stem.0.weight", "stem.1.weight", "stem.1.bias", "head.weight", "head.bias"}
    body = {"body.0.weight", "body.1.weight", "body.1.bias"}
    for hold, moving in (("later", parameters), ("early", {"head.weight", "head.bias"} | body)):
        watch = watched(settings(replace(LATER, hold=hold)), tmp_path / hold)
        start, end = watch.weights[PER_EPOCH], watch.weights[2 * PER_EPOCH - 1]
        assert {name for name in changed(start, end) if "running" not in name and "num_" not in name} == moving
        assert changed(watch.weights[0], watch.weights[1]) >= parameters | body, (
            "the first generation is plain training"
        )


def test_runs_of_two_seeds_draw_different_values(tmp_path: Path) -> None:
    one, other = (whole(settings(LATER, seed=seed), tmp_path / str(seed)) for seed in (0, 1))
    assert not same_bits(final(one), final(other))


# ------------------------------------------------------------------------------- resets under an optimizer that lives


def kept_optimizer(*operations: Any) -> list[Phase]:
    return [
        Phase(name="p", generation=g, length=Length(epochs=1), entry=operations if g else (), optimizer="keep")
        for g in range(2)
    ]


def test_a_reset_restarts_moments_and_step_counts_of_what_it_drew_and_of_nothing_else(tmp_path: Path) -> None:
    counts: list[dict[str, float]] = []

    class Counting(Watch):
        def __call__(self, engine: Any) -> None:
            super().__call__(engine)
            inner = engine.step

            def step(*args: Any) -> Any:
                counts.append({name: engine.counts(name).get("step", 0.0) for name in engine.names})
                return inner(*args)

            engine.step = step

    watch, head = Counting(), Forget(select=Select(since="head", name="head"))
    whole(settings(kept_optimizer(head), optim=ADAMW), tmp_path / "run", watch=watch)
    after = counts[PER_EPOCH]
    assert {name for name, count in after.items() if count == 0} == {"head.weight", "head.bias"}
    assert after["stem.0.weight"] == PER_EPOCH
    assert {name for name, found in watch.moments[PER_EPOCH].items() if not found} == {"head.weight", "head.bias"}


def test_a_partial_reset_clears_the_moments_of_its_entries_only(tmp_path: Path) -> None:
    forget = Forget(keep=Bernoulli(keep=0.5))
    watch = watched(settings(kept_optimizer(forget), optim=ADAMW), tmp_path / "cleared")
    left = watched(settings(kept_optimizer(replace(forget, moments=False)), optim=ADAMW), tmp_path / "left")
    for name in ("stem.0.weight", "body.0.weight", "head.weight"):
        cleared = watch.moments[PER_EPOCH][name]["exp_avg_sq"] == 0
        assert 0 < int(cleared.sum()) < cleared.numel()
        before = watch.moments[PER_EPOCH - 1][name]["exp_avg_sq"]
        assert bool((before > 0).any())
        kept = left.moments[PER_EPOCH][name]["exp_avg_sq"]
        assert torch.equal(watch.moments[PER_EPOCH][name]["exp_avg_sq"][~cleared], kept[~cleared])
        assert same_bits(watch.weights[PER_EPOCH], left.weights[PER_EPOCH])


def test_weights_and_their_average_take_the_same_draw(tmp_path: Path) -> None:
    """With an average that has never moved both are the same in front of the next step."""
    forget = Forget(select=Select(since="head"))
    optim = replace(ADAMW, averaged=0.5)
    averages: list[dict[str, torch.Tensor]] = []

    def watch(engine: Any) -> None:
        inner = engine.step

        def step(*args: Any) -> Any:
            averages.append({name: engine.read(name, average=True) - engine.read(name) for name in engine.names})
            return inner(*args)

        engine.step = step

    whole(settings(kept_optimizer(forget), optim=optim), tmp_path / "run", watch=watch)
    assert not averages[PER_EPOCH]["head.weight"].any()
    assert averages[PER_EPOCH]["body.0.weight"].any()
