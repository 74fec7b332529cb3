"""Labels that are drawn: as many as asked for, always the same ones, in the training part alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from llf_ray.config import SettingError
from llf_ray.data import FashionSample, Folder
from llf_ray.data.mislabel import Relabelled, drawn_labels
from llf_ray.data.order import Draw
from llf_ray.tasks.classification import tiny

CPU = torch.device("cpu")


def test_a_share_is_drawn_and_one_in_ten_draws_is_right_by_accident():
    labels = np.arange(50_000) % 10
    drawn, replaced = drawn_labels(labels, 10, 0.1, 3)
    assert np.array_equal(drawn[~replaced], labels[~replaced])
    assert replaced.mean() == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 50_000) ** 0.5)
    assert (drawn == labels)[replaced].mean() == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / replaced.sum()) ** 0.5)
    counts = np.bincount(drawn[replaced], minlength=10)
    assert (abs(counts - replaced.sum() / 10) < 5 * (replaced.sum() / 10) ** 0.5).all()


def test_a_draw_depends_on_seed_and_place_alone():
    labels = np.arange(200) % 10
    drawn, replaced = drawn_labels(labels, 10, 0.3, 0)
    shorter, fewer = drawn_labels(labels[:50], 10, 0.3, 0)
    assert np.array_equal(shorter, drawn[:50])
    assert np.array_equal(fewer, replaced[:50])
    assert not np.array_equal(drawn_labels(labels, 10, 0.3, 1)[1], replaced)
    assert drawn_labels(labels, 10, 0.1, 0)[1][~replaced].sum() == 0, "a smaller share is a part of a larger one"
    assert not drawn_labels(labels, 10, 0.0, 0)[1].any()
    assert drawn_labels(labels, 10, 1.0, 0)[1].all()


def labels_of(task, role, number):
    draws = [Draw(np.arange(start, min(start + 16, number))) for start in range(0, number, 16)]
    return torch.cat([task.pairs(batch)[1] for batch in task.batches(role, draws, CPU)]).numpy()


def test_only_training_labels_are_touched_and_the_task_knows_which():
    task = replace(tiny, data=FashionSample(num_train=400, num_held_out=50), mislabelled=0.25, mislabelled_seed=4)
    task.prepare()
    truth = np.arange(400) % 10
    found = labels_of(task, "train", 400)
    assert np.array_equal(found, drawn_labels(truth, 10, 0.25, 4)[0])
    assert np.array_equal(found != truth, task.replaced() & (found != truth))
    assert 0.6 < (found != truth).sum() / task.replaced().sum() < 1
    for role in ("validation", "test"):
        assert np.array_equal(labels_of(task, role, 50), np.arange(50) % 10)
    assert np.array_equal(labels_of(replace(task, mislabelled=0.0), "train", 400), truth), "the data are as they were"


def test_images_stay_with_files_whose_labels_are_drawn(tmp_path):
    for number in range(24):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * number, dtype=np.uint8)).save(path)
    data = Folder(root=str(tmp_path), validation=0.2, test=0.2)
    task = replace(tiny, data=data, mislabelled=1.0)
    items = task._items("train")
    assert isinstance(items, Relabelled)
    assert np.array_equal(items.image(3), data.load("train").image(3))
    assert not np.array_equal(items.labels, data.load("train").labels)


def test_an_impossible_share_is_said():
    with pytest.raises(SettingError, match=r"mislabelled = 1\.5: must be >= 0"):
        replace(tiny, mislabelled=1.5)
