"""Seeded iterated learning: a copy of the players plays on and teaches, the players learn its language from where they
stood.

Lu et al. 2020, arXiv:2003.12694.
"""

from __future__ import annotations

from dataclasses import dataclass

from llf_ray.config import check_number
from llf_ray.forget.groups import Select
from llf_ray.forget.operations import EVERYTHING, Forget, Snapshot
from llf_ray.plan import MESSAGES, DataRule, Generate, Length, Objective, Phase, Rule
from llf_ray.recipes.base import CONSTANT

__all__ = ["SeededIteratedLearning"]

STUDENT = "student"  # the store of the players before the teacher plays on


@dataclass(frozen=True, kw_only=True)
class SeededIteratedLearning:
    """Lengths are in optimizer steps. The first generation is the seed: ``seed`` steps of the game from random weights.
    In every further one a copy of the players, the teacher, plays for ``interact`` steps; the students go back to where
    they were, their sender imitates the teacher's messages, ``batch`` of them a step, for ``imitate`` steps, and their
    receiver learns from its own sender, which is held, for ``listen`` steps of the game.

    The paper's lengths are not in its abstract; of its order, 1,000, 400 and 400, are the defaults here. Every part has
    a new optimizer at a constant rate.

    ``sender`` and ``receiver`` are the names of the two modules; those of the language game are called so.
    """

    generations: int = 20
    seed: int = 1000
    interact: int = 1000
    imitate: int = 400
    listen: int = 400
    batch: int = 8
    sender: str = "sender"
    receiver: str = "receiver"

    def __post_init__(self) -> None:
        for name in ("generations", "seed", "interact", "imitate", "listen", "batch"):
            check_number(name, getattr(self, name), low=1)

    def plan(self) -> tuple[Phase, ...]:
        """The seed; then teacher, imitation and listening in every generation."""
        seed = Phase(name="seed", generation=0, length=Length(steps=self.seed), curve=CONSTANT)
        return (seed, *(p for generation in range(1, self.generations) for p in self._generation(generation)))

    def _generation(self, generation: int) -> tuple[Phase, ...]:
        sender, receiver = (Select(modules=(name,), name=name) for name in (self.sender, self.receiver))
        return (
            Phase(
                name="teacher plays",
                generation=generation,
                length=Length(steps=self.interact),
                curve=CONSTANT,
                entry=(Snapshot(store=STUDENT),),
                optimizer="rebuild",
            ),
            Phase(
                name="imitate",
                generation=generation,
                length=Length(steps=self.imitate),
                curve=CONSTANT,
                rules=(Rule(select=receiver, direction=0),),
                entry=(
                    Generate(what=MESSAGES, store=MESSAGES),
                    Forget(select=EVERYTHING, fill="store", store=STUDENT),
                ),
                optimizer="rebuild",
                data=DataRule(source=MESSAGES, batch=self.batch),
                objective=Objective(kind="imitate"),
            ),
            Phase(
                name="listen",
                generation=generation,
                length=Length(steps=self.listen),
                curve=CONSTANT,
                rules=(Rule(select=sender, direction=0),),
            ),
        )


tiny = SeededIteratedLearning(generations=2, seed=3, interact=3, imitate=4, listen=2)
