"""Targeted forgetting: what a perturbation of the weights takes from some examples and leaves to others.

The analysis of Zhou et al. 2022, arXiv:2202.00155: a clone of the network is perturbed and discarded, and mislabelled
examples are held against clean ones, those of small margin against those of large margin. Left behind of the paper's
code: it draws anew only modules at the top of a network, always redraws biases, compares weights from before an
optimizer step with a clone of those behind it, and leaves the clone in training mode. Here every selected layer is
perturbed, biases only where asked for, both sides have the same weights and both are in evaluation mode. Shapes: N
examples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llf_ray.config import SettingError, check_number, unknown
from llf_ray.forget.groups import Both, Not, Select
from llf_ray.forget.masks import Bernoulli, Magnitude, MaskSource
from llf_ray.forget.operations import Forget
from llf_ray.forget.plain import apply, module_view
from llf_ray.measures.features import as_evaluated

__all__ = [
    "Answers",
    "Effect",
    "Perturbation",
    "Probe",
    "Scores",
    "answers",
    "effects",
    "every_targeted",
    "groups",
    "joined",
    "perturbed",
    "scores",
    "targeted",
]

MaskName = Literal["new random", "fixed random", "magnitude", "initial magnitude"]
FillName = Literal["redraw", "zero"]
START = "start"  # the snapshot of the weights at the beginning


# ------------------------------------------------------------------------------------------------------- perturbations


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """Operations on a clone, one after another, under a name."""

    name: str
    operations: tuple[Forget, ...]

    def __post_init__(self) -> None:
        if not self.name or any(not (c.isalnum() or c in " -_.") for c in self.name):
            raise SettingError(f"name = {self.name!r}: letters, digits, spaces, '-', '_' and '.' only")
        if not self.operations:
            raise SettingError(f"perturbation {self.name!r} has no operation")

    @property
    def needs(self) -> tuple[str, ...]:
        """Snapshots that it reads."""
        return tuple(dict.fromkeys(name for operation in self.operations for name in operation.needs))


def targeted(
    mask: MaskName,
    fill: FillName,
    *,
    keep: float = 0.5,
    other: Mapping[str, float] | None = None,
    rewind: str = "",
    initial: str = START,
    biases: bool = False,
    name: str = "",
) -> Perturbation:
    """One cell of the paper's table: mask source x fill x what becomes of the weights that are kept.

    Args:
        mask: "new random" draws anew at each probe, "fixed random" once for the run; "magnitude" keeps the largest of
            each tensor now, "initial magnitude" those that were the largest in the snapshot ``initial``.
        fill: what stands in place of what is not kept: the uniform redraw of the paper's code, or zero.
        keep: the share of weights that are kept.
        other: other shares for the modules of these names (the paper forgets half as much of the last layer).
        rewind: the snapshot that kept weights go back to; empty: they stay as they are.
        initial: the snapshot whose magnitudes count.
        biases: whether biases of convolutions and linear layers are forgotten by the same rule.
        name: empty: made of the above.
    """
    shares = dict(other or {})
    kinds: tuple[Literal["weight", "bias"], ...] = ("weight", "bias") if biases else ("weight",)

    def forget(share: float, modules: tuple[str, ...], label: str) -> Forget:
        chosen = Select(modules=modules, kinds=kinds, name=label)
        apart = Not(Select(modules=tuple(shares)))
        return Forget(
            select=Both((chosen, apart)) if shares and not modules else chosen,
            keep=_mask(mask, share, initial),
            kept="store" if rewind else "same",
            fill="uniform" if fill == "redraw" else "zero",
            store=rewind,
        )

    return Perturbation(
        name=name or f"{mask} {fill} {100 * (1 - keep):.3g}" + (f" rewound to {rewind}" if rewind else ""),
        operations=(
            forget(keep, (), "weights and biases" if biases else "weights"),
            *(forget(share, (module,), module) for module, share in shares.items()),
        ),
    )


def _mask(mask: MaskName, keep: float, initial: str) -> MaskSource:
    match mask:
        case "new random" | "fixed random":
            # a name of its own: a run of knowledge evolution must not be probed with the mask that it trains
            return Bernoulli(keep=keep, fixed=mask == "fixed random", name="probe")
        case "magnitude" | "initial magnitude":
            return Magnitude(keep=keep, scope="tensor", of=initial if mask == "initial magnitude" else "")
    raise unknown("mask", mask, get_args(MaskName))


def every_targeted(
    *, keep: float = 0.5, other: Mapping[str, float] | None = None, rewind: str = START
) -> tuple[Perturbation, ...]:
    """All sixteen cells: four masks, two fills, kept weights as they are or rewound."""
    masks: tuple[MaskName, ...] = get_args(MaskName)
    fills: tuple[FillName, ...] = get_args(FillName)
    return tuple(
        targeted(mask, fill, keep=keep, other=other, rewind=back)
        for back in ("", rewind)
        for fill in fills
        for mask in masks
    )


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a run looks at on the way, without any effect on it.

    Every ``every`` optimizer steps each perturbation is applied to a clone of the network as it is, and ``examples`` of
    the training part (None: all; the same ones each time, without augmentation) are answered by both. ``hardest`` is
    the share of examples with the smallest, and with the largest, margin. ``snapshots`` says at which optimizer step a
    snapshot is taken that perturbations rewind to; until then they wait.
    """

    perturbations: tuple[Perturbation, ...]
    every: int = 100
    examples: int | None = 1000
    hardest: float = 0.1
    snapshots: Mapping[str, int] = field(default_factory=lambda: {START: 0})

    def __post_init__(self) -> None:
        check_number("every", self.every, low=1)
        check_number("examples", self.examples, low=1)
        check_number("hardest", self.hardest, above=0, high=0.5)
        names = [perturbation.name for perturbation in self.perturbations]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise SettingError(f"perturbations: two are called {name!r}")
        for store, step in self.snapshots.items():
            check_number(f"snapshots.{store}", step, low=0)
        for perturbation in self.perturbations:
            for store in perturbation.needs:
                if store not in self.snapshots:
                    raise SettingError(
                        f"perturbation {perturbation.name!r} needs snapshot {store!r}; "
                        f"snapshots has {', '.join(map(repr, self.snapshots)) or 'none'}"
                    )

    @property
    def needs(self) -> tuple[str, ...]:
        """Snapshots that some perturbation reads."""
        return tuple(name for name in self.snapshots if any(name in one.needs for one in self.perturbations))


