"""Resuming is no feature: a run that was stopped or killed anywhere ends with the bits of one that was not."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llf_ray.cluster.outcome import write_outcome
from llf_ray.config import SettingError
from llf_ray.engine.base import EngineSettings
from llf_ray.engine.local import LocalEngine
from llf_ray.forget.groups import Either, Select
from llf_ray.forget.masks import Magnitude, Saved
from llf_ray.forget.operations import Forget, KeepMask, ShrinkPerturb, Snapshot
from llf_ray.journal import Tracking
from llf_ray.plan import Curve, DataRule, Length, Phase, Rule, Until
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.restarts import Restarts
from llf_ray.recipes.rifle import Rifle
from llf_ray.recipes.seal import Seal
from llf_ray.run import Checkpoints, Resources, RunConfig, prepare
from llf_ray.train.adviser import CUT_REQUEST, CUTS, STOP_REQUEST, Adviser, read_cuts
from llf_ray.train.folder import create, extend, is_longer, open_run
from llf_ray.train.state import checkpoints
from tests.laws.test_methods import METHODS
from tests.local import (
    ADAMW,
    SGD,
    carry,
    final,
    journal,
    messages,
    resumed,
    same_bits,
    settings,
    stopping_at,
    whole,
)
from tests.toy import Toy

EVERYTHING = Either((Select(), Select(kinds=("statistic",))))


def everything_at_once() -> list[Phase]:
    """Masks, a rewind, a hold, an ascent that its loss ends early, a held group, phases that end inside an epoch."""
    early = Select(before="body", name="early")
    prune = KeepMask(store="m", source=Magnitude(keep=0.6, scope="global"))
    rewind = Forget(select=EVERYTHING, keep=Saved(name="m"), kept="store", fill="zero", store="start")
    return [
        Phase(name="dense", generation=0, length=Length(steps=3), entry=(Snapshot(store="start"),), exit=(prune,)),
        Phase(name="nothing", generation=1, length=Length(steps=0), entry=(rewind,)),
        Phase(name="sparse", generation=1, length=Length(steps=4), hold=("m",), curve=Curve(offset=Length(steps=1))),
        Phase(
            name="ascent",
            generation=1,
            length=Length(steps=6),
            rules=(Rule(select=early, direction=-0.5, weight_decay=0.0),),
            entry=(Forget(select=Select(since="head"), keep=Saved(name="m"), fill="uniform"),),
            until=Until(at_least=0.01, relative=True),
            fill=True,
        ),
        Phase(name="descent", generation=1, length=Length(steps=2), rules=(Rule(select=early, direction=0.0),)),
    ]


RUNS: dict[str, RunConfig] = {
    "seal": settings(
        Seal(
            generations=2,
            epochs=2,
            ascent_epochs=1,
            ascent_rate=0.5,
            warmup_epochs=0.5,
            threshold="body",
            forget_later=True,
        ),
        optim=replace(SGD, averaged=0.9),
    ),
    "everything": settings(
        everything_at_once(),
        optim=replace(ADAMW, averaged=0.8),
    ),
    "shares": settings(
        [
            Phase(
                name="round",
                generation=g,
                length=Length(epochs=1.5),
                data=DataRule(share=(g + 1) / 2),
                until=None if g else Until(measure="accuracy", at_least=0.01),  # after an epoch of its own two steps
                fill=True,
                entry=(ShrinkPerturb(),) if g else (),
                normalisation="eval" if g else "train",
            )
            for g in range(2)
        ],
        engine=EngineSettings(batch=12, accumulation=3, clip=0.5),
    ),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each run from start to end in one piece."""
    root = tmp_path_factory.mktemp("whole")
    return {name: whole(config, root / name) for name, config in RUNS.items()}


def story(folder: Path) -> list[dict[str, Any]]:
    """What a journal says of a training, without clocks and notes."""
    told = []
    for record in journal(folder):
        if record["kind"] in ("metrics", "score", "operation", "phase"):
            record = {k: v for k, v in record.items() if k != "time"}
            if record["kind"] == "metrics":
                record["values"] = {k: v for k, v in record["values"].items() if k != "examples_per_second"}
            told.append(record)
    return told


