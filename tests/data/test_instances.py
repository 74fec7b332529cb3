"""Images with objects: each layout in a few files, real ones where they are, and squares that keep what is in them."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coder
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from llf_ray.config import SettingError
from llf_ray.data import Coco, Coco128, FashionScenes, LargeScaleJitter, Nuclei
from llf_ray.data.augment import Scaling
from llf_ray.data.base import ROLES, BrokenData
from llf_ray.data.instances import Instances, boxes_around, packed
from llf_ray.data.jitter import Placement, placed
from llf_ray.data.loading import from_scenes
from llf_ray.data.order import Draw

CPU = torch.device("cpu")
CATEGORIES = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}]  # numbers with gaps, in no order


def annotation(number, image, box, category=1, shape=None, crowd=0):
    x, y, w, h = box
    shape = shape or [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": list(box), "segmentation": shape,
        "iscrowd": crowd, "area": w * h,
    }  # fmt: skip


def write_part(root, part, annotations, number=10, size=(20, 12)):
    """``number`` images of one grey level each, twice their id."""
    folder = root / f"{part}2017"
    folder.mkdir(parents=True)
    images = []
    for image in range(1, number + 1):
        name = f"{image:012}.jpg"
        Image.new("RGB", size, (2 * image,) * 3).save(folder / name, quality=100)
        images.append({"id": image, "file_name": name, "width": size[0], "height": size[1]})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    path = root / "annotations" / f"instances_{part}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def coco(tmp_path):
    runs = [2 * 12, 4, 20 * 12 - 2 * 12 - 4]  # column by column: the first four pixels of the third column
    crowd = {"counts": runs, "size": [12, 20]}
    packed_crowd = coder.frPyObjects(crowd, 12, 20)
    packed_crowd["counts"] = packed_crowd["counts"].decode()
    train = [annotation(n, n, (2, 1, 10, 6), category=1 + 2 * (n % 2)) for n in range(1, 10)]
    train += [annotation(50, 1, (2, 0, 1, 4), shape=crowd, crowd=1), annotation(51, 1, (0, 0, 0, 5))]
    write_part(tmp_path, "train", train)
    shape = [[0, 0, 4, 0, 4, 4, 0, 4], [8, 0, 12, 0, 12, 4, 8, 4]]
    val = [annotation(1, 2, (0, 0, 12, 4), shape=shape), annotation(2, 2, (2, 0, 1, 4), shape=packed_crowd, crowd=1)]
    write_part(tmp_path, "val", val, number=3)
    return Coco(root=str(tmp_path), validation=0.2)


def test_coco_is_read_as_it_is_distributed(coco):
    assert coco.classes() == ("person", "car")
    train, validation, test = (coco.load(role) for role in ROLES)
    assert [len(validation), len(test)] == [2, 3]
    assert len(train) in (7, 8), "images without an object are not learned from"
    assert not {path.name for path in train.paths} & {path.name for path in validation.paths}
    for index, path in enumerate(train.paths):
        pixels, found = train.scene(index)
        number = int(path.stem)
        assert pixels.shape == (12, 20, 3)
        assert abs(int(pixels[0, 0, 0]) - 2 * number) <= 1
        assert found.labels.tolist() == [number % 2], "neither the crowd nor the box without width"
        assert found.boxes.tolist() == [[2, 1, 12, 7]]
        assert found.area.tolist() == [60]
        assert np.array_equal(boxes_around(found.masks), found.boxes)
        assert np.array_equal(train.labels_in(index), found.labels)
    _, found = test.scene(1)
    assert found.crowd.tolist() == [False, True]
    assert [mask.sum() for mask in found.masks] == [32, 4], "two polygons are one object, run lengths another"
    assert found.masks[1][:4, 2].all()
    assert len(test.scene(0)[1]) == 0
    coco.check()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (annotation(7, 99, (1, 1, 2, 2)), r"instances_val2017.json: annotation 7 is of image 99, which the file does"),
        (annotation(7, 1, (1, 1, 2, 2), category=2), "annotation 7 is of class 2, which the file does not list"),
        (annotation(7, 1, (1, 1, 0, 2)), r"annotation 7 has the empty box \[1.0, 1.0, 0.0, 2.0\]"),
        ({"id": 7, "image_id": 1}, "is not in COCO's form of annotations: 'category_id' is missing"),
    ],
)
def test_wrong_annotations_are_named(coco, tmp_path, wrong, message):
    path = tmp_path / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": [*content["annotations"], wrong]}))
    with pytest.raises(ValueError, match=message) as found:
        replace(coco, drop_empty=False).load("test")
    assert "\n" not in str(found.value)


def test_missing_and_broken_files_are_named(coco, tmp_path):
    image = tmp_path / "val2017/000000000002.jpg"
    image.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"000000000002.jpg cannot be read as an image"):
        coco.check()
    with pytest.raises(BrokenData, match=r"000000000002.jpg cannot be read as an image"):
        squares(coco.load("test"), [Draw(np.arange(3))])
    Image.new("RGB", (12, 20)).save(image)
    with pytest.raises(ValueError, match=r"has 12x20 pixels, but .*instances_val2017.json says 20x12"):
        coco.load("test").scene(1)
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"000000000002.jpg does not exist, but .*json names it \(1 of its 3"):
        coco.load("test")
    (tmp_path / "annotations/instances_val2017.json").write_text("{")
    with pytest.raises(ValueError, match=r"instances_val2017.json cannot be read as JSON"):
        coco.classes()
    with pytest.raises(
        FileNotFoundError, match=r"expected annotations/instances_val2017.json in it, COCO's annotations"
    ):
        Coco(root=str(tmp_path / "elsewhere")).classes()


# ----------------------------------------------------------------------------------------------- COCO128 and nuclei


def test_coco128_scales_objects_to_its_images(tmp_path):
    folder = tmp_path / "images"
    path = write_part(folder, "train", [annotation(1, 1, (4, 2, 10, 6)), annotation(2, 2, (0, 0, 20, 12))], number=3)
    for image in (folder / "train2017").iterdir():
        Image.new("RGB", (10, 6)).save(image)  # half of what the file says
    (tmp_path / "instances_train2017.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    (folder / "val2017").mkdir()
    lines = {f"{n:012}": ["3 0.25 0.0 0.75 0.0 0.75 0.5 0.25 0.5"] for n in range(4)}
    for stem in lines:
        Image.new("RGB", (40, 20)).save(folder / "val2017" / f"{stem}.jpg")
    (tmp_path / "polygons_val2017.json.gz").write_bytes(gzip.compress(json.dumps(lines).encode()))
    data = Coco128(root=str(tmp_path))
    assert data.classes() == ("person", "car")
    train = data.load("train")
    assert len(train) == 2
    _, found = train.scene(0)
    assert found.boxes.tolist() == [[2, 1, 7, 4]]
    assert np.array_equal(boxes_around(found.masks), found.boxes)
    assert found.area.tolist() == [15]
    validation, test = data.load("validation"), data.load("test")
    assert [len(validation), len(test)] == [2, 2]
    _, found = test.scene(0)
    assert found.labels.tolist() == [1]
    assert found.boxes.tolist() == [[10, 0, 30, 10]]
    assert found.area.tolist() == [200]
    same = replace(data, held_out="train2017", num_train=1)
    assert [same.load(role).paths for role in ROLES] == [train.paths[:1]] * 3


def write_nuclei(root, numbered, pixels=None):
    for name in ("images", "labels"):
        (root / name).mkdir(exist_ok=True)
    for index, one in enumerate(numbered):
        Image.fromarray(one.astype(np.uint16)).save(root / "labels" / f"{index:02}.png")
        Image.new("L", one.shape[::-1], index).save(root / "images" / f"{index:02}.png")


def test_nuclei_are_the_numbers_of_their_map(tmp_path):
    one = np.zeros((16, 20))
    one[2:6, 3:9] = 300  # more than eight bits
    one[8:10, 0:4] = 7
    write_nuclei(tmp_path, [one] * 10)
    data = Nuclei(root=str(tmp_path), channels=1, validation=0.2, test=0.3)
    roles = [data.load(role) for role in ROLES]
    assert [len(role) for role in roles] == [5, 2, 3]
    assert sorted(path.name for role in roles for path in role.paths) == [f"{n:02}.png" for n in range(10)]
    pixels, found = roles[0].scene(0)
    assert pixels[0, 0, 0] == int(roles[0].paths[0].stem)
    assert found.boxes.tolist() == [[0, 8, 4, 10], [3, 2, 9, 6]]
    assert found.area.tolist() == [8, 24]
    assert data.classes() == ("nucleus",)
    assert replace(data, seed=1).load("train").paths != roles[0].paths
    (tmp_path / "labels/03.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/03.png does not exist"):
        [data.load(role) for role in ROLES]


def test_maps_that_do_not_fit_are_named(tmp_path):
    write_nuclei(tmp_path, [np.ones((8, 8))] * 6)
    data = Nuclei(root=str(tmp_path))
    scenes = data.load("train")
    path = scenes.maps[0]
    Image.fromarray(np.ones((8, 9), dtype=np.uint16)).save(path)
    with pytest.raises(ValueError, match=f"{path.name} has 9x8 pixels, but its image 8x8"):
        scenes.scene(0)
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(ValueError, match=f"{path.name} has 3 channels, where one of numbers is expected"):
        scenes.scene(0)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{path.name} cannot be read as a map of objects"):
        scenes.scene(0)


def test_the_real_sets_are_read(shared_data):
    nuclei = Nuclei(root="nuclei")
    scenes = [nuclei.load(role) for role in ROLES]
    assert [len(role) for role in scenes] == [217, 50, 67]
    known = Coco128(root="coco128")
    train = known.load("train")
    assert [len(train), len(known.classes())] == [126, 80]
    for index in range(6):
        pixels, found = train.scene(index)
        drawn = boxes_around(found.masks)
        assert np.abs(drawn - found.boxes).max() <= 3, "polygons and boxes were drawn apart, and both were scaled"
        assert found.masks.shape[1:] == pixels.shape[:2]
    assert len(known.load("validation")) + len(known.load("test")) > 90


# ----------------------------------------------------------------------------------------------- the bundled set


def test_scenes_of_clothes_are_fixed_by_seed_and_whole():
    data = FashionScenes(num_train=40)
    scenes, labels = data.load("train"), set()
    for index in range(40):
        pixels, found = scenes.scene(index)
        again, same = data.load("train").scene(index)
        assert np.array_equal(pixels, again)
        assert np.array_equal(found.masks, same.masks)
        assert 1 <= len(found) <= 4
        assert not (found.masks.sum(0) > 1).any(), "none hides another"
        assert np.array_equal(found.boxes, boxes_around(found.masks))
        assert np.array_equal(found.labels, scenes.labels_in(index))
        labels |= set(found.labels.tolist())
        brighter = pixels[:, :, 0][found.masks.any(0)].mean()
        assert brighter > pixels[:, :, 0][~found.masks.any(0)].mean()
    assert labels == set(range(10))
    assert [len(data.load(role)) for role in ROLES] == [40, 100, 200]
    other = replace(data, seed=1).load("train").scene(0)[0]
    assert not np.array_equal(other, scenes.scene(0)[0])


# ----------------------------------------------------------------------------------------------- squares


def drawn(height, width, boxes):
    """An image whose objects are rectangles, each of a grey level of its own, and the objects."""
    picture = Image.new("L", (width, height))
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        ImageDraw.Draw(picture).rectangle((x0, y0, x1 - 1, y1 - 1), fill=100 + number)
        masks[number, y0:y1, x0:x1] = True
    return np.asarray(picture)[..., None], Instances.of_masks(masks, np.arange(len(boxes)))


BOXES = [(4, 6, 30, 22), (40, 10, 70, 58), (60, 2, 78, 9), (2, 30, 20, 56)]


@pytest.mark.parametrize("sample", range(12))
def test_a_box_drawn_as_a_mask_stays_its_own_bounding_box(sample):
    """Image, masks and boxes move together, whatever was drawn; and boxes find the way back."""
    pixels, instances = drawn(60, 80, BOXES)
    jitter = LargeScaleJitter(size=64, scale=(0.4, 2.0))
    where = jitter.place(60, 80, (0, 0, 1), sample)
    square, left = placed(pixels, instances, where, (7,))
    assert square.shape == (64, 64, 1)
    assert len(left)
    assert np.abs(boxes_around(left.masks) - left.boxes).max() <= 1
    back = where.back(torch.from_numpy(left.boxes), 60, 80).numpy()
    pixel = 80 / where.width + 80 / where.width  # one of the square on either side
    for label, box, mask, found in zip(left.labels, left.boxes, left.masks, back, strict=True):
        whole = np.array(BOXES[label])
        if box.min() > 0 and box.max() < 64:
            assert np.abs(found - whole).max() <= 1e-3
        assert (found - whole)[:2].min() >= -pixel
        assert (whole - found)[2:].min() >= -pixel
        inside = square[:, :, 0][mask].astype(int)
        assert (inside > 30).mean() > 0.97, "edges are blended with what is black"
        assert abs(np.median(inside) - (100 + label)) <= 3 or mask.sum() < 30
    assert np.allclose(left.area, [area_of(label) * (where.width / 80) ** 2 for label in left.labels], rtol=0.05)


def area_of(label):
    x0, y0, x1, y1 = BOXES[label]
    return (x1 - x0) * (y1 - y0)


def test_whole_objects_move_as_torchvision_moves_them():
    pixels, instances = drawn(60, 80, BOXES)
    where = Placement(128, 96, 128, mirrored=True)  # 1.6 times, all of it inside
    square, left = placed(pixels, instances, where, (0,))
    boxes = tv_tensors.BoundingBoxes(instances.boxes, format="XYXY", canvas_size=(60, 80))
    boxes = functional.pad(functional.resize(boxes, [96, 128]), [0, 0, 0, 32])
    torch.testing.assert_close(
        torch.from_numpy(left.boxes), functional.horizontal_flip(boxes).as_subclass(torch.Tensor)
    )
    image = functional.resize(tv_tensors.Image(torch.from_numpy(pixels.copy()).permute(2, 0, 1)), [96, 128])
    image = functional.horizontal_flip(functional.pad(image, [0, 0, 0, 32]))
    assert np.array_equal(square[:, :, 0], image[0].numpy())
    masks = functional.resize(tv_tensors.Mask(torch.from_numpy(instances.masks)), [96, 128])
    masks = functional.horizontal_flip(functional.pad(masks, [0, 0, 0, 32]))
    assert (masks.numpy() != left.masks).mean() < 0.02, "nearest pixels, by centres here and by corners there"


def test_images_of_evaluation_are_whole_and_in_the_corner():
    where = LargeScaleJitter(size=64).place(30, 100, None, 0)
    assert where == Placement(64, 19, 64)
    pixels, instances = drawn(30, 100, [(0, 0, 100, 30)])
    square, left = placed(pixels, instances, where, (9,))
    assert (square[19:] == 9).all()
    assert (square[:19] == 100).all()
    assert left.boxes.tolist() == [[0, 0, 64, 19]]
    low = torch.tensor([[6.4, 0, 64, 38]])  # half of it in the padding
    torch.testing.assert_close(where.back(low, 30, 100), torch.tensor([[10.0, 0, 100, 30]]))
    torch.testing.assert_close(where.back(low, 30, 100, cut=False), torch.tensor([[10.0, 0, 100, 60]]))


def test_what_is_left_of_an_object_has_its_own_box():
    """A triangle, cut: the box of what is left is smaller than the cut box."""
    mask = np.tril(np.ones((64, 64), dtype=bool))[None]
    instances = Instances.of_masks(mask, np.array([0]))
    where = Placement(64, 128, 128, top=0, left=64)  # the upper right quarter: empty but for the diagonal's corner
    _, left = placed(np.zeros((64, 64, 1), np.uint8), instances, where, (0,))
    assert len(left) == 0
    where = Placement(64, 128, 128, top=32, left=64)
    _, left = placed(np.zeros((64, 64, 1), np.uint8), instances, where, (0,))
    assert left.boxes.tolist() == [[0, 32, 32, 64]]


def squares(scenes, draws, **changes):
    jitter = LargeScaleJitter(size=64, scale=(0.5, 1.5))
    scaling = Scaling(mean=(0.25,) * scenes.channels, std=(0.5,) * scenes.channels)
    return list(from_scenes(scenes, draws, jitter, scaling, CPU, changes.get("num_workers", 0)))


def test_batches_are_keyed_by_sample_and_draw_nothing_else():
    scenes = _Grey(FashionScenes(num_train=12).load("train"))
    state = torch.get_rng_state()
    (first, second) = squares(scenes, [Draw(np.array([3, 5]), (0, 0, 1)), Draw(np.array([5]), (0, 0, 2))])
    (again,) = squares(scenes, [Draw(np.array([7, 5, 3]), (0, 0, 1))])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.images[1], again.images[1])
    assert torch.equal(first.images[0], again.images[2])
    assert torch.equal(first.targets[0]["boxes"], again.targets[2]["boxes"])
    assert not torch.equal(first.images[1], second.images[0])
    assert first.key == (0, 0, 1)
    assert first.targets[0]["boxes"].dtype == torch.float64
    (plain,) = squares(scenes, [Draw(np.array([3, 5]))])
    assert plain.key is None
    assert not plain.targets
    assert [truth.height for truth in plain.truths] == [128, 128]


def test_worker_processes_give_the_same_batches():
    scenes = _Grey(FashionScenes(num_train=12).load("train"))
    draws = [Draw(np.array([3, 5]), (0, 0, 1)), Draw(np.array([1]), (0, 0, 1))]
    for one, other in zip(squares(scenes, draws), squares(scenes, draws, num_workers=1), strict=True):
        assert torch.equal(one.images, other.images)
        assert all(torch.equal(a["masks"], b["masks"]) for a, b in zip(one.targets, other.targets, strict=True))


class _Grey:
    channels = 1

    def __init__(self, scenes):
        self.scene = scenes.scene


def test_masks_are_packed_as_run_lengths():
    masks = np.random.default_rng(0).random((3, 7, 9)) > 0.5
    codes = packed(masks)
    assert np.array_equal(coder.decode(codes).transpose(2, 0, 1).astype(bool), masks)
    assert codes[0]["size"] == [7, 9]
    assert packed(np.zeros((0, 7, 9), dtype=bool)) == []
    assert boxes_around(np.zeros((1, 4, 4), dtype=bool)).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LargeScaleJitter(size=64, scale=(2.0, 0.1)), "scale = .*the smaller first"),
        (lambda: LargeScaleJitter(size=0), "size = 0"),
        (lambda: LargeScaleJitter(size=64, flip=2.0), "flip = 2.0"),
        (lambda: FashionScenes(light=2.0), "light = 2.0"),
        (lambda: Nuclei(root="x", validation=0.5, test=0.5), "must leave some of the data for training"),
        (lambda: Coco(root="x", channels=2), "channels = 2"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()
