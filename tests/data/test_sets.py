"""Every format of data: three roles, fixed by seed, errors that name the file."""

import hashlib
import importlib.util
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from llf_ray.config import SettingError
from llf_ray.data import Arrays, FashionOnPhotographs, FashionSample, Folder, HuggingFace, Mosaic, Torchvision
from llf_ray.data.base import ROLES, ROOT_VARIABLE, anchored, cut, few, square
from llf_ray.data.photographs import BLOCK, PHOTOGRAPHS, blend, photograph_blocks, photograph_folder
from llf_ray.data.sample import FOLDER, NUM_ITEMS
from llf_ray.tasks.start import FromRun, starting_weights


def rows_of(items):
    return {items.image(index).tobytes() for index in range(len(items.labels))}


# ---------------------------------------------------------------------------------------------- bundled
# sample


def test_the_sample_is_small_balanced_and_licensed():
    files = sorted(path.name for path in FOLDER.iterdir())
    assert files == ["LICENSE", "test.png", "train.png", "validation.png"]
    assert sum((FOLDER / name).stat().st_size for name in files) <= 4_000_000
    licence = (FOLDER / "LICENSE").read_text()
    assert "MIT License" in licence
    assert "Zalando SE" in licence
    assert "Permission is hereby granted" in licence
    for role in ROLES:
        items = FashionSample().load(role)
        assert items.images.shape == (NUM_ITEMS[role], 28, 28, 1)
        assert set(np.bincount(items.labels)) == {NUM_ITEMS[role] // 10}


def test_the_roles_of_the_sample_share_no_item():
    rows = [rows_of(FashionSample().load(role)) for role in ROLES]
    assert len(set.union(*rows)) == sum(map(len, rows))


def test_the_sample_is_what_its_script_makes():
    script = _script()
    if not script.SOURCE.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    assert script.differences(script.make(script.SOURCE), FOLDER) == []


def test_the_script_finds_a_changed_sample(tmp_path):
    script = _script()
    pictures = {"train": np.zeros((28, 2800), np.uint8)}
    assert script.differences(pictures, tmp_path)[0].endswith("train.png is missing")
    script.write(pictures, tmp_path)
    assert script.differences(pictures, tmp_path) == []
    assert "differs" in script.differences({"train": pictures["train"] + 1}, tmp_path)[0]


def _script():
    path = Path(__file__).parents[2] / "scripts" / "make_sample.py"
    spec = importlib.util.spec_from_file_location("make_sample", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fewer_items_are_the_first_ones_and_balanced():
    few_items, all_items = FashionSample(num_train=30).load("train"), FashionSample().load("train")
    assert np.array_equal(few_items.images, all_items.images[:30])
    assert set(np.bincount(few_items.labels)) == {3}


# ----------------------------------------------------------------------------------------------- photographs


def test_items_on_photographs_are_fixed_by_seed():
    digest = hashlib.sha256()
    for role in ROLES:
        items = FashionOnPhotographs().load(role)
        assert items.images.shape == (NUM_ITEMS[role], 36, 36, 1)
        digest.update(items.images.tobytes())
    assert digest.hexdigest()[:16] == GOLDEN
    other = FashionOnPhotographs(seed=1, num_train=50).load("train").images
    assert not np.array_equal(other, FashionOnPhotographs(num_train=50).load("train").images)


def test_fewer_items_have_the_same_places_and_backgrounds():
    assert np.array_equal(
        FashionOnPhotographs(num_train=50).load("train").images,
        FashionOnPhotographs().load("train").images[:50],
    )


def test_no_background_serves_two_roles():
    blocks = {role: photograph_blocks(role, BLOCK, (7, 0, 1)) for role in ROLES}
    assert all(len(part) > 30 and part.shape[1:] == (BLOCK, BLOCK) for part in blocks.values())
    seen = [{block.tobytes() for block in part} for part in blocks.values()]
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_photographs_are_found_without_importing_scikit_image():
    assert all((photograph_folder() / f"{name}.png").is_file() for name in PHOTOGRAPHS)
    code = (
        "import sys, llf_ray.data as d; d.FashionOnPhotographs(num_train=1).load('train');"
        "assert 'skimage' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_an_item_covers_the_photograph_where_it_is_and_nowhere_else():
    item = np.zeros((1, 2, 2, 1), np.uint8)
    item[0, 0, 0] = 200
    background = np.full((1, 4, 4, 1), 100, np.uint8)
    picture = blend(item, background, np.array([1]), np.array([2]))[0, :, :, 0]
    assert picture[1, 2] == 200
    assert (np.delete(picture.reshape(-1), 1 * 4 + 2) == 100).all()


# ---------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    """Three classes of 20 files of different sizes."""
    generator = np.random.default_rng(0)
    for label in ("ant", "bee", "cat"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / label / f"{number:02}.png")
    return tmp_path / "set"


def test_a_folder_of_classes_is_cut_into_three_by_seed(folder):
    data = Folder(root=str(folder), validation=0.25, test=0.2)
    assert data.classes() == ("ant", "bee", "cat")
    parts = [data.load(role) for role in ROLES]
    assert [np.bincount(part.labels).tolist() for part in parts] == [[11] * 3, [5] * 3, [4] * 3]
    paths = [set(part.paths) for part in parts]
    assert len(set.union(*paths)) == 60
    assert parts[0].image(0).shape == (20, 24, 3)
    assert set(Folder(root=str(folder), seed=1).load("test").paths) != paths[2]
    assert set(Folder(root=str(folder), validation=0.5).load("test").paths) == paths[2]


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("train", "val", "test"), [30, 30, 30]),
        (("train", "test"), [25, 5, 30]),
        (("train", "val"), [25, 5, 30]),
    ],
)
def test_folders_of_roles_are_kept(folder, tmp_path, names, sizes):
    for name in names:
        for label in ("ant", "bee", "cat", "dog", "eel"):
            target = tmp_path / "roles" / name / label
            target.mkdir(parents=True)
            for number in range(6):
                (target / f"{number}.png").write_bytes((folder / "ant" / "00.png").read_bytes())
    data = Folder(root=str(tmp_path / "roles"))
    parts = [data.load(role) for role in ROLES]
    assert [len(part.labels) for part in parts] == sizes
    assert len({path for part in parts for path in part.paths}) == sum(sizes)


