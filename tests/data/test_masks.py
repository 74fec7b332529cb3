"""Images with masks: the layouts of published sets, random views of them, and what is said of broken ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from llf_ray.config import SettingError
from llf_ray.data import Ade20k, CamVid, FashionMasks, FashionOnPhotographs, MaskAugment, MaskFolder
from llf_ray.data.augment import Scaling
from llf_ray.data.base import ROLES, BrokenData
from llf_ray.data.loading import from_masks
from llf_ray.data.mask_augment import distorted, fitted, varied, whole
from llf_ray.data.masks import IGNORED, MaskStack
from llf_ray.data.order import Draw

CPU = torch.device("cpu")
PLAIN = Scaling(mean=(0.5,) * 3, std=(0.25,) * 3)


def draw(image: Path, mask: Path, ids: np.ndarray, *, mode: str = "L") -> None:
    """A picture whose red is ten times the id of the pixel below it, and its mask."""
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.stack([10 * ids, 0 * ids, 0 * ids], 2).astype(np.uint8)
    Image.fromarray(colours).save(image, quality=100, subsampling=0)
    picture = Image.fromarray(ids.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        picture.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
    picture.save(mask)


def camvid(root: Path) -> CamVid:
    for part, count in (("train", 6), ("val", 2), ("test", 3)):
        for index in range(count):
            ids = np.full((6, 8), index)
            ids[0, 0] = 11
            draw(root / part / f"f_{index}.jpg", root / f"{part}annot" / f"f_{index}.png", ids)
    return CamVid(root=str(root))


def ade20k(root: Path, *, names: bool = True) -> Ade20k:
    for part, count in (("training", 20), ("validation", 3)):
        for index in range(count):
            ids = np.full((5, 7), index + 1)
            ids[:, 0], ids[4, 6] = 0, 150
            name = f"ADE_{part}_{index:08}"
            draw(root / "images" / part / f"{name}.jpg", root / "annotations" / part / f"{name}.png", ids)
    if names:
        rows = [f"{n}\t0.1\t11\t12\t{'wall' if n == 1 else f'thing {n}, stuff'}" for n in range(1, 151)]
        (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    return Ade20k(root=str(root), validation=0.2)


def folder(root: Path, parts: tuple[str, ...] = ("train", "val", "test"), **settings) -> MaskFolder:
    for part in parts:
        for index in range(10):
            ids = np.arange(12).reshape(3, 4) % 3
            ids[0, 0] = 255
            name = f"{part.strip('.') or 'all'}{index}"
            draw(root / part / "images" / f"{name}.png", root / part / "masks" / f"{name}.png", ids, mode="P")
    return MaskFolder(root=str(root), names=("a", "b", "c"), **settings)


def test_camvid_is_read_as_it_is_distributed(tmp_path):
    data = camvid(tmp_path)
    data.check()
    parts = {role: data.load(role) for role in ROLES}
    assert [len(parts[role]) for role in ROLES] == [6, 2, 3]
    assert data.classes()[8:] == ("Car", "Pedestrian", "Bicyclist")
    image, labels = parts["train"].pair(4)
    assert image.shape == (6, 8, 3)
    assert labels.dtype == np.uint8
    assert labels[0, 0] == IGNORED
    assert set(labels.ravel()[1:]) == {4}
    assert abs(int(image[3, 3, 0]) - 40) < 5, "the image of that mask"


def test_few_images_of_a_film_are_spread_over_it(tmp_path):
    camvid(tmp_path)
    few = CamVid(root=str(tmp_path), num_train=3).load("train")
    assert [path.stem for path in few.images] == ["f_0", "f_2", "f_4"]


def test_ade20k_is_read_as_it_is_distributed(tmp_path):
    data = ade20k(tmp_path)
    data.check()
    parts = {role: data.load(role) for role in ROLES}
    assert [len(parts[role]) for role in ROLES] == [16, 4, 3]
    assert not {path.name for path in parts["train"].images} & {path.name for path in parts["validation"].images}
    assert all("validation" in path.name for path in parts["test"].images), "the official validation part is our test"
    labels = parts["test"].pair(2)[1]
    assert labels[0, 0] == IGNORED
    assert labels[0, 1] == 2, "ids count from 1"
    assert labels[4, 6] == 149
    assert data.classes()[:2] == ("wall", "thing 2")
    assert len(data.classes()) == 150


def test_ade20k_without_its_table_has_numbers_for_names(tmp_path):
    assert ade20k(tmp_path, names=False).classes()[149] == "class 150"


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (("train", "val", "test"), [10, 10, 10]),
        (("train", "test"), [8, 2, 10]),
        (("train", "val"), [8, 2, 10]),
        ((".",), [7, 1, 2]),
    ],
)
def test_a_folder_of_masks_gives_three_roles(tmp_path, parts, sizes):
    data = folder(tmp_path, parts)
    data.check()
    files = [data.load(role) for role in ROLES]
    assert [len(one) for one in files] == sizes
    names = [path for one in files for path in one.images]
    assert len(set(names)) == len(names), "roles share nothing"
    assert files[0].pair(0)[1].tolist() == [[255, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]]


def test_masks_may_have_ids_of_sixteen_bits(tmp_path):
    for name in "abcd":
        files = tmp_path / f"images/{name}.png", tmp_path / f"masks/{name}.png"
        draw(*files, np.array([[0, 1], [1000, 2]]), mode="I;16")
    data = MaskFolder(root=str(tmp_path), names=("a", "b", "c"), ignored=(1000,))
    data.check()
    assert data.load("train").labels(1).tolist() == [[0, 1], [255, 2]]


def test_the_bundled_masks_are_where_the_clothes_are():
    data = FashionMasks(pictures=FashionOnPhotographs(light=0.0, num_train=200, num_held_out=20))
    scenes = data.load("train")
    image, labels = scenes.pair(13)
    assert set(labels.ravel()) == {0, 4}, "item 13 is a dress"
    assert data.classes()[4] == "dress"
    # in the dark a pixel as bright as half a fade is clothing, and what is less so fades by up to its square
    np.testing.assert_array_equal(labels > 0, image[..., 0] >= 8)
    covered = (scenes.labels > 0).mean()
    assert 0.1 < covered < 0.5
    assert set(np.unique(FashionMasks(pictures=data.pictures, kinds=False).load("test").labels)) == {0, 1}


def test_real_camvid_is_whole(shared_data):
    data = CamVid()
    assert [len(data.load(role)) for role in ROLES] == [367, 101, 233]
    image, labels = data.load("test").pair(5)
    assert image.shape[:2] == labels.shape
    assert set(np.unique(labels)) <= {*range(11), IGNORED}


# ------------------------------------------------------------------------------------------------------- broken input


def broken(root: Path, what: str) -> MaskFolder:
    data = folder(root)
    image, mask = root / "val/images/val3.png", root / "val/masks/val3.png"
    if what == "missing":
        mask.rename(mask.with_name("val_3.png"))
    elif what == "size":
        Image.new("L", (5, 3)).save(mask)
    elif what == "id":
        Image.fromarray(np.full((3, 4), 7, dtype=np.uint8)).save(mask)
    elif what == "colour":
        Image.new("RGB", (4, 3)).save(mask)
    elif what == "image":
        image.write_bytes(b"no image")
    elif what == "mask":
        mask.write_bytes(mask.read_bytes()[:60])
    elif what == "empty":
        for path in (root / "val/images").iterdir():
            path.unlink()
    return data


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("missing", r"val3\.png does not exist.*1 have none; nearest is 'val_3\.png'"),
        ("size", r"masks/val3\.png has 5x3 pixels, but its image .*val3\.png has 4x3"),
        ("id", r"masks/val3\.png has the id 7: ids are 0 to 2, 255 \(12 of 12 pixels"),
        ("colour", r"masks/val3\.png is no mask: its pixels \(RGB\) are no ids"),
        ("image", r"images/val3\.png cannot be read as an image"),
        ("mask", r"masks/val3\.png cannot be read as an image"),
        ("empty", r"val/images has no images"),
    ],
)
def test_what_is_broken_is_named_in_one_line_before_a_run(tmp_path, what, complaint):
    with pytest.raises((ValueError, FileNotFoundError), match=complaint) as found:
        broken(tmp_path, what).check()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_later_ends_the_batches_by_its_name(tmp_path, workers):
    scenes = broken(tmp_path, "size").load("validation")
    draws = [Draw(np.arange(2)), Draw(np.arange(2, 5))]
    found = from_masks(scenes, draws, MaskAugment(size=8), PLAIN, CPU, workers)
    next(found)
    with pytest.raises(BrokenData, match=r"val3\.png has 5x3 pixels"):
        next(found)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"names": ("a",)}, "2 to 255 classes, each once"),
        ({"names": ("a", "a")}, "each once"),
        ({"names": ("a", "b"), "ignored": (1,)}, "1 is the id of 'b'"),
        ({"names": ("a", "b"), "ignored": (-1,)}, "0 to 65535"),
        ({"names": ("a", "b"), "validation": 0.6, "test": 0.4}, "must leave some"),
    ],
)
def test_settings_of_a_folder_that_cannot_be(settings, complaint):
    with pytest.raises(SettingError, match=complaint):
        MaskFolder(root="x", **settings)


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": 8, "scale": (2.0, 1.0)}, {"size": 8, "flip": 1.5}])
def test_settings_of_views_that_cannot_be(settings):
    with pytest.raises(SettingError):
        MaskAugment(**settings)


# ------------------------------------------------------------------------------------------------------- random views


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray]:
    """An image whose red is 40 times its label, in blocks of 10 x 10 pixels, each with a label other than its
    neighbours'.
    """
    rows, columns = np.divmod(np.arange(60 * 80).reshape(60, 80), 80)
    labels = ((rows // 10 + 2 * (columns // 10)) % 5).astype(np.uint8)
    image = np.stack([40 * labels, columns, rows], 2).astype(np.uint8)
    return image, labels


def test_a_view_depends_on_seed_generation_epoch_and_sample_alone(scene):
    augment = MaskAugment(size=32)
    first = varied(*scene, augment, (0, 0, 0), 5)
    torch.manual_seed(1)
    again = varied(*scene, augment, (0, 0, 0), 5)
    assert torch.equal(first.image, again.image)
    for key, index in (((1, 0, 0), 5), ((0, 1, 0), 5), ((0, 0, 1), 5), ((0, 0, 0), 6)):
        other = varied(*scene, augment, key, index)
        assert not torch.equal(first.image, other.image)


def test_batches_and_workers_change_no_view(scene):
    image, labels = scene
    scenes = MaskStack(*(np.stack([one, one[::-1], one[:, ::-1]]) for one in (image, labels)))
    augment = MaskAugment(size=24)
    key = (3, 0, 2)
    (three,) = from_masks(scenes, [Draw(np.arange(3), key)], augment, PLAIN, CPU, 0)
    single = list(from_masks(scenes, [Draw(np.array([i]), key) for i in range(3)], augment, PLAIN, CPU, 1))
    assert torch.equal(three.images, torch.cat([batch.images for batch in single]))
    assert torch.equal(three.labels, torch.cat([batch.labels for batch in single]))
    assert three.key == key


def test_labels_stay_with_their_pixels(scene):
    """Inside of blocks, where nothing is interpolated, red still says the label, whatever the view."""
    augment = MaskAugment(size=40, colour=0.0)
    seen = 0
    for index in range(20):
        view = varied(*scene, augment, (0, 0, 0), index)
        labels = view.labels.float()[None, None]
        inner = (-F.max_pool2d(-labels, 5, 1, 2) == F.max_pool2d(labels, 5, 1, 2))[0, 0] & (view.labels != IGNORED)
        inner[[0, 1, -2, -1]], inner[:, [0, 1, -2, -1]] = False, False  # the image goes on there
        assert ((view.image[0].int() - 40 * view.labels).abs()[inner] <= 1).all()
        seen += int(inner.sum())
    assert seen > 2000


def test_what_a_view_adds_is_ignored_and_of_the_mean_colour(scene):
    augment = MaskAugment(size=64, scale=(0.5, 0.5), colour=0.0)
    scenes = MaskStack(scene[0][None], scene[1][None])
    (batch,) = from_masks(scenes, [Draw(np.array([0]), (0, 0, 0))], augment, PLAIN, CPU, 0)
    assert batch.extents == ((32, 43),)
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[:32, :43] = False
    assert (batch.labels[0][outside] == IGNORED).all()
    assert (batch.labels[0][~outside] != IGNORED).all()
    assert (batch.images[0][:, outside] == 0).all()


def test_scales_and_mirrors_are_drawn_evenly(scene):
    """Red is flat here, so the width of a block says the factor, and the order of columns the mirror."""
    augment = MaskAugment(size=60, scale=(0.5, 1.0), colour=0.0)
    sizes, mirrored = [], 0
    for index in range(300):
        view = varied(*scene, augment, (0, 0, 0), index)
        sizes.append(view.extent[0] / 60)
        first, last = (int(view.image[1, 0, column]) for column in (0, view.extent[1] - 1))
        mirrored += first > last
    assert np.quantile(sizes, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx([0.5, 0.625, 0.75, 0.875, 1.0], abs=0.04)
    assert 0.4 < mirrored / 300 < 0.6


def test_crops_that_one_class_fills_are_drawn_again():
    """Two thirds of the image are of one class: a blind crop would be of it alone as often as not."""
    labels = np.zeros((60, 180), dtype=np.uint8)
    labels[:, 120:] = 1
    image = np.zeros((60, 180, 3), dtype=np.uint8)
    share = {}
    for most in (0.75, 1.0):
        augment = MaskAugment(size=60, scale=(1.0, 1.0), most_of_one=most, colour=0.0)
        views = [varied(image, labels, augment, (0, 0, 0), index).labels for index in range(100)]
        share[most] = np.mean([float(view.float().mean()) % 1 != 0 for view in views])
    # one crop in four is mixed enough, and in ten tries 94 of 100 are found; with 1.0 any that is mixed will do
    assert share[0.75] > 0.85
    assert share[1.0] > 0.95
    blind = varied(image, labels, MaskAugment(size=60, scale=(1.0, 1.0), colour=0.0), (0, 0, 0), 0)
    counts = np.bincount(blind.labels.numpy().ravel(), minlength=2) / 3600
    assert counts.max() < 0.75


def test_distortion_keeps_to_its_strength():
    picture = torch.full((3, 4, 4), 120, dtype=torch.uint8)
    picture[0] += 20
    numbers = np.random.default_rng(0).random((200, 9))
    assert torch.equal(distorted(picture, 0.0, numbers[0]), picture)
    untouched = sum(torch.equal(distorted(picture, 1.0, row), picture) for row in numbers)
    assert 5 < untouched < 60, "one in sixteen, or a little more where rounding hides a change"
    brightness = numbers.copy()
    brightness[:, 0], brightness[:, 1:4] = 0.0, 1.0  # brightness alone
    levels = [float(distorted(picture, 1.0, row)[1, 0, 0]) / 120 for row in brightness]
    assert min(levels) == pytest.approx(0.875, abs=0.02)
    assert max(levels) == pytest.approx(1.125, abs=0.02)


def test_a_whole_image_fills_its_square_with_the_longer_side(scene):
    view = whole(*scene, 40)
    assert view.extent == (30, 40)
    assert (view.image[:, 30:] == 0).all()
    assert view.labels.shape == (60, 80)
    tall = whole(scene[0].transpose(1, 0, 2), scene[1].T, 40)
    assert tall.extent == (40, 30)


def test_scores_go_back_to_the_images_own_size():
    """A plane stays the same plane: what is said of the padding does not come in."""
    scores = torch.linspace(0, 1, 40)[None, None, :].expand(1, 40, 40).clone()
    scores[:, 30:] = 100.0
    back = fitted(scores, (30, 40), (60, 80))
    assert back.shape == (1, 60, 80)
    expected = F.interpolate(torch.linspace(0, 1, 40)[None, None], size=80, mode="linear")[0, 0]
    torch.testing.assert_close(back[0], expected.expand(60, 80))
