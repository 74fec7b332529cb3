"""Translation both ways: its loss and scores against plain definitions, and what it learns from text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llf_ray.config import SettingError
from llf_ray.data.order import Draw
from llf_ray.data.synthetic_languages import BEGIN, END, PAD
from llf_ray.engine.base import EngineSettings
from llf_ray.nn.translator import Translator
from llf_ray.plan import BACK_TRANSLATIONS
from llf_ray.recipes.back_translation import BackTranslation
from llf_ray.run import prepare
from llf_ray.tasks.translation import Sentences, Translation, tiny
from llf_ray.train.folder import create
from tests.local import ADAMW, carry, final, journal, resumed, same_bits, settings, stopping_at, whole

CPU = torch.device("cpu")
LEARNING = {"task": tiny, "optim": ADAMW, "engine": EngineSettings(batch=12)}


def batch_of(task: Translation, role: str, indices: list[int]) -> Sentences:
    (found,) = task.batches(role, [Draw(np.array(indices), (0, 0, 0))], CPU)  # type: ignore[arg-type]
    return found


def spelt(ids: Tensor) -> list[str]:
    return [tiny.data.corpora().spell(row) for row in ids.tolist()]


def test_each_pair_is_learned_both_ways() -> None:
    first, second = tiny.data.corpora().pairs["train"]
    batch = batch_of(tiny, "train", [6, 7])
    pair = (spelt(torch.from_numpy(first[3:4]))[0], spelt(torch.from_numpy(second[3:4]))[0])
    assert (spelt(batch.source), spelt(batch.target)) == (list(pair), list(pair[::-1]))
    assert batch.begin.tolist() == [BEGIN[1], BEGIN[0]]
    assert tiny.num_items("train") == 2 * 24
    assert (batch.source != PAD).any(0).all(), "no column of padding alone"


def test_a_pair_of_validation_is_scored_both_ways() -> None:
    batch = batch_of(tiny, "validation", [4, 1])
    first, second = (torch.from_numpy(rows[[4, 1]]) for rows in tiny.data.corpora().pairs["validation"])
    assert spelt(batch.source) == spelt(first) + spelt(second)
    assert spelt(batch.target) == spelt(second) + spelt(first)


def test_the_loss_is_that_of_the_words_one_sentence_at_a_time() -> None:
    """In float64, with label smoothing as (1 - s) of the true word and s of the mean over all words."""
    task = replace(tiny, label_smoothing=0.2)
    model = task.build(0).double().eval()
    batch = batch_of(task, "train", list(range(9)))
    losses, right, words = [], 0, 0
    for source, target, begin in zip(batch.source, batch.target, batch.begin, strict=True):
        true = [word for word in target.tolist() if word != PAD]
        scores = model(source[source != PAD][None], torch.tensor([[int(begin), *true[:-1]]]))[0]
        logs = scores.float().log_softmax(1)
        each = [0.8 * -logs[place, word] + 0.2 * -logs[place].mean() for place, word in enumerate(true)]
        losses.append(sum(each) / len(each))
        right += sum(int(scores[place].argmax()) == word for place, word in enumerate(true))
        words += len(true)
    loss, tallies = task.loss(model, batch)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)
    assert (float(tallies["accuracy"].total), tallies["accuracy"].count) == (right, words)


def test_ranks_of_equal_shares_have_the_mean_loss_of_their_batch() -> None:
    model = tiny.build(0).eval()
    whole_loss, _ = tiny.loss(model, batch_of(tiny, "train", list(range(12))))
    parts = [tiny.loss(model, batch_of(tiny, "train", list(range(start, start + 6))))[0] for start in (0, 6)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole_loss)


def test_scores_count_what_the_network_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two pairs, to the second language one is right and the other lacks a word; to the first both are empty."""
    batch = batch_of(tiny, "validation", [0, 1])
    said = torch.zeros(4, 28, dtype=torch.long)
    said[0, : batch.target.shape[1]] = batch.target[0]
    said[1, : batch.target.shape[1] - 1] = batch.target[1, 1:]
    said[2:, 0] = END
    model = tiny.build(0).eval()
    monkeypatch.setattr(Translator, "translate", lambda *_: said)
    found = {name: one.mean for name, one in tiny.score(model, batch).items()}
    lengths = [len(sentence.split()) for sentence in spelt(batch.target)]
    assert found["exact_match"] == 0.25
    assert found["exact_match_to_second"] == 0.5
    assert found["exact_match_to_first"] == 0.0
    assert found["word_errors_to_second"] == pytest.approx(1 / sum(lengths[:2]))
    assert found["word_errors_to_first"] == 1.0
    assert found["word_errors"] == pytest.approx((1 + sum(lengths[2:])) / sum(lengths))


@torch.no_grad()
def test_back_translations_have_real_text_as_target_and_the_networks_words_as_source() -> None:
    model = tiny.build(1).eval()
    assert isinstance(model, Translator)
    made = tiny.generate(model, BACK_TRANSLATIONS, 0)
    first, second = (torch.from_numpy(rows) for rows in tiny.data.corpora().text)
    assert {len(value) for value in made.values()} == {tiny.store_size(BACK_TRANSLATIONS)} == {40}
    torch.testing.assert_close(made["target"].long(), torch.cat((first, second)))
    assert made["begin"].tolist() == [BEGIN[0]] * 20 + [BEGIN[1]] * 20
    for item, other in ((3, BEGIN[1]), (33, BEGIN[0])):
        text = made["target"][item].long()
        alone = model.translate(text[text != PAD][None], torch.tensor([other]), 28, END)
        torch.testing.assert_close(made["source"][item].long(), alone[0])


