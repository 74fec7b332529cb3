"""What masks leave is counted before a run as they leave it in the run; what leaves nothing is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llf_ray.config import SettingError
from llf_ray.forget.edit import View
from llf_ray.forget.groups import Select, layout
from llf_ray.forget.left import check_left, shares_kept
from llf_ray.forget.masks import Bernoulli, Everything, KernelBlock, Magnitude, MaskSource, Nothing, Saved, Shuffled
from llf_ray.forget.operations import WEIGHTS, Forget, KeepMask
from llf_ray.plan import Length, Phase
from llf_ray.recipes.dense_sparse import DenseSparse
from llf_ray.recipes.knowledge_evolution import KnowledgeEvolution
from llf_ray.recipes.pruning import IterativePruning
from llf_ray.run import prepare
from tests.local import settings
from tests.toy import Toy

SLOTS = layout(Toy().initial(0))
SIZES = {"stem.0.weight": 45, "body.0.weight": 315, "head.weight": 21}


def phase(generation: int, *operations: Any, hold: tuple[str, ...] = ()) -> Phase:
    return Phase(name="p", generation=generation, length=Length(epochs=1), entry=operations, hold=hold)


def level_that_empties(scope: Any, rate: float, smallest: int) -> int:
    """By hand: at each level the number that goes is rounded up, so the last weight goes some day."""
    left, level = smallest, 0
    while left >= 1:
        left -= -int(-(round(rate * left, 6)) // 1)
        level += 1
    return level


@pytest.mark.parametrize(("scope", "smallest"), [("tensor", 21), ("global", 381)])
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_pruning_is_refused_at_the_level_that_leaves_nothing(scope: Any, smallest: int, rate: float) -> None:
    first = level_that_empties(scope, rate, smallest)
    prepare(settings(IterativePruning(generations=first, epochs=1, warmup_epochs=0, rate=rate, scope=scope)))
    recipe = IterativePruning(generations=first + 1, epochs=1, warmup_epochs=0, rate=rate, scope=scope)
    # the mask is made at the end of the generation before the one that it empties
    what = r"leaves no weight of '[a-z0-9.]+weight'" if scope == "tensor" else "keeps none of 381 weights"
    with pytest.raises(SettingError, match=f"of generation {first - 1}: 'mask alive: .*{what}.*; keep a larger"):
        prepare(settings(recipe))


def test_counts_are_those_that_the_masks_have() -> None:
    """Level by level, against masks of real weights."""
    values = Toy().initial(0).state_dict()
    slots = [slot for slot in SLOTS if slot.kind == "weight"]
    stores: dict[str, Any] = {"m": {slot.name: torch.ones(slot.shape, dtype=torch.bool) for slot in slots}}
    source = Magnitude(keep=0.8, within="m")
    for level in range(1, 40):
        view = View(slots=SLOTS, values=values, fresh=dict, stores=stores, seed=0, key="", generation=level)
        stores["m"] = source.masks(view, slots)
        empty = any(not bool(mask.any()) for mask in stores["m"].values())
        plan = [phase(0, KeepMask(store="m", source=Everything()))]
        plan += [phase(g, KeepMask(store="m", source=source), hold=("m",)) for g in range(1, level + 1)]
        if empty:
            with pytest.raises(SettingError, match=f"generation {level}: .* leaves no weight of 'head.weight'"):
                check_left(plan, SLOTS)
            return
        check_left(plan, SLOTS)
    raise AssertionError("never empty")


@pytest.mark.parametrize(
    "source", [Bernoulli(keep=0.0), Bernoulli(keep=0.002), Magnitude(keep=0.0), Magnitude(keep=0.001, scope="global")]
)
def test_a_split_that_keeps_nothing_is_refused(source: MaskSource) -> None:
    for operation in (Forget(keep=source), KeepMask(store="m", source=source)):
        with pytest.raises(
            SettingError, match=r"phase 'p' of generation 0: .* keeps none of 381 weights; keep a larger"
        ):
            check_left([phase(0, operation)], SLOTS)


def test_what_keeps_little_or_says_that_it_keeps_nothing_is_none_of_it() -> None:
    check_left([phase(0, Forget(keep=Bernoulli(keep=0.01)), Forget(), Forget(keep=Nothing()))], SLOTS)
    check_left([phase(0, KeepMask(store="m", source=KernelBlock(share=1e-9)), hold=("m",))], SLOTS)
    # a tenth of every tensor, as partial balanced forgetting keeps it: small ones keep nothing, and none is held
    check_left([phase(0, KeepMask(store="m", source=Magnitude(keep=0.1), select=Select()))], SLOTS)
    check_left([phase(0, KeepMask(store="m", source=Everything())), phase(1, Forget(keep=Saved(name="m")))], SLOTS)


def test_a_held_mask_of_nothing_and_its_copies_are_refused() -> None:
    nothing = KeepMask(store="m", source=Nothing(), select=WEIGHTS)
    check_left([phase(0, nothing)], SLOTS)
    with pytest.raises(SettingError, match="keeps none of 381 weights"):
        check_left([phase(0, nothing, hold=("m",))], SLOTS)
    small = KeepMask(store="m", source=Magnitude(keep=0.04))
    with pytest.raises(
        SettingError, match=r"'mask n: keep mask m, shuffled of weights' leaves no weight of 'head\.weight'"
    ):
        check_left(
            [phase(0, small), phase(1, KeepMask(store="n", source=Shuffled(of=Saved(name="m"))), hold=("n",))], SLOTS
        )


@pytest.mark.parametrize(
    ("recipe", "values", "message"),
    [
        (IterativePruning, {"rate": 1.0}, "rate = 1.0: must be .* < 1"),
        (DenseSparse, {"sparsity": 1.0}, "sparsity = 1.0: must be .* < 1"),
        (KnowledgeEvolution, {"keep": 0.0}, "keep = 0.0: must be > 0"),
    ],
)
def test_shares_of_nothing_and_of_everything_are_refused_by_their_recipes(
    recipe: Any, values: dict[str, float], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        recipe(**values)


def test_sizes_are_the_toys() -> None:
    assert {slot.name: slot.size for slot in SLOTS if slot.kind == "weight"} == SIZES


def test_shares_that_are_kept_are_those_of_the_masks_of_a_run() -> None:
    """A fixed share, a share of a share, and of nothing no word."""
    recipe = KnowledgeEvolution(generations=3, epochs=1, warmup_epochs=0, split="weights", keep=0.8, slim=False)
    shares = shares_kept(prepare(settings(recipe)).plan.phases, SLOTS)
    (redrawn,) = [values for operation, values in shares.items() if isinstance(operation, Forget)]
    assert redrawn == pytest.approx([0.8, 0.8])
    pruning = IterativePruning(generations=3, epochs=1, warmup_epochs=0, rate=0.5)
    plan = prepare(settings(pruning)).plan
    shares = {operation.label: values for operation, values in shares_kept(plan.phases, SLOTS).items()}
    assert shares["mask alive: keep 50% largest per network of weights"] == pytest.approx([190 / 381, 95 / 381])
    assert not any(label.startswith("zero") for label in shares), "of tensors without a mask all is kept"
