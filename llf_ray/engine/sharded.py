"""What every engine does with its weights and optimizer state, written once over slabs and shards.

A *slab* is a fp32 tensor that the base optimizer steps: a parameter itself, its fp32 master, or this rank's flat
partition of a whole group. A *shard* says which stretch of which parameter lies where in a slab. Moments have the
slab's shape, so one address finds weight, moments and average alike. Engines differ in how slabs come about, in how a
step is made, and in where the module's own copy of a weight lies when the slab is not that copy.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llf_ray.config import SettingError, nearest
from llf_ray.engine.base import Batch, Digest, EngineSettings, GroupRule, Loss, Optim, check_groups
from llf_ray.engine.digest import MODULUS, digest_of
from llf_ray.engine.direct import install_directions
from llf_ray.engine.pieces import Pieces, PiecesWriter
from llf_ray.engine.team import Team
from llf_ray.forget.edit import Change, Count
from llf_ray.forget.groups import Group

__all__ = ["Shard", "ShardedEngine", "Slab", "named_buffers", "prepare", "same_bits"]


@dataclass(frozen=True)
class Shard:
    """``length`` entries from ``start`` on of a flattened parameter, at ``offset`` in a flat slab.

    Without an offset the slab has the parameter's own shape.
    """

    name: str
    start: int
    length: int
    offset: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """These entries of a tensor with the slab's shape, 1-D, row-major: a view where strides allow, only to read."""
        if self.offset is None:
            return tensor.detach().reshape(-1)
        return tensor.detach()[self.offset : self.offset + self.length]

    def within(self, tensor: Tensor) -> Tensor:
        """These entries of a tensor with the slab's shape, as a view to write to; 1-D where the slab is flat."""
        return tensor.detach() if self.offset is None else tensor.detach()[self.offset : self.offset + self.length]

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Overwrite these entries of a tensor with the slab's shape."""
        target = self.within(tensor)
        target.copy_(values.view(target.shape))


@dataclass(frozen=True, eq=False)
class Slab:
    """A tensor that the base optimizer steps, the group it belongs to, and what of which parameter it holds here."""

    tensor: Tensor
    group: Group
    shards: tuple[Shard, ...]


def named_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that are saved with a model, in the model's order."""
    found: dict[str, Tensor] = {}
    for path, child in module.named_modules():
        for name, buffer in child.named_buffers(recurse=False):
            if name not in child._non_persistent_buffers_set:
                found[f"{path}.{name}" if path else name] = buffer
    return found


def prepare(module: nn.Module, groups: Sequence[Group], settings: EngineSettings) -> None:
    """Check what is asked of a module against it, and switch on what it offers itself.

    Raises:
        SettingError: groups that are no partition, a parameter that takes no gradient, no gradient checkpointing.
    """
    parameters = dict(module.named_parameters())
    check_groups(groups, tuple(parameters))
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            raise SettingError(
                f"parameter {name!r} takes no gradient: hold its group by direction 0, or make it a buffer"
            )
        if parameter.dtype != torch.float32:
            raise SettingError(
                f"parameter {name!r} is {parameter.dtype}: models are built in fp32, `precision` makes the copies"
            )
    if settings.checkpoint_gradients:
        _checkpoint_gradients(module)


def _checkpoint_gradients(module: nn.Module) -> None:
    problem = f"checkpoint_gradients = True: {type(module).__name__} has no gradient checkpointing"
    switch = getattr(module, "set_grad_checkpointing", None)
    if switch is None:
        raise SettingError(problem)
    try:
        switch(True)
    except AssertionError as error:  # how timm says that a model cannot
        raise SettingError(problem) from error


