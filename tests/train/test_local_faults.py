"""Losses that are not finite, disks that are full, journals that are whole: nothing that was kept is lost."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import resource
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llf_ray.train.export as export
import llf_ray.train.state as state
from llf_ray.engine.pieces import Pieces
from llf_ray.engine.team import Team
from llf_ray.forget.groups import Select
from llf_ray.forget.masks import Magnitude
from llf_ray.forget.operations import KeepMask, Snapshot
from llf_ray.journal import Journal
from llf_ray.plan import Length, Phase, Rule
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.seal import Seal
from llf_ray.run import Checkpoints, RunConfig, prepare
from llf_ray.tasks.base import Tally
from llf_ray.train.adviser import Adviser
from llf_ray.train.evaluation import evaluate
from llf_ray.train.folder import create, open_run
from llf_ray.train.state import checkpoints, load_stand, newest, verify
from tests.local import (
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
from tests.toy import SIZES, Toy

SMALL = settings(
    LaterLayer(generations=3, epochs=1, warmup_epochs=0, threshold="body"),
    checkpoints=Checkpoints(every_steps=2, keep=9),
)


@dataclass(frozen=True, kw_only=True)
class Poisoned(Toy):
    """The toy, whose loss is not a number from a call on while a file exists."""

    file: str
    after: int
    value: float = math.nan

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tally]]:
        """The toy's, or poison."""
        CALLS[self.file] = CALLS.get(self.file, 0) + 1
        loss, tallies = super().loss(model, batch)
        return (loss * self.value if CALLS[self.file] > self.after and Path(self.file).exists() else loss), tallies


@dataclass(frozen=True, kw_only=True)
class Bent(Toy):
    """The toy, with a finite loss whose gradient is not a number at one call."""

    file: str
    at: int

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tally]]:
        """The toy's, plus the square root of zero where it bends."""
        CALLS[self.file] = CALLS.get(self.file, 0) + 1
        loss, tallies = super().loss(model, batch)
        if CALLS[self.file] == self.at:
            loss = loss + (loss - loss.detach()).square().sqrt()
        return loss, tallies


CALLS: dict[str, int] = {}


def poisoned(tmp_path: Path, after: int, *, value: float = math.nan, **changes: Any) -> RunConfig:
    poison = tmp_path / "poison"
    poison.touch()
    return replace(SMALL, task=Poisoned(dropout=True, file=str(poison), after=after, value=value), **changes)


# ----------------------------------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("log_every", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_phase(
    value: float, log_every: int, tmp_path: Path
) -> None:
    config = poisoned(tmp_path, 6, value=value, tracking=replace(SMALL.tracking, log_every=log_every))
    run = create(prepare(config), tmp_path / "run")
    outcome = carry(run)
    assert outcome.state == "failed"
    assert outcome.message.startswith(f"the training loss is {value} at step 7 (phase 'relearn' of generation 1); ")
    assert "the weights of step-00000006 are kept; the same settings would end here again" in outcome.message
    assert "\n" not in outcome.message
    assert not (run.folder / "final").exists()
    assert all(math.isfinite(r["values"]["train/loss"]) for r in journal(run.folder, "metrics"))
    found = newest(run.folder / "checkpoints")[0]
    assert found is not None
    assert load_stand(found).step == 6


@pytest.mark.parametrize(("at", "kept"), [(4, 2), (12, 10)])
def test_weights_that_a_step_made_not_finite_are_neither_kept_nor_exported(at: int, kept: int, tmp_path: Path) -> None:
    """The loss of a step is that of the weights before it, so a checkpoint right behind it must look for itself."""
    run = create(prepare(replace(SMALL, task=Bent(file=str(tmp_path), at=at))), tmp_path / "run")
    outcome = carry(run)
    assert outcome.state == "failed"
    assert f"weights that are not finite at step {at} (phase" in outcome.message
    assert f"the weights of step-{kept:08d} are kept" in outcome.message
    names = [path.name for path in checkpoints(run.folder / "checkpoints")]
    assert f"step-{at:08d}" not in names
    for path in checkpoints(run.folder / "checkpoints"):
        pieces = Pieces(path)
        assert all(bool(pieces.full("weight", name).isfinite().all()) for name in pieces.names("weight"))
    assert not (run.folder / "final").exists()


def test_a_run_whose_first_loss_is_not_finite_says_that_nothing_was_kept(tmp_path: Path) -> None:
    outcome = carry(create(prepare(poisoned(tmp_path, 0)), tmp_path / "run"))
    assert outcome.state == "failed"
    assert "at step 1 (phase 'train' of generation 0); no checkpoint was written before it" in outcome.message


