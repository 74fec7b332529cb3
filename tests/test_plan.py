"""The one clock: where a run stands is a pure function of plan, cuts and step."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llf_ray.config import SettingError, from_plain, to_plain
from llf_ray.forget.groups import Select
from llf_ray.forget.masks import Magnitude, Saved
from llf_ray.forget.operations import Forget, KeepMask, Rescale, Snapshot
from llf_ray.journal import read
from llf_ray.plan import (
    Curve,
    Cut,
    DataRule,
    Generate,
    Length,
    Objective,
    Observed,
    Phase,
    Plan,
    Rule,
    Schedule,
    Until,
    compute,
    curve_value,
    is_named,
    locate,
    operations_of,
    rates,
    selections_of,
    spans,
)
from llf_ray.train.adviser import CUT_REQUEST, CUTS, Adviser, read_cuts

Answers = list[Any]
LAW = settings(max_examples=25, deadline=None)


def phase(steps: int | None = None, *, epochs: float | None = None, **changes: Any) -> Phase:
    """A phase of so many steps, called after its place."""
    defaults = {"name": "p", "generation": 0, "length": Length(steps=steps, epochs=epochs)}
    return Phase(**{**defaults, **changes})


def plan_of(*lengths: int, **changes: Any) -> Plan:
    """Phases of one generation with these lengths in steps, four steps an epoch."""
    phases = [phase(length, name=f"p{place}", **changes) for place, length in enumerate(lengths)]
    return compute(phases, num_items=48, batch=12)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any phases: lengths of zero, parts of epochs, shares of the data, generations, fills."""
    phases, generation = [], 0
    for place in range(draw(st.integers(1, 6))):
        generation += draw(st.booleans()) if place else 0
        length = draw(
            st.builds(Length, steps=st.integers(0, 9)) | st.builds(Length, epochs=st.sampled_from([0, 1, 1.25, 0.5, 2]))
        )
        share = draw(st.sampled_from([1.0, 0.5]))
        fill, data = draw(st.booleans()), DataRule(share=share)
        until = draw(st.sampled_from([None, Until(at_least=9)]))
        phases.append(Phase(name=f"p{place}", generation=generation, length=length, fill=fill, data=data, until=until))
    phases.append(phase(draw(st.integers(1, 5)), name="last", generation=generation))
    return compute(phases, num_items=48, batch=12)


def walked(plan: Plan, decisions: Sequence[bool] = ()) -> tuple[Schedule, Answers]:
    """What rank 0 hears from start to end when a person asks for a cut at some of the named steps."""
    schedule, answers, step, wishes = Schedule(plan), [], 0, list(decisions)
    while True:
        cut = schedule.decide(step, None, asked=bool(wishes and wishes.pop(0)))
        if cut is not None:
            schedule.cuts.append(cut)
        answer = schedule.at(step)
        answers.append(answer)
        if answer.position.finished:
            return schedule, answers
        assert answer.until > step
        step = answer.until


DECISIONS = st.lists(st.booleans(), max_size=20)


# ---------------------------------------------------------------------------------------------------------------- spans


@LAW
@given(plans(), st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 60)), max_size=4))
def test_phases_tile_the_run_whatever_is_cut(plan: Plan, cuts: list[tuple[int, int]]) -> None:
    every = spans(plan, [Cut(phase=index, step=step) for index, step in cuts])
    assert every[0][0] == 0
    assert all(start <= stop for start, stop in every)
    assert all(left[1] == right[0] for left, right in pairwise(every))
    assert len(every) == len(plan.phases)
    assert spans(plan)[-1][1] == plan.total == sum(plan.steps)


@LAW
@given(plans())
def test_every_step_lies_in_the_phase_that_is_found_for_it(plan: Plan) -> None:
    every = spans(plan)
    for step in range(plan.total + 3):
        position = locate(plan, step)
        start, stop = every[position.index]
        assert (position.start, position.stop, position.total) == (start, stop, plan.total)
        assert position.finished == (step >= plan.total)
        if not position.finished:
            assert start <= step < stop
            members = [
                span
                for p, span in zip(plan.phases, every, strict=True)
                if p.generation == plan.phases[position.index].generation
            ]
            assert (position.generation_start, position.generation_stop) == (members[0][0], members[-1][1])