def perturbed(
    network: nn.Module,
    perturbation: Perturbation | Sequence[Forget],
    *,
    stores: Mapping[str, Mapping[str, Tensor]] | None = None,
    fresh: Callable[[int], nn.Module] | None = None,
    seed: int = 0,
    step: int = 0,
) -> nn.Module:
    """A perturbed copy of a network; the network is left as it is.

    Args:
        network: parameters in float32, none of them sharded.
        perturbation: its operations, in order: each sees what the one before it left.
        stores: snapshots by name, each a state dict.
        fresh: gives a newly initialised network for a seed; only ``fill="initial"`` and redraws of
            normalisers ask for it.
        seed: with ``step`` the key of all draws; a fixed mask depends on ``seed`` alone.
        step: of training.
    """
    clone = copy.deepcopy(network)
    operations = perturbation.operations if isinstance(perturbation, Perturbation) else perturbation
    name = perturbation.name if isinstance(perturbation, Perturbation) else "probe"
    for place, operation in enumerate(operations):
        view = module_view(
            clone,
            fresh=fresh or _no_fresh,
            stores=stores or {},
            seed=seed,
            key=f"probe/{name}/{place}/{step}",
            generation=0,
        )
        apply(clone, operation(view))
    return clone


def _no_fresh(seed: int) -> nn.Module:
    raise ValueError("this perturbation takes values of a newly initialised network: give `fresh`")


