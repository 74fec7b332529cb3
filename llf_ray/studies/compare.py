"""Several schedules at one budget: train every arm with every seed in one worker group, then table, figure and record.

A comparison's folder holds one run folder for each training (``ARM-seedN``), ``figures/`` and ``tables/``; its
run.json names the trainings. Results are read from the runs' journals alone, so they can be made again at any time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Group as Stacked
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llf_ray import figures
from llf_ray.cluster.outcome import read_outcome
from llf_ray.config import SettingError, from_plain, override, to_plain, unknown
from llf_ray.data.base import anchored
from llf_ray.display import amount, duration
from llf_ray.journal import driver_stamp, read, read_run, replace_text, update_run
from llf_ray.plan import Plan, spans
from llf_ray.run import Comparison, Prepared, RunConfig, prepare
from llf_ray.studies.show import check_budgets, draw, draw_run, markdown_table, table_like
from llf_ray.train.adviser import read_cuts
from llf_ray.train.folder import create, keep_job, load_types, module_name, open_run, with_folder
from llf_ray.train.state import Run
from llf_ray.train.worker import Outcome

__all__ = [
    "Against",
    "ArmResult",
    "Result",
    "Training",
    "adjust",
    "against",
    "begin",
    "carry_out",
    "collect",
    "draw_result",
    "free_folder",
    "is_comparison",
    "markdown",
    "plain",
    "prepare_arms",
    "publish",
    "read_result",
    "reopen",
    "report",
    "spread",
    "unfinished",
    "write",
]

PLANS, FIGURE, TABLE, RESULT = "figures/plans.png", "figures/comparison.png", "tables/table.md", "tables/result.json"
CONFIDENCE = 0.95


# ----------------------------------------------------------------------------------------------------------- settings


def adjust(
    comparison: Comparison,
    assignments: Mapping[str, str],
    *,
    num_seeds: int | None = None,
    arms: Sequence[str] | None = None,
) -> Comparison:
    """A comparison with other settings.

    Keys are the base's; ``recipe.KEY`` sets a key in every arm, ``arms.NAME.KEY`` in one; ``name`` and ``seeds`` are
    the comparison's own.

    Raises:
        SettingError: unknown key or arm, wrong type, impossible value, a seed for the base.
    """
    if "seed" in assignments:
        raise SettingError(f"seed = {assignments['seed']!r}: a comparison has seeds; write seeds=0,1,2 or --seeds 3")
    own = {
        key: value for key, value in assignments.items() if key.partition(".")[0] in ("name", "seeds", "arms", "base")
    }
    shared = {key.removeprefix("recipe."): value for key, value in assignments.items() if key.startswith("recipe.")}
    base = {key: value for key, value in assignments.items() if key not in own and not key.startswith("recipe.")}
    comparison = override(comparison, own)
    comparison = replace(comparison, base=override(comparison.base, base))
    if num_seeds is not None:
        comparison = replace(comparison, seeds=tuple(range(num_seeds)))
    if arms is not None:
        comparison = replace(comparison, arms=_chosen(comparison, arms))
    if shared:
        _check_shared(shared, comparison.arms)
        changed = {name: override(recipe, shared, f"arms.{name}.") for name, recipe in comparison.arms.items()}
        comparison = replace(comparison, arms=changed)
    return replace(
        comparison,
        base=replace(comparison.base, task=anchored(comparison.base.task)),
        arms={name: anchored(recipe) for name, recipe in comparison.arms.items()},
    )


def _check_shared(keys: Iterable[str], arms: Mapping[str, Any]) -> None:
    """Raise unless every arm has the keys; the message speaks of `recipe.KEY`, as the user did."""
    for key in keys:
        first = key.partition(".")[0]
        known = {name: [field.name for field in fields(recipe)] for name, recipe in arms.items()}
        having = [name for name, keys_of_arm in known.items() if first in keys_of_arm]
        if not having:
            every = dict.fromkeys(name for keys_of_arm in known.values() for name in keys_of_arm)
            raise unknown("setting", f"recipe.{first}", [f"recipe.{name}" for name in every])
        if len(having) < len(arms):
            raise SettingError(
                f"recipe.{key}: of the arms only {' and '.join(having)} can be set so; write "
                f"arms.{having[0]}.{key}=..., or choose arms by --arms"
            )


def _chosen(comparison: Comparison, names: Sequence[str]) -> dict[str, Any]:
    for place, name in enumerate(names):
        if name not in comparison.arms:
            raise unknown("arm", name, comparison.arms)
        if name in names[:place]:
            raise SettingError(f"arm {name!r} is named twice")
    return {name: comparison.arms[name] for name in names}


def prepare_arms(comparison: Comparison, check: Callable[[RunConfig], Prepared] = prepare) -> dict[str, Prepared]:
    """Every arm's plan, with the first seed.

    Raises:
        SettingError: the first setting that cannot work, with the arm that it is in.
    """
    prepared = {}
    for (arm, seed), config in comparison.runs().items():
        if seed != comparison.seeds[0]:
            continue
        try:
            prepared[arm] = check(config)
        except SettingError as error:
            raise SettingError(f"arm {arm!r}: {error}") from None
    return prepared


# ------------------------------------------------------------------------------------------------------------- folders


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison."""
    return "trainings" in read_run(folder)


