"""Which channels reach which layer when every layer keeps only its first ones.

Found by watching a network at work, so that residual sums, concatenations, splits and pooling need no rules of their
own: every convolution and linear layer gives a one for what it keeps and a zero for the rest, normalisations pass on
what they are given, and each layer sees which of its inputs are alive.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llf_ray.nn.normaliser import without_normalisers
from llf_ray.nn.slim import Width, narrow

__all__ = ["Kept", "extract", "kept_channels"]

Layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OtherNorm = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True, eq=False)
class Kept:
    """Channels of one layer that are alive, as booleans; of a normalisation both are the same."""

    inputs: Tensor
    outputs: Tensor
    groups: int = 1

    @property
    def block(self) -> Tensor:
        """What of a weight is kept over its first two axes, (outputs, inputs / groups)."""
        if self.groups == 1:
            return self.outputs[:, None] & self.inputs[None, :]
        inputs = self.inputs.view(self.groups, -1)
        return self.outputs[:, None] & inputs.repeat_interleave(len(self.outputs) // self.groups, 0)


def kept_channels(network: nn.Module, example: Tensor, share: float) -> dict[str, Kept]:
    """What each layer keeps of its channels: the first ``ceil(share C)`` outputs, of the inputs those that are alive.

    The first layer sees all of the example's channels, the last one keeps all outputs; a depthwise convolution keeps
    what it is given. KELS, Taha et al. 2021 (arXiv:2103.05152), for any wiring.

    Args:
        network: left as it is; needs memory for its weights.
        example: an input with a batch axis.
        share: of the channels, above 0, at most 1.

    Raises:
        ValueError: a layer is used twice with different channels alive, or a group of a convolution gets fewer
            inputs than another.
    """
    probe = copy.deepcopy(network).eval()
    names: dict[nn.Module, str] = {
        module: name for name, module in probe.named_modules() if isinstance(module, (*Layer, *Norm, *OtherNorm))
    }
    order: list[nn.Module] = []
    found: dict[str, Kept] = {}

    def look(last: nn.Module | None) -> None:
        hooks = [module.register_forward_hook(pass_on(module, last)) for module in names]
        try:
            with torch.no_grad():
                probe(torch.ones_like(example))
        finally:
            for hook in hooks:
                hook.remove()

    def pass_on(module: nn.Module, last: nn.Module | None) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if isinstance(module, OtherNorm):
                return given[0]
            axis = -1 if isinstance(module, nn.Linear) else 1
            inputs = _alive(given[0], axis)
            if isinstance(module, Norm):
                _note(found, names[module], Kept(inputs, inputs))
                return given[0]
            order.append(module)
            groups = getattr(module, "groups", 1)
            outputs = _outputs(names[module], inputs, output.shape[axis], groups, 1.0 if module is last else share)
            _note(found, names[module], Kept(inputs, outputs, groups))
            shape = [1] * output.dim()
            shape[axis] = len(outputs)
            return outputs.to(output).view(shape).expand_as(output).clone()  # activations work in place

        return hook

    look(None)
    last = order[-1]
    order.clear()
    found.clear()
    look(last)
    return found


def _alive(values: Tensor, axis: int) -> Tensor:
    others = [place for place in range(values.dim()) if place != axis % values.dim()]
    return (values != 0).amax(others) if others else values != 0


def _outputs(name: str, inputs: Tensor, number: int, groups: int, share: float) -> Tensor:
    if groups > 1 and groups == len(inputs) == number:  # depthwise: each output is its own input's
        return inputs.clone()
    if groups > 1 and len(set(inputs.view(groups, -1).sum(1).tolist())) > 1:
        raise ValueError(f"{name}: its {groups} groups get different numbers of channels: it cannot be made slim")
    outputs = torch.zeros(groups, number // groups, dtype=torch.bool)
    outputs[:, : math.ceil(share * (number // groups))] = True
    return outputs.view(-1)


def _note(found: dict[str, Kept], name: str, kept: Kept) -> None:
    before = found.setdefault(name, kept)
    if not (torch.equal(before.inputs, kept.inputs) and torch.equal(before.outputs, kept.outputs)):
        raise ValueError(f"{name} is used twice with different channels alive: it cannot be made slim")


def extract(network: nn.Module, example: Tensor, share: float) -> tuple[nn.Module, dict[str, Width]]:
    """The network of the kept channels alone, and the widths of its layers.

    It computes what the whole network would with zeros in place of all forgotten weights (in evaluation mode). Frozen
    normalisers that change nothing (`llf_ray.nn.normaliser`) are left out.

    Raises:
        ValueError: a network with another normalisation than batch normalisation, a frozen normaliser that was switched
            on, or wiring that cannot be made slim.
    """
    other = next((n for n, m in network.named_modules() if isinstance(m, OtherNorm)), None)
    if other is not None:
        kind = type(network.get_submodule(other)).__name__
        raise ValueError(f"{other} is {kind}: it mixes channels, so only networks with batch normalisation get slim")
    slim = without_normalisers(copy.deepcopy(network))
    whole = dict(slim.state_dict())
    kept = kept_channels(network, example, share)
    widths = {name: _width(layer) for name, layer in kept.items()}
    values = narrow(slim, widths).state_dict()
    with torch.no_grad():
        for name, value in whole.items():
            layer, _, entry = name.rpartition(".")
            if layer in kept and value.dim() > 0:
                values[name].copy_(_narrowed(value, entry, kept[layer]))
            else:
                values[name].copy_(value)
        try:
            slim.eval()(example)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"channels that are added or joined do not line up when fewer: {reason}") from None
    return slim.train(network.training), widths


def _width(kept: Kept) -> Width:
    groups = kept.groups
    if groups > 1 and len(kept.outputs) == groups:  # depthwise
        groups = int(kept.outputs.sum())
    return Width(inputs=int(kept.inputs.sum()), outputs=int(kept.outputs.sum()), groups=groups)


def _narrowed(value: Tensor, entry: str, kept: Kept) -> Tensor:
    outputs = value[kept.outputs.to(value.device)]
    if entry != "weight" or value.dim() < 2 or value.shape[1] == 1 < kept.groups:
        return outputs
    inputs = kept.inputs.view(kept.groups, -1)[0] if kept.groups > 1 else kept.inputs
    return outputs[:, inputs.to(value.device)]
