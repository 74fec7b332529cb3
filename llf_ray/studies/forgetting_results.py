"""What the study of forgetting found: tables, numbers, figures and a verdict on every published claim.

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
from llf_ray.forget.groups import Both, Select, layout, resolve
from llf_ray.forget.operations import WEIGHTS
from llf_ray.journal import read, replace_text
from llf_ray.studies.claims import QUICK, Claim, Found, claim_table, counted, judge, judged, untestable
from llf_ray.studies.compare import Against, Result, against, collect, draw_result, markdown, plain, spread
from llf_ray.studies.examine import examined
from llf_ray.studies.forgetting import KELS, MAIN, SELECTIVE, SLIM, TINY_IMAGENET, ForgettingStudy, sweep
from llf_ray.studies.kept import spent
from llf_ray.studies.show import markdown_table, table_like

__all__ = ["Findings", "claims", "document", "findings", "report", "write"]

NORMAL = ("restarts", "long")  # what "normal training" may mean
Seeds = Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that was found.

    ``results`` by part; ``shares`` of convolution and linear weights that an arm of the sweep redraws; ``sparse``
    validation by density and seed of each pruning arm; ``examined`` by arm, measure and seed; ``probed`` by
    perturbation, measure, step and seed; ``slim`` test scores (slim, whole) by generation and seed, ``no_slim`` why
    there are none.
    """

    study: ForgettingStudy
    results: Mapping[str, Result]
    shares: Mapping[str, float]
    sparse: Mapping[str, Mapping[float, Seeds]]
    examined: Mapping[str, Mapping[str, Seeds]]
    probed: Mapping[str, Mapping[str, Mapping[int, Seeds]]]
    slim: Mapping[int, Mapping[int, tuple[float, float]]]
    no_slim: Mapping[int, str]
    seconds: float = 0.0
    missing: Sequence[str] = field(default_factory=tuple)

    def test(self, arm: str) -> Seeds:
        """Test score by seed, of those trainings that have one."""
        for result in self.results.values():
            for one in result.arms:
                if one.arm == arm:
                    return {seed: t.test for seed, t in one.trainings.items() if t.test is not None}
        return {}

    def minus(self, arm: str, other: str) -> Against | None:
        """Paired differences of test scores."""
        return _difference(self.test(arm), self.test(other))

    def measured(self, arm: str, measure: str) -> Seeds:
        """A measure of an arm's networks by seed."""
        return self.examined.get(arm, {}).get(measure, {})

    def measured_minus(self, arm: str, other: str, measure: str) -> Against | None:
        """Paired differences of a measure."""
        return _difference(self.measured(arm, measure), self.measured(other, measure))

    def rise(self, arm: str) -> Against | None:
        """Validation at the end less validation at the end of the first generation, by seed."""
        for result in self.results.values():
            for one in result.arms:
                if one.arm == arm and one.generations:
                    curves = {seed: dict(t.curve) for seed, t in one.trainings.items() if t.validation is not None}
                    first = {seed: curve.get(one.generations[0]) for seed, curve in curves.items()}
                    return against({seed: curve[max(curve)] for seed, curve in curves.items()}, first)
        return None


def _difference(values: Seeds, other: Seeds) -> Against | None:
    found = against(dict(values), dict(other))
    return found if found.by_seed else None


# ------------------------------------------------------------------------------------------------------------- reading


def findings(folder: Path, study: ForgettingStudy) -> Findings:
    """Read everything that a study's trainings have left."""
    results = {}
    for part in study.parts:
        comparison = study.comparisons[part.of]
        # a study that was carried out before it gained an arm has no folder of it
        begun = [arm for arm in part.arms if (folder / f"{arm}-seed{study.seeds[0]}" / "plan.json").exists()]
        chosen = replace(comparison, arms={arm: comparison.arms[arm] for arm in begun})
        results[part.name] = collect(chosen, folder, name=part.name)
    main = study.comparisons[MAIN]
    slim, no_slim = _slim(folder, study.seeds)
    done = [name for name in study.trainings() if (folder / name / "final" / "model.safetensors").exists()]
    return Findings(
        study=study,
        results=results,
        shares=_shares(main.base.task, study.budget.threshold),
        sparse=_sparse(results["pruning"], study.budget.pruning_rate, study.budget.levels),
        examined=_examined(folder, study),
        probed=_probed(folder, study),
        slim=slim,
        no_slim=no_slim,
        seconds=spent(folder),
        missing=[name for name in study.trainings() if name not in done],
    )


def _shares(task: Any, threshold: str) -> dict[str, float]:
    import torch

    with torch.device("meta"):
        slots = layout(task.skeleton())
    sizes = {slot.name: slot.size for slot in slots}
    whole = sum(sizes[name] for name in resolve(WEIGHTS, slots))
    shares = {}
    for arm, since in sweep(threshold).items():
        names = () if since is None else resolve(Both((Select(since=since), WEIGHTS)), slots)
        shares[arm] = sum(sizes[name] for name in names) / whole
    return shares


