"""Published claims about forgetting and relearning, and what a study of ours says of each.

Where a number comes from decides what it is worth: R: the authors' README, shipped log or figure; I: an issue thread of
their repository; W: a leaderboard's entry for the paper; S: a text that quotes the paper; C: their code. Numbers that
have no such source are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llf_ray.studies.compare import Against
from llf_ray.studies.show import markdown_table

__all__ = ["QUICK", "VERDICTS", "Claim", "Found", "Verdict", "claim_table", "counted", "judge", "judged", "untestable"]

Verdict = Literal["reproduced", "not reproduced", "cannot be tested here"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)  # the best first
NOISE = "within the noise of seeds"
QUICK = "The quick size trains for a few epochs: its numbers show that everything works, and nothing else."


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim in words, where it is from, and the published number, if one was verified."""

    name: str
    claim: str
    source: str
    published: str = "no verified number"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What we found of a claim, with the reason of the verdict."""

    claim: Claim
    ours: str
    verdict: Verdict
    why: str = ""


def judge(
    difference: Against | None, *, positive: bool = True, least: float = 0.0, scale: float = 100.0
) -> tuple[str, Verdict, str]:
    """(ours, verdict, why) of the claim that a paired difference is above ``least`` (where not ``positive``, below its
    negative).

    Reproduced where the whole 95 % interval lies beyond that margin on the claimed side. ``scale`` 100 shows points of
    per cent.
    """
    if difference is None or difference.mean is None:
        return "not measured", "cannot be tested here", "the trainings that it needs have not finished"
    ours = _words(difference, scale)
    if difference.interval is None:
        return ours, "cannot be tested here", "an interval needs three seeds"
    low, high = difference.interval if positive else (-difference.interval[1], -difference.interval[0])
    mean = difference.mean if positive else -difference.mean
    if low > least:
        return ours, "reproduced", ""
    if high < 0:
        return ours, "not reproduced", "the difference has the other sign"
    margin = f"{scale * least:g}" if least else "zero"
    if high < least:
        return ours, "not reproduced", f"the difference is less than {margin}"
    beside = f"is {'more' if mean > least else 'less'} than {margin}" if least else "has the claimed sign"
    seen = beside if mean > 0 else "has the other sign"
    return ours, "not reproduced", f"{NOISE}: the mean {seen}, the interval holds {margin}"


def _words(difference: Against, scale: float) -> str:
    assert difference.mean is not None
    digits = 2 if scale == 100.0 else 3
    mean = f"{scale * difference.mean:+.{digits}f}"
    if difference.interval is None:
        return mean
    low, high = (f"{scale * edge:+.{digits}f}" for edge in difference.interval)
    return f"{mean} ({low} to {high})"


def judged(
    claim: Claim, differences: Mapping[str, Against | None], *, positive: bool = True, scale: float = 100.0
) -> Found:
    """A claim that holds where every one of some differences lies on the claimed side; the name of each says what is
    taken from what, since claims of "worse" have the other sign.
    """
    every = {name: judge(difference, positive=positive, scale=scale) for name, difference in differences.items()}
    ours = "; ".join(f"{name} {words}" for name, (words, _, _) in every.items())
    worst = max((verdict for _, verdict, _ in every.values()), key=VERDICTS.index, default=VERDICTS[-1])
    whys = [f"{name}: {why}" if len(every) > 1 else why for name, (_, _, why) in every.items() if why]
    return Found(claim=claim, ours=ours or "not measured", verdict=worst, why="; ".join(whys))


def untestable(claim: Claim, why: str, ours: str = "-") -> Found:
    """A claim that these data or this length cannot speak to."""
    return Found(claim=claim, ours=ours, verdict="cannot be tested here", why=why)


def counted(every: Sequence[Found]) -> str:
    """How many claims came out how; of those not reproduced, how many these seeds contradict and how many they leave
    open.
    """
    counts = {verdict: sum(one.verdict == verdict for one in every) for verdict in VERDICTS}
    words = {verdict: f"{number} {verdict}" for verdict, number in counts.items()}
    missed = [one for one in every if one.verdict == "not reproduced"]
    open_ones = sum(all(NOISE in why for why in one.why.split("; ")) for one in missed)
    if missed:
        words["not reproduced"] += f" ({len(missed) - open_ones} contradicted, {open_ones} {NOISE})"
    return ", ".join(words.values())


def claim_table(every: Sequence[Found]) -> list[str]:
    """Claims as a table in Markdown, the verdict last."""
    columns = ["claim", "source", "published", "ours: mean difference (95 % interval)", "verdict"]
    rows = [
        [
            one.claim.claim,
            one.claim.source,
            one.claim.published,
            one.ours,
            f"**{one.verdict}**" + (f": {one.why}" if one.why else ""),
        ]
        for one in every
    ]
    return markdown_table(columns, rows, left=len(columns))
