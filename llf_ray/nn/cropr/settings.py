"""How a transformer loses tokens, as settings: what chooses, how much goes where, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llf_ray.config import SettingError, check_number
from llf_ray.nn.cropr.schedule import Budget, Schedule, Steady

__all__ = ["PROJECTIONS", "Cropping", "CroprOptions", "Selector"]

PROJECTIONS = ("query", "key", "value")
Selector = Literal["cropr", "non_salient", "random", "variance", "class_attention", "merge"]


@dataclass(frozen=True, kw_only=True)
class CroprOptions:
    """What the paper tried beside its recipe, which is the default."""

    heads: int = 1  # of the cross-attention; with more than one its output is projected
    project: tuple[str, ...] = ()  # which of query, key and value go through a linear layer first
    bias: bool = False  # of these layers
    norm: bool = False  # LayerNorm over the tokens first
    mlp_ratio: float = 4.0  # hidden width of the MLP behind the attention, in widths; 0: none
    detach: bool = True  # the auxiliary task does not reach the network
    sampled: float = 0.0  # temperature at which kept tokens are drawn in training (Gumbel); 0: the highest scores

    def __post_init__(self) -> None:
        check_number("heads", self.heads, low=1)
        check_number("mlp_ratio", self.mlp_ratio, low=0.0)
        check_number("sampled", self.sampled, low=0.0)
        wrong = [name for name in self.project if name not in PROJECTIONS]
        if wrong or len(set(self.project)) != len(self.project):
            raise SettingError(f"project = {self.project!r}: some of {', '.join(PROJECTIONS)}, each once")
        if self.bias and not self.project:
            raise SettingError("bias = True: without projections (project=...) there is nothing that could have one")


@dataclass(frozen=True, kw_only=True)
class Cropping:
    """How a transformer loses tokens. The defaults are the paper's for classification.

    ``selector`` says what chooses: a Cropr module's scores, or the lowest of them ("non_salient"), chance, the
    variance of a patch's pixels, the class token's attention, or token merging in place of cutting ("merge"). Under
    ``fusion`` (last-layer fusion) the last block sees all tokens again, each as it was when it was cut.

    Which tokens an aggregator looks at beside patches is ``sees``: the class token, as in the paper; all prefix tokens;
    none. Registers are never scored. Over the first ``ramp`` epochs the schedule's pruning grows from nothing, evenly
    (the paper's curriculum for segmentation).
    """

    schedule: Schedule | Budget = Steady(rate=8)
    selector: Selector = "cropr"
    fusion: bool = True
    queries: int | Literal["patches"] = 1
    options: CroprOptions = CroprOptions()
    sees: Literal["class", "prefix", "patches"] = "class"
    ramp: int = 0
    proportional: bool = True  # merging: sizes of merged tokens count in attention (the ToMe paper does not for MAE)

    def __post_init__(self) -> None:
        check_number("ramp", self.ramp, low=0)
        if isinstance(self.queries, int):
            check_number("queries", self.queries, low=1)
        if self.selector == "merge" and self.fusion:
            raise SettingError(
                "fusion = True: merged tokens cannot be put back; set fusion = False for selector 'merge'"
            )

    @property
    def learns(self) -> bool:
        """Whether modules have parameters and an auxiliary task."""
        return self.selector in ("cropr", "non_salient")

    def at(self, epoch: int) -> Schedule | Budget:
        """The schedule of a training epoch, from 0."""
        if epoch >= self.ramp or self.ramp < 2 or isinstance(self.schedule, Budget):
            return self.schedule
        return self.schedule.eased(epoch / (self.ramp - 1))
