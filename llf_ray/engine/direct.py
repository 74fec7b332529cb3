"""Directions inside a torch optimizer: what happens to gradients between reduction and update.

A hook in front of ``step`` reads ``direction`` and ``clip`` of each parameter group. It works on whatever the group
holds at that moment, parameters or flat pieces of them, because DeepSpeed steps one group at a time and swaps the
groups around each step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from llf_ray.engine.base import Optim
from llf_ray.engine.team import Team
from llf_ray.forget.groups import Group

__all__ = ["install_directions", "make_optimizer"]


def make_optimizer(optim: Optim, groups: list[tuple[Group, list[Tensor]]]) -> Optimizer:
    """A torch optimizer with one parameter group per `Group`, under the group's name, descending at the full rate."""
    parameter_groups = [
        {
            "params": tensors,
            "name": group.name,
            "lr": optim.lr * group.factor,
            "weight_decay": optim.weight_decay if group.decay else 0.0,
            "direction": 1.0,
            "clip": None,
        }
        for group, tensors in groups
    ]
    match optim.name:
        case "sgd" | "nesterov":
            return torch.optim.SGD(
                parameter_groups,
                lr=optim.lr,
                momentum=optim.momentum,
                nesterov=optim.name == "nesterov",
                fused=True,
            )
        case "adam":
            return torch.optim.Adam(parameter_groups, lr=optim.lr, betas=optim.betas, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameter_groups, lr=optim.lr, betas=optim.betas, fused=True)
        case "nadam":
            return torch.optim.NAdam(
                parameter_groups, lr=optim.lr, betas=optim.betas, decoupled_weight_decay=True, foreach=True
            )
        case "radam":
            return torch.optim.RAdam(
                parameter_groups, lr=optim.lr, betas=optim.betas, decoupled_weight_decay=True, foreach=True
            )
        case "rmsprop":
            return torch.optim.RMSprop(parameter_groups, lr=optim.lr, momentum=optim.momentum, foreach=True)
        case "lion":
            from timm.optim.lion import Lion  # timm takes seconds to import, and only this optimizer needs it

            return Lion(parameter_groups, lr=optim.lr, betas=optim.betas)


def install_directions(optimizer: Optimizer, team: Team, *, sharded: bool) -> None:
    """Make the optimizer obey ``direction`` and ``clip`` of its groups; ``sharded``: each rank steps pieces."""

    def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            _direct(group, team, sharded)

    optimizer.register_step_pre_hook(before_step)


def _direct(group: dict[str, Any], team: Team, sharded: bool) -> None:
    parameters = group["params"]
    if group["direction"] == 0:
        for parameter in parameters:
            parameter.grad = None  # torch skips it: neither weights nor moments nor step count move
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    if group["clip"] is not None:
        _clip(gradients, group["clip"], team if sharded else None)
    if group["direction"] < 0:
        torch._foreach_neg_(gradients)


def _clip(gradients: list[Tensor], limit: float, team: Team | None) -> None:
    """Scale one group's gradients as ``torch.nn.utils.clip_grad_norm_`` does, with no wait for the device."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if team is not None:
        norm = team.total(norm.square()).sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, scale)
