"""What a trained network is worth beside its own test: for other data, for few examples, early in its layers, around
its minimum. One call a network, its result kept in the training's folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from llf_ray.config import SettingError, check_number, fingerprint
from llf_ray.data import Augment
from llf_ray.data.base import DataSet, Role, anchored
from llf_ray.data.order import Draw
from llf_ray.journal import replace_text
from llf_ray.measures.calibration import calibration
from llf_ray.measures.curvature import curvature
from llf_ray.measures.depth import prediction_depths
from llf_ray.measures.features import Labelled, class_scores, pooled_features
from llf_ray.measures.few_shot import few_shot
from llf_ray.measures.transfer import Probe, linear_probe
from llf_ray.train.folder import open_run

__all__ = ["Examination", "examine", "examined", "is_examined"]

FILE = "examined.json"
BATCH = 250  # images of a forward pass
Pairs = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Examination:
    """How networks are examined; every network alike.

    ``targets`` are other data sets for a linear probe on frozen features (train to fit, test to score), ``few_shot``
    the shots of 5-way problems by target, on its test part (``few_shot_data`` where a set is no target). Images become
    squares of ``side`` pixels (None: as they are). Curvature is that of the training loss over ``curvature_examples``
    images (None: not taken, it takes longest).
    """

    targets: Mapping[str, DataSet] = field(default_factory=dict)
    few_shot: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    few_shot_data: Mapping[str, DataSet] = field(default_factory=dict)
    side: int | None = None
    episodes: int = 600
    curvature_examples: int | None = 1000
    curvature_probes: int = 100
    depth_examples: int = 1000
    neighbours: int = 30

    def __post_init__(self) -> None:
        for name in ("side", "episodes", "curvature_examples", "depth_examples", "neighbours"):
            check_number(name, getattr(self, name), low=1)
        check_number("curvature_probes", self.curvature_probes, low=2)
        for name in self.few_shot:
            if name not in self.targets and name not in self.few_shot_data:
                raise SettingError(f"few_shot: {name!r} is neither in targets nor in few_shot_data")

    def with_whole_paths(self) -> Examination:
        """The same with absolute paths, for workers that start in another folder."""
        return replace(
            self,
            targets={name: anchored(data) for name, data in self.targets.items()},
            few_shot_data={name: anchored(data) for name, data in self.few_shot_data.items()},
        )


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


def examine(asked: tuple[str, Examination]) -> dict[str, float]:
    """Examine the final network of a finished run (its folder) and write what was found there, under these names.

    ``transfer/TARGET`` test accuracy of the linear probe; ``few_shot/TARGET/SHOTS`` mean accuracy of an episode;
    ``depth`` mean prediction depth of validation images, in probes; ``curvature/largest``, ``/smallest`` and
    ``/trace`` of the Hessian of the training loss; ``calibration`` expected error on validation.
    """
    folder, settings = Path(asked[0]), asked[1]
    begun = time.perf_counter()
    run = open_run(folder)
    task: Any = run.config.task
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = task.initial(0)
    network.load_state_dict(load_file(folder / "final" / "model.safetensors"))
    network = network.to(device).eval()
    found = {
        **_transferred(network, task, settings, device),
        **_on_its_own_data(network, task, settings, device),
    }
    about = {"settings": fingerprint(settings), "seconds": time.perf_counter() - begun, "values": found}
    replace_text(folder / FILE, json.dumps(about, indent=1))
    return found


def _pairs(task: Any, role: Role, device: torch.device, most: int | None = None) -> Pairs:
    number = task.num_items(role)
    chosen = np.arange(number) if most is None or most >= number else np.arange(number)[:: number // most][:most]
    draws = [Draw(chosen[start : start + BATCH]) for start in range(0, len(chosen), BATCH)]
    return [task.pairs(batch) for batch in task.batches(role, draws, device)]


def _transferred(network: nn.Module, task: Any, settings: Examination, device: torch.device) -> dict[str, float]:
    scaling = task.scaling()
    found: dict[str, float] = {}
    kept: dict[str, Labelled] = {}

    def of(data: DataSet) -> Any:
        # pixels are scaled as the network knows them, not by the target's own mean
        size = settings.side or task.augment.size
        return replace(task, data=data, augment=Augment(size=size), mean=scaling.mean, std=scaling.std, mislabelled=0.0)

    for name, data in settings.targets.items():
        other = of(data)
        train = pooled_features(network, _pairs(other, "train", device))
        kept[name] = pooled_features(network, _pairs(other, "test", device))
        found[f"transfer/{name}"] = linear_probe(train, kept[name], settings=Probe()).accuracy
    for name, shots in settings.few_shot.items():
        if name not in kept:
            kept[name] = pooled_features(network, _pairs(of(settings.few_shot_data[name]), "test", device))
        for number in shots:
            if _fewest(kept[name]) < number + 15:  # test alone is too small: all that the network has not seen
                train = pooled_features(network, _pairs(of(settings.targets[name]), "train", device))
                kept[name] = Labelled(
                    torch.cat([kept[name].values, train.values]), torch.cat([kept[name].labels, train.labels])
                )
            of_all = few_shot(kept[name].values, kept[name].labels, shots=number, episodes=settings.episodes)
            found[f"few_shot/{name}/{number}"] = of_all.mean
    return found


def _fewest(features: Labelled) -> int:
    return int(torch.bincount(features.labels).min())


def _on_its_own_data(network: nn.Module, task: Any, settings: Examination, device: torch.device) -> dict[str, float]:
    bank = _pairs(task, "train", device, settings.depth_examples)
    held_out = _pairs(task, "validation", device, settings.depth_examples)
    labels, truth = (torch.cat([classes.cpu() for _, classes in part]) for part in (bank, held_out))
    k = min(settings.neighbours, len(labels) - 1)
    depths = prediction_depths(
        network, (images for images, _ in bank), labels, (images for images, _ in held_out), truth, k=k
    )
    scores = class_scores(network, held_out)
    found = {"depth": depths.mean, "calibration": calibration(scores.values, scores.labels).error}
    if settings.curvature_examples is None:
        return found
    bent = curvature(
        network,
        _pairs(task, "train", device, settings.curvature_examples),
        lambda given, classes: F.cross_entropy(given, classes, label_smoothing=task.label_smoothing),
        top=1,
        probes=settings.curvature_probes,
        tolerance=1e-2,
    )
    return {
        **found,
        **({"curvature/largest": bent.top[0]} if bent.top else {}),
        **({} if bent.smallest is None else {"curvature/smallest": bent.smallest}),
        "curvature/trace": bent.trace,
    }
