"""What an iterative run does, as data: phases, their rules, and where a run stands at an optimizer step.

A recipe gives phases whose lengths are written in epochs or steps. `compute` turns them into a `Plan`, in optimizer
steps. `locate` says where a run stands; `Schedule` answers rank 0. All are pure functions of (plan, cuts, step), so a
restarted adviser, a resumed run and a second rank all read the same answer. No torch here: a plan can be read where
none is installed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from llf_ray.config import SettingError, check, check_number, to_plain

__all__ = [
    "BACK_TRANSLATIONS",
    "FREEZE",
    "MESSAGES",
    "RECALIBRATE",
    "TRANSCRIPTS",
    "Answer",
    "Curve",
    "Cut",
    "DataRule",
    "Generate",
    "Length",
    "Objective",
    "Observed",
    "Operation",
    "Pass",
    "Phase",
    "Plan",
    "Position",
    "Rule",
    "Schedule",
    "Selection",
    "Until",
    "check_plan",
    "compute",
    "curve_value",
    "curves_of",
    "is_named",
    "locate",
    "operations_of",
    "rates",
    "selections_of",
]


# passes that tasks on images offer
FREEZE = "freeze the normaliser behind"
RECALIBRATE = "recalibrate statistics"
# what a task of translation generates
BACK_TRANSLATIONS = "back-translations"
# what the language game generates, and the stores that its recipes keep them in
TRANSCRIPTS, MESSAGES = "transcripts", "messages"


class Selection(Protocol):
    """A named set of parameters, resolved against a model's ordered layers (`llf_ray.forget.groups`)."""

    @property
    def label(self) -> str: ...


