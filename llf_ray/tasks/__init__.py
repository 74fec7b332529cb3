"""What is learned from what: model, data, loss and score."""

from llf_ray.tasks.classification import (
    Classification,
    Fresh,
    FromFile,
    FromRun,
    MultiLayerPerceptron,
    Pretrained,
    SmallResNet,
    TimmModel,
)

__all__ = [
    "Classification",
    "Fresh",
    "FromFile",
    "FromRun",
    "MultiLayerPerceptron",
    "Pretrained",
    "SmallResNet",
    "TimmModel",
]
