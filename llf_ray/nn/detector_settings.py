"""Detection heads as settings; those of ViTDet and torchvision by default."""

from __future__ import annotations

from dataclasses import dataclass

from llf_ray.config import SettingError, check_number

__all__ = ["Heads"]


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The pyramid and what finds objects on it. Lengths are pixels of the network's image."""

    masks: bool = True  # False: boxes alone (Faster R-CNN)
    channels: int = 256  # of the pyramid's maps and of the heads' convolutions
    strides: tuple[int, ...] = (4, 8, 16, 32)  # of the pyramid's maps, each twice the one before
    anchors: tuple[int, ...] = (32, 64, 128, 256)  # side of the boxes that each map starts from
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height by width of these boxes
    proposal_convs: int = 2
    proposals: tuple[int, int] = (2000, 1000)  # boxes of each map that are looked at in training and in evaluation
    proposals_learned: int = 256  # anchors of each image that the loss of proposals is computed on
    region_scale: int = 224  # side of a region that is taken from the map of stride 16; half of it: stride 8
    regions_learned: int = 512  # proposals of each image that the losses of the heads are computed on
    box_size: int = 7  # side of what is pooled from a region for its class and box
    box_convs: int = 4
    box_width: int = 1024
    mask_size: int = 14  # side of what is pooled for its mask, which comes out twice as fine
    mask_convs: int = 4
    detections: int = 100  # of an image, at most
    score_threshold: float = 0.05  # detections below are dropped
    overlap: float = 0.5  # intersection over union at which the less likely of two boxes of a class is dropped

    def __post_init__(self) -> None:
        if len(self.strides) != len(self.anchors):
            raise SettingError(f"anchors = {self.anchors!r}: one side for each of strides = {self.strides!r}")
        if any(after != 2 * before for before, after in zip(self.strides, self.strides[1:], strict=False)):
            raise SettingError(f"strides = {self.strides!r}: each must be twice the one before")
        for name in ("strides", "anchors", "proposals"):
            for place, value in enumerate(getattr(self, name)):
                check_number(f"{name}.{place}", value, low=1)
        for place, ratio in enumerate(self.ratios):
            check_number(f"ratios.{place}", ratio, above=0.0)
        if not self.strides or not self.ratios:
            raise SettingError(f"strides = {self.strides!r}, ratios = {self.ratios!r}: at least one of each")
        counts = ("channels", "proposal_convs", "proposals_learned", "region_scale", "regions_learned", "box_size")
        for name in (*counts, "box_width", "mask_size", "mask_convs", "detections"):
            check_number(name, getattr(self, name), low=1)
        check_number("box_convs", self.box_convs, low=0)
        for name in ("score_threshold", "overlap"):
            check_number(name, getattr(self, name), low=0.0, high=1.0)
