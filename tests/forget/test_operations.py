"""Operations are pure functions of a view; what they keep, they keep bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.forget import operations
from llf_ray.forget.draw import generator, key_of, uniform_fan_in
from llf_ray.forget.edit import Edit, View
from llf_ray.forget.groups import Both, Either, Select, Slot, layout, resolve
from llf_ray.forget.masks import Bernoulli, Everything, KernelBlock, Magnitude, MaskSource, Nothing, Saved, Shuffled
from llf_ray.forget.operations import WEIGHTS, Adopt, Forget, KeepMask, Rescale, ShrinkPerturb, Snapshot, tiny
from tests.toy import Toy

EVERYTHING = Either((Select(), Select(kinds=("statistic",))))
SLOTS = layout(Toy().initial(0))
Values = dict[str, Tensor]

EVERY = (
    *tiny,
    Rescale(store="start"),
    KeepMask(store="new", source=Magnitude(keep=0.5, scope="global", of="start", within="mask")),
    KeepMask(store="new", source=Bernoulli(keep=0.5, fixed=False), select=EVERYTHING),
    Forget(select=EVERYTHING, fill="store", store="start"),
    Forget(select=Select(since="body"), keep=Saved(name="mask"), kept="store", fill="zero", store="start"),
    Forget(keep=Everything()),
    Forget(select=EVERYTHING, fill="normal", std=0.02),
    KeepMask(store="new", source=Shuffled(of=Saved(name="mask"))),
    Adopt(store="new", run="runs/other"),
)
"""Of every kind one at least, those included that read stores: `stores` has what they need."""


def trained() -> Values:
    """A network after a while: nothing is as a fresh one's."""
    net = Toy().initial(5)
    values = {}
    for place, (name, value) in enumerate(net.state_dict().items()):
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(place))
        values[name] = value + 7 if not value.is_floating_point() else value + 0.1 + noise.abs() * 0.1
    return values


def stores() -> dict[str, Values]:
    """A snapshot and a mask, as earlier operations would have left them; the mask leaves the head out."""
    weights = {name: value * 2 for name, value in trained().items()}
    masks = {
        slot.name: torch.rand(slot.shape, generator=torch.Generator().manual_seed(9)) < 0.6
        for slot in SLOTS
        if slot.kind == "weight"
    }
    return {"start": weights, "mask": masks}


def view_of(
    values: Mapping[str, Tensor], *, generation: int = 1, seed: int = 3, key: str = "p/entry/0", **more: Any
) -> View:
    return View(
        slots=SLOTS,
        values=values,
        fresh=lambda seed: Toy().initial(seed).state_dict(),
        stores={**stores(), **more},
        seed=seed,
        key=key,
        generation=generation,
    )


def applied(edit: Edit, values: Mapping[str, Tensor]) -> Values:
    return {name: edit.values[name](value.clone()) if name in edit.values else value for name, value in values.items()}


def after(operation: Any, values: Mapping[str, Tensor] | None = None, **how: Any) -> Values:
    values = trained() if values is None else values
    return applied(operation(view_of(values, **how)), values)


