"""One launch of several ranks for every test of this folder that judges it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `tests.train.ranks` filled."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.ranks", str(folder)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    errors = [path.read_text() for path in sorted(folder.glob("error-*.txt"))]
    assert not errors, errors
    assert done.returncode == 0, done.stderr[-2000:]
    return folder
