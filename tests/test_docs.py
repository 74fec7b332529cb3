"""What the pages say can be run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from llf_ray.forget.groups import Select
from llf_ray.plan import Curve, Length, Phase, Rule
from tests.local import Phases

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """All that docs/own_loop.md defines, its blocks run one after the other as a reader would."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "own_loop.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/own_loop.md", "exec"), names)
    return names


def test_the_loop_on_the_page_prunes_to_a_quarter_and_holds_it(page: dict[str, Any]) -> None:
    assert abs(page["density"] - 0.25) < 1e-3
    weights = dict(page["pruned"].named_parameters())
    for name, mask in page["stores"][page["MASK"]].items():
        assert bool((weights[name][~mask] == 0).all())
        assert bool((weights[name][mask] != 0).any())


def test_the_loop_on_the_page_is_plain_training_where_the_plan_is(page: dict[str, Any]) -> None:
    """Against a loop without plans: 4 steps an epoch, a cosine over two epochs after half an epoch of warm-up."""
    from llf_ray.recipes.long import Long

    model, stores = page["train"](Long(generations=1, epochs=2, warmup_epochs=0.5))
    assert stores == {}
    other = page["make_model"](0)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    total, warmup = 8, 2
    for step in range(total):
        chosen = torch.randperm(200, generator=torch.Generator().manual_seed(step))[:50]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(other(page["images"][chosen]), page["labels"][chosen]).backward()
        through = (step - warmup) / (total - warmup)
        share = (step + 1) / warmup if step < warmup else 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * through))))
        optimizer.param_groups[0]["lr"] = 0.1 * share
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name])


def test_the_loop_on_the_page_runs_two_methods(page: dict[str, Any]) -> None:
    calm = page["train"](Phases(phases=(Phase(name="train", generation=0, length=Length(epochs=6)),)))[0]
    for changed in (page["forgetting"], page["annealed"]):
        assert all(bool(value.isfinite().all()) for value in changed.parameters())
        assert not torch.equal(changed.fc.weight, calm.fc.weight)


def test_the_loop_on_the_page_ascends_where_a_rule_says_so(page: dict[str, Any]) -> None:
    def loss_after(direction: float) -> float:
        rule = Rule(select=Select(name="everything"), direction=direction)
        phase = Phase(name="a", generation=0, length=Length(steps=4), rules=(rule,), curve=Curve(shape="constant"))
        model = page["train"](Phases(phases=(phase,)))[0]
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(model(page["images"]), page["labels"]))

    assert loss_after(1.0) < loss_after(0.0) < loss_after(-1.0)


def test_the_page_of_cropr_trains_and_ships_what_it_says() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "cropr.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/cropr.md", "exec"), names)
    model, shipped, images = names["model"], names["shipped"], names["images"]
    with torch.no_grad():
        torch.testing.assert_close(shipped(images), model.eval()(images))
    assert len(names["seen"].auxiliary) == len(model.after) == 11
    assert model.blocks[5].cropr.queries.grad.abs().sum() > 0
    assert 0.35 < names["saved"] < 0.5