@LAW
@given(plans(), DECISIONS)
def test_a_generations_stream_of_items_never_repeats_and_never_skips(plan: Plan, decisions: list[bool]) -> None:
    """Within a generation the steps on the same data use one stream, in order, from its beginning."""
    schedule, answers = walked(plan, decisions)
    used: dict[tuple[int, DataRule], int] = {}
    for step in range(answers[-1].position.total):
        position = locate(plan, step, schedule.cuts)
        key = (plan.phases[position.index].generation, plan.phases[position.index].data)
        assert position.stream == used.setdefault(key, 0)
        used[key] += 1


@LAW
@given(plans(), DECISIONS)
def test_cuts_with_fill_keep_the_budget(plan: Plan, decisions: list[bool]) -> None:
    """Every phase hands on what it does not use, but for the last, which has nobody to hand it to."""
    filling = replace(plan, phases=tuple(replace(p, fill=True) for p in plan.phases))
    schedule, answers = walked(filling, decisions)
    last = len(plan.phases) - 1
    lost = [cut for cut in schedule.cuts if cut.phase == last]
    total = answers[-1].position.total
    assert total == (lost[0].step if lost else plan.total)


def test_a_cut_phase_without_fill_shortens_the_run_and_with_fill_lengthens_the_next() -> None:
    plan = plan_of(8, 8, 4)
    assert spans(plan, [Cut(phase=0, step=4)]) == [(0, 4), (4, 12), (12, 16)]
    filling = plan_of(8, 8, 4, fill=True)
    assert spans(filling, [Cut(phase=0, step=4)]) == [(0, 4), (4, 16), (16, 20)]
    assert spans(filling, [Cut(phase=0, step=4), Cut(phase=1, step=8)]) == [(0, 4), (4, 8), (8, 20)]
    assert spans(plan, [Cut(phase=0, step=12)]) == spans(plan), "a cut behind a phase's end cuts nothing"


# ------------------------------------------------------------------------------------------------------------- schedule


@LAW
@given(plans(), DECISIONS)
def test_every_boundary_is_met_exactly_once_and_in_order(plan: Plan, decisions: list[bool]) -> None:
    _, answers = walked(plan, decisions)
    met = [boundary for answer in answers for boundary in answer.boundary]
    assert met == [(side, index) for index in range(len(plan.phases)) for side in ("entry", "exit")]


@LAW
@given(plans(), DECISIONS)
def test_rank_0_asks_at_phase_starts_and_once_an_epoch_of_the_generation(plan: Plan, decisions: list[bool]) -> None:
    schedule, answers = walked(plan, decisions)
    for answer in answers:
        assert is_named(plan, answer.position) or answer.position.finished
    asked = {answer.position.step for answer in answers}
    for step in range(answers[-1].position.total):
        assert (step in asked) == is_named(plan, locate(plan, step, schedule.cuts))


@LAW
@given(plans(), DECISIONS, st.integers(0, 60))
def test_an_answer_for_any_step_names_the_same_next_question(plan: Plan, decisions: list[bool], step: int) -> None:
    """A run that resumes between two questions asks next where it would have."""
    schedule, answers = walked(plan, decisions)
    step = min(step, answers[-1].position.total - 1)
    before = max((a for a in answers if a.position.step <= step), key=lambda a: a.position.step)
    found = schedule.at(step)
    assert found.until == before.until
    assert found.position.index == before.position.index
    assert (found.boundary == ()) or step == before.position.step


@LAW
@given(plans(), DECISIONS)
def test_asking_twice_changes_nothing(plan: Plan, decisions: list[bool]) -> None:
    schedule, answers = walked(plan, decisions)
    again = Schedule(plan, list(schedule.cuts))
    for answer in answers:
        step = answer.position.step
        assert again.decide(step, None, asked=step == answer.position.start) is None
        assert again.at(step) == schedule.at(step)
    assert again.cuts == schedule.cuts


@LAW
@given(plans(), DECISIONS)
def test_a_restart_that_knows_of_later_cuts_hears_what_was_said_before_them(plan: Plan, decisions: list[bool]) -> None:
    """Rates must not change with a cut that nobody knew of when the step was first done."""
    schedule, answers = walked(plan, decisions)
    assert [schedule.at(answer.position.step) for answer in answers] == answers