def begin(comparison: Comparison, *, job_file: Path | None = None, again: bool = False) -> tuple[Path, list[Run]]:
    """Check all that can be checked, then make the comparison's folder and one for each training.

    Raises:
        SettingError: a setting that cannot work, unequal budgets, or the name is in use.
    """
    comparison = replace(comparison, base=with_folder(comparison.base, Path(comparison.base.folder)))
    prepared = prepare_arms(comparison)
    problem = check_budgets(prepared)
    if problem:
        raise SettingError(problem)
    folder = free_folder(Path(comparison.base.folder) / comparison.name, again=again)
    names = {f"{arm}-seed{seed}": (arm, config) for (arm, seed), config in comparison.runs().items()}
    runs = [
        create(replace(prepared[arm], config=config), folder / name, job_file=job_file, parent="..")
        for name, (arm, config) in names.items()
    ]
    draw(prepared, folder / PLANS)
    if job_file is not None:
        keep_job(job_file, folder)
    about = {
        "name": folder.name,
        "created": time.time(),
        "state": "starting",
        "job": to_plain(comparison),
        "job_file": str(job_file) if job_file else None,
        "job_module": module_name(job_file) if job_file else None,
        "trainings": list(names),
    }
    replace_text(folder / "run.json", json.dumps(about, indent=1))
    return folder, runs


def free_folder(folder: Path, *, again: bool) -> Path:
    """The folder, or with ``again`` the first free one of it, NAME-2, NAME-3, ...

    Raises:
        SettingError: it exists and no copy was asked for.
    """
    if not folder.exists():
        return folder
    if not again:
        what = "a comparison" if is_comparison(folder) else "a run" if (folder / "run.json").exists() else "a folder"
        raise SettingError(
            f"name {folder.name!r} is in use: {folder} is {what}; carry it on with `llf-ray resume {folder.name}`, "
            "choose another name=..., or add --again for a numbered copy"
        )
    number = 2
    while folder.with_name(f"{folder.name}-{number}").exists():
        number += 1
    return folder.with_name(f"{folder.name}-{number}")


def reopen(folder: Path, assignments: Mapping[str, str] | None = None) -> tuple[Comparison, list[Run]]:
    """A comparison that was begun: its settings and its unfinished trainings, each to be carried on."""
    comparison = _settings(folder)
    return comparison, [open_run(folder / name, assignments) for name in unfinished(folder)]


def _settings(folder: Path) -> Comparison:
    about = read_run(folder)
    load_types(folder, about)
    comparison = from_plain(about["job"])
    assert isinstance(comparison, Comparison)
    return comparison


def unfinished(folder: Path) -> list[str]:
    """Names of the trainings that have not reached the end of their plan."""
    return [name for name in read_run(folder)["trainings"] if _ended(folder / name) != "finished"]


# ----------------------------------------------------------------------------------------------------------- carry out


