"""Born-again networks: every generation is a fresh student, taught by the one before.

Furlanello et al. 2018, arXiv:1805.04770.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llf_ray.config import check_number
from llf_ray.forget.operations import STATE, Adopt, Forget, Snapshot
from llf_ray.plan import Length, Objective, Phase
from llf_ray.recipes.base import check_budget, cosine

__all__ = ["BornAgain"]

TEACHER = "teacher"


@dataclass(frozen=True, kw_only=True)
class BornAgain:
    """Generation 0 learns from the labels; each later one starts fresh and learns from labels and its teacher.

    ``weight`` is the teacher's share of the loss, ``temperature`` divides the scores of both. The teacher is the last
    step of the generation before, not its best. Published: equal shares without a temperature, three generations or
    so; the public (unofficial) code uses a share of 0.2 at temperature 20. ``teacher`` is the folder of a finished run
    of the same network, which teaches generation 0.
    """

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 1
    weight: float = 0.5
    temperature: float = 1.0
    teacher: str = field(default="", metadata={"path": "run"})

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)
        check_number("weight", self.weight, above=0, high=1)
        check_number("temperature", self.temperature, above=0)

    def plan(self) -> tuple[Phase, ...]:
        """One phase a generation; all weights and statistics are a fresh model's on entry from the second on."""
        fresh, keep = Forget(select=STATE, fill="initial"), Snapshot(store=TEACHER)
        taught = Objective(kind="distil", teacher=TEACHER, weight=self.weight, temperature=self.temperature)
        known = (Adopt(store=TEACHER, run=self.teacher),) if self.teacher else ()
        return tuple(
            Phase(
                name="learn from teacher" if generation or known else "train",
                generation=generation,
                length=Length(epochs=self.epochs),
                curve=cosine(self.warmup_epochs),
                entry=(fresh,) if generation else known,
                exit=(keep,) if generation + 1 < self.generations else (),
                optimizer="rebuild" if generation else "keep",
                objective=taught if generation or known else Objective(),
            )
            for generation in range(self.generations)
        )


tiny = BornAgain(generations=2, epochs=1, warmup_epochs=0.5)
