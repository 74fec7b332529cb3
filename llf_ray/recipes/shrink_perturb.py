"""Shrink and perturb: data arrive in portions; at each arrival weights move towards a fresh model, and train on.

Ash & Adams 2020, arXiv:1910.08475.
"""

from __future__ import annotations

from dataclasses import dataclass

from llf_ray.config import check_number
from llf_ray.forget.groups import Select
from llf_ray.forget.operations import Forget, ShrinkPerturb
from llf_ray.plan import Curve, DataRule, Length, Phase, Until
from llf_ray.recipes.base import check_budget

__all__ = ["ShrinkAndPerturb"]


@dataclass(frozen=True, kw_only=True)
class ShrinkAndPerturb:
    """Generation g trains on the first ``(g + 1) / generations`` of the data.

    On arrival weights become ``shrink`` x themselves + ``perturb`` x a fresh model's, statistics a fresh model's.
    ``shrink`` 1 with ``perturb`` 0 is a warm start, 0 with 1 a fresh one. Published: 0.4 and 0.1 (code), a new Adam at
    rate 1e-3 without decay, and training until 99 % of the training data are right (``until_accuracy``).

    ``epochs`` are those of the whole training part, so that an equal number of generations and epochs is an equal
    budget of steps: a generation on a third of the data passes over it three times as often.
    """

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 0
    shrink: float = 0.4
    perturb: float = 0.1
    until_accuracy: float | None = None

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)
        check_number("shrink", self.shrink, low=0, high=1)
        check_number("perturb", self.perturb, low=0)
        check_number("until_accuracy", self.until_accuracy, above=0, high=1)

    def plan(self) -> tuple[Phase, ...]:
        """One phase an arrival, at a constant rate."""
        statistics = Select(kinds=("statistic",), name="statistics")
        mix = (ShrinkPerturb(shrink=self.shrink, perturb=self.perturb), Forget(select=statistics, fill="initial"))
        until = None if self.until_accuracy is None else Until(measure="accuracy", at_least=self.until_accuracy)
        return tuple(
            Phase(
                name="learn",
                generation=generation,
                length=Length(epochs=self.epochs, of="task"),
                curve=Curve(shape="constant", warmup=Length(epochs=self.warmup_epochs)),
                entry=mix if generation else (),
                optimizer="rebuild" if generation else "keep",
                data=DataRule(share=(generation + 1) / self.generations),
                until=until,
            )
            for generation in range(self.generations)
        )


tiny = ShrinkAndPerturb(generations=2, epochs=1)
