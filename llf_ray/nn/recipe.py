"""Networks from plain data: what a saved network says of how it is made, without any settings of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["network_of"]


def network_of(recipe: Mapping[str, Any]) -> nn.Module:
    """A new network.

    Args:
        recipe: ``{"timm": name, "options": {...}}`` or ``{"resnet": {...}}`` (arguments of `llf_ray.nn.ResNet`), or
            ``{"perceptron": {...}}`` alike.
    """
    if "timm" in recipe:
        import timm  # here: it takes seconds, and a small ResNet needs none of it

        network: nn.Module = timm.create_model(recipe["timm"], **recipe["options"])
        return network
    if "perceptron" in recipe:
        from llf_ray.nn.perceptron import Perceptron

        return Perceptron(**recipe["perceptron"])
    from llf_ray.nn.resnet import ResNet

    return ResNet(**recipe["resnet"])