class ShardedEngine(ABC):
    """The engine protocol over slabs. Abstract: its two engines say where slabs come from and how a step is made."""

    team: Team
    module: nn.Module
    groups: tuple[Group, ...]
    names: tuple[str, ...]
    buffers: tuple[str, ...]

    def __init__(
        self,
        *,
        module: nn.Module,
        groups: Sequence[Group],
        optimizer: Optimizer,
        slabs: Sequence[Slab],
        shapes: Mapping[str, torch.Size],
        optim: Optim,
        settings: EngineSettings,
        accumulation: int,
        team: Team,
        split: bool,
        copied: bool,
    ) -> None:
        """``split``: a slab is this rank's part of its group; ``copied``: the module computes with copies of slabs."""
        self.team, self.module, self.groups = team, module, tuple(groups)
        self.names, self.buffers = tuple(shapes), tuple(named_buffers(module))
        self.optim, self.settings, self.accumulation = optim, settings, accumulation
        self._optimizer, self._slabs, self._shapes = optimizer, tuple(slabs), dict(shapes)
        self._split, self._copied = split, copied
        self._places: dict[str, list[tuple[int, Shard]]] = {name: [] for name in self.names}
        for number, slab in enumerate(self._slabs):
            for shard in slab.shards:
                self._places[shard.name].append((number, shard))
        self._group_of = {name: group for group in self.groups for name in group.parameters}
        self._rules = {
            group.name: GroupRule(lr=optim.lr, weight_decay=optim.weight_decay if group.decay else 0.0)
            for group in self.groups
        }
        self._masks: dict[str, Tensor] = {}
        # by slab tensor (tensors hash by identity): all bits set where live, none where held, to be joined by AND with
        # a weight's own, at the speed of a copy; torch fills under a boolean mask at a sixth of it on a CPU
        self._live: dict[Tensor, Tensor] = {}
        self._averaging = False
        self._averages: list[Tensor] | None = None
        self._buffer_averages: dict[str, Tensor] = {}
        if optim.averaged is not None:
            self._averages = [slab.tensor.detach().clone() for slab in self._slabs]
            self._buffer_averages = {name: buffer.clone() for name, buffer in named_buffers(module).items()}
        install_directions(optimizer, team, sharded=split)
        optimizer.register_step_post_hook(self._after_update)

    # ------------------------------------------------------------------------------------ what an engine has to say

    @abstractmethod
    def _update(self, batches: Iterable[Batch], loss: Loss) -> Tensor:
        """Gradients of all micro-batches, reduction, base optimizer, copies; the local mean loss."""

    @abstractmethod
    def _copy_in(self, name: str, value: Tensor) -> None:
        """Overwrite the module's copy of a parameter with a full fp32 value, where the module computes with copies."""

    @abstractmethod
    def _copy_parts(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """What this rank holds of the module's copy: (flat start, 1-D entries)."""

    @abstractmethod
    def _replica(self, name: str) -> Tensor | None:
        """The module's copy where every rank has all of it; None where ranks have parts."""

    @abstractmethod
    def _full_copy(self, name: str) -> Tensor | None:
        """The full master where this rank has it, or a copy of equal bits; None where it takes a collective."""

    @abstractmethod
    def close(self) -> None:
        """Free what the engine holds."""

    # ----------------------------------------------------------------------------------------------------- stepping

    def step(self, batches: Iterable[Batch], loss: Loss) -> Tensor:
        """Every rank calls: one optimizer step over this rank's micro-batches; their mean loss here, detached."""
        assert not self._averaging, "no step while the module carries averaged weights"
        result = self._update(batches, loss)
        self._average()
        return result

    @torch.no_grad()
    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Behind the base optimizer's step and in front of DeepSpeed's copies: what is held goes back to zero."""
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if tensor in self._live:
                    self._zero_held(tensor)

    def _zero_held(self, tensor: Tensor) -> None:
        live = self._live[tensor]
        for value in (tensor.detach(), *self._moments_of(tensor).values()):
            value.view(torch.int32).bitwise_and_(live)

    @torch.no_grad()
    def _average(self) -> None:
        if self._averages is None:
            return
        weight = 1.0 - float(self.optim.averaged or 0.0)
        torch._foreach_lerp_(self._averages, [slab.tensor.detach() for slab in self._slabs], weight)
        for name, buffer in named_buffers(self.module).items():
            if buffer.is_floating_point():
                self._buffer_averages[name].lerp_(buffer, weight)
            else:
                self._buffer_averages[name].copy_(buffer)

    # -------------------------------------------------------------------------------------------- rules and rates

    def set_rules(self, rules: Mapping[str, GroupRule]) -> None:
        """Every rank calls: start a phase, with one rule a group. Moments stay as they are."""
        self._check_group_names(rules)
        for group in self.groups:
            rule = rules[group.name]
            self._rules[group.name] = rule
            settings = self._optimizer_group(group)
            settings["direction"] = float(rule.direction)
            settings["clip"] = rule.clip
            settings["weight_decay"] = rule.weight_decay if group.decay else 0.0
        self.set_rates({group.name: 1.0 for group in self.groups})

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """The curve's value per group for the next step: rate = lr x factor x |direction| x value."""
        self._check_group_names(rates)
        for group in self.groups:
            rule = self._rules[group.name]
            self._optimizer_group(group)["lr"] = rule.lr * group.factor * abs(rule.direction) * rates[group.name]

    def _optimizer_group(self, group: Group) -> dict[str, Any]:
        return next(found for found in self._optimizer.param_groups if found["name"] == group.name)

    def _check_group_names(self, given: Mapping[str, Any]) -> None:
        names = {group.name for group in self.groups}
        if set(given) != names:
            wrong = sorted(set(given) ^ names)[0]
            raise SettingError(f"group {wrong!r}: one value for each of {sorted(names)} is needed, and no other")

    # ------------------------------------------------------------------------------------------ reading and writing

    @torch.no_grad()
    def read(self, name: str, *, average: bool = False, copy: bool = True) -> Tensor:
        """Every rank calls: the full value, of the fp32 master where there is one.

        Without ``copy`` it may be the engine's own memory: only to look at, until the next write or step.
        """
        if name in self.buffers:
            value = self._buffer(name, average).detach()
        else:
            self._check_name(name)
            full = None if average else self._full_copy(name)
            if full is None and self._split:
                return self._collected(name, self._tensors(average))
            value = self._own(name, self._tensors(average)) if full is None else full.detach()
        # rows are dense in either case: what an operation computes must not depend on how this engine keeps them
        return value.clone(memory_format=torch.contiguous_format) if copy else value.contiguous()

    def _own(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """Where nothing is split: the tensor itself, in the parameter's shape."""
        number, shard = self._places[name][0]
        return shard.of(tensors[number]).view(self._shapes[name])

    def _collected(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """Full value from everyone's shards: bits are summed as integers, so that -0.0 and NaN arrive as they are."""
        shape = self._shapes[name]
        if not self._split:
            return self._own(name, tensors).clone(memory_format=torch.contiguous_format)
        full = torch.zeros(math.prod(shape), dtype=torch.int32, device=self.team.device)
        for number, shard in self._places[name]:
            full[shard.start : shard.start + shard.length] = shard.of(tensors[number]).view(torch.int32)
        return self.team.total(full).view(torch.float32).view(shape)

    @torch.no_grad()
    def write(self, name: str, value: Tensor, *, average: bool = False) -> None:
        """Every rank calls with the same value: sets master and the module's copy. Held entries stay zero."""
        assert not self._averaging, "no write while the module carries averaged weights"
        if name in self.buffers:
            self._buffer(name, average).copy_(value.view(self._buffer(name, average).shape))
            return
        self._check_name(name)
        if value.shape != self._shapes[name]:
            raise ValueError(
                f"{name}: a value of shape {tuple(self._shapes[name])} is needed, not {tuple(value.shape)}"
            )
        value = value.detach().to(self.team.device, torch.float32)
        if name in self._masks:
            value = value.masked_fill(~self._masks[name].to(value.device), 0.0)
        flat = value.reshape(-1)
        tensors = self._tensors(average)
        for number, shard in self._places[name]:
            shard.put(tensors[number], flat[shard.start : shard.start + shard.length])
        if self._copied and not average:
            self._copy_in(name, value)

    def _tensors(self, average: bool) -> list[Tensor]:
        if not average:
            return [slab.tensor for slab in self._slabs]
        if self._averages is None:
            raise ValueError("there are no averaged weights: optim.averaged is not set")
        return self._averages

    def _buffer(self, name: str, average: bool) -> Tensor:
        if not average:
            return named_buffers(self.module)[name]
        if self._averages is None:
            raise ValueError("there are no averaged weights: optim.averaged is not set")
        return self._buffer_averages[name]

    def _check_name(self, name: str) -> None:
        if name not in self._places:
            near = nearest(name, (*self.names, *self.buffers))
            raise ValueError(f"parameter {name!r} does not exist" + (f"; did you mean {near!r}?" if near else ""))

    @torch.no_grad()
    def tally(self, names: Sequence[str], count: Count) -> Tensor:
        """Every rank calls: the sum over all ranks of a count of their parts of these tensors, on the team's device.

        Of what all ranks hold whole each counts an equal part. Every count is a tensor of whole numbers of one shape.
        """
        total = count(names[0], 0, torch.empty(0, device=self.team.device))
        for name in names:
            for start, part in self._parts(name):
                total = total + count(name, start, part)
        return self.team.total(total)

    def _parts(self, name: str) -> list[tuple[int, Tensor]]:
        """What this rank answers for of a tensor: (flat start, 1-D entries)."""
        if name in self.buffers:
            return [(0, self._buffer(name, False).detach().reshape(-1))] if self.team.rank == 0 else []
        self._check_name(name)
        return [(shard.start, shard.of(self._slabs[number].tensor)) for number, shard in self._owned(name)]

    @torch.no_grad()
    def where(self, name: str, test: Change) -> Tensor:
        """Every rank calls: a full boolean mask on the CPU, from a test of single entries on the ranks' parts."""
        if name in self.buffers or not self._split or self._full_copy(name) is not None:
            value = self.read(name, copy=False)  # which is all here
            return test(value.reshape(-1)).view(value.shape).cpu()
        self._check_name(name)
        shape = self._shapes[name]
        found = torch.zeros(math.prod(shape), dtype=torch.uint8, device=self.team.device)
        for number, shard in self._places[name]:
            found[shard.start : shard.start + shard.length] = test(shard.of(self._slabs[number].tensor))
        return self.team.total(found).bool().view(shape).cpu()

    # ------------------------------------------------------------------------------------------------- constraints

    @torch.no_grad()
    def hold_at_zero(self, masks: Mapping[str, Tensor]) -> None:
        """Every rank calls: keep entries where a full boolean mask is False at zero. ``{}`` lifts all."""
        for name, mask in masks.items():
            self._check_name(name)
            if mask.dtype != torch.bool or mask.shape != self._shapes[name]:
                raise ValueError(f"mask of {name}: booleans of shape {tuple(self._shapes[name])} are needed")
        self._masks, self._live = dict(masks), {}
        for slab in self._slabs:
            if not any(shard.name in masks for shard in slab.shards):
                continue
            live = torch.full_like(slab.tensor, -1, dtype=torch.int32)
            for shard in slab.shards:
                if shard.name in masks:
                    part = masks[shard.name].reshape(-1)[shard.start : shard.start + shard.length]
                    shard.put(live, -part.to(live.device, torch.int32))
            self._live[slab.tensor] = live
            self._zero_held(slab.tensor)
        for name in self.names:
            if name in masks:
                self.write(name, self.read(name))
                if self._averages is not None:
                    self.write(name, self.read(name, average=True), average=True)

    # --------------------------------------------------------------------------------------------- optimizer state

    def _moments_of(self, tensor: Tensor) -> dict[str, Tensor]:
        """State of a slab that has its shape: moments."""
        state = self._optimizer.state.get(tensor, {})
        return {
            key: value
            for key, value in state.items()
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape == tensor.shape
        }

    def _counts_of(self, tensor: Tensor) -> dict[str, Any]:
        """State of a slab that is one number: step counts, running products."""
        state = self._optimizer.state.get(tensor, {})
        return {
            key: v for key, v in state.items() if isinstance(v, int | float) or (isinstance(v, Tensor) and v.dim() == 0)
        }

    def _slabs_of(self, group: Group) -> list[Slab]:
        return [slab for slab in self._slabs if slab.group.name == group.name]

    def _forget(self, group: Group) -> None:
        for slab in self._slabs_of(group):
            self._optimizer.state.pop(
                slab.tensor, None
            )  # absent state is fresh state: the next step makes it, as in a new optimizer

    def fresh_optimizer(self) -> None:
        """Every rank calls: all optimizer state as new."""
        for group in self.groups:
            self._forget(group)

    @torch.no_grad()
    def clear(self, groups: Sequence[str] = (), entries: Mapping[str, Tensor | None] | None = None) -> None:
        """Every rank calls: forget whole groups, step counts too; zero the moments of entries where a mask is True.

        None in place of a mask stands for all entries.
        """
        for name in groups:
            found = [group for group in self.groups if group.name == name]
            if not found:
                near = nearest(name, [group.name for group in self.groups])
                raise SettingError(f"group {name!r} does not exist" + (f"; did you mean {near!r}?" if near else ""))
            self._forget(found[0])
        for name, mask in (entries or {}).items():
            self._check_name(name)
            flat = None if mask is None else mask.to(self.team.device, torch.bool).reshape(-1)
            for number, shard in self._places[name]:
                for value in self._moments_of(self._slabs[number].tensor).values():
                    if flat is None:
                        shard.within(value).zero_()
                    else:
                        chosen = flat[shard.start : shard.start + shard.length]
                        shard.put(value, shard.of(value).masked_fill(chosen, 0.0))

    @torch.no_grad()
    def moments(self, name: str) -> Mapping[str, Tensor]:
        """Every rank calls: full moments of a parameter by the optimizer's own key."""
        self._check_name(name)
        own = self._slab_for(name)
        found: dict[str, Tensor] = {}
        for key in self._moments_of(own.tensor):
            values = [
                self._moments_of(slab.tensor).get(key, slab.tensor) for slab in self._slabs
            ]  # only this parameter's are read
            found[key] = self._collected(name, values)
        return found

    def counts(self, name: str) -> Mapping[str, float]:
        """Step counts and other scalars of the state that a parameter shares."""
        self._check_name(name)
        return {key: float(value) for key, value in self._counts_of(self._slab_for(name).tensor).items()}

    def _slab_for(self, name: str) -> Slab:
        """The slab with this parameter's state: its own, or that of its group, of which every rank has a part."""
        if self._places[name]:
            return self._slabs[self._places[name][0][0]]
        return self._slabs_of(self._group_of[name])[0]

    # ---------------------------------------------------------------------------------------------------- agreement

    @torch.no_grad()
    def sync_buffers(self) -> None:
        """Every rank calls: overwrite buffers and their averages with rank 0's, in one message a type."""
        if self.team.size == 1:
            return
        tensors = [*named_buffers(self.module).values(), *self._buffer_averages.values()]
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            message = torch.cat([tensor.reshape(-1) for tensor in alike]).to(self.team.device)
            self.team.spread(message)
            for tensor, part in zip(alike, message.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    @torch.no_grad()
    def digest(self) -> Digest:
        """Every rank calls: digest of fp32 parameters and buffers, after synchronising the buffers."""
        assert not self._averaging, "no digest while the module carries averaged weights"
        self.sync_buffers()
        shard = sum(digest_of(s.name, s.start, s.of(slab.tensor)) for slab in self._slabs for s in slab.shards)
        buffers = sum(digest_of(name, 0, buffer.reshape(-1)) for name, buffer in named_buffers(self.module).items())
        if not self._split:
            whole = (shard + buffers) % MODULUS
            return Digest(shard=whole if self.team.rank == 0 else 0, copy=whole)
        if self.team.rank == 0:
            shard += buffers
        replicas = ((name, self._replica(name)) for name in self.names)
        copy = sum(digest_of(name, 0, value.reshape(-1)) for name, value in replicas if value is not None)
        return Digest(shard=shard % MODULUS, copy=(copy + buffers) % MODULUS)

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether this rank's share of the weights and its buffers are all finite; ranks may differ."""
        values = [*(slab.tensor for slab in self._slabs), *named_buffers(self.module).values()]
        found = [torch.isfinite(value).all() for value in values if value.is_floating_point()]
        return bool(torch.stack(found).all()) if found else True

    @torch.no_grad()
    def verify(self) -> None:
        """Raise unless the module's copies equal this rank's masters, rounded, and entries that are held are zero."""
        for slab in self._slabs if self._copied else ():
            for shard in slab.shards:
                for start, part in self._copy_parts(shard.name):
                    found = part[shard.start - start : shard.start - start + shard.length]
                    if not same_bits(shard.of(slab.tensor).to(part.dtype), found):
                        raise RuntimeError(
                            f"{shard.name}: the module computes with other weights than the optimizer keeps"
                        )
        for tensor, live in self._live.items():
            if bool((tensor.detach().masked_fill(live != 0, 0.0) != 0).any()):
                raise RuntimeError("entries that are held at zero are not zero")

    # ----------------------------------------------------------------------------------------------------- averages

    @contextmanager
    def average_weights(self) -> Iterator[None]:
        """Every rank calls: inside, the module computes with the averaged weights and buffers."""
        self._tensors(average=True)  # raises where there are none
        self._exchange(enter=True)
        self._averaging = True
        try:
            yield
        finally:
            self._averaging = False
            self._exchange(enter=False)

    @torch.no_grad()
    def _exchange(self, *, enter: bool) -> None:
        buffers = named_buffers(self.module)
        for name, average in self._buffer_averages.items():
            _swap(buffers[name], average)
        if self._copied:
            for name in self.names:  # leaving: the masters round to the very bits that were there
                self._copy_in(name, self._collected(name, self._tensors(average=enter)))
            return
        for slab, average in zip(self._slabs, self._tensors(average=True), strict=True):
            _swap(slab.tensor.detach(), average)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Every rank calls: inside, the module's parameters hold their full values."""
        yield

    # ---------------------------------------------------------------------------------------------- save and load

    @torch.no_grad()
    def save(self, folder: Path) -> list[str]:
        """Every rank calls: write this rank's pieces of everything; its file names."""
        writer = self._weights_writer()
        for name in self.names:
            shape = tuple(self._shapes[name])
            for number, shard in self._owned(name):
                slab = self._slabs[number]
                if self._averages is not None:
                    writer.add("average", name, shard.start, shard.of(self._averages[number]), shape)
                for key, value in self._moments_of(slab.tensor).items():
                    writer.add(f"moment.{key}", name, shard.start, shard.of(value), shape)
                for key, count in self._counts_of(slab.tensor).items() if shard.start == 0 else ():
                    writer.add(f"count.{key}", name, 0, torch.as_tensor(count), shape)
        writer.note("numbers", self._plain_counts())
        writer.note("optimizer", type(self._optimizer).__name__)
        if self.team.rank == 0:
            for name, buffer in self._buffer_averages.items():
                writer.add("average", name, 0, buffer, tuple(buffer.shape))
        return [writer.write(folder, self.team.rank, self.team.size)]

    @torch.no_grad()
    def save_weights(self, folder: Path) -> list[str]:
        """Every rank calls: write this rank's pieces of weights and buffers only."""
        return [self._weights_writer().write(folder, self.team.rank, self.team.size)]

    def _weights_writer(self) -> PiecesWriter:
        assert not self._averaging, "no saving while the module carries averaged weights"
        self.sync_buffers()
        writer = PiecesWriter()
        for name in self.names:
            for number, shard in self._owned(name):
                writer.add(
                    "weight",
                    name,
                    shard.start,
                    shard.of(self._slabs[number].tensor),
                    tuple(self._shapes[name]),
                )
        if self.team.rank == 0:
            for name, buffer in named_buffers(self.module).items():
                writer.add("buffer", name, 0, buffer, tuple(buffer.shape))
        return writer

    def _owned(self, name: str) -> list[tuple[int, Shard]]:
        """What this rank writes of a parameter: its shards, or, where all hold all, an equal part by size."""
        if self._split or self._writer_rank[name] == self.team.rank:
            return self._places[name]
        return []

    @cached_property
    def _writer_rank(self) -> dict[str, int]:
        total = sum(math.prod(shape) for shape in self._shapes.values())
        ranks, reached = {}, 0
        for name, shape in self._shapes.items():
            ranks[name] = min(reached * self.team.size // max(total, 1), self.team.size - 1)
            reached += math.prod(shape)
        return ranks

    def _plain_counts(self) -> list[str]:
        """Keys of counts that the optimizer keeps as plain numbers, not as tensors."""
        return sorted(
            {
                key
                for slab in self._slabs
                for key, v in self._counts_of(slab.tensor).items()
                if not isinstance(v, Tensor)
            }
        )

    @torch.no_grad()
    def load(self, folder: Path, *, moments: bool = True) -> None:
        """Every rank calls: take over what any engine saved; in front of `set_rules`."""
        pieces = Pieces(folder)
        self._check_pieces(pieces)
        saved, own = pieces.notes.get("optimizer"), type(self._optimizer).__name__
        if moments and saved not in (None, own):
            raise ValueError(f"{folder}: moments of {saved} do not fit {own}; load without moments")
        masks, self._masks = self._masks, {}
        averaged = set(pieces.names("average"))
        for number, slab in enumerate(self._slabs):
            for shard in slab.shards:
                stop = shard.start + shard.length
                weight = pieces.slice("weight", shard.name, shard.start, stop)
                shard.put(slab.tensor, weight)
                if self._averages is not None:
                    kept = shard.name in averaged  # a run without averages starts them from its weights
                    average = pieces.slice("average", shard.name, shard.start, stop) if kept else weight
                    shard.put(self._averages[number], average)
        if self._copied:
            for name in self.names:
                self._copy_in(name, pieces.full("weight", name).to(self.team.device))
        for name, buffer in named_buffers(self.module).items():
            buffer.copy_(pieces.full("buffer", name))
            if name in self._buffer_averages:
                self._buffer_averages[name].copy_(pieces.full("average" if name in averaged else "buffer", name))
        self.fresh_optimizer()
        if moments:
            for slab in self._slabs:
                self._load_state(slab, pieces)
        if masks:
            self.hold_at_zero(masks)

    def _check_pieces(self, pieces: Pieces) -> None:
        buffers = named_buffers(self.module)
        for kind, shapes in (
            ("weight", self._shapes),
            ("buffer", {name: buffer.shape for name, buffer in buffers.items()}),
        ):
            saved = set(pieces.names(kind))
            for name, shape in shapes.items():
                if name not in saved:
                    near = nearest(name, saved)
                    raise ValueError(f"{pieces.folder}: no {kind} {name!r}" + (f"; it has {near!r}" if near else ""))
                if pieces.shape(name) != tuple(shape):
                    raise ValueError(
                        f"{pieces.folder}: {name} has shape {pieces.shape(name)}, the model's has {tuple(shape)}"
                    )
            if left := sorted(saved - set(shapes)):
                raise ValueError(f"{pieces.folder}: {kind} {left[0]!r} is not in the model")

    def _load_state(self, slab: Slab, pieces: Pieces) -> None:
        """Rebuild a slab's state. Of counts that differ within a new, wider group the furthest is taken."""
        members = [shard.name for shard in slab.shards] if not self._split else list(slab.group.parameters)
        state: dict[str, Any] = {}
        for kind in pieces.kinds():
            what, _, key = kind.partition(".")
            saved = set(pieces.names(kind))
            if what == "moment" and saved & set(members):
                state[key] = torch.zeros_like(slab.tensor, memory_format=torch.preserve_format).detach()
                for shard in slab.shards:
                    if shard.name in saved:
                        shard.put(
                            state[key],
                            pieces.slice(kind, shard.name, shard.start, shard.start + shard.length),
                        )
            elif what == "count" and saved & set(members):
                furthest = max((n for n in members if n in saved), key=lambda name: _furthest(pieces, name))
                state[key] = self._count(key, pieces.scalar(kind, furthest), pieces)
        if state:
            self._optimizer.state[slab.tensor] = state

    def _count(self, key: str, value: Tensor, pieces: Pieces) -> Any:
        if key in pieces.notes.get("numbers", []):
            return value.item()
        on_device = any(group.get("fused") or group.get("capturable") for group in self._optimizer.param_groups)
        return value.clone().to(self.team.device if on_device else "cpu")


def _furthest(pieces: Pieces, name: str) -> float:
    return float(pieces.scalar("count.step", name)) if name in pieces.names("count.step") else 0.0


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one floating type are equal bit for bit, NaN and the sign of zero included."""
    kind = torch.int32 if one.dtype == torch.float32 else torch.int16
    return torch.equal(one.view(kind), other.view(kind))


def _swap(one: Tensor, other: Tensor) -> None:
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)
