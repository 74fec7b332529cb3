"""Senders and receivers of the referential game, those of many seeds side by side.

Li & Bowling 2019 (arXiv:1906.02403) and Ren et al. 2020 (arXiv:2002.01365). A message is written and read symbol by
symbol by an LSTM over one-hot symbols; a receiver gives each object the product of its code and the message's.

Every seed owns parameters of its own (``sender.seed_3.embed.weight``), so that masks, draws, norms and moments of a
seed are those that it would have alone; a forward pass multiplies in batches. To spare it a copy, equal parameters of
all seeds lie side by side in memory until an engine puts them elsewhere.

Shapes: S seeds, B games, N objects, F features of an object, H hidden units, V symbols, L symbols of a message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["FORBIDDEN", "Agents", "Play", "Receiver", "Sender", "Weights", "chosen", "listen", "speak", "stacked"]

Weights = Mapping[str, Tensor]  # one agent's parameters by name, those of all seeds stacked in front
FORBIDDEN = -1e9  # score of an object that is no candidate: its probability is exactly zero, its entropy no NaN


class _Dense(nn.Linear):
    """The parameters of a linear layer; a call gives them out, (1, ...) each.

    So whoever partitions parameters (ZeRO-3) is asked for these, as it is when a layer computes.
    """

    def forward(self) -> Weights:  # type: ignore[override]
        return {name: value[None] for name, value in self.named_parameters()}


class _Cell(nn.LSTMCell):
    """The parameters of an LSTM cell, as `_Dense`."""

    def forward(self) -> Weights:  # type: ignore[override]
        return {name: value[None] for name, value in self.named_parameters()}


class Sender(nn.Module):
    """The parameters of one sender, with torch's own initialisation."""

    def __init__(self, features: int, hidden: int, symbols: int) -> None:
        super().__init__()
        self.embed = _Dense(features, hidden)
        self.cell = _Cell(symbols, hidden)
        self.out = _Dense(hidden, symbols)


class Receiver(nn.Module):
    """The parameters of one receiver, with torch's own initialisation."""

    def __init__(self, features: int, hidden: int, symbols: int) -> None:
        super().__init__()
        self.embed = _Dense(features, hidden)
        self.cell = _Cell(symbols, hidden)
        self.out = _Dense(hidden, hidden)


def stacked(agents: Sequence[nn.Module]) -> Weights:
    """Parameters of equal agents by name, each (S, ...)."""
    together = {}
    for layer, first in agents[0].named_children():
        layers = [getattr(agent, layer) for agent in agents]
        for name, _ in first.named_parameters(recurse=False):
            together[f"{layer}.{name}"] = tuple(getattr(one, name) for one in layers)
    if all(_side_by_side(parts) for parts in together.values()):  # so they are whole: nobody need be asked for them
        return {name: _Together.apply(*parts) for name, parts in together.items()}
    every = [
        {f"{layer}.{name}": value for layer, module in agent.named_children() for name, value in module().items()}
        for agent in agents
    ]
    return every[0] if len(every) == 1 else {name: torch.cat([one[name] for one in every]) for name in every[0]}


def _side_by_side(parts: Sequence[Tensor]) -> bool:
    """Whether equal tensors follow one another in one piece of memory."""
    start, size = parts[0].data_ptr(), parts[0].nbytes
    memory = parts[0].untyped_storage()
    return (
        size > 0
        and start + len(parts) * size <= memory.data_ptr() + memory.nbytes()
        and all(part.is_contiguous() and part.data_ptr() == start + k * size for k, part in enumerate(parts))
    )


def _lay_side_by_side(agents: Sequence[nn.Module]) -> None:
    for parts in zip(*(agent.parameters() for agent in agents), strict=True):
        for part, place in zip(parts, torch.stack([part.data for part in parts]), strict=True):
            part.data = place


class _Together(torch.autograd.Function):
    """Tensors that lie side by side as one, (S, ...); nothing is copied, neither here nor in the gradient."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        first = parts[0]
        return first.as_strided((len(parts), *first.shape), (first.numel(), *first.stride()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, ...]:
        return slopes.contiguous().unbind(0)


def chosen(probabilities: Tensor, uniform: Tensor | None) -> Tensor:
    """A place on the last axis: the most probable one, or where the cumulated probability passes ``uniform``.

    Args:
        probabilities: (..., K), not negative; they need not sum to one.
        uniform: in [0, 1), (...); None for the most probable.
    """
    if uniform is None:
        return probabilities.argmax(-1)
    heights = probabilities.detach().float().cumsum(-1)
    drawn = (heights <= uniform[..., None] * heights[..., -1:]).sum(-1)
    return drawn.clamp(max=probabilities.shape[-1] - 1)


def _one_hot(numbers: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """torch's own looks for the largest number first, which takes longer and makes a GPU wait."""
    return (numbers[..., None] == torch.arange(count, device=numbers.device)).to(dtype)