def stored(task: Translation, indices: np.ndarray, key: tuple[int, ...] = (0, 1, 0)) -> Sentences:
    """From a store whose sources are all a word that no sentence has."""
    first, second = (torch.from_numpy(rows) for rows in tiny.data.corpora().text)
    target = torch.cat((first, second)).to(torch.int16)
    source = torch.zeros_like(target)
    source[:, 0] = BEGIN[0]
    store = {"source": source, "target": target, "begin": torch.tensor([BEGIN[0]] * 20 + [BEGIN[1]] * 20)}
    (batch,) = task.stored_batches(store, [Draw(indices, key)], CPU)
    return batch


def test_a_batch_mixes_pairs_and_back_translations_in_the_named_share() -> None:
    indices = np.arange(40)
    shares = []
    for epoch in range(50):
        batch = stored(replace(tiny, pair_share=0.3), indices, (0, 1, epoch))
        synthetic = (batch.source == BEGIN[0]).any(1)
        shares.append(1 - synthetic.double().mean().item())
        text = torch.cat([torch.from_numpy(rows) for rows in tiny.data.corpora().text])
        width = batch.target.shape[1]
        torch.testing.assert_close(batch.target[synthetic], text[synthetic][:, :width])
    assert np.mean(shares) == pytest.approx(0.3, abs=0.04)  # 2,000 draws: a standard error of 0.01
    assert (stored(replace(tiny, pair_share=0.0), indices).source == BEGIN[0]).any(1).all()
    true = stored(replace(tiny, pair_share=1.0), indices)
    pairs = batch_of(tiny, "train", list(range(48)))
    known = set(zip(spelt(pairs.source), spelt(pairs.target), pairs.begin.tolist(), strict=True))
    assert set(zip(spelt(true.source), spelt(true.target), true.begin.tolist(), strict=True)) <= known


def test_what_is_learned_from_a_store_does_not_depend_on_how_a_batch_is_divided() -> None:
    together = stored(tiny, np.arange(40))
    parts = [stored(tiny, np.arange(start, start + 10)) for start in range(0, 40, 10)]
    assert spelt(together.source) == [sentence for part in parts for sentence in spelt(part.source)]
    assert spelt(together.target) == [sentence for part in parts for sentence in spelt(part.target)]


def test_only_back_translations_can_be_generated() -> None:
    with pytest.raises(SettingError, match="generate 'back-translation' does not exist; did you mean 'back-transl"):
        tiny.store_size("back-translation")


@pytest.mark.parametrize(("name", "value"), [("pair_share", 1.1), ("label_smoothing", 1.0)])
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"{name} = {value}"):
        replace(tiny, **{name: value})


RECIPE = BackTranslation(generations=3, epochs=2)


def test_a_run_stopped_in_a_later_generation_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = settings(RECIPE, **LEARNING)
    reference = whole(config, tmp_path / "whole")
    run = create(prepare(config), tmp_path / "run")
    for step in (6, 10, 19):
        assert carry(run, stopping_at(step)).state == "stopped"
    assert resumed(run.folder).state == "finished"
    assert same_bits(final(run.folder), final(reference))


def made_by(folder: Path) -> list[dict[str, Tensor]]:
    return [load_file(path) for path in sorted((folder / "stores").glob("synthetic-*/data.safetensors"))]


def test_iterating_translates_the_text_anew_and_the_control_once(tmp_path: Path) -> None:
    iterated = whole(settings(RECIPE, **LEARNING), tmp_path / "iterated")
    once = whole(settings(replace(RECIPE, iterated=False), **LEARNING), tmp_path / "once")
    labels = {path.name: [r["operation"] for r in journal(path, "operation")] for path in (iterated, once)}
    generate, fresh = "generate back-translations into synthetic", "re-initialise all and statistics"
    assert labels["iterated"] == [generate, fresh, generate, fresh]
    assert labels["once"] == [generate, fresh, fresh]
    earlier, later = made_by(iterated)
    assert torch.equal(earlier["target"], later["target"])
    assert not torch.equal(earlier["source"], later["source"])
    assert same_bits(made_by(once)[0], earlier)


@pytest.mark.parametrize(("forget", "kept"), [("network", False), ("later", True), ("nothing", True)])
def test_what_is_forgotten_is_what_was_asked_for(forget: str, kept: bool, tmp_path: Path) -> None:
    """Seen in what the boundary touched: the encoder is kept where only later layers are forgotten."""
    folder = whole(settings(replace(RECIPE, generations=2, forget=forget), **LEARNING), tmp_path / "run")
    touched = {item["name"] for record in journal(folder, "operation") for item in record["touched"]}
    assert ("encoder.weight_ih_l0" not in touched) == kept
    assert ("decoder.weight_ih_l0" in touched) == ("head.weight" in touched) == (forget != "nothing")


def test_learning_pairs_by_heart_makes_exact_translations() -> None:
    """A few pairs, many steps: what the network says greedily is then the true sentence, in both directions."""
    task = replace(tiny, label_smoothing=0.0)
    model = replace(task.model, hidden=48, embedding=24, dropout=0.0).make(task.data.num_words)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batch = batch_of(task, "train", list(range(12)))
    for _ in range(120):
        loss, _ = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = {name: one.mean for name, one in task.score(model.eval(), batch).items()}
    wanted = SimpleNamespace(exact_match=1.0, word_errors=0.0, word_accuracy=1.0)
    assert {name: scores[name] for name in vars(wanted)} == vars(wanted)
