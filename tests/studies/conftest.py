"""One run whose network loses tokens, and what the command writes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from llf_ray.cli import main
from llf_ray.studies.export import FORMATS
from tests.local import whole
from tests.studies.shipped import config


@pytest.fixture(scope="session")
def cropped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(config(), tmp_path_factory.mktemp("runs") / "cropped")


@pytest.fixture(scope="session")
def exported(cropped_run: Path) -> tuple[Path, str]:
    """The folder that the command wrote, with all formats, and its words."""
    words = ["export", cropped_run.name, "--folder", str(cropped_run.parent)]
    done = CliRunner().invoke(main, [*words, *(f"--format={name}" for name in FORMATS)])
    assert done.exit_code == 0, done.output
    return cropped_run / "exported", done.output
