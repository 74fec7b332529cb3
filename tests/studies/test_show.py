"""What `show` says of a plan, against the plan itself, step by step."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from llf_ray.data import FashionOnPhotographs
from llf_ray.forget.groups import Select
from llf_ray.forget.masks import Magnitude
from llf_ray.forget.operations import Forget, KeepMask, Snapshot
from llf_ray.nn.cropr import Cropping, Steady
from llf_ray.plan import Curve, Cut, Length, Phase, Rule, Until, locate, rates, spans
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.recipes.restarts import Restarts
from llf_ray.recipes.seal import Seal
from llf_ray.run import prepare
from llf_ray.studies.show import check_budgets, deeds, markdown_table, picture, price_of, show, stretches
from llf_ray.tasks.classification import CroppedTransformer, TimmModel, tiny
from tests.local import SGD, settings

RECIPES = {
    "long": Long(generations=3, epochs=4, warmup_epochs=1),
    "step": Long(generations=3, epochs=4, warmup_epochs=0.3, shape="step", drops=(0.5, 0.75)),
    "restarts": Restarts(generations=3, epochs=4, warmup_epochs=0),
    "seal": Seal(
        generations=4,
        epochs=6,
        ascent_epochs=2,
        ascent_rate=0.25,
        warmup_epochs=3,
        threshold="body",
        hold_descenders=True,
    ),
    "later_layer": LaterLayer(generations=3, epochs=4, warmup_epochs=1, threshold="body"),
}


def printed(prepared, width=170, **how):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(show(prepared, **how))
    return console.export_text()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_low_peak_and_end_are_those_of_every_step(recipe):
    prepared = prepare(settings(recipe))
    plan = prepared.plan
    for stretch, (start, stop) in zip(stretches(prepared), spans(plan), strict=True):
        assert (stretch.start, stretch.stop) == (start, stop)
        for label, found in stretch.rates.items():
            factor = prepared.config.optim.lr * stretch.phase.directions[label]
            values = [factor * rates(plan, locate(plan, step))[label] for step in range(start, stop)]
            assert found == pytest.approx((min(values, key=abs), max(values, key=abs), values[-1]))


def test_a_rule_of_its_own_curve_and_rate_is_shown_as_it_acts():
    phase = Phase(
        name="train",
        generation=0,
        length=Length(epochs=5),
        rules=(
            Rule(
                select=Select(modules=("head",)),
                lr=3.0,
                curve=Curve(shape="constant", over="phase", warmup=Length(steps=4)),
            ),
        ),
    )
    (stretch,) = stretches(prepare(settings([phase])))
    assert stretch.rates["head"] == pytest.approx((3 * 0.05 / 4, 0.15, 0.15))
    assert stretch.rates["rest"][1] == pytest.approx(0.05)


def test_generations_that_do_the_same_are_told_once():
    prepared = prepare(settings(RECIPES["seal"]))
    text = printed(prepared)
    assert "2-3   as generation 1" in text
    assert "2 x 24 steps" in text
    assert "48 - 96" in text
    assert "as generation" not in printed(prepared, everything=True)


def test_generations_that_differ_are_all_told():
    one = Phase(name="train", generation=0, length=Length(steps=5))
    plan = [
        one,
        replace(one, generation=1),
        replace(one, generation=2, length=Length(steps=6)),
        replace(one, generation=3),
    ]
    text = printed(prepare(settings(plan)))
    assert "1     as generation 0" in text
    assert "10 - 16" in text
    assert "16 - 21" in text


def test_a_group_without_members_is_not_told():
    """The two rules of this ascent cover every parameter: no "rest" is left to have a rate."""
    (_, ascent, *_) = stretches(prepare(settings(RECIPES["seal"])))
    assert list(ascent.rates) == ["early", "later"]
    assert [lane.label for lane in picture(prepare(settings(RECIPES["seal"])), "x").lanes] == ["early", "later"]


def test_operations_are_told_with_what_they_touch():
    mask = KeepMask(store="m", source=Magnitude(keep=0.5))
    prune = Forget(keep=mask.source, fill="zero")
    phases = [
        Phase(name="a", generation=0, length=Length(steps=4), entry=(Snapshot(store="s"),), exit=(mask,)),
        Phase(name="b", generation=1, length=Length(steps=4), entry=(prune,), hold=("m",)),
        Phase(name="c", generation=2, length=Length(steps=4), entry=(prune,)),
    ]
    prepared = prepare(settings(phases))
    snapshot, made, pruned = deeds(prepared)
    assert [snapshot.places, made.places] == [((0, "entry", 0),), ((0, "exit", 4),)]
    assert pruned.places == ((1, "entry", 4), (2, "entry", 8))
    assert not snapshot.slots
    assert not made.slots
    assert pruned.entries == sum(slot.size for slot in prepared.slots if slot.kind == "weight")
    text = printed(prepared)
    assert "held at zero: m" in text
    assert text.count("no weight changes") == 2


def test_masks_that_a_phase_holds_are_drawn():
    mask = KeepMask(store="m", source=Magnitude(keep=0.5))
    train = Phase(name="a", generation=0, length=Length(steps=4), exit=(mask,))
    held = replace(train, name="b", exit=(), hold=("m",))
    phases = [train, held, replace(train, name="c", exit=()), replace(held, name="d")]
    (lane,) = picture(prepare(settings(phases)), "x").held
    assert lane.label == "m"
    assert [span[:2] for span in lane.spans] == [(4, 8), (12, 16)]


def test_a_run_s_phases_end_where_they_were_cut():
    marks = Phase(name="b", generation=1, length=Length(steps=6), entry=(Snapshot(store="s"),))
    phases = [Phase(name="a", generation=0, length=Length(steps=8)), marks]
    whole, cut = (picture(prepare(settings(phases)), "x", cuts) for cuts in ((), [Cut(phase=0, step=5)]))
    assert [(band.start, band.stop) for band in cut.bands] == [(0, 5), (5, 11)]
    assert cut.total == 11
    assert cut.marks[0].steps == (5,)
    assert cut.lines[0].steps == tuple(range(11))
    assert cut.lines[0].values[:5] == whole.lines[0].values[:5], "what was done before the cut is what was planned"
    assert cut.lines[0].values[5:] == whole.lines[0].values[8:]


def test_a_phase_that_may_end_early_is_drawn_so():
    until = Until(measure="loss", at_least=1.3, relative=True)
    phases = [Phase(name="a", generation=0, length=Length(steps=8), until=until)]
    assert [band.until for band in picture(prepare(settings(phases)), "x").bands] == ["loss >= 1.3 x before"]


def test_with_layer_decay_the_picture_says_whose_rate_it_draws():
    decayed = prepare(settings(RECIPES["long"], optim=replace(SGD, layer_decay=0.5)))
    lowest = min(group.factor for group in decayed.groups)
    assert lowest < 1
    assert picture(decayed, "x").rates_note == f"rate of the last layer; layers take x {lowest:.2g} to x 1 of it"
    assert not picture(prepare(settings(RECIPES["long"])), "x").rates_note


def test_epochs_are_told_in_few_digits():
    phases = [
        Phase(name="a", generation=0, length=Length(steps=667)),
        Phase(name="b", generation=0, length=Length(steps=1)),
    ]
    text = printed(prepare(settings(phases)))
    assert "668 optimizer steps = 167 epochs" in text
    assert "166.8" in text
    assert "166.75" not in text
    assert "0.25" in text


def test_lines_have_no_blanks_at_their_end():
    assert not any(line.endswith(" ") for line in printed(prepare(settings(RECIPES["seal"]))).splitlines())


@pytest.mark.parametrize("width", [80, 110, 200])
def test_no_number_is_lost_on_a_narrow_screen(width):
    text = printed(prepare(settings(RECIPES["later_layer"])), width=width)
    assert "…" not in text
    assert "48" in text


def test_unequal_budgets_are_named():
    arms = {name: prepare(settings(RECIPES[name])) for name in ("long", "restarts", "later_layer")}
    assert check_budgets(arms) is None
    arms["short"] = prepare(settings(Long(generations=1, epochs=4, warmup_epochs=1)))
    assert check_budgets(arms) == (
        "unequal budgets of optimizer steps: long 48, restarts 48, later_layer 48, short 16; "
        "change generations, epochs or ascent_epochs of the recipes until all agree"
    )


def test_a_table_in_markdown_has_words_left_and_numbers_right() -> None:
    lines = markdown_table(("arm", "why", "test"), [("long", "b", "0.5"), ("seal", "d", "0.6")], left=2)
    assert lines == ["| arm | why | test |", "|---|---|---:|", "| long | b | 0.5 |", "| seal | d | 0.6 |"]


def test_a_model_that_loses_tokens_says_how_many_its_blocks_work_on():
    cropping = Cropping(schedule=Steady(rate=8), fusion=True)
    options = {"img_size": 36, "patch_size": 6, "depth": 4, "embed_dim": 32, "num_heads": 2}
    model = CroppedTransformer(model=TimmModel(name="vit_tiny_patch16_224", options=options), cropping=cropping)
    task = replace(tiny, model=model, data=FashionOnPhotographs(num_train=40, num_held_out=20))
    price = price_of(task)
    assert price.lengths == (37, 28, 20, 37)
    assert price.gone == 1 - 19 / 36
    assert price.pruned.total < price.dense.total
    assert price_of(tiny) is None
    recipe = Long(generations=1, epochs=1, warmup_epochs=0)
    words = printed(prepare(settings(recipe, task=task)), width=400)
    assert "37, 28, 20, 37 in its blocks" in words
    assert f"with attention {price.pruned.total / price.dense.total:.0%}" in words
    dense = replace(task, model=replace(model, cropping=replace(cropping, schedule=Steady(rate=0))))
    assert "in its blocks" not in printed(
        prepare(settings(Long(generations=1, epochs=1, warmup_epochs=0), task=dense)), width=400
    )
