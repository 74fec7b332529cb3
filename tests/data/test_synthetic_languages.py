"""Two languages for one meaning, held against parsers that know the grammar from the other side."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from llf_ray.config import SettingError
from llf_ray.data.synthetic_languages import (
    END,
    LONGEST,
    PAD,
    Clause,
    Lexicon,
    Phrase,
    Predicate,
    SyntheticLanguages,
    say_first,
    say_second,
)

SMALL = SyntheticLanguages(
    num_pairs=150, num_monolingual=200, num_validation=40, num_test=50, nouns=7, verbs=5, adjectives=4, homonyms=4
)


class First:
    """Every reading of a sentence of the first language: each method yields (what was read, the place behind it)."""

    def __init__(self, words: list[str], lexicon: Lexicon) -> None:
        self.words, self.lexicon = words, lexicon

    def at(self, place: int, word: str) -> bool:
        return self.words[place : place + 1] == [word]

    def one_of(self, place: int, stems: tuple[str, ...]) -> Iterator[int]:
        yield from (number for number, stem in enumerate(stems) if self.at(place, stem))

    def clauses(self) -> Iterator[Clause]:
        for subject, place in self.phrases(0, deep=True):
            for predicate, stop in self.predicates(place, subject.plural, deep=True):
                if stop == len(self.words):
                    yield Clause(subject, predicate)

    def phrases(self, place: int, *, deep: bool) -> Iterator[tuple[Phrase, int]]:
        fronts = [(None, place), *((number, place + 1) for number in self.one_of(place, self.lexicon.adjectives))]
        for adjective, start in fronts:
            for noun in self.one_of(start, self.lexicon.nouns):
                plural = self.at(start + 1, "+s")
                stop = start + 1 + plural
                yield Phrase(noun, plural, adjective, None), stop
                if deep and self.at(stop, "that"):
                    for relative, end in self.predicates(stop + 1, plural, deep=False):
                        yield Phrase(noun, plural, adjective, relative), end

    def predicates(self, place: int, plural: bool, *, deep: bool) -> Iterator[tuple[Predicate, int]]:
        negated = self.at(place, "not")
        future = self.at(place + negated, "will")
        start = place + negated + future
        for verb in self.one_of(start, self.lexicon.verbs):
            past = self.at(start + 1, "+ed")
            singular = self.at(start + 1 + past, "+z")
            if (future and past) or singular == plural:
                continue
            for thing, stop in self.phrases(start + 1 + past + singular, deep=deep):
                yield Predicate(verb, 2 if future else int(past), negated, thing), stop


CASES = {"+o": (0, False, 0), "+on": (0, False, 1), "+oi": (0, True, 0), "+oin": (0, True, 1)} | {
    "+a": (1, False, 0), "+u": (1, False, 1), "+e": (1, True, 0), "+ev": (1, True, 1)
}  # fmt: skip
AGREEING = {"+ko": (0, False), "+koi": (0, True), "+ka": (1, False), "+ke": (1, True)}


class Second(First):
    """Every reading of a sentence of the second language."""

    def clauses(self) -> Iterator[Clause]:
        for subject, place in self.phrases(0, case=0, deep=True):
            for predicate, stop in self.predicates(place, deep=True):
                if stop == len(self.words):
                    yield Clause(subject, predicate)

    def phrases(self, place: int, *, case: int, deep: bool) -> Iterator[tuple[Phrase, int]]:
        fronts = [(None, place)]
        if deep:
            found = self.predicates(place, deep=False)
            fronts += [(relative, stop + 1) for relative, stop in found if self.at(stop, "so")]
        for relative, start in fronts:
            for noun in self.one_of(start, self.lexicon.nouns):
                kind, plural, found_case = CASES.get(self.words[start + 1], (None, False, None))
                if (kind, found_case) != (self.lexicon.classes[noun], case):
                    continue
                yield Phrase(noun, plural, None, relative), start + 2
                for adjective in self.one_of(start + 2, self.lexicon.adjectives):
                    if AGREEING.get(self.words[start + 3]) == (kind, plural):
                        yield Phrase(noun, plural, adjective, relative), start + 4

    def predicates(self, place: int, *, deep: bool) -> Iterator[tuple[Predicate, int]]:
        for thing, start in self.phrases(place, case=1, deep=deep):
            for verb in self.one_of(start, self.lexicon.verbs):
                tense = {"+it": 0, "+ut": 1, "+at": 2}.get(self.words[start + 1])
                if tense is not None:
                    negated = self.at(start + 2, "+ne")
                    yield Predicate(verb, tense, negated, thing), start + 2 + negated


@pytest.mark.parametrize(("language", "parser"), [(0, First), (1, Second)])
def test_every_sentence_has_one_reading_and_it_is_what_was_meant(language: int, parser: type[First]) -> None:
    corpora = SMALL.corpora()
    lexicon = corpora.lexicons[language]
    parts = {role: corpora.pairs[role][language] for role in ("train", "validation", "test")}
    parts[("first", "second")[language]] = corpora.text[language]
    for part, rows in parts.items():
        read = [list(parser(corpora.spell(row).split(), lexicon).clauses()) for row in rows.tolist()]
        assert read == [[clause] for clause in corpora.meanings[part]]


def test_a_word_alone_may_mean_two_things() -> None:
    first, second = SMALL.corpora().lexicons
    assert len(set(first.verbs) & set(first.nouns)) == 4
    assert len(set(second.adjectives) & set(second.nouns)) == 4
    words = [{*lexicon.nouns, *lexicon.verbs, *lexicon.adjectives} for lexicon in (first, second)]
    assert not words[0] & words[1]


def test_no_two_sentences_share_a_meaning_but_for_the_pairs() -> None:
    corpora = SMALL.corpora()
    every = [clause for part in corpora.meanings.values() for clause in part]
    assert len(every) == len(set(every)) == 40 + 50 + 150 + 2 * 200
    rows = [rows for pair in corpora.pairs.values() for rows in pair] + list(corpora.text)
    sentences = [tuple(row) for part in rows for row in part.tolist()]
    assert len(sentences) == len(set(sentences))


def test_a_sentence_is_its_words_then_end_then_padding() -> None:
    corpora = SMALL.corpora()
    for rows, sizes in ((corpora.text[0], [2, 3]), (corpora.text[1], [2, 3])):
        assert rows.shape == (200, LONGEST + 1)
        lengths = (rows != PAD).sum(1)
        for row, length in zip(rows, lengths, strict=True):
            assert row[length - 1] == END
            assert (row == END).sum() == 1
            assert not set(sizes) & set(row.tolist())


def test_the_longest_meaning_fits() -> None:
    """In either language, with every word that a sentence can have."""
    deep = Phrase(0, True, 0, Predicate(0, 2, True, Phrase(0, True, 0, None)))
    longest = Clause(replace(deep, plural=False), Predicate(0, 2, True, deep))
    singular = Clause(
        replace(deep, plural=False, relative=Predicate(0, 2, True, Phrase(0, True, 0, None))), longest.predicate
    )
    first, second = SMALL.corpora().lexicons
    assert len(say_first(singular, first)) <= LONGEST
    assert len(say_second(singular, second)) == LONGEST


def test_the_languages_follow_from_their_settings_alone() -> None:
    one, again, other = (
        replace(SMALL, seed=seed, num_test=50 + extra).corpora() for seed, extra in ((0, 0), (0, 1), (1, 0))
    )
    assert one.words == again.words
    np.testing.assert_array_equal(one.pairs["test"][0], again.pairs["test"][0][:50])
    assert one.words != other.words
    assert one.meanings["test"] != other.meanings["test"]


def test_more_pairs_begin_with_the_fewer_and_leave_validation_and_test_alone() -> None:
    few, more = SMALL.corpora(), replace(SMALL, num_pairs=300).corpora()
    assert more.meanings["train"][:150] == few.meanings["train"]
    for role in ("validation", "test"):
        np.testing.assert_array_equal(more.pairs[role][1], few.pairs[role][1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_pairs": 0}, "num_pairs = 0: must be >= 1"),
        ({"homonyms": 5}, "homonyms = 5: must be >= 0 and <= 4"),
        ({"nouns": 2, "verbs": 1, "homonyms": 0}, "640 different meanings are more than the 96 that 2 nouns and 1 "),
        ({"nouns": 2000}, "nouns + verbs + adjectives = 2009: there are 1800 words for each language"),
    ],
)
def test_languages_that_cannot_be_are_refused_in_one_line(changes: dict[str, int], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        replace(SMALL, **changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [SMALL, SyntheticLanguages(num_monolingual=10)])
def test_the_number_of_words_is_known_before_there_are_any(settings: SyntheticLanguages) -> None:
    assert settings.num_words == len(settings.corpora().words)
