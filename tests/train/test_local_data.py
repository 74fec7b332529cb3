"""Which items a phase learns from, in which order, and what its settings do to the network's normalisers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llf_ray.config import SettingError
from llf_ray.data.order import Draw
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.forget.groups import Select
from llf_ray.plan import DataRule, Length, Phase, Rule
from llf_ray.recipes.long import Long
from llf_ray.recipes.restarts import Restarts
from llf_ray.recipes.seal import Seal
from llf_ray.run import Comparison, Resources, group_rules, prepare
from llf_ray.tasks.base import Role
from tests.local import changed, settings, watched, whole
from tests.toy import Toy

DRAWN: list[Draw] = []


@dataclass(frozen=True, kw_only=True)
class Listed(Toy):
    """The toy, which notes what was asked for."""

    def batches(self, role: Role, draws: Iterable[Draw], device: torch.device) -> Iterator[Any]:
        """The toy's."""
        for draw in draws:
            if role == "train":
                DRAWN.append(draw)
            yield from super().batches(role, [draw], device)


AMBIENT: list[float] = []


@dataclass(frozen=True, kw_only=True)
class Dicing(Toy):
    """The toy, which notes what a layer would draw from torch's own generator."""

    def loss(self, model: Any, batch: Any) -> Any:
        """The toy's."""
        AMBIENT.append(float(torch.rand(())))
        return super().loss(model, batch)


def drawn(phases: Any, folder: Path, **changes: Any) -> list[Draw]:
    DRAWN.clear()
    whole(settings(phases, task=Listed(), **changes), folder)
    return list(DRAWN)


def epochs_of(draws: list[Draw]) -> dict[tuple[int, ...], list[int]]:
    found: dict[tuple[int, ...], list[int]] = {}
    for draw in draws:
        assert draw.key is not None
        found.setdefault(draw.key, []).extend(draw.indices.tolist())
    return found


def test_every_epoch_holds_each_item_once_and_each_generation_has_its_own_order(tmp_path: Path) -> None:
    """Also where a phase ends inside an epoch."""
    draws = drawn(Seal(generations=2, epochs=2, ascent_epochs=0.5, warmup_epochs=0, threshold="body"), tmp_path / "run")
    epochs = epochs_of(draws)
    assert list(epochs) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    assert all(sorted(items) == list(range(48)) for items in epochs.values())
    assert len({tuple(items) for items in epochs.values()}) == 4


def test_the_order_repeats_where_a_phase_says_so(tmp_path: Path) -> None:
    phases = [
        Phase(name="p", generation=g, length=Length(epochs=1.5), data=DataRule(repeat_order=True)) for g in range(2)
    ]
    draws = drawn(phases, tmp_path / "run")
    first, second = draws[:6], draws[6:]
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.indices, other.indices)
        assert one.key == other.key, "augmentation included"


def test_shares_grow_into_one_another(tmp_path: Path) -> None:
    phases = [
        Phase(name="p", generation=g, length=Length(epochs=2), data=DataRule(share=share))
        for g, share in enumerate((0.25, 0.5, 1.0))
    ]
    draws = drawn(phases, tmp_path / "run")
    assert len(draws) == 2 * (1 + 2 + 4)
    sets = [{i for d in draws if d.key[1] == g for i in d.indices.tolist()} for g in range(3)]  # type: ignore[index]
    assert [len(items) for items in sets] == [12, 24, 48]
    assert sets[0] < sets[1] < sets[2]


def test_accumulation_divides_the_same_batches(tmp_path: Path) -> None:
    whole_batches = drawn(Long(generations=1, epochs=1, warmup_epochs=0), tmp_path / "one")
    engine = EngineSettings(batch=12, accumulation=3)
    parts = drawn(Long(generations=1, epochs=1, warmup_epochs=0), tmp_path / "three", engine=engine)
    assert [len(d.indices) for d in parts] == [4] * 12
    joined = [np.concatenate([d.indices for d in parts[3 * s : 3 * s + 3]]) for s in range(4)]
    assert all(np.array_equal(a, b.indices) for a, b in zip(joined, whole_batches, strict=True))


def test_dropout_is_drawn_anew_in_every_step_and_micro_batch_and_alike_in_every_run(tmp_path: Path) -> None:
    def numbers(folder: Path, seed: int = 0) -> list[float]:
        AMBIENT.clear()
        engine = EngineSettings(batch=12, accumulation=2)
        whole(settings(Long(generations=1, epochs=2, warmup_epochs=0), task=Dicing(), engine=engine, seed=seed), folder)
        return list(AMBIENT)

    first = numbers(tmp_path / "one")
    assert len(set(first)) == len(first) == 16
    torch.manual_seed(7)
    assert numbers(tmp_path / "two") == first
    assert not set(numbers(tmp_path / "three", seed=1)) & set(first)


