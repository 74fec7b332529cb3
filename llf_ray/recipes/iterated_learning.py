"""Neural iterated learning: in every generation new players learn, the sender first from what its predecessor said.

Ren et al. 2020, arXiv:2002.01365.
"""

from __future__ import annotations

from dataclasses import dataclass

from llf_ray.config import check_number
from llf_ray.forget.groups import Either, Select
from llf_ray.forget.operations import Forget
from llf_ray.plan import TRANSCRIPTS, DataRule, Generate, Length, Objective, Phase, Rule
from llf_ray.recipes.base import CONSTANT

__all__ = ["NeuralIteratedLearning"]


@dataclass(frozen=True, kw_only=True)
class NeuralIteratedLearning:
    """Lengths are in optimizer steps. In the first ``guide`` steps of the game only the receiver learns, in the next
    ``interact`` both do; before them, from the second generation on, a new sender imitates transcripts, ``batch`` pairs
    a step, for ``imitate`` steps.

    The code's schedule, at a constant rate: 80 generations of 200 + 2,800 steps of the game and 1,200 single pairs. A
    sender's optimizer state goes from imitation into the game. A generation begins with the transcripts of the one
    before, so that a run ends with players that have played.

    ``sender`` and ``receiver`` are the names of the two modules; those of the language game are called so.
    """

    generations: int = 80
    guide: int = 200
    interact: int = 2800
    imitate: int = 1200
    batch: int = 1
    sender: str = "sender"
    receiver: str = "receiver"

    def __post_init__(self) -> None:
        for name in ("generations", "interact", "imitate", "batch"):
            check_number(name, getattr(self, name), low=1)
        check_number("guide", self.guide, low=0)

    def plan(self) -> tuple[Phase, ...]:
        """Imitation, guidance and game in every generation; no imitation in the first."""
        return tuple(phase for generation in range(self.generations) for phase in self._generation(generation))

    def _generation(self, generation: int) -> tuple[Phase, ...]:
        sender, receiver = (Select(modules=(name,), name=name) for name in (self.sender, self.receiver))
        imitate = Phase(
            name="imitate",
            generation=generation,
            length=Length(steps=self.imitate),
            curve=CONSTANT,
            rules=(Rule(select=receiver, direction=0),),
            entry=(
                Generate(what=TRANSCRIPTS, store=TRANSCRIPTS),
                Forget(select=Either((sender, receiver)), fill="initial"),
            ),
            optimizer="rebuild",
            data=DataRule(source=TRANSCRIPTS, batch=self.batch),
            objective=Objective(kind="imitate"),
        )
        guide = Phase(
            name="guide",
            generation=generation,
            length=Length(steps=self.guide),
            curve=CONSTANT,
            rules=(Rule(select=sender, direction=0),),
        )
        interact = Phase(name="interact", generation=generation, length=Length(steps=self.interact), curve=CONSTANT)
        return (*((imitate,) if generation else ()), *((guide,) if self.guide else ()), interact)


tiny = NeuralIteratedLearning(generations=2, guide=2, interact=3, imitate=4)