def same_end(folder: Path, reference: Path) -> None:
    assert same_bits(final(folder), final(reference))
    assert story(folder) == story(reference)
    assert read_cuts(folder) == read_cuts(reference)
    folders = [record["folder"] for record in journal(folder, "checkpoint")]
    assert len(folders) == len(set(folders))


STEPS = [(name, step) for name in RUNS for step in range(1, prepare(RUNS[name]).plan.total - 1)]  # the last one ends it


@pytest.mark.parametrize(("name", "step"), STEPS)
def test_a_run_stopped_at_any_step_ends_with_the_same_bits(
    uninterrupted: dict[str, Path], name: str, step: int, tmp_path: Path
) -> None:
    """Averages, moments, masks, stores, cuts, parts of epochs and journals included."""
    run = create(prepare(RUNS[name]), tmp_path / "run")
    outcome = carry(run, stopping_at(step))
    assert outcome.state == "stopped"
    assert step <= outcome.step <= step + 1
    assert f"stopped at step {outcome.step} of" in outcome.message
    assert not (run.folder / "final").exists()
    outcome = resumed(run.folder)
    assert outcome.state == "finished"
    same_end(run.folder, uninterrupted[name])


class Killed(BaseException):
    """As SIGKILL, nobody catches it."""


def killed_at(place: int, *, after: bool) -> type[Adviser]:
    """An adviser whose process dies in front of or behind its n-th record, counted from 0."""

    class Dying(Adviser):
        left = place

        def record(self, records: Sequence[Mapping[str, Any]]) -> None:
            for record in records:
                if type(self).left == 0 and not after:
                    raise Killed
                super().record([record])
                if type(self).left == 0:
                    raise Killed
                type(self).left -= 1

    return Dying


@pytest.mark.parametrize("after", [False, True], ids=["in front of", "behind"])
@pytest.mark.parametrize("start", range(4))
def test_a_run_killed_in_front_of_or_behind_any_record_ends_with_the_same_bits(
    uninterrupted: dict[str, Path], start: int, after: bool, tmp_path: Path
) -> None:
    """Killed again and again, each time four records further, until it comes through."""
    config = replace(RUNS["everything"], checkpoints=Checkpoints(every_steps=2, keep=1))
    run = create(prepare(config), tmp_path / "run")
    kills, place = 0, start
    while True:
        try:
            outcome = carry(open_run(run.folder), killed_at(place, after=after))
            break
        except Killed:
            kills, place = kills + 1, place + 4
            assert kills < 40
    assert kills > 2
    assert outcome.state == "finished"
    same_end(run.folder, uninterrupted["everything"])


