"""A driver as a process of its own: carries runs on, as `llf-ray resume` would, on a Ray that it starts itself.

Run as ``python -m tests.faults.driver ROOT NAME...``; prints the outcomes as JSON, exits like the command line.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from llf_ray.cluster.launch import execute
from llf_ray.train.folder import open_run


def main(root: Path, names: list[str]) -> None:
    heard: list[int] = []
    runs = [open_run(root / name) for name in names]
    outcomes = execute(runs, title="", display=False, log_file=root / "driver.log", on_signal=heard.append)
    print(json.dumps([asdict(outcome) for outcome in outcomes]))
    sys.exit(128 + heard[0] if heard else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
