"""A module scores by raw logits and answers by softmax attention; folded into one vector it ranks as before."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from llf_ray.config import SettingError
from llf_ray.nn.cropr import Cropr, CroprOptions, Scorer
from tests.nn.cropr.oracle import gathered, raw_scores

WIDTH = 12
ALL = ("query", "key", "value")
OPTIONS = [
    CroprOptions(heads=heads, project=project, bias=bias and bool(project), norm=norm, mlp_ratio=ratio)
    for heads, project, bias, norm, ratio in itertools.product(
        (1, 3), ((), ("query",), ("key", "value"), ALL), (False, True), (False, True), (4.0, 0.0)
    )
    if project or not bias
]


def noisy(options: CroprOptions, queries: int = 1) -> Cropr:
    module = Cropr(WIDTH, 4, queries, options).double()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=random) * 0.5)
    return module


def tokens(batch: int = 2, number: int = 7) -> Tensor:
    return torch.randn(batch, number, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def centred(scores: Tensor) -> Tensor:
    """Scores matter up to a number that all tokens of an image share."""
    return scores - scores.mean(-1, keepdim=True)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("queries", [1, 5])
def test_scores_are_raw_logits_summed_over_queries_and_heads(options, queries):
    module, given = noisy(options, queries), tokens()
    slow = torch.stack([raw_scores(module, each) for each in given])
    torch.testing.assert_close(centred(module.scores(given)), centred(slow.detach()), rtol=1e-9, atol=1e-9)
    scorer = Scorer.of(module)
    torch.testing.assert_close(centred(scorer(given)[0]), centred(slow.detach()), rtol=1e-9, atol=1e-9)
    assert sum(value.numel() for value in scorer.state_dict().values()) == WIDTH


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_answers_are_softmax_attention_with_a_residual_around_the_mlp_alone(options):
    module, given = noisy(options, queries=2), tokens()
    slow = torch.stack([gathered(module, each) for each in given])
    torch.testing.assert_close(module(given, given)[1], slow, rtol=1e-9, atol=1e-9)


def test_ranking_by_sums_of_logits_is_not_ranking_by_sums_of_softmax_rows():
    """What re-implementations get wrong: with several queries the two differ."""
    module = noisy(CroprOptions(), queries=6)
    given = tokens(batch=64)
    logits = torch.einsum("nd,bmd->bnm", module.queries, given)
    wrong = (logits / WIDTH**0.5).softmax(-1).sum(1)
    assert not torch.equal(module.scores(given).argmax(1), wrong.argmax(1))
    torch.testing.assert_close(module.scores(given), logits.sum(1).detach(), rtol=1e-9, atol=1e-9)


def test_scores_carry_no_gradient_and_answers_stop_at_the_entrance():
    module, given = noisy(CroprOptions(), queries=2), tokens().requires_grad_()
    scores, answer = module(given, given)
    assert not scores.requires_grad
    answer.sum().backward()
    assert given.grad is None
    assert module.queries.grad.any()


def test_a_module_starts_as_published():
    torch.manual_seed(0)
    module = Cropr(256, 100, 512)
    queries, head = module.queries.detach(), module.head.weight.detach()
    assert queries.abs().max() <= 2 * 256**-0.5
    assert queries.std().item() == pytest.approx(0.88 * 256**-0.5, rel=0.02), "a normal draw cut off at two deviations"
    assert head.std().item() == pytest.approx(0.02, rel=0.03)
    assert not module.head.bias.any()
    assert (module.mlp_norm.eps, module.head_norm.eps) == (1e-6, 1e-5)
    assert not any(name.startswith(("query.", "key.", "value.", "out.")) for name, _ in module.named_parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CroprOptions(heads=0), "heads"),
        (lambda: CroprOptions(project=("keys",)), "some of query, key, value"),
        (lambda: CroprOptions(project=("key", "key")), "each once"),
        (lambda: CroprOptions(bias=True), "without projections"),
        (lambda: CroprOptions(sampled=-1.0), "sampled"),
        (lambda: Cropr(WIDTH, 3, 1, CroprOptions(heads=5)), "heads = 5: must divide the width of the tokens, 12"),
    ],
)
def test_bad_options_say_what_is_wrong(make, words):
    with pytest.raises(SettingError, match=words):
        make()
