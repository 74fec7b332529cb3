"""What a frozen network makes of images: its pooled features and its scores, in evaluation mode.

Shapes: N examples, D features, C classes, B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["Labelled", "as_evaluated", "class_scores", "pooled_features"]


@dataclass(frozen=True)
class Labelled:
    """Rows of numbers, (N, D) or (N, C), and the class of each, (N,)."""

    values: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.values.dim() != 2 or self.labels.shape != self.values.shape[:1]:
            raise ValueError(
                f"values of shape {tuple(self.values.shape)} with labels of shape {tuple(self.labels.shape)}: "
                "(N, D) and (N,) are needed"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, chosen: Tensor) -> Labelled:
        """Some of the rows, by their numbers."""
        return Labelled(self.values[chosen], self.labels[chosen])


@contextmanager
def as_evaluated(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, afterwards every module's own mode as it was."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def pooled_features(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Labelled:
    """What the classifier sees of each example, (N, D), on the CPU in float32.

    A network of timm is asked through ``forward_features`` and ``forward_head(pre_logits=True)``; of any other, the
    input of its last linear layer is taken. Batch statistics stay as they are.

    Args:
        network: in any mode; it is run in evaluation mode.
        batches: images (B, C, H, W) and classes (B,), on the network's device.

    Raises:
        ValueError: there is no batch, or the network has neither timm's two functions nor a linear layer.
    """
    return _collected(network, batches, _pooling(network))


def class_scores(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Labelled:
    """The network's scores before the softmax, (N, C), on the CPU in float32; arguments as of `pooled_features`."""
    return _collected(network, batches, network)


@torch.no_grad()
def _collected(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], ask: Callable[[Tensor], Tensor]
) -> Labelled:
    values, labels = [], []
    with as_evaluated(network):
        for images, classes in batches:
            values.append(ask(images).float().cpu())
            labels.append(classes.cpu())
    if not values:
        raise ValueError("there are no images")
    return Labelled(torch.cat(values), torch.cat(labels))


def _pooling(network: nn.Module) -> Callable[[Tensor], Tensor]:
    if hasattr(network, "forward_head") and hasattr(network, "forward_features"):
        timm = cast(Any, network)
        return lambda images: timm.forward_head(timm.forward_features(images), pre_logits=True).flatten(1)
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(network).__name__} has no linear layer whose input could be its features")
    return lambda images: _input_of(linear[-1], network, images)


def _input_of(layer: nn.Module, network: nn.Module, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        network(images)
    finally:
        hook.remove()
    return seen[-1].flatten(1)
