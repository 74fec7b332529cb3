"""A plan before it is paid for: tables and a timeline, from the settings alone. Nothing is started."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Group as Stacked
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llf_ray import figures
from llf_ray.config import flatten
from llf_ray.display import Trimmed
from llf_ray.engine.base import divide_batch
from llf_ray.forget.edit import Operation
from llf_ray.forget.groups import Slot, resolve
from llf_ray.forget.left import shares_kept
from llf_ray.plan import Curve, Cut, Phase, Plan, Position, locate, rates, selections_of, spans
from llf_ray.run import Comparison, Prepared, group_rules
from llf_ray.tasks.base import ROLES
from llf_ray.train.adviser import read_cuts
from llf_ray.train.state import Run

if TYPE_CHECKING:
    from llf_ray.nn.cropr.flops import Count

__all__ = [
    "Deed",
    "Price",
    "Stretch",
    "check_budgets",
    "deeds",
    "draw",
    "draw_run",
    "markdown_table",
    "picture",
    "price_of",
    "rate_range",
    "show",
    "show_comparison",
    "stretches",
    "table_like",
]

SAMPLES = 1500  # points of a drawn learning-rate curve


# -------------------------------------------------------------------------------------------------- facts about a plan


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A phase as a person reads it: its steps, its rates by group (lowest, highest, last; below zero: ascent), and
    what is special.
    """

    index: int
    phase: Phase
    start: int
    stop: int
    epochs: float
    rates: Mapping[str, tuple[float, float, float]]
    notes: tuple[str, ...]

    @property
    def shape(self) -> object:
        """What two generations share that do the same: everything but place and number."""
        phase = {name: getattr(self.phase, name) for name in self.phase.__dataclass_fields__ if name != "generation"}
        return (tuple(phase.items()), self.stop - self.start, tuple(self.rates.items()))


def stretches(prepared: Prepared) -> list[Stretch]:
    """Every phase of a plan."""
    plan = prepared.plan
    return [
        Stretch(
            index=index,
            phase=plan.phases[index],
            start=start,
            stop=stop,
            epochs=(stop - start) / plan.epoch_steps[index],
            rates={label: rate_range(prepared, index, label) for label in _labels(plan.phases[index], prepared.slots)}
            if start < stop
            else {},
            notes=tuple(_notes(plan.phases[index])),
        )
        for index, (start, stop) in enumerate(spans(plan))
    ]


def _labels(phase: Phase, slots: Sequence[Slot]) -> list[str]:
    """Groups of a phase; the rest last, unless the rules leave none."""
    ruled = {name for rule in phase.rules for name in resolve(rule.select, slots)}
    rest = any(slot.name not in ruled for slot in slots if slot.kind != "statistic")
    return [*(rule.select.label for rule in phase.rules), *(["rest"] if rest else [])]


def _factor(prepared: Prepared, phase: Phase, label: str) -> float:
    """What a group's curve is multiplied by: the run's rate, the rule's, and the direction with its sign."""
    rule = next((rule for rule in phase.rules if rule.select.label == label), None)
    return prepared.config.optim.lr * (rule.lr * rule.direction if rule else 1.0)


def _rate(prepared: Prepared, position: Position, label: str) -> float:
    phase = prepared.plan.phases[position.index]
    return _factor(prepared, phase, label) * rates(prepared.plan, position)[label]


def rate_range(prepared: Prepared, index: int, label: str) -> tuple[float, float, float]:
    """Lowest, highest (by size) and last rate of a group in a phase, with the direction's sign; without layer-wise
    factors.

    A curve rises through its warm-up and falls behind it, so the ends and the turn are enough.
    """
    plan = prepared.plan
    start, stop = spans(plan)[index]
    first = locate(plan, start)
    phase = plan.phases[index]
    curve = next((rule.curve for rule in phase.rules if rule.select.label == label and rule.curve), phase.curve)
    turn = _turn(plan, curve, first)
    found = [
        _rate(prepared, locate(plan, step), label)
        for step in sorted({start, turn - 1, turn, stop - 1})
        if start <= step < stop
    ]
    return min(found, key=abs), max(found, key=abs), found[-1]


