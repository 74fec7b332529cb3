"""The translating network: padding changes nothing, and translations are the likeliest words one by one."""

import pytest
import torch
from torch import Tensor

from llf_ray.nn.translator import Translator

END, BEGIN, LIMIT = 1, 2, 9


@pytest.fixture
def network() -> Translator:
    torch.manual_seed(3)
    found = Translator(11, embedding=6, hidden=8, dropout=0.3).eval()
    with torch.no_grad():  # far from a tie, with an END now and then
        found.head.weight.mul_(6)
        found.decoder.weight_hh_l0.mul_(4)
        found.head.bias[END] += 1.5
    return found


def sentences() -> tuple[Tensor, list[int]]:
    lengths = [5, 2, 7, 3, 1, 6, 4, 7]
    rows = torch.zeros(len(lengths), 7, dtype=torch.long)
    random = torch.Generator().manual_seed(0)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = torch.cat((torch.randint(3, 11, (length - 1,), generator=random), torch.tensor([END])))
    return rows, lengths


def test_padding_behind_a_sentence_changes_nothing(network: Translator) -> None:
    source, lengths = sentences()
    words = torch.randint(2, 11, (8, 5), generator=torch.Generator().manual_seed(1))
    together = network(source, words)
    alone = [network(row[None, :length], one[None]) for row, length, one in zip(source, lengths, words, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    wider = network(torch.cat((source, torch.zeros(8, 3, dtype=torch.long)), 1), words)
    torch.testing.assert_close(together, wider, rtol=1e-4, atol=1e-5)


def test_no_word_sees_those_behind_it(network: Translator) -> None:
    source, _ = sentences()
    words = torch.randint(2, 11, (8, 5), generator=torch.Generator().manual_seed(1))
    changed = words.clone()
    changed[:, 3:] = 4
    torch.testing.assert_close(network(source, words)[:, :3], network(source, changed)[:, :3])


def one_by_one(network: Translator, sentence: Tensor) -> list[int]:
    """The likeliest next word given all before it, from scratch at each place, until END."""
    words = [BEGIN]
    while len(words) <= LIMIT and words[-1] != END:
        scores = network(sentence[None], torch.tensor([words]))
        words.append(1 + int(scores[0, -1, 1:].argmax()))  # 0 is padding, no word
    return words[1:]


@torch.no_grad()
def test_a_batch_is_translated_as_one_sentence_at_a_time(network: Translator) -> None:
    source, lengths = sentences()
    said = network.translate(source, torch.full((8,), BEGIN), LIMIT, END)
    assert said.shape == (8, LIMIT)
    expected = [one_by_one(network, row[:length]) for row, length in zip(source, lengths, strict=True)]
    assert [row[: len(one)] for row, one in zip(said.tolist(), expected, strict=True)] == expected
    assert len({tuple(one) for one in expected}) > 3, "translations that are all alike would prove little"


@torch.no_grad()
def test_a_translation_ends_at_its_first_end_or_at_the_limit(network: Translator) -> None:
    source, _ = sentences()
    said = network.translate(source, torch.full((8,), BEGIN), LIMIT, END).tolist()
    ended = [row for row in said if END in row]
    assert ended
    assert all(not any(row[row.index(END) + 1 :]) for row in ended)
    network.head.bias[END] = -1e9
    assert not (network.translate(source, torch.full((8,), BEGIN), LIMIT, END) == END).any()
    network.head.bias[END] = 1e9
    assert network.translate(source, torch.full((8,), BEGIN), LIMIT, END).tolist() == [[END] + [0] * (LIMIT - 1)] * 8


@torch.no_grad()
def test_padding_is_never_said_and_translations_can_be_translated_back(network: Translator) -> None:
    source, _ = sentences()
    network.head.bias[0] = 1e3  # the likeliest word at every place
    said = network.translate(source, torch.full((8,), BEGIN), LIMIT, END)
    spoken = (said != 0).long()
    assert (spoken.diff(dim=1) <= 0).all(), "padding stands behind the last word only"
    assert spoken[:, 0].all()
    assert network.translate(said, torch.full((8,), 3), LIMIT, END).shape == (8, LIMIT)
    network.head.bias[0] = -1e3
    assert torch.equal(said, network.translate(source, torch.full((8,), BEGIN), LIMIT, END))


def test_the_first_word_says_which_language_to_write(network: Translator) -> None:
    source, _ = sentences()
    one, other = (network(source, torch.full((8, 1), begin)) for begin in (2, 3))
    assert not torch.allclose(one, other)


def test_every_parameter_learns(network: Translator) -> None:
    source, _ = sentences()
    network.train()(source, torch.tensor([[2, 4, 5]] * 8)).logsumexp(2).sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in network.parameters())
