"""What each member of the family does to weights and moments, exactly (the invariants of the methods' definitions)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llf_ray.display import operation_words
from llf_ray.forget.edit import Edit, View
from llf_ray.nn.paths import effective
from llf_ray.plan import Length, Phase
from llf_ray.recipes.active_forgetting import ActiveForgetting
from llf_ray.recipes.born_again import BornAgain
from llf_ray.recipes.dense_sparse import DenseSparse
from llf_ray.recipes.knowledge_evolution import KnowledgeEvolution
from llf_ray.recipes.long import Long
from llf_ray.recipes.pruning import MASK, IterativePruning
from llf_ray.recipes.restarts import Restarts
from llf_ray.recipes.rifle import Rifle
from llf_ray.recipes.shrink_perturb import ShrinkAndPerturb
from llf_ray.run import prepare
from llf_ray.tasks.classification import tiny as IMAGES
from llf_ray.tasks.models import SmallResNet
from llf_ray.tracking import named_values
from llf_ray.train.adviser import read_cuts
from llf_ray.train.folder import create
from llf_ray.train.state import Stores, load_stand, newest
from tests.local import (
    ADAMW,
    PER_EPOCH,
    Watch,
    carry,
    changed,
    final,
    journal,
    messages,
    same_bits,
    settings,
    watched,
    whole,
)
from tests.toy import Toy

WEIGHTS = ("stem.0.weight", "body.0.weight", "head.weight")
CALM = Toy(dropout=False)


def at_boundaries(watch: Watch, every: int = 2 * PER_EPOCH) -> list[dict[str, Tensor]]:
    """Weights in front of each generation's first step."""
    return watch.weights[::every]


def forgotten(before: Tensor, after: Tensor) -> Tensor:
    return before != after


# ------------------------------------------------------------------------------------------------- knowledge evolution


@pytest.mark.parametrize("split", ["weights", "kernels"])
def test_the_fit_hypothesis_passes_every_boundary_untouched(split: Any, tmp_path: Path) -> None:
    recipe = KnowledgeEvolution(generations=3, epochs=2, warmup_epochs=0, split=split, keep=0.6)
    config = settings(recipe, task=CALM)
    watch = watched(config, tmp_path / "run")
    # a run of one generation less ends where a boundary begins
    first = final(whole(replace(config, recipe=replace(recipe, generations=1)), tmp_path / "one"))
    second = final(whole(replace(config, recipe=replace(recipe, generations=2)), tmp_path / "two"))
    masks = []
    for before, after in ((first, at_boundaries(watch)[1]), (second, at_boundaries(watch)[2])):
        assert changed(before, after) == set(WEIGHTS)
        masks.append({name: forgotten(before[name], after[name]) for name in WEIGHTS})
    for name in WEIGHTS:
        assert torch.equal(masks[0][name], masks[1][name]), "one mask for the run"
    if split == "kernels":
        kept = ~masks[0]["body.0.weight"]
        assert bool(kept[: math.ceil(0.6 * 7), : math.ceil(0.6 * 5)].all())
        assert int(kept.sum()) == math.ceil(0.6 * 7) * math.ceil(0.6 * 5) * 9
        assert int((~masks[0]["stem.0.weight"]).sum()) == 3 * 9, "the first layer keeps all inputs"
        assert int((~masks[0]["head.weight"]).sum()) == 3 * math.ceil(0.6 * 7), "the last keeps all outputs"


def test_a_mask_that_is_drawn_anew_is_another_one(tmp_path: Path) -> None:
    recipe = KnowledgeEvolution(generations=3, epochs=2, warmup_epochs=0, split="weights", keep=0.6, resample=True)
    config = settings(recipe, task=CALM)
    watch = watched(config, tmp_path / "run")
    ends = [final(whole(replace(config, recipe=replace(recipe, generations=n)), tmp_path / str(n))) for n in (1, 2)]
    one, other = (
        forgotten(end["body.0.weight"], at_boundaries(watch)[n + 1]["body.0.weight"]) for n, end in enumerate(ends)
    )
    assert not torch.equal(one, other)