def _sparse(result: Result, rate: float, levels: int) -> dict[str, dict[float, dict[int, float]]]:
    """Validation at the end of each level, by the share of weights that it trained."""
    found: dict[str, dict[float, dict[int, float]]] = {}
    for arm in result.arms:
        if not arm.arm.startswith("pruning"):
            continue
        ends = (*arm.generations, arm.total)
        curves = {seed: dict(training.curve) for seed, training in arm.trainings.items()}
        found[arm.arm] = {
            (1 - rate) ** level: {seed: curve[end] for seed, curve in curves.items() if end in curve}
            for level, end in enumerate(ends[:levels])
        }
    return found


def _examined(folder: Path, study: ForgettingStudy) -> dict[str, dict[str, dict[int, float]]]:
    found: dict[str, dict[str, dict[int, float]]] = {}
    for arm in study.examined:
        for seed in study.seeds:
            for measure, value in examined(folder / f"{arm}-seed{seed}").items():
                found.setdefault(arm, {}).setdefault(measure, {})[seed] = value
    return found


def _probed(folder: Path, study: ForgettingStudy) -> dict[str, dict[str, dict[int, dict[int, float]]]]:
    found: dict[str, dict[str, dict[int, dict[int, float]]]] = {}
    for seed in study.seeds:
        for record in read(folder / f"{SELECTIVE}-seed{seed}" / "journal.jsonl"):
            if record["kind"] == "probe":
                of = found.setdefault(record["perturbation"], {})
                for name, value in record["values"].items():
                    of.setdefault(name, {}).setdefault(record["step"], {})[seed] = value
    return found


def _slim(folder: Path, seeds: Sequence[int]) -> tuple[dict[int, dict[int, tuple[float, float]]], dict[int, str]]:
    """Test scores of knowledge evolution's slim networks and of the whole ones by generation and seed, and why others
    are missing, by seed.
    """
    found: dict[int, dict[int, tuple[float, float]]] = {}
    missing = {}
    for seed in seeds:
        try:
            kept = json.loads((folder / f"{KELS}-seed{seed}" / SLIM).read_text())
        except FileNotFoundError:
            missing[seed] = "not taken out yet"
            continue
        if "why" in kept:
            missing[seed] = kept["why"]
        for generation, (slim, whole) in kept.get("generations", {}).items():
            found.setdefault(int(generation), {})[seed] = (slim, whole)
    return found, missing


# -------------------------------------------------------------------------------------------------------------- claims


def claims(found: Findings) -> list[Found]:
    """Every published claim with what we found; of the quick size nothing is judged: it is too short."""
    seal = "tiny_" if TINY_IMAGENET in found.study.comparisons else ""
    every = [
        *_later_layer_claims(found),
        *_seal_claims(found, seal),
        *_family_claims(found),
        *_network_claims(found, seal),
        *_other_claims(found),
    ]
    if found.study.size != "quick":
        return every
    return [replace(one, verdict="cannot be tested here", why="") for one in every]


def _later_layer_claims(found: Findings) -> list[Found]:
    """Of Zhou et al. 2022, and of knowledge evolution beside it."""
    minus = found.minus
    return [
        judged(
            Claim(
                name="later_layer",
                claim="Later-layer forgetting (LLF) beats one long run of the same budget on small data",
                source="Zhou et al. 2022, Table 1, quoted in issue 4 of its code [I]",
                published="CUB, ResNet18: LLF 70.76 after 3 further generations, 72.47 after 10; the long run's cell "
                "is not verified",
            ),
            {"LLF - long": minus("later_layer", "long")},
        ),
        judged(
            Claim(
                name="restarts",
                claim="It is the forgetting, not the new optimizer: LLF beats warm restarts",
                source="Zhou et al. 2022 (code: the run without a reset) [C]",
            ),
            {"LLF - restarts": minus("later_layer", "restarts")},
        ),
        judged(
            Claim(
                name="evolution",
                claim="LLF beats knowledge evolution at equal epochs",
                source="Zhou et al. 2022, all five data sets [S]",
            ),
            {"LLF - WELS": minus("later_layer", "wels"), "LLF - KELS": minus("later_layer", "kels")},
        ),
        judged(
            Claim(
                name="later_layer_rise",
                claim="LLF rises over generations",
                source="an independent reproduction, issue 4 [I]",
                published="CUB by generation 0 to 10: 59.37 ... 71.37",
            ),
            {"last - first generation (validation)": found.rise("later_layer")},
        ),
        judged(
            Claim(
                name="evolution_rise",
                claim="Knowledge evolution rises over generations",
                source="Taha et al. 2021, figure of its code [R]",
                published="Flower102, ResNet18, KELS 0.5, by generation 1 to 10: 52.76 ... 61.86",
            ),
            {"last - first generation, KELS (validation)": found.rise("kels")},
        ),
        judged(
            Claim(
                name="reverse",
                claim="Resetting early layers instead is worse than LLF and worse than the long run",
                source="Zhou et al. 2022, ablation [S]",
            ),
            {
                "reverse - LLF": minus("later_layer_reverse", "later_layer"),
                "reverse - long": minus("later_layer_reverse", "long"),
            },
            positive=False,
        ),
        judged(
            Claim(
                name="fixed_held",
                claim="Later layers held at one draw, the same in every generation, are worse than LLF's fresh ones",
                source="Zhou et al. 2022, ablation [S]",
                published='"much worse"; its code also repeated the data order',
            ),
            {"held at one draw - LLF": minus("later_layer_fixed_held", "later_layer")},
            positive=False,
        ),
        judged(
            Claim(
                name="fixed",
                claim="The same redraw in every generation is worse than a fresh one, where both train on",
                source="a question of ours",
                published="none",
            ),
            {"same draw - LLF": minus("later_layer_fixed", "later_layer")},
            positive=False,
        ),
        _spread(found),
        _goldilocks(found),
    ]


