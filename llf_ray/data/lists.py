"""Lists beside images, the form in which most published sets come: text, tables and MATLAB files, each error
one line that names the file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llf_ray.config import unknown
from llf_ray.data.base import found
from llf_ray.data.order import Indices

__all__ = ["labelled", "lines", "matlab", "numbered", "rows"]


def lines(path: Path, expected: str) -> list[str]:
    """The lines of a text file that are not empty, without the spaces around them."""
    try:
        text = found(path, expected).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from None
    stripped = [line.strip() for line in text.splitlines()]
    if not any(stripped):
        raise ValueError(f"{path} is empty: expected {expected}")
    return [line for line in stripped if line]


def numbered(path: Path, expected: str) -> dict[int, str]:
    """The values of a file whose lines are a number, a space and a value, by number."""
    values: dict[int, str] = {}
    for line in lines(path, expected):
        number, _, value = line.partition(" ")
        if not number.isdecimal() or not value or int(number) in values:
            raise ValueError(f"{path}: the line {line!r} is not a new number and a value: expected {expected}")
        values[int(number)] = value
    return values


def rows(path: Path, expected: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file that has at least these columns."""
    reader = csv.DictReader(lines(path, expected))
    names = reader.fieldnames or ()
    for column in columns:
        if column not in names:
            raise unknown(f"{path}: column", column, names)
    found_rows = list(reader)
    for row in found_rows:
        if any(row[column] is None for column in columns):
            raise ValueError(f"{path}: the row that starts with {row[names[0]]!r} has fewer values than the first line")
    return found_rows


def matlab(path: Path, expected: str, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """These variables of a MATLAB file (version 5), each as one dimension; cells of text become strings."""
    from scipy.io import loadmat  # here: it takes half a second, and most sets need none of it

    found(path, expected)
    try:
        content = loadmat(str(path), variable_names=list(names))
    except Exception as error:  # what a broken file raises depends on where it is broken
        raise ValueError(f"{path} cannot be read as a MATLAB file: {' '.join(str(error).split())}") from None
    for name in names:
        if name not in content:
            raise ValueError(f"{path} has no variable {name!r}: expected {expected}")
    return {name: _flat(content[name]) for name in names}


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    values = values.reshape(-1)
    return np.asarray([str(cell.item()) for cell in values]) if values.dtype == object else values


def labelled(names: Iterable[str], labels: Mapping[str, int], source: Path) -> Indices:
    """The labels of names of classes; ``source`` is the file that the names are from."""
    found_labels = []
    for name in names:
        if name not in labels:
            raise unknown(f"{source}: class", name, labels)
        found_labels.append(labels[name])
    return np.asarray(found_labels, dtype=np.int64)
