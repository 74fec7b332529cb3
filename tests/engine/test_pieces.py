"""The saved form: what was cut in pieces reads as a whole, and a folder that lacks a piece says which."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llf_ray.engine.pieces import Pieces, PiecesWriter


def save(folder: Path, values: torch.Tensor, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), values.numel()]
    for rank, (start, stop) in enumerate(itertools.pairwise(bounds)):
        writer = PiecesWriter()
        writer.add("weight", "layer.weight", start, values.reshape(-1)[start:stop], tuple(values.shape))
        writer.write(folder, rank, len(bounds) - 1)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 35), max_size=4), start=st.integers(0, 35), length=st.integers(0, 36))
def test_any_slice_of_any_cut_is_the_slice_of_the_whole(
    cuts: list[int], start: int, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    values = torch.arange(36.0).view(4, 9)
    save(folder, values, cuts)
    stop = min(start + length, 36)
    pieces = Pieces(folder)
    assert pieces.slice("weight", "layer.weight", start, stop).tolist() == values.reshape(-1)[start:stop].tolist()
    assert torch.equal(pieces.full("weight", "layer.weight"), values)


def test_names_kinds_and_shapes_are_listed(tmp_path: Path) -> None:
    writer = PiecesWriter()
    writer.add("buffer", "norm.count", 0, torch.tensor(7), ())
    writer.add("weight", "b", 0, torch.ones(2), (2,))
    writer.add("weight", "a", 0, torch.ones(2), (1, 2))
    writer.note("numbers", ["a"])
    assert writer.write(tmp_path, 0, 1) == "pieces-00000-of-00001.safetensors"
    pieces = Pieces(tmp_path)
    assert pieces.kinds() == ("buffer", "weight")
    assert pieces.names("weight") == ("a", "b")
    assert pieces.shape("a") == (1, 2)
    assert pieces.full("buffer", "norm.count").dtype == torch.int64
    assert pieces.scalar("buffer", "norm.count").item() == 7
    assert pieces.notes == {"numbers": ["a"]}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no saved weights"):
        Pieces(tmp_path)
    save(tmp_path, torch.arange(6.0), [3])
    (tmp_path / "pieces-00001-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"pieces-00001-of-00002\.safetensors is missing"):
        Pieces(tmp_path)


def test_savings_of_different_sizes_are_not_mixed(tmp_path: Path) -> None:
    save(tmp_path, torch.arange(6.0), [3])
    save(tmp_path, torch.arange(6.0), [])
    with pytest.raises(FileNotFoundError, match="mixed"):
        Pieces(tmp_path)


def test_a_gap_is_an_error(tmp_path: Path) -> None:
    writer = PiecesWriter()
    writer.add("weight", "a", 0, torch.ones(2), (5,))
    writer.add("weight", "a", 3, torch.ones(2), (5,))
    writer.write(tmp_path, 0, 1)
    assert Pieces(tmp_path).slice("weight", "a", 3, 5).tolist() == [1, 1]
    with pytest.raises(ValueError, match="entries 2 to 5"):
        Pieces(tmp_path).full("weight", "a")