def carry_out(
    folder: Path,
    comparison: Comparison,
    runs: Sequence[Run],
    *,
    display: bool = True,
    verbose: bool = False,
    on_signal: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Train what is unfinished, in one worker group; how each ended."""
    from llf_ray.cluster.launch import execute

    update_run(folder, state="running", driver=driver_stamp())
    begun, outcomes = time.time(), list[Outcome]()
    try:
        outcomes = list(
            execute(
                runs,
                title=comparison.name,
                display=display,
                verbose=verbose,
                log_file=folder / "driver.log",
                on_signal=on_signal,
                on_end=draw_run,
            )
        )
        return outcomes
    finally:
        seconds = read_run(folder).get("seconds", 0.0) + time.time() - begun
        update_run(folder, state=_state(folder), seconds=seconds)


def _ended(run_folder: Path) -> str | None:
    outcome = read_outcome(run_folder)
    return outcome.state if outcome is not None else None


def _state(folder: Path) -> Literal["finished", "failed", "stopped"]:
    states = {_ended(folder / name) for name in read_run(folder)["trainings"]}
    return "finished" if states == {"finished"} else "failed" if "failed" in states else "stopped"


def publish(folder: Path, uri: str | None = None) -> str | None:
    """Bring the MLflow parent of the trainings level with the folder; a line where the server does not take it."""
    settings = _settings(folder).base.tracking
    if settings.off:
        return None
    from llf_ray.tracking import TrackingError, sync

    roots = [root for name in read_run(folder)["trainings"] if (root := read_run(folder / name).get("tracking_root"))]
    if not roots:
        return None  # nothing has run yet
    try:
        sync(folder, settings, root=Path(roots[0]), uri=uri)
    except TrackingError as error:
        return str(error)
    return None


# ------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one training gave: validation scores by counted step, the scores at its end, and where its time went."""

    name: str
    state: str
    step: int
    curve: tuple[tuple[int, float], ...]
    validation: float | None
    test: float | None
    seconds: Mapping[str, float]

    @property
    def total_seconds(self) -> float:
        """From the first worker's start to its end."""
        return sum(self.seconds.values())


@dataclass(frozen=True, kw_only=True)
class Against:
    """Differences with the first arm, seed by seed; ``interval`` holds their mean with 95 % confidence, from three
    seeds on.
    """

    by_seed: Mapping[int, float]
    mean: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One schedule over all seeds. ``spread``: standard deviation; of two seeds the range, of one none.

    Steps are counted without those of phases aside, of which there are ``aside``.
    """

    arm: str
    trainings: Mapping[int, Training]
    mean: float | None
    spread: float | None
    validation_mean: float | None
    against: Against | None
    generations: tuple[int, ...]
    ascents: tuple[tuple[int, int], ...]
    total: int
    aside: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """A whole comparison, finished or not."""

    name: str
    metric: str
    seeds: tuple[int, ...]
    arms: tuple[ArmResult, ...]
    seconds: float  # of the driver, all its sessions together

    @property
    def complete(self) -> bool:
        """Whether every training was scored on test."""
        return all(training.test is not None for arm in self.arms for training in arm.trainings.values())


def read_result(folder: Path) -> Result:
    """All results of a comparison, from its trainings' journals."""
    about = read_run(folder)
    return collect(_settings(folder), folder, name=about["name"], seconds=about.get("seconds", 0.0))


def collect(comparison: Comparison, folder: Path, *, name: str, seconds: float = 0.0) -> Result:
    """The results of those trainings in a folder (``ARM-seedN``) that a comparison names."""
    metric = comparison.base.task.metric
    trainings = {
        arm: {seed: _training(folder / f"{arm}-seed{seed}", metric) for seed in comparison.seeds}
        for arm in comparison.arms
    }
    first = next(iter(trainings))
    return Result(
        name=name,
        metric=metric,
        seeds=comparison.seeds,
        arms=tuple(
            _arm_result(
                arm, found, None if arm == first else trainings[first], folder / f"{arm}-seed{comparison.seeds[0]}"
            )
            for arm, found in trainings.items()
        ),
        seconds=seconds,
    )


def _training(run_folder: Path, metric: str) -> Training:
    curve: dict[int, float] = {}
    test, state, step = None, "starting", 0
    steps = _Steps(run_folder)
    for record in read(run_folder / "journal.jsonl"):
        step = max(step, record.get("step", 0))
        if record["kind"] == "state":
            state = record["state"]
        elif record["kind"] == "score" and metric in record["values"]:
            if record["role"] == "validation":
                if record["phase"] not in steps.aside:
                    curve[steps.counted(record["step"])] = record["values"][metric]
            else:
                test = record["values"][metric]
    points = tuple(sorted(curve.items()))
    return Training(
        name=run_folder.name,
        state=state,
        step=step,
        curve=points,
        validation=points[-1][1] if points and test is not None else None,
        test=test,
        seconds=outcome.seconds if (outcome := read_outcome(run_folder)) else {},
    )


def _arm_result(
    arm: str, trainings: Mapping[int, Training], first: Mapping[int, Training] | None, one: Path
) -> ArmResult:
    test = [found.test for found in trainings.values() if found.test is not None]
    validation = [found.validation for found in trainings.values() if found.validation is not None]
    bounds, ascents, total, aside = _shape(one)
    return ArmResult(
        arm=arm,
        trainings=trainings,
        mean=float(np.mean(test)) if test else None,
        spread=spread(test),
        validation_mean=float(np.mean(validation)) if validation else None,
        against=None
        if first is None
        else against({s: t.test for s, t in trainings.items()}, {s: t.test for s, t in first.items()}),
        generations=bounds,
        ascents=ascents,
        total=total,
        aside=aside,
    )


class _Steps:
    """A training's steps as a comparison counts them: without those of phases aside."""

    def __init__(self, run_folder: Path) -> None:
        self.plan: Plan = from_plain(json.loads((run_folder / "plan.json").read_text()))
        self.spans = spans(self.plan, read_cuts(run_folder))
        self.aside = {index: self.spans[index] for index, phase in enumerate(self.plan.phases) if phase.aside}

    def counted(self, step: int) -> int:
        """How many of the first ``step`` steps count."""
        return step - sum(max(0, min(step, stop) - start) for start, stop in self.aside.values())


def _shape(run_folder: Path) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...], int, int]:
    """Starts of generations, stretches of ascent, and total steps of a training's plan; and its steps aside."""
    steps = _Steps(run_folder)
    starts: dict[int, int] = {}
    ascents = []
    for phase, (start, stop) in zip(steps.plan.phases, steps.spans, strict=True):
        starts.setdefault(phase.generation, steps.counted(start))
        if min(phase.directions.values()) < 0:
            ascents.append((steps.counted(start), steps.counted(stop)))
    last = steps.spans[-1][1]
    total = steps.counted(last)
    return tuple(list(starts.values())[1:]), tuple(ascents), total, last - total


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of three values or more (n - 1 below), the range of two, nothing of one."""
    if len(values) < 2:
        return None
    return max(values) - min(values) if len(values) == 2 else float(np.std(values, ddof=1))


def against(values: Mapping[int, float | None], first: Mapping[int, float | None]) -> Against:
    """Paired differences: with the same seed both arms start from the same weights."""
    pairs = {seed: (value, first.get(seed)) for seed, value in values.items()}
    by_seed = {seed: value - other for seed, (value, other) in pairs.items() if value is not None and other is not None}
    differences = list(by_seed.values())
    mean = float(np.mean(differences)) if differences else None
    return Against(by_seed=by_seed, mean=mean, interval=_interval(differences))


def _interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval for the mean of a few paired differences."""
    number = len(differences)
    if number < 3:
        return None
    from scipy.stats import t as student

    half = float(student.ppf(0.5 + CONFIDENCE / 2, number - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(number)
    return float(np.mean(differences)) - half, float(np.mean(differences)) + half


# --------------------------------------------------------------------------------------------------------------- words


def spread_name(num_seeds: int) -> str:
    """What the column of spreads holds."""
    return "std" if num_seeds > 2 else "range"


def _points(value: float | None, metric: str, *, sign: bool = False) -> str:
    """A score, or a difference of scores, as people say it: accuracies in per cent, their differences in points."""
    if value is None:
        return "-"
    if amount(metric, 0.5).endswith("%"):
        return f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"
    return f"{value:+.4g}" if sign else f"{value:.4g}"


def _columns(result: Result) -> list[str]:
    unit = " (%)" if amount(result.metric, 0.5).endswith("%") else ""
    columns = ["schedule", *(f"test, seed {seed}" for seed in result.seeds), f"test mean{unit}"]
    if len(result.seeds) > 1:
        columns.append(spread_name(len(result.seeds)))
    if len(result.arms) > 1:
        columns += [f"minus {result.arms[0].arm}, by seed", "mean"]
        if len(result.seeds) > 2:
            columns.append(f"{CONFIDENCE:.0%} interval")
    return [*columns, "validation mean"]


def _rows(result: Result) -> list[list[str]]:
    rows = []
    for arm in result.arms:
        row = [
            arm.arm,
            *(_points(arm.trainings[seed].test, result.metric) for seed in result.seeds),
            _points(arm.mean, result.metric),
        ]
        if len(result.seeds) > 1:
            row.append(_points(arm.spread, result.metric))
        if len(result.arms) > 1:
            row += _against_cells(arm.against, result)
        rows.append([*row, _points(arm.validation_mean, result.metric)])
    return rows


def _against_cells(found: Against | None, result: Result) -> list[str]:
    three = len(result.seeds) > 2
    if found is None:
        return ["", "", *([""] if three else [])]
    cells = [
        ", ".join(_points(found.by_seed.get(seed), result.metric, sign=True) for seed in result.seeds),
        _points(found.mean, result.metric, sign=True),
    ]
    if three:
        cells.append(
            "-"
            if found.interval is None
            else " to ".join(_points(edge, result.metric, sign=True) for edge in found.interval)
        )
    return cells


def report(result: Result) -> RenderableType:
    """The table and the share of time that went into optimizer steps."""
    columns = _columns(result)
    table: Table = table_like(*columns, right=range(1, len(columns)))
    for row in _rows(result):
        table.add_row(*row)
    return Stacked(
        Text(_headline(result), style="bold"), table, *(Text(line, style="dim") for line in _time_lines(result))
    )


def _headline(result: Result) -> str:
    steps = f"{result.arms[0].total:,} optimizer steps each"
    missing = [t.name for arm in result.arms for t in arm.trainings.values() if t.test is None]
    unfinished = f"; not finished: {', '.join(missing)}" if missing else ""
    return f"{result.name}: test {result.metric} at the last step, {steps}{unfinished}"


def _time_lines(result: Result) -> list[str]:
    trainings = [training for arm in result.arms for training in arm.trainings.values() if training.seconds]
    if not trainings:
        return []
    steps = sum(training.seconds.get("steps", 0.0) for training in trainings)
    total = sum(training.total_seconds for training in trainings)
    shares = [training.seconds.get("steps", 0.0) / training.total_seconds for training in trainings]
    each = f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of each training"
    whole = (
        f", {100 * steps / result.seconds:.0f} % of the {duration(result.seconds)} from the start of Ray to its end"
        if result.seconds
        else ""
    )
    return [f"time: {duration(steps)} of {duration(total)} in optimizer steps ({each}{whole})"]


def markdown(result: Result) -> str:
    """The table as Markdown, with what its columns mean."""
    columns = _columns(result)
    lines = [
        f"# {_headline(result)}",
        "",
        *markdown_table(columns, _rows(result)),
    ]
    lines += ["", *_legend(result), *_time_lines(result)]
    return "\n".join(lines) + "\n"


def _legend(result: Result) -> list[str]:
    lines = ["Test is scored once, at the last step; no choice was made by it."]
    if len(result.arms) > 1:
        lines.append(f"Differences are paired: with the same seed, {result.arms[0].arm} starts from the same weights.")
    for arm in result.arms:
        if arm.aside:
            lines.append(
                f"{arm.arm} takes {arm.aside:,} steps more, beside what is compared, which are counted nowhere here."
            )
    if len(result.seeds) == 2:
        lines.append("Of two seeds the range (larger minus smaller) is given, not a standard deviation.")
    return lines


def write(folder: Path, result: Result) -> list[Path]:
    """Write table, numbers and figure into the comparison's folder."""
    (folder / "tables").mkdir(exist_ok=True)
    replace_text(folder / TABLE, markdown(result))
    replace_text(folder / RESULT, json.dumps(plain(result), indent=1) + "\n")
    draw_result(result, folder / FIGURE)
    return [folder / TABLE, folder / RESULT, folder / FIGURE]


def draw_result(result: Result, path: Path) -> Path:
    """Validation by optimizer step and test at the end, of every arm."""
    arms = [
        figures.Arm(
            label=arm.arm,
            curves={seed: training.curve for seed, training in arm.trainings.items()},
            test={seed: training.test for seed, training in arm.trainings.items() if training.test is not None},
            generations=arm.generations,
            ascents=arm.ascents,
        )
        for arm in result.arms
    ]
    few, many = (pick(arm.total for arm in result.arms) for pick in (min, max))
    steps = f"{few:,} optimizer steps each" if few == many else f"{few:,} to {many:,} optimizer steps"
    seeds = f"{len(result.seeds)} seed{'' if len(result.seeds) == 1 else 's'}"
    title = f"{result.name}: {seeds}, {steps}"
    return figures.comparison(title, arms, path, metric=result.metric)


def plain(result: Result) -> dict[str, Any]:
    """A result as JSON-ready values."""
    return {
        "name": result.name,
        "metric": result.metric,
        "seeds": list(result.seeds),
        "seconds": result.seconds,
        "complete": result.complete,
        "spread": spread_name(len(result.seeds)),
        "arms": {
            arm.arm: {
                "test": {str(seed): training.test for seed, training in arm.trainings.items()},
                "mean": arm.mean,
                "spread": arm.spread,
                "validation": {str(seed): training.validation for seed, training in arm.trainings.items()},
                "validation_mean": arm.validation_mean,
                "minus_first": None
                if arm.against is None
                else {
                    "by_seed": {str(seed): value for seed, value in arm.against.by_seed.items()},
                    "mean": arm.against.mean,
                    "interval": arm.against.interval,
                },
                "total_steps": arm.total,
                "steps_aside": arm.aside,
                "curves": {
                    str(seed): [list(point) for point in training.curve] for seed, training in arm.trainings.items()
                },
                "seconds": {str(seed): dict(training.seconds) for seed, training in arm.trainings.items()},
            }
            for arm in result.arms
        },
    }
