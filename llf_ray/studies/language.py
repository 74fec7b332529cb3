"""The language study: does forgetting make languages that are easier to learn?

Five methods play the same game with the same seeds for the same number of game steps: no forgetting, receiver reset,
partial balanced forgetting, neural and seeded iterated learning. Every arm is one run in which all seeds are learned
side by side, with the local engine; arms go side by side in processes. What a folder holds already is not done again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from llf_ray import figures
from llf_ray.cluster.outcome import read_outcome, write_outcome
from llf_ray.config import SettingError, check_number, from_plain, to_plain, unknown
from llf_ray.display import duration
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.engine.local import LocalEngine
from llf_ray.engine.team import Team
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
from llf_ray.studies.compare import Against, against
from llf_ray.studies.price import threads
from llf_ray.tasks.language_game import LanguageGame, li_bowling
from llf_ray.train.adviser import Adviser
from llf_ray.train.folder import create, open_run
from llf_ray.train.loop import train

__all__ = ["SIZES", "TABLE", "LanguageStudy", "conclusions", "markdown", "run_study", "study_of"]

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
GAIN = 0.15  # what neural iterated learning is to gain over none, of the verified pilot of the official code
STUDY, RESULT, TABLE = "study.json", "result.json", "table.md"
TEACHING, PROBE = "teaching.json", "probe.json"


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
            tracking=Tracking(log_every=100, evaluate_every=5, off=True),
        )


def study_of(size: str, num_seeds: int | None = None) -> LanguageStudy:
    """The study's settings at a size.

    Raises:
        SettingError: no such size, or fewer seeds than an interval needs.
    """
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    check_number("seeds", num_seeds, low=3)
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


def run_study(
    size: str,
    folder: Path,
    *,
    num_seeds: int | None = None,
    processes: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Do what the folder lacks of the study, then write table, numbers and figures into it; the result as plain data.

    Raises:
        SettingError: the folder holds another study, or settings that cannot work.
        RuntimeError: an arm failed.
    """
    study = study_of(size, num_seeds)
    _claim(study, folder)
    begun, names = time.time(), list(study.arms())
    waiting = [name for name in [*names, PROBE] if not _done(folder, name)]
    if waiting:
        number = max(1, min(processes or os.cpu_count() or 1, len(waiting)))
        say(f"{len(waiting)} of {len(names) + 1} parts to do, {number} at a time")
        for name, words in _carried_out(study, folder, _longest_first(waiting), number):
            say(f"{name.removesuffix('.json')}: {words} ({duration(time.time() - begun)} so far)")
    seconds = _seconds(folder, time.time() - begun if waiting else 0.0)
    result = {**collect(study, folder), "seconds": seconds}
    replace_text(folder / RESULT, json.dumps(result, indent=1) + "\n")
    replace_text(folder / TABLE, markdown(result))
    draw(result, folder)
    return result


def _carried_out(study: LanguageStudy, folder: Path, names: Sequence[str], number: int) -> Iterator[tuple[str, str]]:
    """Name and outcome of each part as it ends; one at a time in this process, several in processes of their own."""
    if number == 1:
        with threads(1):
            yield from ((name, _carry_out(study, folder, name)) for name in names)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, spawn, _begin_process, (os.getpid(),)) as pool:
        parts = {pool.submit(_carry_out, study, folder, name): name for name in names}
        yield from ((parts[part], part.result()) for part in as_completed(parts))


def _longest_first(names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: (name == PROBE, name.startswith("base"), name not in (NEURAL, SEEDED)))


