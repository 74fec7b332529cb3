"""What is learned from what: model, data, loss and score."""

from llf_ray.tasks.classification import (
    Classification,
    Fresh,
    FromFile,
    FromRun,
    Pretrained,
    SmallResNet,
    TimmModel,
)
from llf_ray.tasks.translation import Recurrent, Translation

__all__ = [
    "Classification",
    "Fresh",
    "FromFile",
    "FromRun",
    "Pretrained",
    "Recurrent",
    "SmallResNet",
    "TimmModel",
    "Translation",
]
