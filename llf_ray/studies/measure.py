"""Measures of finished runs: the network as its last step left it, on the run's own data and on others.

Every run is measured by one protocol: the weights of the last step (never a best one), the same seeds, images and
episodes. What was found is RUN/measures/NAME.json, with all that it depends on; it is read back while that stays.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from llf_ray import __version__, figures
from llf_ray.config import SettingError, check_number, to_plain, unknown
from llf_ray.data.augment import Augment
from llf_ray.data.base import ROLES, DataSet, Role, anchored
from llf_ray.data.order import Draw
from llf_ray.engine.digest import MODULUS, digest_of
from llf_ray.journal import FRACTIONS, Journal, read_run, replace_text
from llf_ray.measures.calibration import calibration
from llf_ray.measures.curvature import curvature
from llf_ray.measures.depth import Examples, numbered_blocks, prediction_depths
from llf_ray.measures.features import Labelled, class_scores, pooled_features
from llf_ray.measures.few_shot import check_few_shot, few_shot
from llf_ray.measures.norms import layer_norms
from llf_ray.measures.transfer import linear_probe
from llf_ray.run import Comparison, RunConfig
from llf_ray.studies.compare import against, is_comparison, publish, read_result, spread, unfinished
from llf_ray.studies.finished import open_finished
from llf_ray.studies.show import markdown_table, table_like
from llf_ray.tasks.classification import Classification
from llf_ray.tasks.start import Fresh
from llf_ray.train.folder import load_module

__all__ = [
    "MEASURES",
    "Measurement",
    "Protocol",
    "Subject",
    "check_targets",
    "chosen",
    "measure_comparison",
    "measure_run",
    "open_subject",
    "publish_measures",
    "read_targets",
    "report",
    "report_comparison",
]

FOLDER, CHECKPOINT = "measures", "last step"
BATCH = 200  # images that a network sees at once
SMALL = 64  # the same where a graph of second derivatives is kept


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What may be chosen of how runs are measured; all else is the published protocol. See docs/measures.md."""

    seed: int = 0  # of images, splits, episodes, heads and first vectors
    images: int = 1024  # training images of curvature and norms
    shots: tuple[int, ...] = (5, 20, 50)
    episodes: int = 600
    examples: int | None = None  # of the training and of the test part, for depth; None: all
    eigenvalues: int = 5  # the largest ones
    tolerance: float = 1e-3  # of eigenvalues
    signs: int = 100  # random ones, for the trace

    def __post_init__(self) -> None:
        check_number("seed", self.seed, low=0)
        for name in ("images", "episodes", "examples", "eigenvalues"):
            check_number(name, getattr(self, name), low=1)
        check_number("tolerance", self.tolerance, above=0.0)
        check_number("signs", self.signs, low=2)
        if not self.shots or len(set(self.shots)) < len(self.shots):
            raise SettingError(f"shots = {self.shots!r}: one or more numbers are needed, each once")
        for number in self.shots:
            check_number("shots", number, low=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A finished run's network in evaluation mode, its task, and where it comes from."""

    folder: Path
    task: Classification
    network: nn.Module
    step: int
    weights: str  # digest
    device: torch.device

    def batches(
        self, role: Role, *, task: Classification | None = None, chosen: np.ndarray | None = None, size: int = BATCH
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images of a role as the network is tested on them, all or some, and their classes."""
        source = self.task if task is None else task
        indices = np.arange(source.num_items(role)) if chosen is None else chosen
        draws = [Draw(indices[start : start + size], None) for start in range(0, len(indices), size)]
        for batch in source.batches(role, draws, self.device):
            yield batch.images, batch.labels

    def images(self, role: Role, chosen: np.ndarray | None = None) -> Iterator[Tensor]:
        """The same without classes."""
        return (images for images, _ in self.batches(role, chosen=chosen))

    def some(self, protocol: Protocol) -> list[tuple[Tensor, Tensor]]:
        """Training images, the same ones for every run of a task."""
        return list(self.batches("train", chosen=self.drawn("train", protocol.images, protocol), size=SMALL))

    def too_few(self, protocol: Protocol) -> tuple[str, ...]:
        """What to know where there are fewer training images than the protocol asks for."""
        number = self.task.num_items("train")
        if number >= protocol.images:
            return ()
        return (f"all {number:,} training images were taken: there are no {protocol.images:,}",)

    def drawn(self, role: Role, number: int | None, protocol: Protocol) -> np.ndarray:
        """Places of a role's items that were drawn by seed, in order; all for None.

        Data sets come sorted by class, or with classes taking turns: neither the first ones nor every n-th will do.
        """
        mixed = np.random.default_rng((protocol.seed, 7)).permutation(self.task.num_items(role))
        return np.sort(mixed[:number])

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """What the run was trained by, without blended images."""
        return torch.nn.functional.cross_entropy(scores, labels, label_smoothing=self.task.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a measure gave: numbers to compare by, more of them for MLflow, all else, and what to know in words."""

    values: Mapping[str, float]
    more: Mapping[str, float]
    details: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measure of a run as its file has it; ``about``: all that it depends on, ``again``: read back."""

    measure: str
    about: Mapping[str, Any]
    taken: Taken
    seconds: float
    again: bool


Targets = Mapping[str, DataSet]


# ------------------------------------------------------------------------------------------------------------ measures


def _depth(subject: Subject, protocol: Protocol, targets: Targets) -> Taken:
    chosen = {role: subject.drawn(role, protocol.examples, protocol) for role in ROLES if role != "validation"}
    # the bank has the classes that the network was taught
    labels = {role: torch.from_numpy(subject.task.labels(role)[places]) for role, places in chosen.items()}
    parts: dict[str, Examples] = {
        role: (partial(subject.images, role, places), labels[role]) for role, places in chosen.items()
    }
    found = prediction_depths(subject.network, parts, bank="train")
    return Taken(
        values={"mean": found["test"].mean, "train_mean": found["train"].mean},
        more={},
        details={
            "probes": found["test"].probes,
            **{
                role: {"mean": one.mean, "histogram": one.histogram, "accuracy": one.accuracy}
                for role, one in found.items()
            },
        },
        notes=()
        if numbered_blocks(subject.network)
        else ("no numbered blocks in this network: its top modules were probed",),
    )


def _curvature(subject: Subject, protocol: Protocol, targets: Targets) -> Taken:
    found = curvature(
        subject.network,
        subject.some(protocol),
        subject.loss,
        top=protocol.eigenvalues,
        probes=protocol.signs,
        tolerance=protocol.tolerance,
        seed=protocol.seed,
    )
    values = {"smallest": found.smallest, "trace": found.trace, "trace_error": found.trace_error, "error": found.error}
    largest = {} if not found.top else {"largest": found.top[0]}
    return Taken(
        values={**largest, **{name: value for name, value in values.items() if value is not None}},
        more={f"top/{place}": value for place, value in enumerate(found.top, 1)},
        details=asdict(found),
        notes=(*found.notes, *subject.too_few(protocol)),
    )


def _norms(subject: Subject, protocol: Protocol, targets: Targets) -> Taken:
    found = layer_norms(subject.network, subject.some(protocol), subject.loss)
    kinds = ("weight", "gradient")
    return Taken(
        values={kind: float(np.linalg.norm([getattr(one, kind) for one in found.values()])) for kind in kinds},
        more={f"{kind}/{layer}": getattr(one, kind) for layer, one in found.items() for kind in kinds},
        details={layer: asdict(one) for layer, one in found.items()},
        notes=subject.too_few(protocol),
    )


def _calibration(subject: Subject, protocol: Protocol, targets: Targets) -> Taken:
    scores = class_scores(subject.network, subject.batches("test"))
    plain = asdict(calibration(scores.values, scores.labels))
    bins = plain.pop("bins")
    return Taken(values=plain, more={}, details={"bins": bins})


def _transfer(subject: Subject, protocol: Protocol, targets: Targets) -> Taken:
    values: dict[str, float] = {}
    details: dict[str, Any] = {}
    notes: list[str] = []
    for name, data in targets.items():
        task = _seen_as(subject.task, data)
        train, validation, test = (_features(subject, task, role) for role in ROLES)
        found = linear_probe(train, test, validation, seed=protocol.seed)
        values[f"{name}/accuracy"] = found.accuracy
        details[name] = asdict(found)
        if found.edge:
            highest = found.rate == max(found.validation)
            why = "above it SGD is not stable on features of this size" if highest else "below it nothing is tried"
            notes.append(f"{name}: the best rate, {found.rate:g}, is at the grid's edge: {why}")
    return Taken(values=values, more={}, details=details, notes=tuple(notes))


def _few_shot(subject: Subject, protocol: Protocol, targets: Targets) -> Taken:
    values: dict[str, float] = {}
    details: dict[str, dict[str, Any]] = {}
    for name, data in targets.items():
        task = _seen_as(subject.task, data)
        parts = [_features(subject, task, role) for role in _roles(subject.task, data)]
        features, labels = torch.cat([part.values for part in parts]), torch.cat([part.labels for part in parts])
        for shots in protocol.shots:
            found = few_shot(features, labels, shots=shots, episodes=protocol.episodes, seed=protocol.seed)
            values |= {f"{name}/{shots}-shot/accuracy": found.mean, f"{name}/{shots}-shot/interval": found.half}
            details.setdefault(name, {})[str(shots)] = found.accuracy.tolist()
    return Taken(values=values, more={}, details=details)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a measure is taken, which fields of the protocol it depends on, and whether it needs other data."""

    take: Callable[[Subject, Protocol, Targets], Taken]
    fields: tuple[str, ...] = ()
    other_data: bool = False


MEASURES: Mapping[str, Measure] = {
    "depth": Measure(take=_depth, fields=("seed", "examples")),
    "curvature": Measure(take=_curvature, fields=("seed", "images", "eigenvalues", "tolerance", "signs")),
    "norms": Measure(take=_norms, fields=("seed", "images")),
    "calibration": Measure(take=_calibration),
    "transfer": Measure(take=_transfer, fields=("seed",), other_data=True),
    "few-shot": Measure(take=_few_shot, fields=("seed", "shots", "episodes"), other_data=True),
}


def _features(subject: Subject, task: Classification, role: Role) -> Labelled:
    return pooled_features(subject.network, subject.batches(role, task=task))


def _roles(task: Classification, data: DataSet) -> tuple[Role, ...]:
    """Roles that episodes are drawn from: all, since nothing was fitted on them, but of a run's own data only test."""
    return ("test",) if data == task.data else ROLES


def _seen_as(task: Classification, data: DataSet) -> Classification:
    """Other data, resized and scaled as the network's own images are."""
    scaling, augment = task.scaling(), task.augment
    height, width = task.example().shape[-2:]
    if isinstance(augment, Augment) and augment.size is None and height == width:
        augment = replace(augment, size=height)
    return replace(
        task,
        data=data,
        augment=augment,
        mean=scaling.mean,
        std=scaling.std,
        start=Fresh(),
        mixup=0.0,
        cutmix=0.0,
        mislabelled=0.0,
    )


# ------------------------------------------------------------------------------------------------------------- choices


def chosen(names: Sequence[str], targets: Targets) -> tuple[str, ...]:
    """The measures that are named, each once; without names, all that can be taken with the data that there are.

    Raises:
        SettingError: an unknown name, or a measure that needs other data where there are none.
    """
    for name in names:
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES)
        if MEASURES[name].other_data and not targets:
            raise SettingError(
                f"measure {name!r} needs other data: --target FILE, a Python file with `targets = {{...}}`"
            )
    return tuple(dict.fromkeys(names)) or tuple(
        name for name, measure in MEASURES.items() if targets or not measure.other_data
    )


def read_targets(words: Sequence[str]) -> dict[str, DataSet]:
    """Data sets by name from FILE or FILE:NAME: a Python file with ``targets = {"name": data}``, or a job, whose data
    go by the job's name.

    Raises:
        SettingError: no such file or name, no data in it, or two of one name.
    """
    found: dict[str, DataSet] = {}
    for word in words:
        path, _, name = word.rpartition(":") if not Path(word).is_file() and ":" in word else (word, "", "")
        held = _held(Path(path))
        if name and name not in held:
            raise unknown(f"{path}: target", name, held)
        for key, data in held.items():
            if name in ("", key):
                if key in found:
                    raise SettingError(f"--target {word}: there is a target {key!r} already")
                found[key] = anchored(data)
    return found


def _held(path: Path) -> dict[str, Any]:
    module = load_module(path)
    job = getattr(module, "config", None) or getattr(getattr(module, "comparison", None), "base", None)
    if hasattr(module, "targets"):
        held = module.targets
    elif isinstance(job, RunConfig) and isinstance(job.task, Classification):
        whole = getattr(module, "comparison", job)
        held = {whole.name if isinstance(whole, Comparison) else job.name: job.task.data}
    else:
        raise SettingError(
            f'{path}: a file of targets holds `targets = {{"name": data, ...}}`, or is a job with images'
        )
    if not isinstance(held, Mapping) or not held:
        raise SettingError(f'{path}: targets = {held!r}: must be {{"name": data, ...}}')
    for name, data in held.items():
        if not isinstance(name, str) or not name or not all(c.isalnum() or c in "-_." for c in name):
            raise SettingError(f"{path}: target {name!r}: letters, digits, '-', '_' and '.' only")
        if isinstance(data, type) or not all(hasattr(data, part) for part in ("load", "classes", "channels")):
            raise SettingError(f"{path}: target {name!r} is {data!r}: a data set of llf_ray.data is needed")
    return dict(held)


def check_targets(task: Classification, names: Sequence[str], protocol: Protocol, targets: Targets) -> None:
    """Raise for what could only fail later.

    Raises:
        SettingError: data that cannot be read, of other channels than the network's, or (where "few-shot" is among
        ``names``) with too few examples of a class.
    """
    if not any(MEASURES[name].other_data for name in names):
        return
    for name, data in targets.items():
        try:
            if data.channels != task.data.channels:
                data.load("test")  # data that are not there are the first thing to say
                raise SettingError(f"channels = {data.channels}: the network sees {task.data.channels}")
            _seen_as(task, data).prepare()
            if "few-shot" in names:
                labels = np.concatenate([np.asarray(data.load(role).labels) for role in _roles(task, data)])
                for shots in protocol.shots:
                    check_few_shot(labels, shots=shots, names=data.classes())
        except (ValueError, OSError) as error:
            raise SettingError(f"target {name!r}: {error}") from None


# --------------------------------------------------------------------------------------------------------- a single run


def open_subject(run_folder: Path) -> Subject:
    """The network of a finished run.

    Raises:
        SettingError: no run, one that is not finished, or one whose task has no images to classify.
    """
    finished = open_finished(run_folder)
    task = finished.run.config.task
    if not isinstance(task, Classification):
        raise SettingError(
            f"run {run_folder.name!r}: measures are of networks that classify images, not of {type(task).__name__}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    digest = sum(digest_of(name, 0, value.reshape(-1)) for name, value in finished.values.items()) % MODULUS
    return Subject(
        folder=run_folder,
        task=task,
        network=finished.network().to(device),
        step=finished.step,
        weights=f"{digest:016x}",
        device=device,
    )


def measure_run(
    subject: Subject,
    names: Sequence[str],
    protocol: Protocol = Protocol(),
    targets: Targets | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Measurement]:
    """Take measures of a run, or read them back; each is written as soon as it is there.

    Args:
        subject: as of `open_subject`.
        names: as of `chosen`.
        protocol: seeds and sizes.
        targets: other data by name.
        tell: gets a line in front of each measure that is taken.

    Raises:
        SettingError: before anything is computed, for targets that cannot be used.
    """
    others = dict(targets or {})
    check_targets(subject.task, names, protocol, others)
    found = {}
    for name in names:
        about = _about(subject, name, protocol, others)
        kept = _kept(subject.folder / FOLDER / f"{name}.json", about)
        if kept is None:
            tell(f"{subject.folder.name}: {name}")
            begun = time.perf_counter()
            taken = MEASURES[name].take(subject, protocol, others)
            seconds = time.perf_counter() - begun
            kept = Measurement(measure=name, about=about, taken=taken, seconds=seconds, again=False)
            _write(subject, kept, protocol)
        found[name] = kept
    return found


def _about(subject: Subject, name: str, protocol: Protocol, targets: Targets) -> dict[str, Any]:
    """All that a measure's numbers depend on, as JSON gives it back."""
    measure = MEASURES[name]
    about = {
        "measure": name,
        "checkpoint": CHECKPOINT,
        "step": subject.step,
        "weights": subject.weights,
        "settings": {key: getattr(protocol, key) for key in measure.fields},
        "task": to_plain(subject.task),
        "targets": {key: to_plain(data) for key, data in targets.items()} if measure.other_data else {},
        "version": __version__,
    }
    return dict(json.loads(json.dumps(about)))


def _kept(path: Path, about: Mapping[str, Any]) -> Measurement | None:
    """What a file has, where it is about the same."""
    try:
        plain = json.loads(path.read_text())
        if plain["about"] != about:
            return None
        taken = Taken(**{name: plain[name] for name in ("values", "more", "details")}, notes=tuple(plain["notes"]))
        return Measurement(measure=about["measure"], about=about, taken=taken, seconds=plain["seconds"], again=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(subject: Subject, found: Measurement, protocol: Protocol) -> None:
    folder = subject.folder / FOLDER
    folder.mkdir(exist_ok=True)
    plain = {"about": found.about, **asdict(found.taken), "seconds": found.seconds}
    replace_text(folder / f"{found.measure}.json", json.dumps(plain, indent=1) + "\n")
    _draw({subject.folder.name: found}, folder)
    record = {"kind": "measure", "measure": _label(found.measure, protocol), "step": subject.step}
    with Journal(subject.folder / "journal.jsonl") as journal:
        journal.append({**record, "values": {**found.taken.values, **found.taken.more}})


def _label(name: str, protocol: Protocol) -> str:
    """The measure's name in MLflow, with what is not the default: of one name and step MLflow keeps the first value.

    Shots are in the names of values.
    """
    usual = Protocol()
    kept = [key for key in MEASURES[name].fields if key != "shots"]
    changed = [f"{key}={getattr(protocol, key)}" for key in kept if getattr(protocol, key) != getattr(usual, key)]
    return "/".join([name, *changed])


def _draw(found: Mapping[str, Measurement], folder: Path) -> None:
    """The picture of a measure that has one, of one run or several."""
    first = next(iter(found.values()))
    title = f"{next(iter(found))}: " if len(found) == 1 else ""
    if first.measure == "depth":
        figures.depths(
            f"{title}prediction depth of test images",
            {label: one.taken.details["test"]["histogram"] for label, one in found.items()},
            first.taken.details["probes"],
            folder / "depth.png",
        )
    elif first.measure == "calibration":
        figures.reliability(
            f"{title}accuracy by confidence, test images",
            {
                label: [(one["number"], one["confidence"], one["accuracy"]) for one in found_one.taken.details["bins"]]
                for label, found_one in found.items()
            },
            folder / "calibration.png",
        )


# --------------------------------------------------------------------------------------------------------- a comparison


def measure_comparison(
    folder: Path,
    names: Sequence[str],
    protocol: Protocol = Protocol(),
    targets: Targets | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[int, dict[str, Measurement]]]:
    """Measures of every training of a comparison: arm, seed, measure. Written into its folder as table, numbers and
    figures.

    Raises:
        SettingError: a training is not finished.
    """
    waiting = unfinished(folder)
    if waiting:
        raise SettingError(
            f"comparison {folder.name!r}: {', '.join(waiting)} not finished; runs are measured at their last step"
        )
    result = read_result(folder)
    found = {
        arm.arm: {
            seed: measure_run(open_subject(folder / training.name), names, protocol, targets, tell)
            for seed, training in arm.trainings.items()
        }
        for arm in result.arms
    }
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    replace_text(place / "result.json", json.dumps(_plain(found), indent=1) + "\n")
    (folder / "tables").mkdir(exist_ok=True)
    replace_text(folder / "tables" / "measures.md", _markdown(folder.name, found, protocol))
    for name in names:
        seeds = {arm: list(by_seed.values()) for arm, by_seed in found.items()}
        _draw({arm: _together([one[name] for one in several]) for arm, several in seeds.items()}, place)
    return found


def _together(found: Sequence[Measurement]) -> Measurement:
    """One arm's seeds as one, for a picture: counts added up."""
    first = found[0]
    if first.measure == "depth":
        histograms = np.sum([one.taken.details["test"]["histogram"] for one in found], 0).tolist()
        details = {**first.taken.details, "test": {"histogram": histograms}}
    elif first.measure == "calibration":
        details = {"bins": [_joined(same) for same in zip(*(one.taken.details["bins"] for one in found), strict=True)]}
    else:
        return first
    return replace(first, taken=replace(first.taken, details=details))


def _joined(bins: Sequence[Mapping[str, float]]) -> dict[str, float]:
    number = sum(one["number"] for one in bins)
    means = {
        key: sum(one[key] * one["number"] for one in bins) / number if number else 0.0
        for key in ("confidence", "accuracy")
    }
    return {**bins[0], "number": number, **means}


Measured = Mapping[str, Mapping[int, Mapping[str, Measurement]]]


def _values(found: Measured) -> Iterator[tuple[str, str, dict[str, dict[int, float | None]]]]:
    """Measure, value and its numbers by arm and seed."""
    one = next(iter(next(iter(found.values())).values()))
    for name in one:
        keys = dict.fromkeys(key for runs in found.values() for run in runs.values() for key in run[name].taken.values)
        for key in keys:
            yield (
                name,
                key,
                {
                    arm: {seed: run[name].taken.values.get(key) for seed, run in runs.items()}
                    for arm, runs in found.items()
                },
            )


def _plain(found: Measured) -> dict[str, Any]:
    """By measure and value: each arm by seed, mean, spread, and what it is more than the first arm, by seed."""
    plain: dict[str, Any] = {}
    for name, key, by_arm in _values(found):
        first = next(iter(by_arm.values()))
        plain.setdefault(name, {})[key] = {
            arm: {
                "by_seed": {str(seed): value for seed, value in by_seed.items()},
                "mean": _mean(by_seed),
                "spread": spread([value for value in by_seed.values() if value is not None]),
                "minus_first": None if by_seed is first else asdict(against(by_seed, first)),
            }
            for arm, by_seed in by_arm.items()
        }
    return plain


def _mean(by_seed: Mapping[int, float | None]) -> float | None:
    values = [value for value in by_seed.values() if value is not None]
    return float(np.mean(values)) if values else None


# --------------------------------------------------------------------------------------------------------------- words

WORDS = {
    "depth": {"mean": "mean depth, test", "train_mean": "mean depth, train"},
    "curvature": {
        "largest": "largest eigenvalue",
        "smallest": "smallest eigenvalue",
        "trace": "trace",
        "trace_error": "standard error of the trace",
        "error": "eigenvalues known to within",
    },
    "norms": {"weight": "norm of all weights", "gradient": "norm of the loss's gradient"},
    "calibration": {
        "error": "expected calibration error",
        "largest": "largest error of a bin",
        "brier": "Brier score",
        "likelihood": "negative log likelihood",
        "accuracy": "accuracy, test",
        "confidence": "mean confidence",
    },
}
PER_CENT = {*FRACTIONS, "interval", "confidence"}


def _words(name: str, key: str) -> str:
    return WORDS.get(name, {}).get(key) or " ".join(key.replace("/interval", "/+- (95 %)").split("/"))


def _amount(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if key.rpartition("/")[2] in PER_CENT else f"{value:.4g}"


def report(name: str, found: Mapping[str, Measurement]) -> list[RenderableType]:
    """A run's measures as tables."""
    table = table_like("measure", "", "value", right=(2,))
    for measure, one in found.items():
        for place, (key, value) in enumerate(one.taken.values.items()):
            table.add_row(measure if place == 0 else "", _words(measure, key), _amount(key, value))
    about = next(iter(found.values())).about
    parts: list[RenderableType] = [
        Text(f"{name}: measured at its last step, {about['step']:,}, weights {about['weights']}", style="bold"),
        table,
    ]
    for measure, one in found.items():
        more = _details(measure, one)
        parts += [Text(f"\n{measure}", style="bold"), more] if more is not None else []
        parts += [Text(f"{measure}: {note}") for note in one.taken.notes]
    again = [measure for measure, one in found.items() if one.again]
    parts += [Text(f"measured before, nothing changed: {', '.join(again)}", style="dim")] if again else []
    return parts


def _details(measure: str, found: Measurement) -> Table | None:
    details = found.taken.details
    if measure == "depth":
        table = table_like("probe", "accuracy of 30 neighbours, test", "test images of this depth", right=(1, 2))
        accuracy = [f"{100 * value:.1f} %" for value in details["test"]["accuracy"]]
        rows = [*zip(details["probes"], accuracy, strict=True), ("(not even the last)", "")]
        for (probe, right), number in zip(rows, details["test"]["histogram"], strict=True):
            table.add_row(probe, right, f"{number:,}")
        return table
    if measure == "norms":
        table = table_like("layer", "weights", "gradient", right=(1, 2))
        for layer, norms in details.items():
            table.add_row(layer, f"{norms['weight']:.4g}", f"{norms['gradient']:.4g}")
        return table
    return None


def report_comparison(name: str, found: Measured) -> list[RenderableType]:
    """The table of a comparison: means over seeds, and each seed behind them."""
    columns, rows = _compared(found)
    table = table_like(*columns, right=range(2, len(columns)))
    for row in rows:
        table.add_row(*row)
    parts: list[RenderableType] = [Text(f"{name}: measured at the last step", style="bold"), table]
    return [*parts, *(Text(note) for note in _notes(found))]


def _compared(found: Measured) -> tuple[list[str], list[list[str]]]:
    rows: list[list[str]] = []
    last = ""
    for name, key, by_arm in _values(found):
        cells = []
        for by_seed in by_arm.values():
            each = ", ".join(_amount(key, value).removesuffix(" %") for value in by_seed.values())
            cells.append(_amount(key, _mean(by_seed)) + (f" ({each})" if len(by_seed) > 1 else ""))
        rows.append([name if name != last else "", _words(name, key), *cells])
        last = name
    return ["measure", "", *found], rows


def _notes(found: Measured) -> list[str]:
    return [
        f"{arm}, seed {seed}: {name}: {note}"
        for arm, runs in found.items()
        for seed, run in runs.items()
        for name, one in run.items()
        for note in one.taken.notes
    ]


def _markdown(name: str, found: Measured, protocol: Protocol) -> str:
    columns, rows = _compared(found)
    settings = ", ".join(f"{field.name} = {getattr(protocol, field.name)}" for field in fields(protocol))
    lines = [
        f"# {name}: measured at the last step",
        "",
        *markdown_table(columns, rows, left=2),
        "",
        f"Means over seeds, each seed in brackets. {settings}.",
        *_notes(found),
    ]
    return "\n".join(lines) + "\n"


# -------------------------------------------------------------------------------------------------------------- MLflow


def publish_measures(folder: Path) -> str | None:
    """Bring MLflow level with what was measured; a line where the server does not take it.

    Runs that were never tracked stay so.
    """
    if is_comparison(folder):
        problems = [publish_measures(folder / name) for name in read_run(folder)["trainings"]]
        return next((problem for problem in problems if problem), None) or publish(folder)
    about = read_run(folder)
    if "tracking_root" not in about:
        return None
    from llf_ray.tracking import TrackingError, sync

    try:
        sync(folder)
    except TrackingError as error:
        return str(error)
    return None
