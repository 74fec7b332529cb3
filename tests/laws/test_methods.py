"""Every method of the forget-and-relearn literature is a plan: phases, rules, operations, stores, and nothing else.

Each is written here from its description, as a user would write a recipe. What a task does not offer (another
objective, data that it makes, passes) is refused by name before anything starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from llf_ray.config import SettingError, check, from_plain, to_plain
from llf_ray.engine.base import Optim
from llf_ray.forget.groups import Both, Either, Not, Select
from llf_ray.forget.masks import Bernoulli, Everything, KernelBlock, Magnitude, Saved
from llf_ray.forget.operations import WEIGHTS, Forget, KeepMask, Rescale, ShrinkPerturb, Snapshot
from llf_ray.plan import (
    FREEZE,
    RECALIBRATE,
    Curve,
    DataRule,
    Generate,
    Length,
    Objective,
    Pass,
    Phase,
    Plan,
    Rule,
    Schedule,
    Until,
    check_plan,
    compute,
)
from llf_ray.run import prepare
from tests.local import settings
from tests.toy import Toy

EPOCHS = 3
COSINE = Curve(shape="cosine", warmup=Length(epochs=1))
CONSTANT = Curve(shape="constant")
STATISTICS = Select(kinds=("statistic",), name="statistics")
EVERYTHING = Either((Select(), STATISTICS))
STEM, BODY, HEAD = (Select(modules=(m,), name=m) for m in ("stem", "body", "head"))


def train(name: str, generation: int, **changes: Any) -> Phase:
    """Three epochs under a cosine with warm-up, with a new optimizer from the second generation on."""
    usual = {"length": Length(epochs=EPOCHS), "curve": COSINE, "optimizer": "rebuild" if generation else "keep"}
    return Phase(name=name, generation=generation, **{**usual, **changes})


def later_layer() -> list[Phase]:
    """LLF: a new draw for what lies at or after a layer, every generation but the first."""
    redraw = Forget(select=Both((Select(since="body"), WEIGHTS)))
    return [train("relearn", g, entry=(redraw,) if g else ()) for g in range(3)]


def wels() -> list[Phase]:
    """KE with one random mask for the run."""
    forget = Forget(keep=Bernoulli(keep=0.8))
    return [train("evolve", g, entry=(forget,) if g else ()) for g in range(3)]


def wels_resampled() -> list[Phase]:
    """KE with a random mask for each generation."""
    forget = Forget(keep=Bernoulli(keep=0.8, fixed=False))
    return [train("evolve", g, entry=(forget,) if g else ()) for g in range(3)]


def kels() -> list[Phase]:
    """KE with the block of kernels that a slim network takes away; the mask is stored for whoever extracts it."""
    fit = KeepMask(store="fit", source=KernelBlock(share=0.5))
    forget = Forget(keep=Saved(name="fit"))
    return [train("evolve", g, entry=(forget,) if g else (fit,)) for g in range(3)]


def seal() -> list[Phase]:
    """SEAL: early layers ascend first, under one cosine a generation; the optimizer is new twice."""
    phases = [train("train", 0)]
    for g in (1, 2):
        ascend = Rule(select=Select(before="body", name="early"), direction=-0.01, weight_decay=0.0)
        phases += [
            train("ascent", g, length=Length(epochs=1), rules=(ascend,)),
            train("descent", g, length=Length(epochs=2)),
        ]
    return phases


def layer_wise() -> list[Phase]:
    """LW: blocks below i(g) go to their initial norms, the rest to a fresh model's; a frozen normaliser between them.

    The normaliser is in the model from the start; the pass measures and switches it on.
    """
    blocks = ["stem", "body", "head"]
    phases = []
    for g, block in enumerate(blocks):
        below, above = Select(before=block, name=f"below {block}"), Select(since=block, name=f"from {block}")
        entry: tuple[Any, ...] = (
            (Snapshot(store="start"),)
            if g == 0
            else (
                Rescale(select=below, store="start"),
                Forget(select=above, fill="initial"),
                Pass(what=FREEZE, where=blocks[g - 1]),
            )
        )
        phases.append(train("train", g, entry=entry))
    return phases


def iterative_pruning() -> list[Phase]:
    """IMP: prune a fifth of the survivors of all layers, rewind the rest to step k, hold the mask, go on at k."""
    k = 2
    rewound = train("train", 1, length=Length(steps=3 * 4 - k), curve=replace(COSINE, offset=Length(steps=k)))
    prune = (
        KeepMask(store="m", source=Magnitude(keep=0.8, scope="global", within="m")),
        Forget(select=EVERYTHING, keep=Saved(name="m"), kept="store", fill="zero", store="rewind"),
    )
    dense = (KeepMask(store="m", source=Everything()), Snapshot(store="rewind"))
    return [
        train("until k", 0, length=Length(steps=k), curve=replace(COSINE, over="generation"), exit=dense),
        train("train", 0, length=Length(steps=3 * 4 - k), curve=COSINE, exit=prune),
        *(replace(rewound, generation=g, hold=("m",), exit=prune if g < 3 else ()) for g in (1, 2, 3)),
    ]


def rifle() -> list[Phase]:
    """RIFLE: the head is drawn anew (weight and bias), its momentum lives on; trunk and head have their own curves."""
    head = Rule(select=HEAD, curve=Curve(over="phase"))
    again = Forget(select=HEAD, fill="uniform", moments=False)
    return [
        train("tune", g, curve=Curve(over="run"), rules=(head,), entry=(again,) if g else (), optimizer="keep")
        for g in range(3)
    ]


def born_again() -> list[Phase]:
    """BAN: a fresh student each generation, taught by the one before."""
    fresh = Forget(select=EVERYTHING, fill="initial")
    taught = Objective(kind="distil", teacher="teacher", weight=0.2, temperature=20)
    keep = Snapshot(store="teacher")
    return [
        train("teach", 0, exit=(keep,)),
        *(train("student", g, entry=(fresh,), objective=taught, exit=(keep,)) for g in (1, 2)),
    ]


def dense_sparse_dense() -> list[Phase]:
    """DSD: train; prune the smallest 30 % of each tensor and train sparse; let go and train at a tenth of the rate."""
    mask = KeepMask(store="m", source=Magnitude(keep=0.7))
    zero = Forget(keep=Saved(name="m"), fill="zero")
    return [
        train("dense", 0),
        train("sparse", 0, entry=(mask, zero), hold=("m",), optimizer="rebuild"),
        train("dense again", 0, curve=replace(COSINE, over="phase", scale=0.1)),
    ]


def compressed_decompressed() -> list[Phase]:
    """AC/DC: warm up, then sparse and dense phases in turn; what comes back has no momentum, since it was held."""
    mask = KeepMask(store="m", source=Magnitude(keep=0.5, scope="global"))
    zero = Forget(keep=Saved(name="m"), fill="zero")
    phases = [train("warm up", 0, curve=CONSTANT)]
    for g in (1, 2):
        phases += [
            train("compressed", g, entry=(mask, zero), hold=("m",), curve=CONSTANT, optimizer="keep"),
            train("decompressed", g, curve=CONSTANT, optimizer="keep"),
        ]
    return phases


def shrink_perturb() -> list[Phase]:
    """Data arrive in thirds; at each arrival weights shrink towards a fresh model, and train until they fit."""
    mix = (ShrinkPerturb(shrink=0.4, perturb=0.1), Forget(select=STATISTICS, fill="initial"))
    fits = Until(measure="accuracy", at_least=0.99)
    return [
        train("round", g, entry=mix if g else (), data=DataRule(share=(g + 1) / 3), until=fits, curve=CONSTANT)
        for g in range(3)
    ]


def neural_iterated_learning() -> list[Phase]:
    """NIL: fresh listener, which learns alone, then plays; transcripts; a fresh speaker imitates them."""
    speaker, listener = STEM, Either((BODY, HEAD))
    imitate = Objective(kind="imitate")
    phases = []
    for g in range(2):
        phases += [
            Phase(
                name="listen",
                generation=g,
                length=Length(steps=2),
                curve=CONSTANT,
                entry=(Forget(select=listener, fill="initial"),),
                rules=(Rule(select=speaker, direction=0.0),),
                optimizer="rebuild",
            ),
            Phase(
                name="play",
                generation=g,
                length=Length(steps=6),
                curve=CONSTANT,
                exit=(Generate(what="messages of games that were won", store="transcripts"),),
            ),
            Phase(
                name="imitate",
                generation=g,
                length=Length(steps=4),
                curve=CONSTANT,
                entry=(Forget(select=speaker, fill="initial"),),
                rules=(Rule(select=listener, direction=0.0), Rule(select=speaker, clip=50.0)),
                objective=imitate,
                data=DataRule(source="transcripts", batch=2),
                optimizer="rebuild",
            ),
        ]
    return phases


def seeded_iterated_learning() -> list[Phase]:
    """SIL: the teacher is a copy of the student that plays on; the student goes back to the copy and imitates it."""
    phases = []
    for g in range(2):
        back = Forget(select=EVERYTHING, fill="store", store="student")
        phases += [
            Phase(
                name="teacher plays",
                generation=g,
                length=Length(steps=4),
                curve=CONSTANT,
                entry=(Snapshot(store="student"),),
                exit=(Generate(what="the teacher's messages", store="messages"),),
                optimizer="rebuild",
            ),
            Phase(
                name="student imitates",
                generation=g,
                length=Length(steps=4),
                curve=CONSTANT,
                entry=(back,),
                objective=Objective(kind="imitate"),
                data=DataRule(source="messages"),
                rules=(Rule(select=HEAD, direction=0.0),),
                optimizer="rebuild",
            ),
            Phase(
                name="student listens",
                generation=g,
                length=Length(steps=2),
                curve=CONSTANT,
                rules=(Rule(select=Not(HEAD), direction=0.0),),
            ),
        ]
    return phases


def partial_balanced_forgetting() -> list[Phase]:
    """PBF: in both players only the tenth that began largest stays; Adam's moments are left alone."""
    mask = KeepMask(store="k", source=Magnitude(keep=0.1), select=Select())
    forget = Forget(select=Select(), keep=Saved(name="k"), moments=False)
    return [
        train("life", g, entry=(forget,) if g else (mask,), curve=CONSTANT, optimizer="keep", length=Length(steps=4))
        for g in range(3)
    ]