def test_a_run_killed_at_every_single_record_still_comes_through(
    uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    """With a checkpoint at every step each life gets a little further."""
    config = replace(RUNS["everything"], checkpoints=Checkpoints(every_steps=1, keep=1))
    run = create(prepare(config), tmp_path / "run")
    lives = 0
    while True:
        lives += 1
        try:
            carry(open_run(run.folder), killed_at(6, after=True))
            break
        except Killed:
            assert lives < 60
    same_end(run.folder, uninterrupted["everything"])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_by_itself(method: str, tmp_path: Path) -> None:
    """The runtime knows none by name: stopped at its first operation and inside the last phase, each goes on."""
    task = Toy(dropout=True, normalised=method == "layer_wise")
    config = settings(METHODS[method](), task=task, optim=ADAMW, engine=EngineSettings(batch=16))
    reference = whole(config, tmp_path / "whole")
    boundary = journal(reference, "phase")[1]["step"]
    run = create(prepare(config), tmp_path / "run")
    for step in (boundary, journal(reference, "metrics")[-3]["step"]):
        assert carry(open_run(run.folder), stopping_at(step)).state == "stopped"
    assert resumed(run.folder).state == "finished"
    same_end(run.folder, reference)


def test_logging_and_checkpoints_change_no_bit_and_no_decision(uninterrupted: dict[str, Path], tmp_path: Path) -> None:
    """Sums that a rule looks at do not depend on how often they are taken."""
    config = replace(
        RUNS["everything"],
        tracking=Tracking(log_every=3, evaluate_every=2),
        checkpoints=Checkpoints(every_steps=5, every_minutes=None, keep=1, keep_generations=False),
    )
    other = whole(config, tmp_path / "run")
    assert same_bits(final(other), final(uninterrupted["everything"]))
    assert read_cuts(other) == read_cuts(uninterrupted["everything"])
    assert [c.why for c in read_cuts(other)] == [c.why for c in read_cuts(uninterrupted["everything"])]


def test_a_run_goes_on_with_settings_of_how_it_is_carried_out(uninterrupted: dict[str, Path], tmp_path: Path) -> None:
    run = create(prepare(RUNS["everything"]), tmp_path / "run")
    carry(run, stopping_at(5))
    outcome = resumed(run.folder, {"engine.accumulation": 1, "checkpoints.every_steps": 1, "tracking.log_every": 2})
    assert outcome.state == "finished"
    assert same_bits(final(run.folder), final(uninterrupted["everything"]))


# ----------------------------------------------------------------------------------------------------------------- cuts


def test_a_phase_that_a_rule_cuts_ends_with_a_score_and_a_checkpoint(uninterrupted: dict[str, Path]) -> None:
    """As one that ends by itself: from there a branch or a restart can go on."""
    folder = uninterrupted["everything"]
    (cut,) = read_cuts(folder)
    assert cut.why.startswith("training loss")
    assert cut.step in [record["step"] for record in journal(folder, "score")]
    assert (folder / "checkpoints" / f"step-{cut.step:08d}").exists()
    (before,) = [r for r in journal(folder, "phase") if r["name"] == "ascent"]
    (descent,) = [r for r in journal(folder, "phase") if r["name"] == "descent"]
    assert before["step"] < cut.step < before["stop"]
    assert descent["step"] == cut.step
    assert descent["stop"] == descent["total"] == 15, "the unused steps went to the descent"


def asking_at(step: int, phase: int) -> type[Adviser]:
    """An adviser at whose run somebody types `llf-ray cut` when ``step`` is on record."""

    class Asked(Adviser):
        def record(self, records: Sequence[Mapping[str, Any]]) -> None:
            super().record(records)
            if any(r["kind"] == "metrics" and r["step"] == step for r in records):
                (self.folder / CUT_REQUEST).write_text(f'{{"phase": {phase}}}')

    return Asked


def test_a_phase_that_a_person_cuts_ends_at_the_next_question(tmp_path: Path) -> None:
    config = settings(Restarts(generations=2, epochs=3, warmup_epochs=0))
    folder = whole(config, tmp_path / "run", adviser=asking_at(5, 0))
    assert [(cut.phase, cut.step) for cut in read_cuts(folder)] == [(0, 8)]
    assert journal(folder, "metrics")[-1]["step"] == 20
    assert "phase 'train' of generation 0 ends at step 8: asked for by a person" in messages(folder)
    assert (folder / "checkpoints" / "step-00000008").exists(), "what a branch from generation 0 starts from"
    assert not (folder / CUT_REQUEST).exists()


@pytest.mark.parametrize("stop", [6, 7, 8, 9, 13])
def test_a_run_with_a_persons_cut_resumes_to_the_same_bits(stop: int, tmp_path: Path) -> None:
    config = settings(Restarts(generations=2, epochs=3, warmup_epochs=0))
    reference = whole(config, tmp_path / "whole", adviser=asking_at(5, 0))

    class Both(asking_at(5, 0), stopping_at(stop)):  # type: ignore[misc]
        pass

    run = create(prepare(config), tmp_path / "run")
    assert carry(run, Both).state == "stopped"
    assert resumed(run.folder).state == "finished"
    same_end(run.folder, reference)


def test_a_cut_that_is_asked_for_while_a_run_rests_in_mid_phase_crosses_the_whole_boundary(tmp_path: Path) -> None:
    """The run stopped behind a question that found no boundary at its step: the cut makes one there."""
    second = Phase(name="q", generation=1, length=Length(epochs=1), entry=(Forget(),), optimizer="rebuild")
    config = settings([Phase(name="p", generation=0, length=Length(epochs=3)), second])
    run = create(prepare(config), tmp_path / "run")
    stopped = carry(run, stopping_at(4))  # the first question inside the phase
    assert (stopped.state, stopped.step) == ("stopped", 4)
    (run.folder / CUT_REQUEST).write_text('{"phase": 0}')
    assert resumed(run.folder).state == "finished"
    assert [(cut.phase, cut.step) for cut in read_cuts(run.folder)] == [(0, 4)]
    (operation,) = journal(run.folder, "operation")
    assert (operation["step"], operation["generation"]) == (4, 1)
    assert operation["entries"] > 0
    assert [(record["name"], record["step"]) for record in journal(run.folder, "phase")] == [("p", 0), ("q", 4)]


LONGER = {
    "later_layer": LaterLayer(generations=2, epochs=2, warmup_epochs=0, threshold="body"),
    "seal": Seal(generations=2, epochs=2, ascent_epochs=1, warmup_epochs=0, threshold="body"),
}


@pytest.mark.parametrize("stop", [None, 5])
@pytest.mark.parametrize("recipe", LONGER.values(), ids=LONGER.keys())
def test_a_run_that_is_made_longer_ends_as_the_longer_one(recipe: Any, stop: int | None, tmp_path: Path) -> None:
    """Also a finished one, whose last checkpoint lies behind a boundary that has more operations now."""
    reference = whole(settings(replace(recipe, generations=4)), tmp_path / "long")
    run = create(prepare(settings(recipe)), tmp_path / "run")
    first = carry(run) if stop is None else carry(run, stopping_at(stop))
    assert first.state == ("finished" if stop is None else "stopped")
    write_outcome(run.folder, first)
    longer = open_run(run.folder, {"recipe.generations": "4"})
    assert is_longer(longer)
    extend(longer)
    assert not is_longer(longer)
    assert carry(longer).state == "finished"
    assert same_bits(final(run.folder), final(reference))
    operations = [[(r["step"], r["digest"]) for r in journal(f, "operation")] for f in (run.folder, reference)]
    assert operations[0] == operations[1]
    assert len(checkpoints(run.folder / "checkpoints")) >= 4


def test_a_run_that_cannot_be_made_longer_says_why(tmp_path: Path) -> None:
    run = create(prepare(settings(Restarts(generations=2, epochs=1, warmup_epochs=0))), tmp_path / "run")
    for number in ("1", "2"):
        with pytest.raises(SettingError, match=r"it has generations 0 to 1, and the new plan does not begin with them"):
            open_run(run.folder, {"recipe.generations": number})
    tuned = create(prepare(settings(Rifle(generations=2, epochs=1, head="head"))), tmp_path / "tuned")
    with pytest.raises(SettingError, match="its rate follows one curve over the whole run"):
        open_run(tuned.folder, {"recipe.generations": "3"})


def test_rules_and_masks_are_set_once_a_phase(tmp_path: Path) -> None:
    """Under ZeRO every mask that is set anew gathers and writes all that it holds."""
    mask = KeepMask(store="m", source=Magnitude(keep=0.5))
    phases = [Phase(name="p", generation=g, length=Length(epochs=3), hold=("m",)) for g in range(2)]
    phases[0] = replace(phases[0], entry=(mask,))
    calls: list[str] = []

    def watch(engine: LocalEngine) -> None:
        for name in ("set_rules", "hold_at_zero"):
            inner = getattr(engine, name)

            def counted(*args: Any, name: str = name, inner: Any = inner) -> None:
                calls.append(name)
                inner(*args)

            setattr(engine, name, counted)

    whole(settings(phases), tmp_path / "run", watch=watch)
    # a boundary lets go of what was held, a phase's first step holds; the last boundary only lets go
    assert calls == [*(["hold_at_zero", "set_rules", "hold_at_zero"] * 2), "hold_at_zero"]


def test_a_cut_on_disk_is_obeyed_by_a_run_that_died_before_it_acted_on_it(tmp_path: Path) -> None:
    config = settings(Restarts(generations=2, epochs=3, warmup_epochs=0))
    reference = whole(config, tmp_path / "whole", adviser=asking_at(5, 0))
    run = create(prepare(config), tmp_path / "run")
    carry(run, stopping_at(6))
    shutil.copy(reference / CUTS, run.folder / CUTS)
    assert resumed(run.folder).state == "finished"
    assert same_bits(final(run.folder), final(reference))


# ------------------------------------------------------------------------------------------------------------- open_run


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.lr", "0.2"),
        ("recipe.epochs", "9"),
        ("seed", "1"),
        ("engine.batch", "6"),
        ("name", "b"),
        ("task.noise", "2"),
    ],
)
def test_a_resumed_run_keeps_what_it_computes(key: str, value: str, tmp_path: Path) -> None:
    run = create(prepare(RUNS["seal"]), tmp_path / "run")
    with pytest.raises(SettingError) as caught:
        open_run(run.folder, {key: value})
    assert str(caught.value).startswith(f"{key}: a resumed run keeps what it computes")
    assert "\n" not in str(caught.value)


