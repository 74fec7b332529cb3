"""The language study: does forgetting make languages that are easier to learn?

Five methods play the same game with the same seeds for the same number of game steps: no forgetting, receiver reset,
partial balanced forgetting, neural and seeded iterated learning. Every arm is one run in which all seeds are learned
side by side; arms go side by side, one worker each. What is finished is never trained or measured again, so the same
command carries a stopped study on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llf_ray import figures
from llf_ray.config import SettingError, from_plain, to_plain, unknown
from llf_ray.display import duration
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking, read, replace_text
from llf_ray.measures.language import ease_of_teaching
from llf_ray.measures.mixed_language import probe_mixed_language
from llf_ray.plan import Plan, spans
from llf_ray.recipes.base import Recipe
from llf_ray.recipes.iterated_learning import NeuralIteratedLearning
from llf_ray.recipes.long import Long
from llf_ray.recipes.partial_balanced import PartialBalancedForgetting
from llf_ray.recipes.receiver_reset import ReceiverReset
from llf_ray.recipes.seeded_learning import SeededIteratedLearning
from llf_ray.run import Checkpoints, Resources, RunConfig, prepare
from llf_ray.studies.claims import QUICK, VERDICTS, judge
from llf_ray.studies.compare import Against, against
from llf_ray.studies.finished import open_finished
from llf_ray.studies.kept import STUDY, keep, spending, spent
from llf_ray.studies.show import markdown_table
from llf_ray.tasks.language_game import LanguageGame, li_bowling
from llf_ray.train.folder import create, open_run
from llf_ray.train.state import Run
from llf_ray.train.worker import Outcome

__all__ = [
    "SIZES",
    "LanguageStudy",
    "begin",
    "carry_out",
    "conclusions",
    "markdown",
    "measure",
    "study_of",
    "write",
]

SIZES = ("quick", "small")
NONE, RESET, PARTIAL, NEURAL, SEEDED = (
    "none",
    "receiver reset",
    "partial balanced",
    "neural iterated",
    "seeded iterated",
)
SCORES = {
    "topographic_similarity": "topographic similarity",
    "topographic_similarity_nil": "the same, Ren et al.'s definition",
    "topographic_similarity_li_bowling": "the same, Li & Bowling's",
    "distinct_messages": "distinct messages",
    "accuracy": "accuracy",
    "held_out_accuracy": "accuracy, held-out objects",
    "ease": "ease of teaching",
}
GAIN = 0.15  # what neural iterated learning is to gain over none: half of what its code gained, see `conclusions`
RESULT, TABLE = "result.json", "table.md"
TEACHING, PROBE = "teaching.json", "probe.json"
UNLEARNED = f"{VERDICTS[-1]}, senders never learned one of the halves"


@dataclass(frozen=True, kw_only=True)
class LanguageStudy:
    """``generations`` of ``steps`` game steps for every arm; ``imitate`` steps of imitation come on top where a method
    has them.

    ``base_generations`` of ``base_steps``: the same for Li & Bowling's game, in which receiver reset and partial
    balanced forgetting were published, without the iterated methods; 0: leave it out.
    """

    size: str
    game: LanguageGame
    generations: int
    steps: int
    guide: int
    imitate: int
    base: LanguageGame
    base_generations: int
    base_steps: int
    teaching_receivers: int
    teaching_steps: int
    probe_seeds: int
    probe_steps: int
    probe_every: int

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all arms."""
        return self.game.seeds

    def arms(self) -> dict[str, RunConfig]:
        """One run an arm, by name; those of the second game behind a colon."""
        g, epochs = self.generations, self.steps / (self.game.games / self.game.num_trained)
        listen = self.steps // 3
        recipes: dict[str, Recipe] = {
            NONE: Long(generations=g, epochs=epochs, warmup_epochs=0, shape="constant"),
            RESET: ReceiverReset(generations=g, epochs=epochs),
            PARTIAL: PartialBalancedForgetting(generations=g, epochs=epochs),
            NEURAL: NeuralIteratedLearning(
                generations=g, guide=self.guide, interact=self.steps - self.guide, imitate=self.imitate
            ),
            SEEDED: SeededIteratedLearning(
                generations=g,
                seed=self.steps,
                interact=self.steps - listen,
                listen=listen,
                imitate=self.imitate,
                batch=min(8, self.game.num_trained),
            ),
        }
        runs = {name: self._run(name, self.game, self.game.num_trained, recipe) for name, recipe in recipes.items()}
        if self.base_generations:
            batch = 100
            epochs = self.base_steps / (self.base.games / batch)
            g = self.base_generations
            others: dict[str, Recipe] = {
                NONE: Long(generations=g, epochs=epochs, warmup_epochs=0, shape="constant"),
                RESET: ReceiverReset(generations=max(1, g // 2), epochs=epochs * g / max(1, g // 2)),
                PARTIAL: PartialBalancedForgetting(generations=g, epochs=epochs),
            }
            runs |= {f"base: {name}": self._run(f"base {name}", self.base, batch, r) for name, r in others.items()}
        return runs

    def _run(self, name: str, game: LanguageGame, batch: int, recipe: Recipe) -> RunConfig:
        return RunConfig(
            name=name.replace(" ", "-"),
            task=game,
            recipe=recipe,
            optim=Optim(name="adam", lr=1e-3, weight_decay=0.0),
            engine=EngineSettings(batch=batch),
            resources=Resources(workers=1),
            checkpoints=Checkpoints(every_minutes=1, keep=1, keep_generations=False),
            tracking=Tracking(log_every=100, evaluate_every=1 if self.size == "quick" else 5, off=True),
        )


def study_of(size: str, num_seeds: int | None = None) -> LanguageStudy:
    """The study's settings at a size.

    Raises:
        SettingError: no such size, or fewer seeds than an interval needs.
    """
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    if num_seeds is not None and num_seeds < 3:
        raise SettingError(f"--seeds {num_seeds}: must be 3 or more, for an interval")
    seeds = tuple(range(num_seeds or 3))
    if size == "quick":
        game = LanguageGame(
            attributes=(4, 3),
            symbols=4,
            candidates=5,
            held_out=2,
            hidden=20,
            games=500,
            seeds=seeds,
            scored_rounds=2,
            transcripts=20,
        )
        return LanguageStudy(
            size=size,
            game=game,
            generations=2,
            steps=90,
            guide=15,
            imitate=30,
            base=li_bowling(attributes=(4, 2), candidates=3, hidden=20, games=1000, seeds=seeds),
            base_generations=4,
            base_steps=10,
            teaching_receivers=3,
            teaching_steps=40,
            probe_seeds=3,
            probe_steps=60,
            probe_every=20,
        )
    return LanguageStudy(
        size=size,
        game=LanguageGame(seeds=seeds),
        generations=10,
        steps=3000,
        guide=200,
        imitate=1200,
        base=li_bowling(seeds=seeds),
        base_generations=4,
        base_steps=3000,
        teaching_receivers=30,
        teaching_steps=1000,
        probe_seeds=10,
        probe_steps=700,
        probe_every=10,
    )


# ----------------------------------------------------------------------------------------------------------- carry out


def begin(study: LanguageStudy, folder: Path) -> list[Run]:
    """Make the folder the study's; its trainings, the longest first: begun anew, or opened where an earlier call has
    made them.

    Raises:
        SettingError: the folder holds another study, or settings that cannot work.
    """
    _claim(study, folder)
    arms, runs = study.arms(), []
    for name in sorted(arms, key=lambda name: (name.startswith("base"), name not in (NEURAL, SEEDED))):
        place = _run_folder(folder, name)
        there = (place / "run.json").exists()
        runs.append(open_run(place) if there else create(prepare(arms[name]), place))
    return runs


def carry_out(
    study: LanguageStudy,
    folder: Path,
    runs: list[Run],
    *,
    display: bool = True,
    verbose: bool = False,
    on_signal: Callable[[int], None] | None = None,
    say: Callable[[str], object] = lambda words: None,
) -> list[Outcome]:
    """Train what is unfinished, then measure languages and probe, side by side; how each training ended."""
    from llf_ray.cluster.apart import execute_apart, map_apart

    log_file = folder / "driver.log"
    with spending(folder), ExitStack() as keep:  # one Ray for both
        outcomes = execute_apart(
            runs, title=folder.name, display=display, verbose=verbose, log_file=log_file, on_signal=on_signal, keep=keep
        )
        if any(outcome.state != "finished" for outcome in outcomes):
            return outcomes
        left = [(study, str(folder), name) for name in (PROBE, *study.arms()) if not _measured(folder, name)]
        map_apart(
            measure,
            left,
            runs[0].config.resources,
            log_file=log_file,
            on_signal=on_signal,
            on_end=lambda number: say(f"measured {number} of {len(left)} parts"),
            keep=keep,
        )
        return outcomes


def write(study: LanguageStudy, folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """Write the table, the numbers and the figures of a study that was carried out; the numbers as plain data, and
    what was written.
    """
    result = collect(study, folder)
    replace_text(folder / RESULT, json.dumps(result, indent=1) + "\n")
    replace_text(folder / TABLE, markdown(result))
    return result, [folder / TABLE, folder / RESULT, *draw(result, folder)]


def _claim(study: LanguageStudy, folder: Path) -> None:
    """Make the folder the study's, or see that it is."""
    plain = to_plain(study)
    if (folder / STUDY).exists():
        if json.loads((folder / STUDY).read_text())["settings"] != json.loads(json.dumps(plain)):
            raise SettingError(
                f"folder {str(folder)!r} holds a language study with other settings; choose another --name or --folder"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise SettingError(
            f"folder {str(folder)!r} exists and holds no language study; choose another --name or --folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    keep(folder, settings=plain)


def _run_folder(folder: Path, arm: str) -> Path:
    return folder / "runs" / arm.replace(": ", "-").replace(" ", "-")


def _measured(folder: Path, name: str) -> bool:
    return (folder / PROBE if name == PROBE else _run_folder(folder, name) / TEACHING).exists()


def measure(asked: tuple[LanguageStudy, str, str]) -> None:
    """Measure how easily the languages of a finished arm (study, folder, name) are taught, or take the probe, and write
    what was found.
    """
    study, folder, name = asked[0], Path(asked[1]), asked[2]
    if name == PROBE:
        _probe(study, folder)
    else:
        _teach(study, study.arms()[name], _run_folder(folder, name))


def _teach(study: LanguageStudy, config: RunConfig, place: Path) -> None:
    """Ease of teaching of the languages of a finished run: learning curves by seed."""
    game = config.task
    assert isinstance(game, LanguageGame)
    with torch.no_grad():
        messages = game.language(open_finished(place).network())
    curves = ease_of_teaching(
        messages,
        game.features(),
        num_symbols=game.symbols,
        hidden=game.hidden,
        num_candidates=game.candidates,
        rectify=game.rectify,
        num_receivers=study.teaching_receivers,
        steps=study.teaching_steps,
    )
    plain = {"messages": messages.tolist(), "curves": curves.tolist()}
    replace_text(place / TEACHING, json.dumps(plain))


def _probe(study: LanguageStudy, folder: Path) -> None:
    base = study.base
    found = probe_mixed_language(
        base.meanings(),
        base.features(),
        seeds=tuple(range(study.probe_seeds)),
        num_symbols=base.symbols,
        hidden=base.hidden,
        steps=study.probe_steps,
        every=study.probe_every,
    )
    plain = {
        "steps": list(found.steps),
        "before": found.before.tolist(),
        "retention": {name: _without_nan(found.retention(name).numpy()) for name in found.after},
    }
    replace_text(folder / PROBE, json.dumps(plain))


def _without_nan(values: np.ndarray) -> list[Any]:
    """Nested lists with None for NaN, which is no JSON."""
    plain: list[Any] = np.where(np.isnan(values), np.array(None), values).tolist()
    return plain


# ------------------------------------------------------------------------------------------------------------- results


def collect(study: LanguageStudy, folder: Path) -> dict[str, Any]:
    """Everything that was found, from the folder alone, as plain data."""
    arms = {name: _arm(study, _run_folder(folder, name)) for name in study.arms()}
    for name, arm in arms.items():
        first = arms["base: none" if name.startswith("base") else NONE]
        arm["minus_none"] = {key: _plain(arm["scores"][key], first["scores"][key]) for key in arm["scores"]}
    probe = json.loads((folder / PROBE).read_text())
    return {
        "size": study.size,
        "seeds": list(study.seeds),
        "arms": arms,
        "probe": {**probe, **_judgeable(probe), "selectivity": _selectivity(probe)},
        "seconds": spent(folder),
    }


def _plain(values: Mapping[str, float], others: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Mean and 95 % interval of values by seed, or of their paired differences."""
    numbers = {int(seed): value for seed, value in values.items()}
    zero = dict.fromkeys(numbers, 0.0)
    found: Against = against(numbers, zero if others is None else {int(s): v for s, v in others.items()})
    return {"by_seed": {str(s): v for s, v in found.by_seed.items()}, "mean": found.mean, "interval": found.interval}


def _arm(study: LanguageStudy, place: Path) -> dict[str, Any]:
    plan: Plan = from_plain(json.loads((place / "plan.json").read_text()))
    teaching = json.loads((place / TEACHING).read_text())
    records = list(read(place / "journal.jsonl"))
    test = next(r["values"] for r in reversed(records) if r["kind"] == "score" and r["role"] == "test")
    scores = {
        key: {str(seed): test[f"{key}/seed_{seed}"] for seed in study.seeds}
        for key in SCORES
        if f"{key}/seed_{study.seeds[0]}" in test
    }
    scores["ease"] = {
        str(seed): float(np.mean(curve)) for seed, curve in zip(study.seeds, teaching["curves"], strict=True)
    }
    played = dict(_game_steps(plan))
    curve = {
        played[r["step"]]: [r["values"][f"topographic_similarity/seed_{seed}"] for seed in study.seeds]
        for r in records
        if r["kind"] == "score" and r["role"] == "validation" and r["step"] in played
    }
    return {
        "game_steps": max(played.values()),
        "optimizer_steps": plan.total,
        "generations": plan.generations,
        "scores": scores,
        "means": {key: _plain(values) for key, values in scores.items()},
        "curve": {"steps": sorted(curve), "values": [curve[step] for step in sorted(curve)]},
        "teaching": teaching["curves"],
    }


def _game_steps(plan: Plan) -> Iterator[tuple[int, int]]:
    """Optimizer step and steps of the game up to it, for every step behind one of the game."""
    played = 0
    for phase, (start, stop) in zip(plan.phases, spans(plan), strict=True):
        if phase.objective.kind != "task":
            continue
        for step in range(start, stop):
            played += 1
            yield step + 1, played


def _known(probe: Mapping[str, Any]) -> np.ndarray:
    """Where both halves had something right before a perturbation, (S, T), in the second half of training."""
    late: np.ndarray = np.array(probe["before"])[:, len(probe["steps"]) // 2 :]
    known: np.ndarray = np.all(late > 0, axis=-1)
    return known


def _judgeable(probe: Mapping[str, Any]) -> dict[str, Any]:
    """The share of the second half of training of which selectivity says something, and the seeds without any."""
    known = _known(probe)
    return {"known": float(known.mean()), "left_out": np.flatnonzero(~known.any(1)).tolist()}


def _selectivity(probe: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the compositional half less of the holistic one: means by seed over the second half of training,
    as far as both halves had something right before.
    """
    found = {}
    known = _known(probe)
    seeds = np.flatnonzero(known.any(1))
    for name, values in probe["retention"].items():
        late = np.array(values, dtype=float)[:, len(probe["steps"]) // 2 :]  # (S, T, 2), NaN for None
        late[~known] = np.nan  # both halves over the same steps
        kept = np.nanmean(late[seeds], 1)  # (S, 2)
        found[name] = {
            "retention": kept.mean(0).tolist() if len(seeds) else [None, None],
            **_plain({str(seed): float(one - other) for seed, (one, other) in zip(seeds, kept, strict=True)}),
        }
    return found


# --------------------------------------------------------------------------------------------------------------- words


def conclusions(result: Mapping[str, Any]) -> list[str]:
    """What the study says of each claim, in a sentence; of the quick size nothing is judged: it is too short."""
    arms = result["arms"]
    lines = [QUICK] if result["size"] == "quick" else []
    judged = not lines
    lines += [
        _verdict(
            f"Neural iterated learning gains {GAIN} of topographic similarity or more over no forgetting "
            "(Ren et al. 2020; 0.81 against 0.52 with the official code, one seed, its own definition)",
            arms[NEURAL]["minus_none"]["topographic_similarity"],
            GAIN,
            judged,
        ),
        _verdict(
            "The same with Ren et al.'s own definition",
            arms[NEURAL]["minus_none"]["topographic_similarity_nil"],
            GAIN,
            judged,
        ),
    ]
    for name, arm in arms.items():
        if name in (NONE, "base: none", NEURAL):
            continue
        lines.append(
            _verdict(
                f"{name.removeprefix('base: ').capitalize()} gains topographic similarity over no forgetting"
                + (" in Li & Bowling's game" if name.startswith("base") else ""),
                arm["minus_none"]["topographic_similarity"],
                0.0,
                judged,
            )
        )
    for name, found in result["probe"]["selectivity"].items():
        claim = f"Forgetting ({name}) removes the holistic half more (Zhou et al. 2022)"
        lines.append(_verdict(claim, found, 0.0, judged) if found["by_seed"] else f"{claim}: {UNLEARNED}.")
    return lines


def _verdict(claim: str, found: Mapping[str, Any], least: float, judged: bool) -> str:
    """In the words of `claims.judge`, whose rule it is; where it is not to be judged, as in the study of forgetting."""
    by_seed = {int(seed): value for seed, value in found["by_seed"].items()}
    ours, verdict, why = judge(against(by_seed, dict.fromkeys(by_seed, 0.0)), least=least, scale=1.0)
    if not judged:
        return f"{claim}: {VERDICTS[-1]}, {ours}."
    return f"{claim}: {verdict}, {ours}{f'; {why}' if why else ''}."


def _with_interval(found: Mapping[str, Any], *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    if found["mean"] is None:
        return "-"
    edges = f" [{', '.join(f'{edge:{form}}' for edge in found['interval'])}]" if found["interval"] else ""
    return f"{found['mean']:{form}}{edges}"


def markdown(result: Mapping[str, Any]) -> str:
    """Tables and conclusions."""
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [
        f"# Language study, size {result['size']}",
        "",
        f"Seeds {seeds}, learned side by side; {duration(result['seconds'])} in all. Means with 95 % intervals over "
        "seeds (Student's: symmetric about the mean, so an edge may lie where no score can, above an accuracy of 1 for "
        "example); differences are paired by seed. Scores are those of the test role at the last step.",
    ]
    probed = len(result["probe"]["before"])
    for title, chosen in (
        ("Ren et al.'s game", [name for name in result["arms"] if not name.startswith("base")]),
        ("Li & Bowling's game", [name for name in result["arms"] if name.startswith("base")]),
    ):
        if chosen:
            lines += ["", f"## {title}", "", *_table(result, chosen)]
    lines += [
        "",
        f"## Mixed-language probe, {probed} seed{'s' * (probed > 1)}",
        "",
        *_probe_table(result),
        "",
        _probe_words(result["probe"]),
        "",
        "## Conclusions",
        "",
    ]
    lines += [f"- {line}" for line in conclusions(result)]
    return "\n".join(lines) + "\n"


def _table(result: Mapping[str, Any], chosen: Sequence[str]) -> list[str]:
    arms = {name: result["arms"][name] for name in chosen}
    keys = [key for key in SCORES if key in arms[chosen[0]]["scores"]]
    columns = ["method", "game steps", "all steps", *(SCORES[key] for key in keys), "similarity minus none"]
    rows = []
    for name, arm in arms.items():
        cells = [name.removeprefix("base: "), f"{arm['game_steps']:,}", f"{arm['optimizer_steps']:,}"]
        cells += [_with_interval(arm["means"][key]) for key in keys]
        difference = arm["minus_none"]["topographic_similarity"]
        cells.append("" if name in (NONE, "base: none") else _with_interval(difference, sign=True))
        rows.append(cells)
    by_seed = []
    for name, arm in arms.items():
        values = " / ".join(f"{value:.3f}" for value in arm["scores"]["topographic_similarity"].values())
        by_seed.append(f"{name.removeprefix('base: ')} {values}")
    lines = [*markdown_table(columns, rows), "", f"Topographic similarity by seed: {'; '.join(by_seed)}."]
    return [*lines, *_single_messages(arms)]


def _single_messages(arms: Mapping[str, Any]) -> list[str]:
    """Whose similarity is 0 by definition, since nothing correlates with what does not vary."""
    alone = []
    for name, arm in arms.items():
        seeds = [seed for seed, number in arm["scores"]["distinct_messages"].items() if number == 1]
        alone += [f"{name.removeprefix('base: ')}, seed {', '.join(seeds)}"] if seeds else []
    return [f"One message for all objects, so 0 by definition: {'; '.join(alone)}."] if alone else []


def _probe_table(result: Mapping[str, Any]) -> list[str]:
    columns = ["perturbation (half of the weights)", "compositional half kept", "holistic half kept", "difference"]
    rows = []
    for name, found in result["probe"]["selectivity"].items():
        kept = ["-" if value is None else f"{value:.3f}" for value in found["retention"]]
        rows.append([name, *kept, _with_interval(found, sign=True)])
    return markdown_table(columns, rows)


def _probe_words(probe: Mapping[str, Any]) -> str:
    """What the table of the probe leaves out."""
    left_out = ", ".join(map(str, probe["left_out"]))
    return (
        "Means over the second half of training, by seed and then over seeds, of what both halves had something right "
        f"of before: {100 * probe['known']:.0f} % of the examinations."
    ) + (f" Left out, without any: seed {left_out}." if left_out else "")


# ------------------------------------------------------------------------------------------------------------- pictures


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Similarity over game steps, learning curves of new receivers, and the probe."""
    games = {"": "Ren et al.'s game", "base: ": "Li & Bowling's game"}
    similarity, teaching = [], []
    for prefix, title in games.items():
        arms = {
            name.removeprefix(prefix): arm
            for name, arm in result["arms"].items()
            if name.startswith("base: ") == bool(prefix)
        }
        if not arms:
            continue
        similarity.append(
            figures.Courses(
                title=title,
                time="steps of the game",
                measure="topographic similarity",
                courses=[
                    figures.Course(label=name, times=arm["curve"]["steps"], values=arm["curve"]["values"])
                    for name, arm in arms.items()
                ],
            )
        )
        teaching.append(
            figures.Courses(
                title=title,
                time="steps of a new receiver",
                measure="its accuracy",
                courses=[
                    figures.Course(
                        label=name,
                        times=np.arange(1, 1 + len(arm["teaching"][0])).tolist(),
                        values=_smooth(np.array(arm["teaching"])).T.tolist(),
                    )
                    for name, arm in arms.items()
                ],
            )
        )
    probe = result["probe"]
    kept = {
        name: [
            _kept(probe["steps"], np.array(values, dtype=float)[..., half], label)
            for half, label in enumerate(("compositional half", "holistic half"))
        ]
        for name, values in probe["retention"].items()
    }
    lines = [float(np.mean(at)) for both in kept.values() for course in both for at in course.values]
    halves = [
        figures.Courses(
            title=name,
            time="steps of imitation",
            measure="retention",
            top=1.05
            * max([1.0, *lines]),  # of the lines: a seed that had one message right may keep several times that
            courses=both,
        )
        for name, both in kept.items()
    ]
    place = folder / "figures"
    return [
        figures.courses(similarity, place / "similarity.png"),
        figures.courses(teaching, place / "teaching.png"),
        figures.courses(
            halves,
            place / "probe.png",
            columns=3,
            note="retention: accuracy of the clone / accuracy before; bands go on above the axis while few are right "
            "before",
        ),
    ]


def _kept(steps: Sequence[int], values: np.ndarray, label: str) -> figures.Course:
    """Retention of a half, (S, T): every step with the seeds that had something right before."""
    defined = {step: at[~np.isnan(at)].tolist() for step, at in zip(steps, values.T, strict=True)}
    there = {step: at for step, at in defined.items() if at}
    return figures.Course(label=label, times=list(there), values=list(there.values()))


def _smooth(curves: np.ndarray, width: int = 25) -> np.ndarray:
    """Means over the last steps: each step has games of its own."""
    width = min(width, curves.shape[1])
    sums = np.cumsum(np.pad(curves, ((0, 0), (width, 0)), mode="edge"), axis=1)
    return (sums[:, width:] - sums[:, :-width]) / width
