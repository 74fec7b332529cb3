"""Measures of languages against slow definitions and scipy."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from llf_ray.measures.language import distinct_messages, ease_of_teaching, edit_distances, topographic_similarity

MEANINGS = torch.cartesian_prod(torch.arange(4), torch.arange(3))
ONE_HOT = torch.cat([torch.nn.functional.one_hot(MEANINGS[:, 0], 4), torch.nn.functional.one_hot(MEANINGS[:, 1], 3)], 1)


def levenshtein(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(
            distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        )

    return distance(len(one), len(other))


def random_languages(number: int, length: int = 3, symbols: int = 4) -> Tensor:
    random = torch.Generator().manual_seed(7)
    return torch.randint(symbols, (number, len(MEANINGS), length), generator=random)


def test_edit_distances_are_levenshtein_s() -> None:
    random = torch.Generator().manual_seed(0)
    one, other = (torch.randint(3, (200, length), generator=random) for length in (4, 5))
    expected = [levenshtein(tuple(a), tuple(b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    assert edit_distances(one, other).tolist() == expected
    shifted = edit_distances(torch.tensor([1, 2, 3, 4]), torch.tensor([2, 3, 4, 1]))
    assert shifted == 2  # where Hamming says 4


def test_messages_of_any_length_have_the_distance_of_what_counts() -> None:
    random = torch.Generator().manual_seed(1)
    one, other = (torch.randint(3, (300, length), generator=random) for length in (5, 6))
    lengths = [torch.randint(message.shape[1] + 1, (300,), generator=random) for message in (one, other)]
    cut = [
        [tuple(row[:length]) for row, length in zip(message.tolist(), upto.tolist(), strict=True)]
        for message, upto in zip((one, other), lengths, strict=True)
    ]
    expected = [levenshtein(a, b) for a, b in zip(*cut, strict=True)]
    assert edit_distances(one, other, (lengths[0], lengths[1])).tolist() == expected
    assert {len(a) for a in cut[0]} == set(range(6)), "empty ones too"
    first = edit_distances(one, other[:1], (lengths[0], lengths[1][:1]))  # all against one
    assert first.tolist() == [levenshtein(a, cut[1][0]) for a in cut[0]]


@pytest.mark.parametrize("definition", ["modern", "li_bowling", "nil"])
def test_topographic_similarity_is_scipy_s_correlation(definition: str) -> None:
    languages = random_languages(3)
    found = topographic_similarity(MEANINGS, languages, definition)  # type: ignore[arg-type]
    for value, language in zip(found.tolist(), languages.tolist(), strict=True):
        objects = range(len(language))
        pairs = list(
            itertools.combinations(objects, 2) if definition == "modern" else itertools.product(objects, objects)
        )
        said = [levenshtein(tuple(language[a]), tuple(language[b])) for a, b in pairs]
        meant = [int((MEANINGS[a] != MEANINGS[b]).sum()) for a, b in pairs]
        codes = ONE_HOT.double().numpy()
        norms = np.linalg.norm(codes, axis=1)
        # rounded: scipy must see equal cosines as equal
        alike = np.round([codes[a] @ codes[b] / norms[a] / norms[b] for a, b in pairs], 9)
        if definition == "nil":
            expected = pearsonr(meant, said).statistic
        elif definition == "li_bowling":
            expected = -spearmanr(said, alike).statistic
        else:
            expected = spearmanr(meant, np.array(said) / 3).statistic
        assert value == pytest.approx(expected, abs=1e-12)


def test_a_compositional_language_has_similarity_one_and_a_single_message_none() -> None:
    assert topographic_similarity(MEANINGS, MEANINGS) == pytest.approx(1)
    assert topographic_similarity(MEANINGS, torch.zeros(2, 12, 2, dtype=torch.long)).tolist() == [0, 0]


def test_self_pairs_raise_the_historical_measures_of_a_random_language() -> None:
    languages = random_languages(200, length=2, symbols=8)
    modern, li_bowling, nil = (
        topographic_similarity(MEANINGS, languages, definition).mean()  # type: ignore[arg-type]
        for definition in ("modern", "li_bowling", "nil")
    )
    assert abs(modern) < 0.02
    assert li_bowling > 0.15
    assert nil > 0.25


def test_distinct_messages_are_counted() -> None:
    languages = random_languages(5, length=2, symbols=3)
    assert distinct_messages(languages).tolist() == [len(set(map(tuple, language))) for language in languages.tolist()]


def test_a_compositional_language_is_learned_faster_than_the_same_messages_in_another_order() -> None:
    objects = ONE_HOT.float()
    mixed = MEANINGS[torch.randperm(12, generator=torch.Generator().manual_seed(3))]
    curves = ease_of_teaching(
        torch.stack([MEANINGS, mixed]),
        objects,
        num_symbols=4,
        hidden=16,
        num_candidates=5,
        num_receivers=8,
        steps=150,
        batch=50,
        rate=5e-3,
    )
    assert curves.shape == (2, 150)
    assert curves[:, 0] == pytest.approx([0.2, 0.2], abs=0.1)
    assert curves[0, -50:].mean() > curves[1, -50:].mean() + 0.1
    assert curves[0, -50:].mean() > 0.6


def test_a_language_is_taught_as_it_is_alone() -> None:
    how = {"num_symbols": 4, "hidden": 6, "num_candidates": 3, "num_receivers": 3, "steps": 20, "batch": 30}
    languages = torch.stack([MEANINGS, MEANINGS.flip(0)])
    together = ease_of_teaching(languages, ONE_HOT.float(), **how)
    alone = ease_of_teaching(languages[1:], ONE_HOT.float(), **how)
    assert together[1].tolist() == pytest.approx(alone[0].tolist(), abs=0.02)  # one game more or less
