"""Every check that needs several ranks, in one launch: the parent imports once, then forks 1, 2 and 4 ranks in turn.

Run as ``python -m tests.train.ranks FOLDER``; results lie in FOLDER, the tests of this folder judge them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.engine.team import Team
from llf_ray.engine.zero import ZeroEngine
from llf_ray.forget.groups import Select
from llf_ray.forget.masks import Magnitude, Saved
from llf_ray.forget.operations import Forget, KeepMask, Rescale, tiny
from llf_ray.journal import Tracking
from llf_ray.measures.selectivity import Probe, targeted
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.seal import Seal
from llf_ray.run import Checkpoints, Resources, RunConfig, prepare
from llf_ray.train.adviser import Adviser, total_digest
from llf_ray.train.boundary import apply_edit, view_of
from llf_ray.train.folder import create, open_run
from llf_ray.train.loop import train
from llf_ray.train.state import Run, Stores, write_store
from llf_ray.train.worker import Outcome
from tests.local import Watch, stopping_at, weights_of
from tests.toy import Toy
from tests.train.invariants import CHECKS, what_is_wrong

STAGES = (0, 1, 2, 3)
INVARIANT_STAGES = (1, 3)
# four steps of ascent, all in the warm-up: at a rate below 1 they would hardly show above rounding
SEAL = Seal(generations=3, epochs=3, ascent_epochs=1, ascent_rate=8.0, warmup_epochs=1, threshold="body")
LATER = LaterLayer(generations=3, epochs=2, warmup_epochs=1, threshold="body")
BASE = RunConfig(
    name="toy",
    task=Toy(),
    recipe=SEAL,
    optim=Optim(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-3),
    engine=EngineSettings(batch=12),
    resources=Resources(workers=2),
    tracking=Tracking(log_every=1),
)
METHODS = {
    "seal-sgd": BASE,
    "later_layer-adamw": replace(BASE, recipe=LATER, optim=Optim(name="adamw", lr=0.01, weight_decay=0.1)),
}
PROBE = Probe(
    perturbations=(targeted("magnitude", "redraw", keep=0.3), targeted("new random", "zero", rewind="start")),
    every=4,
    examples=40,
)
OPERATIONS = (
    *(operation for operation in tiny if not operation.makes),
    Forget(keep=Magnitude(keep=0.3, scope="global"), fill="uniform"),
    Forget(select=Select(kinds=("statistic",)), fill="initial"),
    Rescale(store="start", select=Select(kinds=("weight",))),
    KeepMask(store="mask", source=Magnitude(keep=0.7, scope="global")),
    KeepMask(store="mask", source=Magnitude(keep=0.8, of="start", within="mask")),
    Forget(keep=Saved(name="mask")),
    Forget(keep=Saved(name="mask"), kept="store", fill="zero", store="start"),
    Forget(select=Select(), fill="store", store="start"),
)
ENGINES = {
    **{f"stage {stage}": replace(BASE.engine, stage=stage) for stage in STAGES},
    "channels last": replace(BASE.engine, channels_last=True),  # at stage 0, where weights are read as they lie
}


def main(folder: Path) -> None:
    """Fork each world in turn; a rank that fails leaves its traceback in FOLDER/error-WORLD-RANK.txt."""
    torch.set_num_threads(1)
    for world, work in ((1, digests), (4, digests), (2, everything)):
        processes = [
            mp.get_context("fork").Process(target=rank_main, args=(folder, world, rank, work)) for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    last = mp.get_context("fork").Process(target=rank_main, args=(folder, 1, 0, resume_alone))
    last.start()
    last.join()


def rank_main(folder: Path, world: int, rank: int, work: Any) -> None:
    """One rank of one world."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu")
    try:
        store = dist.FileStore(str(folder / f"store-{world}-{work.__name__}"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        work(folder, Team(rank, world, torch.device("cpu")))
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error-{world}-{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)  # the other ranks wait in a collective: do not wait for them


def everything(folder: Path, team: Team) -> None:
    """All that two ranks check."""
    digests(folder, team)
    references(folder, team)
    probed(folder, team)
    resumes(folder, team)
    invariants(folder, team)


def engine_of(config: RunConfig, team: Team) -> ZeroEngine:
    """A fresh engine for a configuration."""
    prepared = prepare(config)
    return ZeroEngine(config.task.build(config.seed), prepared.groups, config.optim, config.engine, team)


def digests(folder: Path, team: Team) -> None:
    """From equal weights, the model's digest after each operation and the mask that it keeps, with every engine."""
    found: dict[str, list[str]] = {}
    for case, settings in ENGINES.items():
        config = replace(BASE, engine=settings, resources=Resources(workers=team.size))
        prepared = prepare(config)
        engine = engine_of(config, team)
        start = {name: engine.read(name) * 1.5 for name in engine.names}
        for name in engine.buffers:
            engine.write(name, engine.read(name) + 1)  # so that resetting statistics changes something
        found[case], stores = [], {"start": start}
        for place, operation in enumerate(OPERATIONS):
            for generation in (1, 2):
                view = view_of(engine, config, prepared.slots, stores, f"p/entry/{place}", generation)
                edit = operation(view)
                apply_edit(engine, edit, averaged=False)
                for name, masks in edit.masks.items():
                    path = f"masks/{case}-{team.size}-{place}-{generation}"
                    write_store(folder, path, engine, team, masks)
                    stores[name] = Stores(folder, {name: path})[name]
            every = team.gather(engine.digest())
            assert len({digest.copy for digest in every}) == 1, f"{operation.label}: replicas differ, {case}"
            kept = [content(stores[name]) for name in operation.makes]
            found[case].append(" ".join([f"{total_digest(every):016x}", *kept]))
        engine.close()
    if team.rank == 0:
        (folder / f"digests-{team.size}.json").write_text(json.dumps(found))


def content(masks: Mapping[str, Tensor]) -> str:
    """Hash of a stored mask: names, shapes and entries."""
    parts = [f"{name} {tuple(masks[name].shape)}".encode() + masks[name].numpy().tobytes() for name in sorted(masks)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def carry(run: Run, team: Team) -> Outcome:
    """Train one run from where its folder says it stands, on fresh weights and a fresh engine."""
    engine = ZeroEngine(run.config.task.build(run.config.seed), run.groups, run.config.optim, run.config.engine, team)
    outcome = train(run, engine, Adviser(run.folder, run.plan) if team.rank == 0 else None, team)  # type: ignore[arg-type]
    engine.close()
    team.barrier()
    if team.rank == 0:
        (run.folder / "outcome.txt").write_text(outcome.state + " " + outcome.digest)
    return outcome


def started(config: RunConfig, folder: Path, team: Team) -> Run:
    """Rank 0 makes the run's folder; all ranks get the run."""
    return team.share(create(prepare(config), folder) if team.rank == 0 else None)


def references(folder: Path, team: Team) -> None:
    """Two methods at every stage, to be compared with plain torch."""
    for name, config in METHODS.items():
        for stage in STAGES:
            settings = replace(config, engine=replace(config.engine, stage=stage))
            carry(started(settings, folder / f"{name}-z{stage}", team), team)


def probed(folder: Path, team: Team) -> None:
    """One of the methods again, with somebody looking on, whole and in shards."""
    for stage in (0, 3):
        seen = replace(METHODS["seal-sgd"], engine=replace(BASE.engine, stage=stage), probes=(PROBE,))
        carry(started(seen, folder / f"probed-z{stage}", team), team)


def interrupted(config: RunConfig, folder: Path, team: Team, step: int) -> Outcome:
    """Train until a stop is seen after ``step``."""
    run = started(config, folder, team)
    engine = ZeroEngine(config.task.build(config.seed), run.groups, config.optim, config.engine, team)
    outcome = train(
        run, engine, stopping_at(step, "metrics", "operation")(run.folder, run.plan) if team.rank == 0 else None, team
    )  # type: ignore[arg-type]
    engine.close()
    team.barrier()
    return outcome


def reopened(folder: Path, assignments: dict[str, Any], team: Team) -> Run:
    """Rank 0 opens the folder (and takes the stop request away); all ranks get the run."""
    return team.share(open_run(folder, assignments) if team.rank == 0 else None)


def resumes(folder: Path, team: Team) -> None:
    """Stopped inside an ascent, and between operations and their first step; resumed alike, and at another stage."""
    config = replace(
        BASE, recipe=replace(SEAL, forget_later=True), task=Toy(dropout=True), checkpoints=Checkpoints(keep=9)
    )
    for stage in STAGES:
        settings = replace(config, engine=replace(config.engine, stage=stage))
        carry(started(settings, folder / f"whole-z{stage}", team), team)
        for name, step in (("ascent", 14), ("boundary", 12)):
            path = folder / f"{name}-z{stage}"
            outcome = interrupted(settings, path, team, step)
            assert outcome.state == "stopped", outcome
            if team.rank == 0:
                (path / "stopped.json").write_text(
                    json.dumps(
                        {"step": outcome.step, "crossed": sorted(p.name for p in (path / "checkpoints").glob("step-*"))}
                    )
                )
            carry(reopened(path, {}, team), team)
    path = folder / "other-stage"
    interrupted(replace(config, engine=replace(config.engine, stage=1)), path, team, 14)
    carry(reopened(path, {"engine.stage": 3}, team), team)
    # dropout is drawn by rank, so only without it can one worker follow the curve of two
    calm = replace(config, task=Toy(), engine=replace(config.engine, stage=3))
    carry(started(calm, folder / "whole-calm", team), team)
    interrupted(calm, folder / "other-workers", team, 14)


class Together:
    """All ranks of a team, at one ZeRO stage: a way to train for the invariants."""

    def __init__(self, folder: Path, team: Team, stage: int) -> None:
        self.folder, self.team, self.stage, self.count = folder, team, stage, 0
        self.workers = team.size

    def watched(self, config: RunConfig, *steps: int) -> tuple[Watch, dict[str, Tensor]]:
        """Every rank calls: a run in a folder of its own; every rank sees the full weights."""
        self.count += 1
        config = replace(
            config,
            engine=replace(config.engine, stage=self.stage),
            resources=Resources(workers=self.team.size),
            checkpoints=Checkpoints(keep=1, keep_generations=False),
        )
        run, watch = started(config, self.folder / str(self.count), self.team), Watch(steps)
        engine = ZeroEngine(config.task.build(config.seed), run.groups, config.optim, config.engine, self.team)
        watch(engine)
        adviser = Adviser(run.folder, run.plan) if self.team.rank == 0 else None
        outcome = train(run, engine, adviser, self.team)  # type: ignore[arg-type]
        assert outcome.state == "finished", outcome.message
        end = weights_of(engine)
        engine.close()
        return watch, end


def invariants(folder: Path, team: Team) -> None:
    """Every check of `tests.train.invariants` at two stages: an empty text, or what went wrong on the first rank."""
    found = {}
    for stage in INVARIANT_STAGES:
        for name, check in CHECKS.items():
            wrong = what_is_wrong(check, Together(folder / f"{name}-z{stage}", team, stage))
            found[f"{name}-z{stage}"] = next((text for text in team.gather(wrong) if text), "")
    if team.rank == 0:
        (folder / "invariants.json").write_text(json.dumps(found))


def resume_alone(folder: Path, team: Team) -> None:
    """What two ranks left at stage 3, carried on by one at stage 1, in micro-batches that normalise as theirs did."""
    settings = {"resources.workers": 1, "engine.stage": 1, "engine.micro_batch": 6}
    carry(reopened(folder / "other-workers", settings, team), team)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
