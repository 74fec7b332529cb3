"""Images of one's own reach an exported network as test images reached it in training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llf_ray.config import SettingError
from llf_ray.data.augment import Augment, Scaling, TimmAugment
from llf_ray.data.base import read_image
from llf_ray.data.folder import Folder
from llf_ray.data.order import Draw
from llf_ray.data.preparation import Preparation
from llf_ray.tasks.classification import Classification, SmallResNet

GREY = Scaling(mean=(0.3,), std=(0.2,))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of pictures of all shapes."""
    random = np.random.default_rng(0)
    for number in range(24):
        high, wide = random.integers(20, 70, 2)
        pixels = random.integers(0, 256, (high, wide, 3), dtype=np.uint8)
        (tmp_path / f"class{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"class{number % 2}" / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "augment",
    [
        Augment(size=32, shift=2, flip=0.5),
        TimmAugment(size=32),
        TimmAugment(size=24, crop=1.0, interpolation="bilinear"),
        TimmAugment(size=16, stretch=40, interpolation="random"),
    ],
    ids=str,
)
def test_images_are_prepared_as_the_runs_test_images_are(augment: Any, channels: int, pictures: Path) -> None:
    data = Folder(root=str(pictures), channels=channels)
    task = Classification(model=SmallResNet(widths=(4,), blocks=(1,)), data=data, augment=augment)
    (batch,) = task.batches("test", [Draw(np.arange(task.num_items("test")))], torch.device("cpu"))
    prepared = Preparation.of(augment, task.scaling(), tuple(task.example().shape[1:]))
    plain = json.loads(json.dumps(dataclasses.asdict(prepared)))
    prepared = Preparation(**{**plain, "mean": tuple(plain["mean"]), "std": tuple(plain["std"])})
    transform, paths = prepared.transform(), data.load("test").paths
    assert len(paths) == len(batch.images) > 3
    for path, image in zip(paths, batch.images, strict=True):
        assert torch.equal(transform(read_image(path, channels)), image)


def test_a_prepared_image_can_be_shown_as_it_was() -> None:
    prepared = Preparation.of(Augment(), GREY, (1, 8, 8))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    assert np.array_equal(prepared.pictured(prepared.transform()(pixels)), pixels)


def test_images_that_are_no_squares_must_have_the_networks_size() -> None:
    prepared = Preparation.of(Augment(), GREY, (1, 6, 8))
    assert prepared.resize == "none"
    assert prepared.transform()(np.zeros((6, 8, 1), np.uint8)).shape == (1, 6, 8)
    with pytest.raises(ValueError, match="has 8 x 8 pixels, and the network takes 6 x 8 pixels"):
        prepared.transform()(np.zeros((8, 8, 1), np.uint8))


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(SettingError, match=r"mean = \(0\.5,\): one number for each of the 3 channels"):
        Preparation(channels=3, height=8, width=8, mean=(0.5,), std=(0.5,) * 3)
    with pytest.raises(SettingError, match="resize = 'square': makes squares, and the network takes 6 x 8 pixels"):
        Preparation(channels=1, height=6, width=8, mean=(0.5,), std=(0.5,))
