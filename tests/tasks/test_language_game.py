"""The referential game: what is played, what is learned from it, and that seeds do not feel each other."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llf_ray.config import SettingError, check, from_plain, override, to_plain
from llf_ray.data.order import Draw, order, share_of
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.forget.masks import Bernoulli
from llf_ray.forget.operations import Forget, KeepMask
from llf_ray.journal import Tracking
from llf_ray.measures.language import topographic_similarity
from llf_ray.plan import Curve, Length, Phase
from llf_ray.recipes.iterated_learning import NeuralIteratedLearning
from llf_ray.recipes.long import Long
from llf_ray.recipes.partial_balanced import PartialBalancedForgetting
from llf_ray.recipes.receiver_reset import ReceiverReset
from llf_ray.recipes.seeded_learning import SeededIteratedLearning
from llf_ray.run import Resources, prepare
from llf_ray.tasks.language_game import Games, LanguageGame, Lesson, li_bowling, tiny
from tests.local import Phases, final, journal, settings, whole

CPU = torch.device("cpu")
DRAWN = li_bowling(attributes=(3, 2), symbols=3, candidates=3, hidden=5, games=16, seeds=(0, 3))
ADAM = Optim(name="adam", lr=0.01, weight_decay=0.0)


def draws(game: LanguageGame, batch: int, *, epochs: int = 1, seed: int = 0, ranks: int = 1) -> list[Draw]:
    """All batches of the first epochs as the runtime asks for them, rank by rank."""
    return [
        Draw(indices, (seed, 0, epoch))
        for epoch in range(epochs)
        for start in range(0, game.games - batch + 1, batch)
        for rank in range(ranks)
        for indices in share_of(order(game.games, seed, 0, epoch)[start : start + batch], rank, ranks, batch)
    ]


def played(game: LanguageGame, batch: int = 4, **how: Any) -> list[Games]:
    return list(game.batches("train", draws(game, batch, **how), CPU))


def game_run(recipe: Any, task: LanguageGame = tiny, **changes: Any) -> Any:
    return settings(recipe, task=task, optim=ADAM, engine=EngineSettings(batch=4), **changes)


# ---------------------------------------------------------------------------------------------------- what is played


def test_every_training_object_is_a_target_once_in_a_batch() -> None:
    for games in played(tiny, epochs=2):
        for row, place in zip(games.targets, range(2), strict=True):
            assert sorted(row.tolist()) == trained(tiny, place)


def trained(game: LanguageGame, place: int) -> list[int]:
    """Objects that training meets, by looking at a long stretch of it."""
    return sorted({int(target) for games in played(game, epochs=5) for target in games.targets[place]})


def test_candidates_are_distinct_training_objects_and_hold_the_target() -> None:
    for game in (tiny, DRAWN):
        for games in played(game, epochs=2):
            assert (games.candidates.sum(-1) == 3).all()
            assert games.candidates.gather(2, games.targets[..., None]).all()
            for place in range(2):
                offered = games.candidates[place].any(0).nonzero()[:, 0].tolist()
                assert set(offered) <= set(trained(game, place))
    assert len(trained(tiny, 0)) == 4
    assert trained(tiny, 0) != trained(tiny, 1)  # each seed holds out others
    assert len(trained(DRAWN, 0)) == 6


def test_candidates_are_drawn_anew_every_few_batches_and_symbols_every_time() -> None:
    one, two, three, four = played(tiny)
    assert torch.equal(one.candidates, two.candidates)
    assert torch.equal(three.candidates, four.candidates)
    assert not torch.equal(two.candidates, three.candidates)
    assert not torch.equal(one.symbols, two.symbols)


def test_each_candidate_is_as_likely_as_any_other() -> None:
    game = li_bowling(attributes=(4, 2), candidates=3, games=6000, seeds=(5,))
    (games,) = played(game, batch=6000)
    offered = games.candidates[0][games.targets[0] == 2].double().mean(0)
    expected = torch.full((8,), 2 / 7).double()
    expected[2] = 1
    torch.testing.assert_close(offered, expected, rtol=0, atol=0.06)
    assert torch.bincount(games.targets[0], minlength=8).min() > 650


def test_games_do_not_depend_on_ranks() -> None:
    for game in (tiny, DRAWN):
        whole_ones, parts = played(game), played(game, ranks=2)
        for number, games in enumerate(whole_ones):
            for name in ("targets", "candidates", "symbols"):
                joined = torch.cat([getattr(part, name) for part in parts[2 * number : 2 * number + 2]], 1)
                assert torch.equal(getattr(games, name), joined)


@pytest.mark.parametrize("game", [tiny, DRAWN], ids=["ren", "li"])
def test_a_seed_plays_what_it_plays_alone(game: LanguageGame) -> None:
    for beside, alone in zip(played(game), played(replace(game, seeds=(3,))), strict=True):
        assert torch.equal(beside.targets[1:], alone.targets)
        assert torch.equal(beside.candidates[1:], alone.candidates)
        assert torch.equal(beside.symbols[1:], alone.symbols)


def test_run_seed_generation_and_epoch_make_other_games() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    batches = list(DRAWN.batches("train", [Draw(np.arange(16), key) for key in keys], CPU))
    assert len({tuple(games.targets.flatten().tolist()) for games in batches}) == 4


# ---------------------------------------------------------------------------------------------------- what is learned


def by_hand(game: LanguageGame, model: Any, games: Games) -> Tensor:
    """The loss of one seed after the other, one game at a time, from the definition."""
    play = model(games.targets, games.symbols, games.candidates)
    total = torch.zeros(())
    for place in range(len(game.seeds)):
        gains, picked, wins = [], [], []
        for number in range(games.targets.shape[1]):
            symbols = torch.distributions.Categorical(logits=play.symbols[place, number])
            offered = games.candidates[place, number].nonzero()[:, 0]
            objects = torch.distributions.Categorical(logits=play.objects[place, number, offered])
            if games.choices is None:
                pick = objects.probs.argmax()
            else:
                pick = (objects.probs.cumsum(0) <= games.choices[place, number]).sum().clamp(max=len(offered) - 1)
            won = float(offered[pick] == games.targets[place, number])
            gain = won * symbols.log_prob(play.messages[place, number]).sum()
            gain = gain + game.sender_entropy * symbols.entropy().sum() + game.receiver_entropy * objects.entropy()
            gain = gain + won * objects.log_prob(pick) * (game.credit == "choice")
            gains.append(gain)
            picked.append(play.objects[place, number, offered[pick]])
            wins.append(won)
        beside = torch.tensor(wins) * torch.stack(picked).log_softmax(0) * (game.credit == "batch")
        total = total - (torch.stack(gains) + beside).mean()
    return total


@pytest.mark.parametrize("game", [tiny, replace(tiny, credit="choice"), DRAWN], ids=["batch", "best", "drawn"])
def test_the_loss_is_that_of_reinforce_game_by_game(game: LanguageGame) -> None:
    model, games = game.initial(0), played(game, batch=16)[0]
    loss, tallies = game.loss(model, games)
    expected = by_hand(game, model, games)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    parameters = list(model.parameters())
    found, want = (torch.autograd.grad(value, parameters, materialize_grads=True) for value in (loss, expected))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)
    assert 0 < tallies["accuracy"].total < tallies["accuracy"].count == 32


METHODS = {
    "none": Long(generations=2, epochs=2, warmup_epochs=0, shape="constant"),
    "receiver reset": ReceiverReset(generations=2, epochs=2),
    "partial balanced": PartialBalancedForgetting(generations=2, epochs=2),
    "neural iterated": NeuralIteratedLearning(generations=2, guide=3, interact=6, imitate=7),
    "seeded iterated": SeededIteratedLearning(generations=2, seed=5, interact=5, imitate=4, listen=4, batch=2),
    "random masks": Phases(
        phases=tuple(
            Phase(
                name="play",
                generation=generation,
                length=Length(steps=6),
                curve=Curve(shape="constant"),
                entry=(Forget(keep=Bernoulli(keep=0.5)), KeepMask(store="m", source=Bernoulli(keep=0.8))),
                hold=("m",),
            )
            for generation in range(2)
        )
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_weights_of_a_seed_are_those_that_it_gets_alone(method: str, tmp_path: Path) -> None:
    """Through whole runs: games, gradients, moments, masks and draws."""
    recipe = METHODS[method]
    together = final(whole(game_run(recipe), tmp_path / "together"))
    alone = final(whole(game_run(recipe, replace(tiny, seeds=(3,))), tmp_path / "alone"))
    start = replace(tiny, seeds=(3,)).initial(0).state_dict()
    assert len(alone) == len(together) // 2 == 16
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)
        assert not torch.equal(value, start[name])


def test_two_seeds_begin_differently_and_a_run_s_seed_changes_both() -> None:
    one, other = tiny.initial(0).state_dict(), tiny.initial(1).state_dict()
    name = "sender.seed_{}.cell.weight_hh"
    values = [one[name.format(0)], one[name.format(3)], other[name.format(0)]]
    assert all(not torch.equal(a, b) for a, b in pairwise(values))
    assert float(one[name.format(0)].abs().max()) <= 5**-0.5  # torch's own bound


def test_two_players_come_to_understand_each_other(tmp_path: Path) -> None:
    game = li_bowling(attributes=(3, 2), symbols=3, candidates=3, hidden=20, games=2000, seeds=(0, 1, 2))
    recipe = Long(generations=1, epochs=10, warmup_epochs=0, shape="constant")
    config = settings(recipe, task=game, optim=ADAM, engine=EngineSettings(batch=100), tracking=Tracking(log_every=50))
    folder = whole(config, tmp_path / "run")
    score = journal(folder, "score")[-1]["values"]
    assert score["accuracy"] > 0.7  # 1 / 3 by chance
    assert score["distinct_messages"] >= 3


# -------------------------------------------------------------------------------------------------------------- scores


def test_scores_are_means_over_seeds_and_count_the_language_once() -> None:
    model = tiny.initial(0).eval()
    parts = [np.arange(start, min(start + 7, 25)) for start in range(0, 25, 7)]
    totals: dict[str, Any] = {}
    for games in tiny.batches("validation", [Draw(part) for part in parts], CPU):
        for name, tally in tiny.score(model, games).items():
            totals[name] = totals[name] + tally if name in totals else tally
    scores = {name: tally.mean for name, tally in totals.items()}
    messages = tiny.language(model)
    similarity = topographic_similarity(tiny.meanings(), messages)
    assert scores["topographic_similarity/seed_3"] == pytest.approx(float(similarity[1]))
    assert scores["topographic_similarity"] == pytest.approx(float(similarity.mean()))
    assert scores["distinct_messages/seed_0"] == len({tuple(message) for message in messages[0].tolist()})
    assert totals["accuracy"].count == 2 * 5 * 4
    assert totals["held_out_accuracy/seed_0"].count == 5 * 1
    assert tiny.num_items("validation") == 25
    assert scores["held_out_accuracy"] == pytest.approx(
        (scores["held_out_accuracy/seed_0"] + scores["held_out_accuracy/seed_3"]) / 2
    )
    assert tiny.metric in scores


def test_held_out_objects_are_told_from_all_others_and_training_objects_from_their_like() -> None:
    game = replace(tiny, scored_rounds=20)
    for role in ("validation", "test"):
        games = scored(game, role)
        for place in range(2):
            known, met = trained(tiny, place), set[int]()
            for target, offered in zip(games.targets[place].tolist(), games.candidates[place], strict=True):
                among = offered.nonzero()[:, 0].tolist()
                assert len(among) == 3
                assert target in among
                assert target not in known or set(among) <= set(known)
                met |= set(among)
            # test's own objects are a distraction in test only
            assert len(met) == {"validation": 5, "test": 6}[role]


def scored(game: LanguageGame, role: Any) -> Games:
    (games,) = game.batches(role, [Draw(np.arange(game.num_items(role)))], CPU)
    return games


@pytest.mark.parametrize(("held_out", "parts"), [(2, (1, 1)), (3, (1, 2)), (0, (0, 0))])
def test_validation_and_test_hold_out_objects_of_their_own(held_out: int, parts: tuple[int, int]) -> None:
    game = replace(tiny, held_out=held_out, games=2 * (6 - held_out))
    for place in range(2):
        known = set(trained(game, place)) if held_out else set(range(6))
        one, other = (set(scored(game, role).targets[place].tolist()) for role in ("validation", "test"))
        assert one & other == known
        assert (len(one - known), len(other - known)) == parts
        assert one | other == set(range(6))
    validation, test = scored(game, "validation"), scored(game, "test")
    shared = 6 - held_out
    assert shared == 3 or not torch.equal(validation.candidates[:, :shared], test.candidates[:, :shared])
    with pytest.raises(SettingError, match=r"held_out = 1: must be 0, or 2 or more"):
        replace(tiny, held_out=1, games=5)


# ------------------------------------------------------------------------------------------------------------- lessons


def test_transcripts_are_what_was_said_where_it_was_understood() -> None:
    game = replace(tiny, transcripts=400, seeds=(3,))
    model = game.initial(0)
    with torch.no_grad():  # a sender that always says (2, 1), roughly
        sender: Any = model.sender["seed_3"]
        sender.out.weight.zero_()
        sender.out.bias.copy_(torch.tensor([0.0, 0.0, 20.0]))
    made = game.generate(model, "transcripts", seed=5)
    objects, messages = made["objects"][:, 0], made["messages"][:, 0]
    assert objects.shape == (400,)
    assert messages.shape == (400, 2)
    assert set(objects.tolist()) == set(trained(game, 0))
    said = (messages == 2).all(1).double().mean()
    # understood in some games, and of the rest a random message is (2, 2) once in nine
    assert 1 / 9 < said < 0.8
    others = messages[~(messages == 2).all(1)]
    shares = torch.bincount(others[:, 0] * 3 + others[:, 1], minlength=9)[:8].double() / len(others)
    torch.testing.assert_close(shares, torch.full((8,), 1 / 8).double(), rtol=0, atol=0.08)
    assert torch.equal(made["messages"], game.generate(model, "transcripts", seed=5)["messages"])
    assert not torch.equal(made["objects"], game.generate(model, "transcripts", seed=6)["objects"])


def test_messages_are_the_language_of_the_training_objects() -> None:
    model = tiny.initial(0)
    made, language = tiny.generate(model, "messages", seed=1), tiny.language(model)
    assert len(made["objects"]) == tiny.store_size("messages") == 4
    for place in range(2):
        assert made["objects"][:, place].tolist() == trained(tiny, place)
        assert torch.equal(made["messages"][:, place], language[place][made["objects"][:, place]])


def test_a_seed_makes_the_lessons_that_it_makes_alone() -> None:
    alone = replace(tiny, seeds=(3,))
    for what in ("transcripts", "messages"):
        together, own = (game.generate(game.initial(0), what, seed=2) for game in (tiny, alone))
        assert torch.equal(together["objects"][:, 1:], own["objects"])
        assert torch.equal(together["messages"][:, 1:], own["messages"])


def test_imitation_is_the_cross_entropy_of_symbols_after_what_was_said_itself() -> None:
    model = tiny.initial(0)
    store = tiny.generate(model, "transcripts", seed=2)
    (lesson,) = tiny.stored_batches(store, [Draw(np.array([4, 1]), (0, 1, 0))], CPU)
    assert isinstance(lesson, Lesson)
    assert torch.equal(lesson.objects, store["objects"][[4, 1]].T)
    loss, tallies = tiny.imitate(model, lesson)
    play = model(lesson.objects, lesson.feedback)
    expected = sum(
        torch.nn.functional.cross_entropy(play.symbols[place].flatten(0, 1), lesson.messages[place].flatten())
        for place in range(2)
    )
    torch.testing.assert_close(loss, expected)
    assert tallies["accuracy"].count == 4


def test_a_sender_learns_a_lesson_by_heart(tmp_path: Path) -> None:
    recipe = NeuralIteratedLearning(generations=2, guide=0, interact=1, imitate=300, batch=3)
    game = replace(tiny, hidden=30)
    folder = whole(game_run(recipe, replace(game, seeds=(0,))), tmp_path / "run")
    hits = [record["values"]["train/accuracy"] for record in journal(folder, "metrics")]
    assert np.mean(hits[1:60]) < np.mean(hits[-60:-1])


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"candidates": "70"}, "task.candidates = 70: must be >= 2 and <= 56"),
        ({"held_out": "63"}, "task.held_out = 63: must be >= 0 and <= 62"),
        ({"games": "5601"}, "task.games = 5601: must be a multiple of the 56 training objects"),
        ({"targets": "random"}, "task.hold_candidates = 4: must be 1 where targets are random"),
        ({"seeds": "1,1"}, "task.seeds = (1, 1): one or more, each once"),
        ({"attributes": "1"}, "task.attributes = (1,): one number of values each, two objects or more"),
        ({"choice": "worst"}, "task.choice"),
        ({"symbols": "0"}, "task.symbols = 0: must be >= 1"),
    ],
)
def test_an_impossible_game_is_refused_by_its_dotted_key(changes: dict[str, str], said: str) -> None:
    config = settings(Long(), task=LanguageGame())
    with pytest.raises(SettingError) as caught:
        override(config, {f"task.{key}": value for key, value in changes.items()})
    assert str(caught.value).startswith(said)


def test_a_step_whose_games_are_divided_is_refused_where_they_are_held_against_one_another() -> None:
    with pytest.raises(SettingError, match=r"engine.batch = 4 comes in micro-batches of 2: .* resources.workers = 1"):
        prepare(game_run(Long(), resources=Resources(workers=2)))
    for engine in (EngineSettings(batch=4, accumulation=4), EngineSettings(batch=4, micro_batch=1)):
        with pytest.raises(SettingError, match=r"micro-batches of 1: .* engine\.accumulation = 1"):
            prepare(replace(game_run(Long()), engine=engine))
    divided = game_run(Long(), replace(tiny, credit="choice"), resources=Resources(workers=2))
    assert prepare(divided).plan.total > 0
    # a lesson has a batch of its own, which nothing holds together
    lessons = SeededIteratedLearning(generations=2, seed=3, interact=3, imitate=4, listen=2, batch=2)
    assert prepare(game_run(lessons)).plan.total > 0


def test_dividing_a_batch_changes_only_the_credit_that_is_refused_for_it() -> None:
    """Why it is refused: the gradient of half and half is that of the whole for one kind of credit alone."""
    games = played(tiny, batch=16)[0]
    for credit, same in (("choice", True), ("batch", False)):
        game = replace(tiny, credit=credit)  # type: ignore[arg-type]
        model = game.initial(0)
        receiver = list(model.receiver.parameters())
        halves = [games.at(slice(0, 8)), games.at(slice(8, 16))]
        together = torch.autograd.grad(game.loss(model, games)[0], receiver)
        apart = torch.autograd.grad(sum(game.loss(model, half)[0] for half in halves) / 2, receiver)  # type: ignore[arg-type]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(together, apart, strict=True)) == same


@pytest.mark.parametrize("batch", [2, 8])
def test_a_batch_of_other_than_all_objects_is_refused_where_each_is_a_target_once(batch: int) -> None:
    with pytest.raises(SettingError, match=rf"engine.batch = {batch}: must be 4, the number of training objects"):
        prepare(replace(game_run(Long()), engine=EngineSettings(batch=batch)))
    assert prepare(replace(game_run(Long(), DRAWN), engine=EngineSettings(batch=batch))).plan.total > 0


def test_lessons_that_there_are_not_are_named() -> None:
    with pytest.raises(SettingError, match="did you mean 'transcripts'"):
        tiny.store_size("transcript")


def test_a_game_is_settings() -> None:
    for game in (tiny, LanguageGame(), li_bowling()):
        check(game)
        assert from_plain(to_plain(game)) == game
    assert prepare(game_run(Long())).plan.epoch_steps == (4,)
    assert (LanguageGame().num_objects, LanguageGame().num_trained, li_bowling().num_objects) == (64, 56, 32)
    assert LanguageGame().features().sum(1).tolist() == [2.0] * 64
