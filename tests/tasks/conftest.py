"""Real data for tests, where they are at hand."""

import os
from pathlib import Path

import pytest

from llf_ray.data.base import ROOT_VARIABLE


@pytest.fixture
def shared_data(monkeypatch):
    """The folder of real data sets, as the start of relative paths; the test is skipped where there is none."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    root = Path(os.environ.get(ROOT_VARIABLE) or beside)
    if not (root / "cifar10").is_dir():
        pytest.skip(f"no real data sets in {root}: set {ROOT_VARIABLE}")
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    return root
