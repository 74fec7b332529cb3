"""What holds for every recipe: it is found by walking the package, and each file offers a ``tiny`` of itself."""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import llf_ray.recipes
from llf_ray.config import SettingError, check, from_plain, override, to_plain
from llf_ray.plan import Observed, Plan, Schedule, check_plan, compute, locate, rates, spans
from llf_ray.recipes.active_forgetting import ActiveForgetting
from llf_ray.recipes.back_translation import BackTranslation
from llf_ray.recipes.dense_sparse import DenseSparse
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.recipes.pruning import IterativePruning
from llf_ray.recipes.restarts import Restarts
from llf_ray.recipes.seal import Seal
from llf_ray.recipes.shrink_perturb import ShrinkAndPerturb
from llf_ray.run import prepare
from tests.local import final, same_bits, settings, whole
from tests.toy import Toy

MODULES: dict[str, ModuleType] = {
    info.name: importlib.import_module(f"llf_ray.recipes.{info.name}")
    for info in pkgutil.iter_modules(llf_ray.recipes.__path__)
    if info.name != "base"
}
TINY = {name: module.tiny for name, module in MODULES.items()}
ABLATIONS = {
    "seal reversed": Seal(reverse=True),
    "seal with descenders held": Seal(hold_descenders=True),
    "seal and later_layer": Seal(forget_later=True),
    "seal by loss": Seal(loss_ratio=2.0),
    "pruning, drawn anew": IterativePruning(control="reinit"),
    "pruning, at random places": IterativePruning(control="random"),
    "dense_sparse, alternating": DenseSparse(one_curve=True, last_rate=1.0, scope="global", sparsity=0.8),
    "later_layer reversed": LaterLayer(reverse=True),
    "later_layer, later held": LaterLayer(hold="later"),
    "later_layer, early held": LaterLayer(hold="early"),
    "later_layer, one draw": LaterLayer(fixed=True, repeat_order=True),
    "back_translation, once": BackTranslation(iterated=False),
    "back_translation, later forgotten": BackTranslation(forget="later"),
    "back_translation, warm": BackTranslation(forget="nothing"),
}


def compiled(recipe: Any, per_epoch: int = 40) -> Plan:
    return compute(recipe.plan(), num_items=per_epoch * 50, batch=50)


def on_the_toy(recipe: Any) -> Any:
    """The toy's layers have other names."""
    names = {"threshold": "body", "head": "head", "module": "head", "blocks": ("stem", "head")}
    names |= {"sender": "body", "receiver": "head"}
    return replace(recipe, **{key: name for key, name in names.items() if hasattr(recipe, key)})


TOY = Toy(dropout=True, normalised=True)


@pytest.mark.parametrize("name", MODULES)
def test_a_recipe_is_settings_whose_plan_is_pure(name: str) -> None:
    recipe = TINY[name]
    check(recipe)
    assert recipe.plan() == recipe.plan()
    assert hash(recipe.plan()) == hash(recipe.plan())
    assert from_plain(json.loads(json.dumps(to_plain(recipe)))) == recipe
    check_plan(compiled(recipe))
    assert MODULES[name].__all__
    assert "arXiv" in (MODULES[name].__doc__ or "") + (type(recipe).__doc__ or "")


@pytest.mark.parametrize("name", MODULES)
def test_a_tiny_recipe_trains_to_its_end(name: str, tmp_path: Path) -> None:
    config = settings(on_the_toy(TINY[name]), task=TOY)
    one, other = whole(config, tmp_path / "one"), whole(config, tmp_path / "other")
    assert same_bits(final(one), final(other))


@pytest.mark.parametrize("per_epoch", [1, 3, 7, 40])
@pytest.mark.parametrize(("generations", "epochs"), [(1, 2), (4, 25), (3, 2.5), (5, 1.4)])
def test_equal_generations_and_epochs_are_an_equal_budget(per_epoch: int, generations: int, epochs: float) -> None:
    """To the step, also where phases end inside an epoch: else a comparison would not be one."""
    usual = {"generations": generations, "epochs": epochs, "warmup_epochs": 0.5}
    recipes: list[Any] = [kind(**usual) for kind in (Long, Restarts, LaterLayer)]
    if (epochs - 1) * per_epoch >= 1:
        recipes.append(Seal(ascent_epochs=1.0, **usual))
    totals = {type(recipe).__name__: compiled(recipe, per_epoch).total for recipe in recipes}
    assert len(set(totals.values())) == 1, totals
    assert abs(totals["Long"] - generations * epochs * per_epoch) <= 0.5


