"""How a run ended, in its folder: written once by rank 0, or by the driver for a run that rank 0 could not end."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from llf_ray.journal import replace_text
from llf_ray.train.folder import OUTCOME
from llf_ray.train.state import load_stand, newest
from llf_ray.train.worker import Outcome

__all__ = ["ended", "read_outcome", "step_kept", "write_outcome"]


def read_outcome(run_folder: Path) -> Outcome | None:
    """How the run ended when it was last carried on; None while it is carried on, and where its driver died."""
    try:
        return Outcome(**json.loads((run_folder / OUTCOME).read_text()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def ended(run_folder: Path) -> bool:
    """Whether the run needs no worker now."""
    return read_outcome(run_folder) is not None


def write_outcome(run_folder: Path, outcome: Outcome) -> None:
    """Whole or not at all.

    Raises:
        OSError: the disk is full.
    """
    replace_text(run_folder / OUTCOME, json.dumps(asdict(outcome), indent=1))


def step_kept(run_folder: Path) -> int:
    """The optimizer step from which the run would go on."""
    found, _ = newest(run_folder / "checkpoints")
    return load_stand(found).step if found is not None else 0
