"""The sets of the papers, each in a few files of the layout in which it is distributed.

Every picture is one grey level, twice its label, so what a reader says of an item can be held against the item.
"""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from torchvision.datasets import Flowers102 as TorchvisionsFlowers102

import llf_ray.data
from llf_ray.config import SettingError
from llf_ray.data import (
    ChestXray,
    Cub,
    Flowers102,
    Folder,
    IndoorScenes,
    Isic,
    StanfordDogs,
    TinyImageNet,
    Torchvision,
)
from llf_ray.data.base import ROLES
from llf_ray.data.torchvision_sets import Wrapped


def draw(path, label, mode="L", kind="jpeg"):
    """A picture of 8x8 pixels, all of the level 2 * label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("L", (8, 8), 2 * label).convert(mode)
    picture.save(path, kind, **({"quality": 100} if kind == "jpeg" else {}))


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


# -------------------------------------------------------------------------- a few files of each set, as they come


def tiny_imagenet(root):
    """The order of wnids.txt is none of an alphabet, and words.txt has the words of all of WordNet."""
    numbers = ("n02124075", "n04067472", "n01443537")
    write(root / "wnids.txt", numbers)
    words = ("goldfish, Carassius auratus", "Egyptian cat", "thing", "reel")
    write(
        root / "words.txt",
        map("\t".join, zip(("n01443537", "n02124075", "n00002452", "n04067472"), words, strict=True)),
    )
    annotations = []
    for label, number in enumerate(numbers):
        for index in range(10):
            draw(root / "train" / number / "images" / f"{number}_{index}.JPEG", label)
        write(root / "train" / number / f"{number}_boxes.txt", [f"{number}_0.JPEG\t0\t0\t7\t7"])
        for index in (label, label + 3):
            draw(root / "val" / "images" / f"val_{index}.JPEG", label, mode="RGB")
            annotations.append(f"val_{index}.JPEG\t{number}\t0\t0\t7\t7")
    draw(root / "test" / "images" / "test_0.JPEG", 0)
    write(root / "val" / "val_annotations.txt", sorted(annotations))
    return TinyImageNet(root=str(root)), [27, 3, 6]


def cub(root):
    """Lists of all images, those of train and of test in turns."""
    names = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
    write(root / "classes.txt", [f"{number} {name}" for number, name in enumerate(names, 1)])
    images = [
        (label, f"{name}/{name[4:]}_{index:04}_{index + 30}.jpg")
        for label, name in enumerate(names)
        for index in range(14)
    ]
    for label, image in images:
        draw(root / "images" / image, label)
    write(root / "images.txt", [f"{number} {image}" for number, (_, image) in enumerate(images, 1)])
    write(root / "image_class_labels.txt", [f"{number} {label + 1}" for number, (label, _) in enumerate(images, 1)])
    write(root / "train_test_split.txt", [f"{number} {number % 2}" for number in range(1, len(images) + 1)])
    return Cub(root=str(root)), [18, 3, 21]


def cells(texts):
    """A column of text cells."""
    column = np.empty((len(texts), 1), dtype=object)
    column[:, 0] = texts
    return column


def stanford_dogs(root, lists="."):
    breeds = ("n02085620-Chihuahua", "n02099429-curly-coated_retriever", "n02085782-Japanese_spaniel")
    (root / lists).mkdir(parents=True, exist_ok=True)
    for part, numbers in (("train", range(10)), ("test", range(10, 14))):
        files = [f"{breed}/{breed[:9]}_{number}.jpg" for breed in breeds for number in numbers]
        labels = np.repeat(np.arange(1, 4, dtype=np.uint8), len(numbers))[:, None]
        annotations = cells([file.removesuffix(".jpg") for file in files])
        savemat(
            root / lists / f"{part}_list.mat",
            {"file_list": cells(files), "annotation_list": annotations, "labels": labels},
        )
        for file, label in zip(files, labels[:, 0], strict=True):
            draw(root / "Images" / file, int(label) - 1, mode="RGB")
    return StanfordDogs(root=str(root)), [27, 3, 12]


def indoor(root):
    """Not every file that ends in .jpg is a JPEG, and not every one is in colour."""
    listed = {"TrainImages.txt": [], "TestImages.txt": []}
    for label, room in enumerate(("airport_inside", "artstudio", "bakery")):
        for index in range(10):
            source = "TestImages.txt" if index % 5 == 4 else "TrainImages.txt"
            listed[source].append(f"{room}/{room}_{index} {'ABC'[label]}.jpg")
            mode, kind = (("RGB", "jpeg"), ("L", "jpeg"), ("P", "gif"), ("RGBA", "png"), ("L", "jpeg"))[index % 5]
            draw(root / "Images" / listed[source][-1], label, mode, kind)
        draw(root / "Images" / room / "in_neither_list.jpg", label)
    for source, lines in listed.items():
        write(root / source, reversed(lines))
    return IndoorScenes(root=str(root)), [21, 3, 6]


def flowers(root):
    """All 102 kinds, since their number is fixed: 1 picture for training, 1 for validation and 2 for test."""
    labels = np.tile(np.arange(1, 103, dtype=np.uint8), 4)
    for number, label in enumerate(labels, 1):
        draw(root / "jpg" / f"image_{number:05}.jpg", int(label) - 1)
    savemat(root / "imagelabels.mat", {"labels": labels[None]})
    parts = np.arange(1, 409, dtype=np.uint16).reshape(4, 102)
    savemat(root / "setid.mat", {"trnid": parts[:1], "valid": parts[1:2], "tstid": parts[2:].reshape(1, -1)})
    return Flowers102(root=str(root)), [102, 102, 204]


def aircraft(root):
    data, number = root / "fgvc-aircraft-2013b" / "data", 1_000_000
    variants = ("707-320", "A340-200", "DC-9-30", "Cessna 172")
    write(data / "variants.txt", variants)
    for part, count in (("train", 3), ("val", 2), ("test", 4)):
        listed = []
        for label, variant in enumerate(variants):
            for _ in range(count):
                draw(data / "images" / f"{(number := number + 7)}.jpg", label)
                listed.append(f"{number} {variant}")
        write(data / f"images_variant_{part}.txt", listed)
    return Torchvision(name="FGVCAircraft", root=str(root)), [12, 8, 16]


def eurosat(root, name="2750"):
    for label, land in enumerate(("AnnualCrop", "Forest", "HerbaceousVegetation", "SeaLake")):
        for index in range(1, 21):
            draw(root / name / land / f"{land}_{index}.jpg", label, mode="RGB")
    return Folder(root=str(root / name)), [52, 12, 16]


DIAGNOSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def isic(root, parts=("Training",)):
    """Seven diagnoses, 10 lesions each, of 1, 2 or 3 pictures."""
    number = 24_306
    for part in parts:
        rows, lesions = [], []
        for label in range(7):
            for lesion in range(10 if part == "Training" else 2):
                for _ in range(lesion % 3 + 1):
                    image = f"ISIC_{(number := number + 1):07}"
                    draw(root / f"ISIC2018_Task3_{part}_Input" / f"{image}.jpg", label, mode="RGB")
                    rows.append([image, *(float(label == other) for other in range(7))])
                    lesions.append([image, f"HAM_{lesion * 7 + label:07}", "histopathology"])
        name = f"ISIC2018_Task3_{part}_GroundTruth"
        write_table(root / name / f"{name}.csv", ("image", *DIAGNOSES), rows)
        if part == "Training":
            columns = ("image", "lesion_id", "diagnosis_confirm_type")
            write_table(root / "ISIC2018_Task3_Training_LesionGroupings.csv", columns, lesions[::-1])
    return Isic(root=str(root)), None


FINDINGS = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax")
COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
    "OriginalImage[Width",
    "Height]",
    "OriginalImagePixelSpacing[x",
    "y]",
)


def chest_xray(root, table="Data_Entry_2017.csv", folders=("images_001/images", "images_012/images")):
    """Eight patients a finding, of whom two are for test; each has three pictures of it, and one of several."""
    rows, listed = [], {"train_val_list.txt": [], "test_list.txt": []}
    for patient in range(1, 57):
        label, source = patient % 7, "test_list.txt" if patient > 42 else "train_val_list.txt"
        for index in range(6):
            image, finding = f"{patient:08}_{index:03}.png", FINDINGS[label]
            labels = (finding, finding, f"{finding}|Hernia", finding, "No Finding", "Pneumonia")[index]
            rows.append([image, labels, index, patient, 58, "F", "PA", 2682, 2749, 0.143, 0.143])
            draw(root / folders[patient % len(folders)] / image, label, mode="RGBA" if index == 1 else "L", kind="png")
            listed[source].append(image)
    write_table(root / table, (*COLUMNS, "") if table == "Data_Entry_2017.csv" else COLUMNS, rows)
    for source, images in listed.items():
        write(root / source, images)
    return ChestXray(root=str(root), validation=0.17), [105, 21, 42]


def crop_disease(root):
    """As Kaggle's plant-disease unpacks, which Guo et al. use."""
    for label, crop in enumerate(("Apple___Apple_scab", "Corn_(maize)___healthy", "Tomato___Late_blight")):
        for index in range(20):
            draw(root / "dataset" / "train" / crop / f"{index}d-{crop[:3]} Leaf 90deg.JPG", label, mode="RGB")
        for index in range(20, 24):
            draw(root / "dataset" / "test" / crop / f"{index}d-{crop[:3]} Leaf 90deg.JPG", label, mode="RGB")
    return Folder(root=str(root / "dataset")), [51, 9, 12]