def made(operation: Any, **how: Any) -> Values:
    """All that an operation gives, as one mapping: new values, moments to forget, masks."""
    edit, whole = operation(view_of(trained(), **how)), torch.tensor(True)
    return {
        **{f"value {name}": change(trained()[name]) for name, change in edit.values.items()},
        **{f"clear {name}": whole if mask is None else mask for name, mask in edit.clear.items()},
        **{f"{store} {name}": mask for store, masks in edit.masks.items() for name, mask in masks.items()},
    }


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moved(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
    return {name for name in one if not torch.equal(one[name], other[name])}


# ----------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("operation", EVERY, ids=lambda op: op.label)
def test_an_operation_changes_nothing_it_was_given(operation: Any) -> None:
    values, kept = trained(), stores()
    edit = operation(view_of(values, **kept))
    for change, value in ((change, values[name]) for name, change in edit.values.items() for _ in range(2)):
        change(value)
    assert equal(values, trained())
    assert all(equal(store, stores()[name]) for name, store in kept.items())


@pytest.mark.parametrize("operation", EVERY, ids=lambda op: op.label)
def test_an_operation_touches_what_it_selects_and_nothing_else(operation: Any) -> None:
    selected = set() if operation.select is None else set(resolve(operation.select, SLOTS))
    edit = operation(view_of(trained()))
    assert set(edit.values) == (set() if operation.makes else selected)
    assert set(edit.clear) <= selected
    assert set(edit.masks) | set(edit.adopt) | ({edit.snapshot} - {None}) == set(operation.makes)
    assert all(set(masks) == selected for masks in edit.masks.values())


@pytest.mark.parametrize("operation", EVERY, ids=lambda op: op.label)
def test_an_operation_reads_the_stores_that_it_needs_and_no_other(operation: Any) -> None:
    read: set[str] = set()

    class Noting(dict[str, Values]):
        def __getitem__(self, name: str) -> Values:
            read.add(name)
            return super().__getitem__(name)

    values = trained()
    applied(operation(replace(view_of(values), stores=Noting(stores()))), values)
    assert read == set(operation.needs)


@pytest.mark.parametrize("operation", EVERY, ids=lambda op: op.label)
def test_an_operation_gives_the_same_again_whatever_was_drawn_in_between(operation: Any) -> None:
    torch.manual_seed(1)
    first = made(operation)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    torch.randn(100)
    second = made(operation)
    assert equal(first, second)
    torch.set_rng_state(state)


@pytest.mark.parametrize("operation", EVERY, ids=lambda op: op.label)
def test_ambient_randomness_is_left_where_it_was(operation: Any) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    made(operation)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("operation", [op for op in EVERY if not op.makes], ids=lambda op: op.label)
def test_the_order_in_which_tensors_are_asked_for_does_not_matter(operation: Any) -> None:
    values = trained()
    forwards, backwards = operation(view_of(values)), operation(view_of(values))
    one = {name: forwards.values[name](values[name]) for name in forwards.values}
    other = {name: backwards.values[name](values[name]) for name in reversed(list(backwards.values))}
    assert equal(one, other)


@pytest.mark.parametrize("operation", [Forget(), ShrinkPerturb(), Forget(fill="initial")], ids=lambda op: op.label)
def test_a_draw_is_another_for_each_seed_operation_and_generation(operation: Any) -> None:
    usual = after(operation)
    for other in ({"seed": 4}, {"generation": 2}, {"key": "p/entry/1"}):
        found = after(operation, **other)
        for name in ("stem.0.weight", "head.weight"):
            assert not torch.equal(usual[name], found[name]), other
    assert (
        len(
            {
                tuple(after(operation)[n].flatten()[:3].tolist())
                for n in ("stem.0.weight", "body.0.weight", "head.weight")
            }
        )
        == 3
    )


def test_a_fixed_redraw_is_the_same_in_every_generation_and_another_for_each_run() -> None:
    fixed = Forget(fixed=True)
    assert equal(after(fixed, generation=1), after(fixed, generation=5))
    assert moved(after(fixed), after(fixed, seed=4)) == {"stem.0.weight", "body.0.weight", "head.weight"}


def test_averaged_weights_take_the_same_draw() -> None:
    """The same edit is applied to the weights and to their average."""
    values, average = trained(), {name: value * 2 for name, value in trained().items()}
    edit = Forget(keep=Bernoulli(keep=0.5))(view_of(values))
    one, other = applied(edit, values), applied(edit, average)
    kept = one["head.weight"] == values["head.weight"]
    assert torch.equal(other["head.weight"][kept], average["head.weight"][kept])
    assert torch.equal(other["head.weight"][~kept], one["head.weight"][~kept])


# --------------------------------------------------------------------------------------------------------------- forget


def test_keeping_everything_is_no_change_to_the_bit() -> None:
    values = trained()
    values["head.weight"][0, 0], values["head.weight"][0, 1], values["head.weight"][0, 2] = -0.0, math.nan, 1e-42
    edit = Forget(select=EVERYTHING, keep=Everything(), fill="uniform")(view_of(values))
    for name, value in applied(edit, values).items():
        assert value.numpy().tobytes() == values[name].numpy().tobytes()
    assert not any(mask is None or mask.any() for mask in edit.clear.values()), "and no moment is forgotten"


def test_a_redraw_leaves_biases_and_normalisers_alone_unless_they_are_selected() -> None:
    values = trained()
    assert moved(values, after(Forget())) == {"stem.0.weight", "body.0.weight", "head.weight"}
    assert moved(values, after(Forget(select=Select()))) == {
        n for n in values if "running" not in n and "num_" not in n
    }
    fresh = after(Forget(select=EVERYTHING, fill="initial"))
    assert moved(values, fresh) == set(values)


def test_a_fresh_model_is_a_whole_initialisation() -> None:
    """All tensors of one edit come from one model, statistics and counters included."""
    fresh = after(Forget(select=EVERYTHING, fill="initial"))
    seed = key_of(3, "p/entry/0", 1, "model")
    assert equal(fresh, Toy().initial(seed).state_dict())
    assert fresh["stem.1.num_batches_tracked"].dtype == torch.int64


def test_the_uniform_redraw_is_torchs_default_of_a_layer() -> None:
    """U(+-1/sqrt(fan_in)), the Kaiming-uniform with a = sqrt(5) that torch gives weights and biases."""
    layer = nn.Conv2d(64, 64, 3)
    mine = uniform_fan_in(layer.weight.shape, generator(0))
    bound = 1 / math.sqrt(64 * 9)
    assert float(mine.abs().max()) <= bound
    assert float(mine.abs().max()) == pytest.approx(float(layer.weight.detach().abs().max()), rel=1e-3)
    kaiming = nn.init.kaiming_normal_(torch.empty(64, 64, 3, 3))
    assert float(mine.std()) == pytest.approx(1 / math.sqrt(3 * 64 * 9), rel=0.01)
    assert float(kaiming.std() / mine.std()) == pytest.approx(math.sqrt(6), rel=0.02)
    drawn = after(Forget(select=Select(modules=("head",))))
    assert float(drawn["head.bias"].abs().max()) <= 1 / math.sqrt(7)
    assert float(drawn["head.weight"].abs().max()) <= 1 / math.sqrt(7)


def test_a_normal_redraw_has_the_deviation_that_is_asked_for_and_its_own_key() -> None:
    """As active forgetting draws an embedding; normalisers start as a new network's."""
    net = nn.Sequential(nn.Embedding(500, 40), nn.LayerNorm(40), nn.Linear(40, 30))
    fresh = {name: torch.full_like(value, 9) for name, value in net.state_dict().items()}

    def drawn(generation: int, **how: Any) -> Mapping[str, Tensor]:
        view = View(
            slots=layout(net),
            values=net.state_dict(),
            fresh=lambda seed: fresh,
            stores={},
            seed=1,
            key="k",
            generation=generation,
        )
        return applied(Forget(select=Select(), fill="normal", std=0.02, **how)(view), dict(net.state_dict()))

    values = drawn(1)
    for name in ("0.weight", "2.weight"):
        assert float(values[name].std()) == pytest.approx(0.02, rel=0.05)
        assert abs(float(values[name].mean())) < 0.001
    sorted_, normal = values["0.weight"].flatten().sort()[0], torch.distributions.Normal(0, 0.02)
    ranks = (torch.arange(len(sorted_)) + 0.5) / len(sorted_)
    assert float((normal.cdf(sorted_) - ranks).abs().max()) < 0.012, "Kolmogorov and Smirnov, 1 % of 20,000 draws"
    assert 0 < float(values["2.bias"].abs().max()) < 0.1
    assert torch.equal(values["1.weight"], fresh["1.weight"])
    assert equal(dict(values), dict(drawn(1)))
    assert not torch.equal(values["0.weight"], drawn(2)["0.weight"])
    assert torch.equal(drawn(1, fixed=True)["0.weight"], drawn(2, fixed=True)["0.weight"])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"fill": "normal"}, "std = None: fill = 'normal' needs one"),
        ({"std": 0.02}, "std = 0.02: fill = 'uniform' has none"),
        ({"fill": "normal", "std": 0.0}, "std = 0.0: must be > 0"),
    ],
)
def test_a_deviation_belongs_to_a_normal_redraw(how: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Forget(**how)


def test_forgotten_entries_lose_their_moments_and_kept_ones_do_not() -> None:
    values = trained()
    whole = Forget()(view_of(values))
    assert whole.clear == dict.fromkeys(["stem.0.weight", "body.0.weight", "head.weight"])
    half = Forget(keep=Bernoulli(keep=0.5))(view_of(values))
    for name, mask in half.clear.items():
        assert mask is not None
        assert torch.equal(mask, applied(half, values)[name] != values[name])
    assert Forget(moments=False)(view_of(values)).clear == {}
    statistics = Forget(select=EVERYTHING, fill="initial")(view_of(values))
    assert not any("running" in name for name in statistics.clear), "a buffer has no moments"


@pytest.mark.parametrize("fill", ["zero", "store"])
def test_what_is_kept_and_what_fills_come_from_where_the_operation_says(fill: Any) -> None:
    values, store = trained(), {name: value * 0 - 2 for name, value in trained().items()}
    mask = {name: torch.rand(v.shape, generator=torch.Generator().manual_seed(1)) < 0.5 for name, v in values.items()}
    rewind = Forget(select=EVERYTHING, keep=Saved(name="m"), kept="store", fill="zero", store="s")
    same = Forget(select=EVERYTHING, keep=Saved(name="m"), fill=fill, store="s" if fill == "store" else "")
    rewound = after(rewind, values, s=store, m=mask)
    found = after(same, values, s=store, m=mask)
    for name, keep in mask.items():
        assert torch.equal(rewound[name][keep], store[name][keep])
        assert not rewound[name][~keep].any()
        assert torch.equal(found[name][keep], values[name][keep])
        assert torch.equal(
            found[name][~keep], store[name][~keep] if fill == "store" else torch.zeros_like(found[name][~keep])
        )


# ----------------------------------------------------------------------------------------------------- other operations


def test_shrink_perturb_runs_from_a_warm_start_to_a_fresh_model() -> None:
    values = trained()
    assert equal(after(ShrinkPerturb(select=Select(), shrink=1, perturb=0)), values), "(1, 0) is a warm start"
    fresh = after(ShrinkPerturb(select=Select(), shrink=0, perturb=1))
    model = Toy().initial(key_of(3, "p/entry/0", 1, "model")).state_dict()
    parameters = {name for name in values if "running" not in name and "num_" not in name}
    assert all(torch.equal(fresh[name], model[name]) for name in parameters), "(0, 1) is a fresh model"
    mixed = after(ShrinkPerturb())
    for name in parameters:
        torch.testing.assert_close(mixed[name], 0.4 * values[name] + 0.1 * model[name])
    assert set(ShrinkPerturb()(view_of(values)).clear) == parameters
    with pytest.raises(SettingError, match=r"^shrink = 2: must be >= 0 and <= 1$"):
        ShrinkPerturb(shrink=2)


def test_rescaled_tensors_have_the_norms_of_the_snapshot() -> None:
    values = trained()
    start = {name: value * 3 if value.is_floating_point() else value for name, value in values.items()}
    start["stem.1.bias"] = torch.zeros(5)
    found = after(Rescale(select=Select(before="head"), store="s"), values, s=start)
    assert not found["stem.1.bias"].any(), "a tensor that began at zero goes back to zero"
    for name in ("stem.0.weight", "body.0.weight", "body.1.weight"):
        torch.testing.assert_close(found[name].norm(), start[name].norm())
        torch.testing.assert_close(found[name] / found[name].norm(), values[name] / values[name].norm())
    assert torch.equal(found["head.weight"], values["head.weight"])


def test_snapshots_and_masks_are_stores_and_change_no_weight() -> None:
    snapshot, mask = Snapshot(store="s"), KeepMask(store="m", source=Magnitude(keep=0.5))
    assert snapshot(view_of(trained())) == Edit(snapshot="s")
    edit = mask(view_of(trained()))
    assert edit.values == {}
    assert set(edit.masks["m"]) == {"stem.0.weight", "body.0.weight", "head.weight"}
    assert (snapshot.makes, mask.makes, mask.needs) == (("s",), ("m",), ())
    adopt = Adopt(store="t", run="runs/other")
    assert adopt(view_of(trained())) == Edit(adopt={"t": "runs/other"})
    assert (adopt.makes, adopt.label) == (("t",), "take t from run other")
    assert KeepMask(store="m", source=Magnitude(keep=0.5, of="s", within="m")).needs == ("s", "m")


# ---------------------------------------------------------------------------------------------------------------- masks


def test_a_fixed_random_mask_is_one_for_the_run_and_the_other_one_for_each_generation() -> None:
    slots = [slot for slot in SLOTS if slot.kind == "weight"]

    def mask(source: Bernoulli, **how: Any) -> Tensor:
        return source.masks(view_of(trained(), **how), slots)["body.0.weight"]

    fixed, each = Bernoulli(keep=0.6), Bernoulli(keep=0.6, fixed=False)
    assert torch.equal(mask(fixed, generation=1), mask(fixed, generation=4, key="q/exit/2"))
    assert not torch.equal(mask(each, generation=1), mask(each, generation=2))
    assert not torch.equal(mask(fixed), mask(fixed, seed=9))
    assert float(
        torch.cat([m.flatten() for m in Bernoulli(keep=0.6).masks(view_of(trained()), slots).values()]).float().mean()
    ) == pytest.approx(0.6, abs=0.08)
    assert bool(mask(Bernoulli(keep=1.0)).all())
    assert not mask(Bernoulli(keep=0.0)).any()


@pytest.mark.parametrize("share", [0.5, 0.3, 1.0])
def test_the_kernel_block_is_the_slim_network(share: float) -> None:
    """First layer: all inputs; last layer: all outputs; in between the low block of both."""
    net = nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.Conv2d(10, 7, 1), nn.Flatten(), nn.Linear(7, 4))
    slots = layout(net)
    masks = KernelBlock(share=share).masks(
        View(slots=slots, values={}, fresh=dict, seed=0, key="", generation=0), slots
    )
    out, mid = math.ceil(share * 10), math.ceil(share * 7)
    expected = {
        "0.weight": (slice(out), slice(None)),
        "0.bias": (slice(out),),
        "1.weight": (slice(out),),
        "1.bias": (slice(out),),
        "2.weight": (slice(mid), slice(out)),
        "2.bias": (slice(mid),),
        "4.weight": (slice(None), slice(mid)),
        "4.bias": (slice(None),),
    }
    for name, block in expected.items():
        mask = torch.zeros(net.get_parameter(name).shape, dtype=torch.bool)
        mask[block] = True
        assert torch.equal(masks[name], mask), name


