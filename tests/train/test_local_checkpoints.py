"""A checkpoint is whole or it is not trusted, and whatever happens to the newest, an older one carries the run."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llf_ray.config import SettingError
from llf_ray.engine.pieces import Pieces
from llf_ray.forget.groups import Either, Select
from llf_ray.forget.masks import Magnitude, Saved
from llf_ray.forget.operations import Forget, KeepMask, Snapshot
from llf_ray.plan import DataRule, Length, Phase, Until
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.recipes.restarts import Restarts
from llf_ray.recipes.seal import Seal
from llf_ray.run import Checkpoints, RunConfig, prepare
from llf_ray.train.folder import branch_of, create, load_module, open_run
from llf_ray.train.state import Stand, Stores, checkpoints, load_stand, newest, verify, write_checkpoint
from tests.local import (
    ADAMW,
    SGD,
    carry,
    engine_of,
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
SMALL = settings(
    LaterLayer(generations=3, epochs=1, warmup_epochs=0, threshold="body"),
    checkpoints=Checkpoints(every_steps=2, keep=9),
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(SMALL, tmp_path_factory.mktemp("reference") / "run")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second generation; tests work on copies."""
    run = create(prepare(SMALL), tmp_path_factory.mktemp("stopped") / "run")
    assert carry(run, stopping_at(6)).state == "stopped"
    return run.folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder / "checkpoints")]


# ----------------------------------------------------------------------------------------------------------------- when


def test_checkpoints_lie_at_phase_ends_and_every_n_steps(reference: Path) -> None:
    assert sorted(names(reference)) == [f"step-{step:08d}" for step in (2, 4, 6, 8, 10, 12)] + ["step-00000012-crossed"]
    kept = [record["step"] for record in journal(reference, "checkpoint")]
    assert kept == [2, 4, 6, 8, 10, 12, 12]
    assert (reference / "checkpoints" / "LATEST").read_text() == "step-00000012-crossed"
    assert all(verify(path) is None for path in checkpoints(reference / "checkpoints"))


def test_every_n_steps_means_every_n_steps_whatever_is_logged(tmp_path: Path) -> None:
    tracking = replace(SMALL.tracking, log_every=10)
    folder = whole(replace(SMALL, tracking=tracking, checkpoints=Checkpoints(every_steps=3, keep=9)), tmp_path / "run")
    assert {int(name.split("-")[1]) for name in names(folder)} == {3, 4, 6, 8, 9, 12}