def plant_village(root):
    """The same pictures as their authors distribute them, without parts."""
    for label, crop in enumerate(("Apple___Apple_scab", "Corn_(maize)___healthy", "Tomato___Late_blight")):
        for index in range(20):
            draw(root / "raw" / "color" / crop / f"{index}d-{crop[:3]}.JPG", label, mode="RGB")
    return Folder(root=str(root / "raw" / "color")), [39, 9, 12]


SETS = (
    tiny_imagenet,
    cub,
    stanford_dogs,
    indoor,
    flowers,
    aircraft,
    eurosat,
    isic,
    chest_xray,
    crop_disease,
    plant_village,
)
every_set = pytest.mark.parametrize("build", SETS, ids=lambda build: build.__name__)


def paths_of(items):
    if isinstance(items, Wrapped):
        return [items.source._image_files[index] for index in items.chosen]
    return [str(path) for path in items.paths]


# ------------------------------------------------------------------------------------------------ laws of all sets


@every_set
def test_every_item_is_read_with_the_label_of_its_picture(build, tmp_path):
    data, sizes = build(tmp_path)
    parts = [data.load(role) for role in ROLES]
    assert sizes is None or [len(part.labels) for part in parts] == sizes
    for part in parts:
        pictures = [part.image(index) for index in range(len(part.labels))]
        assert all(picture.shape == (8, 8, 3) and picture.dtype == np.uint8 for picture in pictures)
        assert [set(picture.reshape(-1)) for picture in pictures] == [{2 * label} for label in part.labels]


