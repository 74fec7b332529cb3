"""What the pages say can be run."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from llf_ray.engine.local import LocalEngine
from llf_ray.forget import operations
from llf_ray.forget.groups import Both, Either, Not, Select
from llf_ray.forget.masks import MaskSource
from llf_ray.plan import Curve, Generate, Length, Pass, Phase, Rule
from llf_ray.train.adviser import Adviser
from llf_ray.train.folder import load_module
from tests.local import Phases, journal, whole

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


def test_the_loop_on_the_page_gives_a_group_the_rate_of_its_rule(page: dict[str, Any]) -> None:
    """A tenth of the rate in one step without momentum's past: a tenth of the way."""
    head, start = Select(modules=("fc",), name="head"), page["make_model"](0).fc.weight.detach()
    ways = []
    for factor in (1.0, 0.1, 0.0):
        rule = Rule(select=head, lr=factor)
        phase = Phase(name="a", generation=0, length=Length(steps=1), rules=(rule,), curve=Curve(shape="constant"))
        ways.append(page["train"](Phases(phases=(phase,)))[0].fc.weight.detach() - start)
    assert bool(ways[0].any())
    torch.testing.assert_close(ways[1], 0.1 * ways[0], rtol=1e-3, atol=1e-8)
    assert not bool(ways[2].any())


def own_method(folder: Path) -> Path:
    """The job file on the page of schedules."""
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "schedules.md").read_text(), re.DOTALL)
    path = folder / "own.py"
    path.write_text(block)
    return path


def test_the_method_on_the_page_does_what_it_says(tmp_path: Path) -> None:
    """The largest weights stay and the others change, each time; then the head alone moves until all learn."""
    config = load_module(own_method(tmp_path), "own").config
    engines: list[LocalEngine] = []
    seen: dict[int, dict[str, torch.Tensor]] = {}

    class Watching(Adviser):
        """Keeps the weights each time that it is asked."""

        def at(self, step: int, *rest: Any, **more: Any) -> Any:
            seen[step] = {name: value.clone() for name, value in engines[0].module.state_dict().items()}
            return super().at(step, *rest, **more)

    folder = whole(config, tmp_path / "run", adviser=Watching, watch=engines.append)
    masks = [record["masks"]["largest"] for record in journal(folder, "operation") if record.get("masks")]
    assert len(masks) == 2, "in every generation but the first"
    assert all(abs(live / entries - 0.3) < 0.01 for live, entries in masks)
    assert sorted(seen)[:4] == [0, 10, 20, 25]
    before, settled = seen[20], seen[25]
    for name, value in before.items():
        if value.dim() == 4:
            stays = settled[name] == value
            assert abs(float(stays.float().mean()) - 0.3) < 0.05
            assert value[stays].abs().min() >= value[~stays].abs().max()
    weights = [name for name, value in before.items() if "bn" in name and name.endswith(("weight", "bias"))]
    assert weights
    assert all(torch.equal(before[name], settled[name]) for name in weights), "held"
    assert not torch.equal(before["fc.bias"], settled["fc.bias"])


def words() -> dict[str, list[type]]:
    """Every class that a plan's operations are written with, by the table's heads."""
    own = [getattr(operations, name) for name in operations.__all__]
    return {
        "operation": [*(one for one in own if isinstance(one, type)), Generate, Pass],
        "mask source": list(get_args(MaskSource)),
        "selection": [Select, Not, Either, Both],
    }


def parameters(kind: type) -> str:
    """``keep=Nothing(), kept="same"``."""
    named = {operations.WEIGHTS: "WEIGHTS", Select(): "Select()"}
    written = []
    for field in fields(kind):
        value = field.default
        said = json.dumps(value) if isinstance(value, str) else named.get(value) or repr(value)
        written.append(field.name if value is MISSING else f"{field.name}={said}")
    return f"`{', '.join(written)}`" if written else ""


@pytest.mark.parametrize("head", list(words()))
def test_the_tables_of_words_have_every_class_with_its_parameters(head: str) -> None:
    page = (DOCS / "schedules.md").read_text()
    table = page.split(f"| {head} | parameters | does |\n")[1].split("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table]
    assert {name: said for name, said, _ in rows} == {f"`{one.__name__}`": parameters(one) for one in words()[head]}
    assert all(says for _, _, says in rows)


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