def test_a_failed_run_goes_on_when_its_cause_is_gone(tmp_path: Path) -> None:
    reference = whole(SMALL, tmp_path / "whole")
    run = create(prepare(poisoned(tmp_path, 6)), tmp_path / "run")
    assert carry(run).state == "failed"
    assert resumed(run.folder).state == "failed", "the cause is still there"
    (tmp_path / "poison").unlink()
    assert resumed(run.folder).state == "finished"
    assert same_bits(final(run.folder), final(reference))
    assert [r["step"] for r in journal(run.folder, "metrics")] == list(range(1, 13))


def test_weights_that_blow_up_are_found_by_their_loss(tmp_path: Path) -> None:
    config = replace(SMALL, optim=replace(SGD, lr=1e30), checkpoints=Checkpoints())
    outcome = carry(create(prepare(config), tmp_path / "run"))
    assert outcome.state == "failed"
    assert "the training loss is" in outcome.message


# ------------------------------------------------------------------------------------------------------------ full disk


class Full:
    """A disk that takes nothing while ``full`` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.write = state._write_manifest
        monkeypatch.setattr(state, "_write_manifest", self)

    def __call__(self, folder: Path, files: Mapping[str, Any]) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        self.write(folder, files)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Full:
    return Full(monkeypatch)


def filling(disk: Full, start: int, stop: int) -> type[Adviser]:
    """The disk is full from the one step on record to the other."""

    class Filling(Adviser):
        def record(self, records: Any) -> None:
            super().record(records)
            for record in records:
                if record["kind"] == "metrics":
                    disk.full = start <= record["step"] < stop

    return Filling


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_nothing_else(disk: Full, tmp_path: Path) -> None:
    reference = whole(SMALL, tmp_path / "whole")
    folder = whole(SMALL, tmp_path / "run", adviser=filling(disk, 4, 9))
    assert same_bits(final(folder), final(reference))
    missing = {r["step"] for r in journal(reference, "checkpoint")} - {r["step"] for r in journal(folder, "checkpoint")}
    assert missing == {4, 6, 8}
    for step in missing:
        assert f"no checkpoint at step {step}: rank 0 could not write: No space left on device" in messages(folder)
    assert "training goes on, the one before is kept" in messages(folder)
    assert not list((folder / "checkpoints").glob(".*")), "what was half written is gone"


def test_a_disk_that_stays_full_fails_the_run_at_its_end_and_loses_nothing(disk: Full, tmp_path: Path) -> None:
    reference = whole(SMALL, tmp_path / "whole")
    run = create(prepare(SMALL), tmp_path / "run")
    outcome = carry(run, filling(disk, 5, 99))
    assert outcome.state == "failed"
    assert outcome.message.startswith("no checkpoint at step 12: rank 0 could not write: No space left on device")
    assert "what was kept before is whole: free space and resume" in outcome.message
    found = newest(run.folder / "checkpoints")[0]
    assert found is not None
    assert load_stand(found).step == 4
    disk.full = False
    assert resumed(run.folder).state == "finished"
    assert same_bits(final(run.folder), final(reference))
    assert len([r for r in journal(run.folder, "score") if r["role"] == "test"]) == 1


def test_a_stop_on_a_full_disk_says_that_it_could_not_keep_its_state(disk: Full, tmp_path: Path) -> None:
    run = create(prepare(SMALL), tmp_path / "run")

    class Both(filling(disk, 5, 99), stopping_at(6)):  # type: ignore[misc]
        pass

    outcome = carry(run, Both)
    assert outcome.state == "failed"
    assert outcome.message.startswith("no checkpoint at step 7: ")


@pytest.mark.parametrize("operation", [Snapshot(store="s"), KeepMask(store="m", source=Magnitude(keep=0.5))])
def test_a_store_that_the_disk_does_not_take_fails_the_run_and_loses_nothing(
    operation: Any, disk: Full, tmp_path: Path
) -> None:
    phases = [Phase(name="p", generation=g, length=Length(epochs=1), exit=(operation,)) for g in range(2)]
    config = settings(phases)
    reference = whole(config, tmp_path / "whole")
    run = create(prepare(config), tmp_path / "run")
    outcome = carry(run, filling(disk, 6, 99))
    assert outcome.state == "failed"
    assert outcome.message.startswith("a store could not be written at step 8: rank 0 could not write: No space left")
    disk.full = False
    assert resumed(run.folder).state == "finished"
    assert same_bits(final(run.folder), final(reference))


def test_final_weights_that_the_disk_does_not_take_fail_the_run_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = create(prepare(SMALL), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(export, "save_file", full)
        outcome = carry(run)
    assert outcome.state == "failed"
    assert "the final weights could not be written" in outcome.message
    assert not (run.folder / "final" / "model.safetensors").exists()
    assert resumed(run.folder).state == "finished"
    assert final(run.folder)
    assert len([r for r in journal(run.folder, "score") if r["role"] == "test"]) == 1


def test_records_that_the_disk_does_not_take_wait_and_come_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = whole(SMALL, tmp_path / "whole")
    append, calls = Journal.append, [0]

    def sometimes(self: Journal, record: Mapping[str, Any]) -> bool:
        calls[0] += 1
        if 5 <= calls[0] < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(self, record)

    monkeypatch.setattr(Journal, "append", sometimes)
    folder = whole(SMALL, tmp_path / "run")
    kinds = [(r["kind"], r.get("step")) for r in journal(folder)]
    assert kinds == [(r["kind"], r.get("step")) for r in journal(reference)]


class Limited(Adviser):
    """From step 5 on the kernel takes no file of more than 3,000 bytes."""

    def record(self, records: Any) -> None:
        """Set the limit behind the fifth step."""
        super().record(records)
        if any(r["kind"] == "metrics" and r["step"] == 5 for r in records):
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))


def carry_within_limits(folder: Path) -> None:
    outcome = carry(open_run(folder), Limited)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (folder / "outcome.txt").write_text(f"{outcome.state}|{outcome.message}")


def test_a_real_limit_on_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    """The kernel refuses the writes: no half file is trusted, and the run says what happened."""
    reference = whole(SMALL, tmp_path / "whole")
    run = create(prepare(SMALL), tmp_path / "run")
    process = multiprocessing.get_context("fork").Process(target=carry_within_limits, args=(run.folder,))
    process.start()
    process.join(100)
    ended, _, message = (run.folder / "outcome.txt").read_text().partition("|")
    assert ended == "failed"
    assert message.startswith("no checkpoint at step 12: ")
    assert "File too large" in message
    found = newest(run.folder / "checkpoints")[0]
    assert found is not None
    assert load_stand(found).step == 4
    assert resumed(run.folder).state == "finished"
    assert same_bits(final(run.folder), final(reference))
    steps = [r["step"] for r in journal(run.folder, "metrics")]
    assert steps == list(range(1, 13)), "what the disk did not take of the journal is done, and told, again"


# -------------------------------------------------------------------------------------------------------------- journal


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(SMALL, tmp_path_factory.mktemp("reference") / "run")


def test_a_journal_tells_a_training_from_start_to_end(reference: Path) -> None:
    assert [r["step"] for r in journal(reference, "metrics")] == list(range(1, 13))
    assert [(r["index"], r["step"], r["stop"], r["total"]) for r in journal(reference, "phase")] == [
        (0, 0, 4, 12),
        (1, 4, 8, 12),
        (2, 8, 12, 12),
    ]
    assert [(r["step"], r["role"]) for r in journal(reference, "score")] == [
        (4, "validation"),
        (8, "validation"),
        (12, "validation"),
        (12, "test"),
    ]
    operations = journal(reference, "operation")
    assert [(r["step"], r["generation"], r["entries"], r["tensors"]) for r in operations] == [
        (4, 1, 336, 2),
        (8, 2, 336, 2),
    ]
    for operation in operations:
        assert {"name", "entries", "norm_before", "norm_after"} == set(operation["touched"][0])
        assert math.hypot(*(t["norm_after"] for t in operation["touched"])) == pytest.approx(operation["norm_after"])
        assert len(operation["digest"]) == 16
    keys = [(r["kind"], r["step"], r.get("role"), r.get("folder")) for r in journal(reference) if r["kind"] != "note"]
    assert len(keys) == len(set(keys)), "every point once"


def test_metrics_say_what_each_group_did(tmp_path: Path) -> None:
    """Rates as the optimizer had them, less the direction, which stands beside them."""
    head = Rule(select=Select(since="head", name="head"), lr=0.1)
    early = Rule(select=Select(before="body", name="early"), direction=-0.5)
    phases = [Phase(name="p", generation=0, length=Length(epochs=1), rules=(head, early))]
    folder = whole(settings(phases), tmp_path / "run")
    first = journal(folder, "metrics")[0]["values"]
    assert (first["lr/rest"], first["lr/early"], first["lr/head"]) == pytest.approx((0.05, 0.05, 0.005))
    assert (first["direction/rest"], first["direction/early"], first["direction/head"]) == (1.0, -0.5, 1.0)
    assert (first["generation"], first["phase"]) == (0, 0)
    assert 0 <= first["train/accuracy"] <= 1
    assert first["examples_per_second"] > 0


def test_a_metric_is_the_mean_of_the_steps_since_the_last(tmp_path: Path, reference: Path) -> None:
    folder = whole(replace(SMALL, tracking=replace(SMALL.tracking, log_every=3)), tmp_path / "run")
    losses = [r["values"]["train/loss"] for r in journal(reference, "metrics")]
    found = {r["step"]: r["values"]["train/loss"] for r in journal(folder, "metrics")}
    points = sorted(found)
    assert points == [2, 3, 4, 6, 7, 8, 10, 11, 12], "every third of a phase, where asked, where a checkpoint lies"
    for start, stop in zip([0, *points], points, strict=False):
        assert found[stop] == pytest.approx(sum(losses[start:stop]) / (stop - start))


def test_scores_come_at_epochs_of_the_generation_also_where_phases_end_inside_them(tmp_path: Path) -> None:
    recipe = Seal(generations=2, epochs=3, ascent_epochs=0.5, warmup_epochs=0, threshold="body")
    folder = whole(settings(recipe), tmp_path / "run")
    steps = [r["step"] for r in journal(folder, "score") if r["role"] == "validation"]
    assert steps == [4, 8, 12, 14, 16, 20, 24]


def test_test_is_scored_once_and_with_the_final_weights(reference: Path, tmp_path: Path) -> None:
    (score,) = [r for r in journal(reference, "score") if r["role"] == "test"]
    config = SMALL
    net = config.task.build(0)
    net.load_state_dict(final(reference), strict=True)
    net.eval()
    images, labels = Toy().data("test")
    with torch.no_grad():
        logits = net(images)
    assert score["values"]["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert score["values"]["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)


def test_roles_are_read_as_often_as_they_are_scored(tmp_path: Path) -> None:
    """Validation at the end of each epoch, test at the end of the run: held-out data are not looked at for nothing."""

    @dataclass(frozen=True, kw_only=True)
    class Roles(Toy):
        def batches(self, role: Any, draws: Any, device: torch.device) -> Any:
            roles.append(role)
            return super().batches(role, draws, device)

    roles: list[str] = []
    config = settings(LaterLayer(generations=3, epochs=1, warmup_epochs=0, threshold="body"), task=Roles())
    assert carry(create(prepare(config), tmp_path / "run")).state == "finished"
    assert roles == ["train", "validation"] * 3 + ["test"]


def test_every_item_of_a_role_counts_once_in_a_score(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Counted(Toy):
        def score(self, model: nn.Module, batch: Any) -> dict[str, Tally]:
            seen.append(len(batch[1]))
            return {**super().score(model, batch), "items": Tally(torch.tensor(float(len(batch[1]))), 1)}

    seen: list[int] = []
    config = settings(LaterLayer(generations=1, threshold="body"), task=Counted())
    run = create(prepare(config), tmp_path / "run")
    engine = engine_of(run)
    engine.module.train()
    evaluate(config, engine, Team.alone(), "test")
    assert sum(seen) == SIZES["test"]
    assert engine.module.training, "and the module is left as it was"


# --------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("averaged", [None, 0.5])
def test_exported_weights_load_strictly_and_are_those_that_were_scored(averaged: float | None, tmp_path: Path) -> None:
    config = replace(SMALL, optim=replace(SGD, averaged=averaged))
    folder = whole(config, tmp_path / "run")
    exported = final(folder)
    net = config.task.build(1)
    net.load_state_dict(exported, strict=True)
    about = json.loads((folder / "final" / "settings.json").read_text())
    assert about["averaged"] == (averaged is not None)
    assert about["settings"]["optim.lr"] == "0.05"
    assert about["job"] == json.loads((folder / "run.json").read_text())["job"]
    assert about["scores"].keys() >= {"test/accuracy", "validation/accuracy", "test/loss"}
    run = open_run(folder)
    engine = engine_of(run)
    latest = newest(folder / "checkpoints")[0]
    assert latest is not None
    engine.load(latest)
    for name, value in exported.items():
        assert torch.equal(value, engine.read(name, average=averaged is not None))
    if averaged:
        assert not torch.equal(exported["head.weight"], engine.read("head.weight"))


def test_a_run_leaves_only_what_verifies(reference: Path) -> None:
    assert all(verify(path) is None for path in checkpoints(reference / "checkpoints"))
    assert not list(reference.rglob("*tmp*"))
    assert {path.name for path in reference.iterdir()} >= {
        "run.json",
        "plan.json",
        "journal.jsonl",
        "checkpoints",
        "final",
    }


def test_whoever_may_read_a_run_may_read_its_weights(tmp_path: Path) -> None:
    """A tracking server or another worker's user, by the umask of whoever trains."""
    phases = [Phase(name="p", generation=0, length=Length(steps=2), entry=(Snapshot(store="s"),))]
    folder = whole(settings(phases), tmp_path / "run")
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".safetensors", ".json"):
            assert path.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o666, path
