"""Batches in the order of the draws: straight from memory, or through torch's DataLoader with worker
processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import tee
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llf_ray.data.augment import Augment, Scaling, mix, seeded, shift_and_flip, word_of
from llf_ray.data.base import BrokenData, Items, Pixels, Stack
from llf_ray.data.instances import Instances, Scenes
from llf_ray.data.jitter import LargeScaleJitter, Placement, placed
from llf_ray.data.mask_augment import MaskAugment, View, varied, whole
from llf_ray.data.masks import MaskedImages
from llf_ray.data.order import Draw

__all__ = [
    "ImageBatch",
    "MaskBatch",
    "Placed",
    "SceneBatch",
    "from_files",
    "from_masks",
    "from_memory",
    "from_scenes",
    "mixed",
]


@dataclass(frozen=True)
class ImageBatch:
    """Scaled images (B, C, H, W), their classes (B,), blended classes (B, classes) where images were mixed, and the
    draw's key, (seed, generation, epoch), in training.
    """

    images: Tensor
    labels: Tensor
    blended: Tensor | None = None
    key: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Placed:
    """What evaluation needs of an image beside its square: its own height and width, its objects in its own pixels, and
    how it came into the square.
    """

    height: int
    width: int
    instances: Instances
    where: Placement


@dataclass(frozen=True)
class SceneBatch:
    """Scaled squares (B, C, H, W). In training ``targets``: boxes (N, 4) float64, labels (N,) and masks (N, H, W) of
    each image, in the square's pixels, and the draw's ``key``; in evaluation ``truths``.
    """

    images: Tensor
    targets: tuple[dict[str, Tensor], ...] = ()
    truths: tuple[Placed, ...] = ()
    key: tuple[int, ...] | None = None


def from_memory(
    stack: Stack, draws: Iterable[Draw], augment: Augment, scaling: Scaling, device: torch.device
) -> Iterator[ImageBatch]:
    """Batches of images that are in memory, augmented a batch at a time."""
    images, labels = torch.from_numpy(stack.images), torch.from_numpy(stack.labels)
    for draw in draws:
        where = torch.from_numpy(draw.indices)
        # uint8 until it is on the device: a quarter of the traffic
        pictures = shift_and_flip(images[where], draw, augment).to(device, non_blocking=True)
        yield ImageBatch(scaling.scaled(pictures), labels[where].to(device, non_blocking=True))


def from_files(
    items: Items,
    draws: Iterable[Draw],
    training: Callable[[Pixels], Tensor],
    plain: Callable[[Pixels], Tensor],
    device: torch.device,
    num_workers: int,
) -> Iterator[ImageBatch]:
    """Batches of images that are read and transformed one by one; ``training`` where a draw has a key, else
    ``plain``.

    Workers run ahead of the batches by two draws each. Nothing here draws from the ambient generators.
    """
    read_in_turn = _read(_Transformed(items, training, plain), draws, _collated, device, num_workers)
    for images, labels in read_in_turn:
        yield ImageBatch(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))


def from_scenes(
    scenes: Scenes,
    draws: Iterable[Draw],
    jitter: LargeScaleJitter,
    scaling: Scaling,
    device: torch.device,
    num_workers: int,
) -> Iterator[SceneBatch]:
    """Batches of images with objects; in training jittered, without crowds, by the sample's own key.

    Workers run ahead of the batches by two draws each. Nothing here draws from the ambient generators.
    """
    padding = tuple(round(255 * value) for value in scaling.mean)
    asked, given = tee(draws)
    read_in_turn = _read(_InSquares(scenes, jitter, padding), asked, _together, device, num_workers)
    for draw, (squares, targets, truths) in zip(given, read_in_turn, strict=True):
        moved = tuple(
            {name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets
        )
        # uint8 until it is on the device: a quarter of the traffic
        images = scaling.scaled(squares.to(device, non_blocking=True))
        yield SceneBatch(images, moved, tuple(truths), draw.key)


def mixed(
    batches: Iterable[tuple[Draw, ImageBatch]], classes: int, *, mixup: float, cutmix: float
) -> Iterator[ImageBatch]:
    """Batches of training draws blended by mixup or cutmix; the others as they are."""
    for draw, batch in batches:
        if draw.key is None:
            yield batch
            continue
        images, blended = mix(batch.images, batch.labels, draw, classes, mixup=mixup, cutmix=cutmix)
        yield replace(batch, images=images, blended=blended)


@dataclass(frozen=True)
class MaskBatch:
    """Scaled images (B, C, S, S) with the draw's key, (seed, generation, epoch), in training.

    In training ``labels`` are (B, S, S), `IGNORED` where nothing counts; in evaluation those of each image in its own
    size. ``extents`` says how much of its square each image fills, (height, width).
    """

    images: Tensor
    labels: Tensor | tuple[Tensor, ...]
    extents: tuple[tuple[int, int], ...]
    key: tuple[int, ...] | None = None


def from_masks(
    images: MaskedImages,
    draws: Iterable[Draw],
    augment: MaskAugment,
    scaling: Scaling,
    device: torch.device,
    num_workers: int,
) -> Iterator[MaskBatch]:
    """A batch a draw, in their order: random views where a draw has a key, whole images where it has none.

    Padding has the mean colour, which is 0 when scaled.
    """
    read_in_turn = _read(_Views(images, augment), draws, _viewed, device, num_workers)
    for views, key in read_in_turn:
        pictures = torch.stack([view.image for view in views]).to(device, non_blocking=True)
        squares, extents = scaling.scaled(pictures.permute(0, 2, 3, 1)), tuple(view.extent for view in views)
        for image, (high, wide) in zip(squares, extents, strict=True):
            image[:, high:] = 0
            image[:, :, wide:] = 0
        if key is None:
            labels = tuple(view.labels.to(device, non_blocking=True) for view in views)
            yield MaskBatch(squares, labels, extents)
        else:
            together = torch.stack([view.labels for view in views]).to(device, non_blocking=True)
            yield MaskBatch(squares, together, extents, key)


_Request = tuple[int, tuple[int, ...] | None]  # a sample and the key of its augmentation


class _Requests:
    """Draws as the lists of requests that a DataLoader hands to its workers."""

    def __init__(self, draws: Iterable[Draw]) -> None:
        self.draws = draws

    def __iter__(self) -> Iterator[list[_Request]]:
        for draw in self.draws:
            yield [(int(index), draw.key) for index in draw.indices]


def _read(
    samples: Dataset[Any],
    draws: Iterable[Draw],
    collate: Callable[[list[Any]], Any],
    device: torch.device,
    num_workers: int,
) -> Iterator[Any]:
    """What ``collate`` makes of the samples of each draw, in their order; workers run ahead by two draws each."""
    loader = DataLoader(
        samples,
        batch_sampler=_Requests(draws),
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader would draw a seed for its workers from the ambient one
    )
    for read in loader:
        if isinstance(read, str):  # an error crosses processes as text: its message stays one line
            raise BrokenData(read)
        yield read


class _Views(Dataset["tuple[View, tuple[int, ...] | None] | str"]):
    def __init__(self, images: MaskedImages, augment: MaskAugment) -> None:
        self.images, self.augment = images, augment

    def __getitem__(self, request: tuple[int, tuple[int, ...] | None]) -> tuple[View, tuple[int, ...] | None] | str:
        index, key = request
        try:
            image, labels = self.images.pair(index)
        except (ValueError, OSError) as error:
            return str(error)
        if key is None:
            return whole(image, labels, self.augment.size), None
        return varied(image, labels, self.augment, key, index), key


def _viewed(
    samples: list[tuple[View, tuple[int, ...] | None] | str],
) -> tuple[list[View], tuple[int, ...] | None] | str:
    views, key = [], None
    for sample in samples:
        if isinstance(sample, str):
            return sample
        view, key = sample
        views.append(view)
    return views, key


class _Transformed(Dataset[tuple[Tensor, int] | str]):
    def __init__(self, items: Items, training: Callable[[Pixels], Tensor], plain: Callable[[Pixels], Tensor]) -> None:
        self.items, self.training, self.plain = items, training, plain

    def __getitem__(self, request: _Request) -> tuple[Tensor, int] | str:
        index, key = request
        try:
            pixels = self.items.image(index)
        except (ValueError, OSError) as error:
            return str(error)
        if key is None:
            return self.plain(pixels), int(self.items.labels[index])
        with seeded(word_of(key, index)):
            return self.training(pixels), int(self.items.labels[index])


def _collated(samples: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor] | str:
    read = []
    for sample in samples:
        if isinstance(sample, str):
            return sample
        read.append(sample)
    return torch.stack([image for image, _ in read]), torch.tensor([label for _, label in read])


_Square = tuple[Tensor, dict[str, Tensor] | None, Placed | None]


class _InSquares(Dataset[_Square | str]):
    def __init__(self, scenes: Scenes, jitter: LargeScaleJitter, padding: tuple[int, ...]) -> None:
        self.scenes, self.jitter, self.padding = scenes, jitter, padding

    def __getitem__(self, request: _Request) -> _Square | str:
        index, key = request
        try:
            pixels, instances = self.scenes.scene(index)
        except (ValueError, OSError) as error:
            return str(error)
        height, width = pixels.shape[:2]
        where = self.jitter.place(height, width, key, index)
        if key is None:
            nothing = instances.picked(np.zeros(0, dtype=np.int64))
            square, _ = placed(pixels, nothing, where, self.padding)
            return torch.from_numpy(square), None, Placed(height, width, instances, where)
        square, left = placed(pixels, instances.picked(~instances.crowd), where, self.padding)
        target = {
            "boxes": torch.from_numpy(left.boxes.astype(np.float64)),
            "labels": torch.from_numpy(left.labels),
            "masks": torch.from_numpy(np.ascontiguousarray(left.masks)),
        }
        return torch.from_numpy(square), target, None


def _together(samples: list[_Square | str]) -> tuple[Tensor, list[dict[str, Tensor]], list[Placed]] | str:
    squares, targets, truths = [], [], []
    for sample in samples:
        if isinstance(sample, str):
            return sample
        square, target, truth = sample
        squares.append(square)
        targets += [] if target is None else [target]
        truths += [] if truth is None else [truth]
    return torch.stack(squares), targets, truths
