"""The referential game: a sender names an object, a receiver finds it among others, and a language emerges.

Several games (one for each of the task's seeds) are learned side by side, each with parameters of its own. What is
played is a counter-based function of (game seed, run seed, generation, epoch, place), so that it depends neither on
ranks nor on which seeds are beside it: a seed's weights are those that it would get alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from llf_ray.config import SettingError, check_number, unknown
from llf_ray.data.base import Role
from llf_ray.data.order import Draw, Indices, below, bits, order, uniform
from llf_ray.measures.language import DEFINITIONS, distinct_messages, topographic_similarity
from llf_ray.nn.agents import Agents, chosen
from llf_ray.plan import MESSAGES, TRANSCRIPTS
from llf_ray.tasks.base import Tally

__all__ = ["Games", "LanguageGame", "Lesson", "li_bowling", "tiny"]

# words that keep the streams of this file apart, from each other and from other users of the same seed
_WEIGHTS, _HELD_OUT, _TARGETS, _CANDIDATES, _SYMBOLS, _CHOICES, _PAIRS, _NOISE, _FEEDBACK = range(101, 110)
_SCORED: dict[Role, int] = {
    "validation": 1,
    "test": 2,
}  # part of the key of scored games, which are the same at every scoring


@dataclass(frozen=True, eq=False)
class Games:
    """Games of one batch: S seeds, B games each. ``symbols`` and ``choices`` are what is drawn by; None: the most
    probable.
    """

    targets: Tensor  # numbers of objects, (S, B)
    candidates: Tensor  # which objects are to choose from, (S, B, N), boolean
    symbols: Tensor | None  # uniform in [0, 1), (S, B, L)
    choices: Tensor | None  # (S, B)
    first: bool = False  # whether the first of a role's scored games is among them

    def at(self, places: slice | Indices) -> Games:
        """Some of them."""
        return self._each(lambda part: part[:, places])

    def to(self, device: torch.device) -> Games:
        """The same on a device."""
        return self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Games:
        parts = (self.targets, self.candidates, self.symbols, self.choices)
        return Games(*(None if part is None else change(part) for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Lesson:
    """What senders are to say about objects: S seeds, B pairs each."""

    objects: Tensor  # (S, B)
    messages: Tensor  # (S, B, L)
    feedback: Tensor  # what the symbols that are fed back are drawn by, uniform in [0, 1), (S, B, L)


@dataclass(frozen=True, kw_only=True)
class LanguageGame:
    """Objects are all combinations of attributes; a message is ``length`` symbols out of ``symbols``.

    The defaults are the game of Ren et al. 2020 (arXiv:2002.01365), as their code plays it: every training object is a
    target once in a batch (``targets="each"``, with a batch of as many games as there are training objects),
    candidates are drawn anew every ``hold_candidates`` batches, the receiver's most probable candidate counts
    (``choice="best"``). In the game of Li & Bowling 2019 (arXiv:1906.02403), `li_bowling`, targets and choices are
    drawn.

    Both players learn by REINFORCE: ``-won log p - entropy H``, with p the probability of what was said or chosen and
    H summed over symbols. ``credit`` says what the receiver's p is relative to: "choice", to its other candidates;
    "batch", to what was chosen in the games beside it, which Ren et al.'s code computes (a softmax over the other
    axis): gradients of won and lost games then balance like rewards less their mean, and without it hardly anything is
    learned in a generation of theirs. It looks at the games of one micro-batch: a step that is divided over workers or
    by accumulation is refused.

    Unlike that code, the entropy counts all symbols, not the last one alone, and held-out objects are handed on to no
    new sender.

    An epoch is ``games`` games of every seed. Held-out objects are another draw for every seed; training meets them
    neither as targets nor as candidates. Validation has one half of them and test the other, which is the larger of
    odd numbers; validation does not meet test's. Where ``held_out`` is 0 both play about the training objects. What
    the language is like is measured over all objects in both, as it was published.
    """

    attributes: tuple[int, ...] = (8, 8)  # values of each
    symbols: int = 8
    length: int = 2
    candidates: int = 15
    held_out: int = 8  # objects: one part is validation's, one test's
    hidden: int = 128
    rectify: bool = True  # Ren et al.'s agents; else Li & Bowling's
    targets: Literal["each", "random"] = "each"
    hold_candidates: int = 4
    choice: Literal["best", "drawn"] = "best"
    credit: Literal["choice", "batch"] = "batch"
    sender_entropy: float = 0.1
    receiver_entropy: float = 0.05
    games: int = 5600
    seeds: tuple[int, ...] = (0,)
    scored_rounds: int = 5  # games for each object when it is scored
    transcripts: int = 100  # pairs of object and message that a new sender gets to imitate

    def __post_init__(self) -> None:
        if not self.attributes or min(self.attributes) < 1 or self.num_objects < 2:
            raise SettingError(f"attributes = {self.attributes!r}: one number of values each, two objects or more")
        for name in ("symbols", "length", "hidden", "hold_candidates", "games", "scored_rounds", "transcripts"):
            check_number(name, getattr(self, name), low=1)
        for name in ("sender_entropy", "receiver_entropy"):
            check_number(name, getattr(self, name), low=0)
        check_number("held_out", self.held_out, low=0, high=self.num_objects - 2)
        if self.held_out == 1:
            raise SettingError("held_out = 1: must be 0, or 2 or more: validation and test have objects of their own")
        check_number("candidates", self.candidates, low=2, high=self.num_objects - self.held_out)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise SettingError(f"seeds = {self.seeds!r}: one or more, each once, 0 or above")
        if self.targets == "random" and self.hold_candidates > 1:
            raise SettingError(
                f"hold_candidates = {self.hold_candidates!r}: must be 1 where targets are random; only a game with the "
                "same target can have the same candidates"
            )
        if self.targets == "each" and self.games % self.num_trained:
            raise SettingError(
                f"games = {self.games!r}: must be a multiple of the {self.num_trained} training objects, "
                "each of which is a target once a batch (targets = 'each')"
            )

    @property
    def metric(self) -> str:
        return "topographic_similarity"

    @property
    def num_objects(self) -> int:
        """Objects there are."""
        return int(np.prod(self.attributes))

    @property
    def num_trained(self) -> int:
        """Objects that training meets."""
        return self.num_objects - self.held_out

    def prepare(self) -> None:
        """Nothing outside the settings is needed."""

    def check_batch(self, batch: int, micro: int) -> None:
        """What depends on all games of an optimizer step wants them together, in one micro-batch.

        Raises:
            SettingError: the games of a step are divided, or too few or many for each object to be a target once.
        """
        if self.targets == "each" and batch != self.num_trained:
            raise SettingError(
                f"engine.batch = {batch}: must be {self.num_trained}, the number of training objects, each of which is "
                "a target once a batch (task.targets = 'each')"
            )
        if self.credit == "batch" and micro != batch:
            raise SettingError(
                f"engine.batch = {batch} comes in micro-batches of {micro}: with task.credit = 'batch' the games of a "
                f"step are held against one another, so they must be one of {batch}: resources.workers = 1 and "
                "engine.accumulation = 1"
            )

    # ------------------------------------------------------------------------------------------------------- the agents

    def meanings(self) -> Tensor:
        """Attributes of all objects, (N, A)."""
        return torch.cartesian_prod(*(torch.arange(values) for values in self.attributes)).view(self.num_objects, -1)

    def features(self) -> Tensor:
        """Attributes of all objects as one-hot vectors side by side, (N, F)."""
        columns = zip(self.meanings().unbind(1), self.attributes, strict=True)
        return torch.cat([F.one_hot(column, values).float() for column, values in columns], 1)

    def skeleton(self) -> Agents:
        return Agents(self.features(), self.hidden, self.symbols, self.length, self.seeds, rectify=self.rectify)

    def initial(self, seed: int) -> Agents:
        """Weights of an agent depend on (run seed, its own seed, its role), not on who is beside it."""
        agents = self.skeleton()
        with torch.random.fork_rng(devices=[]):
            for role, group in enumerate((agents.sender, agents.receiver)):
                for own, agent in zip(self.seeds, group.values(), strict=True):
                    key = bits((_WEIGHTS, seed, own), np.array([role]))
                    torch.default_generator.manual_seed(int(key[0]) >> 1)
                    for layer in agent.children():
                        layer.reset_parameters()  # type: ignore[operator]
        return agents

    def build(self, seed: int) -> nn.Module:
        return self.initial(seed)

    # -------------------------------------------------------------------------------------------------------- the games

    def num_items(self, role: Role) -> int:
        return self.games if role == "train" else self.scored_rounds * (self.num_trained + _held(self, role).shape[1])

    def batches(self, role: Role, draws: Iterable[Draw], device: torch.device) -> Iterator[Games]:
        key: tuple[int, ...] | None = None
        for draw in draws:
            if draw.key is None:
                games = _scored(self, role)
                yield replace(games.at(draw.indices).to(device), first=bool((draw.indices == 0).any()))
                continue
            if draw.key != key:
                key, every = draw.key, _epoch(self, draw.key).to(device)
                place = np.argsort(order(self.games, *draw.key))
            # an item is a place in its epoch, so that one batch can hold every object once
            places = place[draw.indices]
            in_a_row = bool((np.diff(places) == 1).all())
            yield every.at(slice(int(places[0]), int(places[-1]) + 1) if in_a_row else places)

    def loss(self, model: nn.Module, batch: Games) -> tuple[Tensor, Mapping[str, Tally]]:
        """The sum over seeds of each one's mean loss, so that gradients of a seed are its own."""
        play = model(batch.targets, batch.symbols, batch.candidates)
        said = play.symbols.log_softmax(-1)
        understood = play.objects.log_softmax(-1)
        says, picks = play.symbols.softmax(-1), play.objects.softmax(-1)  # exp() is slow where it underflows
        choice = chosen(picks, batch.choices)
        won = (choice == batch.targets).float()
        told = said.gather(-1, play.messages[..., None]).sum((-1, -2))
        if self.credit == "batch":
            found = play.objects.gather(-1, choice[..., None])[..., 0].log_softmax(-1)
        else:
            found = understood.gather(-1, choice[..., None])[..., 0]
        gain = won * (told + found)
        gain = gain - self.sender_entropy * (says * said).sum((-1, -2))
        gain = gain - self.receiver_entropy * (picks * understood).sum(-1)
        return -gain.mean(-1).sum(), {"accuracy": Tally(won.sum(), won.numel())}

    # ------------------------------------------------------------------------------------------------------- the scores

    def language(self, model: nn.Module) -> Tensor:
        """The message that each sender most probably says for every object, (S, N, L)."""
        objects = torch.arange(self.num_objects, device=next(model.parameters()).device)
        messages: Tensor = model(objects.expand(len(self.seeds), -1)).messages
        return messages

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Games) -> Mapping[str, Tally]:
        """Accuracy on training objects among such and on the role's held-out ones among all (on validation all but
        test's), and what the language is like, as means over seeds and for each seed.

        Agents say and choose what they think most probable. What does not add up over batches counts with the batch
        that holds the first game.
        """
        play = model(batch.targets, None, batch.candidates)
        won = play.objects.argmax(-1) == batch.targets
        messages = self.language(model)  # on every rank and batch: under ZeRO-3 all run equally many forward passes
        trained = torch.from_numpy(_trained(self)).to(won.device).gather(1, batch.targets)
        tallies: dict[str, Tally] = {}
        _tally(tallies, self.seeds, "accuracy", (won & trained).sum(1), trained.sum(1))
        if self.held_out:
            _tally(tallies, self.seeds, "held_out_accuracy", (won & ~trained).sum(1), (~trained).sum(1))
        counted = torch.full((len(self.seeds),), int(batch.first), device=won.device)
        for name, values in self.describe(messages).items():
            _tally(tallies, self.seeds, name, values * counted, counted)
        return tallies

    def describe(self, messages: Tensor) -> dict[str, Tensor]:
        """Measures of languages, (S, N, L), by name; each (S,)."""
        meanings = self.meanings().to(messages.device)
        names = {name: f"topographic_similarity{'' if name == 'modern' else f'_{name}'}" for name in DEFINITIONS}
        found = {names[name]: topographic_similarity(meanings, messages, name) for name in DEFINITIONS}
        return {**found, "distinct_messages": distinct_messages(messages).double()}

    # ------------------------------------------------------------------------------------------ lessons for new senders

    def store_size(self, what: str) -> int:
        """How many items `generate` makes.

        Raises:
            SettingError: no such data.
        """
        sizes = {TRANSCRIPTS: self.transcripts, MESSAGES: self.num_trained}
        if what not in sizes:
            raise unknown("data to generate", what, sizes)
        return sizes[what]

    @torch.no_grad()
    def generate(self, model: nn.Module, what: str, seed: int) -> dict[str, Tensor]:
        """Pairs for senders to imitate: ``objects``, (P, S), and ``messages``, (P, S, L).

        "transcripts" (Ren et al. 2020, algorithm 1 and code): games about random training objects with symbols as they
        are drawn; where the receiver was wrong a random message takes the place of what was said. "messages": the most
        probable message for each training object.
        """
        number, device = self.store_size(what), next(model.parameters()).device
        games = _transcribed(self, seed, number).to(device) if what == TRANSCRIPTS else None
        if games is None:
            objects = torch.from_numpy(np.stack([np.flatnonzero(kept) for kept in _trained(self)])).to(device)
            messages = model(objects).messages
        else:
            objects = games.targets
            play = model(objects, games.symbols, games.candidates)
            choice = chosen(play.objects.softmax(-1), games.choices)
            noise = torch.from_numpy(_numbers(self, self.symbols, _NOISE, (seed,), number * self.length))
            noise = noise.view(len(self.seeds), number, self.length).to(device)
            messages = torch.where((choice == objects)[..., None], play.messages, noise)
        return {"objects": objects.T.contiguous().cpu(), "messages": messages.transpose(0, 1).contiguous().cpu()}

    def stored_batches(
        self, store: Mapping[str, Tensor], draws: Iterable[Draw], device: torch.device
    ) -> Iterator[Lesson]:
        """One lesson a draw from what `generate` made."""
        objects, messages = store["objects"].T.to(device), store["messages"].transpose(0, 1).to(device)
        key: tuple[int, ...] | None = None
        for draw in draws:
            assert draw.key is not None
            if draw.key != key:
                key = draw.key
                feedback = _uniforms(self, _FEEDBACK, key, objects.shape[1] * self.length)
                every = torch.from_numpy(feedback).float().view(len(self.seeds), -1, self.length).to(device)
            yield Lesson(objects[:, draw.indices], messages[:, draw.indices], every[:, draw.indices])

    def imitate(self, model: nn.Module, batch: Lesson) -> tuple[Tensor, Mapping[str, Tally]]:
        """Cross-entropy of every symbol, a mean over symbols and pairs, summed over seeds.

        A sender hears what it said itself, not what it should have said (Ren et al. 2020, code). The tally counts
        messages that it said in full.
        """
        play = model(batch.objects, batch.feedback)
        said = play.symbols.log_softmax(-1).gather(-1, batch.messages[..., None])
        right = (play.messages == batch.messages).all(-1)
        return -said.mean((-1, -2, -3)).sum(), {"accuracy": Tally(right.sum(), right.numel())}


