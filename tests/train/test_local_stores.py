"""Data that a run makes for itself: generated, kept, learned from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.data.order import Draw
from llf_ray.engine.base import EngineSettings
from llf_ray.plan import Curve, DataRule, Generate, Length, Objective, Phase, compute
from llf_ray.run import prepare
from llf_ray.train.folder import create
from tests.local import carry, final, journal, resumed, same_bits, settings, stopping_at, whole
from tests.toy import Toy

CONSTANT = Curve(shape="constant")


@dataclass(frozen=True, kw_only=True)
class Watched(Toy):
    """The toy, with a list of the stored items of every batch."""

    seen: list[list[int]] = field(default_factory=list, compare=False, hash=False)

    def stored_batches(
        self, store: Mapping[str, Tensor], draws: Iterable[Draw], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Note which items are asked for."""

        def noting() -> Iterator[Draw]:
            for draw in draws:
                self.seen.append(draw.indices.tolist())
                yield draw

        return super().stored_batches(store, noting(), device)


def phases(**data: Any) -> list[Phase]:
    """Two generations: play, make something of it, learn from that."""
    found = []
    for g in range(2):
        found += [
            Phase(
                name="play",
                generation=g,
                length=Length(steps=5),
                curve=CONSTANT,
                exit=(Generate(what="noise", store="made"),),
            ),
            Phase(
                name="imitate",
                generation=g,
                length=Length(epochs=1.5),
                curve=CONSTANT,
                objective=Objective(kind="imitate"),
                data=DataRule(source="made", **data),
            ),
        ]
    return found


def test_a_phase_learns_from_what_was_generated_each_item_once_an_epoch(tmp_path: Path) -> None:
    task = Watched()
    config = settings(phases(batch=4), task=task)
    prepared = prepare(config)
    assert prepared.plan.epoch_steps == (4, 6, 4, 6), "24 items in fours"
    assert prepared.plan.steps == (5, 9, 5, 9)
    whole(config, tmp_path / "run")
    epochs = [[item for batch in task.seen[start : start + 6] for item in batch] for start in (0, 9)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 2
    assert epochs[0] != epochs[1], "an order for each generation"
    assert {len(batch) for batch in task.seen} == {4}


def test_what_is_generated_depends_on_seed_and_generation_and_is_kept(tmp_path: Path) -> None:
    made = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        folder = whole(settings(phases(), seed=seed), tmp_path / name)
        made[name] = [load_file(path) for path in sorted((folder / "stores").glob("made-*/data.safetensors"))]
        assert len(made[name]) == 2
    assert same_bits(made["one"][0], made["again"][0])
    assert same_bits(made["one"][1], made["again"][1])
    assert not torch.equal(made["one"][0]["images"], made["one"][1]["images"])
    assert not torch.equal(made["one"][0]["images"], made["other"][0]["images"])
    operations = journal(tmp_path / "one", "operation")
    assert [record["operation"] for record in operations] == ["generate noise into made"] * 2
    assert all(record["entries"] == 0 for record in operations)


def test_a_run_stopped_inside_such_a_phase_goes_on_with_the_same_data(tmp_path: Path) -> None:
    config = settings(phases(batch=4))
    reference = whole(config, tmp_path / "whole")
    run = create(prepare(config), tmp_path / "run")
    for step in (5, 8):
        assert carry(run, stopping_at(step)).state == "stopped"
    assert resumed(run.folder).state == "finished"
    assert same_bits(final(run.folder), final(reference))


def test_micro_batches_divide_a_phases_own_batch(tmp_path: Path) -> None:
    task = Watched()
    config = settings(phases(batch=4), task=task, engine=EngineSettings(batch=12, accumulation=2))
    whole(config, tmp_path / "run")
    assert {len(batch) for batch in task.seen} == {2}


@dataclass(frozen=True, kw_only=True)
class Broken(Toy):
    """It promises more than it makes."""

    def generate(self, model: nn.Module, what: str, seed: int) -> dict[str, Tensor]:
        """One item short."""
        return {name: value[1:] for name, value in super().generate(model, what, seed).items()}


def test_a_task_that_makes_less_than_it_promised_fails_the_run_and_says_so(tmp_path: Path) -> None:
    run = create(prepare(settings(phases(), task=Broken())), tmp_path / "run")
    outcome = carry(run)
    assert outcome.state == "failed"
    assert "generate noise into made: the task made {'images': 23, 'said': 23} items where it had promised 24" in (
        outcome.message
    )


@dataclass(frozen=True, kw_only=True)
class Picky(Toy):
    """It makes noise only."""

    def store_size(self, what: str) -> int:
        """As any task says what it cannot make."""
        if what != "noise":
            raise SettingError(f"generate {what!r}: there is only 'noise'")
        return super().store_size(what)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"exit": (Generate(what="nois", store="made"),)}, "phase 'play' of generation 0: generate 'nois': there is"),
        ({"exit": ()}, "training needs store 'made', which no operation before it makes"),
    ],
)
def test_data_that_will_not_be_there_are_refused_before_anything_starts(change: dict[str, Any], said: str) -> None:
    first, *rest = phases()
    config = settings([replace(first, **change), *rest], task=Picky())
    with pytest.raises(SettingError) as caught:
        prepare(config)
    assert said in str(caught.value)


def test_a_phases_batch_must_suit_workers_and_micro_batches() -> None:
    config = settings(phases(batch=3), engine=EngineSettings(batch=12, accumulation=2))
    with pytest.raises(SettingError, match=r"phase 'imitate' of generation 0: accumulation = 2: must divide"):
        prepare(config)


def test_imitation_needs_data_to_imitate() -> None:
    phase = Phase(name="imitate", generation=0, length=Length(steps=2), objective=Objective(kind="imitate"))
    with pytest.raises(SettingError, match="objective 'imitate' learns from data that an earlier phase generated"):
        compute([phase], num_items=48, batch=12)


def test_questions_come_after_several_short_epochs_where_the_task_says_so() -> None:
    phase = Phase(name="train", generation=0, length=Length(steps=50), curve=CONSTANT)
    plan = compute([phase], num_items=48, batch=12)
    assert plan.ask_every == 4
    assert compute([phase], num_items=48, batch=12, ask_at_least=10).ask_every == 12