def _turn(plan: Plan, curve: Curve, position: Position) -> int:
    per_epoch = plan.epoch_steps[position.index]
    begin = {"phase": position.start, "generation": position.generation_start, "run": 0}[curve.over]
    return begin + curve.warmup.in_steps(per_epoch) - curve.offset.in_steps(per_epoch)


def _notes(phase: Phase) -> Iterator[str]:
    """What a phase does beside training on everything with the task's own loss."""
    if phase.aside:
        yield "aside: not compared"
    if phase.optimizer == "rebuild":
        yield "new optimizer"
    if phase.moments == "keep":
        yield "moments kept at a turn"
    if phase.until is not None:
        yield f"ends early at {_until(phase)}"
    if phase.normalisation == "eval":
        yield "normalisers in eval mode"
    if phase.hold:
        yield f"held at zero: {', '.join(phase.hold)}"
    if phase.data.source != "task" or phase.data.share < 1:
        yield f"data: {phase.data.share:.0%} of {phase.data.source}"
    if phase.data.repeat_order:
        yield "same order every generation"
    if phase.data.start is not None and (phase.data.start.epochs or phase.data.start.steps):
        yield f"data from {phase.data.start} on"
    if phase.data.batch is not None:
        yield f"{phase.data.batch} items a step"
    if phase.objective.kind == "distil":
        yield f"distil from {phase.objective.teacher}"
    if phase.objective.kind == "imitate":
        yield "imitate"


def _until(phase: Phase) -> str:
    """What ends a phase before its planned end: ``loss >= 1.3 x before``."""
    until = phase.until
    if until is None:
        return ""
    level = f">= {until.at_least:g}" if until.at_least is not None else f"<= {until.at_most:g}"
    return f"{until.measure} {level}" + (" x before" if until.relative else "")


@dataclass(frozen=True, kw_only=True)
class Deed:
    """An operation of the plan and what it touches. ``number`` is what ``--operation`` takes; ``key`` is that of its
    first draw.

    ``slots`` is empty where no weight changes (a snapshot, a mask).
    """

    number: int
    operation: Operation
    key: str
    places: tuple[tuple[int, str, int], ...]  # (generation, "entry" or "exit", step)
    slots: tuple[Slot, ...]

    @property
    def entries(self) -> int:
        """Entries of the tensors that it touches."""
        return sum(slot.size for slot in self.slots)


def deeds(prepared: Prepared, cuts: Sequence[Cut] = ()) -> list[Deed]:
    """The distinct operations of a plan, in order of first use."""
    plan = prepared.plan
    found: dict[Operation, list[tuple[int, str, int, str]]] = {}
    for phase, (start, stop) in zip(plan.phases, spans(plan, cuts), strict=True):
        for side, step in (("entry", start), ("exit", stop)):
            for place, operation in enumerate(getattr(phase, side)):
                found.setdefault(operation, []).append((phase.generation, side, step, f"{phase.name}/{side}/{place}"))
    return [
        Deed(
            number=number,
            operation=operation,
            key=places[0][3],
            places=tuple(place[:3] for place in places),
            slots=_touched(operation, prepared.slots),
        )
        for number, (operation, places) in enumerate(found.items(), start=1)
    ]


def _touched(operation: Operation, slots: Sequence[Slot]) -> tuple[Slot, ...]:
    if operation.select is None or operation.makes:  # what makes a store changes no weight
        return ()
    names = set(resolve(operation.select, slots))
    return tuple(slot for slot in slots if slot.name in names)


def _sizes(slots: Sequence[Slot]) -> tuple[int, int]:
    """Entries of all parameters, and of the weights of convolutions and linear layers."""
    return (
        sum(slot.size for slot in slots if slot.kind != "statistic"),
        sum(slot.size for slot in slots if slot.kind == "weight"),
    )