@every_set
def test_roles_share_no_file_and_each_has_every_class(build, tmp_path):
    data, _ = build(tmp_path)
    parts = [data.load(role) for role in ROLES]
    paths = [path for part in parts for path in paths_of(part)]
    assert len(set(paths)) == len(paths)
    for part in parts:
        assert set(part.labels.tolist()) == set(range(len(data.classes())))
    assert len(set(data.classes())) == len(data.classes())


@every_set
def test_the_order_stands_and_another_seed_changes_only_what_is_cut(build, tmp_path):
    data, _ = build(tmp_path)
    for role in ROLES:
        assert paths_of(data.load(role)) == paths_of(replace(data).load(role))
    if build in (flowers, aircraft):
        return  # nothing is cut
    other = replace(data, seed=1)
    assert paths_of(other.load("validation")) != paths_of(data.load("validation"))
    if build not in (eurosat, plant_village, isic):  # which have no test part
        assert paths_of(other.load("test")) == paths_of(data.load("test"))


@every_set
def test_fewer_items_are_balanced(build, tmp_path):
    data, _ = build(tmp_path)
    num_classes = len(data.classes())
    small = replace(data, num_train=num_classes, num_held_out=num_classes)
    for role in ROLES:
        assert np.bincount(small.load(role).labels).tolist() == [1] * num_classes
        assert set(paths_of(small.load(role))) <= set(paths_of(data.load(role)))


