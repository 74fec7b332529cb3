"""Batches in the order of the draws: straight from memory, or through torch's DataLoader with worker
processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llf_ray.data.augment import Augment, Scaling, mix, seeded, shift_and_flip, word_of
from llf_ray.data.base import BrokenData, Items, Pixels, Stack
from llf_ray.data.order import Draw

__all__ = ["ImageBatch", "from_files", "from_memory", "mixed"]


@dataclass(frozen=True)
class ImageBatch:
    """Scaled images (B, C, H, W), their classes (B,), blended classes (B, classes) where images were mixed, and the
    draw's key, (seed, generation, epoch), in training.
    """

    images: Tensor
    labels: Tensor
    blended: Tensor | None = None
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
    loader = DataLoader(
        _Transformed(items, training, plain),
        batch_sampler=_Requests(draws),
        num_workers=num_workers,
        collate_fn=_collated,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader would draw a seed for its workers from the ambient one
    )
    for read in loader:
        if isinstance(read, str):  # an error crosses processes as text: its message stays one line
            raise BrokenData(read)
        images, labels = read
        yield ImageBatch(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))


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


_Request = tuple[int, tuple[int, ...] | None]  # a sample and the key of its augmentation


class _Requests:
    """Draws as the lists of requests that a DataLoader hands to its workers."""

    def __init__(self, draws: Iterable[Draw]) -> None:
        self.draws = draws

    def __iter__(self) -> Iterator[list[_Request]]:
        for draw in self.draws:
            yield [(int(index), draw.key) for index in draw.indices]


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