def test_zeros_in_place_of_a_redraw(tmp_path: Path) -> None:
    recipe = KnowledgeEvolution(generations=2, epochs=2, warmup_epochs=0, keep=0.6, fill="zero")
    watch = watched(settings(recipe), tmp_path / "run")
    weight = at_boundaries(watch)[1]["body.0.weight"]
    assert int((weight == 0).sum()) == weight.numel() - math.ceil(0.6 * 7) * math.ceil(0.6 * 5) * 9


# ------------------------------------------------------------------------------------------------------------- pruning


def test_pruning_nothing_and_rewinding_to_the_start_repeats_the_dense_run_bit_for_bit(tmp_path: Path) -> None:
    recipe = IterativePruning(generations=3, epochs=2, warmup_epochs=1, rate=0.0, repeat_order=True)
    folder = whole(settings(recipe, task=CALM), tmp_path / "pruned")
    dense = whole(settings(Long(generations=1, epochs=2, warmup_epochs=1), task=CALM), tmp_path / "dense")
    assert same_bits(final(folder), final(dense))


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("rewind", [0, 0.5])
def test_each_level_has_a_fifth_less_and_starts_from_step_k(scope: Any, rewind: float, tmp_path: Path) -> None:
    recipe = IterativePruning(generations=3, epochs=2, warmup_epochs=0, rate=0.2, scope=scope, rewind_epochs=rewind)
    config = settings(recipe, optim=ADAMW)
    watch = watched(config, tmp_path / "run")
    at_k, length = round(rewind * PER_EPOCH), round((2 - rewind) * PER_EPOCH)
    kept = watch.weights[at_k]
    alive = {name: torch.ones_like(kept[name], dtype=torch.bool) for name in WEIGHTS}
    for level in (1, 2):
        start = at_k + level * length
        now = watch.weights[start]
        sizes = [int(mask.sum()) for mask in alive.values()]
        for name in kept:
            if name in WEIGHTS:
                still = now[name] != 0
                assert not bool((still & ~alive[name]).any()), "nothing comes back"
                assert torch.equal(now[name], torch.where(still, kept[name], torch.zeros(()))), name
                alive[name] = still
            else:
                assert torch.equal(now[name], kept[name]), f"{name} goes back, too"
        left = [int(mask.sum()) for mask in alive.values()]
        if scope == "global":
            assert sum(left) == sum(sizes) - math.ceil(round(0.2 * sum(sizes), 6))
        else:
            assert left == [size - math.ceil(round(0.2 * size, 6)) for size in sizes]
        assert not watch.moments[start]["body.0.weight"], "a new optimizer"
        for step in range(start, start + length):
            for name in WEIGHTS:
                assert bool((watch.weights[step][name][~alive[name]] == 0).all()), "held at zero"
                for value in watch.moments[step][name].values():
                    assert bool((value[~alive[name]] == 0).all()), "moments, too"
    rates = [groups["all" if "all" in groups else next(iter(groups))]["lr"] for groups in watch.groups]
    assert rates[at_k : at_k + length] == rates[at_k + length : at_k + 2 * length], "the curve goes on at k"


