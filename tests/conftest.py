"""What every test starts from: seeded randomness, one thread a process, one Ray and real data for those that ask."""

import os

# Set before torch or Ray is imported anywhere, since both read them once. Threads: a few workers share a few
# cores, and threads of threads only wait. Collectives: a rank that never comes is an error, not a hang.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "120")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how often a report is taken

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from llf_ray.data.base import ROOT_VARIABLE

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that forgets to seed still sees the same numbers every time."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def shared_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of real data sets, as the start of relative paths: what LLF_RAY_DATA names, else `shared/data` beside
    the checkout. The test is skipped where there is none.
    """
    beside = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get(ROOT_VARIABLE) or beside)
    if not (root / "cifar10").is_dir():
        pytest.skip(f"no real data sets in {root}: set {ROOT_VARIABLE}")
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    return root


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of four logical CPUs on this machine, started once for all tests that ask for it."""
    import ray

    memory = 100 * 2**20  # bytes of the object store
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        object_store_memory=memory,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
