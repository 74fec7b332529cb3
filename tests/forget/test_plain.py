"""Operations on a module of the user's own do what an engine does with them, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llf_ray.engine.local import LocalEngine
from llf_ray.forget.groups import Select
from llf_ray.forget.masks import Magnitude, Saved
from llf_ray.forget.operations import Forget, KeepMask, Snapshot, tiny
from llf_ray.forget.plain import apply, hold_at_zero, module_view
from llf_ray.plan import Length, Phase
from llf_ray.run import prepare
from llf_ray.train.boundary import apply_edit, view_of
from tests.local import SGD, settings
from tests.toy import Toy

OPERATIONS = (
    *(operation for operation in tiny if not operation.needs),
    Forget(keep=Magnitude(keep=0.3, scope="global")),
    Forget(select=Select(kinds=("statistic",)), fill="initial"),
)
CONFIG = settings([Phase(name="a", generation=0, length=Length(steps=1))], task=Toy())


def fresh(seed: int) -> torch.nn.Module:
    return Toy().initial(seed)


def view(module: torch.nn.Module, stores: Any = None) -> Any:
    return module_view(module, fresh=fresh, stores=stores or {}, seed=0, key="p/entry/0", generation=1)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_an_operation_on_a_module_is_the_one_on_an_engine(operation: Any) -> None:
    prepared = prepare(CONFIG)
    engine = LocalEngine(fresh(0), prepared.groups, SGD, CONFIG.engine)
    edit = operation(view_of(engine, CONFIG, prepared.slots, {}, "p/entry/0", 1))
    apply_edit(engine, edit, averaged=False)
    module = fresh(0)
    made = apply(module, operation(view(module)))
    for name, value in module.state_dict().items():
        assert torch.equal(value, engine.read(name).to(value.dtype)), name
    assert set(made) == set(operation.makes)
    engine.close()


def stepped() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    module = fresh(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    Toy().loss(module, next(Toy().batches("train", [_draw()], torch.device("cpu"))))[0].backward()
    optimizer.step()
    return module, optimizer


def _draw() -> Any:
    from llf_ray.data.order import Draw, order

    return Draw(order(48, 0, 0, 0)[:12])


def test_moments_of_what_was_forgotten_are_forgotten_and_tensors_stay_where_they_are() -> None:
    module, optimizer = stepped()
    places = {name: value.data_ptr() for name, value in module.named_parameters()}
    head, body = module.get_parameter("head.weight"), module.get_parameter("body.0.weight")
    apply(module, Forget(select=Select(modules=("head",)))(view(module)), optimizer)
    assert head not in optimizer.state
    assert optimizer.state[body]["step"] == 1
    edit = Forget(select=Select(modules=("body.0",)), keep=Magnitude(keep=0.5))(view(module))
    apply(module, edit, optimizer)
    gone = edit.clear["body.0.weight"]
    assert gone is not None
    assert not optimizer.state[body]["exp_avg"][gone].any()
    assert optimizer.state[body]["exp_avg"][~gone].all()
    assert places == {name: value.data_ptr() for name, value in module.named_parameters()}


def test_a_snapshot_is_a_copy_that_weights_can_go_back_to() -> None:
    module, _ = stepped()
    stores = apply(module, Snapshot(store="start")(view(module)))
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    apply(module, Forget()(view(module)))
    back = Forget(select=Select(), fill="store", store="start")
    apply(module, back(view(module, stores)))
    assert all(torch.equal(value, kept[name]) for name, value in module.named_parameters())


def test_held_entries_are_zero_in_weights_and_moments() -> None:
    module, optimizer = stepped()
    stores = apply(module, KeepMask(store="m", source=Magnitude(keep=0.5))(view(module)))
    hold_at_zero(module, stores["m"], optimizer)
    apply(module, Forget(keep=Saved(name="m"), fill="zero")(view(module, stores)), optimizer)
    weight, mask = module.get_parameter("body.0.weight"), stores["m"]["body.0.weight"]
    assert not weight[~mask].any()
    assert not optimizer.state[weight]["exp_avg_sq"][~mask].any()
    assert weight[mask].all()
