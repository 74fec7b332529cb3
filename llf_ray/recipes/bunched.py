"""Later-layer forgetting whose resets come close together: the same number, the same budget, not spread over the run.

A control for Zhou et al. 2022, arXiv:2202.00155, who reset once a generation.
"""

from __future__ import annotations

from dataclasses import dataclass

from llf_ray.config import SettingError, check_number
from llf_ray.forget.groups import Select
from llf_ray.plan import Length, Phase
from llf_ray.recipes.base import check_budget, cosine
from llf_ray.recipes.later_layer import redraw

__all__ = ["BunchedResets"]


@dataclass(frozen=True, kw_only=True)
class BunchedResets:
    """As many redraws as `LaterLayer` makes in ``generations`` generations of ``epochs``, ``gap_epochs`` apart.

    The first stretch of training has ``first`` generations' worth of epochs, the last one what the gaps leave: with
    ``first`` 1 all resets come where `LaterLayer` makes its first one, with ``generations - 1`` where it makes its
    last one (less the gaps). Between two resets the rate runs through a cosine of its own, as in every generation.
    """

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 1
    threshold: str | int = "layer3"
    gap_epochs: float = 2
    first: float = 1

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)
        check_number("generations", self.generations, low=2)
        check_number("gap_epochs", self.gap_epochs, above=0)
        check_number("first", self.first, above=0)
        if min(self.lengths) <= 0:
            where = "behind the last reset" if self.lengths[-1] <= 0 else "in front of the first reset"
            raise SettingError(
                f"gap_epochs = {self.gap_epochs!r}, first = {self.first!r}: nothing is left {where} of "
                f"{self.generations} x {self.epochs!r} epochs"
            )

    @property
    def lengths(self) -> tuple[float, ...]:
        """Epochs up to the first reset, between resets, and behind the last one."""
        gaps = (self.gap_epochs,) * (self.generations - 2)
        first = self.first * self.epochs - (sum(gaps) if self.first > 1 else 0)
        return (first, *gaps, self.generations * self.epochs - first - sum(gaps))

    def plan(self) -> tuple[Phase, ...]:
        """One phase a stretch."""
        later = Select(since=self.threshold, name="later")
        return tuple(
            Phase(
                name="relearn" if generation else "train",
                generation=generation,
                length=Length(epochs=length),
                curve=cosine(min(self.warmup_epochs, length / 2)),
                entry=(redraw(later),) if generation else (),
                optimizer="rebuild" if generation else "keep",
            )
            for generation, length in enumerate(self.lengths)
        )


tiny = BunchedResets(generations=3, epochs=1, warmup_epochs=0.5, gap_epochs=0.5)
