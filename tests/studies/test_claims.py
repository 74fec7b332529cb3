"""Verdicts follow from intervals, and say what they stand on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llf_ray.studies.claims import Claim, judge, judged, untestable
from llf_ray.studies.compare import Against, against

CLAIM = Claim(name="x", claim="one beats the other", source="nobody")


def of(*differences: float) -> Against:
    seeds = range(len(differences))
    return against(dict(zip(seeds, differences, strict=True)), dict.fromkeys(seeds, 0.0))


@pytest.mark.parametrize(
    ("differences", "positive", "verdict", "why"),
    [
        ((0.05, 0.04, 0.06), True, "reproduced", ""),
        ((0.05, 0.04, 0.06), False, "not reproduced", "the other sign"),
        ((-0.05, -0.04, -0.06), False, "reproduced", ""),
        ((0.05, -0.04, 0.06), True, "not reproduced", "has the claimed sign, the interval holds zero"),
        ((-0.05, 0.04, -0.06), True, "not reproduced", "the mean has the other sign"),
        ((0.05, 0.04), True, "cannot be tested here", "three seeds"),
        ((), True, "cannot be tested here", "have not finished"),
    ],
)
def test_a_claim_holds_where_the_interval_lies_on_its_side(differences, positive, verdict, why) -> None:
    words, found, reason = judge(of(*differences), positive=positive)
    assert found == verdict
    assert why in reason
    if len(differences) > 2:
        low, high = stats.t.interval(0.95, len(differences) - 1, np.mean(differences), stats.sem(differences))
        assert words == f"{100 * np.mean(differences):+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def test_the_weakest_of_several_differences_decides() -> None:
    sure, noise, missing = of(0.05, 0.04, 0.06), of(0.05, -0.04, 0.06), None
    assert judged(CLAIM, {"a": sure, "b": sure}).verdict == "reproduced"
    mixed = judged(CLAIM, {"a": sure, "b": noise})
    assert mixed.verdict == "not reproduced"
    assert mixed.why.startswith("b: ")
    assert mixed.ours.startswith("a +5.00 (")
    assert judged(CLAIM, {"a": noise, "b": missing}).verdict == "cannot be tested here"
    assert judged(CLAIM, {}).verdict == "cannot be tested here"
    assert untestable(CLAIM, "too small").why == "too small"