def reset_receiver() -> list[Phase]:
    """Ease of teaching: a new receiver every life; both optimizers are built anew."""
    forget = Forget(select=HEAD, fill="initial")
    return [train("life", g, entry=(forget,) if g else (), curve=CONSTANT) for g in range(3)]


def active_forgetting() -> list[Phase]:
    """The embedding goes back to its first distribution every K updates, with moments, step count and its own curve."""
    embedding = Select(modules=("head",), name="embedding")  # the toy's stand-in
    own = Rule(select=embedding, curve=Curve(shape="linear", over="phase", warmup=Length(steps=1)))
    reset = Forget(select=embedding, fill="initial")
    return [
        train(
            "pretrain",
            g,
            length=Length(steps=5),
            curve=Curve(shape="linear", over="run"),
            rules=(own,),
            entry=(reset,) if g else (),
            optimizer="keep",
        )
        for g in range(3)
    ]


def fine_tune_under_frozen_statistics() -> list[Phase]:
    """Norm policies: statistics are measured anew from batches, then stay as they are."""
    return [
        train("train", 0),
        train("tune", 1, entry=(Pass(what=RECALIBRATE, batches=3),), normalisation="eval"),
    ]


METHODS: dict[str, Callable[[], list[Phase]]] = {
    method.__name__: method
    for method in (
        later_layer,
        wels,
        wels_resampled,
        kels,
        seal,
        layer_wise,
        iterative_pruning,
        rifle,
        born_again,
        dense_sparse_dense,
        compressed_decompressed,
        shrink_perturb,
        neural_iterated_learning,
        seeded_iterated_learning,
        partial_balanced_forgetting,
        reset_receiver,
        active_forgetting,
        fine_tune_under_frozen_statistics,
    )
}
NEEDED = {  # by name, what a task must offer for these
    "layer_wise": "freeze the normaliser behind stem on 1 batch",
    "born_again": "objective 'distil'",
    "neural_iterated_learning": "generate messages of games that were won into transcripts",
    "seeded_iterated_learning": "generate the teacher's messages into messages",
    "fine_tune_under_frozen_statistics": "recalibrate statistics on 3 batches",
}
OFFERS = ("distil", "generate", "imitate", "run_pass", "stored_batches")