def _seal_claims(found: Findings, seal: str) -> list[Found]:
    """Of Sarfi et al. 2023; ``seal`` is in front of the names of the arms that answer them."""
    minus = found.minus
    return [
        judged(
            Claim(
                name="seal",
                claim="SEAL beats LLF in its own domain",
                source="Sarfi et al. 2023, leaderboard [W]",
                published="Tiny-ImageNet, ResNet50, 10 generations: SEAL 59.22, LLF 56.92",
            ),
            {"SEAL - LLF": minus(f"{seal}seal", f"{seal}later_layer")},
        ),
        judged(
            Claim(
                name="seal_normal",
                claim="SEAL beats normal training",
                source="Sarfi et al. 2023, leaderboard [W]",
                published="Tiny-ImageNet, ResNet50: SEAL 59.22; the cells of normal training are not verified",
            ),
            {f"SEAL - {arm}": minus(f"{seal}seal", f"{seal}{arm}") for arm in NORMAL},
        ),
    ]


def _family_claims(found: Findings) -> list[Found]:
    """Of the other members of the family."""
    minus = found.minus
    return [
        *_pruning(found),
        judged(
            Claim(
                name="layer_wise",
                claim="LLF beats layer-wise re-initialisation",
                source="Zhou et al. 2022, Table 1 [S]",
            ),
            {"LLF - layer-wise": minus("later_layer", "layer_wise")},
        ),
        judged(
            Claim(
                name="born_again",
                claim="Students of their own kind beat their first teacher",
                source="Furlanello et al. 2018 [S]",
                published="ResNet20, CIFAR-10 error: 8.4 to 8.2, in Prakash et al. 2019, Table 3 [S]",
            ),
            {"last - first generation (validation)": found.rise("born_again")},
        ),
        judged(
            Claim(
                name="dense_sparse",
                claim="Dense-sparse-dense training lowers the error",
                source="Han et al. 2017, README of its code [R]",
                published="ImageNet top-1 error: ResNet18 30.43 to 29.17, ResNet50 24.01 to 22.89",
            ),
            {"DSD - long": minus("dense_sparse", "long")},
        ),
        judged(
            Claim(
                name="shrink_perturb",
                claim="Shrink and perturb does better than a warm start where data arrive in portions",
                source="Ash & Adams 2020 (code) [C]",
            ),
            {"shrink-perturb - warm start": minus("shrink_perturb", "warm_start")},
        ),
    ]


def _spread(found: Findings) -> Found:
    return judged(
        Claim(
            name="spread",
            claim="Resets spread over the run are worth more than as many bunched together",
            source="follows from Zhou et al.'s account (relearning under changing conditions); a question of ours",
            published="none",
        ),
        {
            "spread - bunched early": found.minus("later_layer", "bunched_early"),
            "spread - bunched late": found.minus("later_layer", "bunched_late"),
        },
    )


def _goldilocks(found: Findings) -> Found:
    """The share is chosen on validation, so that test judges it once."""
    claim = Claim(
        name="share",
        claim="Too little and too much forgetting both do worse than something in between",
        source="Zhou et al. 2022 [S]",
    )
    inside = [
        arm
        for arm in found.results["share"].arms
        if arm.validation_mean is not None and 0 < found.shares[arm.arm] < 1 and arm.arm != "forget_fc"
    ]
    if not inside:
        return untestable(claim, "the trainings that it needs have not finished")
    best = max(inside, key=lambda arm: arm.validation_mean or 0.0).arm
    share = f"{100 * found.shares[best]:.0f} %"
    return judged(
        claim,
        {
            f"redrawing {share} - head only": found.minus(best, "forget_fc"),
            f"redrawing {share} - all": found.minus(best, "forget_all"),
        },
    )


