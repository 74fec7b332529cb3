"""What an engine is: its settings, the rules it follows per group, and the protocol that loop and operations use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from llf_ray.config import SettingError, check_number, nearest
from llf_ray.engine.team import Team
from llf_ray.forget.edit import Change, Count
from llf_ray.forget.groups import Group

__all__ = [
    "Batch",
    "Digest",
    "Engine",
    "EngineSettings",
    "GroupRule",
    "Loss",
    "Memory",
    "Optim",
    "bytes_per_worker",
    "divide_batch",
]

Batch = Any  # what a task's loss understands
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimizer. Only elementwise ones: ZeRO steps flat pieces of parameters, so shapes are not known to it.

    ``decay`` says whether biases and normalisers decay too (the papers' way) or only tensors of two or more axes.
    ``momentum`` is that of sgd and rmsprop, ``betas`` those of the others. ``layer_decay`` is the layer-wise
    learning-rate factor (per layer, towards the input); ``averaged`` the decay of an exponential moving average of
    the weights.
    """

    name: Literal["sgd", "nesterov", "adam", "adamw", "nadam", "radam", "rmsprop", "lion"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decay: Literal["all", "matrices"] = "all"
    layer_decay: float | None = None
    averaged: float | None = None

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("momentum", self.momentum, low=0, below=1)
        check_number("weight_decay", self.weight_decay, low=0)
        check_number("layer_decay", self.layer_decay, above=0, high=1)
        check_number("averaged", self.averaged, above=0, below=1)
        for place, beta in enumerate(self.betas):
            if not 0 <= beta < 1:
                raise SettingError(f"betas.{place} = {beta!r}: must be >= 0 and < 1")
        if self.name == "nesterov" and self.momentum == 0:
            raise SettingError("momentum = 0: nesterov needs a momentum above 0")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How a step is carried out. ``batch`` is the global batch of one optimizer step: all workers, all micro-batches.

    ``clip`` bounds the norm of the whole gradient, held groups included; `GroupRule.clip` bounds one group's.
    """

    stage: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    batch: int = 50
    micro_batch: int | None = None
    accumulation: int | None = None
    clip: float | None = None
    checkpoint_gradients: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_number("batch", self.batch, low=1)
        check_number("micro_batch", self.micro_batch, low=1)
        check_number("accumulation", self.accumulation, low=1)
        check_number("clip", self.clip, above=0)
        if self.micro_batch is not None and self.accumulation is not None:
            raise SettingError(
                f"micro_batch = {self.micro_batch} and accumulation = {self.accumulation}: set one, the other follows"
            )


def divide_batch(settings: EngineSettings, workers: int) -> tuple[int, int]:
    """The micro-batch of one worker and the number of them in a step: micro x accumulation x workers = batch.

    Raises:
        SettingError: the batch cannot be divided so; names the numbers that are allowed.
    """
    batch = settings.batch
    if batch % workers:
        near = sorted({batch // workers * workers, (batch // workers + 1) * workers} - {0})
        shown = " or ".join(str(n) for n in near)
        raise SettingError(f"batch = {batch}: {workers} workers need a multiple of {workers}, for example {shown}")
    share = batch // workers
    if settings.micro_batch is not None:
        if share % settings.micro_batch:
            raise SettingError(
                f"micro_batch = {settings.micro_batch}: must divide a worker's {share} items ({_divisors(share)})"
            )
        return settings.micro_batch, share // settings.micro_batch
    accumulation = settings.accumulation or 1
    if share % accumulation:
        raise SettingError(f"accumulation = {accumulation}: must divide a worker's {share} items ({_divisors(share)})")
    return share // accumulation, accumulation


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


@dataclass(frozen=True, kw_only=True)
class GroupRule:
    """What one group does in a phase.

    ``direction``: above 0 descends, 0 holds (weights, moments and step count stand still), -S ascends: the sign goes
    into the gradient, after reduction and global clipping, and S into the learning rate; decay keeps its own sign.
    ``lr`` is the peak rate in front of the curve, without S and without the group's layer-wise factor. ``clip``
    bounds the norm of this group's gradient.
    """

    direction: float = 1.0
    lr: float
    weight_decay: float = 0.0
    clip: float | None = None


@dataclass(frozen=True)
class Digest:
    """64-bit sums over entries: ``shard`` of what this rank owns, ``copy`` of what every rank holds in full.

    Shards of all ranks add up, modulo 2^64, to the model's, which compares between runs. Replicas must have equal
    copies; under ZeRO-3 these are buffers and the small parameters that are never taken apart.
    """

    shard: int
    copy: int


@runtime_checkable
class Engine(Protocol):
    """Owns weights, optimizer state and what a step does with them. One implementation a process layout, one contract.

    Weights are named as in the module, parameters first; values cross the border in fp32, in full, in their own
    shape. Every rank calls every method, in the same order, with the same arguments; only batches differ.
    """

    team: Team
    module: nn.Module
    groups: tuple[Group, ...]
    names: tuple[str, ...]
    buffers: tuple[str, ...]

    def step(self, batches: Iterable[Batch], loss: Loss) -> Tensor:
        """One optimizer step over this rank's micro-batches; their mean loss here, detached, no wait for the device.

        Raises:
            FloatingPointError: gradients are not finite and the step was not applied (where the engine looks).
        """
        ...

    def set_rules(self, rules: Mapping[str, GroupRule]) -> None:
        """Start a phase: one rule a group. Moments stay as they are."""
        ...

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """The learning-rate curve's value per group for the next step: rate = lr x factor x |direction| x value."""
        ...

    def read(self, name: str, *, average: bool = False, copy: bool = True) -> Tensor:
        """The full value; of the fp32 master where there is one. Buffers keep their type.

        Without ``copy`` it may be the engine's own memory: only to look at, until the next write or step.
        """
        ...

    def write(self, name: str, value: Tensor, *, average: bool = False) -> None:
        """Set the full value: seen by the next forward and kept by the next update. Entries held at zero stay zero."""
        ...

    def tally(self, names: Sequence[str], count: Count) -> Tensor:
        """The sum over all ranks of a count of their parts of these tensors: nothing is gathered."""
        ...

    def where(self, name: str, test: Change) -> Tensor:
        """A full boolean mask on the CPU, from a test of single entries on the ranks' parts."""
        ...

    def hold_at_zero(self, masks: Mapping[str, Tensor]) -> None:
        """Keep entries where a full boolean mask is False at zero: weights, averages, moments. ``{}`` lifts all."""
        ...

    def fresh_optimizer(self) -> None:
        """All optimizer state as new: no moments, step counts from zero."""
        ...

    def clear(self, groups: Sequence[str] = (), entries: Mapping[str, Tensor | None] | None = None) -> None:
        """Forget the state of whole groups, step counts too; zero the moments of entries where a full mask is True.

        None in place of a mask stands for all entries of the parameter.
        """
        ...

    def moments(self, name: str) -> Mapping[str, Tensor]:
        """Full moments of a parameter by the optimizer's own key; empty where there is no state yet."""
        ...

    def counts(self, name: str) -> Mapping[str, float]:
        """Step counts and other scalars of the state that a parameter shares; empty where there is no state yet."""
        ...

    def sync_buffers(self) -> None:
        """Overwrite every rank's buffers with rank 0's."""
        ...

    def digest(self) -> Digest:
        """Digest of fp32 parameters and (rank 0's, synchronised) buffers."""
        ...

    def is_finite(self) -> bool:
        """Whether this rank's share of the weights and its buffers are all finite; ranks may differ."""
        ...

    def verify(self) -> None:
        """Raise unless the low-precision copies equal the rounded masters and held entries are zero."""
        ...

    def average_weights(self) -> AbstractContextManager[None]:
        """Inside, the module computes with the averaged weights and buffers; for evaluation, no step inside."""
        ...

    def gathered(self) -> AbstractContextManager[None]:
        """Inside, the module's parameters hold their full values on every rank. A plain forward does not need it."""
        ...

    def save(self, folder: Path) -> list[str]:
        """Write this rank's pieces of weights, averages, buffers and optimizer state; their file names."""
        ...

    def save_weights(self, folder: Path) -> list[str]:
        """Write this rank's pieces of weights and buffers only."""
        ...

    def load(self, folder: Path, *, moments: bool = True) -> None:
        """Take over what any engine saved, under any stage, precision, grouping and number of workers.

        Raises:
            FileNotFoundError: no or not all pieces. ValueError: of another model, or moments of another optimizer.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds; the module is not usable afterwards."""
        ...


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of model state on one worker; activations, buckets and the framework come on top."""

    weights: int
    gradients: int
    masters: int
    moments: int
    averaged: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.masters + self.moments + self.averaged


NUM_MOMENTS = {
    "sgd": 1,
    "nesterov": 1,
    "adam": 2,
    "adamw": 2,
    "nadam": 2,
    "radam": 2,
    "rmsprop": 2,
    "lion": 1,
}


def bytes_per_worker(num_parameters: int, settings: EngineSettings, optim: Optim, workers: int) -> Memory:
    """Model state on one worker at a ZeRO stage: what is split is split evenly, padding left out.

    Stage 1 splits masters, moments and averages, stage 2 gradients too, stage 3 the weights too. Only stage 0 in fp32
    has no masters.
    """
    size, stage = (2 if settings.precision == "bf16" else 4), settings.stage
    share = -(-num_parameters // workers)
    owned = share if stage >= 1 else num_parameters
    has_masters = stage >= 1 or settings.precision == "bf16"
    num_moments = NUM_MOMENTS[optim.name]
    if optim.name in ("sgd", "rmsprop") and optim.momentum == 0:
        num_moments -= 1
    return Memory(
        weights=size * (share if stage == 3 else num_parameters),
        gradients=size * (share if stage >= 2 else num_parameters),
        masters=4 * owned if has_masters else 0,
        moments=4 * num_moments * owned,
        averaged=4 * owned if optim.averaged is not None else 0,
    )


def check_groups(groups: Sequence[Group], names: Sequence[str]) -> None:
    """Raise unless the groups are a partition of the parameters."""
    listed = [name for group in groups for name in group.parameters]
    for name in listed:
        if name not in names:
            near = nearest(name, names)
            raise SettingError(
                f"parameter {name!r} of a group does not exist" + (f"; did you mean {near!r}?" if near else "")
            )
    missing = [name for name in names if name not in set(listed)]
    if missing:
        raise SettingError(f"parameter {missing[0]!r} is in no group ({len(missing)} such)")
    if len(listed) != len(set(listed)) or len({group.name for group in groups}) != len(groups):
        raise SettingError("a parameter is in two groups, or two groups have one name")