@LAW
@given(plans(), DECISIONS)
def test_a_cut_never_lies_behind_what_was_handed_out(plan: Plan, decisions: list[bool]) -> None:
    """What an answer promised up to its next question stays true after every later cut."""
    schedule, answers = walked(plan, decisions)
    for answer in answers[:-1]:
        for step in range(answer.position.step, answer.until):
            stream = answer.position.stream + step - answer.position.step
            assert locate(plan, step, schedule.cuts) == replace(answer.position, step=step, stream=stream)


def test_phases_without_a_step_are_entered_and_left_where_they_lie() -> None:
    plan = plan_of(0, 4, 0, 0, 4, 0)
    _, answers = walked(plan)
    assert [(a.position.step, a.boundary) for a in answers] == [
        (0, (("entry", 0), ("exit", 0), ("entry", 1))),
        (4, (("exit", 1), ("entry", 2), ("exit", 2), ("entry", 3), ("exit", 3), ("entry", 4))),
        (8, (("exit", 4), ("entry", 5), ("exit", 5))),
    ]


def test_the_key_of_a_draw_does_not_know_how_long_the_plan_is() -> None:
    """A run that is continued for more generations draws in its early ones what it drew."""
    forget = Forget()
    generations = [
        phase(4, name="relearn", generation=g, entry=(Snapshot(store="s"), forget) if g else ()) for g in range(4)
    ]
    for count in (3, 4):
        plan = compute(generations[:count], num_items=48, batch=12)
        answer = Schedule(plan).at(8)
        assert operations_of(plan, answer)[-1] == ("relearn/entry/1", answer.position.index, forget)


# --------------------------------------------------------------------------------------------------------------- decide


def seen(loss: float = 1.0, accuracy: float = 0.5, **references: float) -> Observed:
    return Observed(loss=loss, accuracy=accuracy, **references)


@pytest.mark.parametrize(
    ("until", "observed", "ends"),
    [
        (Until(at_most=0.5), seen(loss=0.5), True),
        (Until(at_most=0.5), seen(loss=0.51), False),
        (Until(at_least=2.0), seen(loss=2.0), True),
        (Until(at_least=2.0), seen(loss=1.99), False),
        (Until(at_least=2.0, relative=True), seen(loss=1.0, reference_loss=0.5), True),
        (Until(at_least=2.0, relative=True), seen(loss=0.99, reference_loss=0.5), False),
        (Until(at_least=2.0, relative=True), seen(loss=9.0), False),  # nothing to compare with
        (Until(at_most=0.5, relative=True), seen(loss=0.4, reference_loss=1.0), True),
        (Until(measure="accuracy", at_least=0.99), seen(accuracy=0.99, loss=9), True),
        (Until(measure="accuracy", at_least=0.99), seen(accuracy=0.98, loss=0), False),
        (Until(measure="accuracy", at_most=0.9, relative=True), seen(accuracy=0.45, reference_accuracy=0.5), True),
    ],
)
def test_a_phase_ends_when_its_measure_crosses_its_level(until: Until, observed: Observed, ends: bool) -> None:
    schedule = Schedule(plan_of(8, 8, until=until))
    assert schedule.decide(0, observed) is None, "not before its first step"
    assert (schedule.decide(4, observed) is not None) == ends
    assert schedule.decide(4, None) is None, "nothing was seen"
    assert schedule.decide(6, observed) is None, "no answer names this step"
    assert schedule.decide(16, observed) is None, "the run is over"


def test_a_person_ends_a_phase_once_and_only_at_a_step_that_an_answer_names() -> None:
    schedule = Schedule(plan_of(12, 8))
    assert [schedule.decide(step, None, asked=True) for step in (0, 1, 5, 20)] == [None] * 4
    cut = schedule.decide(8, None, asked=True)
    assert cut == Cut(phase=0, step=8, why="asked for by a person")
    schedule.cuts.append(cut)
    assert schedule.decide(8, None, asked=True) is None, "here the next phase starts"
    assert schedule.decide(4, None, asked=True) is None, "this phase has its end"


# -------------------------------------------------------------------------------------------------------------- adviser


def adviser_on(folder: Path, *lengths: int, **changes: Any) -> Adviser:
    return Adviser(folder, plan_of(*lengths, **changes))


LOSSES = {step: seen(loss=1 + step / 4, reference_loss=1.0) for step in range(0, 40, 4)}


