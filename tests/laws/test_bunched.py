"""Bunched resets: as many as later-layer forgetting has, at one budget, close together."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llf_ray.config import SettingError
from llf_ray.plan import compute, spans
from llf_ray.recipes.bunched import BunchedResets
from llf_ray.recipes.later_layer import LaterLayer


@pytest.mark.parametrize("generations", [2, 4, 7])
@pytest.mark.parametrize("late", [False, True])
def test_resets_are_as_many_at_one_budget_and_a_gap_apart(generations: int, late: bool) -> None:
    usual = {"generations": generations, "epochs": 20.0, "warmup_epochs": 1.0}
    recipe = BunchedResets(**usual, first=generations - 1 if late else 1, gap_epochs=2)
    plan, spread = (
        compute(one.plan(), num_items=70, batch=10) for one in (recipe, LaterLayer(threshold="layer3", **usual))
    )
    assert plan.total == spread.total == generations * 20 * 7
    starts, usual_starts = ([start for start, _ in spans(one)][1:] for one in (plan, spread))
    assert [later - earlier for earlier, later in pairwise(starts)] == [14] * (generations - 2)
    assert (starts[-1] == usual_starts[-1]) if late else (starts[0] == usual_starts[0])
    assert [phase.entry for phase in plan.phases] == [phase.entry for phase in spread.phases]


def test_gaps_that_leave_nothing_are_an_error() -> None:
    with pytest.raises(SettingError, match="nothing is left behind the last reset of 4 x 5 epochs"):
        BunchedResets(generations=4, epochs=5, gap_epochs=9)
    with pytest.raises(SettingError, match="nothing is left in front of the first reset of 8 x 5 epochs"):
        BunchedResets(generations=8, epochs=5, gap_epochs=2, first=1.5)  # 7.5 epochs less 12 of gaps
