"""What `probes` tells of a run, from its journal."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from llf_ray.journal import Journal, update_run
from llf_ray.studies.probes import report

NAMES = ["initial magnitude redraw 70 rewound to start", "new random zero 70 rewound to start"]


@pytest.mark.parametrize("width", [110, 200])
def test_names_of_perturbations_are_whole_at_any_width(width: int, tmp_path: Path) -> None:
    groups = {"clean": 90, "mislabelled": 10}
    with Journal(tmp_path / "run" / "journal.jsonl") as journal:
        for name in ("before", *NAMES):
            values = {f"{group}/{what}": 0.5 for group in groups for what in ("accuracy", "retention")}
            journal.append({"kind": "probe", "step": 9, "perturbation": name, "counts": groups, "values": values})
    update_run(tmp_path / "run", name="run")
    text = io.StringIO()
    Console(file=text, width=width).print(report(tmp_path / "run"))
    lines = text.getvalue().splitlines()
    assert all(line == line.rstrip() for line in lines)
    end = next(place for place, line in enumerate(lines) if line.startswith("right: "))
    first = " ".join(line[: lines[1].index("clean")].strip() for line in lines[3:end]).split()
    assert " ".join(first) == " ".join(["before", *NAMES])
    assert end == 6, "a line each"
    assert "so many per cent of the weights are forgotten" in " ".join(lines[end:]), "what 70 means"