class Bare:
    """A task that does what every task must, and no more."""

    def __init__(self, task: Any) -> None:
        self.task = task

    def __getattr__(self, name: str) -> Any:
        if name in OFFERS or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.task, name)


def compiled(method: str) -> Plan:
    return compute(METHODS[method](), num_items=48, batch=12, sizes={"transcripts": 24, "messages": 24})


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_plan_that_can_be_kept_and_read_back(method: str) -> None:
    plan = compiled(method)
    check_plan(plan)
    check(plan)
    back = from_plain(json.loads(json.dumps(to_plain(plan))))
    assert back == plan
    assert back.fingerprint == plan.fingerprint
    check_plan(back)


@pytest.mark.parametrize("method", METHODS)
def test_all_of_a_method_can_be_shown(method: str) -> None:
    plan = compiled(method)
    for phase in plan.phases:
        assert phase.name
        assert str(phase.length)
        assert all(label and "\n" not in label for label in phase.directions)
        for operation in (*phase.entry, *phase.exit):
            assert operation.label
            assert "\n" not in operation.label
    boundaries = sum(len(Schedule(plan).at(step).boundary) for step in range(plan.total + 1))
    assert boundaries == 2 * len(plan.phases)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_prepared(method: str) -> None:
    prepared = prepare(settings(METHODS[method](), optim=Optim(name="adamw", lr=0.01)))
    listed = [name for group in prepared.groups for name in group.parameters]
    assert sorted(listed) == sorted(slot.name for slot in prepared.slots if slot.kind != "statistic")


@pytest.mark.parametrize("method", NEEDED)
def test_what_a_task_does_not_offer_is_refused_by_name(method: str) -> None:
    config = replace(settings(METHODS[method]()), task=cast(Any, Bare(Toy())))
    with pytest.raises(SettingError, match="needs a task that offers it") as caught:
        prepare(config)
    assert NEEDED[method] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_methods_are_different_plans() -> None:
    assert len({compiled(method).fingerprint for method in METHODS}) == len(METHODS)
