"""What a language is like: topographic similarity, distinct messages, and how easily new receivers learn it.

Shapes: G languages side by side, N objects, A attributes of an object, L symbols of a message.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llf_ray.nn.agents import Receiver, chosen, listen, stacked

__all__ = [
    "DEFINITIONS",
    "Definition",
    "distinct_messages",
    "ease_of_teaching",
    "edit_distances",
    "topographic_similarity",
]

Definition = Literal["modern", "li_bowling", "nil"]
DEFINITIONS: tuple[Definition, ...] = ("modern", "li_bowling", "nil")


def edit_distances(one: Tensor, other: Tensor, lengths: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Levenshtein distances of messages (Wagner & Fischer 1974), each cell of the table for all pairs at once, (...).

    Args:
        one: symbols, (..., L).
        other: symbols, (..., M), of a shape that broadcasts with that of ``one``.
        lengths: how many symbols of each message of ``one`` and of ``other`` count, (...) each; None: all.
    """
    shape = torch.broadcast_shapes(one.shape[:-1], other.shape[:-1])
    rows = [[torch.full(shape, place, device=one.device) for place in range(other.shape[-1] + 1)]]
    for row in range(one.shape[-1]):
        above, line = rows[-1], [torch.full(shape, row + 1, device=one.device)]
        for column in range(other.shape[-1]):
            change = above[column] + (one[..., row] != other[..., column])
            line.append(torch.minimum(torch.minimum(above[column + 1], line[column]) + 1, change))
        rows.append(line)
    if lengths is None:
        return rows[-1][-1]
    table = torch.stack([cell for line in rows for cell in line], -1)  # a cell is the distance of two beginnings
    place = (lengths[0] * (other.shape[-1] + 1) + lengths[1]).expand(shape)
    return table.gather(-1, place[..., None])[..., 0]


def topographic_similarity(meanings: Tensor, messages: Tensor, definition: Definition = "modern") -> Tensor:
    """How far alike objects have alike messages: a correlation over pairs of objects of their distances, (G,).

    ``modern``: Spearman's, of Hamming distances of meanings and edit distances of messages (all of one length, so that
    dividing by it changes nothing), over unordered pairs of different objects. Two historical definitions count
    every ordered pair and each object with itself, which raises them. ``li_bowling`` (Li & Bowling 2019,
    arXiv:1906.02403, code): minus Spearman's of edit distances and cosine similarities of one-hot meanings, which are
    1 - Hamming / A. ``nil`` (Ren et al. 2020, arXiv:2002.01365, code): Pearson's of Hamming and edit distances.

    A language whose messages are all equally far apart, one of a single message for example, has 0.

    Args:
        meanings: attributes of objects, (N, A).
        messages: (G, N, L) or, of one language, (N, L).
        definition: which of the three.
    """
    number = meanings.shape[0]
    places = torch.arange(number, device=messages.device)
    one, other = (
        torch.triu_indices(number, number, 1, device=messages.device)
        if definition == "modern"
        else (places.repeat_interleave(number), places.repeat(number))
    )
    meant = (meanings[one] != meanings[other]).sum(-1)
    said = edit_distances(messages[..., one, :], messages[..., other, :])
    if definition == "nil":
        return _correlation(meant.double(), said.double())
    return _correlation(_ranks(meant), _ranks(said))


def _ranks(values: Tensor) -> Tensor:
    """Ranks along the last axis in float64; equal values share the mean of their ranks."""
    from scipy.stats import rankdata  # here: it takes a second, and players and receivers need none of it

    return torch.from_numpy(rankdata(values.cpu().numpy(), axis=-1)).to(values.device)


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's along the last axis; 0 where one of the two does not vary."""
    one, other = (values - values.mean(-1, keepdim=True) for values in (one, other))
    norms = torch.linalg.vector_norm(one, dim=-1) * torch.linalg.vector_norm(other, dim=-1)
    return torch.where(norms > 0, (one * other).sum(-1) / norms.clamp(min=1e-300), 0.0)


def distinct_messages(messages: Tensor) -> Tensor:
    """How many different messages there are in languages of (..., N, L), (...)."""
    same = (messages[..., :, None, :] == messages[..., None, :, :]).all(-1)
    repeated = same.tril(-1).any(-1)
    return (~repeated).sum(-1)


def ease_of_teaching(
    messages: Tensor,
    objects: Tensor,
    *,
    num_symbols: int,
    hidden: int,
    num_candidates: int,
    rectify: bool = False,
    num_receivers: int = 30,
    steps: int = 1000,
    batch: int = 100,
    rate: float = 1e-3,
    entropy: float = 0.1,
    seed: int = 0,
) -> Tensor:
    """Learning curves of fresh receivers on fixed languages, all side by side: mean accuracy by step, (G, steps).

    The sender is frozen and says the same message for an object every time; each step has ``batch`` games with a
    random target among random candidates; receivers learn by REINFORCE and Adam as in the game (Li & Bowling 2019,
    arXiv:1906.02403, section 4), each choice credited by itself, also where a game credits those of a batch together.
    All languages meet the same receivers and the same games.

    Args:
        messages: a message for each object, (G, N, L).
        objects: features of the objects, (N, F).
        num_symbols: V.
        hidden: units of a receiver.
        num_candidates: objects to choose from, the target among them.
        rectify: whose receiver, see `llf_ray.nn.agents.speak`.
        num_receivers: for each language.
        steps: of each receiver.
        batch: games of a step.
        rate: Adam's.
        entropy: weight of the entropy of a receiver's choice.
        seed: of receivers and games.
    """
    (languages, number), device = messages.shape[:2], messages.device
    games = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh = stacked([Receiver(objects.shape[1], hidden, num_symbols) for _ in range(num_receivers)])
    weights = {
        name: value.detach().repeat(languages, *[1] * (value.dim() - 1)).to(device).requires_grad_()
        for name, value in fresh.items()
    }
    heard = messages.repeat_interleave(num_receivers, 0)  # (G receivers, N, L)
    optimizer = torch.optim.Adam(list(weights.values()), lr=rate, fused=True)
    curve = []
    for _ in range(steps):
        targets = torch.randint(number, (batch,), generator=games)
        others = torch.rand(batch, number, generator=games).scatter_(1, targets[:, None], -1.0)
        offered = others.topk(num_candidates, dim=1, largest=False).indices  # the target comes first, (B, K)
        uniform = torch.rand(1, batch, generator=games).to(device)
        asked = (targets[:, None] * number + offered).flatten().to(device)
        # there are fewer objects than games: each message is read once
        scores = listen(weights, heard, objects, rectify=rectify).flatten(1)
        scores = scores.index_select(1, asked).view(-1, batch, num_candidates)
        logs, picks = scores.log_softmax(-1), scores.softmax(-1)
        choice = chosen(picks, uniform)
        gain = (choice == 0) * logs.gather(-1, choice[..., None])[..., 0] - entropy * (picks * logs).sum(-1)
        optimizer.zero_grad()
        (-gain.mean(-1).sum()).backward()
        optimizer.step()
        best = scores.detach()
        right = (best[..., :1] > best[..., 1:]).all(-1)  # the first of equals would always be the target
        curve.append(right.view(languages, -1).double().mean(-1).cpu())
    return torch.stack(curve, -1)
