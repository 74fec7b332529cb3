"""What a run needs of a task: a model, data by role, a loss and a score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llf_ray.data.base import ROLES, Role
from llf_ray.data.order import Draw

__all__ = ["ROLES", "Batch", "Draw", "Role", "Tally", "Task", "tally"]

Batch = Any  # what a task's own loss and score understand


@dataclass(frozen=True)
class Tally:
    """A mean in two parts that add up exactly over batches and ranks."""

    total: Tensor  # float64, on the model's device
    count: int

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> float:
        return float(self.total) / self.count


class Task(Protocol):
    """What is learned from what.

    One task is one frozen settings dataclass. Its file offers an instance ``tiny`` that the law tests train
    for a few steps.
    """

    @property
    def metric(self) -> str:
        """The score that selects, higher is better: a key of `score`."""
        ...

    def prepare(self) -> None:
        """Check that everything outside the settings is there and can be read: ValueError or
        FileNotFoundError in one line.
        """
        ...

    def skeleton(self) -> nn.Module:
        """The model as to names and shapes; callable under ``torch.device("meta")``, where it costs no
        memory.
        """
        ...

    # What a task may offer beside these; a plan that needs it from one that does not is refused by name:
    #   ``distil(model, teacher, batch, weight, temperature)`` gives what `loss` gives, learned in part from another
    #   network; for phases with that objective.
    #   ``example()`` is an input of the network with a batch axis of one: masks of kernels and slim networks follow the
    #   layers' wiring through it.
    #   ``store_size(what)`` says how many items ``generate(model, what, seed)`` will make, or raises a SettingError for
    #   what it cannot make. Generated data are tensors by name whose first axis is the item; every rank calls, with the
    #   same weights, and rank 0's are kept. ``stored_batches(store, draws, device)`` turns them into batches as
    #   `batches` does, for `loss` or for ``imitate(model, batch)``, which gives what `loss` gives.
    #   ``check_pass(operation)`` raises a SettingError for a pass that it cannot carry out;
    #   ``run_pass(model, operation, batches)`` changes the model's buffers, never its parameters.
    #   ``check_batch(batch, micro)`` raises a SettingError where an optimizer step on the task's own data cannot have
    #   ``batch`` items in micro-batches of ``micro``: for losses that hold the items of a batch against one another.
    #   ``evidence(model, batch)`` gives what `score` gives and a picklable record of the batch, for scores that do not
    #   add up over batches (average precision, a mean over classes); it is called in place of `score`, and
    #   ``conclude(role, records)`` turns the records of all ranks, in the order of the items, into further scores.
    #   ``new_modules(network)`` names modules that are drawn anew on somebody's weights; they learn at the full rate
    #   under layer-wise learning-rate decay.
    #   ``scored_together``, how many items a batch without gradients may have where 100 are too many.
    #   ``ask_at_least``, the fewest optimizer steps between two questions to the scheduler, for epochs of few steps.

    def initial(self, seed: int) -> nn.Module:
        """The model with weights drawn anew, a function of ``seed`` alone: where resets take their values
        from.
        """
        ...

    def build(self, seed: int) -> nn.Module:
        """The model with the weights that training starts from: `initial`, or what the settings load over it."""
        ...

    def num_items(self, role: Role) -> int:
        """How many items a role has."""
        ...

    def batches(self, role: Role, draws: Iterable[Draw], device: torch.device) -> Iterator[Batch]:
        """One batch a draw, in their order; draws may be asked for a little ahead of the batches."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tally]]:
        """Mean loss of a training batch, and tallies to watch it by (detached)."""
        ...

    def score(self, model: nn.Module, batch: Batch) -> Mapping[str, Tally]:
        """Tallies of a batch, without gradients; the model is in evaluation mode."""
        ...


def tally(values: Tensor) -> Tally:
    """The tally of one value an item."""
    return Tally(values.detach().double().sum(), len(values))