# ------------------------------------------------------------------------------------------------------------- picture


def picture(prepared: Prepared, title: str, cuts: Sequence[Cut] = ()) -> figures.Timeline:
    """A plan ready to be drawn; of a run with the ends of the phases that were cut."""
    plan = prepared.plan
    every = [(phase, *span) for phase, span in zip(plan.phases, spans(plan, cuts), strict=True)]
    lasting = [(phase, start, stop) for phase, start, stop in every if start < stop]
    ruled = {rule.select.label: rule.select for phase in plan.phases for rule in phase.rules}
    named = {name for select in ruled.values() for name in resolve(select, prepared.slots)}
    labels = [
        *ruled,
        *(["rest"] if any(slot.name not in named for slot in prepared.slots if slot.kind != "statistic") else []),
    ]
    rebuilt = tuple(start for phase, start, _ in every if phase.optimizer == "rebuild")
    operations = [
        figures.Marks(label=deed.operation.label, steps=tuple(step for _, _, step in deed.places))
        for deed in deeds(prepared, cuts)
    ]
    return figures.Timeline(
        title=title,
        total=every[-1][2],
        bands=tuple(
            figures.Band(start=start, stop=stop, name=phase.name, generation=phase.generation, until=_until(phase))
            for phase, start, stop in lasting
        ),
        # a group without a rule of its own in a phase moves with the rest
        lanes=tuple(
            figures.Lane(
                label=label if ruled else "all layers",
                spans=tuple((start, stop, phase.directions.get(label, 1.0)) for phase, start, stop in lasting),
            )
            for label in labels
        ),
        lines=tuple(_line(prepared, label, cuts) for label in labels),
        marks=(*operations, *([figures.Marks(label="new optimizer", steps=rebuilt)] if rebuilt else [])),
        held=tuple(
            figures.Lane(
                label=mask,
                spans=tuple((start, stop, float("nan")) for phase, start, stop in lasting if mask in phase.hold),
            )
            for mask in dict.fromkeys(mask for phase in plan.phases for mask in phase.hold)
        ),
        rates_note=_layer_note(prepared),
    )


def _layer_note(prepared: Prepared) -> str:
    """What a drawn rate means where every layer has its own."""
    factors = [group.factor for group in prepared.groups]
    if min(factors) == max(factors):
        return ""
    return f"rate of the last layer; layers take x {min(factors):.2g} to x {max(factors):.2g} of it"


def _line(prepared: Prepared, label: str, cuts: Sequence[Cut]) -> figures.Line:
    plan, every = prepared.plan, spans(prepared.plan, cuts)
    total = every[-1][1]
    evenly = {round(number * (total - 1) / SAMPLES) for number in range(SAMPLES + 1)}
    edges = {edge for start, stop in every for edge in (start, stop - 1) if start < stop}
    steps = sorted(step for step in evenly | edges if 0 <= step < total)
    values = []
    for step in steps:
        position = locate(plan, step, cuts)
        ruled = label in plan.phases[position.index].directions
        values.append(_rate(prepared, position, label if ruled else "rest"))
    return figures.Line(label=label, steps=tuple(steps), values=tuple(values))


def draw(prepared: Mapping[str, Prepared], path: Path) -> Path:
    """Draw one plan, or the plans of a comparison below one another, by name."""
    pictures = [picture(one, f"{name}: {one.plan.total:,} optimizer steps") for name, one in prepared.items()]
    return figures.timeline(pictures, path)


def draw_run(run: Run) -> None:
    """Every picture of a run that ended, into its folder."""
    prepared = Prepared(config=run.config, plan=run.plan, slots=run.slots, groups=run.groups)
    figures.draw_all(run.folder, picture(prepared, run.folder.name, read_cuts(run.folder)))


# --------------------------------------------------------------------------------------------------------------- words


