"""The study of Token Cropr: what tokens can go, on four vision tasks.

A family is one task: a dense network is trained, and from its weights every arm is trained on alike, one of them dense.
So an arm is held against a network that had as much training, and all differ in what takes tokens away, as in the
paper's fine-tuning. Trainings lie side by side in one folder, each as ``FAMILY-ARM-seedN``, and are carried out side by
side. What is finished is never trained again, so the same command carries a stopped study on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from llf_ray.config import SettingError, to_plain, unknown
from llf_ray.data.base import anchored
from llf_ray.journal import replace_text
from llf_ray.recipes.base import Recipe
from llf_ray.run import Comparison, RunConfig, prepare
from llf_ray.studies.finished import last_step, network_with, open_finished, score_on_test
from llf_ray.studies.kept import check_trainings, keep, spending
from llf_ray.studies.show import draw_run
from llf_ray.tasks.start import Fresh, FromRun
from llf_ray.train.folder import create, open_run
from llf_ray.train.state import Run
from llf_ray.train.worker import Outcome

__all__ = [
    "DENSE",
    "SIZES",
    "START",
    "UNTRAINED",
    "CroprStudy",
    "Family",
    "Size",
    "begin",
    "carry_out",
    "check_size",
    "look",
    "score_untrained",
    "unscored",
]

Size = Literal["quick", "small", "paper"]
SIZES: tuple[Size, ...] = get_args(Size)
START, DENSE = "start", "dense"
UNTRAINED = "untrained.json"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One task.

    ``base`` is what every arm is trained with, less its task; ``arms`` are the arms' tasks, the first dense. ``start``
    is the training of the dense network that they start from; None where they start as their tasks say. ``most_seeds``
    bounds the study's seeds where a family asks what one training can answer. ``untrained`` are tasks whose networks
    lose tokens without having been trained to: they are scored with the dense arm's weights.
    """

    name: str
    question: str
    base: RunConfig
    arms: Mapping[str, Any]
    start: RunConfig | None
    most_seeds: int | None = None
    untrained: Mapping[str, Any] = field(default_factory=dict)

    def comparison(self, seeds: tuple[int, ...]) -> Comparison:
        """The arms as a comparison whose trainings have their names."""
        arms: dict[str, Recipe] = {f"{self.name}-{arm}": self.base.recipe for arm in self.arms}
        task = next(iter(self.arms.values()))
        return Comparison(name=self.name, base=replace(self.base, task=task), arms=arms, seeds=seeds[: self.most_seeds])


@dataclass(frozen=True, kw_only=True)
class CroprStudy:
    """What is trained and asked; ``about`` says in words what is trained on what."""

    name: str
    size: Size
    families: tuple[Family, ...]
    seeds: tuple[int, ...]
    about: str
    folder: str = "runs"

    @property
    def place(self) -> Path:
        """The study's folder."""
        return Path(self.folder) / self.name

    def starts(self) -> dict[str, RunConfig]:
        """The dense networks that arms start from, by name of their training."""
        return {
            f"{family.name}-{START}-seed{seed}": self._named(family.start, f"{family.name}-{START}", seed)
            for seed in self.seeds
            for family in self.families
            if family.start is not None and seed in self.seeds[: family.most_seeds]
        }

    def arms(self) -> dict[str, RunConfig]:
        """Every arm's settings by name of its training; seed by seed, so that a stopped study has whole pairs."""
        found = {}
        for seed in self.seeds:
            for family in self.families:
                if seed not in self.seeds[: family.most_seeds]:
                    continue
                for arm, task in family.arms.items():
                    if family.start is not None:
                        start = FromRun(run=str(self.place / f"{family.name}-{START}-seed{seed}"), head="fresh")
                        task = replace(task, start=start)
                    config = replace(family.base, task=task)
                    found[f"{family.name}-{arm}-seed{seed}"] = self._named(config, f"{family.name}-{arm}", seed)
        return found

    def trainings(self) -> dict[str, RunConfig]:
        """All of them."""
        return {**self.starts(), **self.arms()}

    def _named(self, config: RunConfig, name: str, seed: int) -> RunConfig:
        return replace(config, name=f"{name}-seed{seed}", seed=seed, folder=str(self.place), task=anchored(config.task))


