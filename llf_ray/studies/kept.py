"""What a study's folder keeps from one call to the next: its settings, and the seconds that all calls took together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llf_ray.journal import replace_text

__all__ = ["STUDY", "keep", "spending", "spent"]

STUDY = "study.json"


def keep(folder: Path, **settings: Any) -> None:
    """Write a study's settings, as plain data, into its folder; seconds that are there stay."""
    seconds = spent(folder) if (folder / STUDY).exists() else 0.0
    replace_text(folder / STUDY, json.dumps({**settings, "seconds": seconds}, indent=1))


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
