"""The engine over many workers: DeepSpeed ZeRO 0 to 3. The only file that imports deepspeed.

DeepSpeed moves gradients, partitions and copies; the base optimizer inside it is ours and is told directions by a
hook, and every read, write and save goes to the tensors that this optimizer steps. DeepSpeed's own setters are not
used: none of them reaches master and copy alike at every stage. Where each stage keeps things (0.19):

====  =========================  =================================================  ==============================
ZeRO  what the optimizer steps   where a parameter lies in it                       the module computes with
====  =========================  =================================================  ==============================
0     the parameter (fp32)       all of it                                          the same tensor
0     its fp32 clone (bf16)      all of it                                          a rounded copy
1, 2  a flat part of the group   ``_hp_mapping`` of the parameter                   a full copy in a flat buffer
3     a flat part of each        ``grad_position`` of the parameter, rank by rank   what is gathered from ``ds_tensor``
====  =========================  =================================================  ==============================
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import chain
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llf_ray.engine.base import Batch, EngineSettings, Loss, Optim, divide_batch
from llf_ray.engine.direct import make_optimizer
from llf_ray.engine.precision import adapt
from llf_ray.engine.sharded import Shard, ShardedEngine, Slab, prepare, same_bits
from llf_ray.engine.team import Team
from llf_ray.forget.groups import Group

__all__ = ["ZeroEngine"]

PERSISTENT = 100_000  # ZeRO-3 keeps parameters of at most so many entries whole on every rank (DeepSpeed's own default)
# Entries that are reduced in one message. On CPUs small buffers come from memory that is mapped already: with 4 MB
# ones a ResNet18 step takes a tenth less time than with one for all. GPUs keep their buffers and want long messages.
BUCKET = {"cpu": 1_000_000}
LONG_BUCKET = 25_000_000
LARGE = 1 << 18  # entries of a gradient that is worth a message of its own: a small network wants one message


class _Learner(nn.Module):
    """What DeepSpeed wraps: a module whose forward is the loss of one batch.

    So a loss may call the model as often and in whatever parts it likes, and DeepSpeed sees one forward that gives
    one scalar. The work is an attribute, not an argument: DeepSpeed's hooks would look for tensors inside of it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.work: tuple[Loss, Batch] | None = None

    def forward(self) -> Tensor:
        assert self.work is not None
        loss, batch = self.work
        return loss(self.model, batch)


class _Exchange:
    """The mean of gradients over ranks, of large ones begun as soon as they are there, while backward goes on.

    In place of DeepSpeed's own exchange at stage 0 in fp32 on CPUs, which begins behind backward and copies everything
    into buckets and out again: with it a ResNet18 step on two cores took a tenth more time than PyTorch's DDP.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], team: Team, boundary: Callable[[], bool], *, early: bool
    ) -> None:
        self._parameters, self._team, self._boundary = parameters, team, boundary
        # messages go out in one order on every rank, about that of backward: which gradients come, and when, may differ
        self._large = [parameter for parameter in reversed(parameters) if parameter.numel() >= LARGE]
        self._small = [parameter for parameter in parameters if parameter.numel() < LARGE]
        self._there: set[nn.Parameter] = set()
        self._begun: list[Any] = []
        self.hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in (self._large if early else ())]

    def _arrived(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        if self._boundary():
            if parameter in self._there:
                raise RuntimeError("a parameter got its gradient in two parts: set engine.checkpoint_gradients")
            self._there.add(parameter)
            while len(self._begun) < len(self._large) and self._large[len(self._begun)] in self._there:
                self._begin()

    def _begin(self) -> None:
        gradient = self._large[len(self._begun)].grad
        assert gradient is not None
        self._begun.append(dist.all_reduce(_dense(gradient), async_op=True))

    def __call__(self, *_: Any, **__: Any) -> None:
        """Every rank calls, behind each backward pass: nothing until the last micro-batch of a step."""
        if not self._boundary():
            return
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        while len(self._begun) < len(self._large):
            self._begin()
        small = [parameter.grad for parameter in self._small if parameter.grad is not None]
        if small:
            message = self._team.total(torch.cat([_dense(gradient).reshape(-1) for gradient in small]))
            for gradient, part in zip(small, message.split([gradient.numel() for gradient in small]), strict=True):
                dense = _dense(gradient)
                dense.copy_(part.view(dense.shape))
        for handle in self._begun:
            handle.wait()
        self._begun.clear()
        self._there.clear()
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, 1.0 / self._team.size)


def _dense(gradient: Tensor) -> Tensor:
    """A contiguous view for a message; images' layout is one of channels last."""
    return gradient if gradient.is_contiguous() else gradient.permute(0, 2, 3, 1)


