"""Two synthetic languages that say the same meanings: few sentences with their translation, much text without.

Meanings come from one context-free grammar::

    clause    -> phrase predicate                      a subject, and what it does
    predicate -> verb tense polarity phrase            every verb has an object
    phrase    -> noun number [adjective] [relative]
    relative  -> predicate                             whose object has no relative clause of its own

The first language is of the kind subject-verb-object, with number in suffixes and auxiliaries in front of the verb,
which agrees with its subject; adjectives stand before, relative clauses behind their noun. The second is of the kind
subject-object-verb: nouns are declined by case and number in one of two classes, adjectives stand behind the noun and
agree with its class, relative clauses stand in front, tense and negation behind the verb. Word classes share some
words (verbs and nouns in the first language, adjectives and nouns in the second), so a word alone may be ambiguous; a
sentence never is, and each meaning has one sentence in each language.

Everything is a pure function of the settings, from the counter-based draws of `llf_ray.data.order`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from llf_ray.config import SettingError, check_number
from llf_ray.data.base import Role
from llf_ray.data.order import Indices, below, bits, uniform

__all__ = [
    "BEGIN",
    "END",
    "LONGEST",
    "PAD",
    "Clause",
    "Corpora",
    "Lexicon",
    "Phrase",
    "Predicate",
    "SyntheticLanguages",
    "say_first",
    "say_second",
]

PAD, END = 0, 1
BEGIN = (2, 3)
"""The word that a translation begins with: of the first and of the second language, so it says the direction."""

TENSES = 3  # present, past, future
LONGEST = 27
"""Words of the longest sentence of either language."""

_PARTS = ("test", "validation", "train", "first", "second")  # in the order in which they take meanings
_WORDS, _CLASSES, _MEANINGS = 20, 21, 22  # words that keep these draws apart from other users of the same seed
_SLOTS = 27  # random numbers of the largest meaning
_BLOCK = 1024  # meanings drawn at a time


@dataclass(frozen=True)
class Phrase:
    """A noun, how many there are, and what is said of it."""

    noun: int
    plural: bool
    adjective: int | None
    relative: Predicate | None


@dataclass(frozen=True)
class Predicate:
    """A verb in its tense (0 present, 1 past, 2 future), whether it is denied, and its object."""

    verb: int
    tense: int
    negated: bool
    object: Phrase


@dataclass(frozen=True)
class Clause:
    """The meaning of a sentence."""

    subject: Phrase
    predicate: Predicate


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """The words of one language by number of noun, verb and adjective, and the class (0 or 1) of each noun."""

    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpora:
    """Sentences as word ids, (sentences, 28): the words, END, and PAD up to the end.

    ``pairs`` holds each role's sentences in the first and in the second language, row by row of one meaning; ``text``
    sentences of each language whose meanings are said nowhere else. ``words`` spells the ids, ``lexicons`` are what
    they were made from, ``meanings`` what was said, by part.
    """

    words: tuple[str, ...]
    lexicons: tuple[Lexicon, Lexicon]
    meanings: Mapping[str, tuple[Clause, ...]]
    pairs: Mapping[Role, tuple[Indices, Indices]]
    text: tuple[Indices, Indices]

    def spell(self, ids: Sequence[int]) -> str:
        """A sentence up to its END, its words separated by blanks."""
        kept = list(ids)[: list(ids).index(END)] if END in ids else [word for word in ids if word != PAD]
        return " ".join(self.words[word] for word in kept)


@dataclass(frozen=True, kw_only=True)
class SyntheticLanguages:
    """Two languages and what there is of them; no two sentences anywhere share a meaning, but for the pairs.

    ``num_monolingual`` sentences of each language come without a translation. ``homonyms`` words of each language
    stand for members of two word classes. More pairs of one seed begin with the fewer.
    """

    num_pairs: int = 300
    num_monolingual: int = 3_000
    num_validation: int = 200
    num_test: int = 500
    nouns: int = 30
    verbs: int = 15
    adjectives: int = 10
    homonyms: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_pairs", "num_monolingual", "num_validation", "num_test", "nouns", "verbs", "adjectives"):
            check_number(name, getattr(self, name), low=1)
        fewest = min(self.nouns, self.verbs, self.adjectives)
        check_number("homonyms", self.homonyms, low=0, high=fewest)
        # 2 numbers of either noun, 3 tenses, said or denied; without adjectives and relative clauses, so never too few
        plain = self.nouns**2 * self.verbs * 4 * TENSES * 2
        wanted = self.num_pairs + 2 * self.num_monolingual + self.num_validation + self.num_test
        if wanted > plain:
            raise SettingError(
                f"{wanted} different meanings are more than the {plain} that {self.nouns} nouns and {self.verbs} verbs "
                "make without adjectives and relative clauses; give the languages more words or fewer sentences"
            )
        if 2 * (self.nouns + self.verbs + self.adjectives) > len(_stems()):
            raise SettingError(
                f"nouns + verbs + adjectives = {self.nouns + self.verbs + self.adjectives}: there are "
                f"{len(_stems()) // 2} words for each language"
            )

    @property
    def num_words(self) -> int:
        """Words of both languages together, with padding, end and the two beginnings."""
        own = self.nouns + self.verbs + self.adjectives - self.homonyms
        return 2 + len(BEGIN) + sum(len(grammatical) + own for grammatical in GRAMMATICAL)

    def corpora(self) -> Corpora:
        """All sentences, made once a process."""
        return _corpora(self)


# ------------------------------------------------------------------------------------------------------------ languages


def say_first(clause: Clause, lexicon: Lexicon) -> list[str]:
    """The words of a meaning in the first language: subject, verb, object."""
    subject = clause.subject
    return [*_first_phrase(subject, lexicon), *_first_predicate(clause.predicate, subject.plural, lexicon)]


def _first_phrase(phrase: Phrase, lexicon: Lexicon) -> list[str]:
    adjective = [] if phrase.adjective is None else [lexicon.adjectives[phrase.adjective]]
    plural = ["+s"] if phrase.plural else []
    relative = [] if phrase.relative is None else ["that", *_first_predicate(phrase.relative, phrase.plural, lexicon)]
    return [*adjective, lexicon.nouns[phrase.noun], *plural, *relative]


def _first_predicate(predicate: Predicate, plural: bool, lexicon: Lexicon) -> list[str]:
    auxiliary = [*(["not"] if predicate.negated else []), *(["will"] if predicate.tense == 2 else [])]
    suffixes = [*(["+ed"] if predicate.tense == 1 else []), *([] if plural else ["+z"])]
    return [*auxiliary, lexicon.verbs[predicate.verb], *suffixes, *_first_phrase(predicate.object, lexicon)]


# by class, number and case of a noun: subject, object
ENDINGS = ((("+o", "+on"), ("+oi", "+oin")), (("+a", "+u"), ("+e", "+ev")))
AGREEMENT = (("+ko", "+koi"), ("+ka", "+ke"))  # of an adjective, by its noun's class and number
TENSE_ENDINGS = ("+it", "+ut", "+at")


def say_second(clause: Clause, lexicon: Lexicon) -> list[str]:
    """The words of a meaning in the second language: subject, object, verb."""
    return [*_second_phrase(clause.subject, 0, lexicon), *_second_predicate(clause.predicate, lexicon)]


def _second_phrase(phrase: Phrase, case: int, lexicon: Lexicon) -> list[str]:
    relative = [] if phrase.relative is None else [*_second_predicate(phrase.relative, lexicon), "so"]
    kind = lexicon.classes[phrase.noun]
    adjective = (
        [] if phrase.adjective is None else [lexicon.adjectives[phrase.adjective], AGREEMENT[kind][phrase.plural]]
    )
    return [*relative, lexicon.nouns[phrase.noun], ENDINGS[kind][phrase.plural][case], *adjective]


def _second_predicate(predicate: Predicate, lexicon: Lexicon) -> list[str]:
    negation = ["+ne"] if predicate.negated else []
    verb = [lexicon.verbs[predicate.verb], TENSE_ENDINGS[predicate.tense], *negation]
    return [*_second_phrase(predicate.object, 1, lexicon), *verb]


GRAMMATICAL = (
    ("+s", "that", "not", "will", "+ed", "+z"),
    (
        "so",
        "+ne",
        *TENSE_ENDINGS,
        *(word for kind in AGREEMENT for word in kind),
        *(word for kind in ENDINGS for number in kind for word in number),
    ),
)
"""What is no noun, verb or adjective, by language."""


@lru_cache(maxsize=1)
def _stems() -> tuple[str, ...]:
    """All words of two open syllables; none of them is a grammatical word."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprtv" for vowel in "aeiou"]
    return tuple(one + other for one in syllables for other in syllables)