def test_a_restarted_adviser_answers_as_the_one_before(tmp_path: Path) -> None:
    rule = Until(at_least=3.0, relative=True)
    first = adviser_on(tmp_path, 16, 16, 8, until=rule, fill=True)
    answers = {step: first.at(step, LOSSES[step]) for step in range(0, 40, 4)}
    assert [(cut.phase, cut.step) for cut in read_cuts(tmp_path)] == [(0, 8), (1, 12), (2, 16)]
    second = adviser_on(tmp_path, 16, 16, 8, until=rule, fill=True)
    for step in (16, 8, 0, 12, 8, 36):
        assert (
            second.at(step, LOSSES[step]).position
            == replace(second.schedule, cuts=read_cuts(tmp_path)).at(step).position
        )
    assert second.at(16, None) == answers[16]
    assert read_cuts(tmp_path) == first.schedule.cuts


def test_a_torn_last_cut_was_never_acted_on(tmp_path: Path) -> None:
    rule = Until(at_least=3.0)
    adviser = adviser_on(tmp_path, 16, 16, until=rule)
    adviser.at(8, LOSSES[8])
    whole = (tmp_path / CUTS).read_bytes()
    (tmp_path / CUTS).write_bytes(whole + b'{"phase": 1, "st')
    again = adviser_on(tmp_path, 16, 16, until=rule)
    assert again.at(8, LOSSES[8]) == adviser.at(8, LOSSES[8])
    answer = again.at(12, LOSSES[12])
    assert [(cut.phase, cut.step) for cut in answer.cuts] == [(0, 8), (1, 12)]
    assert (tmp_path / CUTS).read_bytes().startswith(whole)
    assert [(cut.phase, cut.step) for cut in read_cuts(tmp_path)] == [(0, 8), (1, 12)]


def asks(folder: Path, what: Any) -> Path:
    (folder / CUT_REQUEST).write_text(what if isinstance(what, str) else json.dumps(what))
    return folder / CUT_REQUEST


def test_a_request_waits_for_the_next_named_step_and_is_taken_away_with_the_cut(tmp_path: Path) -> None:
    adviser = adviser_on(tmp_path, 12, 8)
    request = asks(tmp_path, {"phase": 0, "time": 1.0})
    assert adviser.at(0).cuts == ()
    assert adviser.at(2).cuts == (), "a run resumed here is told what it was told before"
    assert request.exists()
    assert [cut.step for cut in adviser.at(4).cuts] == [4]
    assert not request.exists()
    assert "of generation 0 ends at step 4: asked for by a person" in notes(tmp_path)


def test_a_request_for_another_phase_is_dropped_when_it_is_over_and_kept_while_it_lies_ahead(tmp_path: Path) -> None:
    adviser = adviser_on(tmp_path, 4, 12)
    request = asks(tmp_path, {"phase": 0})
    assert adviser.at(8).cuts == ()
    assert not request.exists()
    asks(tmp_path, {"phase": 1})
    assert adviser.at(0).cuts == ()
    assert request.exists()
    assert [cut.phase for cut in adviser.at(8).cuts] == [1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"time": 3}', '{"phase": null}', '{"phase": "next"}'])
def test_a_request_that_cannot_be_read_ends_no_phase_and_no_run(tmp_path: Path, text: str) -> None:
    adviser = adviser_on(tmp_path, 12, 8)
    request = asks(tmp_path, text)
    assert adviser.at(4).cuts == ()
    assert not request.exists()
    assert "cannot be read" in notes(tmp_path)


def test_a_cut_does_not_undo_what_a_crash_had_done(tmp_path: Path) -> None:
    """Steps up to 7 are on record; a run that goes on from a checkpoint at 4 does them again before it is cut."""
    adviser = adviser_on(tmp_path, 12, 8)
    adviser.record([{"kind": "metrics", "step": step, "values": {"train/loss": 1.0}} for step in range(1, 8)])
    asks(tmp_path, {"phase": 0})
    assert adviser.at(4).cuts == ()
    assert [cut.step for cut in adviser.at(8).cuts] == [8]


def test_a_cut_that_the_disk_does_not_take_is_no_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adviser = adviser_on(tmp_path, 12, 8)
    request = asks(tmp_path, {"phase": 0})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert adviser.at(4).cuts == ()
    assert request.exists()
    assert [cut.step for cut in adviser.at(8).cuts] == [8], "asked again, and nothing of the first try is read back"
    assert "No space left" in notes(tmp_path)


