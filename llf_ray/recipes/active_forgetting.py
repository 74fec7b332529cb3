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
    """``module`` goes back to a fresh initialisation ``times`` times in every generation, at equal distances.

    With it go its moments and its own step count, and it has its own rate: linear with a warm-up, from each reset to
    the next. The body is not touched; its rate falls linearly over the run.
    """

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 1
    module: str = "fc"
    times: int = 1

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)
        check_number("times", self.times, low=1)
        if self.warmup_epochs * self.times > self.epochs:
            raise SettingError(
                f"warmup_epochs = {self.warmup_epochs!r}: must be <= {self.epochs / self.times:g}, "
                "the epochs between two resets"
            )

    def plan(self) -> tuple[Phase, ...]:
        """One phase from each reset to the next."""
        warmup = Length(epochs=self.warmup_epochs)
        chosen = Select(modules=(self.module,), name=self.module)
        own = Rule(select=chosen, curve=Curve(shape="linear", over="phase", warmup=warmup))
        length = Length(epochs=self.epochs / self.times)
        return tuple(
            Phase(
                name=f"learn {time + 1}" if self.times > 1 else "learn",
                generation=generation,
                length=length,
                curve=Curve(shape="linear", over="run", warmup=warmup),
                rules=(own,),
                entry=(Forget(select=chosen, fill="initial"),) if generation or time else (),
                optimizer="keep",
            )
            for generation in range(self.generations)
            for time in range(self.times)
        )


tiny = ActiveForgetting(generations=2, epochs=1, warmup_epochs=0.5)