def show(prepared: Prepared, *, everything: bool = False) -> RenderableType:
    """A run's plan for a person: what it is, phases, groups, operations, optimizer groups."""
    name = {"run": f"{prepared.config.name}, identity {prepared.config.identity}, seed {prepared.config.seed}"}
    facts = _listed(name | _shared_facts(prepared) | _own_facts(prepared))
    return Trimmed(Stacked(facts, *_details(prepared, everything)))


def _details(prepared: Prepared, everything: bool) -> list[RenderableType]:
    return [
        *_titled("Phases", _phase_table(prepared, everything), _legend(prepared)),
        *_titled("Groups that rules and operations name", _selection_table(prepared, everything)),
        *_titled("Operations", _operation_table(prepared, everything)),
        *_titled("Optimizer groups", _group_table(prepared, everything)),
    ]


def show_comparison(
    comparison: Comparison, arms: Mapping[str, Prepared], *, everything: bool = False
) -> RenderableType:
    """Every arm's plan, budgets side by side first."""
    table = table_like(
        "arm",
        "recipe",
        "generations",
        "phases",
        "steps",
        "epochs",
        "ascent steps",
        "operations",
        "plan",
        right=(2, 3, 4, 5, 6, 7),
    )
    for arm, prepared in arms.items():
        every = stretches(prepared)
        ascent = sum(s.stop - s.start for s in every if min(s.phase.directions.values()) < 0)
        table.add_row(
            arm,
            type(prepared.config.recipe).__name__,
            str(prepared.plan.generations),
            str(len(every)),
            f"{prepared.plan.total:,}",
            _count(sum(s.epochs for s in every)),
            f"{ascent:,}" if ascent else "-",
            str(sum(len(deed.places) for deed in deeds(prepared))) if deeds(prepared) else "-",
            prepared.plan.fingerprint,
        )
    runs = len(arms) * len(comparison.seeds)
    steps = sum(prepared.plan.total for prepared in arms.values()) * len(comparison.seeds)
    seeds = ", ".join(str(seed) for seed in comparison.seeds)
    problem = check_budgets(arms)
    aside = {arm: prepared.plan.total - prepared.plan.budget for arm, prepared in arms.items()}
    more = "".join(f"; {arm} trains {steps:,} more aside" for arm, steps in aside.items() if steps)
    verdict = (
        Text(problem, style="bold red")
        if problem
        else Text(f"equal budgets: every arm takes the same number of optimizer steps{more}")
    )
    parts: list[RenderableType] = [
        Text(
            f"{comparison.name}: {len(arms)} arms x seeds {seeds} = {runs} trainings, {steps:,} optimizer steps\n",
            style="bold",
        ),
        _listed(_shared_facts(next(iter(arms.values())))),
        Text(""),
        table,
        verdict,
    ]
    for arm, prepared in arms.items():
        parts += [Text(f"\n== {arm} ==", style="bold"), _listed(_own_facts(prepared)), *_details(prepared, everything)]
    return Trimmed(Stacked(*parts))


def check_budgets(arms: Mapping[str, Prepared]) -> str | None:
    """What is unequal in the arms' budgets of optimizer steps, in one line; None when they are equal.

    Phases aside do not count: what they train is not compared.
    """
    totals = {arm: prepared.plan.budget for arm, prepared in arms.items()}
    if len(set(totals.values())) < 2:
        return None
    listed = ", ".join(f"{arm} {total:,}" for arm, total in totals.items())
    return (
        f"unequal budgets of optimizer steps: {listed}; "
        "change generations, epochs or ascent_epochs of the recipes until all agree"
    )


def _titled(title: str, *bodies: RenderableType | None) -> list[RenderableType]:
    shown = [body for body in bodies if body is not None]
    return [Text(f"\n{title}", style="bold"), *shown] if shown else []