class _Product(torch.autograd.Function):
    """Inputs times transposed weights, plus a bias or none.

    Written out with its gradient, for speed: torch's own gradient of a transposed weight lies transposed in memory, and
    that of every parameter of every seed is then copied.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.biased = bias is not None
        return torch.bmm(inputs, weight.mT) if bias is None else torch.baddbmm(bias[:, None], inputs, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        by_inputs = torch.bmm(slopes, weight) if ctx.needs_input_grad[0] else None
        return by_inputs, torch.bmm(slopes.mT, inputs), slopes.sum(1) if ctx.biased else None


def _linear(weights: Weights, name: str, inputs: Tensor) -> Tensor:
    product: Tensor = _Product.apply(inputs, weights[f"{name}.weight"], weights[f"{name}.bias"])
    return product


def _pushed(weights: Weights, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a hidden state adds to the gates."""
    product: Tensor = _Product.apply(hidden, weights["cell.weight_hh"], bias)
    return product


def _embed(weights: Weights, objects: Tensor, rectify: bool) -> Tensor:
    """Codes of objects, (S, B, H), from their features, (S, B, F) or the same for all seeds, (N, F)."""
    seeds = len(weights["embed.weight"])
    objects = objects if objects.dim() == 3 else objects.expand(seeds, -1, -1)
    codes = _linear(weights, "embed", objects.to(weights["embed.weight"].dtype))
    return codes.relu() if rectify else codes


