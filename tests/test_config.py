"""Settings as values: what can be set, what is refused and how it is said, what a run is called."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llf_ray.config import (
    SettingError,
    check,
    check_number,
    fingerprint,
    flatten,
    from_plain,
    nearest,
    override,
    parse_assignments,
    to_plain,
)
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.recipes.restarts import Restarts
from llf_ray.recipes.seal import Seal
from llf_ray.run import Checkpoints, Comparison, Resources, RunConfig, prepare
from tests.toy import Toy


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Settings below settings."""

    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        check_number("rate", self.rate, low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class Every:
    """A field of every kind that a setting may have."""

    whole: int = 3
    number: float = 0.5
    flag: bool = False
    text: str = "a"
    word: Literal["near", "far"] = "near"
    count: Literal[0, 1, 2] = 0
    maybe: float | None = None
    maybe_word: Literal["warm", "cold"] | None = None
    either: str | int | None = None
    pair: tuple[float, float] = (0.9, 0.999)
    many: tuple[int, ...] = (1,)
    words: tuple[str, ...] = ()
    custom: Mapping[str, float] = field(default_factory=dict)
    inner: Inner = Inner()
    arms: Mapping[str, Inner] = field(default_factory=lambda: {"one": Inner(), "two": Inner(rate=0.1)})
    row: tuple[Inner, ...] = (Inner(), Inner())


LAW = settings(max_examples=25, deadline=None)
RUN = RunConfig(name="toy", task=Toy(), recipe=Seal())


# ------------------------------------------------------------------------------------------------------------- override


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("whole=7", 7),
        ("whole=-1", -1),
        ("number=1", 1.0),
        ("number=1e-3", 1e-3),
        ("flag=true", True),
        ("flag=False", False),
        ("text=3", "3"),
        ("text=", ""),
        ("text=a=b", "a=b"),
        ("word=far", "far"),
        ("count=2", 2),
        ("maybe=0.25", 0.25),
        ("maybe=none", None),
        ("maybe=None", None),
        ("maybe_word=cold", "cold"),
        ("either=10", 10),
        ("either=layer3", "layer3"),
        ("either=None", None),
        ("pair=0.8,0.95", (0.8, 0.95)),
        ("pair=(0.8, 1)", (0.8, 1.0)),
        ("many=4", (4,)),
        ("many=[4, 5]", (4, 5)),
        ("many=", ()),
        ("words=a, b", ("a", "b")),
        ("words=('a', 'b')", ("a", "b")),
        ("custom.special=2", {"special": 2.0}),
        ("inner.rate=0.75", Inner(rate=0.75)),
        ("arms.two.rate=1", {"one": Inner(), "two": Inner(rate=1.0)}),
        ("row.1.rate=1", (Inner(), Inner(rate=1.0))),
        ("many.0=9", (9,)),
    ],
)
def test_every_kind_of_leaf_is_set_from_the_command_line(assignment: str, value: Any) -> None:
    changed = override(Every(), parse_assignments([assignment]))
    name = assignment.split("=")[0].split(".")[0]
    assert getattr(changed, name) == value
    assert type(getattr(changed, name)) is type(value)
    check(changed)
    assert changed == replace(Every(), **{name: value}), "and nothing else"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("hole=1", "unknown setting 'hole'; did you mean 'whole'?"),
        ("inner.rat=1", "unknown setting 'inner.rat'; did you mean 'inner.rate'?"),
        ("rate=1", "unknown setting 'rate'; did you mean 'inner.rate'?"),
        ("whole=1.5", "whole = '1.5': must be a whole number"),
        ("whole=true", "whole = 'true': must be a whole number"),
        ("number=fast", "number = 'fast': must be a number"),
        ("number=true", "number = 'true': must be a number"),
        ("flag=1", "flag = '1': must be true or false"),
        ("word=fare", "word = 'fare': must be one of near, far; did you mean 'far'?"),
        ("maybe_word=colt", "maybe_word = 'colt': must be one of warm, cold or none; did you mean 'cold'?"),
        ("count=3", "count = '3': must be one of 0, 1, 2"),
        ("maybe=much", "maybe = 'much': must be a number or none"),
        ("pair=0.9", "pair = '0.9': must be a tuple of 2 numbers"),
        ("pair=1,2,3", "pair = '1,2,3': must be a tuple of 2 numbers"),
        ("many=1,a", "many = '1,a': must be a tuple of whole numbers"),
        ("inner=3", "inner is a group of settings (Inner): set one of inner.rate, inner.sizes"),
        ("inner.rate=2", "inner.rate = 2.0: must be >= 0 and <= 1"),
        ("inner.rate=nan", "inner.rate = nan: a finite number is needed"),
        ("inner.rate=inf", "inner.rate = inf: a finite number is needed"),
        ("arms.two.rate=7", "arms.two.rate = 7.0: must be >= 0 and <= 1"),
        (
            "arms.too.rate=1",
            "setting 'arms.too' does not exist; did you mean 'arms.two'? (there are: arms.one, arms.two)",
        ),
        ("row.2.rate=1", "row.2: a place from 0 to 1 is needed"),
        ("row.x.rate=1", "row.x: a place from 0 to 1 is needed"),
        ("whole.low=1", "whole = 3 has no settings below it: whole.low does not exist"),
        ("custom.special=high", "custom.special = 'high': must be a number"),
    ],
)
def test_what_cannot_be_set_is_said_in_one_line_with_its_key(assignment: str, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        override(Every(), parse_assignments([assignment]))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.lr"], "a setting is written key=value"),
        (["=3"], "a setting is written key=value"),
        (["whole=1", "whole=2"], "whole is set twice: '1' and '2'"),
    ],
)
def test_words_that_are_no_assignment_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        parse_assignments(words)


