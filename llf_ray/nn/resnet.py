"""Residual networks for small images, with the layer names of timm and torchvision: conv1, bn1, layer1, ...,
fc.

Shapes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Block", "ResNet", "initialise", "kaiming_normal"]

Shortcut = Literal["conv", "pad"]


class ResNet(nn.Module):
    """A stem, stages of basic blocks (each stage after the first halves the picture), mean pooling and a
    linear layer.

    He et al. 2016, arXiv:1512.03385. Every argument is plain data, so a network comes back from its settings
    with ``ResNet(**json.loads(text))``. ``blocks=(3, 3, 3), widths=(16, 32, 64), shortcut="pad"`` is the
    paper's ResNet-20 for CIFAR (section 4.2), ``(9, 9, 9)`` its ResNet-56. Weights start as `initialise`
    draws them, from torch's own generator.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: Sequence[int] = (1, 1, 1, 1),
        stem_stride: int = 1,
        shortcut: Shortcut = "conv",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = tuple(f"layer{number}" for number in range(1, len(widths) + 1))
        for number, (stage, width, count) in enumerate(zip(self.stages, widths, blocks, strict=True)):
            wide_in = widths[max(number - 1, 0)]
            first = Block(wide_in, width, stride=1 if number == 0 else 2, shortcut=shortcut)
            self.add_module(stage, nn.Sequential(first, *(Block(width, width) for _ in range(count - 1))))
        self.fc = nn.Linear(widths[-1], num_classes)
        self.grad_checkpointing = False
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) to class scores (B, classes)."""
        x = F.relu(self.bn1(self.conv1(images)))
        for stage in self.stages:
            x = self._run(getattr(self, stage), x)
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            # The second forward must not count its batch a second time in the running statistics.
            y: Tensor = checkpoint(stage, x, use_reentrant=False, context_fn=partial(_contexts, stage))
        else:
            y = stage(x)
        return y

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of each stage for the backward pass and compute the rest again (timm's method
        of that name).
        """
        self.grad_checkpointing = enable


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: none where shapes agree, a 1x1 convolution, or subsampling and
    zero channels.
    """

    def __init__(self, wide_in: int, wide_out: int, stride: int = 1, shortcut: Shortcut = "conv") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide_out)
        self.conv2 = nn.Conv2d(wide_out, wide_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide_out)
        self.stride, self.more = stride, wide_out - wide_in
        reshaped = stride != 1 or self.more != 0
        self.downsample = (
            nn.Sequential(nn.Conv2d(wide_in, wide_out, 1, stride, bias=False), nn.BatchNorm2d(wide_out))
            if reshaped and shortcut == "conv"
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, wide_out, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self._beside(x))

    def _beside(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            y: Tensor = self.downsample(x)
            return y
        if self.stride == 1 and self.more == 0:
            return x
        before = self.more // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.more - before))


def initialise(module: nn.Module) -> None:
    """`kaiming_normal` weights, zero biases of convolutions and linear layers, normalisation at 1 and 0."""
    kaiming_normal(module)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()


def kaiming_normal(module: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers, std = sqrt(2 / fan_in), from torch's own generator.

    The start of the networks of KE, LLF and SEAL (Taha et al. 2021, code); He et al. 2015, arXiv:1502.01852.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.normal_(part.weight, std=math.sqrt(2.0 / part.weight[0].numel()))


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_held(stage)


@contextmanager
def _statistics_held(stage: nn.Module) -> Iterator[None]:
    norms = [part for part in stage.modules() if isinstance(part, nn.BatchNorm2d)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Not track_running_stats: without statistics the layer would save fewer tensors than the first time.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, counter in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counter
