"""Stacked senders and receivers against torch's own layers, one agent and one symbol at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llf_ray.forget.groups import layout
from llf_ray.nn.agents import FORBIDDEN, Agents, _Gates, _Product, chosen, stacked

OBJECTS = torch.tensor([[1, 0, 0, 1, 0], [1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 1, 0, 0, 1], [0, 0, 1, 1, 0.0]]).double()
SYMBOLS, HIDDEN = 3, 4


def agents(length: int, *, rectify: bool = False, seeds: tuple[int, ...] = (0, 2)) -> Agents:
    torch.manual_seed(0)
    return Agents(OBJECTS, HIDDEN, SYMBOLS, length, seeds, rectify=rectify).double()


def games(number: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(number)
    targets = torch.randint(len(OBJECTS), (2, number), generator=random)
    candidates = (torch.rand(2, number, len(OBJECTS), generator=random) < 0.5).scatter(2, targets[..., None], True)
    return targets, torch.rand(2, number, length, generator=random).double(), candidates


def plain(agent: Any) -> tuple[Any, ...]:
    """An agent's layers as torch's own functions of its parameters."""

    def linear(layer: Any) -> Any:
        return lambda inputs: nn.functional.linear(inputs, layer.weight, layer.bias)

    return linear(agent.embed), lambda *given: nn.LSTMCell.forward(agent.cell, *given), linear(agent.out)


def by_hand(both: Agents, place: int, targets: Tensor, uniform: Tensor, *, rectify: bool) -> tuple[Tensor, ...]:
    """One seed's messages, scores of symbols and of objects, by LSTMCell and Linear."""
    sender: Any = list(both.sender.values())[place]
    receiver: Any = list(both.receiver.values())[place]
    embed, cell_of, out = plain(sender)
    codes_of, ear, answer = plain(receiver)
    start = embed(OBJECTS[targets])
    start = start.relu() if rectify else start
    hidden, cell = start, start if rectify else torch.zeros_like(start)
    inputs, heard = torch.zeros(len(targets), SYMBOLS).double(), None
    messages, scores = [], []
    for place_of_symbol in range(uniform.shape[-1]):
        hidden, cell = cell_of(inputs, (hidden, cell))
        scores.append(out(hidden))
        below = scores[-1].softmax(-1).cumsum(-1) <= uniform[:, place_of_symbol, None]
        messages.append(below.sum(-1))
        inputs = nn.functional.one_hot(messages[-1], SYMBOLS).double()
        heard = ear(inputs, heard)
    codes = codes_of(OBJECTS)
    codes = codes.relu() if rectify else codes
    return torch.stack(messages, -1), torch.stack(scores, -2), answer(heard[0]) @ codes.T


# few and many games: with many, objects and messages are looked at once each
@pytest.mark.parametrize(("number", "length"), [(4, 2), (30, 2), (30, 3), (4, 1), (30, 1), (12, 3)])
@pytest.mark.parametrize("rectify", [False, True])
def test_stacked_agents_say_hear_and_learn_what_each_does_alone(number: int, length: int, rectify: bool) -> None:
    both, (targets, uniform, candidates) = agents(length, rectify=rectify), games(number, length)
    play = both(targets, uniform, candidates)
    loss = torch.zeros(()).double()
    for place in range(2):
        messages, symbols, objects = by_hand(both, place, targets[place], uniform[place], rectify=rectify)
        assert torch.equal(play.messages[place], messages)
        torch.testing.assert_close(play.symbols[place], symbols, rtol=0, atol=1e-12)
        offered = objects.masked_fill(~candidates[place], FORBIDDEN)
        torch.testing.assert_close(play.objects[place], offered, rtol=0, atol=1e-12)
        loss = loss + symbols.pow(3).sum() + objects[candidates[place]].pow(3).sum()
    parameters = list(both.parameters())
    mine = play.symbols.pow(3).sum() + play.objects[candidates].pow(3).sum()
    expected, found = (torch.autograd.grad(value, parameters, materialize_grads=True) for value in (loss, mine))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_parameters_of_all_seeds_lie_together_until_they_are_moved_apart_and_the_game_is_the_same() -> None:
    both, played = agents(2, rectify=True), games(30, 2)
    weight = both.sender["seed_0"].embed.weight  # type: ignore[union-attr]

    def slopes() -> tuple[Tensor, ...]:
        play = both(*played)
        assert play.objects is not None
        value = play.symbols.pow(3).sum() + play.objects[played[2]].pow(3).sum()
        return torch.autograd.grad(value, list(both.parameters()))

    together = stacked(list(both.sender.values()))["embed.weight"]
    assert together.data_ptr() == weight.data_ptr(), "no copy"
    before = slopes()
    weight.data = weight.data.clone()  # as an engine does that keeps all parameters in a vector of its own
    assert stacked(list(both.sender.values()))["embed.weight"].data_ptr() != weight.data_ptr()
    torch.testing.assert_close(slopes(), before, rtol=0, atol=0)
    with torch.no_grad():
        weight.add_(1)
    assert torch.equal(stacked(list(both.sender.values()))["embed.weight"][0], weight)
    both.float().double()
    assert stacked(list(both.sender.values()))["embed.weight"].data_ptr() == weight.data_ptr()


def test_the_written_out_gradient_of_a_cell_is_the_true_one() -> None:
    random = torch.Generator().manual_seed(1)
    gates = torch.randn(2, 3, 20, generator=random, dtype=torch.float64, requires_grad=True)
    cell = torch.randn(2, 3, 5, generator=random, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_Gates.apply, (gates, cell))


@pytest.mark.parametrize("biased", [True, False])
def test_the_written_out_gradient_of_a_product_is_the_true_one_and_lies_as_the_weight_does(biased: bool) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 4), (2, 5, 4), (2, 5))
    inputs, weight, bias = (torch.randn(s, generator=random, dtype=torch.float64, requires_grad=True) for s in shapes)
    given = (inputs, weight, bias if biased else None)
    assert torch.autograd.gradcheck(_Product.apply, given)
    (slope,) = torch.autograd.grad(_Product.apply(*given).square().sum(), weight)
    assert slope.is_contiguous(), "transposed, it would be copied for every parameter of every seed"


def test_a_number_drawn_uniformly_chooses_by_probability() -> None:
    probabilities = torch.tensor([0.2, 0.0, 0.5, 0.3])
    drawn = chosen(probabilities.expand(1000, 4), torch.arange(1000) / 1000 + 0.0005)
    assert torch.bincount(drawn, minlength=4).tolist() == [200, 0, 500, 300]
    assert chosen(probabilities, None) == 2


def test_the_largest_number_below_one_never_chooses_past_the_end() -> None:
    probabilities = torch.full((7,), 1 / 7)
    assert chosen(probabilities, torch.tensor(1.0)) == 6


def test_one_name_selects_the_senders_of_all_seeds() -> None:
    names = [slot.name for slot in layout(agents(2))]
    assert {name.split(".")[0] for name in names} == {"sender", "receiver"}
    assert {name.split(".")[1] for name in names} == {"seed_0", "seed_2"}
    assert len(names) == 2 * 2 * 8
