"""What the study of Token Cropr found: tables, numbers, figures and a verdict on every claim.

All is read from the trainings' folders, so it can be made again at any time, also of a study that is not finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group as Stacked
from rich.console import RenderableType
from rich.text import Text

from llf_ray import figures
from llf_ray.display import duration
from llf_ray.journal import read, replace_text
from llf_ray.studies.claims import QUICK, Claim, Found, claim_table, counted, judge, judged, untestable
from llf_ray.studies.compare import Against, Result, against, collect, draw_result, plain, spread
from llf_ray.studies.cropr import DENSE, UNTRAINED, CroprStudy, Family
from llf_ray.studies.kept import spent
from llf_ray.studies.show import Price, markdown_table, price_of, table_like

__all__ = ["Findings", "claims", "document", "findings", "report", "write"]

Seeds = Mapping[int, float]

TABLE_1 = "Bergner et al. 2025, Table 1; ImageNet, ViT-L"

# Bergner et al., Table 1: ViT-L/16 of MAE at 224, R = 8, top-1 by selector, with last-layer fusion or without
PUBLISHED = {
    "dense": "85.8",
    "cropr": "85.1 (without LLF)",
    "cropr_fusion": "85.3 (with LLF)",
    "random": "83.8 (with LLF)",
    "variance": "84.3 (with LLF)",
    "class_attention": "84.7 (with LLF)",
    "non_salient": "76.4 (with LLF)",
    "merge": "85.0 (re-run), 85.1 (ToMe's paper)",
}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that was found: ``results`` by family, ``scores`` of the test part by family, arm, score and seed,
    ``prices`` by family and arm.
    """

    study: CroprStudy
    results: Mapping[str, Result]
    scores: Mapping[str, Mapping[str, Mapping[str, Seeds]]]
    prices: Mapping[str, Mapping[str, Price]]
    seconds: float = 0.0
    missing: Sequence[str] = field(default_factory=tuple)

    def test(self, family: str, arm: str, score: str = "") -> Seeds:
        """A test score by seed; by default the one that the family's task is selected by."""
        found = self.scores.get(family, {}).get(arm, {})
        return found.get(score or self.results[family].metric, {}) if family in self.results else {}

    def minus(self, family: str, arm: str, other: str, *, share: float = 1.0, score: str = "") -> Against | None:
        """Paired differences of test scores; of the other arm ``share`` is taken away."""
        beside = {seed: share * value for seed, value in self.test(family, other, score).items()}
        found = against(dict(self.test(family, arm, score)), dict(beside))
        return found if found.by_seed else None

    def above(self, family: str, arm: str, level: float, *, score: str = "") -> Against | None:
        """Test scores less a number."""
        values = self.test(family, arm, score)
        found = against(dict(values), dict.fromkeys(values, level))
        return found if found.by_seed else None


# ------------------------------------------------------------------------------------------------------------- reading


def findings(study: CroprStudy) -> Findings:
    """Read everything that a study's trainings have left."""
    folder = study.place
    results, scores, prices = {}, {}, {}
    for family in study.families:
        comparison = family.comparison(study.seeds)
        begun = {
            arm: recipe
            for arm, recipe in comparison.arms.items()
            if (folder / f"{arm}-seed{study.seeds[0]}" / "plan.json").exists()
        }
        if begun:
            results[family.name] = collect(replace(comparison, arms=begun), folder, name=family.name)
        scores[family.name] = {
            arm: _scores(folder, f"{family.name}-{arm}", study.seeds)
            for arm in family.arms
            if f"{family.name}-{arm}" in begun
        } | _untrained(folder, family, study.seeds)
        tasks = {**family.arms, **family.untrained}
        prices[family.name] = {arm: price for arm, task in tasks.items() if (price := price_of(task)) is not None}
    done = [name for name in study.trainings() if (folder / name / "final" / "model.safetensors").exists()]
    return Findings(
        study=study,
        results=results,
        scores=scores,
        prices=prices,
        seconds=spent(folder),
        missing=[name for name in study.trainings() if name not in done],
    )


