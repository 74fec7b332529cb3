"""What every recipe offers: settings that give phases."""

from __future__ import annotations

from typing import Protocol

from llf_ray.config import check_number
from llf_ray.plan import Curve, Length, Phase

__all__ = ["CONSTANT", "Recipe", "check_budget", "cosine"]

CONSTANT = Curve(shape="constant", over="run")


class Recipe(Protocol):
    """Settings of one method; ``plan()`` is pure and gives its phases with lengths in epochs or steps.

    Defaults of a method for images are a small budget that all share (`Rifle` has its published one); published numbers
    are in each class's docstring and in its job of ``jobs/paper``.

    A recipe may also have ``check_layers(slots)``, which raises a SettingError where its settings do not fit the
    network's layers in a way that no selection of its plan shows.
    """

    def plan(self) -> tuple[Phase, ...]: ...


def cosine(warmup_epochs: float, over: str = "generation") -> Curve:
    """One cosine to zero with a linear warm-up."""
    return Curve(shape="cosine", over=over, warmup=Length(epochs=warmup_epochs))  # type: ignore[arg-type]


def check_budget(generations: int, epochs: float, warmup_epochs: float) -> None:
    """Raise unless there is something to train and the warm-up fits into it."""
    check_number("generations", generations, low=1)
    check_number("epochs", epochs, above=0)
    check_number("warmup_epochs", warmup_epochs, low=0, high=epochs)
