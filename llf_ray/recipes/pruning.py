"""Iterative magnitude pruning: train, prune the smallest weights, rewind the others, train again.

The lottery ticket hypothesis: Frankle & Carbin 2019, arXiv:1803.03635; rewinding: Frankle et al. 2020,
arXiv:1912.05671.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from llf_ray.config import SettingError, check_number
from llf_ray.forget.masks import Everything, Magnitude, Saved, Shuffled
from llf_ray.forget.operations import STATE, Forget, KeepMask, Snapshot
from llf_ray.plan import DataRule, Length, Operation, Phase
from llf_ray.recipes.base import check_budget, cosine

__all__ = ["MASK", "REWIND", "TICKET", "IterativePruning"]

MASK, REWIND = "alive", "start"  # stores: what is alive, and the weights to go back to
TICKET = "ticket"  # beside a control: the mask of the ticket that it is held against


@dataclass(frozen=True, kw_only=True)
class IterativePruning:
    """Each generation but the first has ``rate`` fewer of the convolution and linear weights, and starts from step k.

    Level 0 trains dense. Then the smallest magnitudes at the end of the level before are pruned, of all layers together
    (``scope="global"``) or of each tensor; whatever is left, biases, normalisers and their statistics included, goes
    back to what it was at ``rewind_epochs`` of level 0; what is pruned is held at zero in masters, copies and moments;
    and the level trains on from there, under the rest of the same curve and from the same place in the order of its
    data. ``rewind_epochs`` = 0 goes back to the initialisation. With ``drops``, shares of a level, the rate falls
    tenfold at each in place of a cosine. Published (ResNet-20, CIFAR-10): 160 epochs a level, drops at 1/2 and 3/4,
    rate 0.2, rewinding to about step 500. ``repeat_order`` gives every level the same order of data, as open_lth does.

    Controls: "reinit" trains the mask from a new draw in place of the rewound weights; "random" shuffles each tensor's
    mask, so that layers keep their sparsity and lose the places. The masks are the ticket's at every level: a control
    trains the ticket beside itself, in front of each level but the first and the last, to find the mask of the next.
    This takes almost twice the steps of the run that it is a control of. What is on record of a level's end, and the
    store "alive", are the control's; the ticket's masks are in the store "ticket".
    """

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 1
    rate: float = 0.2
    scope: Literal["global", "tensor"] = "global"
    rewind_epochs: float = 0
    drops: tuple[float, ...] = ()
    control: Literal["none", "reinit", "random"] = "none"
    repeat_order: bool = False

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)
        check_number("rate", self.rate, low=0, below=1)
        check_number("rewind_epochs", self.rewind_epochs, low=0)
        if self.rewind_epochs >= self.epochs:
            raise SettingError(f"rewind_epochs = {self.rewind_epochs!r}: must be < epochs = {self.epochs!r}")

    @property
    def density(self) -> float:
        """The share of prunable weights that the last level trains."""
        return math.pow(1 - self.rate, self.generations - 1)

    def plan(self) -> tuple[Phase, ...]:
        """Level 0 up to the rewind point and from there on; then a phase a level, a control's ticket in front."""
        whole = cosine(self.warmup_epochs)
        if self.drops:
            whole = replace(whole, shape="step", drops=self.drops)
        masks = (MASK,) if self.control == "none" else (MASK, TICKET)
        dense: tuple[Operation, ...] = (
            *(KeepMask(store=mask, source=Everything()) for mask in masks),
            Snapshot(store=REWIND),
        )
        rest = Length(epochs=self.epochs - self.rewind_epochs)
        data = DataRule(repeat_order=self.repeat_order)
        first = Phase(name="train", generation=0, length=rest, curve=whole, exit=self._ended(0), data=data)
        if not self.rewind_epochs:
            start = (replace(first, entry=dense),)
        else:
            until = replace(first, name="until rewind point", length=Length(epochs=self.rewind_epochs), exit=dense)
            start = (until, first)  # type: ignore[assignment]
        k = Length(epochs=self.rewind_epochs)
        ticket = Phase(
            name="ticket",
            generation=1,
            length=rest,
            curve=replace(whole, over="phase", offset=k),
            hold=(TICKET,),
            exit=(self._smaller(TICKET), *self._control()),
            optimizer="rebuild",
            data=replace(data, start=k),
            aside=True,
        )
        sparse = replace(ticket, name="sparse", hold=(MASK,), aside=False)
        if self.control == "reinit":  # a new draw has no step k to go on from: the whole curve in the steps it has
            sparse = replace(sparse, curve=replace(whole, over="phase"))
        levels = [
            phase
            for level in range(1, self.generations)
            for phase in (
                *((replace(ticket, generation=level),) if self._has_ticket(level) else ()),
                replace(sparse, generation=level, exit=self._ended(level)),
            )
        ]
        return (*start, *levels)

    def _has_ticket(self, level: int) -> bool:
        """Whether a ticket is trained beside a control: for the mask of the level behind."""
        return self.control != "none" and 0 < level < self.generations - 1

    def _ended(self, level: int) -> tuple[Operation, ...]:
        """At the end of a level: the next one's mask, and the weights that it starts from."""
        if level + 1 == self.generations:
            return ()
        if self.control == "none":
            return (self._smaller(MASK), _rewound(MASK))
        found = () if level else (self._smaller(TICKET),)  # later ones when their ticket ends
        places = Saved(name=TICKET) if self.control == "reinit" else Shuffled(of=Saved(name=TICKET))
        begun = (_rewound(TICKET),) if self._has_ticket(level + 1) else self._control()
        return (*found, KeepMask(store=MASK, source=places), *begun)

    def _smaller(self, mask: str) -> KeepMask:
        """What the trained weights leave of a mask."""
        return KeepMask(store=mask, source=Magnitude(keep=1 - self.rate, scope=self.scope, within=mask))

    def _control(self) -> tuple[Operation, ...]:
        """The weights that a control starts from."""
        if self.control == "reinit":
            return (Forget(select=STATE, fill="initial"), Forget(keep=Saved(name=MASK), fill="zero"))
        return (_rewound(MASK),)


def _rewound(mask: str) -> Forget:
    """Live weights and all that has no mask at step k, the rest zero."""
    return Forget(select=STATE, keep=Saved(name=mask), kept="store", fill="zero", store=REWIND)


tiny = IterativePruning(generations=2, epochs=1, warmup_epochs=0.5)
