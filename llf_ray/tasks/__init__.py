"""What is learned from what: model, data, loss and score."""

from llf_ray.tasks.classification import (
    Classification,
    CroppedTransformer,
    Fresh,
    FromFile,
    FromRun,
    MultiLayerPerceptron,
    Pretrained,
    SmallResNet,
    TimmModel,
)
from llf_ray.tasks.detection import Detection
from llf_ray.tasks.language_game import LanguageGame
from llf_ray.tasks.segmentation import Segmentation
from llf_ray.tasks.translation import Recurrent, Translation

__all__ = [
    "Classification",
    "CroppedTransformer",
    "Detection",
    "Fresh",
    "FromFile",
    "FromRun",
    "LanguageGame",
    "MultiLayerPerceptron",
    "Pretrained",
    "Recurrent",
    "Segmentation",
    "SmallResNet",
    "TimmModel",
    "Translation",
]