def begin(study: CroprStudy) -> list[Run]:
    """Make or open the trainings that start from nothing; the settings of all others are checked, too.

    Raises:
        SettingError: a setting that cannot work, or trainings there of other settings; before any folder is made.
    """
    starts = {name: prepare(config) for name, config in study.starts().items()}
    first: dict[str, None] = {}
    for name, config in study.arms().items():
        if name.rpartition("-seed")[0] not in first:  # seeds change nothing that could be wrong
            first[name.rpartition("-seed")[0]] = None
            task: Any = config.task
            prepare(replace(config, task=replace(task, start=Fresh())) if isinstance(task.start, FromRun) else config)
    look(study, there=False)
    runs = [_made(study, name, lambda name=name: starts[name]) for name in starts]  # type: ignore[misc]
    keep(study.place, name=study.name, size=study.size, study=to_plain(study))
    return runs


def look(study: CroprStudy, *, there: bool = True) -> Path:
    """The study's folder; nothing in it is touched.

    Raises:
        SettingError: it does not exist (unless ``there`` is False), or holds trainings of other settings.
    """
    return check_trainings(study.place, study.name, study.trainings(), there=there)


def _made(study: CroprStudy, name: str, prepared: Callable[[], Any]) -> Run:
    place = study.place / name
    if (place / "run.json").exists():
        return open_run(place)
    return create(prepared(), place, parent="..")


def carry_out(
    study: CroprStudy,
    starts: list[Run],
    *,
    display: bool = True,
    verbose: bool = False,
    on_signal: Callable[[int], None] | None = None,
    say: Callable[[str], object] = lambda words: None,
) -> tuple[list[Run], list[Outcome]]:
    """Train what is unfinished, dense networks first; all trainings that were begun, and how each ended."""
    from llf_ray.cluster.apart import execute_apart, map_apart

    with spending(study.place), ExitStack() as stack:  # one Ray for all

        def train(runs: list[Run], title: str) -> list[Outcome]:
            return execute_apart(
                runs,
                title=title,
                display=display,
                verbose=verbose,
                log_file=study.place / "driver.log",
                on_signal=on_signal,
                on_end=draw_run,
                keep=stack,
            )

        if starts:
            say(f"{len(starts)} dense networks are trained first")
        outcomes = train(starts, f"{study.name}: dense")
        ready = {run.folder.name for run, outcome in zip(starts, outcomes, strict=True) if outcome.state == "finished"}
        if any(outcome.state == "stopped" for outcome in outcomes):
            return starts, outcomes
        arms = [
            _made(study, name, lambda config=config: prepare(config))  # type: ignore[misc]
            for name, config in study.arms().items()
            if _has_start(study, name, ready)
        ]
        say(f"then {len(arms)} trainings from them")
        outcomes += train(arms, study.name)
        if not any(outcome.state == "stopped" for outcome in outcomes):
            left = unscored(study, {run.folder.name for run in arms})
            map_apart(
                score_untrained,
                left,
                study.families[0].base.resources,
                log_file=study.place / "driver.log",
                on_signal=on_signal,
                on_end=lambda number: say(f"scored {number} of {len(left)} dense networks that lose tokens untrained"),
                keep=stack,
            )
        return [*starts, *arms], outcomes


def unscored(study: CroprStudy, begun: set[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """Finished dense arms, by folder, with what they are still to be scored as."""
    left = []
    for family in study.families:
        for seed in study.seeds[: family.most_seeds] if family.untrained else ():
            name = f"{family.name}-{DENSE}-seed{seed}"
            folder = study.place / name
            if name in begun and last_step(folder) is not None and not (folder / UNTRAINED).exists():
                left.append((str(folder), family.untrained))
    return left


def score_untrained(asked: tuple[str, Mapping[str, Any]]) -> None:
    """Test scores of a finished run's weights in other networks, kept in its folder."""
    folder, tasks = asked
    finished = open_finished(Path(folder))
    found = {name: score_on_test(finished.run, network_with(task, finished.values)) for name, task in tasks.items()}
    replace_text(Path(folder) / UNTRAINED, json.dumps(found, indent=1))


def _has_start(study: CroprStudy, name: str, ready: set[str]) -> bool:
    """Whether the dense network that an arm starts from is there; one that needs none is always ready."""
    family, seed = name.split("-", 1)[0], name.rpartition("-seed")[2]
    start = next(one.start for one in study.families if one.name == family)
    return start is None or f"{family}-{START}-seed{seed}" in ready


def check_size(size: str, seeds: int | None) -> tuple[int, ...]:
    """The seeds of a size: one for quick, five for paper (whose numbers are medians of five), else three."""
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    if seeds is not None and seeds < 1:
        raise SettingError(f"--seeds {seeds}: must be 1 or more")
    return tuple(range({"quick": 1, "small": 3, "paper": 5}[size] if seeds is None else seeds))
