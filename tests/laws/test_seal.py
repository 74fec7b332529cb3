"""What SEAL does to weights and moments, exactly, where `tests.train.invariants` does not ask it of every engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llf_ray.engine.base import GroupRule
from llf_ray.engine.local import LocalEngine
from llf_ray.forget.groups import Select
from llf_ray.plan import Curve, Length, Phase, Rule
from llf_ray.recipes.seal import Seal
from llf_ray.run import prepare
from llf_ray.train.adviser import read_cuts
from tests.local import ADAMW, PER_EPOCH, SGD, Watch, changed, journal, settings, watched, whole
from tests.toy import Toy

EARLY = {"stem.0.weight", "stem.1.weight", "stem.1.bias"}
SEAL = Seal(generations=2, epochs=3, ascent_epochs=1, ascent_rate=0.5, warmup_epochs=1, threshold="body")
START = 3 * PER_EPOCH  # of the ascent
END = START + PER_EPOCH


@pytest.fixture(scope="module")
def seal(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    return watched(settings(SEAL), tmp_path_factory.mktemp("seal") / "run")


def test_a_held_group_keeps_its_moments_and_its_step_count(tmp_path: Path) -> None:
    later = Select(since="body", name="later")
    phases = [
        Phase(name="a", generation=0, length=Length(epochs=1)),
        Phase(name="b", generation=0, length=Length(epochs=1), rules=(Rule(select=later, direction=0.0),)),
        Phase(name="c", generation=0, length=Length(epochs=1)),
    ]
    watch = watched(settings(phases, optim=ADAMW), tmp_path / "run")
    held = [name for name in watch.moments[0] if name not in EARLY]
    start, end = watch.moments[PER_EPOCH], watch.moments[2 * PER_EPOCH]
    for name in held:
        assert start[name]
        assert all(torch.equal(start[name][key], end[name][key]) for key in start[name])
    assert not torch.equal(start["stem.0.weight"]["exp_avg"], end["stem.0.weight"]["exp_avg"])


def stepped(scale: float, optim: Any, decay: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights in front of and behind one ascent step of the whole toy."""
    config = settings(SEAL, optim=optim, task=Toy())
    prepared = prepare(config)
    engine = LocalEngine(config.task.build(0), prepared.groups, config.optim, config.engine)
    rule = GroupRule(direction=-scale, lr=optim.lr, weight_decay=decay)
    engine.set_rules({group.name: rule for group in prepared.groups})
    before = {name: engine.read(name) for name in engine.names}
    engine.module.train()
    engine.step([first_batch()], lambda model, batch: config.task.loss(model, batch)[0])
    after = {name: engine.read(name) for name in engine.names}
    engine.close()
    return before, after


def first_batch() -> tuple[Tensor, Tensor]:
    images, labels = Toy().data("train")
    return images[:12], labels[:12]


@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_halving_the_ascent_rate_halves_the_first_step(optim: Any) -> None:
    """S goes into the rate: in Adam's gradient it would cancel."""
    (before, whole_step), (_, half_step) = stepped(0.5, optim), stepped(0.25, optim)
    for name, start in before.items():
        assert (whole_step[name] != start).any()
        torch.testing.assert_close(half_step[name] - start, (whole_step[name] - start) / 2, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_an_ascent_is_torchs_own_maximising_and_decay_keeps_its_sign(optim: Any, decay: float) -> None:
    """Where a negative rate would make weights grow."""
    _, after = stepped(1.0, optim, decay)
    net = Toy().build(0)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optim.name]
    reference = kind(net.parameters(), lr=optim.lr, weight_decay=decay, maximize=True)
    net.train()
    Toy().loss(net, first_batch())[0].backward()
    reference.step()
    for name, value in net.named_parameters():
        torch.testing.assert_close(after[name], value.detach(), msg=lambda text, name=name: f"{name}: {text}")


# ------------------------------------------------------------------------------------------------------------ ablations


def test_reversed_the_later_layers_ascend(tmp_path: Path) -> None:
    watch = watched(settings(replace(SEAL, reverse=True)), tmp_path / "run")
    assert {watch.groups[START][g]["direction"] for g in ("later",)} == {-0.5}
    assert watch.groups[START]["rest"]["direction"] == 1.0
    assert watch.groups[END]["later"]["direction"] == 1.0


def test_with_forgetting_the_later_weights_are_drawn_anew_before_the_ascent(tmp_path: Path, seal: Watch) -> None:
    watch = watched(settings(replace(SEAL, forget_later=True)), tmp_path / "run")
    assert changed(watch.weights[START], seal.weights[START]) == {"body.0.weight", "head.weight"}
    (operation,) = journal(tmp_path / "run", "operation")
    assert (operation["step"], operation["generation"], operation["operation"]) == (START, 1, "redraw later weights")
    assert operation["entries"] == 7 * 5 * 9 + 3 * 7


def test_moments_of_a_group_are_cleared_when_its_direction_turns_and_kept_when_told(tmp_path: Path) -> None:
    """Also when a hold or a phase without a step lies between descent and ascent."""
    early = Select(before="body", name="early")

    def phases(moments: Any) -> list[Phase]:
        def phase(name: str, direction: float, steps: int = 2) -> Phase:
            rule = Rule(select=early, direction=direction)
            return Phase(
                name=name,
                generation=0,
                length=Length(steps=steps),
                rules=(rule,),
                curve=Curve(shape="constant"),
                moments=moments,
            )

        return [
            phase("down", 1),
            phase("held", 0),
            phase("up", -0.5),
            phase("nothing", 1, 0),
            phase("up again", -0.5),
            phase("down again", 1),
        ]

    for moments, cleared in (("clear", [0, 4, 8]), ("keep", [0])):
        watch = watched(settings(phases(moments)), tmp_path / moments)
        empty = [step for step, found in enumerate(watch.moments) if not found["stem.0.weight"]]
        assert empty == cleared
        assert [step for step, found in enumerate(watch.moments) if not found["head.weight"]] == [0], (
            "the rest never turns"
        )


def test_a_phase_without_a_step_may_build_the_optimizer_anew(tmp_path: Path) -> None:
    phases = [
        Phase(name="one", generation=0, length=Length(steps=2)),
        Phase(name="between", generation=0, length=Length(steps=0), optimizer="rebuild"),
        Phase(name="other", generation=0, length=Length(steps=2)),
    ]
    watch = watched(settings(phases), tmp_path / "run")
    assert [step for step, moments in enumerate(watch.moments) if not any(moments.values())] == [0, 2]


@pytest.mark.parametrize("ascent", [0.75, 1.0])
def test_an_ascent_of_no_more_than_an_epoch_ends_when_the_loss_has_grown(ascent: float, tmp_path: Path) -> None:
    recipe = replace(SEAL, ascent_epochs=ascent, ascent_rate=20.0, warmup_epochs=0, loss_ratio=1.01)
    config = settings(recipe)
    folder = whole(config, tmp_path / "run")
    (cut,) = read_cuts(folder)
    assert START < cut.step < START + ascent * PER_EPOCH
    phases = [(record["name"], record["step"]) for record in journal(folder, "phase")]
    assert phases[1:] == [("ascent", START), ("descent", cut.step)]
