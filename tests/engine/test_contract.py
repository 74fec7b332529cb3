"""One contract, every engine: the local one here, DeepSpeed at each stage and precision on two ranks, started once
for all checks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llf_ray.engine.team import Team
from tests.engine.contract import ALONE, CHECKS, LABS, Lab, perform, save_for_the_others

ROOT = Path(__file__).parents[2]
TEAM_LABELS = [f"zero{stage}-{precision}" for stage, precision in LABS]
ALONE_LABELS = [f"zero{stage}-{precision}" for stage, precision in ALONE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each engine saves for all others."""
    folder = tmp_path_factory.mktemp("engines")
    for precision in ("fp32", "bf16"):
        assert perform(Lab(Team.alone(), None, precision, folder), save_for_the_others) == ""
    return folder


@pytest.fixture(scope="module")
def team_results(folder: Path) -> dict[int, dict[str, dict[str, str]]]:
    """What the checks found, by number of ranks: a team of two, and beside it a team of one."""
    extensions = folder / "extensions"  # where torch would put what DeepSpeed has it compile
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TORCH_EXTENSIONS_DIR": str(extensions),
    }
    alone = folder / "alone"
    alone.mkdir()
    commands = [(rank, 2, folder) for rank in range(2)] + [(0, 1, alone)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.engine.contract", str(rank), str(size), str(where)],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank, size, where in commands
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=560) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert [out for out, _ in said] == ["", "", ""], "DeepSpeed chatters"
    assert not list(extensions.rglob("*")), "something was compiled"
    return {size: json.loads((where / "found-0.json").read_text()) for rank, size, where in commands if rank == 0}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_local(check: Callable[[Lab], None], precision: str, folder: Path) -> None:
    error = perform(Lab(Team.alone(), None, precision, folder), check)
    assert not error, error


@pytest.mark.timeout(600)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("label", TEAM_LABELS)
def test_two_workers(
    check: Callable[[Lab], None], label: str, team_results: dict[int, dict[str, dict[str, str]]]
) -> None:
    error = team_results[2][label][check.__name__]
    assert not error, error


@pytest.mark.timeout(600)
@pytest.mark.parametrize("label", ALONE_LABELS)
def test_one_worker(label: str, team_results: dict[int, dict[str, dict[str, str]]]) -> None:
    errors = {name: error for name, error in team_results[1][label].items() if error}
    assert not errors, "\n".join(errors.values())