def test_every_n_minutes_is_rank_0s_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves a minute at each look."""
    now = [0.0]

    def clock() -> float:
        now[0] += 60.0
        return now[0]

    monkeypatch.setattr(time, "monotonic", clock)
    config = replace(SMALL, recipe=Long(generations=3, epochs=1, warmup_epochs=0))
    never = whole(replace(config, checkpoints=Checkpoints(every_minutes=None)), tmp_path / "never")
    assert names(never) == ["step-00000012-crossed", "step-00000012"]
    often = whole(replace(config, checkpoints=Checkpoints(every_minutes=3, keep=9)), tmp_path / "often")
    assert len(names(often)) > 3


def test_only_the_newest_and_the_ends_of_generations_stay(tmp_path: Path) -> None:
    settings_of = {True: [4, 8, 10, 12], False: [10, 12]}
    for generations, left in settings_of.items():
        config = replace(SMALL, checkpoints=Checkpoints(every_steps=2, keep=3, keep_generations=generations))
        folder = whole(config, tmp_path / str(generations))
        assert sorted({int(name.split("-")[1]) for name in names(folder)}) == left
        assert not list((folder / "checkpoints").glob(".*"))


def test_a_pruned_run_still_resumes(tmp_path: Path, reference: Path) -> None:
    config = replace(SMALL, checkpoints=Checkpoints(every_steps=1, keep=1, keep_generations=False))
    run = create(prepare(config), tmp_path / "run")
    carry(run, stopping_at(7))
    assert len(names(run.folder)) == 1
    assert resumed(run.folder).state == "finished"
    assert same_bits(final(run.folder), final(reference))


# -------------------------------------------------------------------------------------------------------------- damage


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(bytes(data))


def piece(checkpoint: Path) -> Path:
    return next(checkpoint.glob("pieces-*"))


DAMAGE: dict[str, Any] = {
    "a flipped bit in the weights": lambda c: flip(piece(c), 0.9),
    "a flipped bit in their header": lambda c: flip(piece(c), 0.01),
    "truncated weights": lambda c: piece(c).write_bytes(piece(c).read_bytes()[:-7]),
    "weights that are gone": lambda c: piece(c).unlink(),
    "a flipped bit in the stand": lambda c: flip(c / "stand.json"),
    "a stand that is gone": lambda c: (c / "stand.json").unlink(),
    "a manifest that is gone": lambda c: (c / "manifest.json").unlink(),
    "a truncated manifest": lambda c: (c / "manifest.json").write_bytes((c / "manifest.json").read_bytes()[:40]),
    "an empty manifest": lambda c: (c / "manifest.json").write_text(""),
    "a manifest of something else": lambda c: (c / "manifest.json").write_text('{"files": [1, 2]}'),
    "a manifest that is no text": lambda c: (c / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "a folder without anything": lambda c: (shutil.rmtree(c), c.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_said_and_no_bit_is_lost(
    folder: Path, reference: Path, damage: str
) -> None:
    latest = newest(folder / "checkpoints")[0]
    assert latest is not None
    DAMAGE[damage](latest)
    assert resumed(folder).state == "finished"
    assert f"passed over checkpoint {latest.name}: " in messages(folder)
    assert "resumed at step 6 from step-00000006" in messages(folder)
    assert same_bits(final(folder), final(reference))


def test_any_flipped_bit_of_manifest_and_stand_is_noticed_or_harmless(stopped: Path, tmp_path: Path) -> None:
    """Never an error of another kind, never another stand."""
    latest = newest(stopped / "checkpoints")[0]
    assert latest is not None
    stand = load_stand(latest)
    for name in ("manifest.json", "stand.json"):
        whole_text = (latest / name).read_bytes()
        copy = tmp_path / latest.name
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(latest, copy)
        for place in range(0, len(whole_text), 7):
            for bit in (1, 32):
                data = bytearray(whole_text)
                data[place] ^= bit
                (copy / name).write_bytes(bytes(data))
                if verify(copy) is None:
                    assert load_stand(copy) == stand


def test_leftovers_of_a_checkpoint_that_was_never_finished_are_no_checkpoint(folder: Path, reference: Path) -> None:
    latest = newest(folder / "checkpoints")[0]
    assert latest is not None
    unfinished = folder / "checkpoints" / ".step-00000009.tmp"
    shutil.copytree(latest, unfinished)
    (unfinished / "manifest.json").unlink()
    assert newest(folder / "checkpoints")[0] == latest
    assert resumed(folder).state == "finished"
    assert not unfinished.exists(), "and it is taken away in time"
    assert same_bits(final(folder), final(reference))


def test_a_damaged_checkpoint_does_not_push_out_a_good_one(tmp_path: Path, reference: Path) -> None:
    """With one to keep, the damaged newer one must not be the one that is kept."""
    config = replace(SMALL, checkpoints=Checkpoints(every_steps=1, keep=1, keep_generations=False))
    run = create(prepare(config), tmp_path / "run")
    carry(run, stopping_at(5))
    good = newest(run.folder / "checkpoints")[0]
    assert good is not None
    bad = good.with_name("step-00000011")
    shutil.copytree(good, bad)
    flip(piece(bad))
    carry(open_run(run.folder), stopping_at(7))
    found, wrong = newest(run.folder / "checkpoints")
    assert found is not None
    assert load_stand(found).step == 8
    assert wrong == []
    assert (run.folder / "checkpoints" / "damaged-step-00000011").exists(), "for whoever wants to look at it"
    assert resumed(run.folder).state == "finished"
    assert same_bits(final(run.folder), final(reference))


def test_a_run_whose_checkpoints_are_all_damaged_says_so_and_starts_anew(folder: Path, reference: Path) -> None:
    for path in checkpoints(folder / "checkpoints"):
        flip(piece(path))
    number = len(names(folder))
    assert resumed(folder).state == "finished"
    assert messages(folder).count("passed over checkpoint") == number
    assert same_bits(final(folder), final(reference))


def test_the_word_of_latest_is_not_asked(folder: Path, reference: Path) -> None:
    (folder / "checkpoints" / "LATEST").write_text("step-99999999")
    assert resumed(folder).state == "finished"
    assert same_bits(final(folder), final(reference))


# --------------------------------------------------------------------------------------------------------------- stores


def pruning(generations: int = 2, *, keep: float = 0.8) -> list[Phase]:
    """Iterative pruning with a rewind to the start, an epoch a generation, the same data order in each."""
    prune = (
        KeepMask(store="m", source=Magnitude(keep=keep, scope="global")),
        Forget(select=EVERYTHING, keep=Saved(name="m"), kept="store", fill="zero", store="start"),
    )
    return [
        Phase(
            name="train",
            generation=g,
            length=Length(epochs=1),
            entry=(Snapshot(store="start"),) if g == 0 else (),
            exit=prune,
            hold=("m",) if g else (),
            optimizer="rebuild" if g else "keep",
            data=DataRule(repeat_order=True),
        )
        for g in range(generations)
    ]


@pytest.mark.parametrize("optim", [SGD, ADAMW, replace(ADAMW, averaged=0.5)], ids=["sgd", "adamw", "averaged"])
def test_pruned_weights_stay_zero_through_training(optim: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    phases = pruning(2)
    run = create(prepare(settings([phases[0], replace(phases[1], exit=())], optim=optim)), folder)
    zeros: list[dict[str, torch.Tensor]] = []

    def watch(engine: Any) -> None:
        inner = engine.step

        def step(*args: Any) -> Any:
            loss = inner(*args)
            zeros.append({n: engine.read(n) == 0 for n in ("stem.0.weight", "body.0.weight", "head.weight")})
            return loss

        engine.step = step

    assert carry(run, watch=watch).state == "finished"
    masks = Stores(folder, load_stand(newest(folder / "checkpoints")[0]).stores)["m"]  # type: ignore[arg-type]
    assert sum(int(masks[name].sum()) for name in masks) == 381 - 77  # 45 + 315 + 21, less a fifth, rounded up
    for after_step in zeros[4:]:
        for name, zero in after_step.items():
            assert bool(zero[~masks[name]].all())
            assert not bool(zero[masks[name]].any())
    exported = final(folder)
    for name in masks:
        assert not exported[name][~masks[name]].any()


def test_pruning_nothing_and_rewinding_to_the_start_is_the_dense_run_again(tmp_path: Path) -> None:
    """With the same data order, to the bit, statistics and counters included."""
    phases = pruning(2, keep=1.0)
    dense = whole(settings([replace(phases[0], exit=(), entry=())], task=Toy()), tmp_path / "dense")
    again = whole(settings([phases[0], replace(phases[1], exit=())], task=Toy()), tmp_path / "again")
    assert same_bits(final(again), final(dense))


def test_a_rewind_brings_back_statistics_and_counters_too(tmp_path: Path) -> None:
    folder = whole(settings(pruning(2)), tmp_path / "run")
    start = prepare(settings(pruning(2))).config.task.build(0).state_dict()
    exported = final(folder)
    for name, value in start.items():
        if "running" in name or "num_" in name or name.endswith("bias"):
            assert torch.equal(exported[name], value), name


@pytest.mark.parametrize("store", ["m", "start"])
def test_a_damaged_store_is_noticed_and_an_older_checkpoint_goes_back_behind_it(store: str, tmp_path: Path) -> None:
    config = settings(pruning(3))
    reference = whole(config, tmp_path / "whole")
    run = create(prepare(config), tmp_path / "run")
    carry(run, stopping_at(6))
    (path,) = (run.folder / "stores").glob(f"{store}-*")
    flip(next(path.glob("*.safetensors")), 0.95)
    assert resumed(run.folder).state == "finished"
    assert f"store {path.name}: " in messages(run.folder)
    assert same_bits(final(run.folder), final(reference))


def test_what_was_held_may_be_revived_whether_or_not_the_run_was_interrupted_there(tmp_path: Path) -> None:
    """An operation at the end of a sparse phase writes into entries that the phase held."""
    mask = KeepMask(store="m", source=Magnitude(keep=0.5))
    sparse = Phase(name="sparse", generation=0, length=Length(steps=2), entry=(mask,), hold=("m",))
    dense = Phase(
        name="dense", generation=0, length=Length(steps=2), entry=(Forget(keep=Saved(name="m"), fill="initial"),)
    )
    config = settings([sparse, dense])
    reference = whole(config, tmp_path / "whole")
    (revived,) = [r for r in journal(reference, "operation") if r["operation"].startswith("re-initialise")]
    assert revived["entries"] == 23 + 158 + 11, "half of each tensor, rounded up"
    run = create(prepare(replace(config, checkpoints=Checkpoints(every_steps=1))), tmp_path / "run")
    carry(run, stopping_at(1))
    shutil.rmtree(run.folder / "checkpoints" / "step-00000002-crossed", ignore_errors=True)
    assert resumed(run.folder).state == "finished"
    assert same_bits(final(run.folder), final(reference))
    assert [r["digest"] for r in journal(run.folder, "operation")] == [
        r["digest"] for r in journal(reference, "operation")
    ]


def test_two_holds_hold_what_either_holds(tmp_path: Path) -> None:
    first, second = (
        KeepMask(store=name, source=source)
        for name, source in (("a", Magnitude(keep=0.7)), ("b", Magnitude(keep=0.4, scope="global")))
    )
    phases = [Phase(name="p", generation=0, length=Length(steps=3), entry=(first, second), hold=("a", "b"))]
    folder = whole(settings(phases), tmp_path / "run")
    stores = Stores(folder, load_stand(newest(folder / "checkpoints")[0]).stores)  # type: ignore[arg-type]
    exported = final(folder)
    for name in stores["a"]:
        assert torch.equal(exported[name] != 0, stores["a"][name] & stores["b"][name])


# --------------------------------------------------------------------------------------------------------------- branch


def branched(config: RunConfig, origin: Path, generation: int, folder: Path) -> Path:
    prepared = prepare(config)
    run = create(prepared, folder, branch=branch_of(origin, generation, prepared))
    assert open_run(folder) == run
    outcome = carry(run)
    assert outcome.state == "finished", outcome.message
    return folder


BRANCHES = {
    "later_layer": SMALL,
    "seal": settings(
        Seal(generations=3, epochs=1, ascent_epochs=0.5, warmup_epochs=0, threshold="body"),
        optim=replace(ADAMW, averaged=0.9),
    ),
    "pruning": settings(pruning(3)),
}


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize("generation", [0, 1])
def test_a_branch_with_the_same_settings_ends_with_the_same_bits(name: str, generation: int, tmp_path: Path) -> None:
    origin = whole(BRANCHES[name], tmp_path / "origin")
    branch = branched(BRANCHES[name], origin, generation, tmp_path / "branch")
    assert same_bits(final(branch), final(origin))
    first = 4 * (generation + 1)
    assert [r["step"] for r in journal(branch, "metrics")] == list(range(first + 1, 13))
    assert f"branched at step {first} from {origin.resolve()}/checkpoints/step-{first:08d}" in messages(branch)


def test_a_branch_is_continued_for_more_generations_as_a_longer_run_would_have_been(
    reference: Path, tmp_path: Path
) -> None:
    longer = replace(SMALL, recipe=replace(SMALL.recipe, generations=5))  # type: ignore[type-var]
    assert same_bits(
        final(branched(longer, reference, 2, tmp_path / "branch")), final(whole(longer, tmp_path / "whole"))
    )


def test_a_branch_with_other_settings_starts_from_the_same_weights(reference: Path, tmp_path: Path) -> None:
    other = replace(
        SMALL, optim=replace(SGD, lr=0.01), recipe=Restarts(generations=3, epochs=1, warmup_epochs=0), seed=5
    )
    branch = branched(other, reference, 1, tmp_path / "branch")
    assert not same_bits(final(branch), final(reference))
    assert journal(branch, "metrics")[0]["step"] == 9, "what lies in front of the branch is its parent's to tell"
    assert not [record for record in journal(branch, "score") if record["step"] <= 8]


def test_a_branch_can_be_stopped_before_it_has_a_checkpoint_and_resumed(reference: Path, tmp_path: Path) -> None:
    prepared = prepare(SMALL)
    run = create(prepared, tmp_path / "branch", branch=branch_of(reference, 0, prepared))
    assert carry(run, stopping_at(4, "phase")).state == "stopped"
    shutil.rmtree(run.folder / "checkpoints")
    assert resumed(run.folder).state == "finished"
    assert same_bits(final(run.folder), final(reference))


def test_a_branch_does_not_touch_its_parent(reference: Path, tmp_path: Path) -> None:
    origin = Path(shutil.copytree(reference, tmp_path / "origin"))
    before = {path: path.read_bytes() for path in origin.rglob("*") if path.is_file()}
    branched(replace(SMALL, checkpoints=Checkpoints(keep=1)), origin, 0, tmp_path / "branch")
    assert {path: path.read_bytes() for path in origin.rglob("*") if path.is_file()} == before


NEIGHBOUR = """
from farther import FACTOR


