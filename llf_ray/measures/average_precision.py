"""COCO's average precision of boxes and masks (Lin et al. 2014, arXiv:1405.0312), as torchmetrics has it around
pycocotools: at most 100 detections an image, ten thresholds of overlap from 0.5 to 0.95, mean over classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Detections", "Truth", "average_precision"]

# torchmetrics' names, and ours
SCORES: Mapping[str, str] = {
    "map": "ap",
    "map_50": "ap50",
    "map_75": "ap75",
    "map_small": "ap_small",
    "map_medium": "ap_medium",
    "map_large": "ap_large",
}


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in an image: boxes (N, 4) x0, y0, x1, y1, labels and scores (N,), masks as COCO's run lengths."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: Sequence[dict[str, Any]] | None = None


@dataclass(frozen=True, eq=False)
class Truth:
    """What is in an image of ``size`` height, width: as `Detections`, and which objects are crowds, and areas (N,)."""

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float32]
    masks: Sequence[dict[str, Any]] | None = None


def average_precision(images: Iterable[tuple[Detections, Truth]], *, masks: bool) -> dict[str, float]:
    """``box_ap``, ``box_ap50``, ``box_ap75``, ``box_ap_small`` (area below 32^2 pixels), ``..._medium``, ``..._large``
    (above 96^2), from 0 to 1, and with ``masks`` the same of masks as ``mask_...``. Scores of sizes that no object has
    are left out.

    One image is unpacked at a time.
    """
    from torchmetrics.detection import MeanAveragePrecision  # here: it takes seconds

    kinds: dict[Any, str] = {"bbox": "box", **({"segm": "mask"} if masks else {})}
    metric = MeanAveragePrecision(
        iou_type=tuple(kinds),
        # pycocotools' own, in float64: torchmetrics' are float32, and precisions at a recall of exactly 0.7 differ
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
        backend="pycocotools",
        sync_on_compute=False,  # one rank alone computes, of everybody's records: it would wait for the others for ever
    )
    metric.warn_on_many_detections = False  # those beyond 100 are left out, as the definition says
    for found, truth in images:
        metric.update([_item(found, truth.size, masks)], [_item(truth, truth.size, masks)])
    values = metric.compute()
    scores = {}
    for kind, ours in kinds.items():
        prefix = f"{kind}_" if len(kinds) > 1 else ""
        for name, short in SCORES.items():
            value = float(values[prefix + name])
            if value >= 0:  # -1: nothing to find
                scores[f"{ours}_{short}"] = value
    return scores


def _item(one: Detections | Truth, size: tuple[int, int], masks: bool) -> dict[str, Tensor]:
    item = {"boxes": torch.from_numpy(one.boxes), "labels": torch.from_numpy(one.labels)}
    if isinstance(one, Detections):
        item["scores"] = torch.from_numpy(one.scores)
    else:
        item["iscrowd"] = torch.from_numpy(one.crowd.astype(np.int64))
        item["area"] = torch.from_numpy(one.area)
    if masks:
        item["masks"] = torch.from_numpy(_decoded(one.masks or (), size))
    return item


def _decoded(codes: Sequence[dict[str, Any]], size: tuple[int, int]) -> NDArray[np.bool_]:
    from pycocotools import mask as coder  # here: most runs have no masks

    if not len(codes):
        return np.zeros((0, *size), dtype=bool)
    return np.ascontiguousarray(coder.decode(list(codes)).transpose(2, 0, 1)).astype(bool)
