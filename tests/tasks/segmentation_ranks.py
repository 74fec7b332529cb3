"""Scores of the tiny segmentation task by one rank and by two: ``python -m tests.tasks.segmentation_ranks FOLDER``."""

from __future__ import annotations

import json
import multiprocessing as mp
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from llf_ray.engine.base import EngineSettings
from llf_ray.engine.team import Team
from llf_ray.recipes.long import Long
from llf_ray.run import RunConfig
from llf_ray.tasks.segmentation import tiny
from llf_ray.train.evaluation import evaluate


def rank_main(folder: Path, world: int, rank: int) -> None:
    """One rank of a world; its scores go to a file. A rank that waits in vain does not wait for ever."""
    signal.alarm(60)
    torch.set_num_threads(1)
    if world > 1:
        store = dist.FileStore(str(folder / "store"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    engine = SimpleNamespace(module=tiny.build(0), sync_buffers=lambda: None)
    config = RunConfig(name="x", task=tiny, recipe=Long(), engine=EngineSettings(batch=4))
    found = evaluate(config, engine, Team(rank, world, torch.device("cpu")), "test")  # type: ignore[arg-type]
    (folder / f"{world}-{rank}.json").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    places = [(world, rank) for world in (1, 2) for rank in range(world)]
    processes = [mp.get_context("fork").Process(target=rank_main, args=(Path(sys.argv[1]), *place)) for place in places]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
