"""Boxes, classes and masks from a plain vision transformer: ViTDet's pyramid, torchvision's Mask R-CNN behind it.

What torchvision maintains is taken from there (region proposals, pooling of regions, heads, their losses). Cascaded
heads are not among it: this is plain Mask R-CNN (He et al. 2017, arXiv:1703.06870), or Faster R-CNN without masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from timm.layers import LayerNorm2d
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from llf_ray.config import SettingError
from llf_ray.nn.cropr.transformer import Cropped
from llf_ray.nn.detector_settings import Heads
from llf_ray.nn.pyramid import SimpleFeaturePyramid

__all__ = ["UNUSED", "Detector", "Found", "Learned"]


class Learned(NamedTuple):
    """A training pass: torchvision's losses by their names there, and the answer of each module that cuts tokens,
    (B, queries, classes).
    """

    losses: dict[str, Tensor]
    auxiliary: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in one image, the likeliest first, in pixels of the network's image.

    ``boxes`` (N, 4) x0, y0, x1, y1; ``labels`` (N,) from 0; ``scores`` (N,) from 0 to 1; ``masks`` (N, m, m), the
    probability inside each box, None without a mask head.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None


class Detector(nn.Module):
    """A transformer of timm, whole or one that loses tokens, under detection heads.

    ``model(images, targets)`` in training mode gives `Learned`, ``model(images)`` in evaluation mode a `Found` for each
    image. A target is a dictionary: ``boxes`` (N, 4) float64, which no engine turns into fewer bits, ``labels`` (N,)
    int64 from 0, ``masks`` (N, H, W) where there is a mask head. Anchors and regions that a loss is computed on are
    sampled with torch's ambient generator.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, heads: Heads) -> None:
        super().__init__()
        network: Any = backbone
        patch, across = network.patch_embed.patch_size
        if patch != across:
            raise SettingError(f"model: patches of {patch} x {across} pixels; the pyramid needs square ones")
        if isinstance(network, VisionTransformerDistilled) and not isinstance(network, Cropped):
            raise SettingError(
                "model: a dense VisionTransformerDistilled gives two tokens and no patches; a CroppedTransformer of it "
                "at rate 0 gives them"
            )
        for name in UNUSED:
            if getattr(network, name, None) is not None:
                setattr(network, name, None if name == "attn_pool" else nn.Identity())
        network.global_pool = ""  # so that a dense one's own forward, which engines must see, gives every token
        self.backbone = backbone
        self.pyramid = SimpleFeaturePyramid(network.embed_dim, patch, heads.strides, heads.channels)
        self.rpn = _proposals(heads)
        self.roi_heads = _regions(heads, num_classes + 1, self.pyramid.names)  # class 0 is no object
        for module in (self.rpn.head, *self.roi_heads.children()):
            if next(module.parameters(), None) is not None:
                module.register_forward_pre_hook(_enter)
                module.register_forward_hook(_leave)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As timm's models: blocks of the transformer are computed again in the backward pass."""
        cast("Any", self.backbone).set_grad_checkpointing(enable)

    def forward(
        self,
        images: Tensor,
        targets: list[dict[str, Tensor]] | None = None,
        *,
        kept: tuple[int, ...] | None = None,
    ) -> Learned | list[Found]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: (B, C, H, W).
            targets: one for each image; training mode only.
            kept: patches alive behind each module; None: those of the schedule.
        """
        if self.training != (targets is not None):
            raise ValueError("targets go with training mode, and with it alone: losses there, detections in evaluation")
        tokens, auxiliary = self._tokens(images, kept)
        # in fp32 from here on: half precision cannot tell neighbouring pixels apart
        maps = {name: level.float() for name, level in self.pyramid(tokens.permute(0, 3, 1, 2).contiguous()).items()}
        sizes = [tuple(images.shape[2:])] * len(images)
        if targets is not None:
            targets = [
                {**target, "boxes": target["boxes"].float(), "labels": target["labels"] + 1} for target in targets
            ]
        proposals, losses = self.rpn(ImageList(images, sizes), maps, targets)
        found, more = self.roi_heads(maps, proposals, sizes, targets)
        if targets is not None:
            return Learned({**losses, **more}, auxiliary)
        return [
            Found(one["boxes"], one["labels"] - 1, one["scores"], one["masks"][:, 0] if "masks" in one else None)
            for one in found
        ]

    def depth(self, images: Tensor) -> Tensor | None:
        """The number of blocks that each patch went through before it was cut, (B, h, w); None for a dense model."""
        if not isinstance(self.backbone, Cropped):
            return None
        return cast("Tensor | None", self.backbone(images, detailed=True, grid=True).depth)

    def _tokens(self, images: Tensor, kept: tuple[int, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The last block's tokens in raster order, (B, h, w, D), and auxiliary answers where they are wanted."""
        if isinstance(self.backbone, Cropped):
            if not self.training:
                return self.backbone(images, kept=kept, grid=True), ()
            seen = self.backbone(images, kept=kept, grid=True, detailed=True)
            return seen.output, seen.auxiliary
        network: Any = self.backbone
        tokens = network(images)[:, network.num_prefix_tokens :]
        return tokens.unflatten(1, tuple(network.patch_embed.grid_size)), ()


# What timm's models have behind their tokens: nothing here would ever call it.
UNUSED = ("attn_pool", "fc_norm", "head", "head_dist")


def _proposals(heads: Heads) -> RegionProposalNetwork:
    anchors = AnchorGenerator(tuple((size,) for size in heads.anchors), (heads.ratios,) * len(heads.anchors))
    return RegionProposalNetwork(
        anchors,
        RPNHead(heads.channels, len(heads.ratios), conv_depth=heads.proposal_convs),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=heads.proposals_learned,
        positive_fraction=0.5,
        pre_nms_top_n={"training": heads.proposals[0], "testing": heads.proposals[1]},
        post_nms_top_n={"training": heads.proposals[0] // 2, "testing": heads.proposals[1]},
        nms_thresh=0.7,
    )


def _regions(heads: Heads, outputs: int, names: tuple[str, ...]) -> RoIHeads:
    def pooled(size: int) -> MultiScaleRoIAlign:
        return MultiScaleRoIAlign(list(names), size, sampling_ratio=2, canonical_scale=heads.region_scale)

    box_head = FastRCNNConvFCHead(
        (heads.channels, heads.box_size, heads.box_size),
        [heads.channels] * heads.box_convs,
        [heads.box_width],
        norm_layer=LayerNorm2d,
    )
    masks: dict[str, nn.Module] = {}
    if heads.masks:
        masks = {
            "mask_roi_pool": pooled(heads.mask_size),
            "mask_head": MaskRCNNHeads(
                heads.channels, [heads.channels] * heads.mask_convs, dilation=1, norm_layer=LayerNorm2d
            ),
            "mask_predictor": MaskRCNNPredictor(heads.channels, heads.channels, outputs),
        }
    return RoIHeads(
        pooled(heads.box_size),
        box_head,
        FastRCNNPredictor(heads.box_width, outputs),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=heads.regions_learned,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=heads.score_threshold,
        nms_thresh=heads.overlap,
        detections_per_img=heads.detections,
        **masks,
    )


def _enter(module: nn.Module, args: Any) -> Any:
    """Inputs in the type of a head's own weights, which an engine may have made half as wide."""
    return _as(args, next(module.parameters()).dtype)


def _leave(module: nn.Module, args: Any, output: Any) -> Any:
    return _as(output, torch.float32)


def _as(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype)
    return type(value)(_as(item, dtype) for item in value) if isinstance(value, tuple | list) else value