def _pruning(found: Findings) -> list[Found]:
    last = (1 - found.study.budget.pruning_rate) ** (found.study.budget.levels - 1)
    words = f"at {100 * last:.3g} % of the weights"
    better = judged(
        Claim(
            name="pruning",
            claim="What magnitude pruning leaves trains better than as many weights at random places, or drawn anew",
            source="Frankle & Carbin 2019; open_lth [C]",
        ),
        {
            f"rewound - random places, {words}": found.minus("pruning", "pruning_random"),
            f"rewound - drawn anew, {words}": found.minus("pruning", "pruning_reinit"),
        },
    )
    claim = Claim(
        name="pruning_keeps",
        claim="Iterative pruning keeps the dense network's accuracy down to about a tenth of the weights (2 points)",
        source="Frankle & Carbin 2019; open_lth [C]",
    )
    levels = found.sparse.get("pruning", {})
    near = min(levels, key=lambda density: abs(np.log(density / 0.1)), default=1.0)
    change = _difference(levels.get(near, {}), levels.get(1.0, {}))
    if near == 1.0 or change is None or change.mean is None:
        return [better, untestable(claim, "the trainings that it needs have not finished")]
    words = f"{100 * near:.3g} % - dense (validation) {judge(change)[0]}"
    return [better, _within(claim, change, words, margin=0.02)]


def _within(claim: Claim, change: Against, ours: str, *, margin: float, more: str = "") -> Found:
    """A claim that a paired difference is no lower than ``-margin``: the whole interval must lie above that."""
    if change.interval is None or change.mean is None:
        return untestable(claim, "an interval needs three seeds", ours)
    points = f"{100 * margin:g} {'point' if margin == 0.01 else 'points'}"
    if change.interval[0] >= -margin:
        return Found(claim=claim, ours=ours, verdict="reproduced")
    why = f"the mean is below -{points}" if change.mean < -margin else f"the interval reaches below -{points}"
    return Found(claim=claim, ours=ours, verdict="not reproduced", why=why + more)


def _targets(found: Findings, prefix: str) -> list[str]:
    return sorted({name for of in found.examined.values() for name in of if name.startswith(prefix)})


def _network_claims(found: Findings, seal: str) -> list[Found]:
    """Of trained networks: transfer, few-shot, depth, curvature.

    What Sarfi et al. call normal training is warm restarts; the long run stands beside it, as where accuracies are
    compared.
    """
    llf, annealed = f"{seal}later_layer", f"{seal}seal"
    difference = found.measured_minus

    def over(prefix: str, words: str, one: str, other: str) -> dict[str, Against | None]:
        return {f"{words}, {name.partition('/')[2]}": difference(one, other, name) for name in _targets(found, prefix)}

    def normal(words: str, one: str, measure: str, unit: str) -> dict[str, Against | None]:
        return {f"{words} - {arm}, {unit}": difference(one, f"{seal}{arm}", measure) for arm in NORMAL}

    return [
        judged(
            Claim(
                name="transfer",
                claim="LLF is worse than normal training for other data (linear probe)",
                source="Sarfi et al. 2023, abstract [S]; leaderboard [W]",
                published="from Tiny-ImageNet, LLF: Aircraft 4.65, CUB 5.33, Dogs 8.69; normal not found",
            ),
            {
                name: value
                for arm in NORMAL
                for name, value in over("transfer/", f"LLF - {arm}", llf, seal + arm).items()
            },
            positive=False,
        ),
        judged(
            Claim(
                name="seal_transfer",
                claim="SEAL is better than LLF for other data (linear probe)",
                source="Sarfi et al. 2023, leaderboard [W]",
                published="SEAL against LLF: Aircraft 9.81 / 4.65, CUB 8.49 / 5.33, Dogs 12.61 / 8.69",
            ),
            over("transfer/", "SEAL - LLF", annealed, llf),
        ),
        judged(
            Claim(
                name="few_shot",
                claim="SEAL is better than LLF for few-shot problems of another domain",
                source="Sarfi et al. 2023, leaderboard [W]",
                published="EuroSAT: SEAL 87.7, LLF 67.79 (shots not stated, perhaps not the same); LLF on ChestX "
                "22.03 / 22.54 / 23.78 at 5 / 20 / 50 shots",
            ),
            over("few_shot/", "SEAL - LLF", annealed, llf),
        ),
        judged(
            Claim(
                name="depth",
                claim="SEAL's prediction depth is the lowest",
                source="Sarfi et al. 2023, abstract [S]: an ordering, no number",
            ),
            {
                "SEAL - LLF, probes": difference(annealed, llf, "depth"),
                **normal("SEAL", annealed, "depth", "probes"),
            },
            positive=False,
            scale=1.0,
        ),
        judged(
            Claim(
                name="flat",
                claim="SEAL ends in a flatter minimum than LLF (largest eigenvalue of the Hessian)",
                source="a summary of Sarfi et al. 2023 [S]",
            ),
            {"SEAL - LLF, largest eigenvalue": difference(annealed, llf, "curvature/largest")},
            positive=False,
            scale=1.0,
        ),
        judged(
            Claim(
                name="flat_normal",
                claim="SEAL ends in a flatter minimum than normal training (largest eigenvalue of the Hessian)",
                source="a summary of Sarfi et al. 2023 [S]",
            ),
            normal("SEAL", annealed, "curvature/largest", "largest eigenvalue"),
            positive=False,
            scale=1.0,
        ),
        _no_negative(found, annealed),
        _slim_claim(found),
    ]