def notes(folder: Path) -> str:
    return "\n".join(r["message"] for r in read(folder / "journal.jsonl") if r["kind"] == "note")


# -------------------------------------------------------------------------------------------------------------- lengths


@LAW
@given(
    st.lists(st.floats(0.3, 3), min_size=1, max_size=8),
    st.integers(4, 9),
    st.sampled_from([1, 2]),
)
def test_parts_of_epochs_add_up_to_the_budget_of_the_whole(epochs: list[float], per_epoch: int, batch: int) -> None:
    """However a budget is divided, in phases or in generations, it has the same number of steps."""
    phases = [phase(epochs=length, name=f"p{i}", generation=i) for i, length in enumerate(epochs)]
    divided = compute(phases, num_items=per_epoch * batch, batch=batch)
    whole = compute([phase(epochs=math.fsum(epochs))], num_items=per_epoch * batch, batch=batch)
    assert divided.total == whole.total
    assert abs(divided.total - math.fsum(epochs) * per_epoch) <= 0.5 + 1e-5
    for length, steps in zip(epochs, divided.steps, strict=True):
        assert abs(steps - length * per_epoch) < 1 + 1e-5


def test_a_longer_plan_begins_as_the_shorter_one() -> None:
    phases = [phase(epochs=0.7, name="p", generation=g) for g in range(9)]
    longest = compute(phases, num_items=60, batch=12)
    for count in range(1, 9):
        assert compute(phases[:count], num_items=60, batch=12).steps == longest.steps[:count]


def test_steps_of_an_epoch_are_those_of_the_phases_own_data() -> None:
    phases = [
        phase(epochs=1, name="a", data=DataRule(share=0.5)),
        phase(epochs=1, name="b"),
        phase(epochs=1, name="c", data=DataRule(source="made")),
    ]
    made = replace(phases[0], exit=(Generate(what="items", store="made"),))
    plan = compute([made, *phases[1:]], num_items=50, batch=12, sizes={"made": 24})
    assert plan.epoch_steps == (2, 4, 2), "the last partial batch is dropped"
    assert plan.ask_every == 4


def test_a_phase_with_a_rule_for_its_end_is_asked_after_each_epoch_of_its_own() -> None:
    """Where data arrive in portions: the mean that decides is that of the portion, and no longer one."""
    fits = Until(measure="accuracy", at_least=0.9)
    phases = [
        phase(24, name="r", generation=g, data=DataRule(share=(g + 1) / 4), until=fits if g < 3 else None)
        for g in range(4)
    ]
    plan = compute(phases, num_items=48, batch=12)
    assert [plan.asks_every(index) for index in range(4)] == [1, 2, 3, 4]
    few = compute(phases, num_items=48, batch=12, ask_at_least=5)
    assert [few.asks_every(index) for index in range(4)] == [5, 6, 6, 8]
    schedule = Schedule(plan)
    assert [schedule.at(step).until for step in (0, 24, 26, 48, 50, 72)] == [1, 26, 28, 51, 51, 76]
    assert schedule.decide(27, seen(accuracy=1.0)) is None, "inside the second portion's epoch"
    cut = schedule.decide(28, seen(accuracy=1.0))
    assert cut == Cut(phase=1, step=28, why="training accuracy 1 (before the phase: None)")


def test_validation_falls_due_at_the_first_question_after_so_many_epochs() -> None:
    phases = [phase(24, generation=g, data=DataRule(share=(g + 3) / 4), until=Until(at_least=9)) for g in range(2)]
    plan = compute(phases, num_items=48, batch=12)
    found = [
        [step for step in range(every, 24, every) if plan.is_scored(index, step, 2)]
        for index, every in enumerate((3, 4))
    ]
    assert found == [[9, 18], [8, 16]]


def test_a_phase_may_begin_at_a_place_of_its_own_in_the_order() -> None:
    """A generation rewound to step k has the data that the first had from step k on; a second one has them again."""
    own = DataRule(start=Length(epochs=1.25))
    phases = [
        phase(5, name="until k"),
        phase(6, name="on"),
        phase(6, name="ticket", generation=1, data=own),
        phase(6, name="control", generation=1, data=own),
        phase(3, name="more", generation=1),
        phase(3, name="most", generation=1),
    ]
    plan = compute(phases, num_items=48, batch=12)
    streams = [locate(plan, step).stream for step in range(plan.total)]
    assert streams == [*range(11), *range(5, 11), *range(5, 11), *range(11, 17)]
    cut = [locate(plan, step, [Cut(phase=3, step=19)]).stream for step in range(19, 25)]
    assert cut == list(range(7, 13)), "goes on where the cut phase stopped"


