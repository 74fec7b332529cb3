"""COCO as it is distributed (Lin et al. 2014, arXiv:1405.0312): images in folders, objects in one JSON file a part."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from llf_ray.data.base import PATH, Pixels, Role, check_settings, cut, few, found, limit_of, located, read_image
from llf_ray.data.files import check_files, check_there
from llf_ray.data.instances import Instances
from llf_ray.data.order import Indices

__all__ = ["Annotation", "Coco", "CocoScenes", "Listed", "read_annotations", "read_json"]

YEAR = 2017


@dataclass(frozen=True)
class Annotation:
    """One object: ``box`` x, y, width, height; ``shape`` polygons or run lengths, as in the file; ``label`` from 0."""

    box: tuple[float, float, float, float]
    shape: Any
    label: int
    crowd: bool
    area: float


@dataclass(frozen=True)
class Listed:
    """One image as the file has it."""

    path: Path
    height: int
    width: int
    objects: tuple[Annotation, ...]


@dataclass(frozen=True)
class CocoScenes:
    """Images with their objects; ``source`` is the file that lists them.

    Crowds stay only where ``crowds`` says so. Images that are not of the size in the file are an error that names them,
    or, where ``scaled`` is set, the objects are scaled to them.
    """

    images: Sequence[Listed]
    source: Path
    channels: int
    crowds: bool
    scaled: bool = False

    def __len__(self) -> int:
        return len(self.images)

    @property
    def paths(self) -> Sequence[Path]:
        return [image.path for image in self.images]

    def labels_in(self, index: int) -> Indices:
        return np.asarray([one.label for one in self.images[index].objects if not one.crowd], dtype=np.int64)

    def scene(self, index: int) -> tuple[Pixels, Instances]:
        image = self.images[index]
        pixels = read_image(image.path, self.channels)
        high, wide = pixels.shape[:2]
        if (high, wide) != (image.height, image.width) and not self.scaled:
            raise ValueError(
                f"{image.path} has {wide}x{high} pixels, but {self.source} says {image.width}x{image.height}"
            )
        objects = [one for one in image.objects if self.crowds or not one.crowd]
        across, down = wide / image.width, high / image.height
        corners = np.asarray([one.box for one in objects], dtype=np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        scale = np.array([across, down, across, down])
        boxes = np.clip(corners * scale, 0, [wide, high, wide, high]).astype(np.float32)
        try:
            masks = [_drawn(one.shape, high, wide, across, down) for one in objects]
        except Exception as error:  # what a broken shape raises depends on where it is broken
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self.source}: a mask of {image.path.name} cannot be read: {reason}") from None
        return pixels, Instances(
            boxes,
            np.asarray([one.label for one in objects], dtype=np.int64),
            np.stack(masks) if masks else np.zeros((0, high, wide), dtype=bool),
            np.asarray([one.crowd for one in objects], dtype=bool),
            np.asarray([one.area * across * down for one in objects], dtype=np.float32),
        )


@dataclass(frozen=True, kw_only=True)
class Coco:
    """Photographs with objects of 80 classes: ``root/annotations/instances_{train,val}2017.json`` and
    ``root/{train,val}2017/*.jpg``, 118,287 and 5,000.

    The published validation part is the test set; validation is cut from train. Images without an object are left out
    of training.
    """

    root: str = field(metadata=PATH)  # the folder with annotations/, train2017/ and val2017/
    channels: int = 3
    validation: float = 0.02  # share of the training part that is cut off
    seed: int = 0  # of the cut
    drop_empty: bool = True  # annotations without width or height, of which train2017 has some, are passed over
    num_train: int | None = None  # at most this many training items
    num_held_out: int | None = None  # at most this many validation items and this many test items

    def __post_init__(self) -> None:
        check_settings(self)

    def classes(self) -> tuple[str, ...]:
        return tuple(self._read("val")[0].values())

    def load(self, role: Role) -> CocoScenes:
        part = "val" if role == "test" else "train"
        names, images = self._read(part)
        if part == "train" and names != self._read("val")[0]:
            raise ValueError(f"{self._file(part)} has other classes than {self._file('val').name}")
        if role != "test":
            kept, away = cut(np.zeros(len(images), dtype=np.int64), self.validation, self.seed, 0)
            images = [images[i] for i in (away if role == "validation" else kept)]
        if role == "train":
            images = [image for image in images if any(not one.crowd for one in image.objects)]
        chosen = few(np.zeros(len(images), dtype=np.int64), limit_of(role, self.num_train, self.num_held_out))
        return CocoScenes([images[i] for i in chosen], self._file(part), self.channels, crowds=role != "train")

    def check(self) -> None:
        """Raise a ValueError that names a file that is no image."""
        check_files(self)

    def _read(self, part: str) -> tuple[dict[int, str], list[Listed]]:
        return read_annotations(self._file(part), located(self.root) / f"{part}{YEAR}", drop_empty=self.drop_empty)

    def _file(self, part: str) -> Path:
        return located(self.root) / "annotations" / f"instances_{part}{YEAR}.json"


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """The parts of a JSON file by name; the file may be packed by gzip."""
    try:
        raw = found(path, expected).read_bytes()
        content = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is {type(content).__name__}, where an object with named parts is expected")
    return content


def read_annotations(path: Path, folder: Path, *, drop_empty: bool = False) -> tuple[dict[int, str], list[Listed]]:
    """Names of the classes by their numbers, ascending, and the images with their objects, in the file's order.

    Raises:
        FileNotFoundError: there is no such file, or images that it names are not in ``folder``.
        ValueError: an annotation of an image or a class that the file does not list, or with an empty box.
    """
    modified = found(path, "COCO's annotations of a part").stat().st_mtime
    names, images = _annotated(path, modified, folder, drop_empty)
    check_there([image.path for image in images], path)
    return names, images


@lru_cache(maxsize=4)
def _annotated(path: Path, modified: float, folder: Path, drop_empty: bool) -> tuple[dict[int, str], list[Listed]]:
    content = read_json(path, "COCO's annotations of a part")
    try:
        names = {int(one["id"]): str(one["name"]) for one in content["categories"]}
        images = [
            (one["id"], folder / one["file_name"], int(one["height"]), int(one["width"])) for one in content["images"]
        ]
        rows = [
            (
                one["id"],
                one["image_id"],
                one["category_id"],
                tuple(float(value) for value in one["bbox"]),
                one["segmentation"],
                bool(one.get("iscrowd", 0)),
                float(one["area"]),
            )
            for one in content["annotations"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not in COCO's form of annotations: {reason}") from None
    names = dict(sorted(names.items()))
    label_of = {number: label for label, number in enumerate(names)}
    objects: dict[Any, list[Annotation]] = {number: [] for number, *_ in images}
    for number, image, category, box, shape, crowd, area in rows:
        for kind, value, known in (("image", image, objects), ("class", category, label_of)):
            if value not in known:
                raise ValueError(f"{path}: annotation {number} is of {kind} {value}, which the file does not list")
        if len(box) != 4 or not (box[2] > 0 and box[3] > 0):
            if drop_empty:
                continue
            raise ValueError(f"{path}: annotation {number} has the empty box {list(box)} (x, y, width, height)")
        objects[image].append(Annotation(box, shape, label_of[category], crowd, area))
    return names, [Listed(where, high, wide, tuple(objects[number])) for number, where, high, wide in images]


def _drawn(shape: Any, high: int, wide: int, across: float, down: float) -> Any:
    """A mask (high, wide) from polygons or run lengths; ``across`` and ``down`` scale its coordinates."""
    from pycocotools import mask as coder  # here: most runs have no masks

    if isinstance(shape, Mapping):
        own_high, own_wide = shape["size"]
        code = coder.frPyObjects(dict(shape), own_high, own_wide) if isinstance(shape["counts"], list) else dict(shape)
        mask = coder.decode(code).astype(bool)
        if mask.shape == (high, wide):
            return mask
        rows = ((np.arange(high) + 0.5) / down).astype(int).clip(0, own_high - 1)
        columns = ((np.arange(wide) + 0.5) / across).astype(int).clip(0, own_wide - 1)
        return mask[rows[:, None], columns]
    polygons = [(np.asarray(points, dtype=np.float64).reshape(-1, 2) * (across, down)).reshape(-1) for points in shape]
    return coder.decode(coder.merge(coder.frPyObjects([list(p) for p in polygons], high, wide))).astype(bool)
