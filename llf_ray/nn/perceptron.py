"""A network of linear layers: with widths 300 and 100 the "LeNet" of pruning papers (LeCun et al. 1998)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from llf_ray.nn.resnet import initialise

__all__ = ["Perceptron"]


class Perceptron(nn.Module):
    """Linear layers fc1, fc2, ... with ReLU between them, and fc, which gives class scores.

    Weights start as `llf_ray.nn.resnet.initialise` draws them, from torch's own generator.
    """

    def __init__(self, *, num_classes: int, inputs: int, widths: Sequence[int] = (300, 100)) -> None:
        super().__init__()
        sizes = (inputs, *widths)
        self.hidden = tuple(f"fc{number}" for number in range(1, len(widths) + 1))
        for number, name in enumerate(self.hidden):
            self.add_module(name, nn.Linear(sizes[number], sizes[number + 1]))
        self.fc = nn.Linear(sizes[-1], num_classes)
        initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Class scores, (B, classes), of inputs (B, ...), which are flattened."""
        values = inputs.flatten(1)
        for name in self.hidden:
            values = self.get_submodule(name)(values).relu()
        scores: Tensor = self.fc(values)
        return scores
