"""The slim network of a run of knowledge evolution: the kept kernels alone, checked against the whole network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.nn.channels import Kept, extract, kept_channels
from llf_ray.nn.slim import load_slim, save_slim
from llf_ray.run import kernel_shares
from llf_ray.studies.finished import generation_ends, open_finished, score_on_test
from llf_ray.train.state import Run

__all__ = ["SlimNetwork", "slim_of"]


@dataclass(frozen=True, kw_only=True)
class SlimNetwork:
    """What was written: where, sizes, the largest difference in scores from the whole network with zeros in place of
    what was forgotten, and test scores of both.
    """

    folder: Path
    share: float
    parameters: int
    whole_parameters: int
    difference: float
    scores: Mapping[str, float]
    whole_scores: Mapping[str, float]


def slim_of(run_folder: Path, folder: Path | None = None, *, generation: int | None = None) -> SlimNetwork:
    """Take the slim network out of a finished run, write it, and score it beside the whole one on the test part.

    Args:
        run_folder: the run.
        folder: where it is written; by default ``slim`` in the run's folder, ``slim-generationN`` for one of those.
        generation: whose end is meant; None for the final weights.

    Raises:
        SettingError: the run has not ended, its plan keeps no block of kernels, its network cannot be made slim, or the
        end of the generation was not kept.
    """
    finished = open_finished(run_folder)
    run = finished.run
    shares = kernel_shares(run.plan)
    if len(shares) != 1:
        found = f"{len(shares)} ({', '.join(f'{share:g}' for share in shares)})" if shares else "no such mask"
        raise SettingError(
            f"run {run_folder.name!r}: a slim network comes from the one mask of kernels of its plan: this has {found}"
        )
    task: Any = run.config.task
    network = finished.network() if generation is None else _at_the_end(run, generation)
    try:
        slim, widths = extract(network, task.example(), shares[0])
    except ValueError as error:
        raise SettingError(f"run {run_folder.name!r}: {error}") from None
    place = folder or run_folder / ("slim" if generation is None else f"slim-generation{generation}")
    save_slim(place, slim, widths, task.network_recipe())
    slim = load_slim(place).eval()  # what is scored is what was written
    zeroed = without_forgotten(network, kept_channels(network, task.example(), shares[0]))
    images = torch.randn(8, *task.example().shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = float((slim(images) - zeroed(images)).abs().max())
    return SlimNetwork(
        folder=place,
        share=shares[0],
        parameters=_size(slim),
        whole_parameters=_size(network),
        difference=difference,
        scores=score_on_test(run, slim),
        whole_scores=score_on_test(run, network),
    )


def _at_the_end(run: Run, generation: int) -> nn.Module:
    ends = generation_ends(run)
    if not 0 <= generation < len(ends):
        raise SettingError(f"run {run.folder.name!r} has generations 0 to {len(ends) - 1}, not {generation}")
    end = ends[generation]
    if end.wrong is not None:
        advice = "" if run.config.checkpoints.keep_generations else "; checkpoints.keep_generations = True keeps them"
        raise SettingError(f"run {run.folder.name!r}: the end of generation {generation}: {end.wrong}{advice}")
    return end.network()


def without_forgotten(network: nn.Module, kept: Mapping[str, Kept]) -> nn.Module:
    """A copy with zeros in place of all kernels that are not kept."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for name, layer in kept.items():
            module = copied.get_submodule(name)
            weight = module.weight
            if isinstance(weight, Tensor) and weight.dim() > 1:
                weight.mul_(layer.block.view(*layer.block.shape, *[1] * (weight.dim() - 2)))
    return copied


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
