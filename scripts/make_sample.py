"""Make the class-balanced sample of Fashion-MNIST that travels inside the package, or check the shipped one.

    python scripts/make_sample.py            # writes llf_ray/data/fashion_sample/
    python scripts/make_sample.py --check    # compares what is shipped with the source, pixel by pixel

The source is the Debian package ``dataset-fashion-mnist``. Training and validation items come from its
training part, test items from its test part. Items take turns by class: item i of a role is of class i modulo
10, so any first n items are balanced.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llf_ray.data.order import order
from llf_ray.data.sample import COLUMNS, FOLDER, NUM_ITEMS

SOURCE = Path("/usr/share/datasets/fashion-mnist")
SEED = 2017
LARGEST = 4 * 1000 * 1000  # bytes of the whole folder

NOTICE = """\
The images beside this file are a sample of Fashion-MNIST
(https://github.com/zalandoresearch/fashion-mnist), chosen by scripts/make_sample.py and otherwise
unchanged.

MIT License

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def read_part(source: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (items, 28, 28) and labels of one part of the source, from its gzipped IDX files (header 16 and
    8 bytes).
    """
    images = np.frombuffer(gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return images.reshape(-1, 28, 28), labels


def chosen(labels: NDArray[np.uint8], num_items: int, stream: int) -> NDArray[np.int64]:
    """Positions of ``num_items`` items, classes taking turns, in each class by a random order."""
    mixed = order(len(labels), SEED, stream, 0)
    by_class = [mixed[labels[mixed] == label][: num_items // 10] for label in range(10)]
    return np.stack(by_class, axis=1).reshape(-1)


def mosaic(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Items (items, height, width) as one picture of ``COLUMNS`` items a row."""
    _, height, width = images.shape
    rows = images.reshape(-1, COLUMNS, height, width)
    return rows.transpose(0, 2, 1, 3).reshape(-1, COLUMNS * width)


def make(source: Path) -> dict[str, NDArray[np.uint8]]:
    """The mosaic of each role."""
    train_images, train_labels = read_part(source, "train")
    test_images, test_labels = read_part(source, "t10k")
    from_train = chosen(train_labels, NUM_ITEMS["train"] + NUM_ITEMS["validation"], stream=0)
    return {
        "train": mosaic(train_images[from_train[: NUM_ITEMS["train"]]]),
        "validation": mosaic(train_images[from_train[NUM_ITEMS["train"] :]]),
        "test": mosaic(test_images[chosen(test_labels, NUM_ITEMS["test"], stream=1)]),
    }


def write(pictures: dict[str, NDArray[np.uint8]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for role, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{role}.png", optimize=True)
    (folder / "LICENSE").write_text(NOTICE)


def differences(pictures: dict[str, NDArray[np.uint8]], folder: Path) -> list[str]:
    """What is wrong with a shipped folder; empty where it is what the source gives."""
    wrong = []
    for role, picture in pictures.items():
        file = folder / f"{role}.png"
        if not file.exists():
            wrong.append(f"{file} is missing")
        elif not np.array_equal(np.asarray(Image.open(file)), picture):
            wrong.append(f"{file} differs from the source")
    if not (folder / "LICENSE").exists() or (folder / "LICENSE").read_text() != NOTICE:
        wrong.append(f"{folder / 'LICENSE'} is missing or differs")
    size = sum(file.stat().st_size for file in folder.glob("*")) if folder.exists() else 0
    if size > LARGEST:
        wrong.append(f"{folder} has {size} bytes, more than {LARGEST}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing: compare what is shipped with the source")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the four IDX files")
    arguments = parser.parse_args()
    if not arguments.source.is_dir():
        print(
            f"{arguments.source} does not exist: install the Debian package dataset-fashion-mnist",
            file=sys.stderr,
        )
        return 1
    pictures = make(arguments.source)
    if not arguments.check:
        write(pictures, FOLDER)
    wrong = differences(pictures, FOLDER)
    print("\n".join(wrong) or f"{FOLDER.name}: " + ", ".join(f"{count} {role}" for role, count in NUM_ITEMS.items()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