def test_statistics_rest_in_a_phase_that_says_eval(tmp_path: Path) -> None:
    phases = [
        Phase(name="a", generation=0, length=Length(epochs=1)),
        Phase(name="b", generation=0, length=Length(epochs=2), normalisation="eval"),
        Phase(name="c", generation=0, length=Length(epochs=1)),
    ]
    watch = watched(settings(phases), tmp_path / "run")
    statistics = {name for name in watch.weights[0] if "running" in name or "num_" in name}
    moving = [bool(changed(watch.weights[s], watch.weights[s + 1]) & statistics) for s in range(15)]
    assert moving == [True] * 4 + [False] * 8 + [True] * 3
    assert "stem.1.weight" in changed(watch.weights[5], watch.weights[6]), "the affine part learns"


# -------------------------------------------------------------------------------------------------------------- prepare


def test_biases_and_normalisers_decay_only_where_all_do() -> None:
    for decay, expected in (("all", {5e-3}), ("matrices", {5e-3, 0.0})):
        config = settings(Long(), optim=Optim(weight_decay=5e-3, decay=decay))
        prepared = prepare(config)
        rules = group_rules(prepared.plan.phases[0], prepared.groups, config.optim)
        assert {rule.weight_decay for rule in rules.values()} == expected
        for group in prepared.groups:
            if rules[group.name].weight_decay == 0:
                assert set(group.parameters) == {
                    "stem.1.weight",
                    "stem.1.bias",
                    "body.1.weight",
                    "body.1.bias",
                    "head.bias",
                }


def test_layers_further_from_the_head_learn_more_slowly_under_layer_decay() -> None:
    prepared = prepare(settings(Long(), optim=Optim(layer_decay=0.5)))
    factor = {name: group.factor for group in prepared.groups for name in group.parameters}
    assert factor["head.weight"] == factor["head.bias"] == 1.0
    order = ["head.weight", "body.1.weight", "body.0.weight", "stem.1.weight", "stem.0.weight"]
    assert [factor[name] for name in order] == [0.5**depth for depth in range(5)]


def test_modules_of_token_cropr_keep_the_rate_under_layer_decay() -> None:
    """As published: they are drawn anew, however early their block."""
    from llf_ray.tasks.segmentation import tiny  # here: it imports timm, which takes seconds

    prepared = prepare(settings(Long(), task=tiny, optim=Optim(name="adamw", layer_decay=0.5)))
    factor = {name: group.factor for group in prepared.groups for name in group.parameters}
    assert {value for name, value in factor.items() if ".cropr." in name} == {1.0}
    names = ["head.weight", "backbone.blocks.3.mlp.fc1.weight", "backbone.blocks.0.norm1.bias", "backbone.cls_token"]
    assert [factor[name] for name in names] == [0.5**depth for depth in (0, 1, 4, 5)]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            (Rule(select=Select(before="head")), Rule(select=Select(modules=("body",)))),
            "'body.0.weight' is in two rules",
        ),
        ((Rule(select=Select(before="head", name="x")), Rule(select=Select(since="head", name="x"))), "are called 'x'"),
        ((Rule(select=Select(before="head", name="rest")),), "no group may be called 'rest'"),
        ((Rule(select=Select(before="hed")),), "layer 'hed' does not exist; did you mean 'head'?"),
    ],
)
def test_rules_that_contradict_one_another_are_found_before_anything_starts(rules: Any, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        prepare(settings([Phase(name="p", generation=0, length=Length(steps=3), rules=rules)]))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_that_the_workers_cannot_share_is_refused_with_those_they_can() -> None:
    with pytest.raises(SettingError, match="batch = 12: 5 workers need a multiple of 5, for example 10 or 15"):
        prepare(settings(Long(), resources=Resources(workers=5)))
    with pytest.raises(SettingError, match="48 items are less than one batch of 60"):
        prepare(settings(Long(), engine=EngineSettings(batch=60)))


def test_a_comparison_trains_every_arm_on_every_seed_seed_by_seed() -> None:
    arms = {"long": Long(), "restarts": Restarts()}
    comparison = Comparison(name="c", base=settings(Long()), arms=arms, seeds=(3, 1))
    runs = comparison.runs()
    assert list(runs) == [("long", 3), ("restarts", 3), ("long", 1), ("restarts", 1)]
    assert [run.name for run in runs.values()] == ["long-seed3", "restarts-seed3", "long-seed1", "restarts-seed1"]
    assert runs["restarts", 1] == replace(comparison.base, name="restarts-seed1", recipe=Restarts(), seed=1)
    for changes, said in (
        ({"arms": {}}, "needs arms and seeds"),
        ({"seeds": ()}, "needs arms"),
        ({"seeds": (1, 1)}, "each seed once"),
    ):
        with pytest.raises(SettingError, match=said):
            replace(comparison, **changes)