def table_like(*columns: str, right: Sequence[int] = (), fold: Sequence[int] = ()) -> Table:
    """A table without lines; numbers stand right, ``fold`` columns may wrap."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for number, name in enumerate(columns):
        table.add_column(
            name, justify="right" if number in right else "left", no_wrap=number not in fold, overflow="fold"
        )
    return table


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """The lines of a table in Markdown; behind the first ``left`` columns stand numbers, on the right."""
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join(["---"] * left + ["---:"] * (len(columns) - left)) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _shared_facts(prepared: Prepared) -> dict[str, str]:
    """What all arms of a comparison have in common."""
    config, resources = prepared.config, prepared.config.resources
    micro, accumulation = divide_batch(config.engine, resources.workers)
    parameters, weights = _sizes(prepared.slots)
    items = ", ".join(f"{config.task.num_items(role):,} {role}" for role in ROLES)
    tensors = sum(slot.kind != "statistic" for slot in prepared.slots)
    extras = {
        "layer decay": config.optim.layer_decay,
        "averaged weights": config.optim.averaged,
        "clip": config.engine.clip,
    }
    return {
        "task": f"{type(config.task).__name__}: {_inner(config.task)}; {items}",
        "model": f"{parameters:,} parameters ({weights:,} convolution and linear weights) in {tensors} tensors",
        **_tokens(config.task),
        "optimizer": f"{config.optim.name}, lr {config.optim.lr:g}, weight decay {config.optim.weight_decay:g}"
        + "".join(f", {name} {value:g}" for name, value in extras.items() if value is not None),
        "step": f"{config.engine.batch} items = {resources.workers} workers x {micro} x {accumulation} micro-batches; "
        f"ZeRO {config.engine.stage}, {config.engine.precision}; {resources.cpus:g} CPU"
        + (f" and {resources.gpus:g} GPU" if resources.gpus else "")
        + " a worker",
    }


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a transformer that loses tokens costs: multiply-adds of one image in inference, pruned and dense, the tokens
    that each block works on, and the share of patches that are cut.
    """

    pruned: Count
    dense: Count
    lengths: tuple[int, ...]
    gone: float


def price_of(task: Any) -> Price | None:
    """The price of a task's transformer, inside whatever network; None for one that is no such. Nothing is computed."""
    with torch.device("meta"):
        modules = task.skeleton().modules()
    model = next((module for module in modules if hasattr(module, "cropping")), None)
    if model is None:
        return None
    from llf_ray.nn.cropr import count, image_shape, lengths, shape_of  # here: they import timm, which takes seconds

    images, shape, kept = (1, *image_shape(model)), shape_of(model), model.kept
    pruned = count(model, images)
    model.kept = (shape.patches,) * len(kept)
    dense = count(model, images)
    alive = lengths(shape, model.after, kept)
    return Price(pruned=pruned, dense=dense, lengths=alive, gone=1 - kept[-1] / shape.patches)


def _tokens(task: Any) -> dict[str, str]:
    price = price_of(task)
    if price is None or not price.gone:
        return {}
    return {
        "tokens": f"{', '.join(map(str, price.lengths))} in its blocks; multiply-adds of an image "
        f"{price.pruned.linear / price.dense.linear:.0%} of the dense model's, with attention "
        f"{price.pruned.total / price.dense.total:.0%} ({price.dense.total / 1e9:.3g} G)"
    }


def _own_facts(prepared: Prepared) -> dict[str, str]:
    plan, recipe = prepared.plan, prepared.config.recipe
    epochs = sum(stretch.epochs for stretch in stretches(prepared))
    return {
        "recipe": f"{type(recipe).__name__}: {_inner(recipe)}",
        "budget": f"{plan.total:,} optimizer steps = {_count(epochs)} epochs in {plan.generations} generation(s), "
        f"{len(plan.phases)} phase(s)",
        "plan": f"fingerprint {plan.fingerprint}",
    }


def _count(epochs: float) -> str:
    return f"{round(epochs, 1):,g}" if epochs >= 10 else f"{epochs:.3g}"


def _listed(facts: Mapping[str, str]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(value))
    return table


def _inner(value: object) -> str:
    """A dataclass's leaves in one line."""
    leaves = {key: leaf for key, leaf in flatten(value).items() if leaf is not None}
    return ", ".join(f"{key}={leaf}" for key, leaf in leaves.items())


