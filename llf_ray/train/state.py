"""Checkpoints and stores in a run's folder: written whole or not at all, verified before they are trusted.

A checkpoint folder is filled under a temporary name by every rank, gets its manifest (sizes, hashes) last, is renamed
and then pointed to. After any restart the newest folder whose manifest verifies is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from llf_ray.engine.base import Engine
from llf_ray.engine.pieces import Pieces, SavedWeights
from llf_ray.engine.team import Team
from llf_ray.forget.groups import Group, Slot
from llf_ray.journal import replace_text
from llf_ray.plan import Observed, Plan
from llf_ray.run import RunConfig

__all__ = [
    "FORMAT",
    "Hopeless",
    "Run",
    "Stand",
    "Stores",
    "checkpoint_at",
    "checkpoints",
    "load_stand",
    "newest",
    "optimizer_of",
    "prune",
    "set_aside",
    "verify",
    "verify_checkpoint",
    "write_checkpoint",
    "write_data",
    "write_store",
]

FORMAT = 1
MANIFEST, STAND, LATEST = "manifest.json", "stand.json", "LATEST"
MASKS, DATA = "masks.safetensors", "data.safetensors"


class Hopeless(RuntimeError):
    """Another try would end the same way: the loss diverged, replicas differ, or what must be kept could not be
    written.
    """


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a worker needs to know of a run: settings, plan, and where its folder is.

    ``branch`` is a checkpoint folder of another run to start from, at step ``branch_step`` of this plan.
    """

    config: RunConfig
    plan: Plan
    slots: tuple[Slot, ...]
    groups: tuple[Group, ...]
    folder: Path
    branch: Path | None = None
    branch_step: int = 0


@dataclass(frozen=True, kw_only=True)
class Stand:
    """Where a run stands, beside its weights: all that the loop must know to go on.

    ``step`` counts finished optimizer steps; ``crossed`` says whether the operations of the boundary at ``step`` were
    applied. The window sums are training measures since the last question; the references those of the last window
    before this phase. ``stores`` are paths by name, ``applied`` is the log of operations (the journal has it tensor by
    tensor). Every random stream is keyed by ``seed`` and by counters that follow from ``step``, so the two
    are all the random state there is.
    """

    step: int = 0
    crossed: bool = False
    seed: int = 0
    loss_sum: float = 0.0
    hits: float = 0.0
    seen: float = 0.0
    steps_seen: int = 0
    reference_loss: float | None = None
    reference_accuracy: float | None = None
    stores: Mapping[str, str] = field(default_factory=dict)
    applied: tuple[Mapping[str, Any], ...] = ()

    def observed(self) -> Observed | None:
        """Training measures since the last question; None where there was no step."""
        if not self.steps_seen:
            return None
        return Observed(
            loss=self.loss_sum / self.steps_seen,
            accuracy=self.hits / self.seen if self.seen else 0.0,
            reference_loss=self.reference_loss,
            reference_accuracy=self.reference_accuracy,
        )

    def after_question(self, *, new_phase: bool) -> Stand:
        """The window starts anew; on a phase's first step what was seen becomes the reference."""
        observed = self.observed()
        empty = replace(self, loss_sum=0.0, hits=0.0, seen=0.0, steps_seen=0)
        if not new_phase or observed is None:
            return empty
        return replace(empty, reference_loss=observed.loss, reference_accuracy=observed.accuracy)


# --------------------------------------------------------------------------------------------------------- checkpoints


def write_checkpoint(root: Path, stand: Stand, engine: Engine, team: Team, *, about: Mapping[str, Any]) -> Path:
    """Every rank calls: write the run's state at ``stand.step``.

    A folder of this step that verifies stays: it is what this run was loaded from, or what it wrote a moment ago.

    Raises:
        OSError: on every rank when one of them could not write; what was there before is untouched.
    """
    folder = checkpoint_at(root, stand.step, crossed=stand.crossed)
    if team.share(folder.exists() and verify_checkpoint(folder) is None if team.rank == 0 else None):
        return folder
    temporary = root / f".{folder.name}.tmp"
    _together(team, lambda: _fresh_folder(temporary) if team.rank == 0 else None, temporary)
    files = _together(team, lambda: _with_sums(temporary, engine.save(temporary)), temporary)
    plain = {"format": FORMAT, **asdict(stand), "workers": team.size, **about}

    def finish() -> None:
        (temporary / STAND).write_text(json.dumps(plain, indent=1))
        _write_manifest(temporary, {k: v for part in files for k, v in part.items()} | _with_sums(temporary, [STAND]))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        replace_text(root / LATEST, folder.name)

    _together(team, lambda: finish() if team.rank == 0 else None, temporary)
    return folder


def _together(team: Team, act: Any, temporary: Path) -> list[Any]:
    """Every rank calls: do a part each; if one fails, all raise, and rank 0 takes the unfinished folder away."""
    error, result = None, None
    try:
        result = act()
    except OSError as failure:
        error = f"{failure.strerror or failure} ({failure.filename or temporary})"
    except Exception as failure:
        # safetensors reports a full disk as its own error type
        error = f"{type(failure).__name__}: {failure}"
    found = team.gather((error, result))
    errors = [(rank, text) for rank, (text, _) in enumerate(found) if text]
    if errors:
        if team.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"rank {errors[0][0]} could not write: {errors[0][1]}")
    return [value for _, value in found]