def _lexicons(settings: SyntheticLanguages) -> tuple[Lexicon, Lexicon]:
    stems = _stems()
    shuffled = np.argsort(bits((_WORDS, settings.seed), np.arange(len(stems))), kind="stable")
    drawn = iter([stems[place] for place in shuffled])

    def words(number: int) -> list[str]:
        return [next(drawn) for _ in range(number)]

    nouns, verbs, adjectives = ((words(n), words(n)) for n in (settings.nouns, settings.verbs, settings.adjectives))
    shared = settings.homonyms
    verbs[0][:shared] = nouns[0][:shared]
    adjectives[1][:shared] = nouns[1][:shared]
    classes = below(2, (_CLASSES, settings.seed), np.arange(settings.nouns)).tolist()
    first, second = (
        Lexicon(nouns=tuple(n), verbs=tuple(v), adjectives=tuple(a), classes=tuple(classes))
        for n, v, a in zip(nouns, verbs, adjectives, strict=True)
    )
    return first, second


# ------------------------------------------------------------------------------------------------------------- meanings


def _meanings(settings: SyntheticLanguages, part: int) -> Iterator[Clause]:
    """An endless stream of meanings for a part: the n-th is a function of (seed, part, n) alone."""
    start = 0
    while True:
        counters = np.arange(start * _SLOTS, (start + _BLOCK) * _SLOTS)
        for row in uniform((_MEANINGS, settings.seed, part), counters).reshape(_BLOCK, _SLOTS).tolist():
            draws = iter(row)
            subject = _phrase(draws, settings, deep=True)
            yield Clause(subject, _predicate(draws, settings, deep=True))
        start += _BLOCK