def test_what_is_trained_aside_is_no_part_of_the_budget() -> None:
    plan = compute([phase(5), phase(7, name="q", aside=True), phase(2, name="r")], num_items=48, batch=12)
    assert (plan.total, plan.budget) == (14, 7)


def test_a_phase_aside_has_the_steps_of_the_one_behind_it_and_changes_no_budget() -> None:
    def level(generation: int, name: str, *, aside: bool = False) -> Phase:
        return Phase(name=name, generation=generation, length=Length(epochs=20 / 3), aside=aside)

    plain = [level(g, "train") for g in range(6)]
    beside = [p for g in range(6) for p in (level(g, "ticket", aside=True), level(g, "train"))]
    one, other = (compute(phases, num_items=100, batch=10) for phases in (plain, beside))
    assert one.total == other.budget == 400
    assert len(set(one.steps)) == 2, "levels of 66 and 67 steps"
    assert other.steps[0::2] == other.steps[1::2] == one.steps


def test_a_share_that_is_a_whole_number_of_batches_loses_none_to_rounding() -> None:
    plan = compute([phase(epochs=1, data=DataRule(share=0.3))], num_items=100, batch=10)
    assert plan.steps == (3,)


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([], "the plan has no training step"),
        ([phase(0)], "the plan has no training step"),
        ([phase(3, generation=1)], "phase 'p' of generation 1: generations go up by one; the first is 0"),
        ([phase(3), phase(3, generation=2)], "generations go up by one; the one before is 0"),
        ([phase(3), phase(3, generation=1), phase(3, name="q")], "generations go up by one; the one before is 1"),
        ([phase(3), phase(3)], "phase 'p' of generation 0: there are two of this name"),
        ([phase(3, hold=("m",))], "hold needs store 'm', which no operation before it makes (made: none)"),
        ([phase(3, hold=("m",), exit=(KeepMask(store="m", source=Magnitude(keep=1)),))], "hold needs store 'm'"),
        ([phase(3, entry=(Forget(fill="store", store="s"),))], "needs store 's', which no operation before it makes"),
        ([phase(3, entry=(Forget(keep=Saved(name="m")),))], "needs store 'm'"),
        ([phase(3, entry=(KeepMask(store="m", source=Magnitude(keep=1, within="m")),))], "needs store 'm'"),
        ([phase(3, entry=(Rescale(store="s"), Snapshot(store="s")))], "needs store 's'"),
        ([phase(3, objective=Objective(kind="distil", teacher="t"))], "objective 'distil' needs store 't'"),
        ([phase(3, data=DataRule(source="made"))], "training needs store 'made'"),
        (
            [phase(3, entry=(Snapshot(store="s"), Forget(keep=Saved(name="s"))))],
            "needs masks, and store 's' holds weights (made: 's' (weights))",
        ),
        (
            [phase(3, entry=(Snapshot(store="s"), KeepMask(store="m", source=Magnitude(keep=1, within="s"))))],
            "needs masks, and store 's' holds weights",
        ),
        (
            [phase(3, entry=(KeepMask(store="m", source=Magnitude(keep=1)), Forget(fill="store", store="m")))],
            "needs weights, and store 'm' holds masks",
        ),
        (
            [phase(3, entry=(KeepMask(store="m", source=Magnitude(keep=1)), Rescale(store="m")))],
            "needs weights, and store 'm' holds masks",
        ),
        ([phase(3, entry=(Snapshot(store="s"),), hold=("s",))], "hold needs masks, and store 's' holds weights"),
        ([phase(epochs=0.1)], "0.1 epochs are less than one optimizer step (4 an epoch)"),
        ([phase(3, data=DataRule(share=0.1))], "4 items are less than one batch of 12"),
        ([phase(3, data=None)], "phase 'p' of generation 0: data = None: must be DataRule"),
        ([phase(2.5)], "length.steps = 2.5: must be a whole number or none"),  # type: ignore[arg-type]
        ([phase(3, optimizer="fresh")], "phase 'p' of generation 0: optimizer = 'fresh': must be one of keep, rebuild"),
        ([phase(3, rules=(Rule(select="layer3"),))], "rules.0.select = 'layer3'"),  # type: ignore[arg-type]
        ([phase(3, entry=(Forget(fill="unifrm"),))], "entry.0.fill = 'unifrm'"),  # type: ignore[arg-type]
    ],
)
def test_an_impossible_plan_is_refused_in_one_line(phases: list[Phase], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        compute(phases, num_items=48, batch=12)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stores_are_made_before_use_in_the_order_in_which_a_run_meets_them() -> None:
    made = (Snapshot(store="s"), KeepMask(store="m", source=Magnitude(keep=0.5)))
    phases = [
        phase(0, name="first", entry=made),
        phase(
            3, name="second", hold=("m",), exit=(Forget(keep=Saved(name="m"), kept="store", fill="zero", store="s"),)
        ),
        phase(3, name="third", objective=Objective(kind="distil", teacher="s"), generation=1),
    ]
    plan = compute(phases, num_items=48, batch=12)
    assert plan.total == 6
    assert selections_of(plan) == (made[1].select,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Length(),
        lambda: Length(epochs=1, steps=4),
        lambda: Length(epochs=-1),
        lambda: Rule(select=Select(), direction=0.5),
        lambda: Rule(select=Select(), direction=2),
        lambda: Rule(select=Select(), direction=math.nan),
        lambda: Rule(select=Select(), direction=-math.inf),
        lambda: Rule(select=Select(), clip=0),
        lambda: Until(),
        lambda: Until(at_least=1, at_most=2),
        lambda: Until(at_least=math.nan),
        lambda: Curve(factor=-1),
        lambda: DataRule(share=0),
        lambda: DataRule(share=1.5),
        lambda: Objective(kind="distil"),
        lambda: Objective(teacher="t"),
        lambda: Objective(kind="distil", teacher="t", temperature=0),
        lambda: Curve(drops=(0.5,)),
        lambda: Curve(shape="step", drops=(1.5,)),
        lambda: Curve(floor=2),
        lambda: Curve(shape="linear", power=0),
        lambda: Curve(shape="cosine", power=0.9),
        lambda: Forget(fill="store"),
        lambda: Forget(store="s"),
    ],
)
def test_an_impossible_part_of_a_plan_cannot_be_made(make: Any) -> None:
    with pytest.raises(SettingError):
        make()


