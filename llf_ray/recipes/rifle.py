"""RIFLE: fine-tune a network and draw its head anew a few times on the way.

Li et al. 2020, arXiv:2007.03349.
"""

from __future__ import annotations

from dataclasses import dataclass

from llf_ray.forget.groups import Select
from llf_ray.forget.operations import Forget
from llf_ray.plan import Curve, Length, Phase, Rule
from llf_ray.recipes.base import check_budget

__all__ = ["Rifle"]


@dataclass(frozen=True, kw_only=True)
class Rifle:
    """Each generation but the first starts with a new head (weight and bias); the trunk learns on without a break.

    The trunk has one cosine over the run, and the optimizer lives on, the head's momentum too, as in the paper's code.
    ``cyclic`` gives the head a cosine of its own in every generation. Published: 40 epochs in two generations, from
    ImageNet weights, batch 32, rate 0.01, weight decay 1e-4.
    """

    generations: int = 2
    epochs: float = 20
    warmup_epochs: float = 0
    head: str = "fc"
    cyclic: bool = False

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)

    def plan(self) -> tuple[Phase, ...]:
        """One phase a generation; the head is redrawn on entry from the second on."""
        head = Select(modules=(self.head,), name="head")
        warmup = Length(epochs=self.warmup_epochs)
        rules = (Rule(select=head, curve=Curve(over="phase", warmup=warmup)),) if self.cyclic else ()
        return tuple(
            Phase(
                name="tune",
                generation=generation,
                length=Length(epochs=self.epochs),
                curve=Curve(over="run", warmup=warmup),
                rules=rules,
                entry=(Forget(select=head, moments=False),) if generation else (),
                optimizer="keep",
            )
            for generation in range(self.generations)
        )


tiny = Rifle(generations=2, epochs=1, warmup_epochs=0.5)