def li_bowling(**changes: Any) -> LanguageGame:
    """The game of Li & Bowling 2019: 8 colours and 4 shapes, 5 candidates; 100 games a batch in the paper."""
    game = LanguageGame(
        attributes=(8, 4),
        candidates=5,
        held_out=0,
        hidden=100,
        rectify=False,
        targets="random",
        hold_candidates=1,
        choice="drawn",
        credit="choice",
        receiver_entropy=0.1,
        games=10_000,
    )
    return replace(game, **changes)


# ----------------------------------------------------------------------------------------------- what is played, by key


@lru_cache(maxsize=8)
def _trained(game: LanguageGame) -> NDArray[np.bool_]:
    """Which objects training meets, (S, N)."""
    kept = np.ones((len(game.seeds), game.num_objects), dtype=bool)
    for role in _SCORED:
        np.put_along_axis(kept, _held(game, role), False, axis=1)
    return kept


def _held(game: LanguageGame, role: Role) -> Indices:
    """Held-out objects of a role, (S, number): validation's are the first half of a draw, test's the rest."""
    mixed = np.stack([np.argsort(bits((_HELD_OUT, seed), np.arange(game.num_objects))) for seed in game.seeds])
    half = game.held_out // 2
    return mixed[:, :half] if role == "validation" else mixed[:, half : game.held_out]


