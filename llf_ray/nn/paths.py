"""Which weights of a masked network still lie on a path from its input to its output.

A filter whose inputs are all dead is constant, and one whose outputs nobody reads changes nothing: their live entries
count in a mask's sparsity and do no work. Found by watching the network at work, as synaptic flow does (Tanaka et al.
2020, arXiv:2006.05467): with positive weights where a mask is live and zeros where it is dead, without biases, with
normalisations that pass on what they are given, and a positive input. Then nothing cancels, what is zero is not
reached, and a weight whose gradient is zero does not reach the output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["effective"]

Layer = (nn.modules.conv._ConvNd, nn.Linear)
Norm = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
POOLS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.MaxPool1d: F.avg_pool1d,
    nn.MaxPool2d: F.avg_pool2d,
    nn.MaxPool3d: F.avg_pool3d,
}
ADAPTIVE: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.AdaptiveMaxPool1d: F.adaptive_avg_pool1d,
    nn.AdaptiveMaxPool2d: F.adaptive_avg_pool2d,
    nn.AdaptiveMaxPool3d: F.adaptive_avg_pool3d,
}


def effective(network: nn.Module, example: Tensor, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of each mask (True = live), the entries that lie on a path from input to output, as booleans.

    Exact for networks of convolutions, linear layers, normalisations, pooling, sums, joins, and activations that rise
    for positive values: an entry is effective if and only if removing it changes an output for almost all positive
    weights. In attention the paths through queries, keys and values all count. Tokens, positions and scales count as
    inputs. Values are set back between layers, so that no depth under- or overflows.

    Args:
        network: left as it is; needs memory for its weights, and twice as much again meanwhile, in fp32.
        example: an input with a batch axis; its values do not matter.
        masks: by parameter name; parameters without one are wholly live.
    """
    probe = copy.deepcopy(network).cpu().float().eval().requires_grad_(True)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in probe.named_parameters():
            parameter.copy_(_positive(parameter.shape, random))
            if name in masks:
                parameter.mul_(masks[name].cpu())
            elif name.endswith("bias"):
                parameter.zero_()
    with _watched(probe, random), torch.enable_grad():
        outputs = probe(_positive(example[:1].shape, random))
        torch.stack([_flow(output, random) for output in _tensors(outputs)]).sum().backward()
    return {name: _reached(probe.get_parameter(name), mask.cpu()) for name, mask in masks.items()}


def _reached(parameter: Tensor, mask: Tensor) -> Tensor:
    gradient = parameter.grad
    return mask & (gradient != 0) if gradient is not None else torch.zeros_like(mask)


def _positive(shape: torch.Size, random: torch.Generator) -> Tensor:
    """From 0.5 to 1.5, so that nothing that differs is equal by accident."""
    return torch.rand(shape, generator=random) + 0.5


class _Levelled(torch.autograd.Function):
    """Another positive number wherever there is one, forward and backward: only whether something arrives counts."""

    @staticmethod
    def forward(context: Any, values: Tensor, forth: Tensor, back: Tensor) -> Tensor:
        context.save_for_backward(back)
        return (values != 0) * forth

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (back,) = context.saved_tensors
        return (gradients[0] != 0) * back, None, None


def _flow(values: Tensor, random: torch.Generator) -> Tensor:
    return (values * _positive(values.shape, random)).sum()


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for output in outputs.values():
            yield from _tensors(output)
    elif isinstance(outputs, list | tuple):
        for output in outputs:
            yield from _tensors(output)


@contextmanager
def _watched(network: nn.Module, random: torch.Generator) -> Iterator[None]:
    """Layers set their outputs back, normalisations pass on, the largest of a window becomes all of it."""

    def hook(module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        if isinstance(module, Layer):
            return _Levelled.apply(output, _positive(output.shape, random), _positive(output.shape, random))
        if _is_norm(module):
            return given[0].clone()  # activations work in place
        return _mean_pooled(module, given[0])

    kinds = (*Layer, *POOLS, *ADAPTIVE)
    chosen = [module for module in network.modules() if isinstance(module, kinds) or _is_norm(module)]
    hooks = [module.register_forward_hook(hook) for module in chosen]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _is_norm(module: nn.Module) -> bool:
    plain = next(module.children(), None) is None
    return isinstance(module, Norm) or (plain and "norm" in type(module).__name__.lower())


def _mean_pooled(module: Any, values: Tensor) -> Tensor:
    """Which of a window is the largest depends on the weights; whether anything is in it does not."""
    for kind, mean in ADAPTIVE.items():
        if isinstance(module, kind):
            return mean(values, module.output_size)
    dilation = module.dilation if isinstance(module.dilation, tuple) else (module.dilation,)
    if any(step != 1 for step in dilation):  # of which there is no mean
        largest: Tensor = module.forward(values)
        return largest
    mean = next(mean for kind, mean in POOLS.items() if isinstance(module, kind))
    return mean(values, module.kernel_size, module.stride, module.padding, module.ceil_mode)