UNEQUAL = ("long", "bunched")  # in one piece, or of unequal pieces on purpose


@pytest.mark.parametrize("name", [name for name in TINY if name not in UNEQUAL and hasattr(TINY[name], "epochs")])
def test_generations_of_every_recipe_end_at_the_same_steps(name: str) -> None:
    """So that a figure may compare them by generation."""
    ends: dict[int, int] = {}
    plan = compiled(replace(TINY[name], generations=4, epochs=2.5), per_epoch=7)
    for phase, (_, stop) in zip(plan.phases, spans(plan), strict=True):
        ends[phase.generation] = stop
    assert list(ends.values()) == [18, 35, 53, 70]


@pytest.mark.parametrize("recipe", ABLATIONS.values(), ids=ABLATIONS.keys())
def test_an_ablation_is_a_plan_of_the_same_budget(recipe: Any) -> None:
    assert compiled(recipe).budget == compiled(Restarts()).total
    prepared = prepare(settings(on_the_toy(recipe)))
    assert prepared.plan.generations == 4


def test_ablations_are_different_plans() -> None:
    recipes = [*ABLATIONS.values(), Seal(), LaterLayer(), BackTranslation(), Restarts(), Long()]
    assert len({compiled(recipe).fingerprint for recipe in recipes}) == len(recipes)


@pytest.mark.parametrize("rewind", [0, 1.25])
def test_levels_of_a_control_and_of_the_ticket_beside_it_are_as_long_as_the_ticket_runs(rewind: float) -> None:
    """To the step, also where levels end inside an epoch: else its masks would be others."""
    recipe = IterativePruning(generations=6, epochs=80 / 6, rewind_epochs=rewind)
    own = compiled(recipe, per_epoch=20)
    lengths = {phase.generation: steps for phase, steps in zip(own.phases, own.steps, strict=True) if phase.generation}
    assert rewind or len(set(lengths.values())) == 2, "of two lengths"
    control = compiled(replace(recipe, control="random"), per_epoch=20)
    assert control.budget == own.total
    found: dict[int, list[int]] = {}
    for phase, steps in zip(control.phases, control.steps, strict=True):
        if phase.generation:
            found.setdefault(phase.generation, []).append(steps)
    assert found == {level: [steps] * (2 if level < 5 else 1) for level, steps in lengths.items()}


@pytest.mark.parametrize(("rewind", "k"), [(1.5, 527), (0.5, 176), (500 / 351, 500)])
def test_a_rewound_level_is_the_first_levels_rest_to_the_step(rewind: float, k: int) -> None:
    """The weights of step k, its rate, its place in the data, and as many steps; also at half an odd epoch."""
    plan = compiled(IterativePruning(generations=4, epochs=4, rewind_epochs=rewind), per_epoch=351)
    assert plan.steps == (k, *[4 * 351 - k] * 4)
    first = locate(plan, k)
    assert (first.index, first.stream) == (1, k)
    for index, (start, stop) in enumerate(spans(plan)):
        if index > 1:
            for step in (0, 1, stop - start - 1):
                beside, here = locate(plan, k + step), locate(plan, start + step)
                assert here.stream == beside.stream
                assert rates(plan, here) == rates(plan, beside)