def _phrase(draws: Iterator[float], settings: SyntheticLanguages, *, deep: bool) -> Phrase:
    noun, plural = int(next(draws) * settings.nouns), next(draws) < 0.5
    adjective = int(next(draws) * settings.adjectives) if next(draws) < 0.5 else None
    relative = _predicate(draws, settings, deep=False) if deep and next(draws) < 0.25 else None
    return Phrase(noun, plural, adjective, relative)


def _predicate(draws: Iterator[float], settings: SyntheticLanguages, *, deep: bool) -> Predicate:
    verb, tense, negated = int(next(draws) * settings.verbs), int(next(draws) * TENSES), next(draws) < 0.25
    return Predicate(verb, tense, negated, _phrase(draws, settings, deep=deep))


@lru_cache(maxsize=4)
def _corpora(settings: SyntheticLanguages) -> Corpora:
    wanted = (
        settings.num_test,
        settings.num_validation,
        settings.num_pairs,
        settings.num_monolingual,
        settings.num_monolingual,
    )
    taken: dict[Clause, None] = {}
    meanings: dict[str, tuple[Clause, ...]] = {}
    for place, (part, number) in enumerate(zip(_PARTS, wanted, strict=True)):
        before, stream = len(taken), _meanings(settings, place)
        while len(taken) < before + number:
            taken.setdefault(next(stream))
        meanings[part] = tuple(taken)[before:]
    lexicons = _lexicons(settings)
    words = ["<pad>", "<end>", "<first>", "<second>"]
    ids: list[dict[str, int]] = []
    for lexicon, grammatical in zip(lexicons, GRAMMATICAL, strict=True):
        own = dict.fromkeys((*grammatical, *lexicon.nouns, *lexicon.verbs, *lexicon.adjectives))
        ids.append({word: len(words) + number for number, word in enumerate(own)})
        words += own

    def rows(part: str, language: int) -> Indices:
        say = (say_first, say_second)[language]
        found = np.full((len(meanings[part]), LONGEST + 1), PAD, dtype=np.int64)
        for row, clause in zip(found, meanings[part], strict=True):
            sentence = [ids[language][word] for word in say(clause, lexicons[language])]
            row[: len(sentence) + 1] = [*sentence, END]
        return found

    roles: tuple[Role, ...] = ("train", "validation", "test")
    return Corpora(
        words=tuple(words),
        lexicons=lexicons,
        meanings=meanings,
        pairs={role: (rows(role, 0), rows(role, 1)) for role in roles},
        text=(rows("first", 0), rows("second", 1)),
    )
