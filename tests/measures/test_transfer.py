"""Linear probes against torch's own optimiser, one rate at a time, and scikit-learn's logistic regression."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.measures.features import Labelled
from llf_ray.measures.transfer import ProbeTraining, Scale, fit_probes, linear_probe, split


def clouds(number: int, seed: int, *, classes: int = 6, width: int = 20, apart: float = 1.0) -> Labelled:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % classes
    centres = apart * torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    return Labelled(3 + 5 * (centres[labels] + torch.randn(number, width, generator=random)), labels)


def by_torch(
    features: Tensor, labels: Tensor, classes: int, rate: float, settings: ProbeTraining, seed: int
) -> nn.Linear:
    """One layer by torch.optim.SGD and the same batches."""
    layer = nn.Linear(features.shape[1], classes).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=settings.momentum)
    steps = settings.epochs * math.ceil(len(labels) / settings.batch)
    curve = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    random = torch.Generator().manual_seed(seed)
    for _ in range(settings.epochs):
        for chosen in torch.randperm(len(labels), generator=random).split(settings.batch):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[chosen]), labels[chosen]).backward()
            optimizer.step()
            curve.step()
    return layer


def test_every_rate_gets_the_weights_that_it_would_get_alone_by_torchs_sgd() -> None:
    data, settings = clouds(70, 0), ProbeTraining(batch=16, epochs=5)
    features = Scale.of(data.values)(data.values).double()
    rates = (0.01, 0.3, 2.0)
    weight, bias = fit_probes(features, data.labels, 6, rates, settings=settings, seed=4)
    for place, rate in enumerate(rates):
        layer = by_torch(features, data.labels, 6, rate, settings, 4)
        torch.testing.assert_close(weight[place], layer.weight.detach())
        torch.testing.assert_close(bias[place], layer.bias.detach())


@pytest.mark.parametrize("apart", [0.4, 3.0])
def test_a_probe_is_as_good_as_logistic_regression(apart: float) -> None:
    train, test = clouds(600, 0, apart=apart), clouds(900, 1, apart=apart)
    oracle = LogisticRegression(C=1e3, max_iter=2000).fit(train.values.numpy(), train.labels.numpy())
    wanted = oracle.score(test.values.numpy(), test.labels.numpy())
    found = linear_probe(train, test)
    assert found.accuracy == pytest.approx(wanted, abs=0.03)
    assert found.accuracy > (0.99 if apart == 3.0 else 0.5)
    assert (found.num_classes, found.num_train, found.num_test) == (6, 600, 900)


def test_test_examples_choose_nothing() -> None:
    """With test labels that are wrong on purpose, the chosen rate and the held-out scores are the same."""
    train, test = clouds(200, 0, apart=0.5), clouds(100, 1, apart=0.5)
    settings = ProbeTraining(epochs=5)
    found = linear_probe(train, test, settings=settings)
    turned = linear_probe(train, Labelled(test.values, 5 - test.labels), settings=settings)
    assert (found.rate, found.validation) == (turned.rate, turned.validation)
    assert turned.accuracy < found.accuracy
    assert found.validation[found.rate] == max(found.validation.values())


def test_after_a_split_the_chosen_rate_is_fitted_on_all_of_train() -> None:
    train, test, settings = clouds(120, 0, apart=0.6), clouds(300, 1, apart=0.6), ProbeTraining(epochs=6, rates=(0.5,))
    found = linear_probe(train, test, settings=settings, seed=3)
    scale = Scale.of(train.values)
    layer = by_torch(scale(train.values).double(), train.labels, 6, 0.5, settings, 3)
    wanted = (layer(scale(test.values).double()).argmax(1) == test.labels).double().mean()
    assert found.accuracy == pytest.approx(float(wanted), abs=0.005)
    assert not found.edge, "one rate has no edge"


def test_the_data_sets_own_validation_part_chooses_where_it_is_given() -> None:
    train, test, own = clouds(120, 0), clouds(60, 1), clouds(60, 2)
    settings = ProbeTraining(epochs=3)
    found = linear_probe(train, test, own, settings=settings)
    scale = Scale.of(train.values)
    weight, bias = fit_probes(scale(train.values), train.labels, 6, (1.0,), settings=settings)
    said = F.linear(scale(own.values), weight[0], bias[0]).argmax(1)
    assert found.validation[1.0] == pytest.approx(float((said == own.labels).double().mean()))


def test_a_rate_that_runs_away_is_not_chosen() -> None:
    train, test = clouds(120, 0, apart=0.6), clouds(60, 1, apart=0.6)
    found = linear_probe(train, test, settings=ProbeTraining(rates=(1.0, 3e38), epochs=50, batch=32))
    assert found.rate == 1.0
    assert found.validation[3e38] == 0.0


def test_size_and_place_of_features_do_not_matter() -> None:
    train, test = clouds(100, 0), clouds(50, 1)
    settings = ProbeTraining(epochs=5)
    found = linear_probe(train, test, settings=settings)
    moved = [Labelled(64 * part.values - 1024, part.labels) for part in (train, test)]
    assert linear_probe(*moved, settings=settings) == found
    lengths = Scale.of(train.values)(train.values).square().sum(1)
    assert float(lengths.mean()) == pytest.approx(1.0, abs=1e-5)


def test_a_split_holds_out_a_share_of_every_class() -> None:
    labels = torch.tensor([0] * 10 + [1] * 3 + [2])
    kept, away = split(labels, 0.2, seed=1)
    assert sorted([*kept.tolist(), *away.tolist()]) == list(range(14))
    assert torch.bincount(labels[away], minlength=3).tolist() == [2, 1, 0]
    assert split(labels, 0.2, seed=1)[1].tolist() == away.tolist()
    assert split(labels, 0.2, seed=2)[1].tolist() != away.tolist()


def test_what_cannot_be_probed_says_why() -> None:
    train = clouds(12, 0)
    with pytest.raises(ValueError, match="test: 12 examples of 3 features"):
        linear_probe(train, clouds(12, 1, width=3))
    with pytest.raises(ValueError, match="train: examples of two classes or more are needed"):
        linear_probe(clouds(12, 0, classes=1), train)
    with pytest.raises(SettingError, match="rates = \\(\\)"):
        ProbeTraining(rates=())
