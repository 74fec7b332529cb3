"""What a trained network is worth beside its own test: for other data, for few examples, early in its layers, around
its minimum. All of it is as `llf-ray measure` finds it, in one call a network.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llf_ray.config import SettingError, fingerprint, unknown
from llf_ray.data.base import DataSet, anchored
from llf_ray.journal import replace_text
from llf_ray.studies.measure import Measurement, Protocol, check_targets, measure_run, open_subject
from llf_ray.tasks.classification import Classification

__all__ = ["Examination", "check_examination", "examine", "examined", "is_examined"]

FILE = "examined.json"
OWN = ("depth", "calibration", "curvature")


@dataclass(frozen=True, kw_only=True)
class Examination:
    """How networks are examined; every network alike.

    ``targets`` are other data sets for the linear probe, ``few_shot`` those for 5-way problems; ``measures`` are taken
    on the network's own data. All by one ``protocol``, that of `llf_ray.studies.measure`.
    """

    protocol: Protocol = Protocol()
    targets: Mapping[str, DataSet] = field(default_factory=dict)
    few_shot: Mapping[str, DataSet] = field(default_factory=dict)
    measures: tuple[str, ...] = OWN

    def __post_init__(self) -> None:
        for name in self.measures:
            if name not in OWN:
                raise unknown("measure", name, OWN)

    def with_whole_paths(self) -> Examination:
        """The same with absolute paths, for workers that start in another folder."""
        return replace(
            self,
            targets={name: anchored(data) for name, data in self.targets.items()},
            few_shot={name: anchored(data) for name, data in self.few_shot.items()},
        )


def check_examination(task: Any, settings: Examination) -> None:
    """Raise for what could only fail once everything is trained.

    Raises:
        SettingError: a task that cannot be examined, or data that cannot be read, have other channels, or too few
        examples of a class.
    """
    if not isinstance(task, Classification):
        raise SettingError(f"networks that classify images are examined, not those of {type(task).__name__}")
    check_targets(task, ("transfer",), settings.protocol, settings.targets)
    check_targets(task, ("few-shot",), settings.protocol, settings.few_shot)


def examined(run_folder: Path) -> dict[str, float]:
    """What was found; nothing where the network was not examined."""
    try:
        found: dict[str, float] = json.loads((run_folder / FILE).read_text())["values"]
    except FileNotFoundError:
        return {}
    return found


def is_examined(run_folder: Path, settings: Examination) -> bool:
    """Whether the network was examined by these settings."""
    try:
        return bool(json.loads((run_folder / FILE).read_text())["settings"] == fingerprint(settings))
    except (FileNotFoundError, ValueError, KeyError):
        return False


def examine(run_folder: Path, settings: Examination) -> dict[str, float]:
    """Examine the final network of a finished run and write what was found there, under these names.

    ``transfer/TARGET`` test accuracy of the linear probe; ``few_shot/TARGET/SHOTS`` mean accuracy of an episode;
    ``depth`` mean prediction depth of test images, in probes; ``curvature/largest``, ``/smallest`` and ``/trace`` of
    the Hessian of the training loss; ``calibration`` expected error on test. All else that the measures give is in
    the run's folder ``measures``.
    """
    begun = time.perf_counter()
    subject, protocol = open_subject(run_folder), settings.protocol
    found = measure_run(subject, settings.measures, protocol)
    # a network's own data are no other data
    targets = {name: data for name, data in settings.targets.items() if data != subject.task.data}
    if targets:
        found |= measure_run(subject, ("transfer",), protocol, targets)
    if settings.few_shot:
        found |= measure_run(subject, ("few-shot",), protocol, settings.few_shot)
    values = _headlines(found, settings)
    about = {"settings": fingerprint(settings), "seconds": time.perf_counter() - begun, "values": values}
    replace_text(run_folder / FILE, json.dumps(about, indent=1))
    return values


def _headlines(found: Mapping[str, Measurement], settings: Examination) -> dict[str, float]:
    """The values that a study compares, by its names for them."""
    names = {
        **{("transfer", f"{target}/accuracy"): f"transfer/{target}" for target in settings.targets},
        **{
            ("few-shot", f"{target}/{shots}-shot/accuracy"): f"few_shot/{target}/{shots}"
            for target in settings.few_shot
            for shots in settings.protocol.shots
        },
        ("depth", "mean"): "depth",
        ("calibration", "error"): "calibration",
        **{("curvature", name): f"curvature/{name}" for name in ("largest", "smallest", "trace")},
    }
    taken = {(measure, key): value for measure, one in found.items() for key, value in one.taken.values.items()}
    return {name: taken[key] for key, name in names.items() if key in taken}
