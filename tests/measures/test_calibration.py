"""Calibration against a loop over examples by hand, and scikit-learn's scores of probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from llf_ray.measures.calibration import calibration


def scores_of(number: int, classes: int, sharpness: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores, and labels drawn by their softmax: calibrated, until the scores are sharpened."""
    random = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(number, classes, generator=random, dtype=torch.float64)
    labels = torch.multinomial(scores.softmax(1), 1, generator=random).flatten()
    return sharpness * scores, labels


def by_hand(scores: Tensor, labels: Tensor, bins: int) -> tuple[float, float]:
    groups: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(scores.softmax(1).tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        groups.setdefault(math.ceil(confidence * bins) - 1, []).append((confidence, row.index(confidence) == label))
    gaps = {
        place: abs(sum(c for c, _ in group) - sum(r for _, r in group)) / len(group) for place, group in groups.items()
    }
    return sum(gaps[p] * len(groups[p]) for p in gaps) / len(labels), max(gaps.values())


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_errors_are_those_of_a_loop_over_examples(bins: int, sharpness: float) -> None:
    scores, labels = scores_of(500, 4, sharpness)
    found = calibration(scores, labels, bins=bins)
    assert (found.error, found.largest) == pytest.approx(by_hand(scores, labels, bins))
    assert found.likelihood == pytest.approx(log_loss(labels.numpy(), scores.softmax(1).numpy(), labels=range(4)))
    wanted = sum(
        sum((p - (place == label)) ** 2 for place, p in enumerate(row))
        for row, label in zip(scores.softmax(1).tolist(), labels.tolist(), strict=True)
    )
    assert found.brier == pytest.approx(wanted / 500)
    assert sum(one.number for one in found.bins) == 500
    assert [one.low for one in found.bins[1:]] == [one.high for one in found.bins[:-1]]


def test_labels_drawn_by_the_probabilities_are_calibrated_and_sharper_scores_are_not() -> None:
    right, sharp, flat = (calibration(*scores_of(20_000, 5, sharpness)) for sharpness in (1.0, 3.0, 0.2))
    assert right.error < 0.02
    assert sharp.error > 0.1
    assert sharp.confidence > sharp.accuracy
    assert flat.confidence < flat.accuracy
    assert right.accuracy == sharp.accuracy == flat.accuracy


def test_certainty_and_an_edge_fall_into_the_bin_below() -> None:
    scores = torch.tensor([[1000.0, 0.0], [0.0, 0.0]])
    found = calibration(scores, torch.tensor([0, 1]), bins=2)
    assert [one.number for one in found.bins] == [1, 1]
    assert found.bins[1].accuracy == 1.0
    assert found.bins[0].confidence == 0.5
    assert found.brier == pytest.approx(0.25)
    with pytest.raises(ValueError, match="there are no examples"):
        calibration(scores[:0], torch.tensor([], dtype=torch.long))
