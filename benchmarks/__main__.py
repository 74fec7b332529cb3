"""``python -m benchmarks [NAME ...] [--device cpu|cuda] [--rounds N] [--tiny]``: measure, print a table, write JSON."""

from __future__ import annotations

import argparse
import importlib
import pkgutil

import torch

import benchmarks
from benchmarks.harness import RESULTS, Report, Size, keep_freed_memory, save, show

NOT_BENCHMARKS = {"__main__", "harness", "cases"}


def names() -> list[str]:
    """Every benchmark: the package's files, less its own machinery."""
    return sorted({module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - NOT_BENCHMARKS)


def measure(name: str, size: Size) -> Report:
    """Run one benchmark."""
    report: Report = importlib.import_module(f"benchmarks.{name}").measure(size)
    return report


def main(arguments: list[str] | None = None) -> None:
    """Measure what is named, or everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; none: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only this one; else both, as far as there are")
    parser.add_argument("--rounds", type=int, default=Size().rounds, help="blocks of each contender")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs; nothing is written")
    given = parser.parse_args(arguments)
    unknown = set(given.names) - set(names())
    if unknown:
        parser.error(f"no benchmark {sorted(unknown)[0]!r}; there are: {', '.join(names())}")
    keep_freed_memory()
    for name in given.names or names():
        for device in (given.device,) if given.device else ("cpu", "cuda"):
            if device == "cuda" and not torch.cuda.is_available():
                print(f"{name} on cuda: not measured, no GPU here\n")
                continue
            report = measure(name, Size(device=device, rounds=given.rounds, tiny=given.tiny))
            print(show(report), flush=True)
            if not given.tiny:
                print(f"written: benchmarks/{RESULTS.name}/{save(report).name}\n", flush=True)


if __name__ == "__main__":
    main()
