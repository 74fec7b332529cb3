"""One run's settings as a value, and everything that can be known of a run before anything starts."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch

from llf_ray.config import SettingError, accepted, check, check_number, fingerprint, flatten
from llf_ray.engine.base import EngineSettings, GroupRule, Optim, divide_batch
from llf_ray.engine.sharded import prepare as check_module
from llf_ray.forget.groups import Group, Slot, block_of, layout, partition, resolve
from llf_ray.forget.left import check_left
from llf_ray.forget.masks import KernelBlock
from llf_ray.forget.operations import Adopt
from llf_ray.journal import Tracking
from llf_ray.measures.selectivity import Probe
from llf_ray.nn.channels import extract, kept_channels
from llf_ray.plan import Generate, Pass, Phase, Plan, Selection, compute, selections_of
from llf_ray.recipes.base import Recipe
from llf_ray.tasks.base import Task
from llf_ray.tasks.start import FromRun, same_network

__all__ = [
    "Checkpoints",
    "Comparison",
    "Prepared",
    "Resources",
    "RunConfig",
    "batch_of",
    "group_labels",
    "group_rules",
    "kernel_shares",
    "prepare",
]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where a run takes place; never part of its identity.

    ``cpus`` and ``gpus`` are for each worker; ``custom`` are Ray's custom resources for each worker. ``retries`` is
    how often a failed worker group is started again. ``start_timeout`` (seconds) bounds the wait for the workers to
    come up. ``threads`` are torch's threads in each worker (None: as many as cpus).
    """

    workers: int = 2
    cpus: float = 1
    gpus: float = 0
    custom: Mapping[str, float] = field(default_factory=dict)
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    address: str | None = None
    retries: int = 3
    start_timeout: float = 120
    threads: int | None = None

    def __post_init__(self) -> None:
        check_number("workers", self.workers, low=1)
        check_number("cpus", self.cpus, above=0)
        check_number("gpus", self.gpus, low=0)
        check_number("retries", self.retries, low=0)
        check_number("start_timeout", self.start_timeout, above=0)
        check_number("threads", self.threads, low=1)
        if 0 < self.gpus < 1 and self.workers > 1:
            raise SettingError(
                f"gpus = {self.gpus!r}: two workers of one run cannot share a GPU (NCCL refuses); use 0 or whole GPUs"
            )


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When a run's state is written: at phase ends, and every ``every_steps`` steps or ``every_minutes`` minutes.

    The newest ``keep`` folders stay; with ``keep_generations`` also the one at each generation's end, which ``--from
    RUN@generation`` needs.
    """

    every_steps: int | None = None
    every_minutes: float | None = 10
    keep: int = 2
    keep_generations: bool = True

    def __post_init__(self) -> None:
        check_number("every_steps", self.every_steps, low=1)
        check_number("every_minutes", self.every_minutes, above=0)
        check_number("keep", self.keep, low=1)


LOOKS = ("name", "resources", "checkpoints", "tracking", "probes", "folder")
"""Settings that are no part of a run's identity: where it takes place, and who looks on."""
BOUNDS = ("since", "before")  # of a selection that may have no parameters; a module without any does not exist
PACKAGE = str(Path(__file__).parent)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run: what is learned, by which schedule, how, where, and from which seed.

    ``folder`` is where run folders are made; it must be visible to every node. ``probes`` look at the network on the
    way and change nothing.
    """

    name: str
    task: Task
    recipe: Recipe
    optim: Optim = Optim()
    engine: EngineSettings = EngineSettings()
    resources: Resources = Resources()
    checkpoints: Checkpoints = Checkpoints()
    tracking: Tracking = Tracking()
    probes: tuple[Probe, ...] = ()
    folder: str = "runs"
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, int):  # what it is instead, `prepare` says
            check_number("seed", self.seed, low=0, high=2**63 - 1)
        named = isinstance(self.name, str) and self.name and not self.name.startswith(".")
        if not named or any(not (c.isalnum() or c in "-_.") for c in self.name):
            raise SettingError(f"name = {self.name!r}: letters, digits, '-', '_' and '.' only, since it names a folder")

    @property
    def identity(self) -> str:
        """Name and hash of what differs from the defaults, less where it runs."""
        return f"{self.name}-{fingerprint(self, without=LOOKS)}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several schedules on the same model, data and budget of optimizer steps, over several seeds.

    ``arms`` are recipes by name, in the order of the table; the first is what the others are compared with. All else
    is ``base``'s.
    """

    name: str
    base: RunConfig
    arms: Mapping[str, Recipe]
    seeds: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        if len(self.arms) < 1 or not self.seeds:
            raise SettingError(f"a comparison needs arms and seeds: arms = {list(self.arms)!r}, seeds = {self.seeds!r}")
        if len(set(self.seeds)) < len(self.seeds):
            raise SettingError(f"seeds = {self.seeds!r}: each seed once")

    def runs(self) -> dict[tuple[str, int], RunConfig]:
        """One run's settings for each arm and seed, seed by seed, so that a comparison that is stopped has whole
        pairs.
        """
        return {
            (arm, seed): replace(self.base, name=f"{arm}-seed{seed}", recipe=recipe, seed=seed)
            for seed in self.seeds
            for arm, recipe in self.arms.items()
        }


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is known of a run before it starts: its plan, the model's layout and the optimizer's groups."""

    config: RunConfig
    plan: Plan
    slots: tuple[Slot, ...]
    groups: tuple[Group, ...]


def prepare(config: RunConfig) -> Prepared:
    """Check a run's settings as far as possible without starting anything, and compute its plan.

    Raises:
        SettingError: the first setting that cannot work, in one line.
    """
    check(config)
    try:
        divide_batch(config.engine, config.resources.workers)
    except SettingError as error:
        raise SettingError(f"engine.{error}") from None
    config.task.prepare()
    phases = _phases(config.recipe)
    for phase in phases:
        _check_offered(phase, config)
    plan = compute(
        phases,
        num_items=config.task.num_items("train"),
        batch=config.engine.batch,
        sizes=_store_sizes(phases, config.task),
        ask_at_least=getattr(config.task, "ask_at_least", 1),
    )
    skeleton = _skeleton(config)
    slots = layout(skeleton)
    selections = selections_of(plan)
    _check_labels(selections)
    if hasattr(config.recipe, "check_layers"):
        try:
            config.recipe.check_layers(slots)
        except SettingError as error:
            raise SettingError(f"recipe.{error}") from None
    for selection in selections:
        _check_selection(selection, slots, config, plan)
    _check_probes(config, slots, plan.total)
    for phase in plan.phases:
        _check_disjoint(phase, slots)
    ruled = {rule.select: None for phase in plan.phases for rule in phase.rules}
    touched = [getattr(op, "select", None) for phase in plan.phases for op in (*phase.entry, *phase.exit)]
    reset = {select: None for select in touched if select is not None}
    pairs = zip(plan.phases, plan.phases[1:], strict=False)
    keeps = any(after.optimizer == "keep" and (before.exit or after.entry) for before, after in pairs)
    groups = partition(
        slots,
        # a reset needs groups of its own only where the optimizer lives on: there step counts restart with moments
        [*ruled, *(reset if keeps else {})],
        decays=lambda slot: config.optim.decay == "all" or len(slot.shape) > 1,
        factor=_layer_factor(slots, config.optim.layer_decay, _new_modules(config.task, skeleton)),
    )
    check_module(skeleton, groups, config.engine)
    check_left(plan.phases, slots)
    _check_kernels(plan, config)
    _check_adopted(plan, skeleton)
    return Prepared(config=config, plan=plan, slots=slots, groups=groups)


def kernel_shares(plan: Plan) -> list[float]:
    """The shares of all masks of kernels in a plan."""
    operations = [op for phase in plan.phases for op in (*phase.entry, *phase.exit)]
    sources = [source for op in operations for source in (getattr(op, "keep", None), getattr(op, "source", None))]
    return sorted({source.share for source in sources if isinstance(source, KernelBlock)})


def _check_kernels(plan: Plan, config: RunConfig) -> None:
    """A network whose layers are wired so that no block of kernels is closed is refused here, not at a boundary; one
    that gives no slim network here, not by `llf-ray slim` when everything is trained, where its recipe wants one.
    """
    example = getattr(config.task, "example", None)
    for share in kernel_shares(plan) if example is not None else ():
        network = config.task.initial(0)
        try:
            kept_channels(network, example(), share)  # type: ignore[misc]
        except ValueError as error:
            raise SettingError(f"a mask of kernels does not fit this network: {error}") from None
        if not getattr(config.recipe, "slim", False):
            continue
        try:
            extract(network, example(), share)  # type: ignore[misc]
        except ValueError as error:
            raise SettingError(f"recipe.slim = True: {error}; recipe.slim=False trains it all the same") from None


def _check_adopted(plan: Plan, network: torch.nn.Module) -> None:
    """Weights of other runs are there, and of the same network."""
    for phase in plan.phases:
        for operation in (*phase.entry, *phase.exit):
            if isinstance(operation, Adopt):
                try:
                    same_network(network, FromRun(run=operation.run))
                except (ValueError, FileNotFoundError) as error:
                    where = f"phase {phase.name!r} of generation {phase.generation}: {operation.label!r}"
                    raise SettingError(f"{where}: {error}") from None


def _phases(recipe: Recipe) -> tuple[Phase, ...]:
    """A recipe's phases; a mistake in a user's own recipe is one line, too."""
    try:
        return recipe.plan()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        outside = [one for one in frames if not one.filename.startswith((PACKAGE, "<"))]
        if isinstance(error, SettingError) and not outside:  # one of ours, which names its settings
            raise
        place, kind = (outside or frames)[-1], "" if isinstance(error, SettingError) else f"{type(error).__name__}: "
        raise SettingError(
            f"recipe: {type(recipe).__name__}.plan() fails: {kind}{' '.join(str(error).split())}{accepted(error)} "
            f"({Path(place.filename).name}:{place.lineno})"
        ) from error


def _skeleton(config: RunConfig) -> torch.nn.Module:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return config.task.skeleton()


def _check_selection(selection: Selection, slots: Sequence[Slot], config: RunConfig, plan: Plan) -> None:
    """A selection is built by the recipe: name the recipe's settings that hold the layer which the model lacks, or that
    bound a group without parameters; where no setting does, the operation or rule that selects it.
    """
    try:
        resolve(selection, slots)
    except SettingError as error:
        bounds = [value for key, value in flatten(selection).items() if key.rpartition(".")[2] in BOUNDS]
        empty = {repr(value) for value in bounds} if "matches no parameter" in str(error) else set()
        kinds = get_type_hints(type(config.recipe))
        settings = {
            key: value
            for key, value in flatten(config.recipe, "recipe.").items()
            if isinstance(value, str | int)
            and kinds.get(key.removeprefix("recipe.")) is not int  # a number of something
        }
        keys = [
            f"{key} = {value!r}"
            for key, value in settings.items()
            if f"layer {value!r} " in str(error) or repr(value) in empty
        ]
        raise SettingError(f"{', '.join(keys) or _user_of(selection, plan)}: {error}") from None


def _user_of(selection: Selection, plan: Plan) -> str:
    """The first operation or rule of a plan that has the selection, with its phase."""
    users = (
        f"phase {phase.name!r} of generation {phase.generation}: {what}"
        for phase in plan.phases
        for what, select in (
            *((repr(op.label), getattr(op, "select", None)) for op in (*phase.entry, *phase.exit)),
            *((f"the rule for {rule.select.label!r}", rule.select) for rule in phase.rules),
        )
        if select == selection
    )
    return next(users)


def _check_labels(selections: Sequence[object]) -> None:
    by_label: dict[str, object] = {}
    for selection in selections:
        label = selection.label  # type: ignore[attr-defined]
        if by_label.setdefault(label, selection) != selection:
            raise SettingError(f"two different groups are called {label!r}: {by_label[label]!r} and {selection!r}")
        if label == "rest":
            raise SettingError("no group may be called 'rest': that is every parameter without a rule")


def _check_offered(phase: Phase, config: RunConfig) -> None:
    """What a plan can say and this task does not do, or not with these workers."""
    task: Any = config.task
    where = f"phase {phase.name!r} of generation {phase.generation}"
    deeds = [op for op in (*phase.entry, *phase.exit) if isinstance(op, Generate | Pass)]
    needs = {
        **{repr(op.label): "generate" if isinstance(op, Generate) else "run_pass" for op in deeds},
        **({f"data from {phase.data.source!r}": "stored_batches"} if phase.data.source != "task" else {}),
        **({f"objective {phase.objective.kind!r}": phase.objective.kind} if phase.objective.kind != "task" else {}),
    }
    for wanted, method in needs.items():
        if not hasattr(task, method):
            raise SettingError(f"{where}: {wanted} needs a task that offers it, and {type(task).__name__} does not")
    try:
        for op in deeds:
            task.store_size(op.what) if isinstance(op, Generate) else task.check_pass(op)
        batch, micro = batch_of(config.engine, config.resources.workers, phase)
        if phase.data.source == "task" and hasattr(task, "check_batch"):
            task.check_batch(batch, micro)
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from None


def batch_of(engine: EngineSettings, workers: int, phase: Phase) -> tuple[int, int]:
    """Items of one of the phase's optimizer steps, and of one micro-batch of a worker; every phase has the run's number
    of micro-batches.
    """
    if phase.data.batch is None:
        return engine.batch, divide_batch(engine, workers)[0]
    own = replace(engine, batch=phase.data.batch, micro_batch=None, accumulation=divide_batch(engine, workers)[1])
    return own.batch, divide_batch(own, workers)[0]


def _store_sizes(phases: Sequence[Phase], task: Any) -> dict[str, int]:
    """Items of every data store that the phases make."""
    made = [op for phase in phases for op in (*phase.entry, *phase.exit) if isinstance(op, Generate)]
    return {op.store: task.store_size(op.what) for op in made}


def _check_disjoint(phase: Phase, slots: Sequence[Slot]) -> None:
    owner: dict[str, str] = {}
    for rule in phase.rules:
        for name in resolve(rule.select, slots):
            if name in owner:
                raise SettingError(
                    f"phase {phase.name!r} of generation {phase.generation}: {name!r} is in two rules, "
                    f"{owner[name]!r} and {rule.select.label!r}"
                )
            owner[name] = rule.select.label


def _check_probes(config: RunConfig, slots: Sequence[Slot], total: int) -> None:
    if config.probes and not hasattr(config.task, "pairs"):
        raise SettingError(f"probes: {type(config.task).__name__} offers no inputs with classes to probe")
    steps: dict[str, int] = {}
    for number, probe in enumerate(config.probes):
        if probe.every > total:
            raise SettingError(f"probes.{number}.every = {probe.every}: the run has {total} optimizer steps")
        last = total - total % probe.every
        for name in probe.needs:
            if probe.snapshots[name] >= last:
                raise SettingError(
                    f"probes.{number}.snapshots.{name} = {probe.snapshots[name]}: the run has {total} optimizer steps "
                    f"and is probed last after {last}"
                )
        for name, step in probe.snapshots.items():
            if steps.setdefault(name, step) != step:
                raise SettingError(
                    f"probes.{number}.snapshots.{name} = {step}: another probe takes it at {steps[name]}"
                )
        for perturbation in probe.perturbations:
            for operation in perturbation.operations:
                try:
                    resolve(operation.select, slots)
                except SettingError as error:
                    raise SettingError(f"probes.{number}: perturbation {perturbation.name!r}: {error}") from None


def _new_modules(task: Any, skeleton: torch.nn.Module) -> tuple[str, ...]:
    return task.new_modules(skeleton) if hasattr(task, "new_modules") else ()


def _layer_factor(slots: Sequence[Slot], decay: float | None, new: Sequence[str] = ()) -> Callable[[Slot], float]:
    """Layer-wise learning-rate decay: the last layer keeps the rate, each layer below has ``decay`` times the one
    above. ``new`` modules have the full rate wherever they are: no pretrained weights are spared in them.

    Layers are the network's blocks (`llf_ray.forget.groups.block_of`); what lies in front of the first block (stem,
    tokens, positions) is one layer, and what lies behind the last one (normaliser, head) is one. A network without
    blocks has its convolution and linear layers. Blocks of new modules are not counted.
    """
    if decay is None:
        return lambda slot: 1.0
    inside = tuple(f"{module}." for module in new)
    weights = [slot for slot in slots if slot.kind != "statistic"]
    counted = [slot for slot in weights if not slot.name.startswith(inside)]
    depths = _depths(counted)
    last = max(depths.values())
    ends_in_layer = bool(block_of(counted[-1].name)) or not any(block_of(slot.name) for slot in counted)
    if len(counted) < len(weights) and ends_in_layer:
        last += 1  # the new head is a layer of its own, where no normaliser lies in front of it
    return lambda slot: 1.0 if slot.name.startswith(inside) else decay ** (last - depths[slot.name])


def _depths(slots: Sequence[Slot]) -> dict[str, int]:
    """The layer of each entry, counted from the input. What lies between two blocks belongs to the one before it."""
    blocks = [block_of(slot.name) for slot in slots]
    if not any(blocks):
        return {slot.name: max(0, slot.count - 1) for slot in slots}
    final = max(place for place, block in enumerate(blocks) if block)
    numbers: dict[str, int] = {}
    depths, here = {}, 0
    for place, (slot, block) in enumerate(zip(slots, blocks, strict=True)):
        here = numbers.setdefault(block, len(numbers) + 1) if block else here
        depths[slot.name] = here if place <= final else len(numbers) + 1
    return depths


def group_labels(phase: Phase, groups: Sequence[Group]) -> dict[str, str]:
    """Label of the rule that each optimizer group follows in a phase, by group name ('rest' without a rule)."""
    ruled = [rule.select.label for rule in phase.rules]
    return {group.name: next((label for label in ruled if label in group.labels), "rest") for group in groups}


def group_rules(phase: Phase, groups: Sequence[Group], optim: Optim) -> dict[str, GroupRule]:
    """What each optimizer group does in a phase, by group name."""
    rules = {rule.select.label: rule for rule in phase.rules}
    result = {}
    for group, label in zip(groups, group_labels(phase, groups).values(), strict=True):
        rule = rules.get(label)
        decay = optim.weight_decay if rule is None or rule.weight_decay is None else rule.weight_decay
        result[group.name] = GroupRule(
            direction=rule.direction if rule else 1.0,
            lr=optim.lr * (rule.lr if rule else 1.0),
            weight_decay=decay if group.decay else 0.0,
            clip=rule.clip if rule else None,
        )
        assert math.isfinite(result[group.name].lr)
    return result
