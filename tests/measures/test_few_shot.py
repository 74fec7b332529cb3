"""Few-shot heads against torch's own layer and optimiser, one episode at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.measures import few_shot as module
from llf_ray.measures.few_shot import Head, check_few_shot, episode_of, few_shot, head_scores


def clouds(number: int, classes: int, width: int, apart: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % classes
    centres = apart * torch.randn(classes, width, generator=random)
    return centres[labels] + torch.randn(number, width, generator=random), labels


def by_torch(support: Tensor, labels: Tensor, layer: nn.Linear, order: Tensor, head: Head) -> nn.Linear:
    """One head, by the published loop."""
    optimizer = torch.optim.SGD(
        layer.parameters(),
        lr=head.lr,
        momentum=head.momentum,
        dampening=head.dampening,
        weight_decay=head.weight_decay,
    )
    for epoch in range(head.epochs):
        for places in order[epoch].long().split(head.batch):
            optimizer.zero_grad()
            F.cross_entropy(layer(support[places]), labels[places]).backward()
            optimizer.step()
    return layer


@pytest.mark.parametrize("width", [7, 40], ids=["fewer features than examples", "more features than examples"])
@pytest.mark.parametrize("decay", [0.001, 0.5])
def test_every_head_is_the_one_that_torchs_sgd_trains_alone(width: int, decay: float) -> None:
    head = Head(epochs=6, weight_decay=decay)
    random = torch.Generator().manual_seed(1)
    support, queries = (torch.randn(3, n, width, generator=random).double() for n in (18, 11))  # a last batch of two
    labels = torch.randint(4, (3, 18), generator=random)
    layers = [nn.Linear(width, 4).double() for _ in range(3)]
    orders = torch.stack([torch.stack([torch.randperm(18, generator=random) for _ in range(6)]) for _ in range(3)])
    found = head_scores(
        support,
        labels,
        queries,
        torch.stack([layer.weight.detach().clone() for layer in layers]),
        torch.stack([layer.bias.detach().clone() for layer in layers]),
        orders,
        head=head,
    )
    for number, layer in enumerate(layers):
        trained = by_torch(support[number], labels[number], layer, orders[number], head)
        torch.testing.assert_close(found[number], trained(queries[number]).detach())


def test_accuracy_is_that_of_torchs_heads_on_the_same_episodes() -> None:
    features, labels = clouds(240, 8, 30, apart=0.5)
    head, ways, shots = Head(epochs=4), 5, 3
    found = few_shot(features, labels, shots=shots, episodes=6, seed=2, head=head)
    for number in range(6):
        episode = episode_of(labels, shots=shots, ways=ways, queries=15, seed=2, number=number)
        weight, bias, order = module._start(ways, 30, ways * shots, head.epochs, (2, shots, number))
        layer = nn.Linear(30, ways)
        layer.load_state_dict({"weight": weight, "bias": bias})
        truth = torch.arange(ways).repeat_interleave(shots)
        layer = by_torch(features[torch.from_numpy(episode.support).flatten()], truth, layer, order, head)
        said = layer(features[torch.from_numpy(episode.queries).flatten()]).argmax(1)
        right = (said == torch.arange(ways).repeat_interleave(15)).double().mean()
        assert float(found.accuracy[number]) == pytest.approx(float(right), abs=0.014)  # one query in 75 on the edge
    assert found.mean == pytest.approx(float(found.accuracy.mean()))
    assert found.half == pytest.approx(1.96 * np.std(found.accuracy.numpy()) / np.sqrt(6))


def test_a_head_starts_as_a_new_linear_layer_does() -> None:
    """Drawn between plus and minus one over the root of the width, of which torch's own deviation is the oracle."""
    weight, bias, orders = module._start(5, 400, 25, 3, (0, 1))
    layer = nn.Linear(400, 500)
    assert float(weight.abs().max()) <= 0.05
    assert float(weight.std()) == pytest.approx(float(layer.weight.detach().std()), rel=0.05)
    assert bias.shape == (5,)
    assert [sorted(order.tolist()) for order in orders] == [list(range(25))] * 3
    assert orders[0].tolist() != orders[1].tolist()


def test_an_episode_is_drawn_without_replacement_and_by_labels_alone() -> None:
    labels = torch.arange(200) % 8
    seen = set()
    for number in range(40):
        episode = episode_of(labels, shots=5, ways=5, queries=15, seed=0, number=number)
        rows = np.concatenate([episode.support, episode.queries], 1)
        assert len(np.unique(rows)) == rows.size == 100
        classes = labels.numpy()[rows]
        assert (classes == classes[:, :1]).all()
        assert len(np.unique(classes[:, 0])) == 5
        seen |= set(classes[:, 0].tolist())
        again = episode_of(labels, shots=5, ways=5, queries=15, seed=0, number=number)
        assert (again.support == episode.support).all()
    assert seen == set(range(8))


def test_the_size_of_blocks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clouds(160, 5, 24, apart=0.4)
    whole = few_shot(features, labels, shots=4, episodes=7, head=Head(epochs=3))
    monkeypatch.setattr(module, "BLOCK", 2 * 4 * 20 * 20)
    assert torch.equal(few_shot(features, labels, shots=4, episodes=7, head=Head(epochs=3)).accuracy, whole.accuracy)


def test_more_shots_and_classes_further_apart_are_easier_and_noise_is_chance() -> None:
    features, labels = clouds(600, 6, 16, apart=0.6)
    one, five = (few_shot(features, labels, shots=shots, episodes=60).mean for shots in (1, 10))
    assert one < five - 0.05
    noise = few_shot(torch.randn(600, 16, generator=torch.Generator().manual_seed(3)), labels, shots=2, episodes=100)
    assert noise.mean == pytest.approx(0.2, abs=3 * noise.half)
    far, labels = clouds(600, 6, 16, apart=20.0)
    assert few_shot(far, labels, shots=1, episodes=20).mean > 0.99


def test_too_few_examples_or_classes_are_named_before_anything_starts() -> None:
    labels = torch.tensor([0] * 70 + [1] * 64 + [2] * 70 + [3] * 70 + [4] * 70)
    names = ("rose", "tulip", "lily", "iris", "daisy")
    with pytest.raises(
        SettingError, match=r"shots = 50: class 'tulip' has 64 examples, 65 are needed \(50 shots and 15"
    ):
        check_few_shot(labels, shots=50, names=names)
    check_few_shot(labels, shots=49, names=names)
    with pytest.raises(SettingError, match=r"shots = 60: class 1 has .*5 of 5 classes"):
        few_shot(torch.zeros(344, 2), labels, shots=60)
    with pytest.raises(SettingError, match="ways = 5: the data have examples of 4 classes"):
        check_few_shot(labels[labels != 1], shots=5)
    with pytest.raises(SettingError, match="shots = 0"):
        check_few_shot(labels, shots=0)