def _scores(folder: Path, training: str, seeds: Sequence[int]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for seed in seeds:
        for record in read(folder / f"{training}-seed{seed}" / "journal.jsonl"):
            if record["kind"] == "score" and record["role"] == "test":
                for name, value in record["values"].items():
                    found.setdefault(name, {})[seed] = value
    return found


def _untrained(folder: Path, family: Family, seeds: Sequence[int]) -> dict[str, dict[str, dict[int, float]]]:
    found: dict[str, dict[str, dict[int, float]]] = {}
    for seed in seeds:
        path = folder / f"{family.name}-{DENSE}-seed{seed}" / UNTRAINED
        if path.exists():
            for arm, scores in json.loads(path.read_text()).items():
                for name, value in scores.items():
                    found.setdefault(arm, {}).setdefault(name, {})[seed] = value
    return found


# -------------------------------------------------------------------------------------------------------------- claims


def claims(found: Findings) -> list[Found]:
    """Every claim that the study's families can speak of; of the quick size nothing is judged: it is too short."""
    every = [*_classification(found), *_dense_tasks(found)]
    if found.study.size != "quick":
        return every
    return [replace(one, verdict="cannot be tested here", why="") for one in every]


def _classification(found: Findings) -> list[Found]:
    family = "classification"
    if family not in found.results:
        return []

    def beats(name: str, words: str, better: str, worse: str, published: str, source: str = TABLE_1) -> list[Found]:
        one = _family(found, family)
        if not {better, worse} <= {*one.arms, *one.untrained}:
            return []
        claim = Claim(name=name, claim=words, source=source, published=published)
        return [judged(claim, {f"{better} - {worse}": found.minus(family, better, worse)})]

    return [
        *beats(
            "learned",
            "Learned scores keep better tokens than chance at the same rate",
            "cropr",
            "random",
            "85.3 against 83.8 (with LLF)",
        ),
        *beats(
            "inverted",
            "Chance keeps better tokens than the lowest learned scores",
            "random",
            "non_salient",
            "83.8 against 76.4 (with LLF)",
        ),
        *beats(
            "variance",
            "Learned scores beat the variance of a patch",
            "cropr",
            "variance",
            "85.3 against 84.3 (with LLF)",
        ),
        *beats(
            "class_attention",
            "Learned scores beat the class token's attention",
            "cropr",
            "class_attention",
            "85.3 against 84.7 (with LLF)",
        ),
        *beats(
            "merge",
            "Cropr is as good as token merging that is trained, or better",
            "cropr",
            "merge",
            "85.1 against 85.0 (without LLF)",
        ),
        *beats(
            "merge_untrained",
            "Training with pruning beats merging that was never trained",
            "cropr",
            "merge_untrained",
            "85.1 against 85.09 (its paper's, MAE)",
            "Bolya et al. 2023, README of its code [R]",
        ),
        *beats(
            "fusion",
            "Last-layer fusion (LLF) gains a little in classification",
            "cropr_fusion",
            "cropr",
            "85.3 against 85.1",
        ),
        *beats(
            "detach",
            "The auxiliary task should not reach the network",
            "cropr",
            "cropr_attached",
            "+0.3",
            "two write-ups of the paper [S]",
        ),
        *beats(
            "mlp",
            "The MLP behind the aggregator, free at inference, gains",
            "cropr",
            "cropr_no_mlp",
            "+0.3",
            "two write-ups of the paper [S]",
        ),
        *_near_dense(found, family),
    ]


def _near_dense(found: Findings, family: str) -> list[Found]:
    claim = Claim(
        name="near_dense",
        claim="With LLF the loss against the dense network is small (here: within 2 points)",
        source=TABLE_1,
        published="85.8 dense, 85.3",
    )
    return [_within(claim, found.minus(family, "cropr_fusion", DENSE), 0.02)]


def _within(claim: Claim, change: Against | None, margin: float) -> Found:
    """A claim that a difference is above ``-margin``: the whole interval must lie there."""
    ours, _, why = judge(change)
    if change is None or change.interval is None or change.mean is None:
        return untestable(claim, why, ours)
    if change.interval[0] >= -margin:
        return Found(claim=claim, ours=ours, verdict="reproduced")
    side = "the mean is" if change.mean < -margin else "the interval reaches"
    return Found(claim=claim, ours=ours, verdict="not reproduced", why=f"{side} below -{100 * margin:g} points")


def _dense_tasks(found: Findings) -> list[Found]:
    every: list[Found] = []
    if "segmentation" in found.results:
        minus = found.minus("segmentation", "cropr_fusion", DENSE, share=0.95)
        every += [
            judged(
                Claim(
                    name="segmentation",
                    claim="Segmentation with LLF keeps at least 95 % of the dense mIoU",
                    source="Bergner et al. 2025, abstract; ADE20K, EVA-02-L",
                    published="56.6 of 56.7 (99.8 %)",
                ),
                {"LLF - 0.95 dense": minus},
            ),
            judged(
                Claim(
                    name="fusion_dense",
                    claim="Where nothing is put back, segmentation falls far behind",
                    source="ablation, two write-ups of the paper [S]",
                    published="47.7 against 56.6",
                ),
                {"without LLF - LLF": found.minus("segmentation", "cropr", "cropr_fusion")},
                positive=False,
            ),
        ]
    if "instances" in found.results:
        every.append(
            judged(
                Claim(
                    name="instances",
                    claim="Instance segmentation keeps at least 80 % of the dense mask AP, and is above 0.2 (our aim)",
                    source="no published counterpart on nuclei; COCO: 54.0 mask AP, 55.4 of EVA-02's own [S]",
                ),
                {
                    "LLF - 0.8 dense": found.minus("instances", "cropr_fusion", DENSE, share=0.8),
                    "LLF - 0.2": found.above("instances", "cropr_fusion", 0.2),
                },
            )
        )
    if "by_heart" in found.results:
        every.append(_by_heart(found))
    return every


def _by_heart(found: Findings) -> Found:
    claim = Claim(
        name="by_heart",
        claim="A detector that loses tokens fits its training images (box AP50 above 0.5; our aim, one training)",
        source="no published counterpart; COCO at paper size: 63.0 box AP [S]",
    )
    values = found.test("by_heart", "cropr_fusion", "box_ap50")
    if not values:
        return untestable(claim, "the training that it needs has not finished", "not measured")
    value = next(iter(values.values()))
    return Found(claim=claim, ours=f"{100 * value:.1f}", verdict="reproduced" if value > 0.5 else "not reproduced")


def _family(found: Findings, name: str) -> Family:
    return next(family for family in found.study.families if family.name == name)


# -------------------------------------------------------------------------------------------------------------- tables


def document(found: Findings) -> str:
    """All of it as Markdown."""
    study = found.study
    seeds = _seeds(found)
    lines = [
        f"# {study.name}",
        "",
        f"{study.about}; {seeds}; {duration(found.seconds)} in all.",
        *([f"Not finished: {', '.join(found.missing)}."] if found.missing else []),
        "",
        *_claim_lines(found),
    ]
    for family in study.families:
        if family.name in found.results:
            lines += ["", f"## {family.name}: {family.question}", "", *_table(found, family)]
    return "\n".join(lines).rstrip() + "\n"


def _seeds(found: Findings) -> str:
    number = len(found.study.seeds)
    return f"{number} seed{'' if number == 1 else 's'}"


def _claim_lines(found: Findings) -> list[str]:
    every = claims(found)
    return [
        "## Claims",
        "",
        *([QUICK, ""] if found.study.size == "quick" else []),
        f"{counted(every)}. Differences are paired by seed, in points of the task's own test score. Reproduced: the "
        "95 % interval lies on the claimed side of zero, or of the margin that a claim names. [R] README of the "
        "authors' code, [S] a text that quotes the paper.",
        "",
        *claim_table(every),
    ]


def _table(found: Findings, family: Family) -> list[str]:
    """One row an arm: test score by seed, what it keeps of the dense arm's, and what it costs."""
    seeds = found.study.seeds
    metric = found.results[family.name].metric
    columns = [
        "arm",
        *(f"{metric}, seed {seed}" for seed in seeds),
        "median" if found.study.size == "paper" else "mean",
        *(["std"] if len(seeds) > 2 else []),
        "minus dense (95 %)",
        "of dense",
        "patches cut",
        "multiply-adds, linear",
        "with attention",
        *(["published"] if family.name == "classification" else []),
    ]
    rows = []
    for arm in (*family.arms, *family.untrained):
        values = found.test(family.name, arm)
        dense = found.test(family.name, DENSE)
        shown = [f"{100 * values[seed]:.2f}" if seed in values else "-" for seed in seeds]
        middle = _middle(found, list(values.values()))
        whole = _middle(found, list(dense.values()))
        deviation = spread(list(values.values()))
        row = [arm, *shown, "-" if middle is None else f"{100 * middle:.2f}"]
        if len(seeds) > 2:
            row.append("-" if deviation is None else f"{100 * deviation:.2f}")
        row.append("" if arm == DENSE else judge(found.minus(family.name, arm, DENSE))[0])
        row.append(f"{100 * middle / whole:.1f} %" if middle is not None and whole else "-")
        row += _price_cells(found.prices.get(family.name, {}).get(arm))
        rows.append([*row, *([PUBLISHED.get(arm, "-")] if family.name == "classification" else [])])
    return markdown_table(columns, rows)


def _middle(found: Findings, values: Sequence[float]) -> float | None:
    """Mean over seeds; the paper's numbers are medians, so those of its size are, too."""
    if not values:
        return None
    return float(np.median(values) if found.study.size == "paper" else np.mean(values))


def _price_cells(price: Price | None) -> list[str]:
    if price is None:
        return ["0 %", "100 %", "100 %"]
    return [
        f"{100 * price.gone:.0f} %",
        f"{100 * price.pruned.linear / price.dense.linear:.0f} %",
        f"{100 * price.pruned.total / price.dense.total:.0f} %",
    ]


def report(found: Findings) -> RenderableType:
    """Claims with their verdicts, and scores, for a screen."""
    table = table_like("claim", "ours", "verdict", fold=(0, 1, 2))
    for one in claims(found):
        table.add_row(one.claim.claim, one.ours, one.verdict + (f": {one.why}" if one.why else ""))
    scores = table_like("family", "arm", "test", "of dense", fold=(0, 1))
    for family in found.study.families:
        whole = _middle(found, list(found.test(family.name, DENSE).values()))
        for arm in (*family.arms, *family.untrained):
            middle = _middle(found, list(found.test(family.name, arm).values()))
            kept = f"{100 * middle / whole:.1f} %" if middle is not None and whole else "-"
            scores.add_row(family.name, arm, "-" if middle is None else f"{100 * middle:.2f}", kept)
    head = Text(f"{found.study.name}: {found.study.about}; {_seeds(found)}", style="bold")
    return Stacked(head, *([Text(QUICK)] if found.study.size == "quick" else []), scores, table)


# --------------------------------------------------------------------------------------------------------------- files


def write(found: Findings) -> list[Path]:
    """Write claims, tables, numbers and figures; the files, the most important first."""
    folder = found.study.place
    replace_text(folder / "claims.md", "\n".join([f"# {found.study.name}", "", *_claim_lines(found)]) + "\n")
    replace_text(folder / "tables.md", document(found))
    replace_text(folder / "result.json", json.dumps(_plain(found), indent=1) + "\n")
    return [folder / "claims.md", folder / "tables.md", folder / "result.json", *_draw(found)]


def _plain(found: Findings) -> dict[str, Any]:
    return {
        "name": found.study.name,
        "size": found.study.size,
        "seeds": list(found.study.seeds),
        "seconds": found.seconds,
        "missing": list(found.missing),
        "claims": [
            {"name": one.claim.name, "ours": one.ours, "verdict": one.verdict, "why": one.why} for one in claims(found)
        ],
        "families": {name: plain(result) for name, result in found.results.items()},
        "scores": {
            family: {
                arm: {score: {str(seed): value for seed, value in by.items()} for score, by in of.items()}
                for arm, of in arms.items()
            }
            for family, arms in found.scores.items()
        },
        "multiply_adds": {
            family: {
                arm: {
                    "linear": price.pruned.linear,
                    "total": price.pruned.total,
                    "dense_linear": price.dense.linear,
                    "dense_total": price.dense.total,
                    "cut": price.gone,
                }
                for arm, price in arms.items()
            }
            for family, arms in found.prices.items()
        },
    }


def _draw(found: Findings) -> list[Path]:
    folder = found.study.place / "figures"
    written = [draw_result(result, folder / f"{name}.png") for name, result in found.results.items()]
    panels = []
    for family in found.study.families:
        rows = []
        for arm in (*family.arms, *family.untrained):
            change = found.minus(family.name, arm, DENSE)
            if arm == DENSE or change is None or change.mean is None:
                continue
            ends = None if change.interval is None else (100 * change.interval[0], 100 * change.interval[1])
            by_seed = tuple(100 * value for value in change.by_seed.values())
            rows.append(figures.Interval(label=arm, mean=100 * change.mean, ends=ends, by_seed=by_seed))
        if rows:
            title = f"{family.name}: {found.results[family.name].metric}"
            panels.append(figures.Differences(title=title, unit="points above dense", rows=rows))
    if panels:
        path = folder / "against_dense.png"
        written.append(figures.intervals(f"{found.study.name}: test, minus the dense network's", panels, path))
    return written
