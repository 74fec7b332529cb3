"""Networks and layers, no training."""

from llf_ray.nn.resnet import ResNet

__all__ = ["ResNet"]