def _no_negative(found: Findings, arm: str) -> Found:
    claim = Claim(
        name="negative",
        claim="Where SEAL ends the Hessian has no negative eigenvalue",
        source="a summary of Sarfi et al. 2023 [S]",
    )
    smallest = found.measured(arm, "curvature/smallest")
    largest = found.measured(arm, "curvature/largest")
    if not smallest:
        return untestable(claim, "the networks that it needs were not examined")
    ours = ", ".join(f"{value:.3g}" for value in smallest.values()) + " by seed (largest: "
    ours += ", ".join(f"{value:.3g}" for value in largest.values()) + ")"
    share = {seed: value / largest[seed] for seed, value in smallest.items() if largest.get(seed, 0.0) > 0}
    change = against(share, dict.fromkeys(share, 0.0))
    if change.interval is None:
        return untestable(claim, "an interval needs three seeds", ours)
    low, high = change.interval
    ours += f"; smallest over largest: {100 * low:.2f} to {100 * high:.2f} %"
    # what the search cannot tell from zero: it stops at a residual of this share of the spectrum's width
    margin = found.study.examination.protocol.tolerance
    edge = f"below -{100 * margin:g} % of the largest"
    if min(low, *share.values()) >= -margin:
        return Found(claim=claim, ours=f"{ours}, none {edge}", verdict="reproduced")
    who = "the interval" if low < -margin else "a seed"
    return Found(claim=claim, ours=ours, verdict="not reproduced", why=f"{who} reaches {edge}")


def _slim_claim(found: Findings) -> Found:
    """Both ends of it: without the gap after the first generation, its closing would say nothing."""
    claim = Claim(
        name="slim",
        claim="The slim network of KELS is far behind the whole one (5 points) after the first generation and does as "
        "well (within a point) after some more",
        source="Taha et al. 2021, figure of its code [R]",
        published="Flower102, KELS 0.5, slim / dense: 1.53 / 52.76 after generation 1, 57.78 / 57.85 after 5",
    )
    if not found.slim:
        whys = dict.fromkeys(found.no_slim.values())
        return untestable(claim, "no slim network: " + "; ".join(whys))
    generations, keep = found.study.budget.generations, found.study.budget.keep
    first, last = (_slim_minus(found, generation) for generation in (0, generations - 1))
    if first is None or last is None:
        return untestable(claim, "the trainings that it needs have not finished")
    begun, verdict, why = judge(first, positive=False, least=0.05)
    ours = f"slim - whole {begun} after generation 1; slim - whole {judge(last)[0]} after {generations}, at {keep:g}"
    more = f"; {generations} generations, where the paper's figure needs four or five of 200 epochs"
    ended = _within(claim, last, ours, margin=0.01, more=more if generations < 6 else "")
    if verdict == "reproduced":
        return ended
    both = "; ".join(words for words in (f"after generation 1: {why}", ended.why) if words)
    return replace(ended, verdict=verdict, why=both)


def _slim_minus(found: Findings, generation: int) -> Against | None:
    """Paired differences of the slim network's test score and the whole one's, as a generation ended."""
    pairs = found.slim.get(generation, {})
    slim, whole = ({seed: pair[place] for seed, pair in pairs.items()} for place in (0, 1))
    return _difference(slim, whole)


def _other_claims(found: Findings) -> list[Found]:
    return [
        *_selective(found),
        untestable(
            Claim(
                name="large",
                claim="On large data LLF does not help",
                source="Zhou et al. 2022 [S]",
                published="WRN-28-10, long / LLF: CIFAR-10 96.32 / 95.91, CIFAR-100 81.29 / 80.95",
            ),
            "needs all of CIFAR and a wide network",
        ),
        untestable(
            Claim(
                name="rifle",
                claim="Redrawing the head while fine-tuning gains half a point to two",
                source="Li et al. 2020, abstract [S]",
                published="+0.5 to 2 points",
            ),
            "needs ImageNet weights to fine-tune; what it does from scratch is the arm rifle",
        ),
    ]


