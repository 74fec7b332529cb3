"""Layer-wise re-initialisation: blocks settle one after the other, everything behind them starts anew.

Alabdulmohsin et al. 2021, arXiv:2109.00267, as the public code of Zhou et al. 2022 (arXiv:2202.00155) runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llf_ray.config import SettingError
from llf_ray.forget.groups import Select, Slot, resolve
from llf_ray.forget.operations import Forget, Rescale, Snapshot
from llf_ray.plan import FREEZE, Length, Operation, Pass, Phase
from llf_ray.recipes.base import check_budget, cosine

__all__ = ["LayerWise"]

START = "start"


@dataclass(frozen=True, kw_only=True)
class LayerWise:
    """In generation g, ``blocks[i]`` and all behind it become a fresh model's, i = g * len(blocks) // generations.

    What lies in front is kept, each tensor brought back to its initial L2 norm (``rescale``), and a normaliser behind
    the last kept block is set to what that block gives for one batch and stays so (``normalise``; it stays on in later
    generations). The model must have those normalisers: see `llf_ray.tasks.models.Normalised`. Running statistics stay.

    Published for ResNet18: its eight residual blocks and the classifier, eight or nine generations of 200 epochs. The
    stem in front of the first block is never re-initialised.
    """

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 1
    blocks: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4", "fc")
    rescale: bool = True
    normalise: bool = True

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)
        if not self.blocks or len(set(self.blocks)) < len(self.blocks):
            raise SettingError(f"blocks = {self.blocks!r}: name each block once, from the input to the classifier")

    def check_layers(self, slots: Sequence[Slot]) -> None:
        """Raise unless the network has every block, also those that no generation begins with, in this order."""
        before: set[str] = set()
        for number, block in enumerate(self.blocks):
            try:
                behind = set(resolve(Select(since=block), slots))
            except SettingError as error:
                raise SettingError(f"blocks.{number} = {block!r}: {error}") from None
            if number and not behind < before:
                raise SettingError(
                    f"blocks.{number} = {block!r}: in the network it does not lie behind {self.blocks[number - 1]!r}; "
                    "name blocks from the input to the classifier"
                )
            before = behind

    def reached(self, generation: int) -> int:
        """The place in ``blocks`` of the first one that is re-initialised."""
        return generation * len(self.blocks) // self.generations

    def operations(self, generation: int) -> tuple[Operation, ...]:
        """At the start of a generation, in their order."""
        if generation == 0:
            return (Snapshot(store=START),) if self.rescale else ()
        place = self.reached(generation)
        first = self.blocks[place]
        below = Select(before=first, name=f"before {first}")
        above = Select(since=first, name=f"{first} and later")
        rescale = (Rescale(select=below, store=START),) if self.rescale else ()
        # in the very first place there is no kept block to normalise
        freeze = (Pass(what=FREEZE, where=self.blocks[place - 1]),) if self.normalise and place else ()
        return (*rescale, Forget(select=above, fill="initial"), *freeze)

    def plan(self) -> tuple[Phase, ...]:
        """One phase a generation."""
        return tuple(
            Phase(
                name="relearn" if generation else "train",
                generation=generation,
                length=Length(epochs=self.epochs),
                curve=cosine(self.warmup_epochs),
                entry=self.operations(generation),
                optimizer="rebuild" if generation else "keep",
            )
            for generation in range(self.generations)
        )


tiny = LayerWise(generations=2, epochs=1, warmup_epochs=0.5, blocks=("layer1", "fc"))