def _fresh_folder(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _with_sums(folder: Path, names: list[str]) -> dict[str, list[Any]]:
    """Size and hash of files; whoever may read the folder may read them, though safetensors makes its files private."""
    for name in names:
        (folder / name).chmod(folder.stat().st_mode & 0o666)
    return {name: [(folder / name).stat().st_size, _sha256(folder / name)] for name in names}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path, files: Mapping[str, Any]) -> None:
    with (folder / MANIFEST).open("w") as file:
        json.dump({"format": FORMAT, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def verify(folder: Path) -> str | None:
    """What is wrong with a folder, in one line; None when its manifest verifies."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, (size, digest) in manifest["files"].items():
            path = folder / name
            if not path.exists():
                return f"{folder.name}: {name} is missing"
            if path.stat().st_size != size:
                return f"{folder.name}: {name} has {path.stat().st_size} bytes, {size} were written"
            if _sha256(path) != digest:
                return f"{folder.name}: {name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder.name}: no readable manifest ({type(error).__name__})"
    return (
        None if manifest.get("format") == FORMAT else f"{folder.name}: format {manifest.get('format')} is not {FORMAT}"
    )


def checkpoint_at(root: Path, step: int, *, crossed: bool = False) -> Path:
    """Where the checkpoint of a step lies; ``crossed``: behind the operations there."""
    return root / (f"step-{step:08d}" + ("-crossed" if crossed else ""))


def checkpoints(root: Path) -> list[Path]:
    """Finished folders, newest first; at one step, the one after the operations is the newer."""
    return sorted(root.glob("step-*"), key=lambda path: path.name, reverse=True) if root.exists() else []


def newest(root: Path) -> tuple[Path | None, list[str]]:
    """The newest folder that verifies, and what is wrong with the newer ones."""
    wrong: list[str] = []
    for folder in checkpoints(root):
        problem = verify_checkpoint(folder)
        if problem is None:
            return folder, wrong
        wrong.append(problem)
    return None, wrong


def verify_checkpoint(folder: Path) -> str | None:
    """What is wrong with a checkpoint or a store that it refers to, in one line."""
    problem = verify(folder)
    if problem is None:
        stores = load_stand(folder).stores.values()
        problem = next((f"{folder.name}: store {p}" for p in (verify(_run_of(folder) / s) for s in stores) if p), None)
    return problem


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.parent.parent


def set_aside(root: Path, number: int) -> None:
    """Rank 0 only: rename the newest ``number`` folders, which do not verify, lest they count among those to keep."""
    for folder in checkpoints(root)[:number]:
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def optimizer_of(folder: Path) -> str:
    """Name of the optimizer whose moments a checkpoint folder holds."""
    return str(json.loads((folder / STAND).read_text())["optimizer"])


def load_stand(folder: Path) -> Stand:
    """The stand in a checkpoint folder."""
    plain = json.loads((folder / STAND).read_text())
    stand = Stand(**{name: plain[name] for name in Stand.__dataclass_fields__})
    return replace(stand, applied=tuple(stand.applied))


def prune(root: Path, keep: int, spare: set[int]) -> None:
    """Rank 0 only: remove all but the newest ``keep`` folders, those at the steps in ``spare``, and what was left
    unfinished.
    """
    for folder in checkpoints(root)[keep:]:
        if int(folder.name.split("-")[1]) not in spare:
            shutil.rmtree(folder, ignore_errors=True)
    for leftover in root.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------------- stores


class Stores(Mapping[str, Mapping[str, Tensor]]):
    """Snapshots, masks and data of a run by store name, read lazily from its folder.

    Checkpoints refer to them by path.
    """

    def __init__(self, run_folder: Path, paths: Mapping[str, str]) -> None:
        self._folder, self._paths = run_folder, paths
        self._open: dict[str, Mapping[str, Tensor]] = {}

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        if name not in self._open:
            folder = self._folder / self._paths[name]
            masks, data = folder / MASKS, folder / DATA
            if data.exists():
                self._open[name] = load_file(data)
            else:
                self._open[name] = _Masks(masks) if masks.exists() else SavedWeights(Pieces(folder))
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


class _Masks(Mapping[str, Tensor]):
    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")

    def __getitem__(self, name: str) -> Tensor:
        return self._file.get_tensor(name).bool()

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._file.keys()  # noqa: SIM118 (not a mapping)


def write_store(run_folder: Path, path: str, engine: Engine, team: Team, masks: Mapping[str, Tensor] | None) -> None:
    """Every rank calls: keep masks (rank 0 writes) or, without masks, a snapshot (every rank writes its part)."""
    if masks is None:
        _write_folder(run_folder / path, team, engine.save_weights)
    else:
        small = {name: mask.to(torch.uint8) for name, mask in masks.items()} if team.rank == 0 else {}
        _write_folder(run_folder / path, team, lambda folder: _save(folder, MASKS, small, team))


def write_data(run_folder: Path, path: str, team: Team, made: Mapping[str, Tensor]) -> None:
    """Every rank calls, rank 0 writes: keep what a task generated."""
    _write_folder(run_folder / path, team, lambda folder: _save(folder, DATA, made, team))


def _save(folder: Path, name: str, tensors: Mapping[str, Tensor], team: Team) -> list[str]:
    if team.rank != 0:
        return []
    save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, folder / name)
    return [name]


def _write_folder(folder: Path, team: Team, write: Callable[[Path], list[str]]) -> None:
    """Every rank calls: what each writes, with its sums, in a folder that appears when it is whole."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    _together(team, lambda: _fresh_folder(temporary) if team.rank == 0 else None, temporary)
    files = _together(team, lambda: _with_sums(temporary, write(temporary)), temporary)

    def finish() -> None:
        _write_manifest(temporary, {k: v for part in files for k, v in part.items()})
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)

    _together(team, lambda: finish() if team.rank == 0 else None, temporary)