def _uniforms(game: LanguageGame, word: int, key: tuple[int, ...], number: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) of every seed's own stream, (S, number)."""
    counters = np.arange(number)
    return np.stack([uniform((word, seed, *key), counters) for seed in game.seeds])


def _numbers(game: LanguageGame, limit: int, word: int, key: tuple[int, ...], number: int) -> Indices:
    """Whole numbers below a limit of every seed's own stream, (S, number)."""
    counters = np.arange(number)
    return np.stack([below(limit, (word, seed, *key), counters) for seed in game.seeds])


def _candidates(
    game: LanguageGame, targets: Indices, pool: NDArray[np.bool_], key: tuple[int, ...]
) -> NDArray[np.bool_]:
    """The target and others of the pool at random, (S, P, N); the pool is (S, N) or (S, P, N)."""
    counters = np.arange(targets.shape[1] * game.num_objects).reshape(targets.shape[1], game.num_objects)
    keys = np.stack([bits((_CANDIDATES, seed, *key), counters) for seed in game.seeds])
    keys[np.broadcast_to(~(pool if pool.ndim == 3 else pool[:, None]), keys.shape)] = np.iinfo(np.uint64).max
    np.put_along_axis(keys, targets[..., None], np.uint64(0), axis=2)
    chosen_ones = np.argpartition(keys, game.candidates - 1, axis=2)[..., : game.candidates]
    offered = np.zeros(keys.shape, dtype=bool)
    np.put_along_axis(offered, chosen_ones, True, axis=2)
    return offered


