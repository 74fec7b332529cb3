"""Schedules: the published token lists, and what holds of all of them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llf_ray.config import SettingError
from llf_ray.nn.cropr import Budget, EarlyCut, KeepRate, Lengths, Schedule, Shape, Steady, places

LARGE = Shape(patches=196, prefix=1, blocks=24, fusion=True)  # ViT-L/16 at 224
EVA = Shape(patches=1024, prefix=1, blocks=24, fusion=True)  # EVA-02-L, 448/14 and 512/16
PLAIN = dataclasses.replace(LARGE, fusion=False)


def lengths(schedule: Schedule, shape: Shape) -> list[int]:
    return [patches + shape.prefix for patches in schedule.kept(shape)]


def test_the_published_token_lists():
    assert lengths(Steady(rate=8), LARGE) == list(range(188, 19, -8))
    assert len(places(Steady(rate=8), LARGE)) == 22
    assert lengths(Steady(rate=8), PLAIN) == list(range(188, 11, -8))
    assert len(places(Steady(rate=8), PLAIN)) == 23
    assert lengths(Steady(rate=50, after=(6, 12, 18), absorb=False), PLAIN) == [147, 97, 47]
    assert lengths(Steady(rate=40), EVA) == list(range(984, 143, -40))
    assert len(places(Steady(rate=40), EVA)) == 22


@pytest.mark.parametrize(
    ("schedule", "shape", "share"),
    [
        (Steady(rate=8), LARGE, 0.903),
        (Steady(rate=8), PLAIN, 0.944),
        (Steady(rate=50, after=(6, 12, 18), absorb=False), PLAIN, 0.765),
        (Steady(rate=40), EVA, 0.86),
        (EarlyCut(pruned=0.8, block=3), EVA, 0.8),
    ],
)
def test_the_published_shares_of_pruned_patches(schedule, shape, share):
    assert 1 - schedule.kept(shape)[-1] / shape.patches == pytest.approx(share, abs=6e-4)


def test_without_a_class_token_no_more_go_first_and_registers_all_count():
    assert Steady(rate=8).kept(dataclasses.replace(LARGE, prefix=0))[0] == 188
    assert Steady(rate=8).kept(dataclasses.replace(LARGE, prefix=5))[0] == 183
    assert lengths(Steady(rate=8), dataclasses.replace(LARGE, prefix=5))[:2] == [188, 180]


def test_a_keep_rate_is_of_what_is_still_there():
    shape = Shape(patches=196, prefix=1, blocks=12, fusion=False)
    assert KeepRate(keep=0.7, after=(3, 6, 9)).kept(shape) == (138, 97, 68), "196, 137.2, 96.6, 67.9 rounded up"
    assert KeepRate(keep=1.0).kept(shape) == (196,) * 11


def test_explicit_lengths_are_taken_as_they_are():
    assert Lengths(tokens=(100, 60, 10), after=(2, 5, 8)).kept(LARGE) == (99, 59, 9)


def test_one_early_cut():
    assert EarlyCut(pruned=0.8, block=3).kept(EVA) == (205,)
    assert places(EarlyCut(pruned=0.8, block=3), EVA) == (3,)


def test_lengths_round_up_to_a_multiple():
    assert lengths(KeepRate(keep=0.7, after=(3, 6, 9), multiple=8), PLAIN) == [144, 104, 72]
    short = dataclasses.replace(PLAIN, blocks=6)
    assert lengths(Steady(rate=17), short) == [179, 162, 145, 128, 111]
    assert lengths(Steady(rate=17, multiple=8), short) == [184, 168, 152, 128, 112]
    assert all(length % 8 == 0 for length in lengths(EarlyCut(pruned=0.77, multiple=8), PLAIN))


SHAPES = st.builds(
    Shape,
    patches=st.integers(1, 1200),
    prefix=st.integers(0, 9),
    blocks=st.integers(3, 40),
    fusion=st.booleans(),
)
MULTIPLES = st.sampled_from([1, 2, 4, 8, 16])


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, Shape]:
    shape = draw(SHAPES)
    after = draw(st.none() | st.sets(st.integers(1, shape.last), min_size=1).map(lambda blocks: tuple(sorted(blocks))))
    number = len(after) if after else shape.last
    multiple = draw(MULTIPLES)
    most = (shape.patches - 1 - shape.prefix) // number
    kinds = [
        st.builds(KeepRate, keep=st.floats(0.01, 1.0), after=st.just(after), multiple=st.just(multiple)),
        st.builds(EarlyCut, pruned=st.floats(0, 0.999), block=st.integers(1, shape.last), multiple=st.just(multiple)),
        st.lists(st.integers(1, shape.patches), min_size=number, max_size=number).map(
            lambda kept: Lengths(
                tokens=tuple(patches + shape.prefix for patches in sorted(kept, reverse=True)),
                after=after or tuple(range(1, shape.last + 1)),
            )
        ),
    ]
    if most >= 0:
        kinds.append(st.builds(Steady, rate=st.integers(0, most), after=st.just(after), multiple=st.just(multiple)))
    return draw(st.one_of(kinds)), shape


@given(schedules())
def test_lengths_never_grow_and_one_patch_is_always_left(case):
    schedule, shape = case
    kept = schedule.kept(shape)
    assert len(kept) == len(places(schedule, shape))
    alive = shape.patches
    for patches in kept:
        assert 1 <= patches <= alive
        assert patches == alive or (patches + shape.prefix) % getattr(schedule, "multiple", 1) == 0
        alive = patches


@given(schedules(), st.floats(0, 1), st.floats(0, 1))
def test_less_of_a_schedule_keeps_at_least_as_many(case, share, other):
    schedule, shape = case
    less, more = sorted((share, other))
    assert all(
        few <= many
        for few, many in zip(schedule.eased(more).kept(shape), schedule.eased(less).kept(shape), strict=True)
    )
    assert schedule.eased(1.0).kept(shape) == schedule.kept(shape)
    assert set(schedule.eased(0.0).kept(shape)) == {shape.patches}


@given(SHAPES, st.floats(0.05, 1.0), MULTIPLES)
def test_a_budget_gives_the_smallest_rate_that_is_enough(shape, share, multiple):
    budget = Budget(flops=share, multiple=multiple)

    def cost(kept: tuple[int, ...]) -> float:
        return sum(kept) / (shape.patches * len(kept))

    enough = []
    for rate in range(shape.patches + 1):
        try:
            kept = Steady(rate=rate, multiple=multiple).kept(shape)
        except SettingError:
            break
        if cost(kept) <= share:
            enough.append(rate)
    if not enough:
        with pytest.raises(SettingError, match="cannot be reached"):
            budget.solved(shape, cost)
    else:
        assert budget.solved(shape, cost) == Steady(rate=enough[0], multiple=multiple)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Steady(rate=-1), "rate"),
        (lambda: Steady(rate=9).kept(PLAIN), "rate = 9: 23 modules cut more than the 196 .* at most 8 leaves one"),
        (lambda: Steady(rate=1, after=(3, 2)), "ascending order"),
        (lambda: Steady(rate=1, after=(3, 3)), "each block once"),
        (lambda: Steady(rate=1, multiple=0), "multiple"),
        (lambda: places(Steady(rate=1, after=()), LARGE), "name the blocks"),
        (lambda: places(Steady(rate=1, after=(0,)), LARGE), "0 is no place"),
        (lambda: places(Steady(rate=1, after=(23,)), LARGE), "has 1 to 22 .*last-layer fusion"),
        (lambda: places(Steady(rate=1, after=(24,)), PLAIN), "has 1 to 23 "),
        (lambda: places(Steady(rate=1), Shape(patches=9, prefix=1, blocks=2, fusion=True)), "no place to cut"),
        (lambda: KeepRate(keep=0.0), "keep"),
        (lambda: KeepRate(keep=1.2), "keep"),
        (lambda: EarlyCut(pruned=1.0), "pruned"),
        (lambda: EarlyCut(block=30).kept(LARGE), "30 is no place"),
        (lambda: Lengths(tokens=(10, 20), after=(1, 2)), "cannot grow"),
        (lambda: Lengths(tokens=(10,), after=(1, 2)), "one length for each block"),
        (lambda: Lengths(tokens=(1,), after=(1,)).kept(LARGE), "must lie between 2 and 197"),
        (lambda: Lengths(tokens=(198,), after=(1,)).kept(LARGE), "must lie between 2 and 197"),
        (lambda: Budget(flops=0.0), "flops"),
        (lambda: Budget(flops=0.1).solved(LARGE, lambda kept: 1.0), "flops = 0.1: cannot be reached"),
    ],
)  # fmt: skip
def test_bad_schedules_say_what_is_wrong(make, words):
    with pytest.raises(SettingError, match=words):
        make()
