"""What cannot work is refused before anything starts, in one line that names the setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llf_ray.config import SettingError
from llf_ray.data import Augment
from llf_ray.engine.base import EngineSettings
from llf_ray.recipes.born_again import TEACHER, BornAgain
from llf_ray.recipes.knowledge_evolution import KnowledgeEvolution
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.recipes.seal import Seal
from llf_ray.run import prepare
from llf_ray.tasks.classification import SmallResNet, TimmModel, tiny
from llf_ray.train.state import Stores, load_stand, newest
from tests.local import final, journal, settings, whole
from tests.toy import Toy

CALM = Toy(dropout=False)
SHORT: dict[str, Any] = {"generations": 1, "epochs": 2, "warmup_epochs": 0}


@pytest.mark.parametrize("recipe", [LaterLayer, Seal])
@pytest.mark.parametrize(
    ("threshold", "why"),
    [
        (4, "layer 4 does not exist: the model has 3 convolution and linear layers, counted from 1"),
        (0, "layer 0 does not exist: the model has 3 convolution and linear layers, counted from 1"),
        ("boddy", "layer 'boddy' does not exist; did you mean 'body'?"),
    ],
)
def test_a_threshold_beyond_the_last_layer_is_refused(recipe: Any, threshold: Any, why: str) -> None:
    """And only the setting that says so is named: generations are 4, too."""
    with pytest.raises(SettingError) as caught:
        prepare(settings(recipe(threshold=threshold)))
    assert str(caught.value).startswith(f"recipe.threshold = {threshold!r}: {why}")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(settings(Long(**SHORT), task=CALM, seed=5), tmp_path_factory.mktemp("runs") / "teacher")


def test_another_run_of_the_same_network_can_teach_generation_0(teacher: Path, tmp_path: Path) -> None:
    config = settings(BornAgain(**SHORT, teacher=str(teacher), weight=1.0), task=CALM)
    student = whole(config, tmp_path / "student")
    folder, _ = newest(student / "checkpoints")
    assert folder is not None
    store = Stores(student, load_stand(folder).stores)[TEACHER]
    wanted = final(teacher)
    assert set(store) == set(wanted)
    assert all(torch.equal(store[name], wanted[name]) for name in wanted)
    assert [record["operation"] for record in journal(student, "operation")] == ["take teacher from run teacher"]
    alone = whole(replace(config, recipe=Long(**SHORT)), tmp_path / "alone")
    assert not torch.equal(final(student)["head.weight"], final(alone)["head.weight"]), "it was taught"


def test_a_teacher_of_another_architecture_is_refused_with_names_and_shapes(teacher: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    weights = load_file(teacher / "final" / "model.safetensors")
    weights["head.weight"] = torch.zeros(5, 7)
    weights["neck.weight"] = weights.pop("body.0.weight")
    (other / "final").mkdir(parents=True)
    save_file(weights, other / "final" / "model.safetensors")
    with pytest.raises(SettingError) as caught:
        prepare(settings(BornAgain(**SHORT, teacher=str(other))))
    message = str(caught.value)
    assert message.startswith("phase 'learn from teacher' of generation 0: 'take teacher from run other': ")
    for part in ("missing body.0.weight", "not in the model: neck.weight", "head.weight is (5, 7), not (3, 7)"):
        assert part in message
    assert "head=fresh" not in message
    assert "\n" not in message


def test_a_teacher_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"'take teacher from run nobody': .*the final weights of a finished run"):
        prepare(settings(BornAgain(**SHORT, teacher=str(tmp_path / "nobody"))))


@pytest.mark.parametrize(
    ("model", "said", "masks_fit"),
    [
        (TimmModel(name="resnext26ts"), "its 2 groups get different numbers of channels", False),
        (TimmModel(name="convnext_atto"), "only networks with batch normalisation get slim", True),
        (SmallResNet(shortcut="pad"), "channels that are added or joined do not line up", True),
    ],
    ids=["grouped", "layer normalisation", "padded shortcuts"],
)
def test_a_network_that_gives_no_slim_one_is_refused_before_training(model: Any, said: str, masks_fit: bool) -> None:
    """Unless none is wanted, and masks of kernels fit it."""
    kels = KnowledgeEvolution(generations=2, epochs=1, warmup_epochs=0, keep=0.6)
    config = settings(kels, task=replace(tiny, model=model, augment=Augment(size=64)), engine=EngineSettings(batch=20))
    with pytest.raises(SettingError, match=said) as caught:
        prepare(config)
    assert ("recipe.slim=False" in str(caught.value)) == masks_fit
    assert "\n" not in str(caught.value)
    unwanted = replace(config, recipe=replace(kels, slim=False))
    if masks_fit:
        assert prepare(unwanted).plan.fingerprint == prepare(replace(config, task=tiny)).plan.fingerprint
    else:
        with pytest.raises(SettingError, match=f"a mask of kernels does not fit this network: .*{said}"):
            prepare(unwanted)