def test_a_setting_cannot_be_set_whole_and_in_part() -> None:
    with pytest.raises(SettingError, match="inner is set both whole and in part"):
        override(Every(), {"inner": Inner(rate=0.1), "inner.rate": "0.2"})


def test_keys_that_only_fit_together_are_set_together() -> None:
    """Each alone would break the recipe's own check."""
    recipe = Seal(epochs=10, ascent_epochs=2)
    config = replace(RUN, recipe=recipe)
    changed = override(config, {"recipe.epochs": "2", "recipe.ascent_epochs": "1", "recipe.warmup_epochs": "0.5"})
    assert changed.recipe == replace(recipe, epochs=2.0, ascent_epochs=1.0, warmup_epochs=0.5)
    with pytest.raises(SettingError, match=r"recipe\.ascent_epochs = 2: must be < epochs = 2\.0"):
        override(config, {"recipe.epochs": "2"})


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("optim.lrr", "1", "unknown setting 'optim.lrr'; did you mean 'optim.lr'?"),
        ("lr", "1", "unknown setting 'lr'; did you mean 'optim.lr'?"),
        ("optim.lr", "-1", "optim.lr = -1.0: must be > 0"),
        ("optim.lr", "inf", "optim.lr = inf: a finite number is needed"),
        ("optim.name", "adam2", "optim.name = 'adam2': must be one of"),
        ("optim.betas", "0.9", "optim.betas = '0.9': must be a tuple of 2 numbers"),
        ("optim.betas", "0.9,1", "optim.betas.1 = 1.0: must be >= 0 and < 1"),
        ("engine.stage", "4", "engine.stage = '4': must be one of 0, 1, 2, 3"),
        ("engine.clip", "zero", "engine.clip = 'zero': must be a number or none"),
        ("recipe.generations", "0", "recipe.generations = 0: must be >= 1"),
        ("recipe.threshhold", "x", "unknown setting 'recipe.threshhold'; did you mean 'recipe.threshold'?"),
        ("resources.workers", "2.0", "resources.workers = '2.0': must be a whole number"),
        ("checkpoints.keep", "0", "checkpoints.keep = 0: must be >= 1"),
        ("name", "a/b", "name = 'a/b': letters, digits"),
        ("seed", "none", "seed = 'none': must be a whole number"),
    ],
)
def test_a_wrong_setting_of_a_run_names_its_dotted_key(key: str, text: str, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        override(RUN, {key: text})
    assert str(caught.value).startswith(said)


def test_an_optional_setting_is_taken_away_by_none_in_any_case() -> None:
    config = replace(RUN, resources=Resources(address="auto"), engine=EngineSettings(clip=1.0))
    for word in ("none", "None", "null"):
        changed = override(config, {"resources.address": word, "engine.clip": word})
        assert changed.resources.address is None
        assert changed.engine.clip is None


def test_custom_resources_are_open_and_keep_their_type() -> None:
    config = override(RUN, {"resources.custom.accelerator": "1"})
    assert config.resources.custom == {"accelerator": 1.0}
    assert override(config, {"resources.custom.accelerator": "0.5"}).resources.custom == {"accelerator": 0.5}


def test_an_arm_of_a_comparison_is_set_by_its_name() -> None:
    comparison = Comparison(name="c", base=RUN, arms={"long": Long(), "seal": Seal()})
    changed = override(comparison, {"arms.seal.ascent_rate": "0.5", "base.optim.lr": "0.2", "seeds": "3,4"})
    assert changed.arms["seal"] == Seal(ascent_rate=0.5)
    assert changed.base.optim.lr == 0.2
    assert changed.seeds == (3, 4)
    with pytest.raises(SettingError, match=r"'arms\.sael' does not exist; did you mean 'arms\.seal'"):
        override(comparison, {"arms.sael.epochs": "1"})


def test_overriding_leaves_the_original_alone() -> None:
    before = to_plain(RUN)
    override(RUN, {"optim.lr": "0.5", "recipe.epochs": "30", "resources.custom.x": "1"})
    assert to_plain(RUN) == before


@pytest.mark.parametrize(
    "config", [RUN, replace(RUN, recipe=LaterLayer()), Every()], ids=["seal", "later_layer", "every"]
)
def test_every_flat_leaf_can_be_set_by_its_own_key_and_text(config: Any) -> None:
    """What MLflow shows as a parameter can be given back on the command line."""
    for key, value in flatten(config).items():
        plain = not (isinstance(value, str) and any(k.startswith(f"{key}.") for k in flatten(config)))
        if plain and not (isinstance(value, Mapping) and not value):
            assert override(config, {key: str(value)}) == config, key


# ---------------------------------------------------------------------------------------------------------------- check


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"whole": True}, "whole = True: must be a whole number"),
        ({"whole": 2.0}, "whole = 2.0: must be a whole number"),
        ({"whole": None}, "whole = None: must be a whole number"),
        ({"number": True}, "number = True: must be a number"),
        ({"number": "1"}, "number = '1': must be a number"),
        ({"flag": 1}, "flag = 1: must be true or false"),
        ({"flag": 0}, "flag = 0: must be true or false"),
        ({"count": True}, "count = True: must be one of 0, 1, 2"),
        ({"text": 3}, "text = 3: must be text"),
        ({"word": "Near"}, "word = 'Near': must be one of near, far"),
        ({"pair": (1.0,)}, "pair = (1.0,): must be a tuple of 2 numbers"),
        ({"many": [1, 2]}, "many = [1, 2]: must be a tuple of whole numbers"),
        ({"many": (1, True)}, "many = (1, True): must be a tuple of whole numbers"),
        ({"custom": {"a": "b"}}, "custom = {'a': 'b'}: must be a mapping"),
        ({"inner": None}, "inner = None: must be Inner"),
        ({"row": (Inner(), Inner(sizes=(1.5,)))}, "row.1.sizes = (1.5,): must be a tuple of whole numbers"),
        ({"arms": {"a": Inner(sizes=("x",))}}, "arms.a.sizes = ('x',): must be a tuple of whole numbers"),
    ],
)
def test_a_value_of_another_type_is_found_before_anything_starts(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        check(replace(Every(), **changes))
    assert str(caught.value) == said


def test_what_fits_passes() -> None:
    for value in (Every(number=1, maybe=2, either=3, pair=(1, 2)), RUN):
        before = to_plain(value)
        check(value)
        assert to_plain(value) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda: Optim(lr="0.1"),  # type: ignore[arg-type]
        lambda: Optim(lr=True),
        lambda: Optim(lr=math.inf),
        lambda: Seal(generations="4"),  # type: ignore[arg-type]
        lambda: EngineSettings(batch="50"),  # type: ignore[arg-type]
        lambda: Resources(workers=math.nan),  # type: ignore[arg-type]
        lambda: RunConfig(name=3, task=Toy(), recipe=Seal()),  # type: ignore[arg-type]
    ],
)
def test_a_job_file_with_a_value_of_another_type_gets_a_setting_error(make: Any) -> None:
    with pytest.raises(SettingError):
        make()