def _epoch(game: LanguageGame, key: tuple[int, ...]) -> Games:
    """All games of an epoch, place by place."""
    pool = _trained(game)
    known = np.stack([np.flatnonzero(kept) for kept in pool])
    if game.targets == "each":
        rounds = game.games // game.num_trained
        targets = np.tile(known, (1, rounds))
        held = -(-rounds // game.hold_candidates)
        offered = _candidates(game, np.tile(known, (1, held)), pool, key)
        offered = offered.reshape(len(pool), held, game.num_trained, -1).repeat(game.hold_candidates, 1)[:, :rounds]
        offered = offered.reshape(*targets.shape, -1)
    else:
        targets = np.take_along_axis(known, _numbers(game, game.num_trained, _TARGETS, key, game.games), 1)
        offered = _candidates(game, targets, pool, key)
    return _drawn(game, targets, offered, key)


def _transcribed(game: LanguageGame, seed: int, number: int) -> Games:
    """Games about training objects, drawn independently: but for a game that is drawn twice the same as drawing from
    many passes over all of them.
    """
    pool, key = _trained(game), (_PAIRS, seed)
    known = np.stack([np.flatnonzero(kept) for kept in pool])
    targets = np.take_along_axis(known, _numbers(game, game.num_trained, _TARGETS, key, number), 1)
    return _drawn(game, targets, _candidates(game, targets, pool, key), key)


def _drawn(game: LanguageGame, targets: Indices, offered: NDArray[np.bool_], key: tuple[int, ...]) -> Games:
    """With the numbers by which symbols and choices are drawn."""
    number = targets.shape[1]
    symbols = _uniforms(game, _SYMBOLS, key, number * game.length).reshape(len(game.seeds), number, game.length)
    choices = _uniforms(game, _CHOICES, key, number) if game.choice == "drawn" else None
    return Games(
        torch.from_numpy(targets),
        torch.from_numpy(offered),
        torch.from_numpy(symbols).float(),
        None if choices is None else torch.from_numpy(choices).float(),
    )


@lru_cache(maxsize=8)
def _scored(game: LanguageGame, role: Role) -> Games:
    """Every training object among such, and every held-out one of the role among all (but test's, on validation), a few
    times each.
    """
    pool, own = _trained(game), _held(game, role)
    others = pool.copy() if role == "validation" else np.ones_like(pool)
    np.put_along_axis(others, own, True, axis=1)
    known = np.stack([np.flatnonzero(kept) for kept in pool])
    targets = np.tile(np.concatenate([known, own], 1), (1, game.scored_rounds))
    trained = np.take_along_axis(pool, targets, 1)
    offered = _candidates(game, targets, np.where(trained[..., None], pool[:, None], others[:, None]), (_SCORED[role],))
    return Games(torch.from_numpy(targets), torch.from_numpy(offered), None, None)


def _tally(tallies: dict[str, Tally], seeds: tuple[int, ...], name: str, totals: Tensor, counts: Tensor) -> None:
    """The mean over seeds, and each seed's own."""
    numbers = counts.tolist()
    for seed, total, count in zip(seeds, totals.double(), numbers, strict=True):
        tallies[f"{name}/seed_{seed}"] = Tally(total, int(count))
    tallies[name] = Tally(totals.double().sum(), int(sum(numbers)))


tiny = LanguageGame(
    attributes=(3, 2),
    symbols=3,
    candidates=3,
    held_out=2,
    hidden=5,
    games=16,
    hold_candidates=2,
    seeds=(0, 3),
    transcripts=6,
)
