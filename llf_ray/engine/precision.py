"""How a module of low-precision weights takes fp32 inputs, gives fp32 outputs, and keeps batch statistics in fp32.

Done with hooks, removable, so that any timm model works as it is and tasks see fp32 on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

__all__ = ["adapt"]


def adapt(module: nn.Module, *, dtype: torch.dtype, channels_last: bool) -> list[RemovableHandle]:
    """Install the hooks that ``dtype`` and ``channels_last`` ask for on the module that tasks call; their handles."""
    handles: list[RemovableHandle] = []
    if dtype != torch.float32 or channels_last:
        take = _entering(dtype, channels_last)
        handles.append(
            module.register_forward_pre_hook(
                lambda _, args, kwargs: (_map(take, args), _map(take, kwargs)), with_kwargs=True
            )
        )
    if dtype == torch.float32:
        return handles
    handles.append(module.register_forward_hook(lambda _, args, output: _map(_widened, output)))
    for child in module.modules():
        if isinstance(child, _BatchNorm) and child.affine:
            # Batch normalisation of low-precision inputs wants its affine in the statistics' type, on CPU and CUDA
            # alike. First in line after the forward: under ZeRO-3 the engine's own hook must find its parameters back
            # in place.
            handles.append(child.register_forward_pre_hook(_widen_affine))
            handles.append(child.register_forward_hook(_restore_affine, prepend=True, always_call=True))
    return handles


def _entering(dtype: torch.dtype, channels_last: bool) -> Callable[[Tensor], Tensor]:
    def take(value: Tensor) -> Tensor:
        if value.dtype == torch.float32:
            value = value.to(dtype)
        if channels_last and value.dim() == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value

    return take


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.bfloat16 else value


def _map(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply to the tensors of nested tuples, lists and dictionaries; leave the rest."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(change, item) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_map(change, item) for item in value)
    if isinstance(value, dict):
        return {key: _map(change, item) for key, item in value.items()}
    return value


def _widen_affine(module: nn.Module, args: Any) -> None:
    kept = {name: module._parameters[name] for name in ("weight", "bias")}
    module.__dict__["_llf_kept_affine"] = kept
    for name, parameter in kept.items():
        if parameter is not None:
            module._parameters[name] = parameter.float()  # type: ignore[assignment]  # autograd passes through the cast


def _restore_affine(module: nn.Module, args: Any, output: Any) -> None:
    for name, parameter in module.__dict__.pop("_llf_kept_affine", {}).items():
        module._parameters[name] = parameter