class _Gates(torch.autograd.Function):
    """What an LSTM makes of its gates and its cell state: hidden and cell state.

    Written out with its gradient, and tanh by way of the sigmoid, for speed: torch's own LSTM takes no batch of
    weights, a tape of ten small operations costs more than the arithmetic, and tanh is slow on CPUs.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        squashed = gates.clone()
        squashed.chunk(4, -1)[2].mul_(2)
        pass_in, keep, doubled, pass_out = squashed.sigmoid_().chunk(4, -1)
        new = doubled * 2 - 1
        cell = torch.addcmul(keep * before, pass_in, new)
        seen = (cell * 2).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(squashed, before, new, seen)
        return pass_out * seen, cell

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_hidden: Tensor, by_cell: Tensor) -> tuple[Tensor, Tensor]:
        squashed, before, new, seen = ctx.saved_tensors
        pass_in, keep, _, pass_out = squashed.chunk(4, -1)
        by_cell = torch.addcmul(by_cell, by_hidden * pass_out, 1 - seen * seen)
        # the slope of a sigmoid s is s (1 - s); that of tanh x = 2 s(2 x) - 1 is four times that
        by_gates = torch.addcmul(squashed, squashed, squashed, value=-1)
        by_in, by_keep, by_new, by_out = by_gates.chunk(4, -1)
        by_in.mul_(by_cell).mul_(new)
        by_keep.mul_(by_cell).mul_(before)
        by_new.mul_(by_cell).mul_(pass_in).mul_(4)
        by_out.mul_(by_hidden).mul_(seen)
        return by_gates, by_cell * keep


def _said(weights: Weights) -> Tensor:
    """What each symbol adds to the gates, biases included, (S, V, 4 H)."""
    return weights["cell.weight_ih"].mT + (weights["cell.bias_ih"] + weights["cell.bias_hh"])[:, None]


def speak(
    weights: Weights,
    objects: Tensor,
    targets: Tensor,
    length: int,
    uniform: Tensor | None = None,
    *,
    rectify: bool = False,
) -> tuple[Tensor, Tensor]:
    """Messages about objects, (S, B, L), and the scores of every symbol, (S, B, L, V).

    Each symbol is fed back as it was said. ``rectify``: Ren et al.'s sender (ReLU behind the embedding, which starts
    both the hidden and the cell state); else Li & Bowling's (the cell starts at zero).

    Args:
        weights: of senders.
        objects: features of all objects, (N, F).
        targets: what is spoken about, (S, B).
        length: L.
        uniform: what symbols are drawn by, in [0, 1), (S, B, L); None: the most probable symbol.
        rectify: whose sender.
    """
    # up to the first symbol only the object counts: where there are many games, each object is looked at once
    shared = targets.shape[1] >= 2 * len(objects)
    code = _embed(weights, objects if shared else objects[targets], rectify)
    bias, said = weights["cell.bias_ih"] + weights["cell.bias_hh"], _said(weights)
    hidden, cell = _Gates.apply(_pushed(weights, code, bias), code if rectify else torch.zeros_like(code))
    parts = [_linear(weights, "out", hidden), cell, _pushed(weights, hidden)]
    if shared:
        # a product, not an index: its gradient adds up in one order on every device
        which = _one_hot(targets, len(objects), code.dtype)
        parts = [torch.bmm(which, part) for part in parts]
    scores, (cell, pushed) = parts[:1], parts[1:]
    messages = []
    for place in range(length):
        drawn = None if uniform is None else uniform[..., place]
        messages.append(chosen(scores[-1].detach().softmax(-1), drawn))
        if place + 1 == length:
            break
        heard = _one_hot(messages[-1], said.shape[1], said.dtype)
        hidden, cell = _Gates.apply(torch.baddbmm(pushed, heard, said), cell)
        scores.append(_linear(weights, "out", hidden))
        if place + 2 < length:
            pushed = _pushed(weights, hidden)
    return torch.stack(messages, -1), torch.stack(scores, -2)


def listen(weights: Weights, messages: Tensor, objects: Tensor, *, rectify: bool = False) -> Tensor:
    """The score of every object for every message, (S, B, N).

    Args:
        weights: of receivers.
        messages: (S, B, L).
        objects: features of all objects, (N, F).
        rectify: ReLU behind the embedding of objects.
    """
    said, length = _said(weights), messages.shape[-1]
    num_symbols = said.shape[1]
    codes = _embed(weights, objects, rectify).mT
    # where there are about as many games as possible messages, every message is read once, its beginnings too
    if num_symbols**length > 2 * messages.shape[1]:
        return torch.bmm(_linear(weights, "out", _read(weights, said, messages)), codes)
    scores = torch.bmm(_linear(weights, "out", _read_all(weights, said, length)), codes)
    powers = num_symbols ** torch.arange(length - 1, -1, -1, device=messages.device)
    which = _one_hot((messages * powers).sum(-1), num_symbols**length, scores.dtype)
    return torch.bmm(which, scores)


def _read(weights: Weights, said: Tensor, messages: Tensor) -> Tensor:
    """The hidden state behind each message, (S, B, H)."""
    hidden = cell = said.new_zeros(*messages.shape[:2], said.shape[-1] // 4)
    for place, symbols in enumerate(messages.unbind(-1)):
        gates = torch.bmm(_one_hot(symbols, said.shape[1], said.dtype), said)
        if place:
            gates = gates + _pushed(weights, hidden)
        hidden, cell = _Gates.apply(gates, cell)
    return hidden


def _read_all(weights: Weights, said: Tensor, length: int) -> Tensor:
    """The hidden state behind every possible message, in the order of their digits, (S, V^L, H)."""
    seeds, num_symbols, gates = said.shape
    hidden, cell = _Gates.apply(said, said.new_zeros(1, 1, gates // 4).expand(seeds, num_symbols, -1))
    for _ in range(length - 1):
        pushed = _pushed(weights, hidden)
        longer = (pushed[:, :, None] + said[:, None]).reshape(seeds, -1, gates)
        hidden, cell = _Gates.apply(longer, cell.repeat_interleave(num_symbols, 1))
    return hidden


class Play(NamedTuple):
    """What was said and understood: messages (S, B, L), scores of symbols (S, B, L, V) and, where there was somebody
    to listen, of candidates (S, B, N).
    """

    messages: Tensor
    symbols: Tensor
    objects: Tensor | None


class Agents(nn.Module):
    """A sender and a receiver for every seed."""

    def __init__(
        self, objects: Tensor, hidden: int, symbols: int, length: int, seeds: Sequence[int], *, rectify: bool = False
    ) -> None:
        """``objects``: features of all objects, (N, F); ``rectify``: see `speak`."""
        super().__init__()
        features = objects.shape[1]
        self.length, self.rectify = length, rectify
        # a sender's name ends in its seed: one prefix selects the senders of all
        self.sender = nn.ModuleDict({f"seed_{seed}": Sender(features, hidden, symbols) for seed in seeds})
        self.receiver = nn.ModuleDict({f"seed_{seed}": Receiver(features, hidden, symbols) for seed in seeds})
        self.register_buffer("objects", objects, persistent=False)
        self._lay()

    def _lay(self) -> None:
        for agents in (self.sender, self.receiver):
            _lay_side_by_side(list(agents.values()))

    def _apply(self, *args: Any, **kwargs: Any) -> Agents:
        """Where torch moves each parameter on its own (``to``, ``cuda``, ``double``), they come together again."""
        super()._apply(*args, **kwargs)
        self._lay()
        return self

    def forward(self, targets: Tensor, uniform: Tensor | None = None, candidates: Tensor | None = None) -> Play:
        """Speak about targets and, given candidates, listen.

        Args:
            targets: numbers of objects, (S, B).
            uniform: what symbols are drawn by, in [0, 1), (S, B, L); None: the most probable.
            candidates: which objects a receiver chooses from, (S, B, N), boolean.
        """
        objects: Tensor = self.objects  # type: ignore[assignment]
        senders = stacked(list(self.sender.values()))
        messages, symbols = speak(senders, objects, targets, self.length, uniform, rectify=self.rectify)
        if candidates is None:
            return Play(messages, symbols, None)
        scores = listen(stacked(list(self.receiver.values())), messages, objects, rectify=self.rectify)
        return Play(messages, symbols, scores.masked_fill(~candidates, FORBIDDEN))
