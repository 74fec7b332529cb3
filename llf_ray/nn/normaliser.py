"""Normalisers whose statistics are measured once and then stay: what layer-wise re-initialisation puts behind a block.

Shapes: B batch, C channels, H and W height and width, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = [
    "NAME",
    "FrozenNormaliser",
    "freeze",
    "normaliser_of",
    "recalibrate",
    "widths_behind",
    "with_normalisers",
    "without_normalisers",
]

NAME = "normaliser"  # of the child that a block gets
EPSILON = 1e-5


class FrozenNormaliser(nn.Module):
    """(x - mean) / std by channel, with a mean and a deviation that no training step changes.

    It starts at 0 and 1, where it gives back its input to the last bit: a network may hold one from the start and have
    it switched on by `freeze` alone. Alabdulmohsin et al. 2021, arXiv:2109.00267. A channel that never moves is only
    shifted; the public code divides by its deviation of zero.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or, for tokens, (B, N, C) to the same shape."""
        shape = (1, -1, 1, 1) if x.dim() == 4 else (-1,)
        return (x - self.mean.view(shape).to(x.dtype)) / self.std.view(shape).to(x.dtype)


def with_normalisers(network: nn.Module, widths: Mapping[str, int]) -> nn.Module:
    """The network, each named block with a `FrozenNormaliser` of so many channels behind its output (changed in place).

    The normaliser is the block's child ``normaliser``: no other name in the network changes.
    """
    for name, width in widths.items():
        block = network.get_submodule(name)
        block.add_module(NAME, FrozenNormaliser(width))
        if type(block).forward is not nn.Sequential.forward:  # a plain sequence runs its new last child by itself
            block.register_forward_hook(_behind)
    return network


def without_normalisers(network: nn.Module) -> nn.Module:
    """The network without its `FrozenNormaliser`s, all of them still at 0 and 1 (changed in place): the same function.

    Raises:
        ValueError: one that was switched on, by the name of its block.
    """
    for name, block in list(network.named_modules()):
        normaliser = getattr(block, NAME, None)
        if not isinstance(normaliser, FrozenNormaliser):
            continue
        if bool((normaliser.mean != 0).any()) or bool((normaliser.std != 1).any()):
            raise ValueError(f"the normaliser behind {name} was switched on")
        delattr(block, NAME)
        for key in [key for key, hook in block._forward_hooks.items() if hook is _behind]:
            del block._forward_hooks[key]
    return network


def _behind(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    normalised: Tensor = block.get_submodule(NAME)(output)
    return normalised


def widths_behind(network: nn.Module, blocks: Sequence[str], example: Tensor) -> dict[str, int]:
    """Channels of what each named block gives for an example input; works on the meta device.

    Raises:
        ValueError: a block that the network lacks, does not run, or whose output has no channels.
    """
    found: dict[str, int] = {}
    modules = dict(network.named_modules())
    missing = [name for name in blocks if name not in modules]
    if missing:
        raise ValueError(f"block {missing[0]!r} does not exist")

    def look(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            if not isinstance(output, Tensor) or output.dim() not in (3, 4):
                raise ValueError(f"block {name!r} does not give a map (B, C, H, W) or tokens (B, N, C)")
            found[name] = output.shape[1] if output.dim() == 4 else output.shape[2]

        return hook

    hooks = [modules[name].register_forward_hook(look(name)) for name in blocks]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    unused = [name for name in blocks if name not in found]
    if unused:
        raise ValueError(f"block {unused[0]!r} does not run by itself")
    return found


def normaliser_of(network: nn.Module, block: str) -> FrozenNormaliser | None:
    """The normaliser behind a block, None where it has none."""
    found = dict(network.named_modules()).get(f"{block}.{NAME}")
    return found if isinstance(found, FrozenNormaliser) else None


@torch.no_grad()
def freeze(network: nn.Module, block: str, batches: Iterable[Tensor]) -> None:
    """Measure what a block gives for these batches, with batch normalisation as in training, and normalise by it.

    Mean and deviation (over images and places, n - 1) of each channel, summed in float64; all other buffers stay.
    """
    normaliser = normaliser_of(network, block)
    assert normaliser is not None, f"no normaliser behind {block!r}"
    normaliser.mean.zero_()
    normaliser.std.fill_(1.0)
    count, total, squares = 0, torch.zeros(0), torch.zeros(0)

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal count, total, squares
        values = inputs[0].double()
        values = values.movedim(1, -1) if values.dim() == 4 else values
        values = values.reshape(-1, values.shape[-1])
        sums, more = values.sum(0), values.square().sum(0)
        total, squares = (sums, more) if count == 0 else (total + sums, squares + more)
        count += len(values)

    hook = normaliser.register_forward_hook(look)
    try:
        with _batch_statistics(network):
            for batch in batches:
                network(batch)
    finally:
        hook.remove()
    mean = total / count
    std = ((squares - count * mean.square()) / max(1, count - 1)).clamp_min(0).sqrt()
    normaliser.mean.copy_(mean)
    normaliser.std.copy_(torch.where(std > EPSILON, std, torch.ones_like(std)))


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure the running statistics of all normalisation layers anew: plain means over these batches.

    Each batch is normalised by its own statistics; nothing else of the network is in training mode.
    """
    norms = _norms(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain mean
        norm.train()
    try:
        for batch in batches:
            network(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


@contextmanager
def _batch_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, normalisation uses the batch's statistics, and the running ones stay as they are."""
    norms = _norms(network)
    kept = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for norm, values in zip(norms, kept, strict=True):
            norm.eval()
            for name, value in norm.named_buffers():
                value.copy_(values[name])


def _norms(network: nn.Module) -> list[_NormBase]:
    """Normalisation layers with running statistics."""
    return [part for part in network.modules() if isinstance(part, _NormBase) and part.running_mean is not None]