# --------------------------------------------------------------------------------------------------------------- curves


@LAW
@given(st.integers(1, 50), st.integers(0, 20), st.integers(0, 60))
def test_a_curve_stays_between_its_floor_and_its_peak(span: int, warmup: int, t: int) -> None:
    for shape in ("cosine", "linear", "constant", "step"):
        drops = (0.3, 0.6) if shape == "step" else ()
        value = curve_value(Curve(shape=shape, floor=0.1, scale=2.0, drops=drops), t, span, warmup)
        assert (0 if t < warmup else 0.2 - 1e-9) <= value <= 2.0 + 1e-9


def test_warm_up_rises_in_equal_steps_to_the_peak() -> None:
    values = [curve_value(Curve(shape="constant"), t, 10, 4) for t in range(6)]
    assert values == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_cosine_is_the_square_of_half_its_angle() -> None:
    for t in range(20):
        assert curve_value(Curve(floor=0.25), t, 20) == pytest.approx(0.25 + 0.75 * math.cos(math.pi * t / 40) ** 2)
    assert curve_value(Curve(), 0, 20) == 1.0
    assert curve_value(Curve(), 10, 20) == pytest.approx(0.5)
    assert curve_value(Curve(), 20, 20) == pytest.approx(0.0)
    assert curve_value(Curve(floor=0.25), 99, 20) == pytest.approx(0.25), "behind its end it stays"


def test_the_rate_of_seal_is_the_published_one_at_epoch_ends() -> None:
    """Warm-up of 20 of 160 epochs, then a cosine: 0.1 (e + 1) / 20, and 0.0951 where descent resumes at epoch 40."""
    curve, per_epoch = Curve(), 10
    at = [0.1 * curve_value(curve, t, 160 * per_epoch, 20 * per_epoch) for t in range(160 * per_epoch)]
    for epoch in range(20):
        assert at[epoch * per_epoch + per_epoch - 1] == pytest.approx(0.1 * (epoch + 1) / 20)
    assert at[40 * per_epoch] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 20 / 140)))
    assert at[40 * per_epoch] == pytest.approx(0.0951, abs=1e-4)