# --- phases


def _phase_table(prepared: Prepared, everything: bool) -> Table:
    table = table_like(
        "gen.",
        "phase",
        "steps",
        "number",
        "epochs",
        "learning rate (low / peak / end)",
        "at entry",
        "notes",
        right=(3, 4),
        fold=(6, 7),
    )
    generations = [list(group) for _, group in groupby(stretches(prepared), key=lambda s: s.phase.generation)]
    alike = [[generation] for generation in generations] if everything else _runs_of_alike(generations)
    for run in alike:
        for stretch in run[0]:
            _add_phase(table, stretch)
        if len(run) > 1:
            _add_repeats(table, run)
    return table


def _runs_of_alike(generations: Sequence[Sequence[Stretch]]) -> list[list[Sequence[Stretch]]]:
    """Generations in a row that do exactly the same."""
    result: list[list[Sequence[Stretch]]] = []
    for generation in generations:
        shape = [stretch.shape for stretch in generation]
        if result and [stretch.shape for stretch in result[-1][0]] == shape:
            result[-1].append(generation)
        else:
            result.append([generation])
    return result


def _add_phase(table: Table, stretch: Stretch) -> None:
    phase = stretch.phase
    entry = "; ".join(operation.label for operation in phase.entry)
    leaving = "; ".join(f"at exit: {operation.label}" for operation in phase.exit)
    table.add_row(
        str(phase.generation),
        phase.name,
        f"{stretch.start:,} - {stretch.stop:,}",
        f"{stretch.stop - stretch.start:,}",
        _count(stretch.epochs),
        Text("\n".join(_rate_lines(stretch)) or "-"),
        Text(entry or "-"),
        Text("; ".join(filter(None, [*stretch.notes, leaving])) or "-"),
    )


def _rate_lines(stretch: Stretch) -> list[str]:
    """One line for each group that moves in its own way."""
    directions = stretch.phase.directions
    lines = []
    for label, (low, peak, end) in stretch.rates.items():
        if directions[label] == 0:
            lines.append(f"{label}: hold")
            continue
        values = " / ".join(f"{value:.3g}" if abs(value) > 1e-12 else "0" for value in (low, peak, end))
        way = f" (ascend x {-directions[label]:g})" if directions[label] < 0 else ""
        lines.append((f"{label}: " if len(stretch.rates) > 1 else "") + values + way)
    return lines


def _add_repeats(table: Table, run: Sequence[Sequence[Stretch]]) -> None:
    first, second, last = run[0], run[1], run[-1]
    steps = first[-1].stop - first[0].start
    numbers = f"{second[0].phase.generation}" + (f"-{last[0].phase.generation}" if len(run) > 2 else "")
    table.add_row(
        numbers,
        f"as generation {first[0].phase.generation}",
        f"{second[0].start:,} - {last[-1].stop:,}",
        f"{steps * (len(run) - 1):,}",
        _count(sum(s.epochs for s in first) * (len(run) - 1)),
        f"{len(run) - 1} x {steps:,} steps",
        style="dim",
    )


def _legend(prepared: Prepared) -> RenderableType | None:
    if any(min(phase.directions.values()) < 0 for phase in prepared.plan.phases):
        return Text(
            "rates below zero ascend: the sign is in the gradient, S in the rate; weight decay keeps its own sign",
            style="dim",
        )
    return None


# --- parameters


def _share(entries: int, total: int) -> str:
    return f"{100 * entries / total:.1f} %" if total else "-"


def _named(names: Sequence[str], everything: bool, most: int = 3) -> Text:
    if everything or len(names) <= most:
        return Text(", ".join(names))
    return Text(f"{', '.join(names[: most - 1])}, ... {names[-1]}")


