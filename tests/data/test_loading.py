"""Augmentation belongs to the sample: batches, workers and the ambient generators do not matter."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from llf_ray.config import SettingError
from llf_ray.data import Augment, FashionSample, TimmAugment
from llf_ray.data.augment import Scaling, mix, seeded, shift_and_flip, timm_transform
from llf_ray.data.base import Stack
from llf_ray.data.loading import from_files, from_memory
from llf_ray.data.order import Draw

CPU = torch.device("cpu")
KEY = (3, 1, 2)
HALF = Scaling(mean=(0.5,), std=(0.5,))
STRONG = TimmAugment(size=24, policy="rand-m9-mstd0.5-inc1", erase=0.5, scale=(0.3, 1.0), flip=0.5, vertical_flip=0.3)


def memory(draws, augment=None):
    augment = augment or Augment(shift=3, flip=0.5)
    batches = from_memory(FashionSample(num_train=60).load("train"), draws, augment, HALF, CPU)
    return torch.cat([batch.images for batch in batches])


def files(draws, num_workers=0, augment=STRONG):
    items = FashionSample(num_train=60).load("train")
    training, plain = (timm_transform(augment, HALF, 1, training=flag) for flag in (True, False))
    return torch.cat([batch.images for batch in from_files(items, draws, training, plain, CPU, num_workers)])


def draws_of(indices, size, key=KEY):
    return [Draw(indices[start : start + size], key) for start in range(0, len(indices), size)]


@pytest.mark.parametrize("read", [memory, files], ids=["memory", "files"])
def test_a_samples_augmentation_does_not_depend_on_its_batch(read):
    indices = np.random.default_rng(0).permutation(60)[:24]
    together = read(draws_of(indices, 24))
    assert torch.equal(read(draws_of(indices, 5)), together)
    assert torch.equal(read(draws_of(indices[::-1].copy(), 7)), together.flip(0))


def test_a_samples_augmentation_does_not_depend_on_the_workers():
    indices = np.arange(20)
    alone = files(draws_of(indices, 4))
    assert torch.equal(files(draws_of(indices, 4), num_workers=2), alone)


@pytest.mark.parametrize("read", [memory, files], ids=["memory", "files"])
def test_augmentation_differs_by_seed_generation_and_epoch_only(read):
    indices = np.arange(12)
    first = read(draws_of(indices, 12))
    assert torch.equal(read(draws_of(indices, 12)), first)
    for key in ((4, 1, 2), (3, 2, 2), (3, 1, 3)):
        assert not torch.equal(read(draws_of(indices, 12, key)), first)


@pytest.mark.parametrize("read", [memory, files], ids=["memory", "files"])
def test_without_a_key_images_are_not_augmented(read):
    indices = np.arange(12)
    assert torch.equal(read(draws_of(indices, 12, None)), read(draws_of(indices, 5, None)))
    if read is memory:
        images = FashionSample().load("train").images[:12]
        expected = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        assert torch.allclose(memory(draws_of(indices, 12, None)), expected, atol=1e-6)


@pytest.mark.parametrize("read", [memory, files], ids=["memory", "files"])
def test_reading_leaves_the_ambient_generators_alone(read):
    def ambient():
        return random.random(), np.random.random(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = ambient()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    read(draws_of(np.arange(6), 3))
    assert ambient() == expected


def test_shifts_and_mirror_images_are_what_a_slow_loop_makes():
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 9, 7, 3), dtype=np.uint8))
    draw = Draw(np.arange(40), KEY)
    changed = shift_and_flip(pictures, draw, Augment(shift=2, flip=0.5))
    kinds = set()
    for before, after in zip(pictures.numpy(), changed.numpy(), strict=True):
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)))
        candidates = {
            (top, left, flip): (padded[:, ::-1] if flip else padded)[top : top + 9, left : left + 7]
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
        }
        matches = [place for place, candidate in candidates.items() if np.array_equal(candidate, after)]
        assert len(matches) == 1
        kinds.add(matches[0])
    assert len(kinds) > 20
    assert sum(flip for _, _, flip in kinds) > 8


def test_a_seeded_stretch_repeats_and_ends():
    with seeded(7):
        first = random.random(), np.random.random(), torch.rand(1).item()
    with seeded(7):
        assert (random.random(), np.random.random(), torch.rand(1).item()) == first


def test_a_broken_image_is_one_clear_error_also_from_a_worker():
    class Broken:
        labels = np.zeros(4, np.int64)

        def image(self, index):
            raise ValueError("pictures/cat.png cannot be read as an image: cut off")

    plain = timm_transform(TimmAugment(size=8), HALF, 1, training=False)
    for num_workers in (0, 1):
        with pytest.raises(ValueError, match=r"^pictures/cat\.png cannot be read as an image: cut off$"):
            next(from_files(Broken(), draws_of(np.arange(4), 2), plain, plain, CPU, num_workers))


def test_images_of_different_sizes_go_through_timms_transforms():
    class Mixed:
        labels = np.arange(6) % 2

        def image(self, index):
            return np.asarray(Image.new("RGB", (20 + 7 * index, 30), (index, 0, 0)))

    scaling = Scaling(mean=(0.0,) * 3, std=(1.0,) * 3)
    augment = TimmAugment(size=16)
    training, plain = (timm_transform(augment, scaling, 3, training=flag) for flag in (True, False))
    (batch,) = from_files(Mixed(), [Draw(np.arange(6), KEY)], training, plain, CPU, 0)
    assert batch.images.shape == (6, 3, 16, 16)
    assert torch.allclose(batch.images[:, 0].mean((1, 2)) * 255, torch.arange(6.0), atol=0.01)
    assert batch.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_a_stretched_image_is_wholly_seen_whatever_its_shape():
    """As the code of Zhou et al. treats its images: to 256 x 256, then a crop of 224; by torchvision's transforms."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 90, 3), dtype=np.uint8)
    augment = TimmAugment(size=28, stretch=32, interpolation="bilinear")
    scaling = Scaling(mean=(0.0,) * 3, std=(1.0,) * 3)
    small = functional.resize(Image.fromarray(pixels), [32, 32])
    plain = timm_transform(augment, scaling, 3, training=False)(pixels)
    assert torch.equal(plain, functional.to_tensor(small)[:, 2:30, 2:30])
    training = timm_transform(replace(augment, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0), scaling, 3, training=True)
    whole = functional.to_tensor(functional.resize(small, [28, 28]))
    assert torch.equal(training(pixels), whole)
    assert not torch.equal(timm_transform(replace(augment, stretch=None), scaling, 3, training=False)(pixels), plain)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_images_carry_their_share_of_each_class(mixup, cutmix):
    # class c is a picture of constant brightness c: the blended target must predict the picture's mean
    labels = torch.tensor([0, 1, 2, 3])
    images = labels.float()[:, None, None, None].expand(4, 1, 8, 8)
    seen = set()
    for epoch in range(20):
        draw = Draw(np.arange(4), (0, 0, epoch))
        blended_images, target = mix(images, labels, draw, 4, mixup=mixup, cutmix=cutmix)
        assert torch.allclose(target.sum(1), torch.ones(4))
        assert torch.allclose(blended_images.mean((1, 2, 3)), target @ torch.arange(4.0), atol=1e-6)
        again, _ = mix(images, labels, draw, 4, mixup=mixup, cutmix=cutmix)
        assert torch.equal(again, blended_images)
        seen.add(round(float(target[0, 0]), 6))
    assert len(seen) > 5


def test_a_stack_gives_the_rows_that_are_asked_for():
    stack = Stack(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), np.arange(10))
    draws = [Draw(np.array([3, 1])), Draw(np.array([9]))]
    batches = list(from_memory(stack, draws, Augment(), Scaling(mean=(0.0,), std=(1.0,)), CPU))
    assert [batch.labels.tolist() for batch in batches] == [[3, 1], [9]]
    assert [torch.round(batch.images * 255).flatten().tolist() for batch in batches] == [[3, 1], [9]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augment(shift=-1), "shift = -1"),
        (lambda: Augment(flip=1.5), "flip = 1.5"),
        (lambda: TimmAugment(size=0), "size = 0"),
        (lambda: TimmAugment(size=8, stretch=0), "stretch = 0"),
        (lambda: TimmAugment(size=8, scale=(1.0, 0.5)), "scale = "),
        (lambda: TimmAugment(size=8, policy="random"), "policy = 'random'"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()
