"""Verdicts follow from intervals, and say what they stand on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llf_ray.studies.claims import Claim, counted, judge, judged, untestable
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


@pytest.mark.parametrize(
    ("differences", "verdict", "why"),
    [
        ((0.20, 0.21, 0.19), "reproduced", ""),
        # a mean above the margin whose interval begins just above zero
        ((0.10, 0.20, 0.19), "not reproduced", "the mean is more than 0.15, the interval holds 0.15"),
        ((0.05, 0.20, 0.10), "not reproduced", "the mean is less than 0.15, the interval holds 0.15"),
        ((0.05, 0.06, 0.05), "not reproduced", "the difference is less than 0.15"),
        ((-0.05, -0.06, -0.05), "not reproduced", "the difference has the other sign"),
    ],
)
def test_a_gain_of_so_much_is_reproduced_where_the_interval_begins_above_it(differences, verdict, why) -> None:
    _, found, reason = judge(of(*differences), least=0.15, scale=1.0)
    assert found == verdict
    assert why in reason
    turned = judge(of(*(-value for value in differences)), positive=False, least=0.15, scale=1.0)
    assert turned[1:] == (found, reason)


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


def test_what_is_not_reproduced_is_contradicted_or_open() -> None:
    every = [
        judged(CLAIM, {"a": of(0.05, 0.04, 0.06)}),
        judged(CLAIM, {"a": of(0.05, -0.04, 0.06)}),
        judged(CLAIM, {"a": of(0.05, 0.04, 0.06), "b": of(0.05, -0.04, 0.06)}),
        judged(CLAIM, {"a": of(0.05, -0.04, 0.06), "b": of(-0.05, -0.04, -0.06)}),
        untestable(CLAIM, "no data"),
    ]
    assert counted(every) == (
        "1 reproduced, 3 not reproduced (1 contradicted, 2 within the noise of seeds), 1 cannot be tested here"
    )
    assert counted(every[:1]) == "1 reproduced, 0 not reproduced, 0 cannot be tested here"
