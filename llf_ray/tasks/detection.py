"""Images to objects: boxes, classes and masks on a vision transformer, scored by COCO's average precision."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from llf_ray.config import SettingError, check_number
from llf_ray.data.augment import Scaling, check_scaling
from llf_ray.data.base import ROLES, ROOT_VARIABLE, Role
from llf_ray.data.fashion_scenes import FashionScenes
from llf_ray.data.instances import InstanceData, Scenes, packed
from llf_ray.data.jitter import LargeScaleJitter
from llf_ray.data.loading import Placed, SceneBatch, from_scenes
from llf_ray.data.order import Draw, order
from llf_ray.measures.average_precision import Detections, Truth, average_precision
from llf_ray.nn.cropr.schedule import Steady
from llf_ray.nn.cropr.settings import Cropping
from llf_ray.nn.detector_settings import Heads
from llf_ray.tasks.base import Tally, tally
from llf_ray.tasks.models import CroppedTransformer, TimmModel
from llf_ray.tasks.start import Fresh, Pretrained, Start, fitting, load_into, stated_scaling

__all__ = ["Detection", "Examined", "tiny"]

NUM_MEASURED = 64  # images whose pixels give mean and deviation
SURE = 0.5  # score from which on a detection counts as an object
INSIDE = 0.5  # probability from which on a pixel belongs to a mask


class Examined(NamedTuple):
    """One image for a figure, in its own pixels.

    ``truth`` and ``found`` are boxes (N, 4), labels (N,), masks (N, H, W) and scores (N,), by name. ``depth`` (h, w) is
    the number of ``blocks`` that each patch of it went through, None for a dense model; the patches lie over the first
    ``covered`` (height, width) pixels, a little more than the image where it is no whole number of patches.
    """

    pixels: NDArray[np.uint8]
    truth: Mapping[str, NDArray[Any]]
    found: Mapping[str, NDArray[Any]]
    depth: NDArray[np.int64] | None
    covered: tuple[float, float] | None
    blocks: int


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A network finds the objects in images: a transformer of timm under ViTDet's pyramid and Mask R-CNN's heads.

    Layers of the transformer are ``backbone.blocks.N...``; behind it come ``pyramid``, ``rpn`` and ``roi_heads``. Where
    it loses tokens, each module's own task is to say which classes are in the image: one query, binary
    cross-entropy, summed over modules with weight 1 (the paper's proxy for heads too heavy to repeat).

    Pixels are scaled by ``mean`` and ``std`` (of values from 0 to 1, one number a channel); where they are None, by
    those of timm's pretrained weights if training starts from them, else by those of the training images. Start:
    ``Pretrained()`` is for the transformer alone; ``FromRun(run=..., head="fresh")`` and ``FromFile(path=...,
    head="fresh")`` take what a file has, and draw anew what it lacks behind the transformer's own blocks.
    """

    model: TimmModel | CroppedTransformer
    data: InstanceData
    augment: LargeScaleJitter
    heads: Heads = Heads()
    start: Start = Fresh()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    num_workers: int = 0  # processes that read images for each rank

    def __post_init__(self) -> None:
        check_number("num_workers", self.num_workers, low=0)
        check_scaling(self.mean, self.std, self.data.channels)
        if isinstance(self.model, CroppedTransformer):
            cropping = self.model.cropping
            if cropping.queries != 1:
                raise SettingError(
                    f"model.cropping.queries = {cropping.queries!r}: which classes an image holds is one question: 1"
                )
            if not cropping.fusion:
                raise SettingError(
                    "model.cropping.fusion = False: boxes need a feature at every place of the image, and without "
                    "last-layer fusion those of cut tokens are gone"
                )

    @property
    def metric(self) -> str:
        return "mask_ap" if self.heads.masks else "box_ap"

    @property
    def scored_together(self) -> int:
        """Images and their detections are large."""
        return 8

    def new_modules(self, network: nn.Module) -> tuple[str, ...]:
        """Names of pyramid, heads and pruning modules: what somebody else's weights may lack."""
        from llf_ray.nn.cropr.transformer import module_names  # here: they import timm, which takes seconds
        from llf_ray.nn.detector import UNUSED

        modules = (f"backbone.{name}" for name in (*UNUSED, *module_names(network.backbone)))  # type: ignore[arg-type]
        return ("pyramid", "rpn", "roi_heads", *modules)

    def prepare(self) -> None:
        classes = len(self._classes)
        for role in ROLES:
            scenes = self._scenes(role)
            if not len(scenes):
                raise ValueError(f"data: the {role} part has no images; a larger data set or share is needed")
            if not any(len(scenes.labels_in(index)) for index in range(len(scenes))):
                raise ValueError(f"data: no image of the {role} part has an object")
        check = getattr(self.data, "check", None)  # data sets of many files look at each
        if check is not None:
            check()
        with torch.device("meta"):
            network: Any = self.skeleton()
            side = self.augment.size
            largest = max(self.heads.strides)
            if side % largest:
                raise SettingError(f"augment.size = {side}: must be a multiple of heads.strides' largest, {largest}")
            images = torch.empty(2, self.data.channels, side, side)
            try:
                tokens, auxiliary = network.train()._tokens(images, None)
                network.pyramid(tokens.permute(0, 3, 1, 2).contiguous())
            except Exception as error:  # timm's own checks are of many kinds
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise SettingError(
                    f"model: {type(self.model).__name__} does not take squares of augment.size = {side} pixels "
                    f"(img_size in the options of timm's model says what it takes): {reason}"
                ) from None
        assert all(answer.shape == (2, 1, classes) for answer in auxiliary)
        fitting(network, self.start, self.new_modules(network))
        if isinstance(self.start, Pretrained):
            self.model.check_pretrained()

    def skeleton(self) -> nn.Module:
        return self._made(pretrained=False)

    def initial(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.skeleton()

    def build(self, seed: int) -> nn.Module:
        if isinstance(self.start, Pretrained):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return self._made(pretrained=True)
        network = self.initial(seed)
        load_into(network, self.start, self.new_modules(network))
        return network

    def num_items(self, role: Role) -> int:
        return len(self._scenes(role))

    def batches(self, role: Role, draws: Iterable[Draw], device: torch.device) -> Iterator[SceneBatch]:
        return from_scenes(self._scenes(role), draws, self.augment, self.scaling(), device, self.num_workers)

    def loss(self, model: nn.Module, batch: SceneBatch) -> tuple[Tensor, Mapping[str, Tally]]:
        """The sum of torchvision's losses (proposals: objectness and boxes; regions: classes, boxes and masks) and of
        the auxiliary losses, each a mean over the batch.
        """
        kept = None
        if isinstance(self.model, CroppedTransformer):
            kept = self.model.kept(model.backbone, batch.key)
        targets = [
            {name: value for name, value in target.items() if self.heads.masks or name != "masks"}
            for target in batch.targets
        ]
        losses, answers = model(batch.images, targets, kept=kept)
        present = torch.stack([_present(target["labels"], len(self._classes)) for target in targets])
        auxiliary = [F.binary_cross_entropy_with_logits(answer.mean(1), present) for answer in answers]
        watched = {name.removeprefix("loss_"): value for name, value in losses.items()}
        if auxiliary:
            watched["auxiliary_loss"] = torch.stack(auxiliary).mean()
        number = len(batch.images)
        return sum([*losses.values(), *auxiliary], start=batch.images.new_zeros(())), {
            name: tally(value.detach().expand(number)) for name, value in watched.items()
        }

    def score(self, model: nn.Module, batch: SceneBatch) -> Mapping[str, Tally]:
        return self.evidence(model, batch)[0]

    @torch.no_grad()
    def evidence(
        self, model: nn.Module, batch: SceneBatch
    ) -> tuple[Mapping[str, Tally], list[tuple[Detections, Truth]]]:
        """By how many objects an image's count is off, counting detections that are more likely than not; and for each
        image what was found and what is there, in its own pixels, masks packed.
        """
        pairs = [
            (self._detections(found, truth), self._truth(truth))
            for found, truth in zip(model(batch.images), batch.truths, strict=True)
        ]
        off = [abs(int((found.scores >= SURE).sum()) - int((~truth.crowd).sum())) for found, truth in pairs]
        return {"count_error": tally(torch.tensor(off, dtype=torch.float64, device=batch.images.device))}, pairs

    def conclude(self, role: Role, records: Sequence[list[tuple[Detections, Truth]]]) -> dict[str, float]:
        """Average precision over all images of a role: see `llf_ray.measures.average_precision`."""
        return average_precision((pair for record in records for pair in record), masks=self.heads.masks)

    @torch.no_grad()
    def examine(self, model: Any, role: Role, indices: Sequence[int], device: torch.device) -> list[Examined]:
        """Some images with all that a figure shows of them; detections from a score of one half on."""
        model.eval()
        examined = []
        for batch, index in zip(
            self.batches(role, (Draw(np.array([index])) for index in indices), device), indices, strict=True
        ):
            (found,), (truth,) = model(batch.images), batch.truths
            sure = _numbers(found.scores) >= SURE
            boxes = _numbers(truth.where.back(found.boxes, truth.height, truth.width))
            seen = {"boxes": boxes, "labels": _numbers(found.labels), "scores": _numbers(found.scores)}
            if found.masks is not None:
                seen["masks"] = self._pasted(found, truth)
            there = truth.instances
            depth, covered = self._depth(model, batch.images, truth)
            examined.append(
                Examined(
                    self._scenes(role).scene(index)[0],
                    {"boxes": there.boxes, "labels": there.labels, "masks": there.masks},
                    {name: values[sure] for name, values in seen.items()},
                    depth,
                    covered,
                    len(model.backbone.blocks),
                )
            )
        return examined

    def _depth(
        self, model: Any, images: Tensor, truth: Placed
    ) -> tuple[NDArray[np.int64] | None, tuple[float, float] | None]:
        """`Examined.depth` and `Examined.covered` of one image."""
        depth = model.depth(images)
        if depth is None:
            return None, None
        patch = self.augment.size // depth.shape[1]
        rows, columns = (-(-length // patch) for length in (truth.where.height, truth.where.width))
        scale = truth.height / truth.where.height, truth.width / truth.where.width
        return _numbers(depth[0, :rows, :columns]), (rows * patch * scale[0], columns * patch * scale[1])

    def classes(self) -> tuple[str, ...]:
        """Names of the classes; label i is the i-th."""
        return self._classes

    def scaling(self) -> Scaling:
        """What pixels are scaled by: whoever uses the exported network needs these numbers."""
        return stated_scaling(self) or _measured(self.data, os.environ.get(ROOT_VARIABLE))

    @property
    def _classes(self) -> tuple[str, ...]:
        return _named(self.data, os.environ.get(ROOT_VARIABLE))

    def _scenes(self, role: Role) -> Scenes:
        return _loaded(self.data, role, os.environ.get(ROOT_VARIABLE))

    def _made(self, *, pretrained: bool) -> nn.Module:
        from llf_ray.nn.cropr.transformer import Cropped, refusal  # here: they import timm, which takes seconds
        from llf_ray.nn.detector import Detector

        make = self.model.make_pretrained if pretrained else self.model.make
        classes = len(self._classes)
        cropped = isinstance(self.model, CroppedTransformer)
        network = make(0, self.data.channels, **({"outputs": classes} if cropped else {}))
        why = None if isinstance(network, Cropped) else refusal(network)
        if why is not None:
            raise SettingError(f"model: {why}")
        return Detector(network, classes, self.heads)

    def _detections(self, found: Any, truth: Placed) -> Detections:
        boxes = _numbers(truth.where.back(found.boxes, truth.height, truth.width))
        masks = None if found.masks is None else packed(self._pasted(found, truth))
        return Detections(boxes, _numbers(found.labels), _numbers(found.scores), masks)

    def _pasted(self, found: Any, truth: Placed) -> NDArray[np.bool_]:
        """Masks of what was found on the image's own pixels, (N, height, width)."""
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        # whole boxes, padding included: a mask fills the box that it was predicted in
        boxes = truth.where.back(found.boxes, truth.height, truth.width, cut=False)
        shape = (truth.height, truth.width)
        pasted = [  # one at a time: a hundred masks of a large photograph in fp32 are a gigabyte
            paste_masks_in_image(mask[None, None], box[None], shape)[0, 0] >= INSIDE
            for mask, box in zip(found.masks, boxes, strict=True)
        ]
        return _numbers(torch.stack(pasted)) if pasted else np.zeros((0, *shape), dtype=bool)

    def _truth(self, truth: Placed) -> Truth:
        there = truth.instances
        masks = packed(there.masks) if self.heads.masks else None
        return Truth((truth.height, truth.width), there.boxes, there.labels, there.crowd, there.area, masks)


def _present(labels: Tensor, classes: int) -> Tensor:
    """Which classes are there, (classes,), as 0 and 1."""
    return torch.zeros(classes, device=labels.device).index_fill(0, labels, 1.0)


def _numbers(values: Tensor) -> NDArray[Any]:
    return values.cpu().numpy()


# Data are read once a process. The folder that relative paths start from is part of the key.


@lru_cache(maxsize=4)
def _named(data: InstanceData, root: str | None) -> tuple[str, ...]:
    return data.classes()


@lru_cache(maxsize=6)
def _loaded(data: InstanceData, role: Role, root: str | None) -> Scenes:
    return data.load(role)


@lru_cache(maxsize=4)
def _measured(data: InstanceData, root: str | None) -> Scaling:
    """Mean and deviation of each channel over some of the training images, each image counting the same."""
    scenes = _loaded(data, "train", root)
    chosen = order(len(scenes), 0, 0, 0)[:NUM_MEASURED]
    pixels = [scenes.scene(int(index))[0].reshape(-1, data.channels) / 255 for index in chosen]
    mean = np.mean([one.mean(0) for one in pixels], axis=0)
    square = np.mean([(one**2).mean(0) for one in pixels], axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return Scaling(mean=tuple(mean.tolist()), std=tuple(np.maximum(std, 1 / 255).tolist()))


tiny = Detection(
    model=CroppedTransformer(
        model=TimmModel(
            name="vit_tiny_patch16_224", options={"img_size": 64, "depth": 3, "embed_dim": 32, "num_heads": 2}
        ),
        cropping=Cropping(schedule=Steady(rate=4)),
    ),
    data=FashionScenes(num_train=24, num_held_out=6),
    augment=LargeScaleJitter(size=64, scale=(0.8, 1.25)),
    heads=Heads(
        channels=16,
        anchors=(12, 24, 48, 96),
        proposal_convs=1,
        proposals=(100, 50),
        proposals_learned=32,
        regions_learned=32,
        box_convs=0,
        box_width=32,
        mask_convs=1,
        detections=20,
    ),
)