class ZeroEngine(ShardedEngine):
    """DeepSpeed ZeRO at ``settings.stage``, in the process group that is already there."""

    def __init__(
        self, module: nn.Module, groups: Sequence[Group], optim: Optim, settings: EngineSettings, team: Team
    ) -> None:
        """Every rank calls, with equal weights: take over ``module``, built in fp32, and move it to the team's device.

        Raises:
            SettingError: a batch, a group or a model that does not fit the settings.
        """
        micro_batch, accumulation = divide_batch(settings, team.size)
        prepare(module, groups, settings)
        deepspeed = _deepspeed(team)
        low = settings.precision == "bf16"
        self._parameters = dict(module.named_parameters())
        shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        # DeepSpeed rounds the weights first and makes the masters from what is left: the fp32 values go in again below.
        exact = {name: p.detach().to("cpu", copy=True) for name, p in self._parameters.items()} if low else {}
        module.to(team.device)
        optimizer = make_optimizer(
            optim, [(group, [self._parameters[name] for name in group.parameters]) for group in groups]
        )
        self._learner: Any = _Learner(module)
        self._engine, *_ = deepspeed.initialize(
            args=SimpleNamespace(device_rank=team.device.index or 0),
            model=self._learner,
            optimizer=optimizer,
            config=_config(settings, micro_batch, accumulation, team, sum(shape.numel() for shape in shapes.values())),
        )
        self._reducer: _Exchange | None = None
        if settings.stage == 0 and not low and team.device.type == "cpu" and team.size > 1:
            self._reducer = _Exchange(
                list(self._parameters.values()),
                team,
                self._engine.is_gradient_accumulation_boundary,
                early=not settings.checkpoint_gradients,  # where a segment of the backward pass may run by itself
            )
            self._engine.allreduce_gradients = self._reducer
        elif settings.stage == 0:  # whose message size is an argument that DeepSpeed's own backward leaves as it is
            reduce = self._engine.allreduce_gradients
            self._engine.allreduce_gradients = partial(reduce, bucket_size=BUCKET.get(team.device.type, LONG_BUCKET))
        optimizer.state.clear()  # the wrapper of stage 0 in bf16 takes a step on zero gradients while it is built
        wrapper: Any = self._engine.optimizer
        if settings.channels_last and settings.stage == 0:  # flat buffers keep no strides: there the inputs' must do
            for tensor in (*self._parameters.values(), *chain.from_iterable(wrapper.fp32_groups if low else ())):
                if tensor.dim() == 4:  # not sooner: DeepSpeed's first broadcast wants dense rows
                    tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        slabs = _slabs(self._parameters, tuple(groups), wrapper, settings.stage, low, team)
        super().__init__(
            module=module,
            groups=groups,
            optimizer=optimizer,
            slabs=slabs,
            shapes=shapes,
            optim=optim,
            settings=settings,
            accumulation=accumulation,
            team=team,
            split=settings.stage > 0,
            copied=settings.stage > 0 or low,
        )
        self._hooks = adapt(
            module, dtype=torch.bfloat16 if low else torch.float32, channels_last=settings.channels_last
        )
        for name, value in exact.items():
            if team.size > 1:
                value = value.to(team.device)
                team.spread(value)
            self.write(name, value)
            if optim.averaged is not None:
                self.write(name, value, average=True)

    def _update(self, batches: Iterable[Batch], loss: Loss) -> Tensor:
        losses = []
        for batch in batches:
            self._learner.work = (loss, batch)
            value = self._engine()
            self._engine.backward(value)
            self._engine.step()  # counts micro-batches, and updates behind the last one
            losses.append(value.detach().float())
        self._learner.work = None
        assert len(losses) == self.accumulation, f"{len(losses)} micro-batches came, {self.accumulation} make a step"
        if not self._engine.was_step_applied():
            raise FloatingPointError("gradients are not finite: the step was not applied")
        return torch.stack(losses).mean()

    def _copy_in(self, name: str, value: Tensor) -> None:
        parameter: Any = self._parameters[name]
        if self.settings.stage < 3:
            parameter.data.copy_(value)
            return
        if (
            parameter.ds_status.name == "INFLIGHT"
        ):  # prefetched behind the last forward: what arrives would be the old value
            self._engine.optimizer.empty_partition_cache()
        if parameter.ds_status.name == "AVAILABLE":
            parameter.data.copy_(value)
        flat = value.reshape(-1)
        for start, part in self._copy_parts(name):
            part.copy_(flat[start : start + part.numel()])

    def _copy_parts(self, name: str) -> Iterator[tuple[int, Tensor]]:
        parameter: Any = self._parameters[name]
        if self.settings.stage < 3:
            yield 0, parameter.data.reshape(-1)
            return
        start, length = _share(parameter, self.team.rank)
        yield start, parameter.ds_tensor.data.reshape(-1)[:length]

    def _replica(self, name: str) -> Tensor | None:
        parameter: Any = self._parameters[name]
        if self.settings.stage == 3 and not (parameter.ds_persist and parameter.ds_status.name == "AVAILABLE"):
            return None
        value: Tensor = parameter.data
        return value

    def verify(self) -> None:
        """As every engine; at stage 3 also what each rank keeps whole, against its part."""
        super().verify()
        for name in self.names if self.settings.stage == 3 else ():
            whole = self._replica(name)
            if whole is None:
                continue
            for start, part in self._copy_parts(name):
                if not same_bits(whole.reshape(-1)[start : start + part.numel()], part):
                    raise RuntimeError(f"{name}: the module computes with other weights than the ranks keep")

    def _full_copy(self, name: str) -> Tensor | None:
        exact = self.settings.stage < 3 and self.settings.precision == "fp32"
        return self._parameters[name].detach() if exact else None

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Every rank calls: inside, the module's parameters hold their full values. Needs room for the whole model."""
        if self.settings.stage < 3:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(list(self._parameters.values())):
            yield

    def close(self) -> None:
        """Every rank calls: free what the engine holds; the module is not usable afterwards."""
        for hook in (*self._hooks, *(self._reducer.hooks if self._reducer else ())):
            hook.remove()
        self._engine.destroy()
        _forget_module(self._learner)
        self._optimizer.state.clear()
        self._engine = self._learner = self._reducer = None
        self._slabs, self._places, self._live, self._averages = (), {}, {}, None