@LAW
@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(-10, 10), st.floats(-10, 10))
def test_a_checked_number_lies_within_its_limits(value: float, low: float, high: float) -> None:
    if low <= value <= high:
        check_number("x", value, low=low, high=high)
    else:
        with pytest.raises(SettingError, match=r"^x = "):
            check_number("x", value, low=low, high=high)


def test_the_nearest_name_is_a_near_one() -> None:
    names = ["layer1", "layer2.0", "conv1", "fc"]
    assert nearest("layr1", names) == "layer1"
    assert nearest("conv", names) == "conv1"
    assert nearest("zzz", names) is None
    assert nearest("", names) is None
    assert nearest("x", []) is None


# ------------------------------------------------------------------------------------------------------- plain and back

NAMES = st.text(st.characters(categories=("Ll",)), min_size=1, max_size=6)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
INNERS = st.builds(Inner, rate=st.floats(0, 1), sizes=st.lists(st.integers()).map(tuple))
EVERIES = st.builds(
    Every,
    whole=st.integers(),
    number=NUMBERS,
    flag=st.booleans(),
    text=st.text(),
    word=st.sampled_from(["near", "far"]),
    maybe=st.none() | NUMBERS,
    either=st.none() | st.text() | st.integers(),
    pair=st.tuples(NUMBERS, NUMBERS),
    many=st.lists(st.integers()).map(tuple),
    words=st.lists(st.text()).map(tuple),
    custom=st.dictionaries(st.sampled_from(["type", "mapping", "a", "b"]), NUMBERS),
    inner=INNERS,
    arms=st.dictionaries(NAMES, INNERS),
    row=st.lists(INNERS).map(tuple),
)


