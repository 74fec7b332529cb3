"""The methods' exact invariants, by one plain process and by two ranks under ZeRO 1 and 3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import Tensor

from llf_ray.run import RunConfig
from tests.local import Watch, final, watched
from tests.train.invariants import CHECKS, what_is_wrong
from tests.train.ranks import INVARIANT_STAGES


class Alone:
    """One process, plain torch."""

    workers = 1

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def watched(self, config: RunConfig, *steps: int) -> tuple[Watch, dict[str, Tensor]]:
        """A run in a folder of its own."""
        self.count += 1
        folder = self.folder / str(self.count)
        return watched(config, folder, steps), final(folder)


@pytest.mark.parametrize("name", CHECKS)
def test_an_invariant_holds_in_one_process(name: str, tmp_path: Path) -> None:
    found = what_is_wrong(CHECKS[name], Alone(tmp_path))
    assert found == "", found


@pytest.mark.parametrize("stage", INVARIANT_STAGES)
@pytest.mark.parametrize("name", CHECKS)
def test_an_invariant_holds_on_two_ranks(name: str, stage: int, ranks: Path) -> None:
    found = json.loads((ranks / "invariants.json").read_text())[f"{name}-z{stage}"]
    assert found == "", found