@pytest.mark.parametrize("build", [build for build in SETS if build is not aircraft], ids=lambda build: build.__name__)
def test_a_file_that_is_no_image_is_named_before_the_run(build, tmp_path):
    """Not of torchvision's sets, which are looked at when an image is read."""
    data, _ = build(tmp_path)
    data.check()
    broken = Path(paths_of(data.load("test"))[-1])
    broken.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=f"{broken.name} cannot be read as an image") as caught:
        data.check()
    assert "\n" not in str(caught.value)


@every_set
def test_a_root_that_is_not_there_is_named_with_the_nearest(build, tmp_path):
    data, _ = build(tmp_path / "photographs")
    elsewhere = replace(data, root=data.root.replace("photographs", "photograph"))
    for role in ROLES:
        with pytest.raises(FileNotFoundError, match="photograph") as caught:
            elsewhere.load(role)
        assert "\n" not in str(caught.value)
        assert isinstance(data, Torchvision) or "did you mean 'photographs'?" in str(caught.value)


# --------------------------------------------------------------------------------------------------- what each has


def test_tiny_imagenets_classes_are_in_the_order_of_its_list(tmp_path):
    data, _ = tiny_imagenet(tmp_path)
    assert data.classes() == ("Egyptian cat", "reel", "goldfish, Carassius auratus")
    assert {Path(path).parts[-3] for path in paths_of(data.load("test"))} == {"val"}
    assert {Path(path).parts[-4] for path in paths_of(data.load("validation"))} == {"train"}


def test_cubs_classes_are_named_without_numbers_and_its_split_is_kept(tmp_path):
    data, _ = cub(tmp_path)
    assert data.classes() == ("Black footed Albatross", "Laysan Albatross", "Sooty Albatross")
    numbers = {
        path.split(" ")[1]: int(path.split(" ")[0]) for path in (tmp_path / "images.txt").read_text().splitlines()
    }
    for role in ROLES:
        marks = {numbers["/".join(Path(path).parts[-2:])] % 2 for path in paths_of(data.load(role))}
        assert marks == {int(role != "test")}


def test_the_lists_of_dogs_may_lie_in_a_folder(tmp_path):
    beside, _ = stanford_dogs(tmp_path / "a")
    inside, _ = stanford_dogs(tmp_path / "b", "lists")
    assert beside.classes() == inside.classes() == ("Chihuahua", "curly-coated retriever", "Japanese spaniel")
    for role in ROLES:
        names = [[Path(path).name for path in paths_of(data.load(role))] for data in (beside, inside)]
        assert names[0] == names[1]
    content = loadmat(tmp_path / "b" / "lists" / "train_list.mat")  # the shape of the published file, but for 30
    assert content["file_list"].shape == content["labels"].shape == (30, 1)
    assert content["file_list"][0][0][0] == "n02085620-Chihuahua/n02085620_0.jpg"


def test_rooms_that_no_list_names_are_left_out(tmp_path):
    data, _ = indoor(tmp_path)
    assert data.classes() == ("airport_inside", "artstudio", "bakery")
    assert not any("neither" in path for role in ROLES for path in paths_of(data.load(role)))
    assert {Image.open(path).format for path in paths_of(data.load("train"))} == {"JPEG", "GIF", "PNG"}


def test_flowers_keep_their_three_parts_and_torchvision_refuses_a_sample(tmp_path):
    """Which is why they have a reader of their own."""
    data, _ = flowers(tmp_path / "flowers-102")
    assert data.classes()[0] == "pink primrose"
    assert len(data.classes()) == 102
    for role, numbers in (("train", range(1, 103)), ("validation", range(103, 205)), ("test", range(205, 409))):
        assert [int(Path(path).stem[-5:]) for path in paths_of(data.load(role))] == list(numbers)
    with pytest.raises(RuntimeError, match="corrupted"):
        TorchvisionsFlowers102(str(tmp_path))


def test_aircraft_keep_their_three_parts(tmp_path):
    data, _ = aircraft(tmp_path)
    assert data.classes() == ("707-320", "A340-200", "DC-9-30", "Cessna 172")
    for role, part in (("train", "train"), ("validation", "val"), ("test", "test")):
        lines = (tmp_path / "fgvc-aircraft-2013b/data" / f"images_variant_{part}.txt").read_text().splitlines()
        assert [Path(path).stem for path in paths_of(data.load(role))] == [line[:7] for line in lines]