def _deepspeed(team: Team) -> ModuleType:
    """Import and prepare DeepSpeed for the team's device: quiet, nothing compiled, the process group adopted."""
    os.environ.setdefault(
        "DS_ACCELERATOR", team.device.type
    )  # read when deepspeed is imported, hence no import at the top
    os.environ.setdefault("LOCAL_RANK", str(team.device.index or 0))
    import deepspeed
    import deepspeed.ops

    if team.device.type == "cpu":
        compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
        if compatible is not None:
            compatible["deepspeed_shm_comm"] = False  # else the first use on a machine compiles it, for minutes
    deepspeed.utils.logger.setLevel("ERROR")
    if not dist.is_initialized():
        if team.size > 1:
            raise RuntimeError("a team of several ranks needs its process group first")
        dist.init_process_group(
            "gloo" if team.device.type == "cpu" else "nccl",
            store=dist.HashStore(),
            rank=0,
            world_size=1,
        )
    deepspeed.init_distributed(dist_backend=dist.get_backend(), timeout=timedelta(minutes=30), verbose=False)
    return deepspeed


def _config(
    settings: EngineSettings, micro_batch: int, accumulation: int, team: Team, num_parameters: int
) -> dict[str, Any]:
    bucket = min(BUCKET.get(team.device.type, LONG_BUCKET), max(num_parameters, 1024))
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": settings.clip or 0.0,
        "bf16": {"enabled": settings.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": settings.stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket + bucket % 2,
            "overlap_comm": team.device.type == "cuda",
            "contiguous_gradients": True,
            "sub_group_size": 10**15,  # one flat tensor, and one step count, for each group
            "stage3_param_persistence_threshold": PERSISTENT,
            "stage3_prefetch_bucket_size": bucket,
        },
        "timers": {"throughput": {"enabled": False}},
    }