@pytest.mark.parametrize("recipe", [Seal(threshold="bodi"), LaterLayer(threshold="bodi"), Seal(threshold=9)])
def test_a_threshold_that_the_model_does_not_have_is_found_before_anything_starts(recipe: Any) -> None:
    with pytest.raises(SettingError) as caught:
        prepare(settings(recipe))
    expected = "layer 9 does not exist: the model has 3" if recipe.threshold == 9 else "did you mean 'body'?"
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe.generations": "0"}, "recipe.generations = 0: must be >= 1"),
        ({"recipe.epochs": "0"}, "recipe.epochs = 0.0: must be > 0"),
        ({"recipe.warmup_epochs": "9"}, "recipe.warmup_epochs = 9.0: must be >= 0 and <= 3"),
        ({"recipe.ascent_epochs": "3"}, "recipe.ascent_epochs = 3.0: must be < epochs = 3"),
        ({"recipe.ascent_epochs": "0"}, "recipe.ascent_epochs = 0.0: must be > 0"),
        ({"recipe.ascent_rate": "-0.1"}, "recipe.ascent_rate = -0.1: must be > 0"),
        ({"recipe.loss_ratio": "1"}, "recipe.loss_ratio = 1.0: must be > 1"),
    ],
)
def test_an_impossible_recipe_is_refused_by_its_dotted_key(changes: dict[str, str], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        override(settings(Seal(epochs=3, ascent_epochs=1)), changes)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DenseSparse(one_curve=True), "last_rate = 0.1: must be 1 with one_curve = True"),
        (lambda: ShrinkAndPerturb(shrink=2), "shrink = 2: must be >= 0 and <= 1"),
        (lambda: ActiveForgetting(epochs=None), "every_steps = None: a generation has epochs or every_steps, one of"),
        (lambda: ActiveForgetting(every_steps=1000), "every_steps = 1000: a generation has epochs or every_steps"),
        (lambda: ActiveForgetting(epochs=None, every_steps=0), "every_steps = 0: must be >= 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(make: Any, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    assert str(caught.value).startswith(said)


def test_every_so_many_steps_is_an_active_forgetting_in_the_papers_units() -> None:
    plan = compiled(ActiveForgetting(generations=5, epochs=None, every_steps=1000))
    assert plan.steps == (1000,) * 5
    assert [phase.entry != () for phase in plan.phases] == [False, True, True, True, True]


def test_an_ascent_shorter_than_a_step_is_an_error_and_not_left_out() -> None:
    recipe = Seal(generations=2, epochs=3, ascent_epochs=0.01, threshold="body")
    with pytest.raises(SettingError, match=r"phase 'ascent' of generation 1: 0\.01 epochs are less than one optimizer"):
        prepare(settings(recipe))


def test_a_longer_plan_of_a_recipe_begins_as_the_shorter_one() -> None:
    """What `--from RUN@generation` with more generations relies on."""
    for recipe in (Restarts(epochs=2.5), LaterLayer(epochs=2.5), Seal(epochs=2.5, ascent_epochs=0.8)):
        short, long = (compiled(replace(recipe, generations=n), per_epoch=3) for n in (3, 5))
        assert long.phases[: len(short.phases)] == short.phases
        assert long.steps[: len(short.steps)] == short.steps


def test_the_first_generation_of_every_iterative_recipe_is_plain_training() -> None:
    for recipe in (Restarts(), LaterLayer(), Seal(), *ABLATIONS.values()):
        others = (BackTranslation, IterativePruning, DenseSparse)  # an end with data or masks, a curve over the run
        if getattr(recipe, "repeat_order", False) or isinstance(recipe, others):
            continue
        first = recipe.plan()[0]
        assert (first.generation, first.entry, first.rules, first.optimizer) == (0, (), (), "keep")
        assert first == replace(Restarts().plan()[0], name=first.name)


def test_published_shapes() -> None:
    """Ascent without decay at -S for k epochs, a new optimizer at its start and at its end, one cosine over both."""
    first, ascent, descent = Seal(
        generations=2, epochs=160, warmup_epochs=20, ascent_epochs=40, ascent_rate=0.01
    ).plan()
    assert [p.length.epochs for p in (first, ascent, descent)] == [160, 40, 120]
    assert (ascent.optimizer, descent.optimizer) == ("rebuild", "rebuild")
    assert ascent.directions == {"early": -0.01, "rest": 1.0}
    assert ascent.rules[0].weight_decay == 0.0
    assert descent.rules == ()
    assert ascent.curve == descent.curve == first.curve
    assert ascent.curve.over == "generation"
    reversed_ = Seal(reverse=True).plan()[1]
    assert reversed_.directions == {"later": -0.03, "rest": 1.0}
    held = Seal(hold_descenders=True).plan()[1]
    assert held.directions == {"early": -0.03, "later": 0.0, "rest": 1.0}
    relearn = LaterLayer(hold="later").plan()[1]
    assert relearn.directions == {"later, head apart": 0.0, "rest": 1.0}
    assert LaterLayer(hold="early").plan()[1].directions == {"early": 0.0, "rest": 1.0}
    assert len(Seal(generations=1).plan()) == 1


def test_a_cut_ascent_hands_its_steps_to_the_descent() -> None:
    plan = compiled(Seal(generations=2, epochs=10, ascent_epochs=5, loss_ratio=1.5), per_epoch=4)
    schedule = Schedule(plan)
    cut = schedule.decide(48, Observed(loss=3.0, accuracy=0.1, reference_loss=2.0))
    assert cut is not None
    schedule.cuts.append(cut)
    assert spans(plan, schedule.cuts) == [(0, 40), (40, 48), (48, 80)]
    assert schedule.decide(52, Observed(loss=3.0, accuracy=0.1, reference_loss=2.0)) is None
