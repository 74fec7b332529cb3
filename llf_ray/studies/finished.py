"""A run that is over: its settings, and the network that its last step left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.engine.local import LocalEngine
from llf_ray.engine.pieces import Pieces
from llf_ray.journal import read, summary
from llf_ray.nn.weights import read_weights
from llf_ray.plan import spans
from llf_ray.tasks.base import Task
from llf_ray.train.adviser import read_cuts
from llf_ray.train.evaluation import evaluate
from llf_ray.train.folder import open_run
from llf_ray.train.state import Run, checkpoint_at, verify

__all__ = [
    "Finished",
    "GenerationEnd",
    "generation_ends",
    "last_step",
    "network_with",
    "open_finished",
    "score_on_test",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A run that is over. ``values`` are its final weights and buffers, averaged where the run has averages."""

    run: Run
    step: int
    values: Mapping[str, Tensor]

    def network(self) -> nn.Module:
        """A new network with these values, on the CPU and in evaluation mode."""
        return network_with(self.run.config.task, self.values)


def open_finished(run_folder: Path) -> Finished:
    """Read a finished run's folder.

    Raises:
        SettingError: no run, one that has not come to its end, or weights that cannot be read.
    """
    weights = run_folder / "final" / "model.safetensors"
    step = last_step(run_folder) if weights.exists() else None
    if step is None:
        raise SettingError(
            f"run {run_folder.name!r} is not finished ({summary(run_folder).state}): its last step is what counts"
        )
    return Finished(run=open_run(run_folder), step=step, values=read_weights(weights))


def last_step(run_folder: Path) -> int | None:
    """Where a run ended: test is scored there alone. None for one that goes on behind it, or has not come so far."""
    records = [record for record in read(run_folder / "journal.jsonl") if "step" in record]
    ended = [record["step"] for record in records if record["kind"] == "score" and record["role"] == "test"]
    return ended[-1] if ended and ended[-1] == max(record["step"] for record in records) else None


def network_with(task: Task, values: Mapping[str, Tensor]) -> nn.Module:
    """The task's network with these weights and buffers, in evaluation mode.

    Raises:
        SettingError: they are those of another network.
    """
    network = task.initial(0)
    try:
        network.load_state_dict(dict(values))
    except RuntimeError as error:
        first, *lines = str(error).splitlines()
        raise SettingError(f"final weights do not fit the task's network: {(lines or [first])[0].strip()}") from None
    return network.eval()


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationEnd:
    """Where a generation of a run ended: the checkpoint in front of the operations that follow, which the run has where
    it keeps its generations.
    """

    run: Run
    generation: int
    step: int
    checkpoint: Path

    @property
    def wrong(self) -> str | None:
        """Why the checkpoint cannot be read; None where it can."""
        return verify(self.checkpoint) if self.checkpoint.exists() else f"{self.checkpoint.name} was not kept"

    def network(self) -> nn.Module:
        """A new network with its weights, averaged where the run has averages; on the CPU and in evaluation mode."""
        pieces = Pieces(self.checkpoint)
        averaged = set(pieces.names("average")) if self.run.config.optim.averaged is not None else set()
        values = {
            name: pieces.full("average" if name in averaged else kind, name)
            for kind in ("weight", "buffer")
            for name in pieces.names(kind)
        }
        return network_with(self.run.config.task, values)


def generation_ends(run: Run) -> tuple[GenerationEnd, ...]:
    """Of every generation, in order."""
    every = zip(run.plan.phases, spans(run.plan, read_cuts(run.folder)), strict=True)
    ends = {phase.generation: stop for phase, (_, stop) in every}
    return tuple(
        GenerationEnd(run=run, generation=number, step=step, checkpoint=checkpoint_at(run.folder / "checkpoints", step))
        for number, step in ends.items()
    )


def score_on_test(run: Run, network: nn.Module) -> dict[str, float]:
    """Test scores of a network in place of a run's own, as the run scores that: in this process, in fp32."""
    config = replace(run.config, engine=replace(run.config.engine, precision="fp32"))
    engine = LocalEngine(network, run.groups, config.optim, config.engine)
    try:
        return evaluate(config, engine, engine.team, "test")
    finally:
        engine.close()