def _slabs(
    parameters: dict[str, nn.Parameter],
    groups: tuple[Group, ...],
    wrapper: Any,
    stage: int,
    low: bool,
    team: Team,
) -> list[Slab]:
    """What the base optimizer steps, by stage (see the table above)."""
    if stage == 0:
        masters = [
            wrapper.fp32_groups[i] if low else [parameters[n] for n in g.parameters] for i, g in enumerate(groups)
        ]
        return [
            Slab(tensor, group, (Shard(name, 0, tensor.numel()),))
            for group, tensors in zip(groups, masters, strict=True)
            for name, tensor in zip(group.parameters, tensors, strict=True)
        ]
    if stage < 3:
        # Its accessors would keep views of the state: they are not used here, and state is dropped to be made anew.
        wrapper._hp_optimizer_states_linked = True
        return [
            Slab(wrapper.single_partition_of_fp32_groups[i], group, tuple(_flat_shards(group, parameters)))
            for i, group in enumerate(groups)
        ]
    return [
        Slab(
            flat,
            groups[wrapper.sub_group_to_group_id[i]],
            tuple(_split_shards(i, groups, parameters, wrapper, team)),
        )
        for i, flat in enumerate(wrapper.fp32_partitioned_groups_flat)
    ]


def _flat_shards(group: Group, parameters: dict[str, nn.Parameter]) -> Iterator[Shard]:
    for name in group.parameters:
        place: Any = parameters[name]._hp_mapping  # type: ignore[attr-defined]
        if place is not None:
            here, there = place.lp_fragment_address, place.hp_fragment_address
            yield Shard(name, here.start, here.numel, there.start)


def _split_shards(
    number: int, groups: tuple[Group, ...], parameters: dict[str, nn.Parameter], wrapper: Any, team: Team
) -> Iterator[Shard]:
    for name in groups[wrapper.sub_group_to_group_id[number]].parameters:
        flat, offset, _ = wrapper.grad_position[wrapper.get_param_id(parameters[name])]
        start, length = _share(parameters[name], team.rank)
        if flat == number and length:
            yield Shard(name, start, length, offset)


def _share(parameter: Any, rank: int) -> tuple[int, int]:
    """Which entries of a ZeRO-3 parameter a rank keeps: (start, length), the padding of the last ranks left out."""
    part = parameter.partition_numel()
    start = min(rank * part, parameter.ds_numel)
    return start, min(part, parameter.ds_numel - start)


def _forget_module(learner: nn.Module) -> None:
    """DeepSpeed keeps every ZeRO-3 module on a global stack; without this no weights are freed between trainings."""
    from deepspeed.runtime.zero import parameter_offload

    stack = getattr(parameter_offload, "FWD_MODULE_STACK", [])
    stack[:] = [module for module in stack if module is not learner]