def doubled(old):
    return old * FACTOR
"""
JOB = """
from dataclasses import dataclass, replace

from doubled import doubled
from llf_ray.forget.edit import Edit
from llf_ray.plan import Length, Phase
from tests.local import settings


@dataclass(frozen=True, kw_only=True)
class Double:
    label = "double the head's bias"
    select = None
    needs = ()
    makes = ()

    def __call__(self, view):
        return Edit(values={"head.bias": doubled})


@dataclass(frozen=True, kw_only=True)
class Doubling:
    generations: int = 2

    def plan(self):
        return tuple(
            Phase(name="p", generation=g, length=Length(epochs=1), entry=(Double(),) if g else ())
            for g in range(self.generations)
        )


config = settings(Doubling())
"""


def test_types_that_a_job_file_defines_come_back_with_its_runs(tmp_path: Path) -> None:
    """In another process, as it were, whether the run is resumed or branched.

    The file and the neighbours that it imports may be gone.
    """
    job, neighbours = tmp_path / "doubling.py", {"doubled": NEIGHBOUR, "farther": "FACTOR = 2", "unasked": "1 / 0"}
    job.write_text(JOB)
    for name, text in neighbours.items():
        (tmp_path / f"{name}.py").write_text(text)
    module = load_module(job)
    run = create(prepare(module.config), tmp_path / "run", job_file=job)
    assert carry(run, stopping_at(5)).state == "stopped"
    assert {path.name for path in (run.folder / "job").iterdir()} >= {"doubling.py", "doubled.py", "farther.py"}
    assert not (run.folder / "job" / "unasked.py").exists()
    for name in (job.stem, *neighbours):
        (tmp_path / f"{name}.py").unlink()
    for name in (module.__name__, "doubled", "farther"):
        del sys.modules[name]
    assert resumed(run.folder).state == "finished"
    assert [r["operation"] for r in journal(run.folder, "operation")] == ["double the head's bias"]
    del sys.modules[module.__name__]
    longer = settings(pruning(3))
    assert branch_of(run.folder, 0, prepare(longer))[1] == 4


def test_a_branch_from_a_cut_generation_starts_where_it_was_cut(tmp_path: Path) -> None:
    cut = Until(at_least=0.0)
    phases = [
        Phase(name="p", generation=g, length=Length(epochs=3), until=cut if g == 0 else None, optimizer="rebuild")
        for g in range(2)
    ]
    origin = whole(settings(phases), tmp_path / "origin")
    prepared = prepare(settings(phases))
    path, step = branch_of(origin, 0, prepared)
    assert path.name == "step-00000004"
    assert step == 12, "the branch has its own clock, in which nothing was cut"


@pytest.mark.parametrize(
    ("generation", "generations", "said"),
    [
        (3, 3, "run 'run' has generations 0 to 2, not 3"),
        (-1, 3, "run 'run' has generations 0 to 2, not -1"),
        (2, 3, "nothing follows generation 2; raise recipe.generations"),
        (1, 1, "nothing follows generation 1; raise recipe.generations"),
    ],
)
def test_a_branch_that_cannot_be_is_refused_in_one_line(
    reference: Path, generation: int, generations: int, said: str
) -> None:
    prepared = prepare(replace(SMALL, recipe=replace(SMALL.recipe, generations=generations)))  # type: ignore[type-var]
    with pytest.raises(SettingError) as caught:
        branch_of(reference, generation, prepared)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_branch_from_another_model_is_refused_before_anything_starts(reference: Path) -> None:
    prepared = prepare(SMALL)
    head = next(slot for slot in prepared.slots if slot.name == "head.weight")
    slots = tuple(replace(slot, shape=(4, 7)) if slot is head else slot for slot in prepared.slots)
    with pytest.raises(SettingError, match=r"another model: head.weight: it has shape \(3, 7\), .* has shape \(4, 7\)"):
        branch_of(reference, 0, replace(prepared, slots=slots))
    less = tuple(slot for slot in prepared.slots if slot is not head)
    with pytest.raises(SettingError, match=r"head.weight: it has shape \(3, 7\), this job's model has no such entry"):
        branch_of(reference, 0, replace(prepared, slots=less))


def test_a_checkpoint_that_is_there_and_verifies_is_not_written_again(tmp_path: Path) -> None:
    """A kill in the middle would leave neither the old folder nor the new one."""
    run = create(prepare(SMALL), tmp_path / "run")
    assert carry(run, stopping_at(5)).state == "stopped"
    path = newest(run.folder / "checkpoints")[0]
    assert path is not None
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    engine = engine_of(run)
    engine.load(path)
    assert write_checkpoint(path.parent, load_stand(path), engine, engine.team, about={}) == path
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before
    (path / "stand.json").write_text("{}")
    write_checkpoint(path.parent, Stand(step=6), engine, engine.team, about={"optimizer": "sgd"})
    assert verify(path) is None
    assert load_stand(path).step == 6


def test_a_branch_from_what_was_not_kept_or_is_damaged_is_refused(folder: Path, tmp_path: Path) -> None:
    prepared = prepare(SMALL)
    with pytest.raises(SettingError, match=r"kept no checkpoint at the end of generation 1 \(step 8\); it has step-0"):
        branch_of(folder, 1, prepared)
    flip(piece(folder / "checkpoints" / "step-00000004"))
    with pytest.raises(SettingError, match=r"run 'run': step-00000004: pieces.* is damaged"):
        branch_of(folder, 0, prepared)
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    (folder / "checkpoints" / "step-00000002" / "stand.json").unlink()
    with pytest.raises(SettingError, match="kept no checkpoint"):
        branch_of(folder, 2, prepared)
    with pytest.raises(SettingError, match="no run at"):
        branch_of(tmp_path / "nowhere", 0, prepared)


# ------------------------------------------------------------------------------------------------------- what they hold


def test_a_checkpoint_holds_weights_moments_averages_and_where_the_run_stands(tmp_path: Path) -> None:
    config = settings(pruning(2), optim=replace(ADAMW, averaged=0.9))
    run = create(prepare(config), tmp_path / "run")
    outcome = carry(run, stopping_at(6))
    latest = newest(run.folder / "checkpoints")[0]
    assert latest is not None
    pieces = Pieces(latest)
    assert {"weight", "buffer", "average", "moment.exp_avg", "moment.exp_avg_sq", "count.step"} <= set(pieces.kinds())
    plain = json.loads((latest / "stand.json").read_text())
    assert plain["step"] == outcome.step == 7
    assert (plain["seed"], plain["plan"], plain["digest"]) == (0, run.plan.fingerprint, outcome.digest)
    assert plain["stores"] == {"start": "stores/start-00000000", "m": "stores/m-00000004"}
    applied = [(item["step"], item["operation"]) for item in plain["applied"]]
    assert [step for step, _ in applied] == [0, 4, 4]
    assert all(item["norm_after"] > 0 for item in plain["applied"] if item["entries"])
    assert [label for _, label in applied] == [record["operation"] for record in journal(run.folder, "operation")]
    assert float(pieces.scalar("count.step", "head.weight")) == 3, "the optimizer was built anew at step 4"
