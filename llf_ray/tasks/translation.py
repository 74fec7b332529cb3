"""Sentences to sentences of the other language, in both directions: cross-entropy of words, scored by exact match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llf_ray.config import check_number, unknown
from llf_ray.data.order import Draw, Indices, below, uniform
from llf_ray.data.synthetic_languages import BEGIN, END, LONGEST, PAD, SyntheticLanguages
from llf_ray.measures.language import edit_distances
from llf_ray.nn.translator import Translator
from llf_ray.plan import BACK_TRANSLATIONS
from llf_ray.tasks.base import Role, Tally, tally

__all__ = ["Recurrent", "Sentences", "Translation", "tiny"]

_PAIRS = 23  # the word that keeps these draws apart from other users of the same seed
LIMIT = LONGEST + 1  # words of a translation, END included
AT_ONCE = 500  # sentences that are translated together
LANGUAGES = ("first", "second")


@dataclass(frozen=True, eq=False)
class Sentences:
    """Sentences with their translations, as word ids: ``source`` and ``target`` (batch, length) with END and PAD, and
    ``begin``, (batch,), the word that names the target's language.
    """

    source: Tensor
    target: Tensor
    begin: Tensor


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """A `llf_ray.nn.translator.Translator` of these widths."""

    embedding: int = 64
    hidden: int = 96
    dropout: float = 0.2

    def __post_init__(self) -> None:
        check_number("embedding", self.embedding, low=1)
        check_number("hidden", self.hidden, low=1)
        check_number("dropout", self.dropout, low=0, below=1)

    def make(self, num_words: int) -> nn.Module:
        """A network for so many words of both languages together."""
        return Translator(num_words, embedding=self.embedding, hidden=self.hidden, dropout=self.dropout, padding=PAD)


@dataclass(frozen=True, kw_only=True)
class Translation:
    """One network learns to translate between two languages, both ways.

    An item of training is a sentence with its translation in one direction, so each pair is two items; an item of
    validation and test is a pair, scored both ways.

    ``generate`` makes "back-translations": every monolingual sentence as a target, with what the network makes of it
    in the other language as its source (Sennrich et al. 2016, arXiv:1511.06709), by the likeliest word at each place.
    Learning from such a store, each place of a batch is with probability ``pair_share`` given to a true pair instead,
    by a draw of its own for each item and epoch: the share does not depend on how many of either there are.
    """

    data: SyntheticLanguages = SyntheticLanguages()
    model: Recurrent = Recurrent()
    label_smoothing: float = 0.1
    pair_share: float = 0.5

    def __post_init__(self) -> None:
        check_number("label_smoothing", self.label_smoothing, low=0, below=1)
        check_number("pair_share", self.pair_share, low=0, high=1)

    @property
    def metric(self) -> str:
        return "exact_match"

    @property
    def ask_at_least(self) -> int:
        """An epoch of a few pairs is a few steps."""
        return 50

    def prepare(self) -> None:
        """Nothing lies outside the settings."""

    def skeleton(self) -> nn.Module:
        return self.model.make(self.data.num_words)

    def initial(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.skeleton()

    def build(self, seed: int) -> nn.Module:
        return self.initial(seed)

    def num_items(self, role: Role) -> int:
        pairs = {"validation": self.data.num_validation, "test": self.data.num_test}
        return 2 * self.data.num_pairs if role == "train" else pairs[role]

    def batches(self, role: Role, draws: Iterable[Draw], device: torch.device) -> Iterator[Sentences]:
        """Training: item 2n is pair n to the second language, item 2n + 1 to the first. Else: all pairs of a draw to
        the second, then all to the first.
        """
        items = _both_ways(self.data, role)
        for draw in draws:
            if role == "train":
                yield _batch([items[name][draw.indices] for name in ("source", "target", "begin")], device)
            else:
                places = np.concatenate([2 * draw.indices, 2 * draw.indices + 1])
                yield _batch([items[name][places] for name in ("source", "target", "begin")], device)

    def loss(self, model: nn.Module, batch: Sentences) -> tuple[Tensor, Mapping[str, Tally]]:
        """Mean over sentences of the mean cross-entropy of their words, END included, padding left out.

        Sentences weigh the same however long they are, so the mean over ranks of equal shares is that of the batch.
        """
        scores = model(batch.source, _given(batch))
        real = batch.target != PAD
        words = F.cross_entropy(
            scores.float().transpose(1, 2), batch.target, reduction="none", label_smoothing=self.label_smoothing
        )
        loss = ((words * real).sum(1) / real.sum(1)).mean()
        return loss, {"accuracy": tally((scores.argmax(2) == batch.target)[real])}

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Sentences) -> Mapping[str, Tally]:
        """Of both directions together and of each: the share of sentences that are right word for word, words wrong
        (edits) for each true word; and of single words given the true ones in front, accuracy and cross-entropy.
        """
        scores = model(batch.source, _given(batch)).float()
        real = batch.target != PAD
        losses = F.cross_entropy(scores.transpose(1, 2), batch.target, reduction="none")
        assert isinstance(model, Translator)
        said = model.translate(batch.source, batch.begin, LIMIT, END)
        target = F.pad(batch.target, (0, LIMIT - batch.target.shape[1]), value=PAD)
        exact = (said == target).all(1)
        lengths = _lengths(batch.target)
        edits = edit_distances(_cut(said), batch.target, (_lengths(said), lengths))
        by_direction: dict[str, Tally] = {}
        for begin, language in zip(BEGIN, LANGUAGES, strict=True):
            chosen = batch.begin == begin
            by_direction[f"exact_match_to_{language}"] = tally(exact[chosen])
            by_direction[f"word_errors_to_{language}"] = Tally(edits[chosen].double().sum(), int(lengths[chosen].sum()))
        return {
            "exact_match": tally(exact),
            "word_errors": Tally(edits.double().sum(), int(lengths.sum())),
            **by_direction,
            "word_accuracy": tally((scores.argmax(2) == batch.target)[real]),
            "loss": tally(losses[real]),
        }

    def store_size(self, what: str) -> int:
        if what != BACK_TRANSLATIONS:
            raise unknown("generate", what, (BACK_TRANSLATIONS,))
        return 2 * self.data.num_monolingual

    def generate(self, model: nn.Module, what: str, seed: int) -> dict[str, Tensor]:
        """Every monolingual sentence, first those of the first language, as ``target``, with its translation as
        ``source``. Nothing is drawn.
        """
        assert isinstance(model, Translator)
        device = next(model.parameters()).device
        found: dict[str, list[Tensor]] = {"source": [], "target": [], "begin": []}
        for language, text in enumerate(self.data.corpora().text):
            other = BEGIN[1 - language]
            for rows in torch.from_numpy(text).split(AT_ONCE):
                begin = torch.full((len(rows),), other, device=device)
                found["source"].append(model.translate(_cut(rows).to(device), begin, LIMIT, END).cpu())
                found["target"].append(rows)
                found["begin"].append(torch.full((len(rows),), BEGIN[language]))
        return {name: torch.cat(parts).to(torch.int16) for name, parts in found.items()}

    def stored_batches(
        self, store: Mapping[str, Tensor], draws: Iterable[Draw], device: torch.device
    ) -> Iterator[Sentences]:
        pairs = _both_ways(self.data, "train")
        made = {name: store[name] for name in ("source", "target", "begin")}
        for draw in draws:
            assert draw.key is not None
            true = uniform((_PAIRS, *draw.key, 0), draw.indices) < self.pair_share
            which = below(len(pairs["begin"]), (_PAIRS, *draw.key, 1), draw.indices)
            rows = []
            for name, values in made.items():
                taken = values[torch.from_numpy(draw.indices)].to(torch.int64).numpy()
                mixed = np.where(true.reshape(-1, *[1] * (taken.ndim - 1)), pairs[name][which], taken)
                rows.append(mixed)
            yield _batch(rows, device)


@lru_cache(maxsize=6)
def _both_ways(data: SyntheticLanguages, role: Role) -> dict[str, Indices]:
    """Every pair of a role as two items: to the second language, and to the first."""
    first, second = data.corpora().pairs[role]
    begin = np.tile(np.array([BEGIN[1], BEGIN[0]]), len(first))
    return {
        "source": np.stack([first, second], 1).reshape(-1, first.shape[1]),
        "target": np.stack([second, first], 1).reshape(-1, first.shape[1]),
        "begin": begin,
    }


def _batch(rows: list[Indices], device: torch.device) -> Sentences:
    source, target, begin = (torch.from_numpy(values) for values in rows)
    return Sentences(_cut(source).to(device), _cut(target).to(device), begin.to(device))


def _cut(ids: Tensor) -> Tensor:
    """Without the columns that are padding in every sentence."""
    return ids[:, : int((ids != PAD).sum(1).max())]


def _given(batch: Sentences) -> Tensor:
    """What the decoder is given: the direction, then every word but the last."""
    return torch.cat((batch.begin[:, None], batch.target[:, :-1]), 1)


def _lengths(ids: Tensor) -> Tensor:
    """Words of sentences up to their END, behind which is padding alone, (batch,)."""
    return ((ids != PAD) & (ids != END)).sum(1)


tiny = Translation(
    data=SyntheticLanguages(
        num_pairs=24, num_monolingual=20, num_validation=10, num_test=10, nouns=5, verbs=3, adjectives=3, homonyms=1
    ),
    model=Recurrent(embedding=8, hidden=12),
)
