"""Multiply-adds of a transformer that loses tokens, in both of the countings in use.

*Linear* counts patch embedding and linear layers alone, as the paper does (its counter does not see fused attention);
*attention* is what queries, keys and values cost beside that. Element-wise work is in neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from llf_ray.nn.cropr.schedule import Shape

__all__ = ["BlockCosts", "Count", "block_costs", "count", "image_shape", "lengths"]

_ATTENTION = ("scaled_dot_product", "bmm", "_attention")


@dataclass(frozen=True)
class Count:
    """Multiply-adds, half the number of floating-point operations."""

    linear: int
    attention: int

    @property
    def total(self) -> int:
        return self.linear + self.attention

    def __add__(self, other: Count) -> Count:
        return Count(self.linear + other.linear, self.attention + other.attention)


def count(model: nn.Module, images: Sequence[int]) -> Count:
    """What one forward pass of images of this shape, (B, C, H, W), costs; nothing is computed."""

    def run(device: torch.device, dtype: torch.dtype) -> None:
        model(torch.empty(tuple(images), device=device, dtype=dtype))

    return _counted(model, run)


class _Flat(TorchFunctionMode):
    """Gives linear layers contiguous tokens: of others they make batched products, which look like attention's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


def _counted(module: nn.Module, run: Any) -> Count:
    """Multiply-adds of ``run(device, dtype)`` over a module in evaluation mode, by torch's counter."""
    like, training = next(module.parameters()), module.training
    learning = [value for value in module.parameters() if value.requires_grad]
    module.eval().requires_grad_(False)  # the counter stumbles over views of parameters that learn
    faked = nullcontext() if like.is_meta else FakeTensorMode(allow_non_fake_inputs=True)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mv: _mv})
    try:
        with torch.no_grad(), faked, counter, _Flat():
            run(like.device, like.dtype)
    finally:
        module.train(training)
        for value in learning:
            value.requires_grad_()
    linear = attention = 0
    for operation, flops in counter.get_flop_counts().get("Global", {}).items():
        if any(word in str(operation) for word in _ATTENTION):
            attention += flops // 2
        else:
            linear += flops // 2
    return Count(linear, attention)


def _mv(matrix: Sequence[int], vector: Sequence[int], out_shape: Any = None, **_: Any) -> int:
    """Floating-point operations of a matrix times a vector, which torch's counter leaves out."""
    return 2 * matrix[0] * matrix[1]


@dataclass(frozen=True, kw_only=True)
class BlockCosts:
    """What a block costs as a function of its length M: ``linear M`` and ``attention M^2`` multiply-adds an image."""

    linear: tuple[float, ...]
    attention: tuple[float, ...]
    width: int
    outside: Count  # patch embedding and head
    pooled: tuple[float, float] = (0.0, 0.0)  # what a head that attends to all tokens adds for each: linear, attention

    def of(self, lengths: Sequence[int], scored: Sequence[int] = ()) -> Count:
        """The whole network with ``lengths`` tokens in its blocks; ``scored``: tokens that modules give scores."""
        linear = sum(cost * length for cost, length in zip(self.linear, lengths, strict=True))
        attention = sum(cost * length**2 for cost, length in zip(self.attention, lengths, strict=True))
        linear, attention = linear + self.pooled[0] * lengths[-1], attention + self.pooled[1] * lengths[-1]
        return Count(round(linear), round(attention)) + self.outside + Count(self.width * sum(scored), 0)

    def pruned(self, shape: Shape, after: Sequence[int], kept: Sequence[int]) -> Count:
        """The whole network that keeps ``kept`` patches behind the blocks ``after``, queries folded."""
        along, before = lengths(shape, after, kept), (shape.patches, *kept)
        scored = [along[block - 1] for block, old, new in zip(after, before, kept, strict=False) if new < old]
        return self.of(along, scored)

    def share(self, shape: Shape, after: Sequence[int], kept: Sequence[int], *, attention: bool) -> float:
        """Of the dense model's multiply-adds."""
        dense = self.of([shape.patches + shape.prefix] * shape.blocks)
        pruned = self.pruned(shape, after, kept)
        return pruned.total / dense.total if attention else pruned.linear / dense.linear


def lengths(shape: Shape, after: Sequence[int], kept: Sequence[int]) -> tuple[int, ...]:
    """How many tokens, prefix included, each block works on."""
    alive, found, targets = shape.patches, [], dict(zip(after, kept, strict=True))
    for number in range(1, shape.blocks + 1):
        at_last = shape.fusion and number == shape.blocks
        found.append((shape.patches if at_last else alive) + shape.prefix)
        alive = targets.get(number, alive)
    return tuple(found)


def image_shape(model: Any) -> tuple[int, int, int]:
    """What a timm vision transformer was made for: (C, H, W) of an image."""
    first = next(module for module in model.patch_embed.modules() if isinstance(module, nn.Conv2d))
    high, wide = model.patch_embed.img_size
    return first.in_channels, high, wide


def block_costs(model: Any) -> BlockCosts:
    """The costs of a timm vision transformer's blocks, taken from one pass of each."""
    width, probe = model.embed_dim, 16
    kinds: dict[str, Count] = {}
    for block in model.blocks:

        def run(device: torch.device, dtype: torch.dtype, block: nn.Module = block) -> None:
            block(torch.empty(1, probe, width, device=device, dtype=dtype))

        if str(block) not in kinds:  # most blocks are alike
            kinds[str(block)] = _counted(block, run)
    found = [kinds[str(block)] for block in model.blocks]

    def embed(device: torch.device, dtype: torch.dtype) -> None:
        model.patch_embed(torch.empty(1, *image_shape(model), device=device, dtype=dtype))

    def head(length: int) -> Count:
        def run(device: torch.device, dtype: torch.dtype) -> None:
            model.forward_head(torch.empty(1, length, width, device=device, dtype=dtype))

        return _counted(model, run)

    short, long = head(probe), head(2 * probe)
    pooled = ((long.linear - short.linear) / probe, (long.attention - short.attention) / probe)
    fixed = Count(round(short.linear - probe * pooled[0]), round(short.attention - probe * pooled[1]))
    return BlockCosts(
        linear=tuple(cost.linear / probe for cost in found),
        attention=tuple(cost.attention / probe**2 for cost in found),
        width=width,
        outside=_counted(model, embed) + fixed,
        pooled=pooled,
    )
