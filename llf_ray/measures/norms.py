"""How large the weights of each layer are, and how steep the loss is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llf_ray.measures.features import as_evaluated

__all__ = ["Norms", "layer_norms"]


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of one layer's weights and of the gradient of the loss by them."""

    weight: float
    gradient: float


def layer_norms(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Mapping[str, Norms]:
    """Norms of every module that has parameters of its own (weights and biases together), by its name.

    The gradient is that of the mean loss over all examples, in evaluation mode, so that it is a function of weights
    and examples alone. SEAL's code sums the norms of single training steps, which grow with their number and noise.
    Gradients that parameters hold stay as they are.

    Args:
        network: whose layers; it is left as it was.
        batches: inputs and classes, on the network's device.
        loss: of scores and classes, the mean over a batch.

    Raises:
        ValueError: there are no examples.
    """
    owned = {
        name: list(module.parameters(recurse=False))
        for name, module in network.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    weights = [weight for part in owned.values() for weight in part]
    total = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    num_examples = 0
    with as_evaluated(network), torch.enable_grad():
        for inputs, labels in batches:
            mean = loss(network(inputs), labels)
            learned = [place for place, weight in enumerate(weights) if weight.requires_grad]
            slopes = torch.autograd.grad(mean, [weights[place] for place in learned], allow_unused=True)
            for place, slope in zip(learned, slopes, strict=True):
                if slope is not None:
                    total[place] += len(labels) * slope
            num_examples += len(labels)
    if not num_examples:
        raise ValueError("there are no examples")
    gradients = iter(total)
    return {
        name: Norms(
            weight=_norm([weight.detach() for weight in part]),
            gradient=_norm([next(gradients) for _ in part]) / num_examples,
        )
        for name, part in owned.items()
    }


def _norm(values: Iterable[Tensor]) -> float:
    return float(torch.stack([value.double().square().sum() for value in values]).sum().sqrt())