def test_a_broken_image_is_named_before_the_run_and_in_it(folder):
    broken = folder / "bee" / "03.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])  # the header is sound
    data = Folder(root=str(folder))
    data.check()
    holder, index = next((items, items.paths.index(broken)) for items in map(data.load, ROLES) if broken in items.paths)
    with pytest.raises(ValueError, match=r"bee/03\.png cannot be read as an image"):
        holder.image(index)
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bee/03\.png cannot be read as an image"):
        data.check()


def test_a_missing_folder_is_named_with_the_nearest(folder):
    missing = re.escape(str(folder.parent / "sets"))
    expected = rf"^{missing} does not exist: expected train in it, an image folder, .*; did you mean 'set'\?$"
    with pytest.raises(FileNotFoundError, match=expected):
        Folder(root=str(folder.parent / "sets" / "train")).load("train")


def test_where_paths_of_data_start_is_said_of_data_looked_for_there(tmp_path, monkeypatch):
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"\(relative paths of data start from {ROOT_VARIABLE}, which is "):
        Folder(root="flowers").load("train")
    for elsewhere in (lambda: Folder(root="/nowhere").load("train"), lambda: starting_weights(FromRun(run="/nowhere"))):
        with pytest.raises(FileNotFoundError, match=r"^/nowhere does not exist: expected ") as caught:
            elsewhere()
        assert ROOT_VARIABLE not in str(caught.value)


def test_folders_that_are_no_data_set_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no folders"):
        Folder(root=str(tmp_path / "empty")).load("train")
    (folder / "dog").mkdir()
    with pytest.raises(ValueError, match="dog has no images"):
        Folder(root=str(folder)).load("train")
    (folder / "train" / "ant").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="a folder test/ or val/ is expected"):
        Folder(root=str(folder)).load("test")


