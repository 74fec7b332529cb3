"""Active forgetting: one module is drawn anew every so often, while the rest of the network learns on.

Chen et al. 2023, arXiv:2307.01163: the token embedding of a language model, every 1,000 updates.
"""

from __future__ import annotations

from dataclasses import dataclass

from llf_ray.config import SettingError, check_number
from llf_ray.forget.groups import Select
from llf_ray.forget.operations import Forget
from llf_ray.plan import Curve, Length, Phase, Rule
from llf_ray.recipes.base import check_budget

__all__ = ["ActiveForgetting"]


@dataclass(frozen=True, kw_only=True)
class ActiveForgetting:
    """``module`` goes back to a fresh initialisation at the start of every generation but the first; with ``std`` to
    draws of N(0, std^2), as the paper's token embedding with 0.02.

    With it go its moments and its own step count, and it has its own rate: linear with a warm-up, from each reset to
    the next. The body is not touched; its rate falls linearly over the run. From one reset to the next there are
    ``epochs`` or, with ``epochs`` None, ``every_steps`` optimizer steps, as the paper counts.
    """

    generations: int = 4
    epochs: float | None = 25
    every_steps: int | None = None
    warmup_epochs: float = 1
    module: str = "fc"
    std: float | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.every_steps is None):
            raise SettingError(
                f"every_steps = {self.every_steps!r}: a generation has epochs or every_steps, one of the two, and "
                f"epochs = {self.epochs!r}"
            )
        if self.epochs is not None:
            check_budget(self.generations, self.epochs, self.warmup_epochs)
        check_number("generations", self.generations, low=1)
        check_number("every_steps", self.every_steps, low=1)
        check_number("warmup_epochs", self.warmup_epochs, low=0)
        check_number("std", self.std, above=0)

    def plan(self) -> tuple[Phase, ...]:
        """One phase a generation."""
        warmup = Length(epochs=self.warmup_epochs)
        chosen = Select(modules=(self.module,), name=self.module)
        forget = Forget(select=chosen, fill="initial" if self.std is None else "normal", std=self.std)
        own = Rule(select=chosen, curve=Curve(shape="linear", over="phase", warmup=warmup))
        return tuple(
            Phase(
                name="learn",
                generation=generation,
                length=Length(epochs=self.epochs, steps=self.every_steps),
                curve=Curve(shape="linear", over="run", warmup=warmup),
                rules=(own,),
                entry=(forget,) if generation else (),
                optimizer="keep",
            )
            for generation in range(self.generations)
        )


tiny = ActiveForgetting(generations=2, epochs=1, warmup_epochs=0.5)
