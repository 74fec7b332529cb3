"""The engine in one process, in plain torch: the reference for the others, and the whole engine on one device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from llf_ray.engine.base import Batch, EngineSettings, Loss, Optim, divide_batch
from llf_ray.engine.direct import make_optimizer
from llf_ray.engine.precision import adapt
from llf_ray.engine.sharded import Shard, ShardedEngine, Slab, prepare
from llf_ray.engine.team import Team
from llf_ray.forget.groups import Group

__all__ = ["LocalEngine"]


class LocalEngine(ShardedEngine):
    """One process. With one worker nothing is split, so every ``stage`` gives the same step."""

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[Group],
        optim: Optim,
        settings: EngineSettings,
        team: Team | None = None,
    ) -> None:
        """Take over ``module``, built in fp32, and move it to the team's device.

        Raises:
            SettingError: a batch, a group or a model that does not fit the settings.
        """
        team = team or Team.alone()
        if team.size != 1:
            raise ValueError(f"the local engine works alone, not in a team of {team.size}")
        _, accumulation = divide_batch(settings, team.size)
        prepare(module, groups, settings)
        module.to(team.device)
        if settings.channels_last:
            module.to(memory_format=torch.channels_last)
        self._parameters = dict(module.named_parameters())
        self._low = settings.precision == "bf16"
        masters: dict[str, Tensor] = dict(self._parameters)
        if self._low:
            masters = {
                name: parameter.detach().clone().requires_grad_() for name, parameter in self._parameters.items()
            }
            for parameter in self._parameters.values():
                parameter.data = parameter.data.to(torch.bfloat16)
        slabs = [
            Slab(masters[name], group, (Shard(name, 0, masters[name].numel()),))
            for group in groups
            for name in group.parameters
        ]
        super().__init__(
            module=module,
            groups=groups,
            optimizer=make_optimizer(
                optim, [(group, [masters[name] for name in group.parameters]) for group in groups]
            ),
            slabs=slabs,
            shapes={name: parameter.shape for name, parameter in self._parameters.items()},
            optim=optim,
            settings=settings,
            accumulation=accumulation,
            team=team,
            split=False,
            copied=self._low,
        )
        self._masters = masters
        self._hooks = adapt(
            module, dtype=torch.bfloat16 if self._low else torch.float32, channels_last=settings.channels_last
        )

    def _update(self, batches: Iterable[Batch], loss: Loss) -> Tensor:
        losses = []
        for batch in batches:
            value = loss(self.module, batch)
            (value / self.accumulation).backward()
            losses.append(value.detach().float())
        assert len(losses) == self.accumulation, f"{len(losses)} micro-batches came, {self.accumulation} make a step"
        for name, parameter in self._parameters.items():
            if (
                parameter.grad is None
            ):  # a parameter that the loss did not reach decays all the same, as in a flat partition
                parameter.grad = torch.zeros_like(parameter)
            if self._low:
                self._masters[name].grad, parameter.grad = parameter.grad.float(), None
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self._masters.values(), self.settings.clip)
        self._optimizer.step()
        for name, master in self._masters.items():
            master.grad = None
            if self._low:
                self._parameters[name].data.copy_(master.data)
        return torch.stack(losses).mean()

    def _copy_in(self, name: str, value: Tensor) -> None:
        self._parameters[name].data.copy_(value)

    def _copy_parts(self, name: str) -> Iterator[tuple[int, Tensor]]:
        yield 0, self._parameters[name].data.reshape(-1)

    def _replica(self, name: str) -> Tensor | None:
        return self._parameters[name].data

    def _full_copy(self, name: str) -> Tensor | None:
        return self._masters[name].detach()

    def close(self) -> None:
        """Remove the hooks. The module keeps its weights."""
        for hook in self._hooks:
            hook.remove()
        self._optimizer.state.clear()