def _selective(found: Findings) -> list[Found]:
    """At the last probe, where all labels are learned; masks of present magnitudes apart, since they know what was
    learned and the others do not.
    """
    source = "Zhou et al. 2022 [S]; its code [C]: figures, no number"
    by_magnitude = [name for name in found.probed if name.startswith("magnitude")]
    others = [name for name in found.probed if name not in by_magnitude]
    return [
        _selects(found, Claim(name=name + suffix, claim=f"{claim}: {kind}", source=source), words, measure, masks)
        for name, claim, words, measure in (
            (
                "selective",
                "A perturbation takes more from mislabelled than from clean examples",
                "clean - mislabelled",
                "selectivity/mislabelled",
            ),
            (
                "selective_hard",
                "It takes more from examples of small margin than from those of large margin",
                "easy - hard",
                "selectivity/hard",
            ),
        )
        for suffix, kind, masks in (
            ("", "masks of magnitude", by_magnitude),
            ("_other", "random masks, and those of initial magnitude", others),
        )
    ]


def _selects(found: Findings, claim: Claim, words: str, measure: str, masks: Sequence[str]) -> Found:
    last: dict[str, Against | None] = {}
    for name in masks:
        by_step = found.probed[name].get(measure, {})
        if by_step:
            values = by_step[max(by_step)]
            last[f"{words}, {name}"] = against(dict(values), dict.fromkeys(values, 0.0))
    return judged(claim, last, scale=1.0) if last else untestable(claim, "nothing was probed")


# -------------------------------------------------------------------------------------------------------------- tables


def _mean(values: Seeds, scale: float = 1.0, digits: int = 3) -> str:
    if not values:
        return "-"
    text = f"{scale * float(np.mean(list(values.values()))):.{digits}f}"
    deviation = spread(list(values.values()))
    return text if deviation is None else f"{text} ({scale * deviation:.{digits}f})"


def _sparse_table(found: Findings) -> list[str]:
    densities = next(iter(found.sparse.values()), {})
    columns = ["mask", *(f"{100 * density:.3g} %" for density in densities)]
    rows = [[arm, *(_mean(values, 100, 1) for values in of.values())] for arm, of in found.sparse.items()]
    return [
        "Validation accuracy (%) at the end of each level, by the share of weights alive:",
        "",
        *markdown_table(columns, rows),
    ]


def _share_table(found: Findings) -> list[str]:
    rows = [
        [arm, f"{100 * share:.1f}", _mean(found.test(arm), 100, 2)]
        for arm, share in sorted(found.shares.items(), key=lambda pair: pair[1])
    ]
    return [
        "Share of convolution and linear weights that is redrawn (%), and test accuracy (%):",
        "",
        *markdown_table(["arm", "redrawn", "test"], rows),
    ]


def _slim_table(found: Findings) -> list[str]:
    rows = []
    for generation, pairs in sorted(found.slim.items()):
        slim, whole = ({seed: pair[place] for seed, pair in pairs.items()} for place in (0, 1))
        change = _slim_minus(found, generation)
        rows.append(
            [str(generation + 1), _mean(slim, 100, 2), _mean(whole, 100, 2), "" if change is None else judge(change)[0]]
        )
    columns = ["generations", "slim", "whole", "slim - whole (95 % interval)"]
    return ["Test accuracy (%) of KELS as each generation ended:", "", *markdown_table(columns, rows)]


def _scale(measure: str) -> float:
    """What a measure is multiplied by for people: shares are told in per cent."""
    return 100.0 if measure.startswith(("transfer", "few_shot", "calibration")) else 1.0


def _words(measure: str) -> str:
    """``few_shot/flowers17/5`` as ``few-shot: flowers17, 5 a class``."""
    kind, *where = measure.split("/")
    if kind == "transfer":
        return f"transfer: {'/'.join(where)}"
    if kind == "few_shot":
        return f"few-shot: {'/'.join(where[:-1])}, {where[-1]} a class"
    if kind == "curvature":
        return {"trace": "curvature: trace"}.get(where[0], f"curvature: {where[0]} eigenvalue")
    return {"depth": "prediction depth", "calibration": "calibration error"}.get(kind, measure)


def _network_table(found: Findings) -> list[str]:
    """Every method against normal training, for every measure."""
    measures = sorted({name for of in found.examined.values() for name in of})
    lines = []
    for measure in measures:
        scale, digits = _scale(measure), 2
        rows = []
        for arm in found.study.examined:
            values, normal = found.measured(arm, measure), found.study.normal(arm)
            change = None if arm == normal else found.measured_minus(arm, normal, measure)
            by_seed = "" if change is None else ", ".join(f"{scale * v:+.{digits}f}" for v in change.by_seed.values())
            rows.append(
                [arm, _mean(values, scale, digits), by_seed, "" if change is None else judge(change, scale=scale)[0]]
            )
        lines += [
            f"### {_words(measure)}",
            "",
            *markdown_table(["arm", "mean (std)", "minus normal training, by seed", "mean (95 % interval)"], rows),
            "",
        ]
    return lines


