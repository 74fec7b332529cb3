"""The k-NN of prediction depth against one matrix product of the same shape, and the memory that it takes.

The product is queries x bank x features in fp32, all at once: what any exact search by distances must compute at least.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Block, Contender, Ratio, Report, Size, Target, interleave, ratio, spread
from llf_ray.measures.depth import knn_predictions
from llf_ray.studies.price import threads

__all__ = ["measure", "peak_bytes"]

KNN, PRODUCT = "k-NN votes, k = 30", "one matrix product"
TIMES = 2.0
LIMIT = 4e9  # bytes, for the shape below
LARGE = (2_000, 50_000, 2_048)  # queries, bank, features: a tenth of CIFAR's training set and a ResNet50's width
SHAPES = ((2_000, 10_000, 512), LARGE)


def measure(size: Size) -> Report:
    """All shapes on one thread, then the memory of the largest."""
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    for shape in [(200, 400, 32)] if size.tiny else SHAPES:
        blocks = compared(shape, size)
        rows += _rows(shape, blocks)
        found = ratio(*([block.wall for block in blocks[name]] for name in (KNN, PRODUCT)))
        targets.append(Target(what=f"{_named(shape)}: k-NN over one product", limit=TIMES, least=False, found=found))
    if size.device == "cpu":
        shape = (200, 400, 32) if size.tiny else LARGE
        peak = peak_bytes(shape)
        rows.append({"queries x bank x features": _named(shape), "what": "peak memory of a process", "GB": peak / 1e9})
        what = f"{_named(shape)}: peak memory of a process over {LIMIT / 1e9:g} GB"
        targets.append(Target(what=what, limit=1.0, least=False, found=Ratio(*[peak / LIMIT] * 3)))
    return Report(
        name=f"neighbours-{size.device}",
        title="Prediction depth: the nearest neighbours of one probe",
        rows=rows,
        targets=targets,
        notes=[
            "fp32; on a CPU one thread",
            "memory: of all that a process holds, torch and the features of bank and queries included; of more queries "
            "only their features come on top",
        ],
    )


def _named(shape: tuple[int, int, int]) -> str:
    return " x ".join(f"{length:,}" for length in shape)


def compared(shape: tuple[int, int, int], size: Size) -> dict[str, list[Block]]:
    """Blocks of the search and of the product."""
    bank, labels, queries = _data(shape, size.device)
    contenders = [
        Contender(name=KNN, run=lambda: knn_predictions(bank, labels, queries, classes=10)),
        Contender(name=PRODUCT, run=lambda: queries @ bank.T),
    ]
    with threads(1):
        return interleave(contenders, rounds=size.rounds, wait=_wait(size))


def peak_bytes(shape: tuple[int, int, int]) -> int:
    """The most memory that a process of its own holds, whose queries leave themselves out of the bank."""
    asked, kept, width = shape
    code = (
        "import resource, sys, torch\n"
        "from llf_ray.measures.depth import knn_predictions\n"
        f"bank = torch.rand({kept}, {width})\n"
        f"labels = torch.arange({kept}) % 10\n"
        f"knn_predictions(bank, labels, bank[:{asked}].clone(), leave_one_out=True)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(peak * (1 if sys.platform == 'darwin' else 1024))\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return int(done.stdout)


def _data(shape: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    asked, kept, width = shape
    bank, queries = (torch.randn(number, width, generator=random).relu_() for number in (kept, asked))
    return bank.to(device), torch.randint(10, (kept,), generator=random).to(device), queries.to(device)


def _wait(size: Size) -> Callable[[], object]:
    return torch.cuda.synchronize if size.device == "cuda" else lambda: None


def _rows(shape: tuple[int, int, int], blocks: dict[str, list[Block]]) -> list[dict[str, Any]]:
    flops = 2.0 * shape[0] * shape[1] * shape[2]
    rows = []
    for name, own in blocks.items():
        wall, apart = spread([block.wall for block in own])
        rows.append(
            {
                "queries x bank x features": _named(shape),
                "what": name,
                "s": wall,
                "spread": f"{100 * apart / wall:.0f} %",
                "GFLOP/s": flops / wall / 1e9,
            }
        )
    return rows
