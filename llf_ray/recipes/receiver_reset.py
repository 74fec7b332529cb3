"""Receiver reset: every so often the sender meets a new receiver, so that languages that are easy to teach survive.

Li & Bowling 2019, arXiv:1906.02403.
"""

from __future__ import annotations

from dataclasses import dataclass

from llf_ray.forget.groups import Select
from llf_ray.forget.operations import Forget
from llf_ray.plan import Length, Phase
from llf_ray.recipes.base import CONSTANT, check_budget

__all__ = ["ReceiverReset"]


@dataclass(frozen=True, kw_only=True)
class ReceiverReset:
    """The receiver is initialised anew at the start of every generation but the first; the rest learns on.

    The paper's code builds the optimizers of both players anew with it, at a constant rate. Published: 50 lives of
    6,000 steps of 100 games, which are 60 epochs of 10,000 games.

    ``module`` is the name of the receiver's module.
    """

    generations: int = 50
    epochs: float = 60
    module: str = "receiver"

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, 0)

    def plan(self) -> tuple[Phase, ...]:
        """One phase a generation."""
        receiver = Select(modules=(self.module,), name=self.module)
        return tuple(
            Phase(
                name="play",
                generation=generation,
                length=Length(epochs=self.epochs),
                curve=CONSTANT,
                entry=(Forget(select=receiver, fill="initial"),) if generation else (),
                optimizer="rebuild" if generation else "keep",
            )
            for generation in range(self.generations)
        )


tiny = ReceiverReset(generations=2, epochs=1)
