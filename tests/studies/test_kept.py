"""What a study's folder keeps from one call to the next."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from llf_ray.studies.kept import STUDY, keep, spending, spent


def test_seconds_add_up_over_calls_that_fail_and_settings_that_change(tmp_path: Path, monkeypatch) -> None:
    clock = iter([100.0, 107.0, 200.0, 203.0])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    keep(tmp_path, name="one")
    assert spent(tmp_path) == 0.0
    with pytest.raises(RuntimeError), spending(tmp_path):
        raise RuntimeError
    keep(tmp_path, name="two", arms=["a"])
    with spending(tmp_path):
        pass
    assert json.loads((tmp_path / STUDY).read_text()) == {"name": "two", "arms": ["a"], "seconds": 10.0}
