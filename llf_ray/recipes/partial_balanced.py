"""Partial balanced forgetting: sender and receiver both forget most of their weights, the same part every time.

Zhou et al. 2022, arXiv:2202.00155, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from llf_ray.config import check_number
from llf_ray.forget.masks import Magnitude, Saved
from llf_ray.forget.operations import EVERYTHING, Forget, KeepMask
from llf_ray.plan import Length, Phase
from llf_ray.recipes.base import CONSTANT, check_budget

__all__ = ["KEPT", "PartialBalancedForgetting"]

KEPT = "kept"  # the store of the mask of what is kept


@dataclass(frozen=True, kw_only=True)
class PartialBalancedForgetting:
    """Of every tensor, biases too, the share ``keep`` that was largest at initialisation stays; all else is initialised
    anew at the start of every generation but the first.

    Kept entries go on as they are. Published: 100 lives of 3,000 steps of 100 games, which are 30 epochs of 10,000
    games, at a constant rate. The paper's code leaves Adam's moments of redrawn entries alone, which damps their first
    steps; ``moments`` zeroes them.
    """

    generations: int = 100
    epochs: float = 30
    keep: float = 0.1
    moments: bool = False

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, 0)
        check_number("keep", self.keep, above=0, below=1)

    def plan(self) -> tuple[Phase, ...]:
        """One phase a generation."""
        mask = KeepMask(store=KEPT, source=Magnitude(keep=self.keep), select=EVERYTHING)
        forget = Forget(select=EVERYTHING, keep=Saved(name=KEPT), fill="initial", moments=self.moments)
        return tuple(
            Phase(
                name="play",
                generation=generation,
                length=Length(epochs=self.epochs),
                curve=CONSTANT,
                entry=(forget,) if generation else (mask,),
            )
            for generation in range(self.generations)
        )


tiny = PartialBalancedForgetting(generations=2, epochs=1)
