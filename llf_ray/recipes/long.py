"""One long run under a single curve: the compute-matched baseline of every iterative method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llf_ray.plan import Curve, Length, Phase
from llf_ray.recipes.base import check_budget

__all__ = ["Long"]


@dataclass(frozen=True, kw_only=True)
class Long:
    """``generations * epochs`` epochs in one piece, so that a comparison says its budget as every other recipe does.

    Zhou et al. 2022 (arXiv:2202.00155) train one cosine over all epochs and score it where the generations of the
    others end.
    """

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 1
    shape: Literal["cosine", "linear", "constant", "step"] = "cosine"
    drops: tuple[float, ...] = ()
    power: float = 1.0  # of what remains, for shape = "linear"

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)

    def plan(self) -> tuple[Phase, ...]:
        """One phase of one generation."""
        warmup = Length(epochs=self.warmup_epochs)
        curve = Curve(shape=self.shape, over="run", warmup=warmup, drops=self.drops, power=self.power)
        return (Phase(name="train", generation=0, length=Length(epochs=self.generations * self.epochs), curve=curve),)


tiny = Long(generations=2, epochs=1, warmup_epochs=0.5)