def test_a_network_whose_forgotten_part_is_zero_computes_what_its_slim_part_computes() -> None:
    """Kept outputs read kept inputs only: the correctness of KELS' slim network."""

    def build(width: int, last: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, last, 3, bias=False), nn.BatchNorm2d(last), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 4),
        )  # fmt: skip

    dense, slim = build(10, 6).eval(), build(5, 3).eval()
    for norm in (dense[1], dense[4]):
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    slots, values = layout(dense), dense.state_dict()
    view = View(slots=slots, values=values, fresh=dict, seed=0, key="", generation=0)
    edit = Forget(keep=KernelBlock(share=0.5), fill="zero")(view)
    dense.load_state_dict(applied(edit, values))
    small = slim.state_dict()
    slim.load_state_dict(
        {n: v[tuple(slice(s) for s in small[n].shape)] if v.dim() else v for n, v in dense.state_dict().items()}
    )
    images = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(dense(images), slim(images))


def smallest_first(values: list[list[float]], keep: float, live: list[list[bool]] | None = None) -> list[list[bool]]:
    """Another definition: sort live (|w|, -index) triples by hand and drop the smallest ones."""
    flat = [(abs(w), -place) for place, w in enumerate(w for part in values for w in part)]
    alive = [m for part in (live or [[True] * len(v) for v in values]) for m in part]
    ranked = sorted((entry for entry, m in zip(flat, alive, strict=True) if m))
    dropped = ranked[: math.ceil(round((1 - keep) * len(ranked), 6))]
    kept = [m and entry not in dropped for entry, m in zip(flat, alive, strict=True)]
    result, at = [], 0
    for part in values:
        result.append(kept[at : at + len(part)])
        at += len(part)
    return result


