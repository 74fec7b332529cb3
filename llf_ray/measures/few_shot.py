"""Few-shot accuracy: many small classification problems, a new linear head for each, on frozen features.

Guo et al. 2020, arXiv:1912.07200, whose episodes and head these are. Shapes: E episodes, S support examples of an
episode, Q queries, W ways (classes of an episode), D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llf_ray.config import SettingError, check_number

__all__ = ["Episode", "FewShot", "Head", "check_few_shot", "episode_of", "few_shot", "head_scores"]

BLOCK = 64 * 2**20  # bytes of support features, as they are trained on, that are worked on at once


@dataclass(frozen=True, kw_only=True)
class Head:
    """How an episode's head is trained: SGD, published settings."""

    lr: float = 0.01
    momentum: float = 0.9
    dampening: float = 0.9
    weight_decay: float = 0.001
    batch: int = 4
    epochs: int = 100

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0.0)
        for name in ("momentum", "dampening", "weight_decay"):
            check_number(name, getattr(self, name), low=0.0)
        check_number("batch", self.batch, low=1)
        check_number("epochs", self.epochs, low=1)


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Mean accuracy over episodes and half of its 95 % interval, 1.96 std / sqrt(episodes); each episode's, (E,)."""

    ways: int
    shots: int
    mean: float
    half: float
    accuracy: Tensor


@dataclass(frozen=True)
class Episode:
    """Rows of a data set that one problem is made of: support (W, shots) and queries (W, queries), class by class."""

    support: np.ndarray
    queries: np.ndarray


def check_few_shot(
    labels: Tensor | np.ndarray, *, shots: int, ways: int = 5, queries: int = 15, names: Sequence[str] | None = None
) -> None:
    """Raise unless every class has enough examples for an episode, and there are enough classes. Cheap: labels alone.

    Args:
        labels: the class of each example, (N,).
        shots: support examples of a class.
        ways: classes of an episode.
        queries: scored examples of a class.
        names: of the classes, for the message.

    Raises:
        SettingError: with the class that has the fewest, how many it has and how many are needed.
    """
    for name, value, least in (("shots", shots, 1), ("ways", ways, 2), ("queries", queries, 1)):
        check_number(name, value, low=least)
    classes, numbers = np.unique(np.asarray(labels), return_counts=True)
    if len(classes) < ways:
        raise SettingError(f"ways = {ways}: the data have examples of {len(classes)} classes")
    fewest = int(numbers.argmin())
    if numbers[fewest] < shots + queries:
        label = int(classes[fewest])
        name = repr(names[label]) if names is not None else str(label)
        short = int((numbers < shots + queries).sum())
        more = f" ({short} of {len(classes)} classes have too few)" if short > 1 else ""
        raise SettingError(
            f"shots = {shots}: class {name} has {numbers[fewest]} examples, {shots + queries} are needed "
            f"({shots} shots and {queries} queries){more}"
        )


def episode_of(labels: Tensor | np.ndarray, *, shots: int, ways: int, queries: int, seed: int, number: int) -> Episode:
    """Episode ``number`` of a seed: classes and examples drawn without replacement, by labels alone.

    So every network that is compared gets the same episodes.
    """
    truth = np.asarray(labels)
    random = np.random.default_rng((seed, shots, number))
    chosen = random.choice(np.unique(truth), ways, replace=False)
    members = np.stack([random.choice(np.flatnonzero(truth == c), shots + queries, replace=False) for c in chosen])
    return Episode(members[:, :shots], members[:, shots:])


