"""Simulated annealing in early layers, alone and together with later-layer forgetting.

Sarfi et al. 2023, arXiv:2304.04858.
"""

from __future__ import annotations

from dataclasses import dataclass

from llf_ray.config import SettingError, check_number
from llf_ray.forget.groups import Select
from llf_ray.plan import Length, Phase, Rule, Until
from llf_ray.recipes.base import check_budget, cosine
from llf_ray.recipes.later_layer import redraw

__all__ = ["Seal"]


@dataclass(frozen=True, kw_only=True)
class Seal:
    """Early layers ascend for the first ``ascent_epochs`` of each generation but the first, then everything descends.

    During the ascent the early group moves against the gradient at ``ascent_rate`` times the run's rate, without
    weight decay; the optimizer is built anew at the start of the generation and again when the ascent ends; the cosine
    runs over the whole generation, so descent continues where ascent stopped. Published (ResNet50, Tiny-ImageNet): 10
    generations of 160 epochs, 40 of ascent, rate 0.01, threshold ``layer3``. What acts is rate x learning rate x
    number of ascent steps, so 0.01 does nothing on small data.

    Variants of the paper's code: ``reverse`` lets the later layers ascend instead; ``hold_descenders`` holds the
    others during the ascent; ``forget_later`` also redraws the later layers at the start of the generation
    ("fortuitous+ascend"). Beyond the paper: ``loss_ratio`` (above 1) ends the ascent when the training loss has grown
    to that many times its value before it, and hands the unused steps to the descent.
    """

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 1
    ascent_epochs: float = 6
    ascent_rate: float = 0.03
    threshold: str | int = "layer3"
    reverse: bool = False
    hold_descenders: bool = False
    forget_later: bool = False
    loss_ratio: float | None = None

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)
        check_number("ascent_epochs", self.ascent_epochs, above=0)
        check_number("ascent_rate", self.ascent_rate, above=0)
        check_number("loss_ratio", self.loss_ratio, above=1)  # at 1 or less the first question would end it
        if self.ascent_epochs >= self.epochs:
            raise SettingError(
                f"ascent_epochs = {self.ascent_epochs!r}: must be < epochs = {self.epochs!r}, which includes them"
            )

    @property
    def early(self) -> Select:
        """Layers in front of the threshold."""
        return Select(before=self.threshold, name="early")

    @property
    def later(self) -> Select:
        """Layers at or after the threshold."""
        return Select(since=self.threshold, name="later")

    def plan(self) -> tuple[Phase, ...]:
        """Ordinary training first; then ascent and descent in every generation."""
        first = Phase(name="train", generation=0, length=Length(epochs=self.epochs), curve=cosine(self.warmup_epochs))
        later = [self._generation(generation) for generation in range(1, self.generations)]
        return (first, *(phase for phases in later for phase in phases))

    def _generation(self, generation: int) -> tuple[Phase, Phase]:
        ascending, others = (self.later, self.early) if self.reverse else (self.early, self.later)
        holding = (Rule(select=others, direction=0.0),) if self.hold_descenders else ()
        ascent = Phase(
            name="ascent",
            generation=generation,
            length=Length(epochs=self.ascent_epochs),
            curve=cosine(self.warmup_epochs),
            rules=(Rule(select=ascending, direction=-self.ascent_rate, weight_decay=0.0), *holding),
            entry=(redraw(self.later),) if self.forget_later else (),
            optimizer="rebuild",
            until=Until(at_least=self.loss_ratio, relative=True) if self.loss_ratio else None,
            fill=True,
        )
        descent = Phase(
            name="descent",
            generation=generation,
            length=Length(epochs=self.epochs - self.ascent_epochs),
            curve=cosine(self.warmup_epochs),
            optimizer="rebuild",
        )
        return ascent, descent


tiny = Seal(generations=2, epochs=1, ascent_epochs=0.5, warmup_epochs=0.5, ascent_rate=0.5)