def test_a_variant_of_aircraft_that_is_none_and_a_missing_image_are_named(tmp_path):
    data, _ = aircraft(tmp_path)
    source = tmp_path / "fgvc-aircraft-2013b/data/images_variant_test.txt"
    (source.parent / "images" / f"{source.read_text()[:7]}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=source.read_text()[:7]):
        data.load("test").image(0)
    source.write_text(source.read_text().replace("707-320", "707-321", 1))
    with pytest.raises(FileNotFoundError, match=r"FGVCAircraft could not be read from .*'707-321'"):
        data.load("test")


def test_both_archives_of_eurosat_are_one_folder_a_class(tmp_path):
    old, _ = eurosat(tmp_path)
    new, _ = eurosat(tmp_path, "EuroSAT_RGB")
    assert old.classes() == new.classes() == ("AnnualCrop", "Forest", "HerbaceousVegetation", "SeaLake")
    names = [[Path(path).name for role in ROLES for path in paths_of(data.load(role))] for data in (old, new)]
    assert names[0] == names[1]


def lesions_of(root, items):
    with (root / "ISIC2018_Task3_Training_LesionGroupings.csv").open() as file:
        lesions = {row["image"]: row["lesion_id"] for row in csv.DictReader(file)}
    return {lesions[Path(path).stem] for path in paths_of(items)}


def test_pictures_of_one_lesion_stay_together(tmp_path):
    data, _ = isic(tmp_path)
    assert data.classes() == DIAGNOSES
    parts = [lesions_of(tmp_path, data.load(role)) for role in ROLES]
    assert [len(part) for part in parts] == [49, 7, 14]
    assert len(set.union(*parts)) == 70
    assert sum(len(data.load(role).labels) for role in ROLES) == 7 * 19
    another = replace(data, validation=0.3)
    assert paths_of(another.load("test")) == paths_of(data.load("test"))
    by_picture = replace(data, by_lesion=False)
    parts = [lesions_of(tmp_path, by_picture.load(role)) for role in ROLES]
    assert parts[0] & parts[2]


def test_parts_of_the_challenge_are_used_where_they_are(tmp_path):
    whole, _ = isic(tmp_path / "all", ("Training", "Validation", "Test"))
    (tmp_path / "all" / "ISIC2018_Task3_Training_LesionGroupings.csv").unlink()  # nothing is cut: not needed
    assert [len(whole.load(role).labels) for role in ROLES] == [133, 21, 21]
    assert [Path(whole.load(role).paths[0]).parent.name[15:] for role in ROLES] == [
        "Training_Input",
        "Validation_Input",
        "Test_Input",
    ]
    part, _ = isic(tmp_path / "two", ("Training", "Validation"))
    assert [Path(part.load(role).paths[0]).parent.name[15:] for role in ROLES] == [
        "Training_Input",
        "Validation_Input",
        "Training_Input",
    ]
    assert len(part.load("train").labels) + len(part.load("test").labels) == 133


def test_a_cut_by_lesion_needs_the_list_of_groups(tmp_path):
    data, _ = isic(tmp_path)
    source = tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv"
    whole = source.read_text()
    source.write_text("\n".join(whole.splitlines()[:-1]))
    with pytest.raises(ValueError, match=r"LesionGroupings\.csv has no lesion for ISIC_0024307"):
        data.load("train")
    source.unlink()
    with pytest.raises(FileNotFoundError, match=r"LesionGroupings\.csv does not exist: .*by_lesion = False"):
        data.load("train")
    assert len(replace(data, by_lesion=False).load("train").labels) == 91


def test_only_chests_with_one_of_the_findings_are_read(tmp_path):
    data, _ = chest_xray(tmp_path)
    assert data.classes() == FINDINGS
    assert {Path(path).stem[-1] for role in ROLES for path in paths_of(data.load(role))} == {"0", "1", "3"}
    other = replace(data, findings=("Pneumonia", "No Finding"))
    assert other.classes() == ("Pneumonia", "No Finding")
    test = other.load("test")
    assert [Path(path).stem[-1] for path in paths_of(test)] == ["5" if label == 0 else "4" for label in test.labels]
    grey = replace(data, channels=1).load("test")
    assert grey.image(0).shape == (8, 8, 1)


def test_pictures_of_one_patient_stay_together(tmp_path):
    data, _ = chest_xray(tmp_path)
    parts = [{Path(path).name[:8] for path in paths_of(data.load(role))} for role in ROLES]
    assert [len(part) for part in parts] == [35, 7, 14]
    assert len(set.union(*parts)) == 56


def test_both_archives_of_chests_are_read(tmp_path):
    kaggle, _ = chest_xray(tmp_path / "a")
    official, _ = chest_xray(tmp_path / "b", "Data_Entry_2017_v2020.csv", ("images",))
    for role in ROLES:
        names = [[Path(path).name for path in paths_of(data.load(role))] for data in (kaggle, official)]
        assert names[0] == names[1]


@pytest.mark.parametrize(
    ("findings", "message"),
    [
        (("Masses",), "finding 'Masses' does not exist; did you mean 'Mass'"),
        (("Mass", "Mass"), "must be at least one, each once"),
        ((), "must be at least one, each once"),
    ],
)
def test_findings_that_are_none_are_refused(findings, message):
    with pytest.raises(SettingError, match=message):
        ChestXray(root="x", findings=findings)


# ------------------------------------------------------------------------------------------------- lists that lie


def replaced(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def changed_matlab(path, **changes):
    content = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    savemat(path, {name: value for name, value in {**content, **changes}.items() if value is not None})


LIES = {
    "tiny: no list of classes": (
        tiny_imagenet,
        lambda root: (root / "wnids.txt").rename(root / "wnid.txt"),
        "train",
        r"wnids\.txt does not exist: .*did you mean 'wnid\.txt'",
    ),
    "tiny: an empty list": (
        tiny_imagenet,
        lambda root: (root / "wnids.txt").write_text("\n \n"),
        "train",
        r"wnids\.txt is empty: expected the WordNet number",
    ),
    "tiny: no folder of a class": (
        tiny_imagenet,
        lambda root: (root / "train/n01443537").rename(root / "train/n0144353"),
        "train",
        r"n01443537 does not exist: expected images in it, the training images of this class; did you mean 'n0144353'",
    ),
    "tiny: a class without images": (
        tiny_imagenet,
        lambda root: [path.unlink() for path in (root / "train/n01443537/images").iterdir()],
        "train",
        "n01443537/images has no images",
    ),
    "tiny: an annotation of an unknown class": (
        tiny_imagenet,
        lambda root: replaced(root / "val/val_annotations.txt", "n02124075", "n02124076"),
        "test",
        r"val_annotations\.txt: class 'n02124076' does not exist; did you mean 'n02124075'",
    ),
    "tiny: an annotation without a class": (
        tiny_imagenet,
        lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG n02124075\n"),
        "test",
        "the line 'val_0.JPEG n02124075' has no class: expected tabs",
    ),
    "tiny: an annotated image that is not there": (
        tiny_imagenet,
        lambda root: (root / "val/images/val_4.JPEG").unlink(),
        "test",
        r"val_4\.JPEG does not exist, but .*val_annotations\.txt names it \(1 of its 6 images are not there",
    ),
    "cub: the images are not unpacked": (
        cub,
        lambda root: (root / "images").rename(root / "pictures"),
        "test",
        r"Albatross_0001_31\.jpg does not exist, but .*images\.txt names it \(21 of its 21 images are not there",
    ),
    "cub: a label beyond the classes": (
        cub,
        lambda root: replaced(root / "image_class_labels.txt", "42 3", "42 4"),
        "train",
        r"image_class_labels\.txt: the value of image 42 \(003\..*\) is 4: must be from 1 to 3",
    ),
    "cub: a label of 0": (
        cub,
        lambda root: replaced(root / "image_class_labels.txt", "42 3", "42 0"),
        "train",
        "is 0: must be from 1 to 3",
    ),
    "cub: an image without a part": (
        cub,
        lambda root: replaced(root / "train_test_split.txt", "42 0\n", ""),
        "train",
        r"train_test_split\.txt: the value of image 42 \(.*\) is missing: must be from 0 to 1",
    ),
    "cub: classes with a gap": (
        cub,
        lambda root: replaced(root / "classes.txt", "3 003", "4 003"),
        "train",
        r"classes\.txt: classes must be numbered from 1 to 3",
    ),
    "cub: an image listed twice": (
        cub,
        lambda root: replaced(root / "images.txt", "2 001", "1 001"),
        "train",
        r"images\.txt: the line '1 001\..*' is not a new number and a value",
    ),
    "cub: a list that is no text": (
        cub,
        lambda root: (root / "images.txt").write_bytes(b"\xff\xfe\x00"),
        "train",
        r"images\.txt cannot be read as text",
    ),
    "dogs: no list": (
        stanford_dogs,
        lambda root: (root / "test_list.mat").unlink(),
        "test",
        r"test_list\.mat does not exist: expected the variables file_list and labels.*did you mean 'train_list\.mat'",
    ),
    "dogs: a list that is no MATLAB file": (
        stanford_dogs,
        lambda root: (root / "train_list.mat").write_bytes(b"<html>404</html>" * 20),
        "train",
        r"train_list\.mat cannot be read as a MATLAB file: ",
    ),
    "dogs: half a list": (
        stanford_dogs,
        lambda root: (root / "train_list.mat").write_bytes((root / "train_list.mat").read_bytes()[:900]),
        "train",
        r"train_list\.mat cannot be read as a MATLAB file: ",
    ),
    "dogs: a list without labels": (
        stanford_dogs,
        lambda root: changed_matlab(root / "train_list.mat", labels=None),
        "train",
        r"train_list\.mat has no variable 'labels'",
    ),
    "dogs: a label of another breed": (
        stanford_dogs,
        lambda root: changed_matlab(root / "test_list.mat", labels=np.repeat([1, 2, 4], 4)[:, None]),
        "test",
        r"test_list\.mat: n02085782.*_10\.jpg has the label 4: labels must be from 1 to 3, one for each folder",
    ),
    "dogs: two breeds' labels exchanged": (
        stanford_dogs,
        lambda root: changed_matlab(root / "test_list.mat", labels=np.repeat([1, 3, 2], 4)[:, None]),
        "test",
        r"test_list\.mat: n02099429.*_10\.jpg has the label 3: labels must be from 1 to 3, one for each folder",
    ),
    "dogs: labels from 0": (
        stanford_dogs,
        lambda root: changed_matlab(root / "train_list.mat", labels=np.repeat([0, 1, 2], 10)[:, None]),
        "train",
        r"train_list\.mat: labels must be from 1 to the number of classes",
    ),
    "dogs: fewer labels than images": (
        stanford_dogs,
        lambda root: changed_matlab(root / "test_list.mat", labels=np.ones((11, 1))),
        "test",
        "file_list has 12 images, but labels has 11",
    ),
    "dogs: an image that is not there": (
        stanford_dogs,
        lambda root: (root / "Images/n02085620-Chihuahua/n02085620_11.jpg").unlink(),
        "test",
        r"n02085620_11\.jpg does not exist, but .*test_list\.mat names it \(1 of its 12",
    ),
    "indoor: a room that is none": (
        indoor,
        lambda root: replaced(root / "TestImages.txt", "bakery/", "bakeries/"),
        "test",
        r"TestImages\.txt: class 'bakeries' does not exist; did you mean 'bakery'",
    ),
    "indoor: a line without a room": (
        indoor,
        lambda root: replaced(root / "TestImages.txt", "bakery/", ""),
        "test",
        r"TestImages\.txt: the line 'bakery_9 C\.jpg' is not CLASS/FILE",
    ),
    "indoor: an image that is not there": (
        indoor,
        lambda root: (root / "Images/bakery/bakery_8 C.jpg").unlink(),
        "train",
        r"bakery_8 C\.jpg does not exist, but .*TrainImages\.txt names it \(1 of its 24",
    ),
    "flowers: a label beyond 102": (
        flowers,
        lambda root: changed_matlab(root / "imagelabels.mat", labels=np.full((1, 408), 103)),
        "train",
        r"imagelabels\.mat: the label of image 1 is 103: must be from 1 to 102",
    ),
    "flowers: an image without a label": (
        flowers,
        lambda root: changed_matlab(root / "imagelabels.mat", labels=np.ones((1, 300))),
        "test",
        r"setid\.mat: no label of image 301: imagelabels\.mat has 300",
    ),
    "flowers: an image that is not there": (
        flowers,
        lambda root: (root / "jpg/image_00110.jpg").unlink(),
        "validation",
        r"image_00110\.jpg does not exist, but .*setid\.mat names it",
    ),
    "flowers: no part": (
        flowers,
        lambda root: changed_matlab(root / "setid.mat", valid=None),
        "train",
        r"setid\.mat has no variable 'valid'",
    ),
    "isic: no truth": (
        isic,
        lambda root: (root / "ISIC2018_Task3_Training_GroundTruth").rename(root / "truth"),
        "train",
        r"GroundTruth does not exist: expected ISIC2018_Task3.*\.csv in it, a row an image, with the columns image",
    ),
    "isic: two diagnoses": (
        isic,
        lambda root: replaced(
            root / "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv", "0.0", "1.0"
        ),
        "train",
        "ISIC_0024307 must have a 1.0 in one column",
    ),
    "isic: no diagnosis": (
        isic,
        lambda root: replaced(
            root / "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv", "1.0", "0.0"
        ),
        "test",
        "ISIC_0024307 must have a 1.0 in one column",
    ),
    "isic: another column": (
        isic,
        lambda root: replaced(
            root / "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv", "AKIEC", "AKIECS"
        ),
        "train",
        r"column 'AKIEC' does not exist; did you mean 'AKIECS'\? \(there are: image, MEL",
    ),
    "isic: an image that is not there": (
        isic,
        lambda root: (root / "ISIC2018_Task3_Training_Input/ISIC_0024310.jpg").unlink(),
        "validation",
        r"ISIC_0024310\.jpg does not exist, but .*Training_GroundTruth\.csv names it \(1 of its 133",
    ),
    "chest: a listed image without a row": (
        chest_xray,
        lambda root: replaced(root / "Data_Entry_2017.csv", "00000043_000.png", "00000043_009.png"),
        "test",
        r"Data_Entry_2017\.csv has no row of 00000043_000\.png, which test_list\.txt names",
    ),
    "chest: a row that ends early": (
        chest_xray,
        lambda root: (root / "Data_Entry_2017.csv").write_text(f"{','.join(COLUMNS)}\n00000001_000.png,Mass"),
        "test",
        r"the row that starts with '00000001_000\.png' has fewer values than the first line",
    ),
    "chest: an image that is not there": (
        chest_xray,
        lambda root: (root / "images_001/images/00000044_000.png").unlink(),
        "test",
        r"has no 00000044_000\.png, which test_list\.txt names: expected it in images/ or",
    ),
    "chest: no list of the parts": (
        chest_xray,
        lambda root: (root / "train_val_list.txt").unlink(),
        "validation",
        r"train_val_list\.txt does not exist: expected an image a line",
    ),
    "chest: no table": (
        chest_xray,
        lambda root: (root / "Data_Entry_2017.csv").unlink(),
        "train",
        r"Data_Entry_2017\.csv does not exist: expected the columns Image Index, Finding Labels, Patient ID",
    ),
    "crops: a class that is only in test": (
        crop_disease,
        lambda root: (root / "dataset/test/Tomato___Late_blight").rename(root / "dataset/test/Tomato___Late_blite"),
        "test",
        "Tomato___Late_blite is no class of train/; did you mean 'Tomato___Late_blight'",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_list_that_does_not_fit_is_one_line_that_names_it(lie, tmp_path):
    build, damage, role, message = LIES[lie]
    data, _ = build(tmp_path)
    data.load(role)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        data.load(role)
    assert "\n" not in str(caught.value)


def test_a_class_of_tiny_imagenet_without_words_is_named(tmp_path):
    data, _ = tiny_imagenet(tmp_path)
    replaced(tmp_path / "words.txt", "n04067472\treel\n", "")
    with pytest.raises(ValueError, match=r"words\.txt has no words for n04067472"):
        data.classes()


# ------------------------------------------------------------------------------------------------------ their page


def test_each_call_of_the_page_makes_a_data_set_and_each_reader_has_one():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    calls = re.findall(r"`(\w+\(\w+=\"[^`]*\"\))`", page)
    made = [eval(call, vars(llf_ray.data)) for call in calls]
    assert len(made) == len(SETS) == len({repr(data) for data in made})
    readers = {name for name in llf_ray.data.__all__ if hasattr(getattr(llf_ray.data, name), "load")}
    assert readers == {name for name in readers if f"`{name}(" in page}