def test_a_resumed_run_may_not_misspell_what_it_may_change(tmp_path: Path) -> None:
    run = create(prepare(RUNS["seal"]), tmp_path / "run")
    for key, said in (
        ("checkpoints.keeep", "did you mean 'checkpoints.keep'"),
        ("resources.workers", "must be a whole"),
    ):
        with pytest.raises(SettingError, match=said):
            open_run(run.folder, {key: "x"})
    with pytest.raises(SettingError, match="batch = 12: 5 workers need a multiple of 5"):
        open_run(run.folder, {"resources.workers": "5"})


def test_a_run_comes_back_from_its_folder_as_it_was_made(tmp_path: Path) -> None:
    for name, config in RUNS.items():
        run = create(prepare(config), tmp_path / name)
        assert open_run(run.folder) == run


def test_a_name_is_used_once(tmp_path: Path) -> None:
    prepared = prepare(RUNS["seal"])
    create(prepared, tmp_path / "run")
    with pytest.raises(SettingError, match=r"name 'run' is in use.*llf-ray resume run"):
        create(prepared, tmp_path / "run")
    (tmp_path / "other").mkdir()
    with pytest.raises(SettingError, match="name 'other' is in use"):
        create(prepared, tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="cannot make a run's folder there"):
        create(prepared, tmp_path / "file" / "run")


