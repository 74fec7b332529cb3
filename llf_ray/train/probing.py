"""Probes of a run: at chosen steps perturb a clone of the network, measure, discard. The run does not notice."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from llf_ray.data.order import Draw, order
from llf_ray.engine.base import Engine
from llf_ray.engine.team import Team
from llf_ray.measures.selectivity import Answers, Effect, Probe, answers, groups, joined, perturbed, scores
from llf_ray.train.state import Run, Stores, write_store

__all__ = ["Prober"]

BATCH = 250  # examples of a forward pass
BEFORE = "before"  # the name under which the unperturbed network is on record
_PROBED = -2  # the epoch whose order says which examples are probed: no epoch that is trained


class Prober:
    """One rank's part in a run's probes. It remembers which snapshots are on disk, to ask once and not every step."""

    def __init__(self, run: Run, engine: Engine, team: Team) -> None:
        self.run, self.engine, self.team = run, engine, team
        self.probes: tuple[Probe, ...] = run.config.probes
        self._kept: set[str] | None = None

    def keep(self, step: int) -> None:
        """Every rank calls, before each optimizer step: take the snapshots that are due.

        One whose step is over, in a run that was branched behind it, is taken at the first step.

        Raises:
            OSError: on every rank, where one cannot be written.
        """
        wanted = self._snapshots()
        if not wanted:
            return
        if self._kept is None:
            there = {name for name in wanted if (self.run.folder / _path(name)).exists()}
            self._kept = self.team.share(there if self.team.rank == 0 else None)
        for name, since in wanted.items():
            if step >= since and name not in self._kept:
                write_store(self.run.folder, _path(name), self.engine, self.team, None)
                self._kept.add(name)

    def _snapshots(self) -> dict[str, int]:
        return {name: probe.snapshots[name] for probe in self.probes for name in probe.needs}

    def due(self, step: int) -> bool:
        """Whether something is probed behind this many optimizer steps."""
        return any(step % probe.every == 0 for probe in self.probes)

    def look(self, step: int) -> list[dict[str, Any]]:
        """Every rank calls, behind an optimizer step: records of what the probes that are due found.

        Every rank holds a whole clone and answers a part of the examples.
        """
        due = [probe for probe in self.probes if step % probe.every == 0]
        if not due:
            return []
        clone = self._clone()
        stores = Stores(self.run.folder, {name: _path(name) for name in self._kept or ()})
        return [record for probe in due for record in self._probed(probe, clone, stores, step)]

    def _clone(self) -> nn.Module:
        """The network as it is, with fp32 weights and rank 0's buffers."""
        values = {name: self.engine.read(name) for name in self.engine.names}
        for name in self.engine.buffers:
            values[name] = self.engine.read(name).contiguous()
            self.team.spread(values[name])
        network = self.run.config.task.initial(0)
        network.load_state_dict(values)
        return network.to(self.team.device).eval()

    def _probed(self, probe: Probe, clone: nn.Module, stores: Stores, step: int) -> list[dict[str, Any]]:
        config = self.run.config
        task: Any = config.task
        number = task.num_items("train")
        chosen = np.sort(order(number, config.seed, None, _PROBED)[: probe.examples])
        mine = chosen[self.team.rank :: self.team.size]
        draws = [Draw(mine[start : start + BATCH]) for start in range(0, len(mine), BATCH)]
        data = [task.pairs(batch) for batch in task.batches("train", draws, self.team.device)]

        # ranks take examples in turn; answers are put back into their order, by which ties at a margin are broken
        dealt = np.concatenate([np.arange(len(chosen))[rank :: self.team.size] for rank in range(self.team.size)])
        back = torch.from_numpy(np.argsort(dealt))

        def together(network: nn.Module) -> Answers:
            own = [answers(network, data)] if data else []
            return joined([part for parts in self.team.gather(own) for part in parts]).at(back)

        before = together(clone)
        drawn = getattr(task, "replaced", None)
        marks = torch.from_numpy(drawn()[chosen]) if drawn is not None else None
        members = groups(before, marks, hardest=probe.hardest)
        found = scores(before, members)
        records = [_record(step, BEFORE, Effect(name=BEFORE, before=found, after=found))]

        def fresh(seed: int) -> nn.Module:
            network: nn.Module = task.initial(seed)
            return network.to(self.team.device)

        for one in probe.perturbations:
            if any(name not in (self._kept or ()) for name in one.needs):
                continue  # its snapshot lies ahead
            after = together(perturbed(clone, one, stores=stores, fresh=fresh, seed=config.seed, step=step))
            records.append(_record(step, one.name, Effect(name=one.name, before=found, after=scores(after, members))))
        return records


def _path(name: str) -> str:
    return f"stores/probe-{name}"


def _record(step: int, name: str, effect: Effect) -> dict[str, Any]:
    values = effect.values()
    if name == BEFORE:
        values = {key: value for key, value in values.items() if not key.endswith("retention") and "select" not in key}
    counts = {group: found.count for group, found in effect.before.items()}
    return {
        "kind": "probe",
        "step": step,
        "time": time.time(),
        "perturbation": name,
        "values": values,
        "counts": counts,
    }
