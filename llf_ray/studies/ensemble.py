"""All generations of a run together: the mean of their probabilities, scored on the test part beside each alone.

Furlanello et al. 2018 (arXiv:1805.04770) average the generations of born-again networks; it works for any run that
kept a checkpoint at the end of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.data.order import Draw
from llf_ray.journal import Journal, replace_text
from llf_ray.studies.finished import generation_ends, open_finished
from llf_ray.tasks.base import Tally, Task

__all__ = ["FILE", "Ensemble", "Member", "ensemble_of"]

FILE = "ensemble.json"
BATCH = 100  # items at a time
TINY = 1e-30  # a probability has a logarithm


@dataclass(frozen=True, kw_only=True)
class Member:
    """Test scores of one generation's last weights, and of all kept ones up to it together."""

    generation: int
    step: int
    alone: Mapping[str, float]
    together: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """What was found, where it was written, and why a generation is not in it."""

    file: Path
    members: tuple[Member, ...]
    left_out: tuple[str, ...]

    @property
    def scores(self) -> Mapping[str, float]:
        """Of all together."""
        return self.members[-1].together


def ensemble_of(run_folder: Path) -> Ensemble:
    """Score the kept generations of a finished run, alone and together, in fp32 and in this process.

    Averaged weights stand for a run that has them. The result goes into ``ensemble.json`` in the run's folder and, as
    metrics of its last step, into its journal, from which MLflow takes them.

    Raises:
        SettingError: the run has not ended, or has fewer than two generations whose end it kept and that can be read.
    """
    run = open_finished(run_folder).run
    if run.plan.generations < 2:
        raise SettingError(f"run {run_folder.name!r} has one generation: an ensemble needs two")
    ends = generation_ends(run)
    wrong = {end.generation: end.wrong for end in ends}
    left_out = tuple(f"generation {generation}: {problem}" for generation, problem in wrong.items() if problem)
    kept = [end for end in ends if wrong[end.generation] is None]
    if len(kept) < 2:
        advice = "" if run.config.checkpoints.keep_generations else "; checkpoints.keep_generations = True keeps them"
        raise SettingError(
            f"run {run_folder.name!r}: an ensemble needs two generations, {len(kept)} of {len(ends)} can be read "
            f"({'; '.join(left_out)}{advice})"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = [end.network().to(device) for end in kept]
    alone, together = _scores(run.config.task, networks, device)
    members = tuple(
        Member(generation=end.generation, step=end.step, alone=alone[place], together=together[place])
        for place, end in enumerate(kept)
    )
    file = run_folder / FILE
    replace_text(file, json.dumps([asdict(member) for member in members], indent=1))
    values = {f"ensemble/test/{name}": value for name, value in members[-1].together.items()}
    with Journal(run_folder / "journal.jsonl") as journal:
        journal.append({"kind": "metrics", "step": members[-1].step, "values": values})
    return Ensemble(file=file, members=members, left_out=left_out)


class _Heard:
    """A network whose last scores can be read again."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.scores = network, torch.empty(0)

    def __call__(self, *inputs: Any) -> Tensor:
        self.scores = self.network(*inputs)
        return self.scores


@torch.no_grad()
def _scores(
    task: Task, networks: list[nn.Module], device: torch.device
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Of each network, and of the first ones up to it: logarithms of mean probabilities are scores, too."""
    items = np.arange(task.num_items("test"))
    draws = [Draw(items[start : start + BATCH], None) for start in range(0, len(items), BATCH)]
    heard = [_Heard(network) for network in networks]
    alone: list[dict[str, Tally]] = [{} for _ in networks]
    together: list[dict[str, Tally]] = [{} for _ in networks]
    for batch in task.batches("test", draws, device):
        total: Tensor | float = 0.0
        for place, network in enumerate(heard):
            model: Any = network
            _add(alone[place], task.score(model, batch))
            total = total + network.scores.double().softmax(-1)
            mean = (total / (place + 1)).clamp_min(TINY).log()
            model = lambda *_, mean=mean: mean  # noqa: E731
            _add(together[place], task.score(model, batch))
    means = [[{name: tally.mean for name, tally in each.items()} for each in all_] for all_ in (alone, together)]
    return means[0], means[1]


def _add(sums: dict[str, Tally], new: Mapping[str, Tally]) -> None:
    for name, tally in new.items():
        sums[name] = sums[name] + tally if name in sums else tally