def _selection_table(prepared: Prepared, everything: bool) -> RenderableType | None:
    selections = selections_of(prepared.plan)
    if not selections:
        return None
    table = table_like(
        "group",
        "tensors",
        "entries",
        "of all parameters",
        "of conv. and linear weights",
        "names",
        right=(1, 2, 3, 4),
        fold=(0, 5),
    )
    parameters, weights = _sizes(prepared.slots)
    for selection in selections:
        names = set(resolve(selection, prepared.slots))
        _add_slots(
            table,
            [selection.label],
            [slot for slot in prepared.slots if slot.name in names],
            parameters,
            weights,
            everything,
        )
    return table


def _add_slots(
    table: Table, first: list[str], slots: Sequence[Slot], parameters: int, weights: int, everything: bool
) -> None:
    entries = sum(slot.size for slot in slots if slot.kind != "statistic")
    table.add_row(
        *(Text(text) for text in first),
        str(len(slots)),
        f"{sum(slot.size for slot in slots):,}",
        _share(entries, parameters),
        _share(sum(slot.size for slot in slots if slot.kind == "weight"), weights),
        _named([slot.name for slot in slots], everything),
    )


def _operation_table(prepared: Prepared, everything: bool) -> RenderableType:
    found = deeds(prepared)
    if not found:
        return Text("none: no weight is changed but by training")
    columns = (
        "no.",
        "operation",
        "when",
        "tensors",
        "entries",
        "of all parameters",
        "of conv. and linear weights",
        "names",
    )
    table = table_like(*columns, right=(0, 3, 4, 5, 6), fold=(1, 2, 7))
    parameters, weights = _sizes(prepared.slots)
    shares = shares_kept(prepared.plan.phases, prepared.slots)
    for deed in found:
        kept = _kept(shares.get(deed.operation, []))  # type: ignore[call-overload]
        first = [str(deed.number), f"{deed.operation.label}{kept}", _when(deed, everything)]
        if deed.slots:
            _add_slots(table, first, deed.slots, parameters, weights, everything)
        else:
            table.add_row(*(Text(text) for text in first), "-", "-", "-", "-", "no weight changes")
    return table


def _kept(shares: Sequence[float]) -> str:
    """How much of the entries in an operation's line stays as it is; nothing of one that keeps nothing or all."""
    seen = list(dict.fromkeys(f"{100 * share:.3g}" for share in shares if 0 < share < 1))
    if not seen:
        return ""
    return (
        f" (about {seen[0]} % kept)" if len(seen) == 1 else f" (about {seen[0]} % kept at first, {seen[-1]} % at last)"
    )


def _when(deed: Deed, everything: bool) -> str:
    if everything:
        return ", ".join(f"step {step:,}" for _, _, step in deed.places)
    (generation, side, step), last = deed.places[0], deed.places[-1]
    if len(deed.places) == 1:
        return f"{side} of generation {generation} (step {step:,})"
    return f"{len(deed.places)} times, {side} of generation {generation} (step {step:,}) to {last[0]} ({last[2]:,})"


def _group_table(prepared: Prepared, everything: bool) -> Table:
    table = table_like(
        "group",
        "tensors",
        "entries",
        "share",
        "weight decay",
        "rate x",
        "directions",
        "names",
        right=(1, 2, 3, 4, 5),
        fold=(0, 6, 7),
    )
    sizes = {slot.name: slot.size for slot in prepared.slots}
    parameters, _ = _sizes(prepared.slots)
    for group in prepared.groups:
        entries = sum(sizes[name] for name in group.parameters)
        rules = [
            group_rules(phase, prepared.groups, prepared.config.optim)[group.name] for phase in prepared.plan.phases
        ]
        directions = dict.fromkeys(rule.direction for rule in rules)
        decays = dict.fromkeys(rule.weight_decay for rule in rules)
        table.add_row(
            Text(group.name),
            str(len(group.parameters)),
            f"{entries:,}",
            _share(entries, parameters),
            ", ".join(f"{decay:g}" for decay in decays),
            f"{group.factor:g}",
            ", ".join(f"{direction:+g}" if direction else "0" for direction in directions),
            _named(group.parameters, everything),
        )
    return table