def _probe_table(found: Findings) -> list[str]:
    rows = []
    for name, of in found.probed.items():
        if name == "before" or not of.get("clean/retention"):
            continue
        last = max(of["clean/retention"])
        shown = ["clean/retention", "mislabelled/retention", "selectivity/mislabelled"]
        shown += ["easy/retention", "hard/retention", "selectivity/hard"]
        rows.append([name, *(_mean(of.get(key, {}).get(last, {})) for key in shown)])
    columns = ["perturbation", "clean", "mislabelled", "difference", "easy", "hard", "difference"]
    return [
        "Retention (accuracy after / before) at the last probe, mean (std) over seeds:",
        "",
        *markdown_table(columns, rows),
    ]


def document(found: Findings) -> str:
    """All tables as one Markdown text."""
    study = found.study
    lines = [
        f"# {study.name}",
        "",
        f"{study.about}; {len(study.seeds)} seed{'s' * (len(study.seeds) > 1)}; {duration(found.seconds)} in all.",
        *([f"Not finished: {', '.join(found.missing)}."] if found.missing else []),
        "",
        *_claim_lines(claims(found), quick=study.size == "quick"),
    ]
    for part in study.parts:
        lines += ["", f"## {part.name}: {part.question}", ""]
        text = markdown(found.results[part.name]).splitlines()
        lines += [line for line in text[2:] if not line.startswith("time:")]
        if part.name == "methods" and found.no_slim:
            lines += ["", *(f"No slim network of kels, seed {seed}: {why}." for seed, why in found.no_slim.items())]
        if part.name == "methods" and found.slim:
            lines += ["", *_slim_table(found)]
        extra = {"share": _share_table, "pruning": _sparse_table}.get(part.name)
        lines += ["", *extra(found)] if extra else []
    if found.examined:
        lines += ["", "## What the networks are worth beside their own test", "", *_network_table(found)]
    if found.probed:
        lines += ["", "## Targeted forgetting", "", *_probe_table(found)]
    return "\n".join(lines).rstrip() + "\n"


def _claim_lines(every: Sequence[Found], *, quick: bool) -> list[str]:
    return [
        "## Claims",
        "",
        *([QUICK, ""] if quick else []),
        f"{counted(every)}. Each row names what is taken from what: where a claim says worse or lower, the difference "
        "that bears it out is negative. Differences are paired by seed, in points of test accuracy where nothing else "
        "is said. Reproduced: the 95 % interval lies on the claimed side of zero, or of the margin that a claim names; "
        "fewer than three seeds have none. [R] README, log or figure of the authors' code, [C] their "
        "code, [I] an issue thread there, [W] a leaderboard's entry for the paper, [S] a text that quotes the paper.",
        "",
        *claim_table(every),
    ]


def report(found: Findings) -> RenderableType:
    """Claims with their verdicts, for a screen."""
    table = table_like("claim", "ours", "verdict", fold=(0, 1, 2))
    for one in claims(found):
        table.add_row(one.claim.claim, one.ours, one.verdict + (f": {one.why}" if one.why else ""))
    number = len(found.study.seeds)
    head = Text(f"{found.study.name}: {found.study.about}; {number} seed{'s' * (number > 1)}", style="bold")
    return Stacked(head, *([Text(QUICK)] if found.study.size == "quick" else []), table)


# --------------------------------------------------------------------------------------------------------------- files


def write(folder: Path, found: Findings) -> list[Path]:
    """Write claims, tables, numbers and figures; the files, the most important first."""
    text = document(found)
    lines = _claim_lines(claims(found), quick=found.study.size == "quick")
    replace_text(folder / "claims.md", "\n".join([f"# {found.study.name}", "", *lines]) + "\n")
    replace_text(folder / "tables.md", text)
    replace_text(folder / "result.json", json.dumps(_plain(found), indent=1) + "\n")
    return [folder / "claims.md", folder / "tables.md", folder / "result.json", *_draw(folder / "figures", found)]


def _plain(found: Findings) -> dict[str, Any]:
    return {
        "name": found.study.name,
        "about": found.study.about,
        "seconds": found.seconds,
        "missing": list(found.missing),
        "claims": [
            {
                "name": one.claim.name,
                "claim": one.claim.claim,
                "source": one.claim.source,
                "published": one.claim.published,
                "ours": one.ours,
                "verdict": one.verdict,
                "why": one.why,
            }
            for one in claims(found)
        ],
        "parts": {name: plain(result) for name, result in found.results.items()},
        "shares": dict(found.shares),
        "pruning": {
            arm: {f"{density:.6g}": dict(values) for density, values in of.items()} for arm, of in found.sparse.items()
        },
        "networks": {arm: {name: dict(values) for name, values in of.items()} for arm, of in found.examined.items()},
        "probes": found.probed,
        "slim": {generation: dict(pairs) for generation, pairs in found.slim.items()},
        "no_slim": dict(found.no_slim),
    }