def few_shot(
    features: Tensor,
    labels: Tensor,
    *,
    shots: int = 5,
    ways: int = 5,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
    head: Head = Head(),
    names: Sequence[str] | None = None,
) -> FewShot:
    """Accuracy on queries of heads that have seen ``shots`` examples of each of ``ways`` classes.

    Each head starts as a new `torch.nn.Linear` does, from the episode's own draw, and goes through its support
    examples in an order of its own. All heads of a block of episodes are trained side by side.

    Args:
        features: of a frozen network, (N, D), as of `llf_ray.measures.features.pooled_features`; they are not scaled.
        labels: their classes, (N,).
        shots: support examples of a class.
        ways: classes of an episode.
        queries: scored examples of a class.
        episodes: how many.
        seed: of episodes, heads and orders.
        head: how heads are trained.
        names: of the classes, for messages.

    Raises:
        SettingError: a class with fewer examples than shots and queries, or fewer classes than ways.
    """
    check_number("episodes", episodes, low=1)
    check_few_shot(labels, shots=shots, ways=ways, queries=queries, names=names)
    size, width = ways * shots, features.shape[1]
    block = max(1, BLOCK // (4 * size * min(size, width)))
    truth = torch.arange(ways, device=features.device).repeat_interleave(queries)
    found = []
    for start in range(0, episodes, block):
        numbers = range(start, min(episodes, start + block))
        drawn = [episode_of(labels, shots=shots, ways=ways, queries=queries, seed=seed, number=n) for n in numbers]
        starts = [_start(ways, width, size, head.epochs, (seed, shots, n)) for n in numbers]
        weight, bias, orders = (torch.stack(part).to(features.device) for part in zip(*starts, strict=True))
        scores = head_scores(
            _rows(features, [episode.support for episode in drawn]),
            torch.arange(ways, device=features.device).repeat_interleave(shots).expand(len(drawn), size),
            _rows(features, [episode.queries for episode in drawn]),
            weight.to(features.dtype),
            bias.to(features.dtype),
            orders,
            head=head,
        )
        found.append((scores.argmax(2) == truth).double().mean(1).cpu())
    accuracy = torch.cat(found)
    return FewShot(
        ways=ways,
        shots=shots,
        mean=float(accuracy.mean()),
        half=1.96 * float(accuracy.std(correction=0)) / math.sqrt(episodes),
        accuracy=accuracy,
    )


def _rows(features: Tensor, places: Sequence[np.ndarray]) -> Tensor:
    chosen = torch.from_numpy(np.stack([place.reshape(-1) for place in places])).to(features.device)
    return features[chosen]


def _start(ways: int, width: int, size: int, epochs: int, key: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """A new linear layer's weight (W, D) and bias (W,) as torch draws them, and orders (epochs, S)."""
    random = torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
    bound = 1 / math.sqrt(width)
    weight = torch.empty(ways, width).uniform_(-bound, bound, generator=random)
    bias = torch.empty(ways).uniform_(-bound, bound, generator=random)
    return weight, bias, torch.rand(epochs, size, generator=random).argsort(1).to(torch.int16)


def head_scores(
    support: Tensor,
    labels: Tensor,
    queries: Tensor,
    weight: Tensor,
    bias: Tensor,
    orders: Tensor,
    *,
    head: Head = Head(),
) -> Tensor:
    """Train a linear head on each episode's support examples; its scores of the queries, (E, Q, W).

    As `torch.optim.SGD` trains each of them alone. Every gradient of a head's weight lies in the span of its support
    examples, so with more features than those the heads are trained in coordinates of that span: what a head starts
    with outside it only decays, and counts for queries alone.

    Args:
        support: (E, S, D).
        labels: (E, S), below W.
        queries: (E, Q, D).
        weight: at the start, (E, W, D).
        bias: at the start, (E, W).
        orders: of support examples in every epoch, (E, epochs, S).
        head: how heads are trained.
    """
    if support.shape[2] <= support.shape[1]:
        weight, bias, _ = _trained(support, labels, weight, bias, orders, head)
        return torch.baddbmm(bias[:, None], queries, weight.transpose(1, 2))
    basis = torch.linalg.qr(support.transpose(1, 2)).Q  # (E, D, S), orthonormal columns
    inside = weight @ basis
    outside = torch.baddbmm(queries @ weight.transpose(1, 2), queries @ basis, inside.transpose(1, 2), alpha=-1)
    moved, bias, left = _trained(support @ basis, labels, inside, bias, orders, head)
    return torch.baddbmm(left * outside + bias[:, None], queries @ basis, moved.transpose(1, 2))


def _trained(
    support: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, orders: Tensor, head: Head
) -> tuple[Tensor, Tensor, float]:
    """Weights and biases behind the last step, and what decay alone has left of a weight that was 1."""
    # one product a step does the bias, too: it is the weight of a feature that is always 1
    support = torch.cat([support, support.new_ones(*support.shape[:2], 1)], 2)
    value = torch.cat([weight, bias[:, :, None]], 2)
    wanted = F.one_hot(labels, weight.shape[1]).to(support.dtype)
    episode = torch.arange(len(support), device=support.device)[:, None]
    move, left, left_move, damped = torch.zeros_like(value), 1.0, 0.0, 1.0
    for epoch in range(head.epochs):
        for places in orders[:, epoch].long().split(head.batch, 1):
            x = support[episode, places]
            slope = (torch.bmm(x, value.transpose(1, 2)).softmax(2) - wanted[episode, places]) / places.shape[1]
            gradient = torch.baddbmm(value, slope.transpose(1, 2), x, beta=head.weight_decay)
            move.mul_(head.momentum).add_(gradient, alpha=damped)
            value.sub_(move, alpha=head.lr)
            left_move = head.momentum * left_move + damped * head.weight_decay * left
            left -= head.lr * left_move
            damped = 1 - head.dampening  # torch starts its momentum with the whole first gradient
    return value[:, :, :-1], value[:, :, -1], left
