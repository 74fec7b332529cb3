"""Which patches are kept when something other than a Cropr module chooses: the rivals on the same schedule.

Each gives every patch a score, (B, M); the highest live on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Attended", "attended", "class_attention", "draw", "patch_variance", "ranked"]


class Attended:
    """Queries and keys that a block's attention compared, (B, heads, M, d), after norms and rotation."""

    query: Tensor
    key: Tensor


class _Listening(TorchFunctionMode):
    """Notes what reaches the fused attention; works for every block of timm, whatever happens to q and k before."""

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.heard: Attended | None = None
        self.bias = bias

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.heard = Attended()
            self.heard.query, self.heard.key = args[:2]
            if self.bias is not None:
                kwargs = {**kwargs, "attn_mask": self.bias.to(args[0].dtype)}
        return func(*args, **kwargs)


@contextmanager
def attended(attention: nn.Module, bias: Tensor | None = None) -> Iterator[Attended]:
    """What ``attention`` compares inside the block; ``bias``, (B, 1, 1, M), is added to its logits.

    Raises:
        RuntimeError: the block ran no attention.
    """
    fused = getattr(attention, "fused_attn", True)
    if not fused:
        attention.fused_attn = True
    found = Attended()
    try:
        with _Listening(bias) as mode:
            yield found
    finally:
        if not fused:
            attention.fused_attn = False
    if mode.heard is None:
        raise RuntimeError(f"{type(attention).__name__} ran no attention that could be listened to")
    found.query, found.key = mode.heard.query, mode.heard.key


@torch.no_grad()
def class_attention(found: Attended, prefix: int) -> Tensor:
    """How much the class token attends to each patch, mean over heads, (B, M - prefix)."""
    query, key = found.query[:, :, :1], found.key
    weights = (query @ key.mT * key.shape[-1] ** -0.5).softmax(-1)
    return weights.mean(1)[:, 0, prefix:]


@torch.no_grad()
def patch_variance(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Variance of each patch's pixels over its place and channels, (B, h w); flat patches go first."""
    mean, of_squares = (F.adaptive_avg_pool2d(part.mean(1), grid) for part in (images.float(), images.float() ** 2))
    return (of_squares - mean**2).flatten(1)


def draw(like: Tensor, number: int, *, training: bool) -> Tensor:
    """Uniform scores, (B, M) for tokens (B, M, D).

    In training they come from the ambient generator, which a run keys by step and rank. In evaluation they are a
    function of the module's ``number``, so that scoring a network twice gives the same.
    """
    if training or like.is_meta:
        return torch.rand(like.shape[:2], device=like.device)
    generator = torch.Generator(like.device).manual_seed(number)
    return torch.rand(like.shape[:2], device=like.device, generator=generator)


def ranked(scores: Tensor, kept: int, *, both: bool) -> tuple[Tensor, Tensor | None]:
    """Places of the ``kept`` highest scores, (B, kept), and of the others if ``both`` are wanted.

    All ranks of a device's sort are avoided where only the kept ones matter: their order says nothing.
    """
    if not both:
        return scores.topk(kept, dim=1, sorted=False).indices, None
    order = scores.argsort(1, descending=True)
    return order[:, :kept], order[:, kept:]