def test_the_smallest_of_the_level_before_are_pruned(tmp_path: Path) -> None:
    recipe = IterativePruning(generations=2, epochs=2, warmup_epochs=0, rate=0.3)
    config = settings(recipe, task=CALM)
    trained = final(whole(replace(config, recipe=replace(recipe, generations=1)), tmp_path / "dense"))
    watch = watched(config, tmp_path / "run")
    now = at_boundaries(watch)[1]
    gone = torch.cat([trained[name][now[name] == 0].abs() for name in WEIGHTS])
    left = torch.cat([trained[name][now[name] != 0].abs() for name in WEIGHTS])
    assert gone.max() <= left.min()


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("rewind", [0, 0.5])
def test_at_every_level_a_control_has_the_masks_of_the_ticket_run(scope: Any, rewind: float, tmp_path: Path) -> None:
    """The ticket beside a control is the ticket run itself, bit for bit; the control trains on its masks alone."""
    recipe = IterativePruning(generations=5, epochs=2, warmup_epochs=0, rate=0.3, scope=scope, rewind_epochs=rewind)
    seen: dict[str, dict[tuple[str, int], tuple[dict[str, Tensor], list[float]]]] = {}
    for control in ("none", "reinit", "random"):
        folder = tmp_path / control
        watch = watched(settings(replace(recipe, control=control), task=CALM), folder)
        seen[control] = {
            (record["name"], record["generation"]): (
                watch.weights[record["step"]],
                watch.losses[record["step"] : record["stop"]],
            )
            for record in journal(folder, "phase")
        }
    assert [phase for phase in seen["random"] if phase[0] == "ticket"] == [("ticket", 1), ("ticket", 2), ("ticket", 3)]
    kept = seen["none"]["train", 0][0]  # in front of step k
    for level in (1, 2, 3, 4):
        own, losses = seen["none"]["sparse", level]
        reinit, random = (seen[control]["sparse", level][0] for control in ("reinit", "random"))
        for control in ("reinit", "random") if level < 4 else ():
            beside = seen[control]["ticket", level]
            assert same_bits(beside[0], own)
            assert beside[1] == losses, "the same data, the same rates"
        drawn = seen["reinit"]["sparse", level - 1][0] if level > 1 else kept
        for name in WEIGHTS:
            alive = own[name] != 0
            assert torch.equal(reinit[name] != 0, alive), "the ticket's places"
            assert not bool((reinit[name] == own[name])[alive].any()), "other values"
            assert not bool((reinit[name] == drawn[name])[alive].any()), "at each level others"
            there = random[name] != 0
            assert int(there.sum()) == int(alive.sum()), "the ticket's sparsity of each layer"
            assert not torch.equal(there, alive), "at other places"
            assert torch.equal(random[name][there], kept[name][there]), "rewound all the same"
    live = {
        control: [
            record["masks"][MASK][0]
            for record in journal(tmp_path / control, "operation")
            if MASK in record.get("masks", {})
        ]
        for control in seen
    }
    assert live["none"] == live["reinit"] == live["random"], "on record is the mask of what is scored"
    assert len(live["none"]) == 5