def magnitude(values: list[list[float]], live: list[list[bool]] | None = None, **how: Any) -> list[list[bool]]:
    slots = [
        Slot(name=f"w{i}", module="", shape=(len(v),), kind="weight", layer=0, count=1) for i, v in enumerate(values)
    ]
    tensors = {f"w{i}": torch.tensor(v) for i, v in enumerate(values)}
    stores = {"m": {f"w{i}": torch.tensor(m) for i, m in enumerate(live or [])}, "old": tensors}
    view = View(slots=slots, values=tensors, fresh=dict, stores=stores, seed=0, key="", generation=0)
    masks = Magnitude(**how).masks(view, slots)
    return [masks[slot.name].tolist() for slot in slots]


@pytest.mark.parametrize("keep", [0.0, 0.1, 1 / 3, 0.5, 0.8, 0.99, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_magnitude_masks_keep_the_largest_and_break_ties_by_index(keep: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    values = [
        torch.randint(-3, 4, (n,), generator=random).float().tolist() for n in (5, 1, 12)
    ]  # many ties, zeros, signs
    live = [(torch.rand(len(v), generator=random) < 0.7).tolist() for v in values]
    assert magnitude(values, keep=keep, scope="global") == smallest_first(values, keep)
    assert magnitude(values, live, keep=keep, scope="global", within="m") == smallest_first(values, keep, live)
    assert magnitude(values, keep=keep) == [smallest_first([v], keep)[0] for v in values]
    assert magnitude(values, keep=keep, of="old") == magnitude(values, keep=keep)


def test_a_fifth_of_the_survivors_goes_at_each_level() -> None:
    values = [list(range(1, 101))]
    live = [[True] * 100]
    for survivors in (80, 64, 51, 40):  # 100, less ceil(20), ceil(16), ceil(12.8), ceil(10.2)
        live = magnitude([[float(v) for v in values[0]]], live, keep=0.8, scope="global", within="m")
        assert sum(live[0]) == survivors
        assert live[0] == [False] * (100 - survivors) + [True] * survivors


def test_no_mask_is_made_of_weights_that_are_not_finite() -> None:
    with pytest.raises(SettingError, match="not finite"):
        magnitude([[1.0, math.nan]], keep=0.5)


def test_a_stored_mask_that_does_not_know_a_tensor_keeps_it_whole() -> None:
    slots = SLOTS
    view = view_of(trained(), m={"head.weight": torch.zeros(3, 7, dtype=torch.bool)})
    masks = Saved(name="m").masks(view, slots)
    assert not masks["head.weight"].any()
    assert bool(masks["stem.0.weight"].all())
    assert not Nothing().masks(view, slots)["head.bias"].any()


# ---------------------------------------------------------------------------------------------------------------- draws


def test_keys_of_different_things_differ() -> None:
    parts = (0, 1, "1", "0", "a", 1.0, ("a", "b"), "a\x1fb")
    keys = {key_of(*p) for n in (1, 2) for p in permutations(parts, n)}
    assert len(keys) == sum(1 for n in (1, 2) for _ in permutations(parts, n))
    assert all(0 <= key < 2**63 for key in keys)


def test_labels_say_what_an_operation_does() -> None:
    assert Forget(select=Select(since="layer3", name="later")).label == "redraw later"
    assert Forget(keep=Bernoulli(keep=0.8), fixed=True).label == "redraw weights, keeping 80% at random (same draw)"
    assert Forget(keep=Bernoulli(keep=1e-9)).label == "redraw weights, keeping 0.0000001% at random"
    assert Forget(fill="store", store="s").label == "rewind to s: weights"
    back = Forget(keep=Saved(name="m"), kept="store", fill="zero", store="s")
    assert back.label == "zero weights outside mask m, those inside go back to s"
    assert KeepMask(store="m", source=Everything()).label == "mask m: keep all weights"
    assert (
        KeepMask(store="m", source=Magnitude(keep=0.005, scope="global")).label
        == "mask m: keep 0.5% largest per network of weights"
    )
    assert ShrinkPerturb().label == "0.4 x all + 0.1 x fresh"
    assert all(operation.label for operation in tiny)


def test_the_laws_are_tried_on_every_kind_of_operation_fill_and_mask() -> None:
    exported = {getattr(operations, name) for name in operations.__all__}
    assert {type(operation) for operation in EVERY} == {kind for kind in exported if isinstance(kind, type)}
    forgets, hints = [operation for operation in EVERY if isinstance(operation, Forget)], get_type_hints(Forget)
    assert {forget.fill for forget in forgets} == set(get_args(hints["fill"]))
    assert {forget.kept for forget in forgets} == set(get_args(hints["kept"]))
    sources = [forget.keep for forget in forgets] + [op.source for op in EVERY if isinstance(op, KeepMask)]
    assert {type(source) for source in sources} == set(get_args(MaskSource))


def test_selections_combine() -> None:
    assert resolve(Both((WEIGHTS, Select(since="head"))), SLOTS) == ("head.weight",)


def test_a_shuffled_mask_keeps_as_many_at_other_places() -> None:
    slots = [slot for slot in SLOTS if slot.kind == "weight"]
    before = stores()["mask"]
    first, again, next_one = (
        Shuffled(of=Saved(name="mask")).masks(view_of(trained(), generation=g), slots) for g in (1, 1, 2)
    )
    for slot in slots:
        name = slot.name
        assert first[name].shape == before[name].shape
        assert int(first[name].sum()) == int(before[name].sum())
        assert torch.equal(first[name], again[name])
    assert any(not torch.equal(first[slot.name], before[slot.name]) for slot in slots)
    assert any(not torch.equal(first[slot.name], next_one[slot.name]) for slot in slots)
    assert bool(Shuffled(of=Saved(name="mask")).masks(view_of(trained(), mask={}), slots)["head.weight"].all())
