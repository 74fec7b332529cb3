"""Transfer: how well one linear layer on a frozen network's features tells the classes of other data.

Sarfi et al. 2023, arXiv:2304.04858 probe so without code or settings; these are the ones that we use for every
method. Shapes: R rates, N examples, D features, C classes, B examples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llf_ray.config import SettingError, check_number
from llf_ray.measures.features import Labelled

__all__ = ["ProbeTraining", "Scale", "Transfer", "fit_probes", "linear_probe", "split"]


@dataclass(frozen=True, kw_only=True)
class ProbeTraining:
    """How a probe is trained: SGD with momentum, without decay, under one cosine."""

    rates: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    batch: int = 256
    epochs: int = 100
    momentum: float = 0.9
    held_out: float = 0.2  # share of each class of the training part by which the rate is chosen

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0:
            raise SettingError(f"rates = {self.rates!r}: one or more numbers above 0 are needed")
        check_number("batch", self.batch, low=1)
        check_number("epochs", self.epochs, low=1)
        check_number("momentum", self.momentum, low=0.0)
        check_number("held_out", self.held_out, above=0.0)
        if self.momentum >= 1 or self.held_out >= 1:
            raise SettingError(f"momentum = {self.momentum!r}, held_out = {self.held_out!r}: must be below 1")


@dataclass(frozen=True)
class Scale:
    """Features less the mean of the training part, over one number: there their mean squared length is 1.

    So a rate means the same for networks of any width and size of features, and is stable below about 8 (half is the
    largest curvature of the loss, by momentum 0.9). It is one number, not one a feature: a linear layer loses nothing
    by either, and features that hardly vary in training are not blown up on test.
    """

    mean: Tensor
    length: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Scale:
        """By the features of the training part, (N, D)."""
        mean = features.mean(0)
        length = (features - mean).square().sum(1).mean().sqrt()
        return cls(mean, torch.where(length > 0, length, torch.ones_like(length)))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.length


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A probe's accuracy on test after its last epoch, at the rate that was best on held-out examples.

    ``validation`` has the held-out accuracy of every rate; ``edge``: the best rate is the grid's lowest or highest.
    """

    accuracy: float
    rate: float
    validation: Mapping[float, float]
    edge: bool
    num_classes: int
    num_train: int
    num_test: int


def linear_probe(
    train: Labelled,
    test: Labelled,
    validation: Labelled | None = None,
    *,
    settings: ProbeTraining = ProbeTraining(),
    seed: int = 0,
) -> Transfer:
    """Fit a linear layer for every rate, choose the rate on held-out examples, score on test.

    Held out is ``validation``, or a share of each class of ``train``: then the layer of the chosen rate is fitted once
    more, on all of ``train``. Of rates that do equally well the lowest is taken. Test is looked at once.

    Args:
        train: features and classes, as of `pooled_features`.
        test: features and classes of the part that is scored.
        validation: the data set's own part for choices.
        settings: how probes are trained.
        seed: of the split and the order of examples.

    Raises:
        ValueError: features of other widths, no examples, or one class only.
    """
    parts = {"train": train, "test": test, **({} if validation is None else {"validation": validation})}
    for name, part in parts.items():
        if not len(part) or part.values.shape[1] != train.values.shape[1]:
            raise ValueError(f"{name}: {len(part)} examples of {part.values.shape[1]} features")
    num_classes = 1 + max(int(part.labels.max()) for part in parts.values())
    if len(train.labels.unique()) < 2:
        raise ValueError("train: examples of two classes or more are needed")
    rates = sorted(settings.rates)
    kept, away = split(train.labels, settings.held_out, seed) if validation is None else (None, None)
    first = train if kept is None else train.part(kept)
    chosen_by = validation if validation is not None else train.part(away)  # type: ignore[arg-type]
    scale = Scale.of(first.values)
    fitted = fit_probes(scale(first.values), first.labels, num_classes, rates, settings=settings, seed=seed)
    scores = [_accuracy(weight, bias, scale, chosen_by) for weight, bias in zip(*fitted, strict=True)]
    best = max(range(len(rates)), key=lambda place: scores[place])
    if validation is None:
        scale = Scale.of(train.values)
        fitted = fit_probes(
            scale(train.values), train.labels, num_classes, rates[best : best + 1], settings=settings, seed=seed
        )
    weight, bias = (part[best if validation is not None else 0] for part in fitted)
    return Transfer(
        accuracy=_accuracy(weight, bias, scale, test),
        rate=rates[best],
        validation=dict(zip(rates, scores, strict=True)),
        edge=len(rates) > 1 and best in (0, len(rates) - 1),
        num_classes=len(train.labels.unique()),
        num_train=len(train),
        num_test=len(test),
    )


def _accuracy(weight: Tensor, bias: Tensor, scale: Scale, part: Labelled) -> float:
    """Share that one layer, (C, D) and (C,), gets right; one that has run away to infinity gets nothing right."""
    if not (weight.isfinite().all() and bias.isfinite().all()):
        return 0.0
    said = F.linear(scale(part.values), weight, bias).argmax(1)
    return float((said == part.labels).double().mean())


def split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places that stay and places that are held out, both in order: ``share`` of each class, at least one and never
    all; a class of one example stays.
    """
    random = torch.Generator().manual_seed(seed)
    away = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        number = min(max(1, round(share * len(members))), len(members) - 1)
        away[members[torch.randperm(len(members), generator=random)[:number]]] = True
    return torch.nonzero(~away).flatten(), torch.nonzero(away).flatten()


def fit_probes(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    rates: Sequence[float],
    *,
    settings: ProbeTraining = ProbeTraining(),
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Linear layers of the smallest cross-entropy, (R, C, D) and (R, C), from zero; one for each rate, all in one go.

    As `torch.optim.SGD` moves each of them alone, over the same batches: the last one of an epoch may be smaller, the
    rate follows a half cosine from step to step.

    Args:
        features: (N, D).
        labels: (N,), below ``num_classes``.
        num_classes: C.
        rates: rates at the first step.
        settings: batch, epochs and momentum.
        seed: of the order of examples.
    """
    random = torch.Generator().manual_seed(seed)
    number, width = features.shape
    weight = features.new_zeros(len(rates), num_classes, width)
    bias = features.new_zeros(len(rates), num_classes)
    moves = torch.zeros_like(weight), torch.zeros_like(bias)
    wanted = F.one_hot(labels, num_classes).to(features.dtype)
    now = torch.tensor(rates, dtype=features.dtype, device=features.device)
    step, steps = 0, settings.epochs * math.ceil(number / settings.batch)
    for _ in range(settings.epochs):
        mixed = torch.randperm(number, generator=random).to(features.device)
        for chosen in mixed.split(settings.batch):
            x = features[chosen]
            scores = torch.matmul(x, weight.transpose(1, 2)) + bias[:, None]
            slope = (scores.softmax(2) - wanted[chosen]) / len(chosen)  # of the mean loss, by the scores: (R, B, C)
            rate = now * (0.5 * (1 + math.cos(math.pi * step / steps)))
            for value, move, gradient in zip(
                (weight, bias), moves, (torch.matmul(slope.transpose(1, 2), x), slope.sum(1)), strict=True
            ):
                move.mul_(settings.momentum).add_(gradient)
                value.sub_(rate.view(-1, *[1] * (value.dim() - 1)) * move)
            step += 1
    return weight, bias
