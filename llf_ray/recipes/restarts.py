"""Warm restarts: every generation starts a new optimizer and a new cosine from the last weights."""

from __future__ import annotations

from dataclasses import dataclass

from llf_ray.plan import Length, Phase
from llf_ray.recipes.base import check_budget, cosine

__all__ = ["Restarts"]


@dataclass(frozen=True, kw_only=True)
class Restarts:
    """The "normal" mode of SEAL's code (Sarfi et al. 2023, arXiv:2304.04858): nothing is forgotten but the moments."""

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 1

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)

    def plan(self) -> tuple[Phase, ...]:
        """One phase a generation."""
        return tuple(
            Phase(
                name="train",
                generation=generation,
                length=Length(epochs=self.epochs),
                curve=cosine(self.warmup_epochs),
                optimizer="rebuild" if generation else "keep",
            )
            for generation in range(self.generations)
        )


tiny = Restarts(generations=2, epochs=1, warmup_epochs=0.5)
