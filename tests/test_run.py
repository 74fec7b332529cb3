"""What cannot work is refused before anything starts, in one line that names the setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llf_ray.config import SettingError
from llf_ray.data import Augment
from llf_ray.engine.base import EngineSettings
from llf_ray.forget import masks
from llf_ray.forget.groups import Select
from llf_ray.forget.masks import Everything, KernelBlock
from llf_ray.forget.operations import Forget, KeepMask
from llf_ray.plan import Length, Operation, Phase, Rule
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


@dataclass(frozen=True, kw_only=True)
class Own:
    """A user's recipe in this file: one phase, with what it does on entry made when the plan is."""

    entry: Callable[[], Operation] = Forget
    rules: tuple[Rule, ...] = ()

    def plan(self) -> tuple[Phase, ...]:
        """One phase."""
        return (Phase(name="own", generation=0, length=Length(epochs=1), entry=(self.entry(),), rules=self.rules),)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            Own(entry=lambda: Forget(keep=KernelBlock(share=2.0))),
            r"recipe: Own\.plan\(\) fails: share = 2\.0: must be > 0 and <= 1 \(test_run\.py:\d+\)",
        ),
        (
            Own(entry=lambda: KeepMask(name="mask", source=Everything())),  # type: ignore[call-arg]
            r"recipe: Own\.plan\(\) fails: TypeError: .*'name' \(KeepMask takes: store, source, select\) \(test_run",
        ),
        (
            Own(entry=lambda: masks.Saved(nam="mask")),  # type: ignore[arg-type, call-arg, return-value]
            r"'nam'; did you mean 'name'\? \(Saved takes: name\)",
        ),
        (
            Own(entry=lambda: Forget(select=Select(modules=("hed",)))),
            r"phase 'own' of generation 0: 'redraw hed': layer 'hed' does not exist; did you mean 'head'\?",
        ),
        (
            Own(rules=(Rule(select=Select(kinds=("embedding",), name="words"), direction=0),)),
            r"phase 'own' of generation 0: the rule for 'words': group 'words' matches no parameter of the model",
        ),
    ],
)
def test_a_mistake_in_a_recipe_of_ones_own_is_named_with_its_place(recipe: Own, expected: str) -> None:
    with pytest.raises(SettingError, match=f"^.*{expected}") as caught:
        prepare(settings(recipe))
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