def _draw(folder: Path, found: Findings) -> list[Path]:
    drawn = [
        draw_result(result, folder / f"{name}.png")
        for name, result in found.results.items()
        if any(training.curve for arm in result.arms for training in arm.trainings.values())
    ]
    swept = [(share, arm) for arm, share in sorted(found.shares.items(), key=lambda pair: pair[1]) if found.test(arm)]
    if swept:
        tests = [tuple(found.test(arm).values()) for _, arm in swept]
        panel = figures.Courses(
            title="How much to forget in each generation",
            time="convolution and linear weights redrawn: where, and their share",
            measure="test accuracy",
            metric="accuracy",
            courses=[figures.Course(label="test", times=range(len(swept)), values=tests)],
            dots=True,
            names=[f"{_where(arm, found.study.budget.threshold)}\n{100 * share:.3g} %" for share, arm in swept],
        )
        drawn.append(figures.courses([panel], folder / "share_sweep.png"))
    if any(values for of in found.sparse.values() for values in of.values()):
        drawn.append(_draw_sparse(folder, found))
    drawn += _draw_networks(folder, found)
    if found.probed:
        drawn.append(_draw_probes(folder, found))
    return drawn


def _where(arm: str, threshold: str) -> str:
    since = sweep(threshold)[arm]
    return "nothing" if since is None else "all" if since == 1 else "fc only" if since == "fc" else f"from {since}"


def _draw_sparse(folder: Path, found: Findings) -> Path:
    names = {"pruning": "magnitude, rewound", "pruning_random": "random places", "pruning_reinit": "drawn anew"}
    courses = [_course(names.get(arm, arm), of) for arm, of in found.sparse.items()]
    dense = found.sparse.get("pruning", {}).get(1.0, {})
    level = ("dense, one level", float(np.mean(list(dense.values())))) if dense else None
    panel = figures.Courses(
        title="Pruning: what is left, level by level",
        time="share of prunable weights alive",
        measure="validation accuracy",
        metric="accuracy",
        courses=[course for course in courses if course.times],
        dots=True,
        shares=True,
        level=level,
    )
    return figures.courses([panel], folder / "sparsity.png")


def _course(label: str, found: Mapping[Any, Mapping[int, float]]) -> figures.Course:
    """Values by seed at each place of an axis; places without any are left out."""
    there = {place: tuple(values.values()) for place, values in found.items() if values}
    return figures.Course(label=label, times=list(there), values=list(there.values()))


def _draw_networks(folder: Path, found: Findings) -> list[Path]:
    """Differences with normal training: of accuracies on other data in one picture, of the rest in another."""
    others = [arm for arm in found.study.examined if arm != found.study.normal(arm)]
    drawn = []
    for name, prefixes in (
        ("transfer", ("transfer/", "few_shot/")),
        ("networks", ("depth", "curvature/largest", "calibration")),
    ):
        panels = []
        for measure in (m for prefix in prefixes for m in _targets(found, prefix)):
            rows, scale = [], _scale(measure)
            for arm in others:
                change = found.measured_minus(arm, found.study.normal(arm), measure)
                if change is not None and change.mean is not None:
                    ends = None if change.interval is None else (scale * change.interval[0], scale * change.interval[1])
                    by_seed = tuple(scale * value for value in change.by_seed.values())
                    rows.append(figures.Interval(label=arm, mean=scale * change.mean, ends=ends, by_seed=by_seed))
            if rows:
                unit = "points" if scale == 100 else "probes" if measure == "depth" else "difference"
                panels.append(figures.Differences(title=_words(measure), unit=unit, rows=rows))
        if panels:
            title = f"{'Other data' if name == 'transfer' else 'Trained networks'}: each method less normal training"
            drawn.append(figures.intervals(title, panels, folder / f"{name}.png"))
    return drawn


def _draw_probes(folder: Path, found: Findings) -> Path:
    panel = figures.Courses(
        title="Targeted forgetting: retention of clean less mislabelled examples",
        time="optimizer steps",
        measure="selectivity",
        courses=[
            _course(name, of["selectivity/mislabelled"])
            for name, of in found.probed.items()
            if of.get("selectivity/mislabelled")
        ],
        dots=True,
        level=("no selectivity", 0.0),
        limits=(-1.0, 1.0),
    )
    return figures.courses([panel], folder / "selectivity.png")
