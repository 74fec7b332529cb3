"""The study of Token Cropr: its trainings, its verdicts, its files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llf_ray.config import SettingError
from llf_ray.data.order import Draw
from llf_ray.run import prepare
from llf_ray.studies import cropr_results as results
from llf_ray.studies.cropr import START, begin, look, score_untrained, unscored
from llf_ray.studies.cropr_sizes import make
from llf_ray.tasks import Fresh, FromRun
from llf_ray.train.folder import create
from tests.local import carry

ARMS = ("dense", "cropr", "random")
UNTRAINED = ("merge_untrained", "random_untrained")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The quick size with three arms, a hundred images and two seeds."""
    whole = make("quick", seeds=2, folder=str(tmp_path_factory.mktemp("studies")))
    (family,) = (one for one in whole.families if one.name == "classification")
    data = replace(family.start.task.data, num_train=100, num_held_out=60)
    small = replace(
        family,
        arms={arm: replace(family.arms[arm], data=data) for arm in ARMS},
        start=replace(family.start, task=replace(family.start.task, data=data)),
        untrained={name: replace(family.untrained[name], data=data) for name in UNTRAINED},
    )
    return replace(whole, families=(small,))


@pytest.fixture(scope="module")
def found(study):
    for run in begin(study):
        carry(run)
    for name, config in study.arms().items():
        carry(create(prepare(config), study.place / name, parent=".."))
    left = unscored(study, set(study.arms()))
    assert [Path(folder).name for folder, _ in left] == ["classification-dense-seed0", "classification-dense-seed1"]
    for asked in left:
        score_untrained(asked)
    assert not unscored(study, set(study.arms()))
    return results.findings(study)


def test_every_arm_starts_from_the_dense_network_of_its_seed_and_differs_in_nothing_else(study):
    for name, config in study.arms().items():
        seed = name.rpartition("-seed")[2]
        assert config.task.start == FromRun(run=str(study.place / f"classification-{START}-seed{seed}"), head="fresh")
        assert config.seed == int(seed)
    tasks = [replace(config.task, model=None, start=Fresh()) for config in study.arms().values()]
    assert all(task == tasks[0] for task in tasks)
    assert all(config.task.start == Fresh() for config in study.starts().values())


def test_an_arm_begins_with_the_weights_that_its_start_ended_with(study, found):
    assert not found.missing
    ended = load_file(study.place / f"classification-{START}-seed1" / "final" / "model.safetensors")
    for arm in ARMS:
        begun = study.arms()[f"classification-{arm}-seed1"].task.build(1).state_dict()
        assert all(torch.equal(begun[name], value) for name, value in ended.items())
        assert {name for name in begun if name not in ended} == {name for name in begun if ".cropr." in name}


def test_a_price_is_that_of_the_pruned_network(found):
    price = found.prices["classification"]["cropr"]
    assert set(found.prices["classification"]) == {"cropr", "random", *UNTRAINED}
    assert price.gone == pytest.approx(1 - 15 / 81)
    assert price.pruned.total < 0.7 * price.dense.total
    assert found.prices["classification"]["random"].dense == price.dense


def test_differences_are_paired_and_published_numbers_stand_beside(found):
    minus = found.minus("classification", "cropr", "random")
    one, other = found.test("classification", "cropr"), found.test("classification", "random")
    assert minus.by_seed == {seed: one[seed] - other[seed] for seed in (0, 1)}
    assert found.minus("classification", "cropr", "dense", share=0.5).by_seed[1] == pytest.approx(
        one[1] - 0.5 * found.test("classification", "dense")[1]
    )
    text = results.document(found)
    assert "85.3 against 83.8" in text
    assert all(f"| {arm} |" in text for arm in (*ARMS, *UNTRAINED))


def test_what_was_never_trained_is_scored_with_the_dense_arms_weights(study, found):
    values = load_file(study.place / "classification-dense-seed1" / "final" / "model.safetensors")
    task = study.families[0].untrained["merge_untrained"]
    network = task.initial(5)
    network.load_state_dict(values)
    (batch,) = task.batches("test", [Draw(np.arange(60))], torch.device("cpu"))
    right = (network.eval()(batch.images).argmax(1) == batch.labels).double().mean()
    assert found.test("classification", "merge_untrained")[1] == pytest.approx(float(right))
    assert set(found.test("classification", "random_untrained")) == {0, 1}


def test_a_quick_study_judges_nothing_and_a_small_one_by_its_intervals(found):
    assert {one.verdict for one in results.claims(found)} == {"cannot be tested here"}
    scores = {
        "cropr": {0: 0.9, 1: 0.91, 2: 0.92},
        "random": {0: 0.8, 1: 0.82, 2: 0.81},
        "dense": {0: 0.9, 1: 0.9, 2: 0.9},
    }
    told = replace(
        found,
        study=replace(found.study, size="small", seeds=(0, 1, 2)),
        scores={"classification": {arm: {"accuracy": by} for arm, by in scores.items()}},
    )
    verdicts = {one.claim.name: one.verdict for one in results.claims(told)}
    assert verdicts["learned"] == "reproduced"
    turned = replace(
        told,
        scores={
            "classification": {**told.scores["classification"], "random": {"accuracy": {0: 0.95, 1: 0.97, 2: 0.96}}}
        },
    )
    assert {one.claim.name: one.verdict for one in results.claims(turned)}["learned"] == "not reproduced"


def test_files_hold_what_was_found(found):
    written = results.write(found)
    assert all(path.exists() for path in written)
    plain = json.loads((found.study.place / "result.json").read_text())
    assert plain["scores"]["classification"]["cropr"]["accuracy"].keys() == {"0", "1"}
    assert (found.study.place / "figures" / "against_dense.png").stat().st_size > 10_000


def test_other_settings_in_the_same_folder_are_refused(study, found):
    family = study.families[0]
    other = replace(
        study,
        families=(
            replace(
                family,
                base=replace(family.base, seed=5),
                start=replace(family.start, optim=replace(family.start.optim, lr=0.5)),
            ),
        ),
    )
    with pytest.raises(SettingError, match="holds a training of other settings"):
        look(other)


def test_sizes_and_seeds_that_do_not_exist_are_refused():
    with pytest.raises(SettingError, match=r"size 'smal' does not exist; did you mean 'small'\?"):
        make("smal")
    with pytest.raises(SettingError, match="--seeds 0: must be 1 or more"):
        make("quick", seeds=0)


@pytest.mark.parametrize("size", ["quick", "small"])
def test_every_arm_of_a_size_can_be_prepared(size, monkeypatch, tmp_path):
    monkeypatch.delenv("LLF_RAY_DATA", raising=False)
    study = make(size, seeds=1, folder=str(tmp_path))
    for name, config in study.trainings().items():
        if isinstance(config.task.start, FromRun):
            config = replace(config, task=replace(config.task, start=Fresh()))
        assert prepare(config).plan.total > 0, name