# ------------------------------------------------------------------------------------------------- what a network says


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a network says of each example, all (N,): whether it is right (0 or 1), cross-entropy in nats, entropy of
    the class probabilities in nats, and margin, the largest class probability less the second.
    """

    right: Tensor
    loss: Tensor
    entropy: Tensor
    margin: Tensor

    def at(self, places: Tensor) -> Answers:
        """Those of some examples, in this order."""
        return Answers(
            right=self.right[places], loss=self.loss[places], entropy=self.entropy[places], margin=self.margin[places]
        )


@torch.no_grad()
def answers(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Answers:
    """Answers of a network in evaluation mode to (inputs (B, ...), classes (B,)), as float64 on the CPU.

    Every module is left in the mode in which it was.
    """
    with as_evaluated(network):
        return joined([_answered(network(inputs), labels) for inputs, labels in batches])


def _answered(logits: Tensor, labels: Tensor) -> Answers:
    logs = F.log_softmax(logits.double(), 1)
    best = logs.exp().topk(2, dim=1).values
    return Answers(
        right=(logits.argmax(1) == labels).double().cpu(),
        loss=F.nll_loss(logs, labels, reduction="none").cpu(),
        entropy=-(logs.exp() * logs).sum(1).cpu(),
        margin=(best[:, 0] - best[:, 1]).cpu(),
    )


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers of several batches, in order."""
    return Answers(
        right=torch.cat([part.right for part in parts]),
        loss=torch.cat([part.loss for part in parts]),
        entropy=torch.cat([part.entropy for part in parts]),
        margin=torch.cat([part.margin for part in parts]),
    )


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over a group of examples."""

    accuracy: float
    loss: float
    entropy: float
    count: int


def groups(before: Answers, mislabelled: Tensor | None = None, *, hardest: float = 0.1) -> dict[str, Tensor]:
    """The groups that are held against each other, as boolean masks (N,); a group without a member is left out.

    Zhou et al. name the hard ones alone, the tenth with the smallest margins. What they are held against is ours: as
    many examples from the other end, not the remaining nine tenths, so that both groups have one size.

    Args:
        before: answers of the network as it is.
        mislabelled: which examples have a label that was drawn, (N,); None: none.
        hardest: the share of examples in "hard" (smallest margins) and in "easy" (largest); ties by place.
    """
    number = len(before.margin)
    size = max(1, round(hardest * number))
    order = torch.argsort(before.margin, stable=True)
    found: dict[str, Tensor] = {}
    if mislabelled is not None:
        found |= {"clean": ~mislabelled.bool(), "mislabelled": mislabelled.bool()}
    for name, places in (("easy", order[number - size :]), ("hard", order[:size])):
        found[name] = torch.zeros(number, dtype=torch.bool)
        found[name][places] = True
    return {name: members for name, members in found.items() if bool(members.any())}


def scores(found: Answers, members: Mapping[str, Tensor]) -> dict[str, Scores]:
    """Means over each group."""
    return {
        name: Scores(
            accuracy=float(found.right[mask].mean()),
            loss=float(found.loss[mask].mean()),
            entropy=float(found.entropy[mask].mean()),
            count=int(mask.sum()),
        )
        for name, mask in members.items()
    }


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a perturbation did to each group: scores of the network and of its perturbed clone."""

    name: str
    before: Mapping[str, Scores]
    after: Mapping[str, Scores]

    def retention(self, group: str) -> float | None:
        """Accuracy after / accuracy before; None where nothing was right before."""
        if group not in self.before or not self.before[group].accuracy:
            return None
        return self.after[group].accuracy / self.before[group].accuracy

    def selectivity(self, easy: str, hard: str) -> float | None:
        """Retention of the easy group less that of the hard one."""
        kept, lost = self.retention(easy), self.retention(hard)
        return None if kept is None or lost is None else kept - lost

    def values(self) -> dict[str, float]:
        """All of it by name, for a record: GROUP/accuracy, .../loss, .../entropy, .../retention, and
        selectivity/mislabelled and selectivity/hard; what is not defined is left out.
        """
        found: dict[str, float | None] = {}
        for group, after in self.after.items():
            found |= {f"{group}/{key}": getattr(after, key) for key in ("accuracy", "loss", "entropy")}
            found[f"{group}/retention"] = self.retention(group)
        found["selectivity/mislabelled"] = self.selectivity("clean", "mislabelled")
        found["selectivity/hard"] = self.selectivity("easy", "hard")
        return {key: value for key, value in found.items() if value is not None}


def effects(
    network: nn.Module,
    perturbations: Sequence[Perturbation],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    mislabelled: Tensor | None = None,
    hardest: float = 0.1,
    stores: Mapping[str, Mapping[str, Tensor]] | None = None,
    fresh: Callable[[int], nn.Module] | None = None,
    seed: int = 0,
    step: int = 0,
) -> list[Effect]:
    """What each perturbation would do to the network as it is now; nothing of it changes.

    For a loop of one's own: call it every hundred steps or so. ``batches`` give (inputs, classes) and are held in
    memory; ``mislabelled`` marks their examples, (N,), in order. The rest as in `perturbed` and `groups`.

    Raises:
        ValueError: as many marks as there are examples are needed.
    """
    data = list(batches)
    before = answers(network, data)
    if mislabelled is not None and len(mislabelled) != len(before.right):
        raise ValueError(f"mislabelled marks {len(mislabelled)} examples, and there are {len(before.right)}")
    members = groups(before, mislabelled, hardest=hardest)
    found = scores(before, members)
    return [
        Effect(
            name=one.name,
            before=found,
            after=scores(
                answers(perturbed(network, one, stores=stores, fresh=fresh, seed=seed, step=step), data), members
            ),
        )
        for one in perturbations
    ]
