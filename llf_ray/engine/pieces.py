"""The project's own form of saved weights and optimizer state: 1-D pieces by parameter name, in safetensors.

Each rank writes one file with the pieces it owns, under the key ``kind|name|start``: entries from ``start`` on of the
row-major flattened tensor. Metadata holds the full shapes, so any number of ranks under any ZeRO stage can read what
any other wrote, and a reader maps only the bytes it asks for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["Pieces", "PiecesWriter", "SavedWeights"]

FORMAT = "llf_ray pieces 1"
_FILE = re.compile(r"pieces-(\d{5})-of-(\d{5})\.safetensors")


class PiecesWriter:
    """Collects what one rank owns, then writes it. Holds the copies until then, hence a class."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._shapes: dict[str, list[int]] = {}
        self._notes: dict[str, Any] = {}

    def add(self, kind: str, name: str, start: int, values: Tensor, shape: tuple[int, ...]) -> None:
        """One piece: ``values`` are the entries from ``start`` on of the flattened tensor of this full shape."""
        self._tensors[f"{kind}|{name}|{start}"] = values.detach().reshape(-1).to("cpu", copy=True).contiguous()
        self._shapes[name] = list(shape)

    def note(self, key: str, value: Any) -> None:
        """A small JSON-ready value beside the tensors."""
        self._notes[key] = value

    def write(self, folder: Path, rank: int, size: int) -> str:
        """Write this rank's file into an existing folder; its name."""
        name = f"pieces-{rank:05d}-of-{size:05d}.safetensors"
        metadata = {"format": FORMAT, "shapes": json.dumps(self._shapes), "notes": json.dumps(self._notes)}
        save_file(self._tensors, folder / name, metadata=metadata)
        return name


class Pieces:
    """Read-only view of a folder of pieces. Opening reads the headers; tensors are read when asked for.

    Raises:
        FileNotFoundError: the folder has no pieces, or a rank's file is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: dict[str, dict[str, list[tuple[int, int, Any, str]]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.notes: dict[str, Any] = {}
        for path in _complete(folder):
            self._open(path)

    def _open(self, path: Path) -> None:
        file = safe_open(path, framework="pt")
        metadata: Mapping[str, str] = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: not a file of pieces (format {metadata.get('format')!r}, {FORMAT!r} is needed)")
        self._shapes.update({name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()})
        self.notes.update(json.loads(metadata["notes"]))
        for key in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
            kind, name, start = key.rsplit("|", 2)
            length = math.prod(file.get_slice(key).get_shape())
            self._index.setdefault(kind, {}).setdefault(name, []).append((int(start), length, file, key))

    def kinds(self) -> tuple[str, ...]:
        """What is stored: "weight", "buffer", "average", "moment.<key>", "count.<key>", ..."""
        return tuple(sorted(self._index))

    def names(self, kind: str) -> tuple[str, ...]:
        """The parameters or buffers that have this kind, sorted."""
        return tuple(sorted(self._index.get(kind, {})))

    def shape(self, name: str) -> tuple[int, ...]:
        """The full shape of a parameter or buffer."""
        return self._shapes[name]

    def full(self, kind: str, name: str) -> Tensor:
        """The whole tensor, in its shape."""
        shape = self._shapes[name]
        return self.slice(kind, name, 0, math.prod(shape)).view(shape)

    def scalar(self, kind: str, name: str) -> Tensor:
        """The one entry of a count, without dimensions."""
        return self.slice(kind, name, 0, 1).view(())

    def slice(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Entries ``start`` to ``stop`` of the flattened tensor, as a new 1-D tensor on the CPU.

        Raises:
            KeyError: no such kind or name. ValueError: the pieces leave a gap.
        """
        parts = self._index[kind][name]
        found = []
        reached = start
        for begin, length, file, key in sorted(parts, key=lambda part: part[0]):
            if begin + length <= reached or begin >= stop:
                continue
            if begin > reached:
                break
            upto = min(begin + length, stop)
            found.append(file.get_slice(key)[reached - begin : upto - begin])
            reached = upto
        if reached < stop:
            raise ValueError(f"{self.folder}: entries {reached} to {stop} of {kind} {name} are missing")
        if len(found) == 1:
            return found[0].clone()
        return torch.cat(found) if found else self._empty(parts)

    @staticmethod
    def _empty(parts: list[tuple[int, int, Any, str]]) -> Tensor:
        _, _, file, key = parts[0]
        return file.get_slice(key)[0:0].clone()


class SavedWeights(Mapping[str, Tensor]):
    """Full weights and buffers by name, read from pieces when asked for."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._kinds = {name: kind for kind in ("weight", "buffer") for name in pieces.names(kind)}

    def __getitem__(self, name: str) -> Tensor:
        return self._pieces.full(self._kinds[name], name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


def _complete(folder: Path) -> list[Path]:
    """The files of all ranks, by rank."""
    matches = [(match, path) for path in sorted(folder.glob("pieces-*")) if (match := _FILE.fullmatch(path.name))]
    if not matches:
        raise FileNotFoundError(f"{folder}: no saved weights here (pieces-00000-of-....safetensors)")
    sizes = {int(match[2]) for match, _ in matches}
    size = max(sizes)
    present = {int(match[1]) for match, _ in matches}
    missing = sorted(set(range(size)) - present)
    if len(sizes) > 1 or missing:
        lost = (
            f"pieces-{missing[0]:05d}-of-{size:05d}.safetensors is missing"
            if missing
            else "files of several savings are mixed"
        )
        raise FileNotFoundError(f"{folder}: {lost}")
    return [path for _, path in matches]
