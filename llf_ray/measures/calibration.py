"""Calibration: whether a network is right as often as it says it is. N examples, C classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llf_ray.config import check_number

__all__ = ["Bin", "Calibration", "calibration"]


@dataclass(frozen=True)
class Bin:
    """Examples whose confidence lies above ``low`` and at or below ``high``; means of an empty bin are 0."""

    low: float
    high: float
    number: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Errors of probabilities.

    ``error`` and ``largest`` are the mean (weighted by examples) and the largest distance of accuracy from confidence
    over bins: the expected and the maximum calibration error of Guo et al. 2017, arXiv:1706.04599, section 2.
    ``brier`` is the mean squared distance of the probabilities from the true class, summed over classes (0 to 2);
    ``likelihood`` the mean negative log likelihood.
    """

    error: float
    largest: float
    brier: float
    likelihood: float
    accuracy: float
    confidence: float
    bins: tuple[Bin, ...]


def calibration(scores: Tensor, labels: Tensor, *, bins: int = 15) -> Calibration:
    """Calibration of held-out examples; confidence is the largest probability.

    Args:
        scores: before the softmax, (N, C).
        labels: true classes, (N,).
        bins: of equal width, from 0 to 1.

    Raises:
        ValueError: there are no examples.
    """
    check_number("bins", bins, low=1)
    if not len(labels):
        raise ValueError("there are no examples")
    logs = scores.double().log_softmax(1)
    probabilities = logs.exp()
    confidence, said = probabilities.max(1)
    right = (said == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)  # right-closed: 1.0 is in the last
    number = torch.bincount(place, minlength=bins)
    means = [
        torch.bincount(place, weights=value, minlength=bins) / number.clamp(min=1) for value in (confidence, right)
    ]
    found = tuple(
        Bin(float(edges[i]), float(edges[i + 1]), int(number[i]), float(means[0][i]), float(means[1][i]))
        for i in range(bins)
    )
    gaps = (means[0] - means[1]).abs()
    return Calibration(
        error=float((gaps * number).sum() / len(labels)),
        largest=float(gaps.max()),
        brier=float((probabilities - F.one_hot(labels, scores.shape[1])).square().sum(1).mean()),
        likelihood=float(F.nll_loss(logs, labels)),
        accuracy=float(right.mean()),
        confidence=float(confidence.mean()),
        bins=found,
    )
