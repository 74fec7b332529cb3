"""The detector under two DeepSpeed ranks: ``python -m tests.tasks.detection_ranks FOLDER``; a test judges the results.

The parent imports, then forks: nothing may be computed before.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.engine.team import Team
from llf_ray.engine.zero import ZeroEngine
from llf_ray.recipes.long import Long
from llf_ray.run import Checkpoints, Resources, RunConfig, prepare
from llf_ray.tasks.detection import tiny
from llf_ray.train.adviser import Adviser
from llf_ray.train.folder import create
from llf_ray.train.loop import train

SETTINGS = {
    "zero-0": EngineSettings(batch=8, stage=0),
    "zero-3": EngineSettings(batch=8, stage=3),
    "half": EngineSettings(batch=8, stage=2, precision="bf16"),
}


def main(folder: Path) -> None:
    """Fork two ranks; one that fails leaves its traceback in FOLDER/error-RANK.txt."""
    torch.set_num_threads(1)
    processes = [mp.get_context("fork").Process(target=rank_main, args=(folder, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def rank_main(folder: Path, rank: int) -> None:
    """One rank: a short run with each of the settings; rank 0 keeps its scores."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu")
    try:
        store = dist.FileStore(str(folder / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        team = Team(rank, 2, torch.device("cpu"))
        for name, settings in SETTINGS.items():
            config = RunConfig(
                name="x",
                task=replace(tiny, heads=replace(tiny.heads, score_threshold=0.0)),
                recipe=Long(generations=1, epochs=2, warmup_epochs=0),
                optim=Optim(name="adamw", lr=1e-3),
                engine=settings,
                resources=Resources(workers=2),
                checkpoints=Checkpoints(keep_generations=False),
            )
            run = team.share(create(prepare(config), folder / name) if rank == 0 else None)
            engine = ZeroEngine(config.task.build(0), run.groups, config.optim, config.engine, team)
            adviser = Adviser(run.folder, run.plan) if rank == 0 else None
            outcome = train(run, engine, adviser, team)  # type: ignore[arg-type]
            engine.close()
            if rank == 0:
                (folder / f"{name}.json").write_text(json.dumps({"state": outcome.state, **outcome.scores}))
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)  # the other rank waits in a collective: do not wait for it


if __name__ == "__main__":
    main(Path(sys.argv[1]))
