"""A vision transformer that says the class of every pixel."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from llf_ray.nn.cropr.transformer import Cropped, Seen

__all__ = ["Segmenter"]


class Segmenter(nn.Module):
    """The linear decoder of Segmenter (Strudel et al. 2021, arXiv:2105.05633): a linear layer on each patch, and what
    it says resized bilinearly to the image.

    Tokens come normalised: by the transformer's ``norm``, or by its ``fc_norm`` where timm made it to pool first.
    """

    def __init__(self, backbone: Cropped, num_classes: int) -> None:
        super().__init__()
        network: Any = backbone
        if getattr(network, "attn_pool", None) is not None:
            network.reset_classifier(0, global_pool="")  # pooled by attention that nothing here would train
        self.backbone = network
        self.head = nn.Linear(network.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, *, kept: tuple[int, ...] | None = None, detailed: bool = False) -> Any:
        """Class scores of every pixel, (B, classes, H, W), of images (B, C, H, W).

        Args:
            x: images.
            kept: patches alive behind each module; None: those of the schedule.
            detailed: `Seen` instead, with auxiliary answers (B, queries, classes) and depths (B, h, w).
        """
        seen = self.backbone(x, kept=kept, detailed=detailed, grid=True)
        tokens = self.backbone.fc_norm(seen.output if detailed else seen)
        scores = self.head(tokens).permute(0, 3, 1, 2)
        scores = F.interpolate(scores, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return Seen(scores, seen.auxiliary, seen.depth) if detailed else scores
