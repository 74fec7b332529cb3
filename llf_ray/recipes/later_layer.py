"""Later-layer forgetting: every generation redraws the later layers and trains on.

Zhou et al. 2022, arXiv:2202.00155.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llf_ray.forget.groups import Both, Select
from llf_ray.forget.operations import WEIGHTS, Forget
from llf_ray.plan import DataRule, Length, Phase, Rule, Selection
from llf_ray.recipes.base import check_budget, cosine

__all__ = ["LaterLayer", "redraw"]


def redraw(layers: Selection, *, fixed: bool = False) -> Forget:
    """A new uniform draw for the convolution and linear weights among ``layers``.

    Biases and normalisers stay, as in the paper's code.
    """
    return Forget(select=Both((layers, WEIGHTS)), fill="uniform", fixed=fixed)


@dataclass(frozen=True, kw_only=True)
class LaterLayer:
    """Redraw what lies at or after ``threshold`` at the start of each generation but the first.

    Published: ResNet18 ``layer3`` (93.9 % of convolution and linear weights) or ``layer4`` (75.2 %), 200 epochs a
    generation, 11 generations, 5 epochs of warm-up, rate 0.256, batch 32.

    The published ablations: ``reverse`` redraws the early layers instead; ``hold`` keeps the "later" or the "early"
    layers where the redraw left them ("later" spares ``head``, which always trains); ``fixed`` redraws the same values
    in every generation. The paper's code also repeats the data order when it fixes the draw, which confounds that
    ablation; here ``repeat_order`` is a setting of its own.
    """

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 1
    threshold: str | int = "layer3"
    reverse: bool = False
    hold: Literal["none", "later", "early"] = "none"
    head: str = "fc"
    fixed: bool = False
    repeat_order: bool = False

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)

    @property
    def early(self) -> Select:
        """Layers in front of the threshold."""
        return Select(before=self.threshold, name="early")

    @property
    def later(self) -> Select:
        """Layers at or after the threshold."""
        return Select(since=self.threshold, name="later")

    def rules(self, generation: int) -> tuple[Rule, ...]:
        """Held layers, after the first generation."""
        if self.hold == "none" or generation == 0:
            return ()
        held = (
            self.early
            if self.hold == "early"
            else Select(since=self.threshold, before=self.head, name="later, head apart")
        )
        return (Rule(select=held, direction=0.0),)

    def plan(self) -> tuple[Phase, ...]:
        """One phase a generation, with a redraw on entry from the second on."""
        forget = redraw(self.early if self.reverse else self.later, fixed=self.fixed)
        return tuple(
            Phase(
                name="relearn" if generation else "train",
                generation=generation,
                length=Length(epochs=self.epochs),
                curve=cosine(self.warmup_epochs),
                entry=(forget,) if generation else (),
                rules=self.rules(generation),
                optimizer="rebuild" if generation else "keep",
                data=DataRule(repeat_order=self.repeat_order),
            )
            for generation in range(self.generations)
        )


tiny = LaterLayer(generations=2, epochs=1, warmup_epochs=0.5)