def test_what_is_no_run_and_what_is_damaged_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no run at .*nowhere"):
        open_run(tmp_path / "nowhere")
    run = create(prepare(RUNS["seal"]), tmp_path / "run")
    for name in ("plan.json", "run.json"):
        kept = (run.folder / name).read_text()
        (run.folder / name).write_text(kept[:100])
        with pytest.raises(SettingError, match=rf"{name} cannot be read") as caught:
            open_run(run.folder)
        assert "\n" not in str(caught.value)
        (run.folder / name).write_text(kept)


def test_settings_that_no_longer_give_the_plan_are_not_resumed(tmp_path: Path) -> None:
    run = create(
        prepare(settings(LaterLayer(generations=2, epochs=1, warmup_epochs=0, threshold="body"))), tmp_path / "run"
    )
    job = (run.folder / "run.json").read_text()
    (run.folder / "run.json").write_text(job.replace('"fixed": false', '"fixed": true'))
    with pytest.raises(SettingError, match="its settings now give plan"):
        open_run(run.folder)


def test_an_old_stop_request_does_not_stop_a_resumed_run(tmp_path: Path) -> None:
    run = create(
        prepare(settings(Restarts(generations=1, epochs=1, warmup_epochs=0), resources=Resources(workers=1))),
        tmp_path / "run",
    )
    (run.folder / STOP_REQUEST).touch()
    assert carry(run).state == "stopped"
    assert resumed(run.folder).state == "finished"


def test_resuming_a_finished_run_changes_nothing(uninterrupted: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(uninterrupted["seal"], tmp_path / "run")
    outcome = resumed(tmp_path / "run")
    assert outcome.state == "finished"
    same_end(tmp_path / "run", uninterrupted["seal"])
    assert len([r for r in journal(tmp_path / "run", "score") if r["role"] == "test"]) == 1


def test_dropout_is_part_of_what_comes_back() -> None:
    """Were it off, the tests above would prove less."""
    assert all(config.task == Toy(dropout=True) for config in RUNS.values())
