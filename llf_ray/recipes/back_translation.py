"""Iterative back-translation: each generation learns from what the one before made of text without translations.

Hoang et al. 2018, "Iterative Back-Translation for Neural Machine Translation" (W18-2703); one round is that of
Sennrich et al. 2016, arXiv:1511.06709. Zhou et al. 2022 (arXiv:2202.00155) count it among the methods that forget and
relearn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llf_ray.forget.groups import Select
from llf_ray.forget.operations import STATE, Forget
from llf_ray.plan import BACK_TRANSLATIONS, DataRule, Generate, Length, Operation, Phase
from llf_ray.recipes.base import check_budget, cosine

__all__ = ["BackTranslation"]

STORE = "synthetic"


@dataclass(frozen=True, kw_only=True)
class BackTranslation:
    """Generation 0 learns from the pairs; each later one from pairs and back-translations, made as the last one ends.

    ``forget``: a later generation starts as a fresh "network", from the one before with everything at or after
    ``threshold`` fresh ("later"), or goes on ("nothing"). Without ``iterated`` back-translations are made once, by
    generation 0, and every later generation learns from the same: the control that says whether iterating is worth it.

    ``epochs`` are those of the pairs, so that an equal number of generations and epochs is an equal budget of
    optimizer steps, whatever there is of text.
    """

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 0
    forget: Literal["network", "later", "nothing"] = "network"
    threshold: str | int = "decoder"
    iterated: bool = True

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)

    @property
    def forgetting(self) -> tuple[Operation, ...]:
        """What happens to the weights at the start of a later generation."""
        if self.forget == "nothing":
            return ()
        if self.forget == "later":
            return (Forget(select=Select(since=self.threshold, name="later"), fill="initial"),)
        return (Forget(select=STATE, fill="initial"),)

    def makes(self, generation: int) -> bool:
        """Whether back-translations are made as a generation ends."""
        return generation + 1 < self.generations and (self.iterated or generation == 0)

    def plan(self) -> tuple[Phase, ...]:
        """One phase a generation."""
        translate = Generate(what=BACK_TRANSLATIONS, store=STORE)
        return tuple(
            Phase(
                name="relearn" if generation else "learn from pairs",
                generation=generation,
                length=Length(epochs=self.epochs, of="task"),
                curve=cosine(self.warmup_epochs),
                entry=self.forgetting if generation else (),
                exit=(translate,) if self.makes(generation) else (),
                optimizer="rebuild" if generation else "keep",
                data=DataRule(source=STORE) if generation else DataRule(),
            )
            for generation in range(self.generations)
        )


tiny = BackTranslation(generations=2, epochs=1, warmup_epochs=0.5)
