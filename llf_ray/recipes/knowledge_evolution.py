"""Knowledge evolution: every generation keeps one fixed part of the weights and redraws the rest.

Taha et al. 2021, arXiv:2103.05152.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llf_ray.config import SettingError, check_number
from llf_ray.forget.masks import Bernoulli, KernelBlock, Saved
from llf_ray.forget.operations import Forget, KeepMask
from llf_ray.plan import Length, Operation, Phase
from llf_ray.recipes.base import check_budget, cosine

__all__ = ["FIT", "KnowledgeEvolution"]

FIT = "fit"  # the store of the mask of what is kept


@dataclass(frozen=True, kw_only=True)
class KnowledgeEvolution:
    """Keep the fit hypothesis, redraw the rest of the convolution and linear weights, train on; masks are fixed.

    ``split``: "weights" (WELS) keeps every weight with probability ``keep``; "kernels" (KELS) keeps the first
    ``ceil(keep C)`` channels of every layer, so that a slim network can be taken out of the trained one; with ``slim``
    a network that gives none is refused before training, without it masks alone will do. Published (ResNet18 on small
    sets): 200 epochs a generation, 5 of warm-up, rate 0.256, batch 32, kernels, keep 0.5 for 5 generations or 0.8 for
    11.

    Variants of the paper's code: ``resample`` draws a new mask in every generation (weights only); ``fill="zero"``
    puts zeros in place of the redraw.
    """

    generations: int = 4
    epochs: float = 25
    warmup_epochs: float = 1
    split: Literal["weights", "kernels"] = "kernels"
    keep: float = 0.8
    resample: bool = False
    fill: Literal["uniform", "zero"] = "uniform"
    slim: bool = True  # of kernels only

    def __post_init__(self) -> None:
        check_budget(self.generations, self.epochs, self.warmup_epochs)
        check_number("keep", self.keep, above=0, below=1)
        if self.resample and self.split == "kernels":
            raise SettingError("resample = True: a block of kernels is not drawn; use split = 'weights'")

    def _entry(self, generation: int) -> tuple[Operation, ...]:
        if self.split == "kernels":
            fit, source = KeepMask(store=FIT, source=KernelBlock(share=self.keep)), Saved(name=FIT)
            return (fit,) if generation == 0 else (Forget(keep=source, fill=self.fill),)
        drawn = Bernoulli(keep=self.keep, fixed=not self.resample)
        return () if generation == 0 else (Forget(keep=drawn, fill=self.fill),)

    def plan(self) -> tuple[Phase, ...]:
        """One phase a generation, with a redraw of what does not fit on entry from the second on."""
        return tuple(
            Phase(
                name="evolve" if generation else "train",
                generation=generation,
                length=Length(epochs=self.epochs),
                curve=cosine(self.warmup_epochs),
                entry=self._entry(generation),
                optimizer="rebuild" if generation else "keep",
            )
            for generation in range(self.generations)
        )


tiny = KnowledgeEvolution(generations=2, epochs=1, warmup_epochs=0.5, keep=0.5)
