"""SEAL and later-layer forgetting in plain torch, one process, written from the papers' description and nothing else.

Each worker's half of the batch runs through the network in turn, with its own batch statistics; gradients are
averaged. Running statistics are the first worker's. The ascent is a negative learning rate without weight decay, as in
SEAL's code, which is another way to write it than the engine's. Only the inputs are the project's: sample order, and
the numbers of a redraw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from llf_ray.data.order import order
from llf_ray.forget.draw import generator
from tests.toy import Toy, ToyNet

EPOCH_STEPS = 48 // 12


class Half:
    """The second worker's batch statistics must not reach the running ones."""

    def __init__(self, net: nn.Module) -> None:
        self.norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]

    def __enter__(self) -> None:
        self.kept = [(m.running_mean.clone(), m.running_var.clone(), m.num_batches_tracked.clone()) for m in self.norms]

    def __exit__(self, *_: object) -> None:
        for m, (mean, var, count) in zip(self.norms, self.kept, strict=True):
            m.running_mean.copy_(mean)
            m.running_var.copy_(var)
            m.num_batches_tracked.copy_(count)


def gradients(net: ToyNet, images: Tensor, labels: Tensor) -> float:
    """Average gradients of two workers into .grad; the mean loss."""
    net.zero_grad()
    first = nn.functional.cross_entropy(net(images[:6]), labels[:6])
    (first / 2).backward()
    with Half(net):
        second = nn.functional.cross_entropy(net(images[6:]), labels[6:])
        (second / 2).backward()
    return (first.item() + second.item()) / 2


def batches(generation: int, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Twelve items a step, in each epoch's order."""
    images, labels = Toy().data("train")
    for epoch in range(epochs):
        shuffled = order(48, 0, generation, epoch)
        for step in range(EPOCH_STEPS):
            chosen = shuffled[12 * step : 12 * step + 12]
            yield images[chosen], labels[chosen]


def rate(peak: float, step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def early(net: ToyNet) -> list[nn.Parameter]:
    return list(net.stem.parameters())


def late(net: ToyNet) -> list[nn.Parameter]:
    return [*net.body.parameters(), *net.head.parameters()]


def seal(ascent_rate: float = 8.0) -> tuple[list[float], ToyNet]:
    """Three generations of three epochs; in the last two the stem ascends for one epoch at ``ascent_rate`` times
    the rate.

    At 0 the stem stands still in that epoch, at -1 it descends, without decay.
    """
    net: ToyNet = Toy().build(0)  # type: ignore[assignment]
    losses = []
    for generation in range(3):
        optimizer = sgd(net)
        for step, (images, labels) in enumerate(batches(generation, 3)):
            ascending = generation > 0 and step < EPOCH_STEPS
            if generation > 0 and step == EPOCH_STEPS:
                optimizer = sgd(net)
            eta = rate(0.05, step, EPOCH_STEPS, 3 * EPOCH_STEPS)
            optimizer.param_groups[0].update(
                lr=-ascent_rate * eta if ascending else eta, weight_decay=0.0 if ascending else 5e-3
            )
            optimizer.param_groups[1].update(lr=eta)
            losses.append(gradients(net, images, labels))
            optimizer.step()
    return losses, net


def sgd(net: ToyNet) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": early(net)}, {"params": late(net)}], lr=0.05, momentum=0.9, weight_decay=5e-3)


def later_layer() -> tuple[list[float], ToyNet]:
    """Three generations of two epochs under AdamW; body and head weights are drawn anew before the last two."""
    net: ToyNet = Toy().build(0)  # type: ignore[assignment]
    losses = []
    for generation in range(3):
        if generation:
            for name in ("body.0.weight", "head.weight"):
                weight = net.get_parameter(name)
                bound = 1 / math.sqrt(weight[0].numel())
                draw = torch.empty_like(weight).uniform_(
                    -bound, bound, generator=generator(0, "relearn/entry/0", generation, name)
                )
                with torch.no_grad():
                    weight.copy_(draw)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
        for step, (images, labels) in enumerate(batches(generation, 2)):
            optimizer.param_groups[0]["lr"] = rate(0.01, step, EPOCH_STEPS, 2 * EPOCH_STEPS)
            losses.append(gradients(net, images, labels))
            optimizer.step()
    return losses, net


METHODS: dict[str, Callable[[], tuple[list[float], ToyNet]]] = {"seal-sgd": seal, "later_layer-adamw": later_layer}
