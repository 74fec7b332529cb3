"""What a study's folder keeps from one call to the next: its settings, and the seconds that all calls took together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llf_ray.config import SettingError, from_plain
from llf_ray.journal import read_run, replace_text
from llf_ray.run import RunConfig

__all__ = ["STUDY", "check_trainings", "keep", "spending", "spent"]

STUDY = "study.json"


def keep(folder: Path, **settings: Any) -> None:
    """Write a study's settings, as plain data, into its folder; seconds that are there stay."""
    seconds = spent(folder) if (folder / STUDY).exists() else 0.0
    replace_text(folder / STUDY, json.dumps({**settings, "seconds": seconds}, indent=1))


def check_trainings(folder: Path, name: str, trainings: Mapping[str, RunConfig], *, there: bool) -> Path:
    """A study's folder, where what it holds has the settings of ``trainings``; nothing in it is touched.

    Raises:
        SettingError: it does not exist (unless ``there`` is False), or holds trainings of other settings.
    """
    if there and not (folder / STUDY).exists():
        raise SettingError(f"name {name!r}: there is no study in {folder}; without --tables one is begun")
    for training, config in trainings.items():
        if not (folder / training / "run.json").exists():
            continue
        begun: RunConfig = from_plain(read_run(folder / training)["job"])
        if begun.identity != config.identity:
            raise SettingError(
                f"name {name!r}: {folder / training} holds a training of other settings; choose another --name or "
                "--folder, or remove it"
            )
    return folder


def spent(folder: Path) -> float:
    """Seconds of all calls together."""
    return float(json.loads((folder / STUDY).read_text())["seconds"])


@contextmanager
def spending(folder: Path) -> Iterator[None]:
    """Add the seconds inside to those that are kept, however it ends."""
    begun = time.time()
    try:
        yield
    finally:
        about = json.loads((folder / STUDY).read_text())
        replace_text(folder / STUDY, json.dumps({**about, "seconds": about["seconds"] + time.time() - begun}, indent=1))
