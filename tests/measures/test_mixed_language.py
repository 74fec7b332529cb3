"""The mixed-language probe: what is taught, that clones alone are perturbed, and what forgetting removes."""

from __future__ import annotations

import pytest
import torch

from llf_ray.measures.mixed_language import MixedLanguage, mixed_language, perturbations, probe_mixed_language
from llf_ray.tasks.language_game import li_bowling

GAME = li_bowling()


def test_half_of_a_mixed_language_is_compositional_and_the_other_is_dealt() -> None:
    meanings = GAME.meanings()
    messages, compositional = mixed_language(meanings, seed=3)
    assert int(compositional.sum()) == 16
    assert torch.equal(messages[compositional], meanings[compositional])
    others = ~compositional
    assert (messages[others] != meanings[others]).any(1).double().mean() > 0.8
    every = {tuple(meaning) for meaning in meanings.tolist()}
    assert {tuple(message) for message in messages[others].tolist()} <= every
    assert len({tuple(message) for message in messages[others].tolist()}) == 16  # no two alike
    again, same = mixed_language(meanings, seed=3)
    assert torch.equal(messages, again)
    assert torch.equal(compositional, same)
    assert not torch.equal(mixed_language(meanings, seed=4)[0], messages)


def test_retention_and_selectivity_are_shares_of_what_was_known() -> None:
    before = torch.tensor([[[1.0, 0.5], [0.0, 1.0], [0.4, 0.0], [0.0, 0.0]]])
    after = {"x": torch.tensor([[[0.5, 0.1], [0.3, 0.5], [0.2, 0.0], [0.0, 0.0]]])}
    found, none = MixedLanguage(steps=(1, 2, 3, 4), before=before, after=after), torch.nan
    wanted = torch.tensor([[[0.5, 0.2], [none, 0.5], [0.5, none], [none, none]]])
    torch.testing.assert_close(found.retention("x"), wanted, equal_nan=True)
    torch.testing.assert_close(found.selectivity("x"), torch.tensor([[0.3, none, none, none]]), equal_nan=True)


def test_perturbations_are_the_eight_of_the_paper() -> None:
    every = perturbations()
    assert len(every) == 8
    assert {operation.fill for operation in every.values()} == {"initial", "zero"}


def test_perturbing_everything_by_nothing_changes_nothing() -> None:
    how = {"seeds": (0,), "hidden": 20, "steps": 60, "every": 30, "rate": 0.01}
    found = probe_mixed_language(GAME.meanings(), GAME.features(), keep=1.0, **how)
    assert found.steps == (30, 60)
    assert float(found.before[0, -1].min()) > 0.5
    for values in found.after.values():
        assert torch.equal(values, found.before)
    forgotten = probe_mixed_language(GAME.meanings(), GAME.features(), keep=0.0, **how)
    assert torch.equal(forgotten.before, found.before)  # training does not feel the clones
    assert max(float(values.max()) for values in forgotten.after.values()) < 0.2


def test_forgetting_removes_more_of_the_holistic_half() -> None:
    """The claim of Zhou et al., for large weights kept from initialisation and the rest drawn anew."""
    found = probe_mixed_language(
        GAME.meanings(), GAME.features(), seeds=(0, 1, 2), hidden=60, steps=300, every=20, rate=3e-3
    )
    assert float(found.before[:, -1].min()) == pytest.approx(1)
    late = found.selectivity("same magnitude, redraw")[:, 5:].mean(1)
    assert float(late.mean()) > 0.1
    assert float(late.min()) > 0