def test_relative_roots_start_from_the_data_folder(folder, monkeypatch):
    monkeypatch.setenv(ROOT_VARIABLE, str(folder.parent))
    assert Folder(root="set").classes() == ("ant", "bee", "cat")
    fixed = anchored(Folder(root="set"))
    monkeypatch.delenv(ROOT_VARIABLE)
    assert fixed.root == str(folder)
    assert fixed.classes() == ("ant", "bee", "cat")


# ------------------------------------------------------------------------------------------ arrays and
# mosaics


def test_arrays_have_three_roles_and_cut_validation_where_it_is_missing(tmp_path):
    images, labels = np.arange(40 * 16, dtype=np.uint8).reshape(40, 4, 4), np.arange(40) % 2
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:6], "y_test": labels[:6]}
    np.savez(tmp_path / "a.npz", **arrays)
    data = Arrays(path=str(tmp_path / "a.npz"), validation=0.25)
    assert data.classes() == ("0", "1")
    assert [len(data.load(role).labels) for role in ROLES] == [30, 10, 6]
    np.savez(tmp_path / "b.npz", **arrays, x_val=images[:4], y_val=labels[:4])
    assert [len(Arrays(path=str(tmp_path / "b.npz")).load(role).labels) for role in ROLES] == [40, 4, 6]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_tran": 0}, "holds x_tran: expected train_images"),
        ({"x_train": np.zeros((2, 4, 4)), "y_train": [0, 1], "x_test": 0, "y_test": 0}, "float64 of shape"),
        (
            {"x_train": np.zeros((2, 4, 4, 3), np.uint8), "y_train": [0, 1], "x_test": 0, "y_test": 0},
            "channels = 1",
        ),
        ({"x_train": np.array([{}]), "y_train": [0], "x_test": 0, "y_test": 0}, "x_train cannot be read"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        Arrays(path=str(tmp_path / "a.npz")).load("train")


def test_a_file_that_is_no_archive_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as a NumPy archive"):
        Arrays(path=str(tmp_path / "a.npz")).load("train")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'a\.npz'"):
        Arrays(path=str(tmp_path / "b.npz")).load("train")


def write_mosaic(folder, part, tiles, labels, columns=5):
    """Two mosaics, the last tiles of the second unused."""
    folder.mkdir(exist_ok=True)
    side = tiles.shape[1]
    for number, start in enumerate((0, 2 * columns)):
        picture = np.zeros((2 * side, columns * side, 3), np.uint8)
        for place, tile in enumerate(tiles[start : start + 2 * columns]):
            row, column = divmod(place, columns)
            picture[row * side : (row + 1) * side, column * side : (column + 1) * side] = tile
        Image.fromarray(picture).save(folder / f"{part}_{number:03}.png")
    np.save(folder / f"y_{part}.npy", labels)


def test_mosaics_give_their_tiles_back(tmp_path):
    generator = np.random.default_rng(0)
    tiles = generator.integers(0, 256, (18, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(18) % 3
    for part in ("train", "test"):
        write_mosaic(tmp_path / "m", part, tiles, labels)
    data = Mosaic(root=str(tmp_path / "m"), tile=4, validation=0.34)
    assert data.classes() == ("0", "1", "2")
    assert np.array_equal(data.load("test").images, tiles)
    assert [len(data.load(role).labels) for role in ROLES] == [12, 6, 18]
    assert rows_of(data.load("train")) | rows_of(data.load("validation")) == {tile.tobytes() for tile in tiles}
    with pytest.raises(ValueError, match="no whole number of tiles of tile = 7"):
        Mosaic(root=str(tmp_path / "m"), tile=7).load("train")
    np.save(tmp_path / "m" / "y_train.npy", np.zeros(99, int))
    with pytest.raises(ValueError, match="20 tiles in 2 train mosaics, but 99 labels"):
        data.load("train")
    (tmp_path / "m" / "y_train.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"y_train\.npy does not exist: expected the labels"):
        data.load("train")


@pytest.mark.parametrize(
    ("make", "shape", "num_classes", "sizes"),
    [
        (lambda: Mosaic(root="cifar10", tile=32), (32, 32, 3), 10, [9000, 1000, 4000]),
        (lambda: Mosaic(root="cifar100", tile=32), (32, 32, 3), 100, [7200, 800, 2000]),
        (lambda: Mosaic(root="fashion_mnist", tile=28, channels=1), (28, 28, 1), 10, [13500, 1500, 5000]),
        (lambda: Arrays(path="pneumonia_mnist/pneumoniamnist.npz"), (28, 28, 1), 2, [2428, 270, 468]),
        (lambda: Folder(root="flowers17"), (112, 127, 3), 17, [884, 204, 272]),
    ],
    ids=["cifar10", "cifar100", "fashion_mnist", "pneumonia_mnist", "flowers17"],
)
def test_real_sets_are_read(make, shape, num_classes, sizes, shared_data):
    data = make()
    assert len(data.classes()) == num_classes
    parts = [data.load(role) for role in ROLES]
    assert [len(part.labels) for part in parts] == sizes
    assert all(set(part.labels.tolist()) == set(range(num_classes)) for part in parts)
    picture = parts[2].image(0)
    assert picture.dtype == np.uint8
    if not isinstance(data, Folder):  # photographs differ in size
        assert picture.shape == shape


# --------------------------------------------------------------------------- torchvision and Hugging Face


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.tobytes())


def test_torchvisions_sets_are_read_by_name(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = (np.arange(40) % 10).astype(np.uint8)
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    data = Torchvision(name="FashionMNIST", root=str(tmp_path), channels=1, validation=0.25)
    assert data.classes()[9] == "Ankle boot"
    assert [len(data.load(role).labels) for role in ROLES] == [30, 10, 40]
    assert np.array_equal(data.load("test").image(7)[:, :, 0], images[7])
    with pytest.raises(FileNotFoundError, match="torchvision's CIFAR10 could not be read"):
        Torchvision(name="CIFAR10", root=str(tmp_path)).load("train")
    with pytest.raises(SettingError, match="did you mean 'CIFAR100'"):
        Torchvision(name="CIFAR-100", root="x")


def write_cifar(root, classes, monkeypatch):
    """CIFAR-10 or CIFAR-100 as torchvision unpacks it, two items a class in each file; torchvision takes them for the
    published ones.
    """
    source = getattr(torchvision.datasets, f"CIFAR{classes}")
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(classes)

    def written(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    labels = [label for label in range(classes) for _ in range(2)]
    for part in ("train_list", "test_list"):
        files = [
            written(
                name,
                {
                    "data": generator.integers(0, 256, (len(labels), 3 * 32 * 32), dtype=np.uint8),
                    "labels" if classes == 10 else "fine_labels": labels,
                },
            )
            for name, _ in getattr(source, part)
        ]
        monkeypatch.setattr(source, part, files)
    name, checksum = written(source.meta["filename"], {source.meta["key"]: [f"kind {n}" for n in range(classes)]})
    monkeypatch.setattr(source, "meta", {**source.meta, "filename": name, "md5": checksum})
    return folder


@pytest.mark.parametrize(
    ("classes", "sizes", "file"), [(10, [90, 10, 20], "data_batch_3"), (100, [100, 100, 200], "train")]
)
def test_cifar_is_read_as_torchvision_unpacks_it(classes, sizes, file, tmp_path, monkeypatch):
    folder = write_cifar(tmp_path, classes, monkeypatch)
    data = Torchvision(name=f"CIFAR{classes}", root=str(tmp_path))
    assert data.classes()[-1] == f"kind {classes - 1}"
    assert [len(data.load(role).labels) for role in ROLES] == sizes
    assert data.load("test").image(0).shape == (32, 32, 3)
    (folder / file).write_bytes(b"half of it")
    with pytest.raises(FileNotFoundError, match=rf"/{file} is not the published file \(by its MD5\)"):
        data.load("test")
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"/{file} does not exist"):
        data.load("test")


class Table(list):
    features = types.SimpleNamespace

    def __init__(self, rows):
        super().__init__(rows)
        self.features = {"image": None, "label": types.SimpleNamespace(names=["no", "yes"])}

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def test_hugging_face_sets_are_read_where_the_package_is_there(monkeypatch):
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    parts = {
        "train": Table({"image": picture, "label": i % 2} for i in range(20)),
        "test": Table({"image": picture, "label": i % 2} for i in range(4)),
    }
    package = types.SimpleNamespace(load_dataset=lambda name, configuration, revision: parts)
    monkeypatch.setitem(sys.modules, "datasets", package)
    data = HuggingFace(name="someone/things")
    assert data.classes() == ("no", "yes")
    assert [len(data.load(role).labels) for role in ROLES] == [18, 2, 4]
    assert np.array_equal(data.load("test").image(1), np.asarray(picture))
    with pytest.raises(ValueError, match="no column 'images'; did you mean 'image'"):
        HuggingFace(name="someone/things", image="images").load("train")

    def offline(name, configuration, revision):
        raise ConnectionError("no\nnetwork")

    package.load_dataset = offline
    with pytest.raises(FileNotFoundError, match="'someone/things' could not be loaded: no network"):
        data.load("train")


def test_a_missing_datasets_package_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SettingError, match="needs the package 'datasets'"):
        HuggingFace(name="x").load("train")


# -------------------------------------------------------------------------------------------------- the parts


def test_a_cut_takes_its_share_of_each_class():
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    kept, away = cut(labels, 0.2, seed=0, stream=0)
    assert np.bincount(labels[away]).tolist() == [2, 4, 6]
    assert sorted([*kept, *away]) == list(range(60))


def test_a_cut_of_groups_takes_its_share_of_the_groups_of_each_class():
    """A group's class is its first item's, whatever else is in it."""
    groups = np.asarray([f"g{number}" for number in np.tile(np.arange(40), 3)])  # g0 to g39, three times over
    labels = np.concatenate([np.repeat([0, 1], [10, 30]), np.zeros(40, int), np.ones(40, int)])
    kept, away = cut(labels, 0.2, seed=0, stream=0, groups=groups)
    assert not set(groups[kept]) & set(groups[away])
    assert sorted([*kept, *away]) == list(range(120))
    assert np.bincount(labels[away[away < 40]]).tolist() == [2, 6]
    assert len(away) == 3 * 8
    alone, gone = cut(labels, 0.2, seed=0, stream=0, groups=np.arange(120))
    assert [alone.tolist(), gone.tolist()] == [part.tolist() for part in cut(labels, 0.2, seed=0, stream=0)]


def test_few_items_take_turns_by_class():
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    assert np.bincount(labels[few(labels, 9)]).tolist() == [3, 3, 3]
    assert len(few(labels, None)) == len(few(labels, 100)) == 60


def test_a_square_is_the_middle_of_the_resized_image():
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = 200
    assert (square(picture, 10) == 200).all()
    assert square(picture, 5).shape == (5, 5, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Folder(root="x", channels=2), "channels = 2"),
        (lambda: Folder(root="x", validation=0.6, test=0.5), "validation = 0.6"),
        (lambda: Folder(root="x", num_train=0), "num_train = 0"),
        (lambda: FashionOnPhotographs(size=20), "size = 20"),
        (lambda: Mosaic(root="x", tile=0), "tile = 0"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()


GOLDEN = "b906b5f84e7f2bd2"


def test_clothes_on_photographs_may_come_from_elsewhere(tmp_path):
    own = FashionSample(num_train=30, num_held_out=10)
    bundled, other = FashionOnPhotographs(num_train=30, num_held_out=10), FashionOnPhotographs(items=own)
    for role in ROLES:
        assert np.array_equal(bundled.load(role).images, other.load(role).images)
    assert len(FashionOnPhotographs(items=own, num_train=20).load("train").labels) == 20
    for kind in ("ant", "bee"):
        (tmp_path / kind).mkdir()
        for number in range(8):
            Image.fromarray(np.full((40, 20), 9 * number, np.uint8)).save(tmp_path / kind / f"{number}.png")
    with pytest.raises(SettingError, match=r"at most 36 x 36, are needed; one is 40 x 20"):
        FashionOnPhotographs(items=Folder(root=str(tmp_path), channels=1)).load("train")
    with pytest.raises(SettingError, match="must be grey pictures"):
        FashionOnPhotographs(items=Folder(root=str(tmp_path)))
