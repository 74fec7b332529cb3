"""Dense-sparse-dense training, and its alternating form: prune, train sparse, let everything grow back.

DSD: Han et al. 2017, arXiv:1607.04381. AC/DC: Peste et al. 2021, arXiv:2106.12379.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llf_ray.config import SettingError, check_number
from llf_ray.forget.masks import Magnitude, Saved
from llf_ray.forget.operations import Forget, KeepMask
from llf_ray.plan import Curve, Length, Operation, Phase
from llf_ray.recipes.base import check_budget

__all__ = ["DenseSparse"]

MASK = "alive"


@dataclass(frozen=True, kw_only=True)
class DenseSparse:
    """Train dense for one generation; each later one is a sparse half, held at the mask, and a dense half.

    At the start of the sparse half the share ``sparsity`` of smallest magnitudes goes to zero, of each tensor
    (``scope="tensor"``, DSD) or of all together (AC/DC). What grows back starts at zero, without momentum: it was held.
    DSD as published: ``sparsity`` 0.25 to 0.5 (0.3 for ResNets), the last dense half at a tenth of the rate
    (``last_rate``), one or two rounds, each phase under a curve of its own. AC/DC: warm up for 10 epochs, then 5 epochs
    of each in turn under one curve over the run (``one_curve``, which leaves no rate of its own to the last half:
    ``last_rate`` must be 1), at a sparsity of 0.8 to 0.95.
    """

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 1
    sparsity: float = 0.3
    scope: Literal["tensor", "global"] = "tensor"
    last_rate: float = 0.1
    one_curve: bool = False

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)
        check_number("sparsity", self.sparsity, above=0, below=1)
        check_number("last_rate", self.last_rate, above=0)
        if self.one_curve and self.last_rate != 1:
            raise SettingError(
                f"last_rate = {self.last_rate!r}: must be 1 with one_curve = True, which leaves the last half no rate "
                "of its own"
            )

    def _curve(self, scale: float = 1.0) -> Curve:
        warmup = Length(epochs=self.warmup_epochs)
        return Curve(over="run", warmup=warmup) if self.one_curve else Curve(over="phase", warmup=warmup, scale=scale)

    def plan(self) -> tuple[Phase, ...]:
        """Dense; then sparse and dense in turn."""
        mask = KeepMask(store=MASK, source=Magnitude(keep=1 - self.sparsity, scope=self.scope))
        prune: tuple[Operation, ...] = (mask, Forget(keep=Saved(name=MASK), fill="zero"))
        half = Length(epochs=self.epochs / 2)
        phases = [Phase(name="dense", generation=0, length=Length(epochs=self.epochs), curve=self._curve())]
        for generation in range(1, self.generations):
            last = generation == self.generations - 1
            phases += [
                Phase(
                    name="sparse",
                    generation=generation,
                    length=half,
                    curve=self._curve(),
                    entry=prune,
                    hold=(MASK,),
                    optimizer="keep" if self.one_curve else "rebuild",
                ),
                Phase(
                    name="dense again",
                    generation=generation,
                    length=half,
                    curve=self._curve(self.last_rate if last else 1.0),
                    optimizer="keep",
                ),
            ]
        return tuple(phases)


tiny = DenseSparse(generations=2, epochs=2, warmup_epochs=0.5)