class Operation(Protocol):
    """What changes weights at a boundary, as data; carried out in `llf_ray.forget`."""

    @property
    def label(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Generate:
    """An operation that the task carries out: make data with the weights as they are, into a store to train on.

    ``what`` is the task's own name for them, for example transcripts of the games that were won; how many there will
    be is known beforehand, since the plan's lengths follow from it.
    """

    what: str
    store: str

    kind = "data"
    select = None
    needs = ()

    @property
    def makes(self) -> tuple[str, ...]:
        """The store."""
        return (self.store,)

    @property
    def label(self) -> str:
        """What it does, in a few words."""
        return f"generate {self.what} into {self.store}"


@dataclass(frozen=True, kw_only=True)
class Pass:
    """An operation that the task carries out: run batches, to recalibrate statistics or to freeze a normaliser.

    ``what`` is the task's own name for it, ``where`` a module for what is done to one. The batches are the first of
    the phase's own data in this generation, the same on every rank, so what comes of them does not depend on the
    number of workers.
    """

    what: str
    where: str = ""
    batches: int = 1

    select = None
    needs = ()
    makes = ()

    def __post_init__(self) -> None:
        check_number("batches", self.batches, low=1)

    @property
    def label(self) -> str:
        """What it does, in a few words."""
        there = f" {self.where}" if self.where else ""
        return f"{self.what}{there} on {self.batches} batch{'es' * (self.batches > 1)}"


@dataclass(frozen=True, kw_only=True)
class Length:
    """A stretch of training, in epochs or in optimizer steps.

    Epochs are those of the phase's own data or, as a phase's length, with ``of="task"`` of the whole training part.
    """

    epochs: float | None = None
    steps: int | None = None
    of: Literal["phase", "task"] = "phase"

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise SettingError(
                f"a length has epochs or steps, one of the two: epochs={self.epochs}, steps={self.steps}"
            )
        check_number("epochs", self.epochs, low=0)
        check_number("steps", self.steps, low=0)

    def in_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps; a part of an epoch is rounded to the nearest step."""
        return self.steps if self.steps is not None else round((self.epochs or 0.0) * steps_per_epoch)

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps is not None else f"{self.epochs:g} epochs"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Learning rate as a share of its peak over a span of the run.

    Linear warm-up ``(t + 1) / warmup`` and then the shape over what remains. The papers' code moves once an epoch;
    here the curve moves every step, which has the same ends and needs no epoch.

    ``over`` names the span: the phase, its generation, or the run. ``offset`` reads the curve as if that much had
    passed already, so that a generation rewound to step k continues at k. ``drops`` are shares of the span at which
    ``shape="step"`` multiplies by ``factor``. ``shape="linear"`` falls as what remains to the ``power``. ``scale``
    multiplies everything.
    """

    shape: Literal["cosine", "linear", "constant", "step"] = "cosine"
    over: Literal["phase", "generation", "run"] = "generation"
    warmup: Length = Length(steps=0)
    offset: Length = Length(steps=0)
    drops: tuple[float, ...] = ()
    factor: float = 0.1
    power: float = 1.0
    floor: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("floor", self.floor, low=0, high=1)
        check_number("scale", self.scale, above=0)
        check_number("factor", self.factor, low=0)
        check_number("power", self.power, above=0)
        for share in self.drops:
            check_number("drops", share, low=0, high=1)
        if self.power != 1 and self.shape != "linear":
            raise SettingError(f"power = {self.power!r}: only shape = 'linear' has one, found shape = {self.shape!r}")
        if self.drops and self.shape != "step":
            raise SettingError(f"drops = {self.drops!r}: only shape = 'step' has drops, found shape = {self.shape!r}")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one group learns in a phase.

    ``direction`` is +1 (descend), 0 (hold: weights and moments do not move) or -S (ascend at S times the rate). ``lr``
    multiplies the run's rate; ``weight_decay`` and ``clip`` (largest gradient norm of the group) replace the run's
    where given; ``curve`` replaces the phase's.
    """

    select: Selection
    direction: float = 1.0
    lr: float = 1.0
    weight_decay: float | None = None
    clip: float | None = None
    curve: Curve | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.direction) or self.direction > 1 or 0 < self.direction < 1:
            raise SettingError(
                f"direction = {self.direction!r}: must be 1 (descend), 0 (hold) or -S with S > 0 (ascend)"
            )
        check_number("lr", self.lr, low=0)
        check_number("weight_decay", self.weight_decay, low=0)
        check_number("clip", self.clip, above=0)


@dataclass(frozen=True, kw_only=True)
class Until:
    """End a phase early, when the all-reduced training measure crosses a level.

    With ``relative`` the level is a ratio to the same measure in the window before the phase began.
    """

    measure: Literal["loss", "accuracy"] = "loss"
    at_least: float | None = None
    at_most: float | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise SettingError(f"until has at_least or at_most, one of the two: {self.at_least!r}, {self.at_most!r}")
        check_number("at_least", self.at_least)
        check_number("at_most", self.at_most)

    def met(self, value: float, reference: float | None) -> bool:
        """Whether the measure has crossed the level."""
        if self.relative and reference is None:
            return False
        scale = reference if self.relative and reference is not None else 1.0
        return value >= self.at_least * scale if self.at_least is not None else value <= (self.at_most or 0.0) * scale


@dataclass(frozen=True, kw_only=True)
class DataRule:
    """What a phase trains on: a share of the task's training part, or what an earlier phase generated into a store.

    A share is the first part of one fixed order, so shares grow into one another. ``repeat_order`` gives every
    generation the same order and augmentation. ``start`` is where in its generation's order a phase begins, so that a
    generation rewound to step k goes on with the data of step k; without it a phase goes on where the one before on
    these data stopped. ``batch`` is the items of one optimizer step, over all workers, where it is not the run's.
    """

    source: str = "task"
    share: float = 1.0
    repeat_order: bool = False
    start: Length | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        check_number("share", self.share, above=0, high=1)
        check_number("batch", self.batch, low=1)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a phase learns when it is not the task's own loss: in part from a teacher in a store ("distil"), or by
    imitation of its data, which an earlier phase generated ("imitate").
    """

    kind: Literal["task", "distil", "imitate"] = "task"
    teacher: str = ""
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if (self.kind == "distil") != (self.teacher != ""):
            raise SettingError(
                f"teacher = {self.teacher!r}: kind = {self.kind!r} "
                + ("needs one" if self.kind == "distil" else "has none")
            )
        check_number("weight", self.weight, low=0, high=1)
        check_number("temperature", self.temperature, above=0)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with one set of rules.

    ``entry`` and ``exit`` are the operations of its two boundaries, ``hold`` the stored masks whose dead entries stay
    zero. Parameters that no rule selects descend at the run's rate. A cut phase (``until``, or a person) hands its
    unused steps to the next one where ``fill`` is set, so that a generation keeps its budget. ``moments`` says what
    becomes of the moments of a group whose direction changes sign on entry. ``aside``: it trains something else than
    the network that its generation ends with; a comparison counts neither its steps nor its scores.
    """

    name: str
    generation: int
    length: Length
    rules: tuple[Rule, ...] = ()
    curve: Curve = Curve()
    entry: tuple[Operation, ...] = ()
    exit: tuple[Operation, ...] = ()
    optimizer: Literal["keep", "rebuild"] = "keep"
    moments: Literal["clear", "keep"] = "clear"
    normalisation: Literal["train", "eval"] = "train"
    hold: tuple[str, ...] = ()
    data: DataRule = DataRule()
    objective: Objective = Objective()
    until: Until | None = None
    fill: bool = False
    aside: bool = False

    @property
    def directions(self) -> dict[str, float]:
        """Direction by group label, 'rest' included."""
        return {**{rule.select.label: rule.direction for rule in self.rules}, "rest": 1.0}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Phases with their lengths in optimizer steps: what a run will do, saved with it.

    ``steps[i]`` is the planned length of phase i and ``epoch_steps[i]`` the steps in one epoch of its data (the last
    partial batch is dropped). Rank 0 asks the adviser at phase starts and every ``ask_every`` steps of a generation,
    the longest epoch of the plan; in a phase with a rule for its end after each epoch of its own, but no more often
    than every ``ask_at_least`` steps.
    """

    phases: tuple[Phase, ...]
    steps: tuple[int, ...]
    epoch_steps: tuple[int, ...]
    ask_every: int
    ask_at_least: int = 1

    @property
    def total(self) -> int:
        """Optimizer steps of the whole plan, were no phase cut."""
        return sum(self.steps)

    @property
    def budget(self) -> int:
        """Optimizer steps that a comparison counts: all but those of phases aside."""
        return sum(steps for phase, steps in zip(self.phases, self.steps, strict=True) if not phase.aside)

    def asks_every(self, index: int) -> int:
        """Steps of the generation between two questions in phase ``index``."""
        if self.phases[index].until is None:
            return self.ask_every
        return _at_least(self.ask_at_least, self.epoch_steps[index])

    def is_scored(self, index: int, step: int, every: int) -> bool:
        """Whether a question in phase ``index``, ``step`` steps into its generation, is the first after ``every``
        epochs more: where validation is due. Epochs are the plan's longest.
        """
        return step % (every * self.ask_every) < self.asks_every(index)

    @property
    def generations(self) -> int:
        """Number of generations."""
        return 1 + max(phase.generation for phase in self.phases)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the whole plan."""
        return hashlib.sha256(json.dumps(to_plain(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """End phase ``phase`` at optimizer step ``step``."""

    phase: int
    step: int
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands before optimizer step ``step``.

    ``index`` is the phase's place in the plan, [``start``, ``stop``) its steps with cuts applied, ``stream`` the place
    of ``step`` in this generation's sample order, in steps, ``generation_start``/``generation_stop`` the generation's
    steps.
    """

    step: int
    index: int
    start: int
    stop: int
    stream: int
    generation_start: int
    generation_stop: int
    total: int

    @property
    def finished(self) -> bool:
        """Whether every phase is over."""
        return self.step >= self.total


@dataclass(frozen=True, kw_only=True)
class Observed:
    """All-reduced training measures: means over the window since the last question, and over the one before this
    phase.
    """

    loss: float
    accuracy: float
    reference_loss: float | None = None
    reference_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What rank 0 is told: where the run stands, which boundaries lie at this step, and when to ask again.

    ``boundary`` lists (side, phase) in order: the exit of the phase that ends, both sides of phases without a step,
    the entry of the phase that starts.
    """

    position: Position
    boundary: tuple[tuple[Literal["entry", "exit"], int], ...] = ()
    until: int
    cuts: tuple[Cut, ...] = ()


def compute(
    phases: Sequence[Phase],
    *,
    num_items: int,
    batch: int,
    sizes: Mapping[str, int] | None = None,
    ask_at_least: int = 1,
) -> Plan:
    """Lengths in epochs become optimizer steps.

    Args:
        phases: what a recipe gives.
        num_items: size of the task's training part.
        batch: items of one optimizer step, over all workers and micro-batches.
        sizes: items of the data stores that phases train on, by name.
        ask_at_least: the fewest steps between two questions; where an epoch is shorter, several go by.

    Raises:
        SettingError: a value that does not fit its field, a phase whose data hold less than one batch, an impossible
        plan (see `check_plan`).
    """
    epoch_steps = []
    for phase in phases:
        check(phase, f"phase {phase.name!r} of generation {phase.generation}: ")
        items = num_items if phase.data.source == "task" else (sizes or {}).get(phase.data.source, num_items)
        of_step = phase.data.batch or batch
        per_epoch = math.floor(items * phase.data.share + 1e-9) // of_step
        if per_epoch < 1:
            raise SettingError(
                f"phase {phase.name!r} of generation {phase.generation}: {math.floor(items * phase.data.share)} items "
                f"are less than one batch of {of_step}; lower engine.batch or give it more data"
            )
        epoch_steps.append(per_epoch)
    longest = max(epoch_steps, default=1)
    plan = Plan(
        phases=tuple(phases),
        steps=_in_steps(phases, epoch_steps, num_items // batch),
        epoch_steps=tuple(epoch_steps),
        ask_every=_at_least(ask_at_least, longest),
        ask_at_least=ask_at_least,
    )
    check_plan(plan)
    return plan


def _at_least(steps: int, epoch: int) -> int:
    """The fewest whole epochs that have so many steps, in steps."""
    return epoch * math.ceil(steps / epoch)


def _in_steps(phases: Sequence[Phase], epoch_steps: Sequence[int], whole: int) -> tuple[int, ...]:
    """Ends are rounded, not lengths: parts of an epoch add up to one budget, however a plan divides it.

    A phase aside has as many steps as it would have in the place of the one that follows, and adds to no budget.
    """
    steps, exact, reached = [], 0.0, 0
    for phase, per_epoch in zip(phases, epoch_steps, strict=True):
        length = phase.length
        per_epoch = whole if length.of == "task" else per_epoch
        end = exact + (length.steps if length.steps is not None else (length.epochs or 0.0) * per_epoch)
        stop = math.floor(end + 0.5 + 1e-6)
        if length.epochs and stop == reached:
            raise SettingError(
                f"phase {phase.name!r} of generation {phase.generation}: {length} are less than one optimizer step "
                f"({per_epoch} an epoch)"
            )
        steps.append(stop - reached)
        if not phase.aside:
            exact, reached = end, stop
    return tuple(steps)


def check_plan(plan: Plan) -> None:
    """Raise `SettingError` unless the plan can be run.

    It needs steps, generations in order, one name for each phase of a generation (draws are keyed by it), and stores
    that are made before use and hold what they are used for.
    """
    if not plan.phases or plan.total < 1:
        raise SettingError("the plan has no training step: give its phases a length")
    generation = -1
    made: dict[str, str] = {}  # what each store holds
    named: set[tuple[int, str]] = set()
    for phase in plan.phases:
        where = f"phase {phase.name!r} of generation {phase.generation}"
        if phase.generation not in {max(generation, 0), generation + 1}:
            before = f"the one before is {generation}" if generation >= 0 else "the first is 0"
            raise SettingError(f"{where}: generations go up by one; {before}")
        if (phase.generation, phase.name) in named:
            raise SettingError(f"{where}: there are two of this name; draws are keyed by it, so each needs its own")
        named.add((phase.generation, phase.name))
        generation = phase.generation
        for operation in phase.entry:
            _check_stores(operation, made, where)
        for name in phase.hold:
            _check_store(name, ("masks",), made, f"{where}: hold")
        if phase.objective.teacher:
            _check_store(phase.objective.teacher, ("weights",), made, f"{where}: objective {phase.objective.kind!r}")
        if phase.objective.kind == "imitate" and phase.data.source == "task":
            known = ", ".join(repr(store) for store, kind in sorted(made.items()) if kind == "data") or "none"
            raise SettingError(
                f"{where}: objective 'imitate' learns from data that an earlier phase generated; set data.source "
                f"(made: {known})"
            )
        if phase.data.source != "task":
            _check_store(phase.data.source, ("data",), made, f"{where}: training")
        for operation in phase.exit:
            _check_stores(operation, made, where)


def _check_stores(operation: Operation, made: dict[str, str], where: str) -> None:
    masks = getattr(operation, "needs_masks", ())
    for name in getattr(operation, "needs", ()):
        _check_store(name, ("masks",) if name in masks else ("weights",), made, f"{where}: {operation.label!r}")
    made.update(dict.fromkeys(getattr(operation, "makes", ()), getattr(operation, "kind", "weights")))


def _check_store(name: str, wanted: Sequence[str], made: Mapping[str, str], user: str) -> None:
    known = ", ".join(f"{store!r} ({kind})" for store, kind in sorted(made.items())) or "none"
    if name not in made:
        raise SettingError(f"{user} needs store {name!r}, which no operation before it makes (made: {known})")
    if made[name] not in wanted:
        raise SettingError(f"{user} needs {' or '.join(wanted)}, and store {name!r} holds {made[name]} (made: {known})")


def spans(plan: Plan, cuts: Sequence[Cut] = ()) -> list[tuple[int, int]]:
    """[start, stop) of every phase in optimizer steps, with cuts applied and unused steps handed on where a phase
    fills.
    """
    by_phase = {cut.phase: cut.step for cut in cuts}
    result, start, spare = [], 0, 0
    for index, planned in enumerate(plan.steps):
        length = planned + spare
        spare = 0
        if index in by_phase and by_phase[index] < start + length:
            used = max(0, by_phase[index] - start)
            spare = (length - used) if plan.phases[index].fill else 0
            length = used
        result.append((start, start + length))
        start += length
    return result


def locate(plan: Plan, step: int, cuts: Sequence[Cut] = ()) -> Position:
    """Where a run stands before optimizer step ``step``: the one clock of everything.

    A cut that lies ahead does not count yet: when this step was handed out nobody knew of it, and a restart that does
    the step again must find the same rates.
    """
    every = spans(plan, _known(cuts, step))
    total = every[-1][1]
    index = next((i for i, (_, stop) in enumerate(every) if step < stop), len(every) - 1)
    generation = plan.phases[index].generation
    members = [i for i, phase in enumerate(plan.phases) if phase.generation == generation]
    start, stop = every[index]
    return Position(
        step=step,
        index=index,
        start=start,
        stop=stop,
        stream=_stream(plan, index, [i for i in members if i < index], every) + step - start,
        generation_start=every[members[0]][0],
        generation_stop=every[members[-1]][1],
        total=total,
    )


def _stream(plan: Plan, index: int, before: Sequence[int], every: Sequence[tuple[int, int]]) -> int:
    """Where phase ``index`` begins in its generation's sample order: at its own start, or where the last of the phases
    ``before`` it on these data stopped.
    """
    data, place = plan.phases[index].data, 0
    if data.start is not None:
        return data.start.in_steps(plan.epoch_steps[index])
    for earlier in reversed(before):
        other = plan.phases[earlier].data
        if replace(other, start=None) == data:
            place += every[earlier][1] - every[earlier][0]
            if other.start is not None:
                return place + other.start.in_steps(plan.epoch_steps[earlier])
    return place


def _known(cuts: Sequence[Cut], step: int) -> list[Cut]:
    return [cut for cut in cuts if cut.step <= step]


def is_named(plan: Plan, position: Position) -> bool:
    """Whether rank 0 asks at this step in a run that nothing interrupts: at a phase's start, and every so many steps of
    the generation.
    """
    every = plan.asks_every(position.index)
    return position.step == position.start or (position.step - position.generation_start) % every == 0


def curve_value(curve: Curve, t: float, span: int, warmup: int = 0) -> float:
    """The share of the peak rate at step ``t`` of a span of ``span`` steps, ``warmup`` of them rising."""
    if t < warmup:
        return curve.scale * (t + 1) / warmup
    progress = min(1.0, (t - warmup) / max(1, span - warmup))
    shape = {
        "cosine": lambda: 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": lambda: (1 - progress) ** curve.power,
        "constant": lambda: 1.0,
        "step": lambda: curve.factor ** sum(t >= share * span for share in curve.drops),
    }[curve.shape]()
    return curve.scale * (curve.floor + (1 - curve.floor) * shape)


def curves_of(phase: Phase) -> tuple[Curve, ...]:
    """Every curve that a rate follows in a phase."""
    return (phase.curve, *(rule.curve for rule in phase.rules if rule.curve is not None))


def rates(plan: Plan, position: Position) -> dict[str, float]:
    """Value of the learning-rate curve by group label at a position; 'rest' is the phase's own curve."""
    phase = plan.phases[position.index]
    curves = {rule.select.label: rule.curve or phase.curve for rule in phase.rules}
    return {label: _value(plan, curve, position) for label, curve in {**curves, "rest": phase.curve}.items()}


def _value(plan: Plan, curve: Curve, position: Position) -> float:
    per_epoch = plan.epoch_steps[position.index]
    start, stop = {
        "phase": (position.start, position.stop),
        "generation": (position.generation_start, position.generation_stop),
        "run": (0, position.total),
    }[curve.over]
    offset = curve.offset.in_steps(per_epoch)
    return curve_value(curve, position.step - start + offset, stop - start + offset, curve.warmup.in_steps(per_epoch))


def selections_of(plan: Plan) -> tuple[Selection, ...]:
    """Every distinct selection that a rule or an operation names, in order of first use."""
    found: dict[Selection, None] = {}
    for phase in plan.phases:
        for operation in (*phase.entry, *phase.exit):
            if getattr(operation, "select", None) is not None:
                found.setdefault(operation.select)  # type: ignore[attr-defined]
        for rule in phase.rules:
            found.setdefault(rule.select)
    return tuple(found)


def operations_of(plan: Plan, answer: Answer) -> list[tuple[str, int, Operation]]:
    """The operations of one boundary, in order: (key of its draws, phase it belongs to, operation).

    The key holds the phase's name and the place in its list, not the phase's number, so that a longer plan draws the
    same values.
    """
    return [
        (f"{plan.phases[index].name}/{side}/{place}", index, operation)
        for side, index in answer.boundary
        for place, operation in enumerate(getattr(plan.phases[index], side))
    ]


@dataclass
class Schedule:
    """Answers where a run stands; remembers nothing but the cuts, which its owner keeps in the run's folder."""

    plan: Plan
    cuts: list[Cut] = field(default_factory=list)

    def at(self, step: int) -> Answer:
        """The answer for optimizer step ``step``: a pure function of (plan, cuts up to the step, step)."""
        position, known = locate(self.plan, step, self.cuts), _known(self.cuts, step)
        boundary: list[tuple[Literal["entry", "exit"], int]] = []
        for index, (start, stop) in enumerate(spans(self.plan, known)):
            if start == step:
                boundary.append(("entry", index))
            if stop == step:
                boundary.append(("exit", index))
        every = self.plan.asks_every(position.index)
        asked = step + every - (step - position.generation_start) % every
        until = step if position.finished else min(position.stop, asked)
        return Answer(position=position, boundary=tuple(boundary), until=until, cuts=tuple(known))

    def decide(self, step: int, observed: Observed | None, asked: bool = False) -> Cut | None:
        """A new cut at ``step``, by the phase's rule on what was observed or because a person asked; None for none.

        Only at a step that an answer names: every step below it was handed out and none at or after it, so the cut
        lies ahead of all that was promised, and a run that resumes between two such steps decides what it would have.
        """
        position = locate(self.plan, step, self.cuts)
        if position.finished or step == position.start or not is_named(self.plan, position):
            return None
        if any(cut.phase == position.index for cut in self.cuts):
            return None
        if asked:
            return Cut(phase=position.index, step=step, why="asked for by a person")
        until = self.plan.phases[position.index].until
        if until is None or observed is None:
            return None
        value, reference = (
            (observed.loss, observed.reference_loss)
            if until.measure == "loss"
            else (observed.accuracy, observed.reference_accuracy)
        )
        if not until.met(value, reference):
            return None
        return Cut(
            phase=position.index, step=step, why=f"training {until.measure} {value:.4g} (before the phase: {reference})"
        )