def test_masks_of_a_run_are_kept_with_it(tmp_path: Path) -> None:
    recipe = IterativePruning(generations=3, epochs=1, warmup_epochs=0, rate=0.5)
    folder = whole(settings(recipe), tmp_path / "run")
    last = newest(folder / "checkpoints")[0]
    assert last is not None
    masks = Stores(folder, load_stand(last).stores)[MASK]
    live = [record["masks"][MASK] for record in journal(folder, "operation") if "masks" in record]
    number = sum(mask.numel() for mask in masks.values())
    assert live[0] == [number, number]
    assert live[-1] == [sum(int(mask.sum()) for mask in masks.values()), number]
    assert [round(count / number, 2) for count, _ in live] == [1.0, 0.5, 0.25], "the sparsity of each level"
    weights = final(folder)
    sizes = [weights[name].numel() for name in WEIGHTS]
    assert sum(int(masks[name].sum()) for name in WEIGHTS) == pytest.approx(recipe.density * sum(sizes), abs=2)
    assert all(torch.equal(weights[name] != 0, masks[name]) for name in WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class Shown(Toy):
    """The toy that shows an example of its input."""

    def example(self) -> Tensor:
        return torch.zeros(1, 1, 16, 16)


def test_effective_weights_are_on_record_beside_the_live_ones(tmp_path: Path) -> None:
    recipe = IterativePruning(generations=4, epochs=1, warmup_epochs=0, rate=0.5)
    folder = whole(settings(recipe, task=Shown()), tmp_path / "run")
    records = [record for record in journal(folder, "operation") if "masks" in record]
    live, reached = ([record[key][MASK] for record in records] for key in ("masks", "effective"))
    assert reached[0] == live[0][0] == live[0][1], "a dense network has no dead end"
    assert all(number <= count for number, (count, _) in zip(reached, live, strict=True))
    last = newest(folder / "checkpoints")[0]
    assert last is not None
    masks = Stores(folder, load_stand(last).stores)[MASK]
    by_hand = effective(Toy().initial(0), torch.ones(1, 1, 16, 16), dict(masks))
    assert reached[-1] == sum(int(mask.sum()) for mask in by_hand.values())
    named = named_values(records[-1])
    assert named[f"mask/{MASK}/live"] == live[-1][0] / live[-1][1]
    assert named[f"mask/{MASK}/effective"] == reached[-1] / live[-1][1]
    said = operation_words(records[-1])
    assert f"{live[-1][0]:,} of 381 live" in said
    assert said.endswith("% on a path to the output")
    plain = journal(whole(settings(recipe), tmp_path / "plain"), "operation")
    assert all(record["effective"] == {} for record in plain if "masks" in record), "nobody shows an input"


@dataclass(frozen=True, kw_only=True)
class Emptied:
    """A mask that leaves nothing of some layers, to be held."""

    layers: tuple[str, ...]

    select = None
    needs = ()
    makes = ("m",)
    kind = "masks"
    label = "empty some layers"

    def __call__(self, view: View) -> Edit:
        weights = [slot for slot in view.slots if slot.kind == "weight"]
        return Edit(masks={"m": {s.name: torch.full(s.shape, s.name not in self.layers) for s in weights}})


def emptied(*layers: str) -> list[Phase]:
    first = Phase(name="dense", generation=0, length=Length(steps=2), exit=(Emptied(layers=layers),))
    return [first, Phase(name="sparse", generation=1, length=Length(steps=2), hold=("m",))]


def test_a_network_goes_on_around_a_layer_without_weights_and_not_without_a_path(tmp_path: Path) -> None:
    """Pruning away a residual branch is an outcome; pruning away the way from input to output is the end."""
    branch, stem = "layer1.0.conv2.weight", "conv1.weight"
    task = replace(IMAGES, model=SmallResNet(widths=(4, 8), blocks=(1, 1), stem_stride=2))
    sizes = {slot.name: slot.size for slot in prepare(settings(emptied(branch), task=task)).slots}
    assert {branch, stem} <= set(sizes)
    folder = whole(settings(emptied(branch), task=task), tmp_path / "branch")
    (record,) = journal(folder, "operation")
    assert record["empty"] == {"m": [branch]}
    assert operation_words(record).endswith(f"% on a path to the output, nothing of {branch}")
    assert not bool(final(folder)[branch].any())
    outcome = carry(create(prepare(settings(emptied(branch, stem), task=task)), tmp_path / "stem"))
    assert outcome.state == "failed"
    for said in (
        "phase 'dense' of generation 0: 'empty some layers' leaves ",
        f"none of the {sizes[stem]:,} of {stem!r} and of 1 more",
        "no path from the network's input to its output is left",
    ):
        assert said in outcome.message
    assert "\n" not in outcome.message


class Tangled(nn.Module):
    """A network through which no gradient flows but by its loss: nobody can see its paths."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.inner(images)
        return scores if self.training else scores.detach() + 0 * self.inner.head.bias


@dataclass(frozen=True, kw_only=True)
class Hidden(Shown):
    """The toy whose network hides its paths."""

    def initial(self, seed: int) -> nn.Module:
        return Tangled(super().initial(seed))

    build = initial

    def skeleton(self) -> nn.Module:
        return Tangled(super().skeleton())


def test_a_network_that_shows_no_path_even_when_it_is_whole_is_not_ended_for_it(tmp_path: Path) -> None:
    recipe = IterativePruning(generations=2, epochs=1, warmup_epochs=0, rate=0.3)
    folder = whole(settings(recipe, task=Hidden()), tmp_path / "run")
    assert all(record["effective"] == {} for record in journal(folder, "operation") if "masks" in record)


def test_where_nobody_can_look_a_layer_without_weights_ends_the_run(tmp_path: Path) -> None:
    recipe = IterativePruning(generations=2, epochs=1, warmup_epochs=0, rate=0.95)
    outcome = carry(create(prepare(settings(recipe)), tmp_path / "run"))
    assert outcome.state == "failed"
    assert "phase 'train' of generation 0: 'mask alive: keep 5% largest per network of weights' leaves 19 of 381" in (
        outcome.message
    )
    assert "whether the network goes on around that cannot be seen" in outcome.message


class Misled(Toy):
    """The toy that shows an example which its network does not take."""

    def example(self) -> Tensor:
        return torch.zeros(1, 3, 16, 16)


def test_a_run_whose_effective_weights_cannot_be_counted_ends_well_and_says_so(tmp_path: Path) -> None:
    recipe = IterativePruning(generations=2, epochs=1, warmup_epochs=0, rate=0.6)
    folder = whole(settings(recipe, task=Misled()), tmp_path / "run")
    assert all(record["effective"] == {} for record in journal(folder, "operation") if "masks" in record)
    said = messages(folder).splitlines()
    assert any(line.startswith(f"mask {MASK!r}: weights on a path are not counted: RuntimeError: ") for line in said)


# -------------------------------------------------------------------------------------------------- dense-sparse-dense


def test_what_grows_back_starts_at_zero_and_without_momentum(tmp_path: Path) -> None:
    recipe = DenseSparse(generations=2, epochs=2, warmup_epochs=0, sparsity=0.4)
    watch = watched(settings(recipe), tmp_path / "run")
    sparse, dense = 2 * PER_EPOCH, 3 * PER_EPOCH
    for name in WEIGHTS:
        held = watch.weights[sparse][name] == 0
        assert int(held.sum()) == math.ceil(round(0.4 * held.numel(), 6))
        for step in range(sparse, dense + 1):
            assert bool((watch.weights[step][name][held] == 0).all())
        assert all(bool((value[held] == 0).all()) for value in watch.moments[dense][name].values())
        assert bool(watch.moments[dense][name]), "the optimizer lives on"
        assert bool((watch.weights[dense + 1][name][held] != 0).any()), "it grows"
    rates = [next(iter(groups.values()))["lr"] for groups in watch.groups]
    assert rates[dense] == pytest.approx(0.1 * rates[sparse])


# -------------------------------------------------------------------------------------------------- shrink and perturb


def test_one_and_zero_is_a_warm_start_and_zero_and_one_a_fresh_model(tmp_path: Path) -> None:
    recipe = ShrinkAndPerturb(generations=2, epochs=2)
    ends: dict[tuple[float, float], tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    for shrink, perturb in ((1.0, 0.0), (0.0, 1.0), (0.4, 0.1)):
        watch = watched(settings(replace(recipe, shrink=shrink, perturb=perturb), task=CALM), tmp_path / f"{shrink}")
        ends[shrink, perturb] = watch.weights[2 * PER_EPOCH - 1], watch.weights[2 * PER_EPOCH]
    parameters = [name for name, _ in CALM.build(0).named_parameters()]
    warm, fresh, mixed = (ends[key][1] for key in ((1.0, 0.0), (0.0, 1.0), (0.4, 0.1)))
    assert torch.equal(fresh["stem.1.weight"], torch.ones(5)), "a normaliser of a fresh model"
    statistics = {name: value for name, value in CALM.build(0).state_dict().items() if "running" in name}
    for start in (warm, fresh, mixed):
        assert all(torch.equal(start[name], value) for name, value in statistics.items())
    for name in parameters:
        torch.testing.assert_close(mixed[name], 0.4 * warm[name] + 0.1 * fresh[name], rtol=1e-6, atol=1e-7)


def test_a_round_ends_when_its_own_data_are_learned(tmp_path: Path) -> None:
    """Asked after every epoch of what has arrived, not of what will have: the mean over that epoch counts."""
    recipe = ShrinkAndPerturb(generations=4, epochs=6, until_accuracy=0.3)
    folder = whole(settings(recipe, task=CALM), tmp_path / "run")
    hits = {record["step"]: record["values"]["train/accuracy"] for record in journal(folder, "metrics")}
    ends, start = [], 0
    for epoch in (1, 2, 3, 4):  # steps of one, by generation: quarters of 48 items in batches of 12
        asked = range(start + epoch, start + 24, epoch)
        reached = (step for step in asked if sum(hits[s] for s in range(step - epoch + 1, step + 1)) >= 0.3 * epoch)
        start = next(reached, start + 24)
        ends.append(start)
    begun = journal(folder, "phase")
    assert begun[0]["stop"] == 24, "what was planned"
    assert [record["step"] for record in begun] == [0, *ends[:-1]]
    assert [cut.step for cut in read_cuts(folder)] == ends, "each round was ended"
    assert any(end % 4 for end in ends), "some between two questions of the longest epoch"
    scored = [record["step"] for record in journal(folder, "score") if record["role"] == "validation"]
    assert set(ends) <= set(scored)


# ----------------------------------------------------------------------------------------------------- parts that reset


def test_rifle_draws_the_head_anew_and_keeps_its_momentum(tmp_path: Path) -> None:
    recipe = Rifle(generations=2, epochs=2, head="head", cyclic=True)
    config = settings(recipe, task=CALM)
    watch = watched(config, tmp_path / "run")
    assert not same_bits(watch.weights[8], watch.weights[7])
    # the trunk goes on as if nothing had happened: its rate is on one cosine over the run, the head's starts anew
    by_group = [{name: group["lr"] for name, group in groups.items()} for groups in watch.groups]
    assert by_group[8]["head"] == by_group[0]["head"] > by_group[8]["rest"] > 0
    assert by_group[7]["rest"] > by_group[8]["rest"]
    for value in watch.moments[8]["head.weight"].values():
        assert bool((value != 0).any())
    drawn = watch.weights[8]["head.weight"]
    assert bool((drawn.abs() <= 7**-0.5).all())
    assert bool((watch.weights[8]["head.bias"].abs() <= 7**-0.5).all())


def test_active_forgetting_draws_by_the_papers_deviation_where_it_is_told(tmp_path: Path) -> None:
    recipe = ActiveForgetting(generations=2, epochs=2, warmup_epochs=0, module="head", std=1e-4)
    watch = watched(settings(recipe, task=CALM), tmp_path / "run", steps=(8,))
    head = torch.cat([watch.weights[8][f"head.{name}"].flatten() for name in ("weight", "bias")])
    assert 0 < float(head.abs().max()) < 6e-4
    assert float(watch.weights[8]["body.0.weight"].abs().max()) > 0.01


def test_active_forgetting_takes_moments_and_step_count_and_leaves_the_body(tmp_path: Path) -> None:
    recipe = ActiveForgetting(generations=4, epochs=None, every_steps=4, warmup_epochs=0.25, module="head")
    watch = watched(settings(recipe, optim=ADAMW, task=CALM), tmp_path / "run")
    plain = watched(settings(replace(recipe, generations=1), optim=ADAMW, task=CALM), tmp_path / "plain")
    assert len(watch.weights) == 16
    for reset in (4, 8, 12):
        assert not watch.moments[reset]["head.weight"], "as if never stepped"
        assert watch.moments[reset]["body.0.weight"]
        rates = [{name: group["lr"] for name, group in watch.groups[step].items()} for step in (0, reset)]
        assert rates[0]["head"] == rates[1]["head"], "its own curve starts anew"
        assert rates[0]["rest"] > rates[1]["rest"]
    assert torch.equal(plain.weights[0]["head.weight"], watch.weights[0]["head.weight"])


# ---------------------------------------------------------------------------------------------------------- born again


def test_a_student_starts_fresh_and_learns_from_the_generation_before(tmp_path: Path) -> None:
    recipe = BornAgain(generations=3, epochs=2, warmup_epochs=0, weight=0.9)
    watch = watched(settings(recipe, task=CALM), tmp_path / "run")
    starts = at_boundaries(watch)
    assert changed(starts[0], starts[1]) > set(WEIGHTS), "another draw"
    assert torch.equal(starts[1]["stem.1.running_mean"], torch.zeros(5)), "fresh statistics, too"
    alone = watched(settings(replace(recipe, weight=1e-9), task=CALM), tmp_path / "alone")
    assert watch.losses[:8] == alone.losses[:8], "the first generation has no teacher"
    assert same_bits(watch.weights[8], alone.weights[8]), "students do not depend on their teachers"
    # what is learned: nine parts of cross-entropy with what the teacher says, one of the task's own
    assert watch.losses[8] != pytest.approx(alone.losses[8], rel=1e-3)
    assert not same_bits(watch.weights[9], alone.weights[9])


# ------------------------------------------------------------------------------------------------------- equal budgets


def test_restarts_is_what_knowledge_evolution_is_without_forgetting(tmp_path: Path) -> None:
    """Masks that keep all but a hair: the draw touches nothing, and the rest of the plan is that of warm restarts."""
    evolved = KnowledgeEvolution(generations=2, epochs=1, warmup_epochs=0, split="kernels", keep=0.9999)
    folder = whole(settings(evolved, task=CALM), tmp_path / "evolved")
    restarts = whole(settings(Restarts(generations=2, epochs=1, warmup_epochs=0), task=CALM), tmp_path / "restarts")
    assert same_bits(final(folder), final(restarts))
