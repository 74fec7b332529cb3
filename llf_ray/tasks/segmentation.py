"""Images to the class of every pixel: cross-entropy, scored by the mean intersection over union."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from llf_ray.config import SettingError, check_number
from llf_ray.data.augment import Scaling, check_scaling
from llf_ray.data.base import ROLES, ROOT_VARIABLE, Pixels, Role
from llf_ray.data.fashion_masks import FashionMasks
from llf_ray.data.loading import MaskBatch, from_masks
from llf_ray.data.mask_augment import MaskAugment, fitted
from llf_ray.data.masks import IGNORED, MOST_CLASSES, Labels, MaskedImages, MaskSet
from llf_ray.data.order import Draw, order
from llf_ray.data.photographs import FashionOnPhotographs
from llf_ray.nn.cropr.schedule import Steady
from llf_ray.nn.cropr.settings import Cropping
from llf_ray.tasks.base import Tally, tally
from llf_ray.tasks.models import CroppedTransformer, TimmModel
from llf_ray.tasks.start import Fresh, Pretrained, Start, fitting, load_into, stated_scaling

__all__ = ["Looked", "Segmentation", "tiny"]

DENSE = Cropping(schedule=Steady(rate=0), selector="random", fusion=False)  # nothing is cut, no module
NUM_MEASURED = 512  # images whose pixels give mean and deviation


@dataclass(frozen=True, eq=False)
class Looked:
    """What a network made of an image, all in the image's own size.

    ``depth`` is the number of blocks that each pixel's patch went through before it was cut, ``blocks`` that of all.
    """

    image: Pixels  # (height, width, channels)
    labels: Labels  # (height, width), as are the others
    predicted: Labels
    depth: NDArray[np.int64]
    blocks: int


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A vision transformer learns the class of every pixel (`llf_ray.nn.segmenter.Segmenter`).

    Layers have timm's names below ``backbone.``, a module that cuts tokens is ``backbone.blocks.N.cropr``, the decoder
    is ``head``. Such modules answer for the class of each patch (``queries="patches"``): their targets are the labels
    on the patch grid, taken from the nearest pixel, and their losses are added to the task's own, each with weight 1
    (Bergner et al., arXiv:2412.00965). Stochastic depth of the last block is 0, in the dense model, too, as published.

    Weights of a run start another by ``FromRun(run=..., head="fresh")``; a file of the transformer's alone by
    ``FromFile(path=..., head="fresh", rename={"": "backbone."})``. Pixels are scaled by ``mean`` and ``std``; where
    they are None, by those of timm's pretrained weights if training starts from them, else by those of the training
    images.
    """

    model: TimmModel | CroppedTransformer
    data: MaskSet
    augment: MaskAugment
    start: Start = Fresh()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    num_workers: int = 0  # processes that read images for each rank

    def __post_init__(self) -> None:
        check_number("num_workers", self.num_workers, low=0)
        check_scaling(self.mean, self.std, self.data.channels)
        cropping = self._model.cropping
        if cropping.learns and cropping.queries != "patches":
            raise SettingError(
                f"model.cropping.queries = {cropping.queries!r}: segmentation asks for the class of each patch; set it "
                "to 'patches'"
            )
        if cropping.selector == "merge":
            raise SettingError(
                "model.cropping.selector = 'merge': merged tokens have no place of their own, which every pixel needs"
            )

    @property
    def metric(self) -> str:
        return "miou"

    @property
    def scored_together(self) -> int:
        """Scores of every pixel for every class take room."""
        return 8

    def prepare(self) -> None:
        classes = self._classes
        if not 2 <= len(classes) <= MOST_CLASSES:
            raise ValueError(f"data: {len(classes)} classes; 2 to {MOST_CLASSES} can be told apart")
        for role in ROLES:
            if not len(self._images(role)):
                raise ValueError(f"data: the {role} part has no images; a larger data set or share is needed")
        check = getattr(self.data, "check", None)  # data sets of many files look at each
        if check is not None:
            check()
        with torch.device("meta"):
            network = self.skeleton()
        self._check_sizes(network)
        fitting(network, self.start, self.new_modules(network))
        if isinstance(self.start, Pretrained):
            self._model.model.check_pretrained()

    def _check_sizes(self, network: Any) -> None:
        """Raise unless the network, here without memory for its weights, takes the squares."""
        grid = network.backbone.grid
        try:
            seen = network(self.example().to("meta"), detailed=True)
            reason = "" if seen.depth.shape[1:] == grid else f"it is made for {grid[0]} x {grid[1]} patches"
        except Exception as error:  # timm's own checks are of many kinds
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        if reason:
            raise SettingError(
                f"model: {self._model.model.name} does not take squares of augment.size = {self.augment.size} pixels: "
                f"{reason} (img_size among its options says what it is made for)"
            )

    def network_recipe(self) -> dict[str, Any]:
        """How to make the network from plain data."""
        return {"segmenter": {"num_classes": len(self._classes)}, **self._model.recipe(0, self.data.channels)}

    def example(self) -> Tensor:
        """An empty image as the network sees it, (1, C, S, S)."""
        return torch.zeros(1, self.data.channels, self.augment.size, self.augment.size)

    def skeleton(self) -> nn.Module:
        return self._segmenter(self._model.make)

    def initial(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.skeleton()

    def build(self, seed: int) -> nn.Module:
        if isinstance(self.start, Pretrained):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return self._segmenter(self._model.make_pretrained)
        network = self.initial(seed)
        load_into(network, self.start, self.new_modules(network))
        return network

    def num_items(self, role: Role) -> int:
        return len(self._images(role))

    def batches(self, role: Role, draws: Iterable[Draw], device: torch.device) -> Iterator[MaskBatch]:
        return from_masks(self._images(role), draws, self.augment, self.scaling(), device, self.num_workers)

    def loss(self, model: nn.Module, batch: MaskBatch) -> tuple[Tensor, Mapping[str, Tally]]:
        """Mean over images of the mean cross-entropy of their labelled pixels, and the same of each module's patches.

        Images weigh the same however much of them is labelled, so that the mean over ranks and micro-batches of equal
        shares is that of the batch (the paper's code takes the mean over the labelled pixels of what a GPU sees).
        """
        assert isinstance(batch.labels, Tensor)
        backbone: Any = model.backbone
        kept = self._model.kept(backbone, batch.key)
        if self._model.cropping.learns:
            seen = model(batch.images, kept=kept, detailed=True)
            scores, auxiliary = seen.output, seen.auxiliary
        else:
            scores, auxiliary = model(batch.images, kept=kept), ()
        target = on_patches(batch.labels, backbone.grid)
        own = labelled_cross_entropy(scores, batch.labels)
        others = [labelled_cross_entropy(answer.transpose(1, 2), target) for answer in auxiliary]
        right = ((scores.argmax(1) == batch.labels) & (batch.labels != IGNORED)).flatten(1).sum(1)
        watched = {"pixel_accuracy": tally(right / _num_labelled(batch.labels))}
        if others:
            watched["auxiliary_loss"] = tally(torch.stack(others).mean(0))
        return own.mean() + sum(other.mean() for other in others), watched

    def score(self, model: nn.Module, batch: MaskBatch) -> Mapping[str, Tally]:
        """Share of labelled pixels that are right, and cross-entropy, of images in their own size: scores are resized
        bilinearly to it.
        """
        return self.evidence(model, batch)[0]

    @torch.no_grad()
    def evidence(self, model: nn.Module, batch: MaskBatch) -> tuple[Mapping[str, Tally], Tensor]:
        """What `score` gives, and how many pixels of each class (row) were taken for each (column)."""
        found = _confusion(len(self._classes)).to(batch.images.device)
        losses = []
        for scores, labels in self._in_own_size(model(batch.images), batch):
            found.update(scores.argmax(0)[None], labels[None])
            losses.append(labelled_cross_entropy(scores[None], labels[None]))
        matrix = found.confmat
        tallies = {
            "pixel_accuracy": Tally(matrix.diag().sum().double(), int(matrix.sum())),
            "loss": tally(torch.cat(losses)),
        }
        return tallies, matrix.cpu()

    def conclude(self, role: Role, records: Sequence[Tensor]) -> Mapping[str, float]:
        """Means over classes: of intersection over union, and of the share of a class's pixels that is right.

        A class that neither a label nor a prediction of the role has is left out of the first, and one that no label
        has of the second.
        """
        whole = _confusion(len(self._classes))
        whole.update(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64))  # else it warns
        for matrix in records:
            whole.merge_state({"confmat": matrix})
        there = whole.confmat.sum(1) > 0
        shares = whole.confmat.diag()[there].double() / whole.confmat.sum(1)[there]
        return {"miou": float(whole.compute()), "class_accuracy": float(shares.mean())}

    @torch.no_grad()
    def look(self, model: nn.Module, role: Role, indices: Sequence[int], device: torch.device) -> list[Looked]:
        """What a network, in evaluation mode, makes of some images: for figures."""
        found = []
        images, backbone = self._images(role), cast("Any", model.backbone)
        for index, batch in zip(
            indices, self.batches(role, [Draw(np.asarray([i], dtype=np.int64)) for i in indices], device), strict=True
        ):
            seen = model(batch.images, detailed=True)
            ((scores, labels),) = self._in_own_size(seen.output, batch)
            depth = F.interpolate(seen.depth[:, None].float(), batch.images.shape[-2:], mode="nearest-exact")[0]
            inside = depth[None, :, : batch.extents[0][0], : batch.extents[0][1]]
            found.append(
                Looked(
                    image=images.pair(index)[0],
                    labels=labels.cpu().numpy().astype(np.uint8),
                    predicted=scores.argmax(0).cpu().numpy().astype(np.uint8),
                    depth=F.interpolate(inside, tuple(labels.shape), mode="nearest-exact")[0, 0].long().cpu().numpy(),
                    blocks=len(backbone.blocks),
                )
            )
        return found

    def scaling(self) -> Scaling:
        """What pixels are scaled by: whoever uses the exported network needs these numbers."""
        return stated_scaling(self) or _measured(self.data, os.environ.get(ROOT_VARIABLE))

    @property
    def _model(self) -> CroppedTransformer:
        """The dense model as one that loses no token, so that both are one network with one way to its patches."""
        if isinstance(self.model, CroppedTransformer):
            return self.model
        return CroppedTransformer(model=self.model, cropping=DENSE)

    def _segmenter(self, make: Any) -> nn.Module:
        from llf_ray.nn.segmenter import Segmenter  # here: it imports timm, which takes seconds

        num_classes = len(self._classes)
        return Segmenter(make(0, self.data.channels, outputs=num_classes), num_classes)

    def new_modules(self, network: Any) -> tuple[str, ...]:
        """Names of the decoder and of pruning modules: what somebody else's weights may lack."""
        return ("head", *(f"backbone.{name}" for name in self._model.head(network.backbone)))

    def _in_own_size(self, scores: Tensor, batch: MaskBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """Scores (classes, height, width) and labels (height, width) of each image."""
        for own, labels, extent in zip(scores, batch.labels, batch.extents, strict=True):
            high, wide = labels.shape
            yield fitted(own, extent, (high, wide)), labels

    @property
    def _classes(self) -> tuple[str, ...]:
        return _named(self.data, os.environ.get(ROOT_VARIABLE))

    def _images(self, role: Role) -> MaskedImages:
        return _loaded(self.data, role, os.environ.get(ROOT_VARIABLE))


def labelled_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels of each image, (B,), 0 where there is none: scores (B, classes, ...),
    labels (B, ...).
    """
    losses = F.cross_entropy(scores.float(), labels, ignore_index=IGNORED, reduction="none")
    return losses.flatten(1).sum(1) / _num_labelled(labels)


def on_patches(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Labels (B, H, W) of the patches of a grid, (B, patches): each that of one pixel, torch's "nearest"."""
    return F.interpolate(labels[:, None].float(), grid, mode="nearest")[:, 0].flatten(1).long()


def _num_labelled(labels: Tensor) -> Tensor:
    """Labelled pixels of each image, (B,), at least 1."""
    return (labels != IGNORED).flatten(1).sum(1).clamp(min=1)


def _confusion(num_classes: int) -> Any:
    from torchmetrics.classification import MulticlassJaccardIndex  # here: it takes a second

    # every rank would have to compute: by itself it would gather from all of them, and wait for those that do not
    return MulticlassJaccardIndex(num_classes, ignore_index=IGNORED, validate_args=False, sync_on_compute=False)


# Data are read once a process. The folder that relative paths start from is part of the key.

KEPT = 12


@lru_cache(maxsize=KEPT)
def _named(data: MaskSet, root: str | None) -> tuple[str, ...]:
    return data.classes()


@lru_cache(maxsize=KEPT)
def _loaded(data: MaskSet, role: Role, root: str | None) -> MaskedImages:
    return data.load(role)


@lru_cache(maxsize=KEPT)
def _measured(data: MaskSet, root: str | None) -> Scaling:
    """Mean and deviation of each channel over some of the training images."""
    images = _loaded(data, "train", root)
    chosen = order(len(images), 0, 0, 0)[:NUM_MEASURED]
    return Scaling.measured(images.pair(int(index))[0] for index in chosen)


tiny: Segmentation


def __getattr__(name: str) -> Any:
    """``tiny``, made when it is first asked for: a model's name is held against timm's, whose import takes seconds."""
    if name == "tiny":
        return _tiny()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@lru_cache(maxsize=1)
def _tiny() -> Segmentation:
    return Segmentation(
        model=CroppedTransformer(
            model=TimmModel(
                name="vit_tiny_patch16_224",
                options={"img_size": 24, "patch_size": 6, "embed_dim": 24, "depth": 4, "num_heads": 2},
            ),
            cropping=Cropping(schedule=Steady(rate=3), queries="patches"),
        ),
        data=FashionMasks(pictures=FashionOnPhotographs(num_train=40, num_held_out=20), kinds=False),
        augment=MaskAugment(size=24, scale=(0.8, 1.25)),
    )
