"""Images to classes: cross-entropy with label smoothing, scored by accuracy."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import tee
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from llf_ray.config import SettingError, check_number, unknown
from llf_ray.data.augment import Augment, Scaling, TimmAugment, check_scaling, timm_transform
from llf_ray.data.base import ROLES, ROOT_VARIABLE, DataSet, Items, Role, Stack, square, stacked
from llf_ray.data.loading import ImageBatch, from_files, from_memory, mixed
from llf_ray.data.mislabel import drawn_labels, relabelled
from llf_ray.data.order import Draw, order
from llf_ray.data.sample import FashionSample
from llf_ray.nn.normaliser import freeze, normaliser_of, recalibrate
from llf_ray.plan import FREEZE, RECALIBRATE, Pass
from llf_ray.tasks.base import Tally, tally
from llf_ray.tasks.models import CroppedTransformer, Model, MultiLayerPerceptron, Normalised, SmallResNet, TimmModel
from llf_ray.tasks.start import Fresh, FromFile, FromRun, Pretrained, Start, fitting, load_into, stated_scaling

__all__ = [
    "Classification",
    "CroppedTransformer",
    "Fresh",
    "FromFile",
    "FromRun",
    "MultiLayerPerceptron",
    "Normalised",
    "Pretrained",
    "SmallResNet",
    "TimmModel",
    "tiny",
]

PASSES = (FREEZE, RECALIBRATE)
OF_TIMM = (TimmModel, CroppedTransformer)  # networks that may have pretrained weights
NUM_MEASURED = 512  # images whose pixels give mean and deviation, for sets that are not in memory


@dataclass(frozen=True, kw_only=True)
class Classification:
    """A network learns the classes of a data set's images.

    Pixels are scaled by ``mean`` and ``std`` (of values from 0 to 1, one number a channel); where they are
    None, by those of timm's pretrained weights if training starts from them, else by those of the training
    images. Of the training labels the share ``mislabelled`` is replaced by a uniform draw, keyed by
    ``mislabelled_seed``; those of the other roles never are.
    """

    model: Model
    data: DataSet
    augment: Augment | TimmAugment = Augment()
    mixup: float = 0.0  # alpha of mixup; 0: none
    cutmix: float = 0.0  # alpha of cutmix; 0: none
    label_smoothing: float = 0.1
    mislabelled: float = 0.0
    mislabelled_seed: int = 0
    start: Start = Fresh()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    num_workers: int = 0  # processes that read images for each rank, for images that are not in memory

    def __post_init__(self) -> None:
        check_number("label_smoothing", self.label_smoothing, low=0.0)
        if self.label_smoothing >= 1:
            raise SettingError(f"label_smoothing = {self.label_smoothing!r}: must be below 1")
        check_number("mislabelled", self.mislabelled, low=0.0, high=1.0)
        check_number("mislabelled_seed", self.mislabelled_seed, low=0)
        for name in ("mixup", "cutmix", "num_workers"):
            check_number(name, getattr(self, name), low=0)
        check_scaling(self.mean, self.std, self.data.channels)
        if isinstance(self.start, Pretrained) and not isinstance(self.model, OF_TIMM):
            raise SettingError(
                f"start = Pretrained(): only timm's models have pretrained weights, not {type(self.model).__name__}"
            )

    @property
    def metric(self) -> str:
        return "accuracy"

    def prepare(self) -> None:
        classes = self._classes
        for role in ROLES:
            items = self._items(role)
            outside = [label for label in Counter(items.labels.tolist()) if not 0 <= label < len(classes)]
            if outside:
                raise ValueError(
                    f"data: the {role} part has the label {outside[0]}, but there are {len(classes)} "
                    f"classes, 0 to {len(classes) - 1}"
                )
            if not len(items.labels):
                raise ValueError(f"data: the {role} part has no items; a larger data set or share is needed")
            if isinstance(self.augment, Augment) and self.augment.size is None and not isinstance(items, Stack):
                raise SettingError(
                    f"augment.size = None: images of {type(self.data).__name__} may differ in size; "
                    "set the side of the squares that they become, or use TimmAugment(size=...)"
                )
        check = getattr(self.data, "check", None)  # data sets of many files look at each
        if check is not None:
            check()
        with torch.device("meta"):
            network = self.skeleton()
        self._check_sizes(network, len(classes))
        fitting(network, self.start, self.model.head(network))
        if isinstance(self.start, Pretrained) and isinstance(self.model, OF_TIMM):
            self.model.check_pretrained()

    def _check_sizes(self, network: nn.Module, num_classes: int) -> None:
        """Raise unless the network, here without memory for its weights, turns two of the data's images into class
        scores.
        """
        images = torch.empty(2, self.data.channels, *self._image_size, device="meta")
        try:
            shape = network(images).shape
        except Exception:  # what cannot be followed without values is tried with them, before anyone is blamed
            try:
                with torch.no_grad():
                    shape = self.initial(0)(torch.zeros(images.shape)).shape
            except Exception as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                high, wide = self._image_size
                raise SettingError(
                    f"model: {type(self.model).__name__} does not take the data's images ({self.data.channels} "
                    f"channels, {high} x {wide} pixels): {reason}"
                ) from None
        if tuple(shape) != (2, num_classes):
            raise SettingError(
                f"model: {type(self.model).__name__} gives {tuple(shape)} for two images; "
                f"(2, {num_classes}) is needed, one score for each class"
            )

    @property
    def _image_size(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        if self.augment.size is not None:
            return self.augment.size, self.augment.size
        items = self._items("train")
        assert isinstance(items, Stack)  # prepare() has seen to it
        return items.images.shape[1], items.images.shape[2]

    def network_recipe(self) -> dict[str, Any]:
        """How to make the network from plain data, for a slim one that is saved."""
        return self.model.recipe(len(self._classes), self.data.channels)

    def example(self) -> Tensor:
        """An empty image as the network sees it, (1, C, H, W): how its layers are wired shows in it."""
        return torch.zeros(1, self.data.channels, *self._image_size)

    def new_modules(self, network: nn.Module) -> tuple[str, ...]:
        """Names of classifier and pruning modules: what somebody else's weights may lack."""
        return self.model.head(network)

    def skeleton(self) -> nn.Module:
        return self.model.make(len(self._classes), self.data.channels)

    def initial(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.skeleton()

    def build(self, seed: int) -> nn.Module:
        if isinstance(self.start, Pretrained) and isinstance(self.model, OF_TIMM):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return self.model.make_pretrained(len(self._classes), self.data.channels)
        network = self.initial(seed)
        load_into(network, self.start, self.model.head(network))
        return network

    def num_items(self, role: Role) -> int:
        return len(self._items(role).labels)

    def batches(self, role: Role, draws: Iterable[Draw], device: torch.device) -> Iterator[ImageBatch]:
        asked, given = tee(draws)
        read = zip(given, self._plain_batches(role, asked, device), strict=True)
        pairs = ((draw, replace(batch, key=draw.key)) for draw, batch in read)
        if not self.mixup and not self.cutmix:
            return (batch for _, batch in pairs)
        return mixed(pairs, len(self._classes), mixup=self.mixup, cutmix=self.cutmix)

    def loss(self, model: nn.Module, batch: ImageBatch) -> tuple[Tensor, Mapping[str, Tally]]:
        scores, losses = self._losses(model, batch)
        return losses[0] + sum(losses[1:]), _watched(scores, batch, losses)

    def _losses(self, model: nn.Module, batch: ImageBatch) -> tuple[Tensor, list[Tensor]]:
        """Class scores, the task's own loss, and that of each auxiliary head, which has the same target."""
        auxiliary: tuple[Tensor, ...] = ()
        if isinstance(self.model, CroppedTransformer):
            seen = model(batch.images, kept=self.model.kept(model, batch.key), detailed=True)
            scores, auxiliary = seen.output, tuple(answer.mean(1) for answer in seen.auxiliary)
        else:
            scores = model(batch.images)
        target = batch.labels if batch.blended is None else batch.blended
        return scores, [
            F.cross_entropy(given, target, label_smoothing=self.label_smoothing) for given in (scores, *auxiliary)
        ]

    def pairs(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """What a network is given and what it should say, (B, C, H, W) and (B,): for measures."""
        return batch.images, batch.labels

    def labels(self, role: Role) -> NDArray[np.int64]:
        """The class of each item as a network is taught it, wrong ones included, (items,)."""
        return np.asarray(self._items(role).labels)

    def replaced(self) -> NDArray[np.bool_]:
        """Which training items had their label replaced, (items,)."""
        return self._drawn(_loaded(self.data, "train", os.environ.get(ROOT_VARIABLE)))[1]

    def distil(
        self, model: nn.Module, teacher: nn.Module, batch: ImageBatch, weight: float, temperature: float
    ) -> tuple[Tensor, Mapping[str, Tally]]:
        """(1 - weight) of the task's own loss and ``weight`` of the cross-entropy with the teacher's classes.

        Both networks' scores are divided by ``temperature`` and the term multiplied by its square, so that gradients
        keep their size (Hinton et al. 2015, arXiv:1503.02531); at temperature 1 it is that of born-again networks
        (Furlanello et al. 2018, arXiv:1805.04770).
        """
        scores, losses = self._losses(model, batch)
        with torch.no_grad():
            soft = (teacher(batch.images).float() / temperature).softmax(1)
        taught = F.cross_entropy(scores.float() / temperature, soft) * temperature**2
        loss = (1 - weight) * losses[0] + weight * taught + sum(losses[1:])
        return loss, _watched(scores, batch, losses)

    def check_pass(self, operation: Pass) -> None:
        if operation.what not in PASSES:
            raise unknown("pass", operation.what, PASSES)
        if operation.what == RECALIBRATE:
            return
        with torch.device("meta"):
            network = self.skeleton()
        if normaliser_of(network, operation.where) is None:
            raise SettingError(
                f"{operation.label}: the network has no normaliser behind {operation.where!r}; "
                f"give it one by task.model = Normalised(model=..., after=({operation.where!r}, ...))"
            )

    def run_pass(self, model: nn.Module, operation: Pass, batches: Iterable[ImageBatch]) -> None:
        images = (batch.images for batch in batches)
        if operation.what == RECALIBRATE:
            recalibrate(model, images)
        else:
            freeze(model, operation.where, images)

    @torch.no_grad()
    def score(self, model: nn.Module, batch: ImageBatch) -> Mapping[str, Tally]:
        """Accuracy, cross-entropy without smoothing, and the share with the class among the best five where
        there are more.
        """
        scores = model(batch.images)
        tallies = {
            "accuracy": tally(scores.argmax(1) == batch.labels),
            "loss": tally(F.cross_entropy(scores, batch.labels, reduction="none")),
        }
        if scores.shape[1] > 5:
            tallies["accuracy_top5"] = tally((scores.topk(5).indices == batch.labels[:, None]).any(1))
        return tallies

    def scaling(self) -> Scaling:
        """What pixels are scaled by: whoever uses the exported network needs these numbers."""
        return stated_scaling(self) or _measured(self.data, self._side, os.environ.get(ROOT_VARIABLE))

    @property
    def _classes(self) -> tuple[str, ...]:
        return _named(self.data, os.environ.get(ROOT_VARIABLE))

    @property
    def _side(self) -> int | None:
        """The side of the squares in memory, None for images as they are."""
        return self.augment.size if isinstance(self.augment, Augment) else None

    def _items(self, role: Role) -> Items:
        return self._as_taught(_loaded(self.data, role, os.environ.get(ROOT_VARIABLE)), role)

    def _as_taught(self, items: Items, role: Role) -> Items:
        """The items with the labels that the network is to learn."""
        if role != "train" or not self.mislabelled:
            return items
        return relabelled(items, self._drawn(items)[0])

    def _drawn(self, items: Items) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        return drawn_labels(items.labels, len(self._classes), self.mislabelled, self.mislabelled_seed)

    def _plain_batches(self, role: Role, draws: Iterable[Draw], device: torch.device) -> Iterator[ImageBatch]:
        scaling = self.scaling()
        if isinstance(self.augment, TimmAugment):
            training, plain = (
                timm_transform(self.augment, scaling, self.data.channels, training=flag) for flag in (True, False)
            )
            return from_files(self._items(role), draws, training, plain, device, self.num_workers)
        stack = self._as_taught(_in_memory(self.data, role, self._side, os.environ.get(ROOT_VARIABLE)), role)
        assert isinstance(stack, Stack)
        return from_memory(stack, draws, self.augment, scaling, device)


def _watched(scores: Tensor, batch: ImageBatch, losses: list[Tensor]) -> dict[str, Tally]:
    """Accuracy, and the mean loss of the auxiliary heads where there are some."""
    right = scores.argmax(1) == batch.labels
    watched = {"accuracy": tally(right)}
    if len(losses) > 1:
        watched["auxiliary_loss"] = tally(torch.stack(losses[1:]).mean().expand(len(right)))
    return watched


# Data are read once a process. The folder that relative paths start from is part of the key.

KEPT = 12  # three roles of a run's own data and of a few others that it is measured on


@lru_cache(maxsize=KEPT)
def _named(data: DataSet, root: str | None) -> tuple[str, ...]:
    return data.classes()


@lru_cache(maxsize=KEPT)
def _loaded(data: DataSet, role: Role, root: str | None) -> Items:
    return data.load(role)


@lru_cache(maxsize=KEPT)
def _in_memory(data: DataSet, role: Role, side: int | None, root: str | None) -> Stack:
    items = _loaded(data, role, root)
    if side is None:
        assert isinstance(items, Stack)  # prepare() has seen to it
        return items
    return stacked(items, side)


@lru_cache(maxsize=KEPT)
def _measured(data: DataSet, side: int | None, root: str | None) -> Scaling:
    """Mean and deviation of each channel over the training images, or over some of them where they are not in
    memory.
    """
    items = _loaded(data, "train", root)
    if isinstance(items, Stack) or side is not None:
        return Scaling.measured([_in_memory(data, "train", side, root).images])
    chosen = order(len(items.labels), 0, 0, 0)[:NUM_MEASURED]
    return Scaling.measured(square(items.image(int(index)), 64) for index in chosen)


tiny = Classification(
    model=SmallResNet(widths=(4, 8), blocks=(1, 1), stem_stride=2),
    data=FashionSample(num_train=40, num_held_out=20),
    augment=Augment(shift=2, flip=0.5),
)
