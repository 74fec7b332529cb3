"""What a plan costs and what its operations would do: measured here, with nothing written."""

import pytest
import torch
from torch import nn

from llf_ray.config import SettingError
from llf_ray.engine.base import EngineSettings
from llf_ray.forget.masks import Magnitude
from llf_ray.forget.operations import Forget, KeepMask, ShrinkPerturb, Snapshot
from llf_ray.journal import Tracking
from llf_ray.plan import Length, Phase
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.pruning import IterativePruning
from llf_ray.recipes.seal import Seal
from llf_ray.recipes.shrink_perturb import ShrinkAndPerturb
from llf_ray.run import Resources, prepare
from llf_ray.studies.price import Kept, _scored_items, price
from llf_ray.studies.trial import open_weights, try_operations
from tests.local import final, journal, settings, whole

RECIPE = LaterLayer(generations=3, epochs=2, warmup_epochs=1, threshold="body")


def test_kept_bytes_are_those_of_the_tensors_that_backward_needs():
    model = nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 3))
    inputs = torch.randn(5, 7)
    kept = Kept(model)
    with kept:
        model(inputs).sum()
    # the input, the output of relu once though two layers keep it; weights are the model's own
    assert kept.most == 4 * (5 * 7 + 5 * 11)


def test_a_price_is_measured_without_touching_random_state_or_threads():
    prepared = prepare(
        settings(RECIPE, engine=EngineSettings(batch=12, accumulation=2), resources=Resources(workers=2))
    )
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    found = price(prepared)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert 0 < found.seconds_per_step <= found.slowest_step
    assert found.activations > 3 * 16 * 16 * 4  # three images of a micro-batch at least
    assert torch.isfinite(torch.tensor(found.loss))


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        Seal(generations=3, epochs=5, ascent_epochs=2, warmup_epochs=1, threshold="body", ascent_rate=0.1),
        ShrinkAndPerturb(generations=4, epochs=5, until_accuracy=1.0),  # asked more often than it is scored
        IterativePruning(generations=4, epochs=3, control="random"),
    ],
)
def test_scored_items_are_those_of_a_real_run(recipe, tmp_path):
    config = settings(recipe, tracking=Tracking(evaluate_every=2))
    folder = whole(config, tmp_path / "run")
    scores = journal(folder, "score")
    items = sum(config.task.num_items(record["role"]) for record in scores)
    assert _scored_items(prepare(config)) == items


def test_a_trial_says_what_the_run_itself_did(tmp_path):
    """The first redraw of a run, tried on the checkpoint in front of it, is the redraw that the run has on record."""
    config = settings(RECIPE)
    folder = whole(config, tmp_path / "run")
    prepared = prepare(config)
    saved = open_weights(folder / "checkpoints" / "step-00000008", prepared.slots)
    ((deed, changes),) = try_operations(prepared, saved)
    record = next(record for record in journal(folder, "operation") if record["step"] == 8)
    assert deed.operation.label == record["operation"]
    assert [change.name for change in changes] == [item["name"] for item in record["touched"]]
    for change, item in zip(changes, record["touched"], strict=True):
        assert change.entries == item["entries"]
        assert (change.norm_before, change.norm_after) == pytest.approx((item["norm_before"], item["norm_after"]))


def test_stores_that_the_weights_lack_are_made_from_them(tmp_path):
    source = Magnitude(keep=0.25)
    phases = [
        Phase(
            name="a",
            generation=0,
            length=Length(steps=4),
            entry=(Snapshot(store="start"),),
            exit=(KeepMask(store="m", source=source),),
        ),
        Phase(
            name="b",
            generation=1,
            length=Length(steps=4),
            entry=(
                ShrinkPerturb(shrink=0.5, perturb=0.0),
                Forget(fill="store", store="start"),
                Forget(fill="zero", keep=source),
            ),
        ),
    ]
    config = settings(phases)
    weights = whole(settings(RECIPE), tmp_path / "run") / "final" / "model.safetensors"
    prepared = prepare(config)
    saved = open_weights(weights, prepared.slots)
    tried = {deed.number: changes for deed, changes in try_operations(prepared, saved)}
    assert not tried[1]
    assert not tried[2] or tried[2] == []
    values = final(tmp_path / "run")
    shrunk, rewound, pruned = tried[3], tried[4], tried[5]
    for change in shrunk:
        assert change.norm_after == pytest.approx(change.norm_before / 2, rel=1e-5)
    assert sum(change.entries for change in rewound) == 0
    kept = sum(change.size - change.entries for change in pruned)
    assert kept == pytest.approx(sum(change.size for change in pruned) / 4, abs=len(pruned))
    assert {change.name: change.size for change in shrunk} == {
        name: values[name].numel() for name, _ in _parameters(prepared)
    }
    ((only, _),) = try_operations(prepared, saved, 4)
    assert only.number == 4


def _parameters(prepared):
    return [(slot.name, slot.size) for slot in prepared.slots if slot.kind != "statistic"]


def test_weights_of_another_model_are_refused(tmp_path):
    prepared = prepare(settings(RECIPE))
    torch.save({"module.stem.0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(SettingError, match=r"is of another model: stem\.0\.weight has shape"):
        open_weights(tmp_path / "other.pt", prepared.slots)
    torch.save({"stem.0.weights": torch.zeros(1)}, tmp_path / "renamed.pt")
    with pytest.raises(SettingError, match=r"did you mean .stem\.0\.weights"):
        open_weights(tmp_path / "renamed.pt", prepared.slots)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match="holds no checkpoint"):
        open_weights(tmp_path / "empty", prepared.slots)