def _claim(study: LanguageStudy, folder: Path) -> None:
    """Make the folder the study's, or see that it is."""
    plain = to_plain(study)
    if (folder / STUDY).exists():
        if json.loads((folder / STUDY).read_text())["settings"] != json.loads(json.dumps(plain)):
            raise SettingError(
                f"folder {str(folder)!r} holds a language study with other settings; choose another --folder"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise SettingError(f"folder {str(folder)!r} exists and holds no language study; choose another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / STUDY, json.dumps({"settings": plain, "seconds": 0.0}, indent=1))


def _seconds(folder: Path, more: float) -> float:
    """Seconds of all sessions together."""
    about = json.loads((folder / STUDY).read_text())
    about["seconds"] += more
    replace_text(folder / STUDY, json.dumps(about, indent=1))
    return float(about["seconds"])


def _run_folder(folder: Path, arm: str) -> Path:
    return folder / "runs" / arm.replace(": ", "-").replace(" ", "-")


def _done(folder: Path, name: str) -> bool:
    return (folder / PROBE if name == PROBE else _run_folder(folder, name) / TEACHING).exists()


def _begin_process(parent: int) -> None:
    """A process of the study has one thread, and ends when the one that started it has gone."""
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _carry_out(study: LanguageStudy, folder: Path, name: str) -> str:
    """One arm and what is measured on its languages, or the probe; in words."""
    if name == PROBE:
        return _probe(study, folder)
    place, config = _run_folder(folder, name), study.arms()[name]
    outcome = read_outcome(place)
    if outcome is None or outcome.state != "finished":
        run = open_run(place) if (place / "run.json").exists() else create(prepare(config), place)
        engine = LocalEngine(config.task.build(config.seed), run.groups, config.optim, config.engine)
        advice = Adviser(run.folder, run.plan)
        try:
            outcome = train(run, engine, advice, Team.alone())
        finally:
            advice.journal.close()
            engine.close()
        write_outcome(place, outcome)
    if outcome.state != "finished":
        raise RuntimeError(f"{name}: {outcome.message}")
    _teach(study, config, place)
    return f"finished, {outcome.step:,} optimizer steps in {duration(sum(outcome.seconds.values()))}"


def _teach(study: LanguageStudy, config: RunConfig, place: Path) -> None:
    """Ease of teaching of the languages of a finished run: learning curves by seed."""
    game = config.task
    assert isinstance(game, LanguageGame)
    players = game.skeleton()
    players.load_state_dict(load_file(place / "final" / "model.safetensors"))
    with torch.no_grad():
        messages = game.language(players.eval())
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


def _probe(study: LanguageStudy, folder: Path) -> str:
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
        "retention": {name: found.retention(name).tolist() for name in found.after},
    }
    replace_text(folder / PROBE, json.dumps(plain))
    return "finished"


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
        "probe": {**probe, "selectivity": _selectivity(probe)},
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


def _selectivity(probe: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the compositional half less of the holistic one, a mean over the second half of training."""
    found = {}
    for name, values in probe["retention"].items():
        late = np.array(values)[:, len(probe["steps"]) // 2 :]  # (S, T, 2)
        differences = (late[..., 0] - late[..., 1]).mean(1)
        found[name] = {
            "retention": late.mean((0, 1)).tolist(),
            **_plain({str(seed): float(difference) for seed, difference in enumerate(differences)}),
        }
    return found


# --------------------------------------------------------------------------------------------------------------- words


def conclusions(result: Mapping[str, Any]) -> list[str]:
    """What the study says of each claim, in a sentence."""
    arms = result["arms"]
    lines = [
        _verdict(
            f"Neural iterated learning gains {GAIN} of topographic similarity or more over no forgetting "
            "(Ren et al. 2020; 0.81 against 0.52 with the official code, one seed, its own definition)",
            arms[NEURAL]["minus_none"]["topographic_similarity"],
            GAIN,
        ),
        _verdict(
            "The same with Ren et al.'s own definition", arms[NEURAL]["minus_none"]["topographic_similarity_nil"], GAIN
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
            )
        )
    for name, found in result["probe"]["selectivity"].items():
        lines.append(_verdict(f"Forgetting ({name}) removes the holistic half more (Zhou et al. 2022)", found, 0.0))
    return lines


def _verdict(claim: str, found: Mapping[str, Any], least: float) -> str:
    mean, (low, high) = found["mean"], found["interval"]
    if mean >= least and mean > 0 and low > 0:
        word = "reproduced"
    elif high < max(least, 0.0) or (high <= 0):
        word = "not reproduced"
    else:
        word = "undecided"
    return f"{claim}: {word}, {_with_interval(found, sign=True)}."


def _with_interval(found: Mapping[str, Any], *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    low, high = found["interval"]
    return f"{found['mean']:{form}} [{low:{form}}, {high:{form}}]"


def markdown(result: Mapping[str, Any]) -> str:
    """Tables and conclusions."""
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [
        f"# Language study, size {result['size']}",
        "",
        f"Seeds {seeds}, learned side by side; {duration(result['seconds'])} in all. Means with 95 % intervals over "
        "seeds (Student's); differences are paired by seed. Scores are those of the test role at the last step.",
    ]
    for title, chosen in (
        ("Ren et al.'s game", [name for name in result["arms"] if not name.startswith("base")]),
        ("Li & Bowling's game", [name for name in result["arms"] if name.startswith("base")]),
    ):
        if chosen:
            lines += ["", f"## {title}", "", *_table(result, chosen)]
    lines += [
        "",
        f"## Mixed-language probe, {len(result['probe']['before'])} seeds",
        "",
        *_probe_table(result),
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
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for name, arm in arms.items():
        cells = [name.removeprefix("base: "), f"{arm['game_steps']:,}", f"{arm['optimizer_steps']:,}"]
        cells += [_with_interval(arm["means"][key]) for key in keys]
        difference = arm["minus_none"]["topographic_similarity"]
        cells.append("" if name in (NONE, "base: none") else _with_interval(difference, sign=True))
        lines.append("| " + " | ".join(cells) + " |")
    by_seed = []
    for name, arm in arms.items():
        values = " / ".join(f"{value:.3f}" for value in arm["scores"]["topographic_similarity"].values())
        by_seed.append(f"{name.removeprefix('base: ')} {values}")
    return [*lines, "", f"Topographic similarity by seed: {'; '.join(by_seed)}."]


def _probe_table(result: Mapping[str, Any]) -> list[str]:
    lines = [
        "| perturbation (half of the weights) | compositional half kept | holistic half kept | difference |",
        "|---|---:|---:|---:|",
    ]
    for name, found in result["probe"]["selectivity"].items():
        kept = found["retention"]
        lines.append(f"| {name} | {kept[0]:.3f} | {kept[1]:.3f} | {_with_interval(found, sign=True)} |")
    return lines


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
                    figures.Course(label=name, times=arm["curve"]["steps"], values=np.array(arm["curve"]["values"]).T)
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
                        values=_smooth(np.array(arm["teaching"])),
                    )
                    for name, arm in arms.items()
                ],
            )
        )
    probe = result["probe"]
    halves = [
        figures.Courses(
            title=name,
            time="steps of imitation",
            measure="kept",
            top=1.1,
            courses=[
                figures.Course(label=label, times=probe["steps"], values=np.array(values)[..., half])
                for half, label in enumerate(("compositional half", "holistic half"))
            ],
        )
        for name, values in probe["retention"].items()
    ]
    place = folder / "figures"
    return [
        figures.courses(similarity, place / "similarity.png"),
        figures.courses(teaching, place / "teaching.png"),
        figures.courses(halves, place / "probe.png", columns=4),
    ]


def _smooth(curves: np.ndarray, width: int = 25) -> np.ndarray:
    """Means over the last steps: each step has games of its own."""
    width = min(width, curves.shape[1])
    sums = np.cumsum(np.pad(curves, ((0, 0), (width, 0)), mode="edge"), axis=1)
    return (sums[:, width:] - sums[:, :-width]) / width