def test_step_drops_multiply_at_their_shares_of_the_span() -> None:
    curve = Curve(shape="step", drops=(0.5, 0.75), factor=0.1)
    values = [curve_value(curve, t, 160) for t in (0, 79, 80, 119, 120, 159)]
    assert values == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_power_bends_the_straight_line() -> None:
    """The polynomial schedule of segmentation: what remains, to the power of 0.9."""
    curve = Curve(shape="linear", power=0.9)
    assert [curve_value(curve, t, 8) for t in (0, 2, 6, 8)] == pytest.approx([1, 0.75**0.9, 0.25**0.9, 0])


def test_an_offset_continues_a_curve_at_that_step() -> None:
    """A generation rewound to step k has the rates that the first had from step k on."""
    shape = Curve(over="phase", warmup=Length(steps=3))
    first = compute([phase(20, curve=shape)], num_items=48, batch=12)
    rewound = compute([phase(15, curve=replace(shape, offset=Length(steps=5)))], num_items=48, batch=12)
    for step in range(15):
        assert rates(rewound, locate(rewound, step)) == rates(first, locate(first, step + 5))


def test_a_curve_runs_over_its_phase_its_generation_or_the_run() -> None:
    phases = [phase(steps, name=f"{steps}", generation=g) for g in range(2) for steps in (4, 8)]
    plan = compute(phases, num_items=48, batch=12)
    found = [rates(plan, locate(plan, step))["rest"] for step in range(24)]
    cosine = [0.5 * (1 + math.cos(math.pi * t / 12)) for t in range(12)]
    assert found == pytest.approx(cosine * 2), "descent continues where ascent stopped, each generation starts anew"
    over_phase = replace(plan, phases=tuple(replace(p, curve=Curve(over="phase")) for p in plan.phases))
    assert [rates(over_phase, locate(over_phase, step))["rest"] for step in (0, 4, 12)] == [1.0] * 3
    over_run = replace(plan, phases=tuple(replace(p, curve=Curve(over="run")) for p in plan.phases))
    assert [rates(over_run, locate(over_run, step))["rest"] for step in range(24)] == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * t / 24)) for t in range(24)]
    )


def test_a_group_with_a_curve_of_its_own_follows_it() -> None:
    head = Select(modules=("fc",), name="head")
    rule = Rule(select=head, curve=Curve(over="phase"))
    phases = [phase(6, name=f"p{g}", generation=g, curve=Curve(over="run"), rules=(rule,)) for g in range(2)]
    plan = compute(phases, num_items=48, batch=12)
    at = rates(plan, locate(plan, 6))
    assert at == pytest.approx({"rest": 0.5, "head": 1.0})


# ------------------------------------------------------------------------------------------------------ plans as values


@LAW
@given(plans())
def test_a_plan_comes_back_from_json_with_its_fingerprint(plan: Plan) -> None:
    back = from_plain(json.loads(json.dumps(to_plain(plan))))
    assert back == plan
    assert back.fingerprint == plan.fingerprint
    assert hash(back.phases) == hash(plan.phases)


def test_every_part_of_a_plan_tells_in_its_fingerprint() -> None:
    plan = plan_of(4, 4)
    others = [
        plan_of(4, 5),
        plan_of(4, 4, fill=True),
        plan_of(4, 4, curve=Curve(floor=0.1)),
        plan_of(4, 4, entry=(Forget(),)),
        plan_of(4, 4, optimizer="rebuild"),
        plan_of(4, 4, data=DataRule(start=Length(steps=2))),
        plan_of(4, 4, rules=(Rule(select=Select(), direction=-0.01),)),
    ]
    assert len({p.fingerprint for p in (plan, *others)}) == len(others) + 1
    assert plan.fingerprint == plan_of(4, 4).fingerprint


def test_a_plan_needs_no_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from llf_ray.plan import Length, Phase, compute, Schedule\n"
        "plan = compute([Phase(name='p', generation=0, length=Length(epochs=2))], num_items=48, batch=12)\n"
        "print(Schedule(plan).at(0).until)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "4"
