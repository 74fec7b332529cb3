"""Layer-wise re-initialisation, against its description, on the network that images are learned with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llf_ray.config import SettingError
from llf_ray.nn.normaliser import freeze, normaliser_of
from llf_ray.plan import FREEZE, RECALIBRATE, Length, Pass, Phase
from llf_ray.recipes.layer_wise import LayerWise
from llf_ray.run import RunConfig, prepare
from llf_ray.tasks.classification import tiny
from llf_ray.tasks.models import Normalised, SmallResNet
from llf_ray.train.batches import phase_batches
from llf_ray.train.folder import create
from tests.local import SGD, journal, settings, watched, whole

BLOCKS = ("layer1", "layer2", "fc")
TASK = replace(tiny, model=Normalised(model=SmallResNet(widths=(4, 8), blocks=(1, 1), stem_stride=2), after=BLOCKS[:2]))


def run_of(recipe: Any) -> RunConfig:
    return settings(recipe, task=TASK)


def test_each_generation_keeps_more_in_front_and_starts_the_rest_anew(tmp_path: Path) -> None:
    recipe = LayerWise(generations=3, epochs=1, warmup_epochs=0, blocks=BLOCKS)
    config = run_of(recipe)
    watch = watched(config, tmp_path / "run")
    operations = journal(tmp_path / "run", "operation")
    assert [(record["generation"], record["operation"]) for record in operations] == [
        (0, "keep snapshot start"),
        (1, "rescale before layer2 to the norms of start"),
        (1, "re-initialise layer2 and later"),
        (1, f"{FREEZE} layer1 on 1 batch"),
        (2, "rescale before fc to the norms of start"),
        (2, "re-initialise fc and later"),
        (2, f"{FREEZE} layer2 on 1 batch"),
    ]
    start = watch.weights[0]
    boundary = journal(tmp_path / "run", "phase")[2]["step"]  # of the last generation
    here = watch.weights[boundary]
    names = list(TASK.initial(0).state_dict())
    for name in (n for n in names if not n.startswith("fc") and n in dict(TASK.initial(0).named_parameters())):
        torch.testing.assert_close(here[name].norm(), start[name].norm(), rtol=1e-5, atol=1e-6)
        assert not torch.equal(here[name], start[name]) or float(start[name].norm()) == 0
    assert not torch.equal(here["fc.weight"], start["fc.weight"])
    assert float(here["fc.bias"].abs().max()) == 0  # a fresh model's
    assert float(here["layer1.normaliser.std"].std()) > 0, "the first normaliser stays on"

    # the oracle of what the normaliser holds: the block on the generation's first batch
    net = TASK.initial(0)
    before = watch.weights[boundary] | {f"layer2.normaliser.{n}": v for n, v in (("mean", 0), ("std", 1))}
    net.load_state_dict(
        {n: v if isinstance(v, torch.Tensor) else torch.full((8,), float(v)) for n, v in before.items()}
    )
    batch = next(
        phase_batches(create(prepare(config), tmp_path / "other"), 2, {}, torch.device("cpu"), stream=0, count=1)
    )
    freeze(net.eval(), "layer2", [batch.images])
    found = normaliser_of(net, "layer2")
    assert found is not None
    torch.testing.assert_close(here["layer2.normaliser.mean"], found.mean)
    torch.testing.assert_close(here["layer2.normaliser.std"], found.std)


def test_reset_depth_shrinks_from_everything_to_the_classifier() -> None:
    blocks = (*(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)), "fc")
    recipe = LayerWise(generations=9, blocks=blocks)
    assert [recipe.reached(g) for g in range(9)] == list(range(9))
    assert [replace(recipe, generations=3).reached(g) for g in range(3)] == [0, 3, 6]
    assert [replace(recipe, generations=18).reached(g) for g in (0, 1, 2, 17)] == [0, 0, 1, 8]
    again = replace(recipe, generations=18).operations(1)
    assert [op.label for op in again] == [
        "rescale before layer1.0 to the norms of start",
        "re-initialise layer1.0 and later",
    ], "in front of the first block nothing is normalised"


def test_normalisers_leave_the_networks_own_draw_alone() -> None:
    """So that arms with and without them can be compared."""
    plain, normalised = tiny.initial(3).state_dict(), TASK.initial(3).state_dict()
    own = replace(tiny, model=SmallResNet(widths=(4, 8), blocks=(1, 1), stem_stride=2)).initial(3).state_dict()
    assert plain.keys() == own.keys()
    assert all(torch.equal(normalised[name], value) for name, value in own.items())


def test_averaged_weights_are_normalised_as_the_weights_are(tmp_path: Path) -> None:
    recipe = LayerWise(generations=2, epochs=1, warmup_epochs=0, blocks=BLOCKS)
    config = replace(run_of(recipe), optim=replace(SGD, averaged=0.9))
    folder = whole(config, tmp_path / "run")
    kept = load_file(folder / "final" / "model.safetensors")
    plain = whole(replace(config, optim=SGD), tmp_path / "plain")
    frozen = load_file(plain / "final" / "model.safetensors")
    for name in ("mean", "std"):  # of the same batch and weights: an average of it and of 0 or 1 would be another
        torch.testing.assert_close(kept[f"layer1.normaliser.{name}"], frozen[f"layer1.normaliser.{name}"])


def test_without_normaliser_or_rescaling_those_operations_are_left_out() -> None:
    recipe = LayerWise(generations=2, blocks=BLOCKS, normalise=False, rescale=False)
    assert [op.label for phase in recipe.plan() for op in phase.entry] == ["re-initialise layer2 and later"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": tiny}, "the network has no normaliser behind 'layer1'; give it one by task.model = Normalised"),
        (
            {"recipe": LayerWise(generations=2, blocks=("layer1", "layer7"))},
            "recipe.blocks.1 = 'layer7': layer 'layer7' does not exist",
        ),
        (  # which no generation begins with
            {"recipe": LayerWise(generations=2, blocks=("layer1", "layr2", "fc"), normalise=False)},
            "recipe.blocks.1 = 'layr2': layer 'layr2' does not exist; did you mean 'layer2'?",
        ),
        (
            {"recipe": LayerWise(generations=3, blocks=("layer2", "layer1", "fc"), normalise=False)},
            "recipe.blocks.1 = 'layer1': in the network it does not lie behind 'layer2'; name blocks from the input",
        ),
    ],
)
def test_what_the_network_lacks_is_said_before_anything_starts(changes: dict[str, Any], said: str) -> None:
    config = run_of(LayerWise(generations=2, blocks=BLOCKS))
    with pytest.raises(SettingError) as caught:
        prepare(replace(config, **changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_normaliser_behind_a_block_that_is_not_there_names_the_nearest() -> None:
    model = Normalised(model=SmallResNet(widths=(4, 8), blocks=(1, 1)), after=("layr1",))
    with pytest.raises(SettingError, match="block 'layr1' does not exist; did you mean 'layer1'"):
        prepare(settings(LayerWise(generations=2, blocks=BLOCKS), task=replace(tiny, model=model)))


def test_a_pass_that_no_one_knows_is_refused_with_those_there_are() -> None:
    phase = Phase(name="train", generation=0, length=Length(steps=2), entry=(Pass(what="recalibrate statistic"),))
    with pytest.raises(SettingError, match=f"did you mean '{RECALIBRATE}'"):
        prepare(settings([phase], task=tiny))