@LAW
@given(EVERIES)
def test_settings_come_back_from_json_as_they_were(value: Every) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(value)))) == value
    check(value)


RECIPES = {
    "seal": st.builds(
        Seal,
        generations=st.integers(1, 5),
        epochs=st.floats(3, 50),
        ascent_epochs=st.floats(0.1, 2.9),
        threshold=st.sampled_from(["layer3", 7]),
        reverse=st.booleans(),
        loss_ratio=st.none() | st.floats(1, 3, exclude_min=True),
    ),
    "later_layer": st.builds(
        LaterLayer, generations=st.integers(1, 5), hold=st.sampled_from(["none", "later", "early"]), fixed=st.booleans()
    ),
    "long": st.builds(Long, epochs=st.floats(2, 9), shape=st.just("step"), drops=st.just((0.5, 0.75))),
    "restarts": st.builds(Restarts, generations=st.integers(1, 9)),
}


@pytest.mark.parametrize("recipe", RECIPES)
@LAW
@given(data=st.data())
def test_a_run_comes_back_from_json_with_its_identity_and_its_plan(recipe: str, data: st.DataObject) -> None:
    config = replace(RUN, recipe=data.draw(RECIPES[recipe]), seed=data.draw(st.integers(0, 2**40)))
    back = from_plain(json.loads(json.dumps(to_plain(config))))
    assert back == config
    assert back.identity == config.identity
    assert back.recipe.plan() == config.recipe.plan()


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"type": "llf_ray.recipes.seal:Seel"}, "llf_ray.recipes.seal:Seel cannot be found"),
        ({"type": "llf_ray.recipes.gone:Gone"}, "llf_ray.recipes.gone:Gone cannot be found"),
        ({"type": "os:system"}, "os:system is no settings class"),
        ({"type": "llf_ray.recipes.seal:Seal", "ascent": 3}, "setting of Seal 'ascent' does not exist; did you mean"),
    ],
)
def test_settings_of_another_version_are_refused_in_one_line(plain: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        from_plain(plain)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_what_is_no_setting_cannot_be_kept() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Typed:
        type: str = "a"

    for value in (object(), {1, 2}, os.path):
        with pytest.raises(SettingError, match="cannot be a setting"):
            to_plain({"key": value})
    with pytest.raises(SettingError, match="no setting may be called 'type'"):
        to_plain(Typed())


# ------------------------------------------------------------------------------------------------------------- identity


def grown(cls: type, **fields: Any) -> type:
    """The class as a later version of the package will have it: of the same name, with more settings."""
    more = [(name, type(value), field(default=value)) for name, value in fields.items()]
    return dataclasses.make_dataclass(
        cls.__name__, more, bases=(cls,), frozen=True, kw_only=True, namespace={"__qualname__": cls.__qualname__}
    )


def as_grown(value: Any, **fields: Any) -> Any:
    own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return grown(type(value), **fields)(**own)


def test_a_new_setting_with_a_default_renames_no_run() -> None:
    config = replace(RUN, optim=Optim(lr=0.3), recipe=Seal(epochs=9))
    later = as_grown(config, fresh=1)
    assert fingerprint(later) == fingerprint(config), "a new setting of a run"
    inside = replace(config, optim=as_grown(config.optim, fresh=1), recipe=as_grown(config.recipe, fresh="x"))
    assert fingerprint(inside) == fingerprint(config), "a new setting of what a run is made of"
    whole = replace(RUN, engine=as_grown(RUN.engine, fresh=1))
    assert fingerprint(replace(whole, seed=1)) != fingerprint(whole)


@LAW
@given(st.integers(1, 100))
def test_equal_settings_have_one_identity(number: int) -> None:
    one, other = replace(RUN, optim=Optim(lr=number)), replace(RUN, optim=Optim(lr=float(number)))
    assert one == other
    assert one.identity == other.identity


def test_identity_is_what_a_run_computes_and_not_where() -> None:
    same = [
        replace(RUN, resources=Resources(workers=7)),
        replace(RUN, checkpoints=Checkpoints(keep=1)),
        replace(RUN, folder="elsewhere"),
    ]
    other = [
        replace(RUN, seed=1),
        replace(RUN, optim=Optim(lr=0.2)),
        replace(RUN, recipe=Seal(epochs=24)),
        replace(RUN, recipe=Restarts()),
        replace(RUN, engine=EngineSettings(batch=10)),
        replace(RUN, name="another"),
    ]
    assert {run.identity for run in same} == {RUN.identity}
    assert len({run.identity for run in (RUN, *other)}) == len(other) + 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Optim(momentum=1), "momentum = 1: must be >= 0 and < 1"),
        (lambda: Optim(averaged=1.0), "averaged = 1.0: must be > 0 and < 1"),
        (lambda: replace(RUN, seed=-1), "seed = -1: must be >= 0"),
        (lambda: replace(RUN, seed=10**30), "seed = 1000000000000000000000000000000: must be >= 0 and <= "),
        (lambda: Tracking(uri="foo://bar"), "kind of address in uri 'foo' does not exist"),
        (
            lambda: Tracking(uri="htp://server:5000"),
            "kind of address in uri 'htp' does not exist; did you mean 'http'",
        ),
    ],
)
def test_a_value_that_could_only_fail_later_is_refused(make: Any, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "uri", [None, "http://server:5000", "sqlite:///x.db", "postgresql+psycopg2://u@h/db", "mlruns"]
)
def test_addresses_that_mlflow_takes_pass(uri: str | None) -> None:
    assert Tracking(uri=uri).uri == uri


def test_a_recipe_whose_plan_fails_is_one_line() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mistaken:
        def plan(self) -> Any:
            return (1 / 0,)

    with pytest.raises(
        SettingError, match=r"recipe: Mistaken.plan\(\) fails: ZeroDivisionError: .*\(test_config.py:\d+\)"
    ):
        prepare(replace(RUN, recipe=Mistaken()))
