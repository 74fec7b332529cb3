"""A compact network that turns one sequence of words into another: recurrent, with attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["Translator"]


class Translator(nn.Module):
    """Encoder and decoder of gated recurrent units, joined by attention (Luong et al. 2015, arXiv:1508.04025, the
    "general" score, without input feeding).

    One network for every direction: the first word that the decoder gets names the language to write (Johnson et al.
    2017, arXiv:1611.04558, put such a word into the source). What both directions have in common is learned once, and
    a plan that forgets a part of the network forgets it for both. ``padding`` stands behind a sequence's last word
    and changes nothing.
    """

    def __init__(
        self, num_words: int, *, embedding: int = 64, hidden: int = 96, dropout: float = 0.2, padding: int = 0
    ) -> None:
        super().__init__()
        self.padding = padding
        self.embed = nn.Embedding(num_words, embedding, padding_idx=padding)
        self.encoder = nn.GRU(embedding, hidden, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.decoder = nn.GRU(embedding, hidden, batch_first=True)
        self.attend = nn.Linear(hidden, 2 * hidden, bias=False)
        self.combine = nn.Linear(3 * hidden, hidden)
        self.head = nn.Linear(hidden, num_words)
        self.dropout = nn.Dropout(dropout)

    def forward(self, source: Tensor, words: Tensor) -> Tensor:
        """Scores of the word behind each of ``words``, (batch, length, num_words), for the ``source`` sentences.

        Both are word ids, (batch, any length); ``words`` begin with the word that names the direction.
        """
        memory, state = self._read(source)
        return self._write(words, memory, state, source == self.padding)[0]

    def translate(self, source: Tensor, begin: Tensor, limit: int, end: int) -> Tensor:
        """The likeliest word at each place, (batch, ``limit``), padding behind the first ``end`` and nowhere else: what
        is written can be read as a ``source``.

        ``begin`` holds the word that names the direction, (batch,). The number of steps does not depend on what is
        written: where weights are split over ranks, all of them make each step together.
        """
        memory, state = self._read(source)
        blank, words, found = source == self.padding, begin[:, None], []
        over = torch.zeros_like(begin, dtype=torch.bool)
        for _ in range(limit):
            scores, state = self._write(words, memory, state, blank)
            scores[..., self.padding] = float("-inf")
            words = scores.argmax(2).masked_fill(over[:, None], self.padding)
            over = over | (words[:, 0] == end)
            found.append(words)
        return torch.cat(found, 1)

    def _read(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """What is known of each word in its sentence, (batch, length, 2 hidden), and the decoder's first state."""
        lengths = (source != self.padding).sum(1).cpu()
        packed = pack_padded_sequence(self.dropout(self.embed(source)), lengths, batch_first=True, enforce_sorted=False)
        read, last = self.encoder(packed)
        memory = pad_packed_sequence(read, batch_first=True, total_length=source.shape[1])[0]
        return memory, torch.tanh(self.bridge(torch.cat((last[0], last[1]), 1)))[None]

    def _write(self, words: Tensor, memory: Tensor, state: Tensor, blank: Tensor) -> tuple[Tensor, Tensor]:
        """Scores behind each word, and the state behind the last."""
        written, state = self.decoder(self.dropout(self.embed(words)), state)
        match = torch.einsum("bth,bsh->bts", self.attend(written), memory)
        weights = match.masked_fill(blank[:, None, :], float("-inf")).softmax(2)
        seen = torch.einsum("bts,bsh->bth", weights, memory)
        joined = torch.tanh(self.combine(torch.cat((written, seen), 2)))
        return self.head(self.dropout(joined)), state
