"""The study of forgetting: the whole family at one budget, what it is worth for other data, and what it forgets first.

A study is a few comparisons whose trainings lie side by side in one folder, each as ``ARM-seedN``, and are carried out
side by side, one worker each. Parts of the study look at some of the arms; an arm that several parts name is trained
once. What is finished is never trained or measured again, so the same command carries a stopped study on.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from llf_ray.config import SettingError, nearest, to_plain, unknown
from llf_ray.data import (
    Augment,
    ChestXray,
    Cub,
    FashionOnPhotographs,
    FashionSample,
    Flowers102,
    Folder,
    IndoorScenes,
    Isic,
    Mosaic,
    StanfordDogs,
    TimmAugment,
    TinyImageNet,
    Torchvision,
)
from llf_ray.data.base import ROOT_VARIABLE, DataSet, anchored, located
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking, replace_text
from llf_ray.measures.selectivity import Probe, targeted
from llf_ray.recipes.active_forgetting import ActiveForgetting
from llf_ray.recipes.base import Recipe
from llf_ray.recipes.born_again import BornAgain
from llf_ray.recipes.bunched import BunchedResets
from llf_ray.recipes.dense_sparse import DenseSparse
from llf_ray.recipes.knowledge_evolution import KnowledgeEvolution
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.layer_wise import LayerWise
from llf_ray.recipes.long import Long
from llf_ray.recipes.pruning import IterativePruning
from llf_ray.recipes.restarts import Restarts
from llf_ray.recipes.rifle import Rifle
from llf_ray.recipes.seal import Seal
from llf_ray.recipes.shrink_perturb import ShrinkAndPerturb
from llf_ray.run import Checkpoints, Comparison, Resources, RunConfig, prepare
from llf_ray.studies.compare import prepare_arms
from llf_ray.studies.examine import Examination, check_examination, examine, is_examined
from llf_ray.studies.kept import check_trainings, keep, spending
from llf_ray.studies.measure import Protocol
from llf_ray.studies.show import check_budgets, draw_run
from llf_ray.tasks.models import Normalised
from llf_ray.train.folder import create, open_run
from llf_ray.train.state import Run
from llf_ray.train.worker import Outcome

__all__ = [
    "KELS",
    "MAIN",
    "SELECTIVE",
    "SIZES",
    "SLIM",
    "TINY_IMAGENET",
    "Budget",
    "ForgettingStudy",
    "Part",
    "Size",
    "begin",
    "carry_out",
    "keep_slim",
    "look",
    "make",
    "sweep",
]

Size = Literal["quick", "small", "paper"]
SIZES: tuple[Size, ...] = get_args(Size)
MAIN, SELECTIVE, TINY_IMAGENET = "main", "selective", "tiny_imagenet"
KELS = "kels"  # whose slim networks are taken out, as every generation ended
SLIM = "slim_generations.json"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A question, and the arms of one comparison that answer it; the first is what the others are held against."""

    name: str
    question: str
    of: str
    arms: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Lengths that all arms of a comparison share, and what does not carry over from one length to another.

    ``threshold`` is where later-layer forgetting begins to redraw, ``ascent_threshold`` where SEAL's early layers end.
    Adaptive SEAL ascends at ``adaptive_rate`` until the training loss has grown ``loss_ratio`` times. ``levels`` is the
    number of pruning levels, each of ``generations x epochs / levels`` epochs. ``sparsity`` is that of each tensor in
    dense-sparse-dense, ``alternating_sparsity`` that of all together in its alternating form. ``blocks`` are those of
    layer-wise re-initialisation.
    """

    generations: int
    epochs: float
    warmup_epochs: float
    ascent_epochs: float
    ascent_rate: float
    threshold: str
    levels: int
    pruning_rate: float
    gap_epochs: float
    keep: float = 0.8
    ascent_threshold: str = "layer3"
    adaptive_rate: float = 0.1
    loss_ratio: float = 1.3
    sparsity: float = 0.3
    alternating_sparsity: float = 0.8
    blocks: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4", "fc")


@dataclass(frozen=True, kw_only=True)
class ForgettingStudy:
    """What is trained, what is asked, and how trained networks are examined.

    ``examination`` says how; ``examined`` are the arms that are, of each comparison normal training first; of
    ``curved`` the curvature is taken, too.
    ``about`` says in words what is trained on what.
    """

    name: str
    size: Size
    comparisons: Mapping[str, Comparison]
    parts: tuple[Part, ...]
    budget: Budget
    examination: Examination
    examined: tuple[str, ...]
    curved: tuple[str, ...]
    about: str
    folder: str = "runs"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of every comparison."""
        return self.comparisons[MAIN].seeds

    def trainings(self) -> dict[str, RunConfig]:
        """Every training's settings by name; seed by seed, so that a study that is stopped has whole pairs."""
        every = [config for key in self.comparisons for config in self.runs(key).values()]
        return {config.name: config for config in sorted(every, key=lambda config: config.seed)}

    def runs(self, key: str) -> dict[tuple[str, int], RunConfig]:
        """A comparison's trainings by arm and seed, each with the task and the checkpoints that it needs."""
        return {
            (arm, seed): replace(
                _fitted(config),
                checkpoints=replace(
                    config.checkpoints, keep_generations=config.checkpoints.keep_generations or arm == KELS
                ),
            )
            for (arm, seed), config in self.comparisons[key].runs().items()
        }

    def normal(self, arm: str) -> str:
        """The normal training that an examined arm is held against: the first examined one of its comparison."""
        beside = next(comparison.arms for comparison in self.comparisons.values() if arm in comparison.arms)
        return next(one for one in self.examined if one in beside)

    def examinations(self) -> dict[str, Examination]:
        """How each network that is examined is, by its training's name."""
        without = tuple(name for name in self.examination.measures if name != "curvature")
        flat = replace(self.examination, measures=without)
        return {
            f"{arm}-seed{seed}": self.examination if arm in self.curved else flat
            for seed in self.seeds
            for arm in self.examined
        }


def _fitted(config: RunConfig) -> RunConfig:
    """Settings with wrong labels that the run's seed draws: one draw for all would be missing from every interval."""
    task: Any = config.task
    return replace(config, task=replace(task, mislabelled_seed=config.seed)) if task.mislabelled else config


METHODS = (
    *("long", "restarts", "wels", "kels", "layer_wise"),
    *("later_layer", "later_layer_fixed", "later_layer_fixed_held", "later_layer_reverse"),
    *("seal", "seal_adaptive", "seal_later_layer", "born_again", "dense_sparse", "alternating", "rifle"),
    *("active_forgetting", "warm_start", "shrink_perturb"),
)
EXAMINED = (*METHODS, "pruning")


def parts(budget: Budget) -> tuple[Part, ...]:
    """The questions to the main comparison."""
    return (
        Part(
            name="methods",
            question="Which members of the family gain over one long run of the same budget?",
            of=MAIN,
            arms=METHODS,
        ),
        Part(
            name="spread",
            question="Are resets worth more spread over the run than the same number of them bunched together?",
            of=MAIN,
            arms=("later_layer", "bunched_early", "bunched_late", "restarts"),
        ),
        Part(
            name="share",
            question="How much is too little to forget, and how much too much?",
            of=MAIN,
            arms=tuple(sweep(budget.threshold)),
        ),
        Part(
            name="pruning",
            question="Is what magnitude pruning leaves worth more than as many weights at random places, or drawn "
            "anew?",
            of=MAIN,
            arms=("pruning", "pruning_random", "pruning_reinit", "long"),
        ),
    )


SWEPT: tuple[str | int | None, ...] = (None, "fc", "layer4", "layer3", "layer2", 1)


def sweep(threshold: str) -> dict[str, str | int | None]:
    """Where each arm of the sweep begins to redraw, the least first; None: nowhere.

    Later-layer forgetting is that at ``threshold``.
    """
    names = {None: "restarts", 1: "forget_all", threshold: "later_layer"}
    return {names.get(since, f"forget_{since}"): since for since in SWEPT}


def arms(budget: Budget) -> dict[str, Recipe]:
    """Every arm at one budget of optimizer steps, less what pruning's controls train aside."""
    b = budget
    generations, epochs, warmup = b.generations, b.epochs, b.warmup_epochs
    later = LaterLayer(generations=generations, epochs=epochs, warmup_epochs=warmup, threshold=b.threshold)
    evolve = KnowledgeEvolution(generations=generations, epochs=epochs, warmup_epochs=warmup, keep=b.keep)
    bunched = BunchedResets(
        generations=generations,
        epochs=epochs,
        warmup_epochs=warmup,
        threshold=b.threshold,
        gap_epochs=b.gap_epochs,
    )
    pruning = IterativePruning(
        generations=b.levels,
        epochs=generations * epochs / b.levels,
        warmup_epochs=min(warmup, generations * epochs / b.levels / 2),
        rate=b.pruning_rate,
    )
    seal = Seal(
        generations=generations,
        epochs=epochs,
        warmup_epochs=warmup,
        ascent_epochs=b.ascent_epochs,
        ascent_rate=b.ascent_rate,
        threshold=b.ascent_threshold,
    )
    dense_sparse = DenseSparse(generations=generations, epochs=epochs, warmup_epochs=warmup, sparsity=b.sparsity)
    arrivals = ShrinkAndPerturb(generations=generations, epochs=epochs)
    return {
        "long": Long(generations=generations, epochs=epochs, warmup_epochs=warmup),
        "restarts": Restarts(generations=generations, epochs=epochs, warmup_epochs=warmup),
        "wels": replace(evolve, split="weights"),
        "kels": replace(evolve, split="kernels"),
        "layer_wise": LayerWise(generations=generations, epochs=epochs, warmup_epochs=warmup, blocks=b.blocks),
        "later_layer": later,
        "later_layer_fixed": replace(later, fixed=True),
        "later_layer_fixed_held": replace(later, fixed=True, hold="later"),
        "later_layer_reverse": replace(later, reverse=True),
        "seal": seal,
        "seal_adaptive": replace(seal, ascent_rate=b.adaptive_rate, loss_ratio=b.loss_ratio),
        "seal_later_layer": replace(seal, forget_later=True),
        "born_again": BornAgain(generations=generations, epochs=epochs, warmup_epochs=warmup),
        "dense_sparse": dense_sparse,
        "alternating": replace(
            dense_sparse, sparsity=b.alternating_sparsity, scope="global", last_rate=1.0, one_curve=True
        ),
        "rifle": Rifle(generations=generations, epochs=epochs, warmup_epochs=warmup),
        "active_forgetting": ActiveForgetting(generations=generations, epochs=epochs, warmup_epochs=warmup),
        "warm_start": replace(arrivals, shrink=1.0, perturb=0.0),
        "shrink_perturb": arrivals,
        "bunched_early": bunched,
        "bunched_late": replace(bunched, first=generations - 1),
        **{
            name: replace(later, threshold=threshold)
            for name, threshold in sweep(b.threshold).items()
            if name.startswith("forget_") and threshold is not None
        },
        "pruning": pruning,
        "pruning_random": replace(pruning, control="random"),
        "pruning_reinit": replace(pruning, control="reinit"),
    }


# --------------------------------------------------------------------------------------------------------------- sizes


def make(size: Size, *, seeds: int | None = None, folder: str = "runs", name: str = "") -> ForgettingStudy:
    """The study at one of three sizes; data that are not bundled are looked for below ``LLF_RAY_DATA``.

    ``quick`` shows that all works and is too short to show more, so it has one seed where nothing is said, the others
    three. ``small`` trains on 1,000 images of CIFAR-10, or on bundled ones where no folder of data is named and no
    CIFAR-10 lies here. ``paper`` is CUB-200 with ResNet18 and Tiny-ImageNet with ResNet50 at the published budgets, one
    GPU a training, on a cluster.

    Raises:
        SettingError: an unknown size, no seed, or (small) a folder of data without CIFAR-10.
    """
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    if seeds is not None and seeds < 1:
        raise SettingError(f"--seeds {seeds}: must be 1 or more")
    numbers = tuple(range((1 if size == "quick" else 3) if seeds is None else seeds))
    study = {"quick": _quick, "small": _small, "paper": _paper}[size](numbers)
    comparisons = {
        key: replace(
            value,
            base=replace(value.base, folder=str(Path(folder).resolve()), task=anchored(value.base.task)),
        )
        for key, value in study.comparisons.items()
    }
    return replace(
        study,
        name=name or study.name,
        folder=str(Path(folder).resolve()),
        comparisons=comparisons,
        examination=study.examination.with_whole_paths(),
    )


def _base(task: object, recipe: Recipe, *, batch: int, evaluate_every: int, **changes: object) -> RunConfig:
    """One worker, one core; validation at phase ends and every ``evaluate_every`` epochs: where generations of others
    end, the long run is scored, too.
    """
    return RunConfig(
        name="study",
        task=task,  # type: ignore[arg-type]
        recipe=recipe,
        engine=EngineSettings(batch=batch, channels_last=True),
        resources=Resources(workers=1, cpus=1),
        checkpoints=Checkpoints(every_minutes=None, keep=1, keep_generations=False),
        tracking=Tracking(off=True, evaluate_every=evaluate_every, log_every=50),
        **changes,  # type: ignore[arg-type]
    )


def _selective(seeds: tuple[int, ...], epochs: float, every: int) -> Comparison:
    """A LeNet 300-100 that learns a tenth of wrong labels by heart, on the bundled images, by the paper's optimizer."""
    from llf_ray.tasks import Classification, MultiLayerPerceptron

    cells = (
        targeted("magnitude", "redraw", keep=0.3, other={"fc": 0.65}),
        targeted("magnitude", "zero", keep=0.3, other={"fc": 0.65}),
        targeted("initial magnitude", "zero", keep=0.3, other={"fc": 0.65}),
        targeted("new random", "redraw", keep=0.5, other={"fc": 0.75}),
    )
    task = Classification(model=MultiLayerPerceptron(), data=FashionSample(), label_smoothing=0.0, mislabelled=0.1)
    recipe = Long(generations=1, epochs=epochs)
    base = replace(
        _base(task, recipe, batch=128, evaluate_every=1000),
        optim=Optim(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0),
        probes=(Probe(perturbations=cells, every=every, examples=None),),
    )
    return Comparison(name=SELECTIVE, base=base, arms={SELECTIVE: recipe}, seeds=seeds)


def _main(base: RunConfig, budget: Budget, seeds: tuple[int, ...]) -> Comparison:
    """All arms have the normalisers of layer-wise re-initialisation, which change no bit until they are switched on."""
    task: Any = base.task
    task = replace(task, model=Normalised(model=task.model, after=budget.blocks[:-1]))
    return Comparison(name=MAIN, base=replace(base, task=task), arms=arms(budget), seeds=seeds)


def _quick(seeds: tuple[int, ...]) -> ForgettingStudy:
    from llf_ray.tasks import Classification, SmallResNet

    budget = Budget(
        generations=3,
        epochs=5,
        warmup_epochs=0.5,
        ascent_epochs=1,
        ascent_rate=0.05,
        adaptive_rate=2.0,
        loss_ratio=1.1,  # after five epochs the loss is still high
        threshold="layer3",
        levels=3,
        pruning_rate=0.5,
        gap_epochs=0.5,
    )
    task = Classification(
        model=SmallResNet(widths=(8, 16, 32, 64), stem_stride=3),
        data=FashionOnPhotographs(num_train=400, num_held_out=400),
        augment=Augment(shift=2, flip=0.5),
    )
    base = _base(task, Long(generations=3, epochs=5), batch=50, evaluate_every=5)
    clothes = FashionSample(num_train=300, num_held_out=300)
    return ForgettingStudy(
        name="forgetting-quick",
        size="quick",
        comparisons={MAIN: _main(base, budget, seeds), SELECTIVE: _selective(seeds, epochs=30, every=150)},
        parts=parts(budget),
        budget=budget,
        examination=Examination(
            protocol=Protocol(
                images=100, shots=(5,), episodes=20, examples=400, eigenvalues=1, tolerance=1e-2, signs=5
            ),
            targets={"fashion": clothes},
            few_shot={"fashion": clothes},
        ),
        examined=("long", "restarts", "later_layer", "seal"),
        curved=("long", "later_layer", "seal"),
        about="400 bundled images (clothes on photographs, 36x36), a ResNet of one block of 8, 16, 32 and 64 channels, "
        "3 generations of 5 epochs",
    )


def _small(seeds: tuple[int, ...]) -> ForgettingStudy:
    from llf_ray.tasks import Classification, SmallResNet

    budget = Budget(
        generations=4,
        epochs=20,
        warmup_epochs=1,
        ascent_epochs=5,
        ascent_rate=0.05,
        threshold="layer3",
        levels=6,
        pruning_rate=0.5,
        gap_epochs=2,
    )
    own = _own_images()
    task = Classification(
        model=SmallResNet(stem_stride=2 if own else 3),
        data=own or FashionOnPhotographs(num_train=1000, num_held_out=2000),
        augment=Augment(shift=2, flip=0.5, size=32 if isinstance(own, Torchvision) else None),
    )
    targets = _other_images() if own else {"fashion": FashionSample(num_train=1000, num_held_out=1000)}
    base = _base(task, Long(generations=4, epochs=20), batch=50, evaluate_every=20)
    words = "1,000 images of CIFAR-10" if own else "1,000 bundled images (clothes on photographs, 36x36)"
    others = " and ".join(targets) or f"none, since there is none of {_marks(*FLOWERS, *CIFAR100)}"
    return ForgettingStudy(
        name="forgetting-small",
        size="small",
        comparisons={MAIN: _main(base, budget, seeds), SELECTIVE: _selective(seeds, epochs=160, every=200)},
        parts=parts(budget),
        budget=budget,
        examination=Examination(
            protocol=Protocol(
                images=150, shots=(5, 20), episodes=200, examples=1000, eigenvalues=1, tolerance=1e-2, signs=10
            ),
            targets=targets,
            few_shot=targets,
        ),
        examined=EXAMINED,
        curved=("long", "restarts", "later_layer", "seal"),
        about=f"{words}, a ResNet of one block of 16, 32, 64 and 128 channels, 4 generations of 20 epochs; "
        f"other data: {others}",
    )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a data set may lie: ``mark`` is a path below the folder of data that is there where the set is.

    What is broken or missing behind the mark is said when the data are read, before anything is trained.
    """

    name: str
    mark: str
    data: DataSet


def _cifar(classes: Literal[10, 100], num_train: int) -> tuple[Place, ...]:
    """CIFAR as mosaics, or as torchvision unpacks it into the folder of data or into one below it."""
    name, unpacked = f"cifar{classes}", {10: "cifar-10-batches-py", 100: "cifar-100-python"}[classes]
    mosaics = Mosaic(root=name, tile=32, num_train=num_train, num_held_out=2000)
    return (
        Place(name=name, mark=f"{name}/y_train.npy", data=mosaics),
        *(
            Place(
                name=name,
                mark=str(Path(root, unpacked)),
                data=Torchvision(name=f"CIFAR{classes}", root=root, num_train=num_train, num_held_out=2000),
            )
            for root in (".", "torchvision", name)
        ),
    )


CIFAR10, CIFAR100 = _cifar(10, num_train=1000), _cifar(100, num_train=2000)
FLOWERS = (
    Place(name="flowers17", mark="flowers17", data=Folder(root="flowers17")),
    *(
        Place(name="flowers102", mark=mark, data=Flowers102(root=mark, num_held_out=2040))
        for mark in ("flowers-102", "torchvision/flowers-102")
    ),
)


def _lies(places: Sequence[Place]) -> Place | None:
    """The first that is there."""
    return next((place for place in places if located(place.mark).exists()), None)


def _marks(*places: Place) -> str:
    return ", ".join(place.mark for place in places)


def _own_images() -> DataSet | None:
    """CIFAR-10 to train on; None where it does not lie here and nobody said where data lie.

    Raises:
        SettingError: it is not in the folder that somebody named.
    """
    place, root = _lies(CIFAR10), os.environ.get(ROOT_VARIABLE)
    if place is not None or not root:
        return None if place is None else place.data
    there = sorted(entry.name for entry in Path(root).iterdir()) if Path(root).is_dir() else []
    known = {Path(place.mark).parts[0] for place in (*CIFAR10, *CIFAR100, *FLOWERS)}
    strange = [name for name in there if name not in known]
    near = next((name for place in CIFAR10 if (name := nearest(Path(place.mark).parts[0], strange))), None)
    raise SettingError(
        f"--data-root (or {ROOT_VARIABLE}) {root}: the small size trains on CIFAR-10, of which there is none of "
        f"{_marks(*CIFAR10)}"
        + (f"; did you mean {near!r} there?" if near else "")
        + "; without a folder of data it trains on bundled images"
    )


def _other_images() -> dict[str, DataSet]:
    """What else lies there to examine networks on."""
    return {place.name: place.data for places in (FLOWERS, CIFAR100) if (place := _lies(places)) is not None}


def _paper(seeds: tuple[int, ...]) -> ForgettingStudy:
    budget = Budget(
        generations=11,
        epochs=200,
        warmup_epochs=5,
        ascent_epochs=50,
        ascent_rate=0.01,
        threshold="layer4",
        levels=11,
        pruning_rate=0.2,
        gap_epochs=20,
        blocks=(*(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)), "fc"),
    )
    cub = Cub(root="CUB_200_2011", validation=0.06)
    main = _birds(cub)
    tiny = _tiny_imagenet(main, seeds)
    part = Part(
        name=TINY_IMAGENET,
        question="Does SEAL gain over later-layer forgetting at scale?",
        of=TINY_IMAGENET,
        arms=tuple(tiny.arms),
    )
    return ForgettingStudy(
        name="forgetting-paper",
        size="paper",
        comparisons={MAIN: _main(main, budget, seeds), TINY_IMAGENET: tiny, SELECTIVE: _digits(seeds)},
        parts=(*parts(budget), part),
        budget=budget,
        examination=Examination(
            targets={
                "flowers102": Flowers102(root="flowers-102"),
                "cub200": cub,
                "aircraft": Torchvision(name="FGVCAircraft", root="."),
                "mit67": IndoorScenes(root="indoor", validation=0.05),
                "stanford_dogs": StanfordDogs(root="dogs", validation=0.05),
            },
            few_shot={
                "eurosat": Folder(root="EuroSAT_RGB"),
                "isic": Isic(root="isic2018"),
                "chestx": ChestXray(root="chestx"),
                "cropdisease": Folder(root="plant-disease/dataset"),
            },
        ),
        examined=(*EXAMINED, *tiny.arms),
        curved=tuple(tiny.arms),
        about="CUB-200 with ResNet18, 11 generations of 200 epochs; Tiny-ImageNet with ResNet50, 10 generations of 160 "
        "epochs; MNIST with a LeNet 300-100",
    )


def _birds(data: DataSet) -> RunConfig:
    """CUB-200 from scratch, as Zhou et al. train it."""
    from llf_ray.tasks import Classification, TimmModel

    task = Classification(
        model=TimmModel(name="resnet18", init="kaiming_normal", options={"zero_init_last": False}),
        data=data,
        augment=TimmAugment(size=224, stretch=256, interpolation="bilinear"),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        num_workers=8,
    )
    return replace(
        _base(task, Long(generations=11, epochs=200), batch=32, evaluate_every=20),
        optim=Optim(name="sgd", lr=0.256, momentum=0.9, weight_decay=1e-4),
        resources=Resources(workers=1, cpus=8, gpus=1),
        checkpoints=Checkpoints(),
    )


def _tiny_imagenet(birds: RunConfig, seeds: tuple[int, ...]) -> Comparison:
    """SEAL beside its rivals, as Sarfi et al. train them, where the runs on birds run."""
    from llf_ray.tasks import TimmModel

    task = replace(
        birds.task,  # type: ignore[type-var]
        model=TimmModel(name="resnet50", init="kaiming_normal", options={"zero_init_last": False}),
        data=TinyImageNet(root="tiny-imagenet-200", validation=0.02),
        augment=Augment(size=64, shift=4, flip=0.5),
        num_workers=0,
    )
    long = Long(generations=10, epochs=160, warmup_epochs=20)
    arms: dict[str, Recipe] = {
        "tiny_long": long,
        "tiny_restarts": Restarts(generations=10, epochs=160, warmup_epochs=20),
        "tiny_later_layer": LaterLayer(generations=10, epochs=160, warmup_epochs=20, threshold="layer3"),
        "tiny_seal": Seal(
            generations=10, epochs=160, warmup_epochs=20, ascent_epochs=40, ascent_rate=0.01, threshold="layer3"
        ),
    }
    base = replace(birds, task=task, recipe=long, optim=Optim(lr=0.1, weight_decay=5e-4))
    return Comparison(name=TINY_IMAGENET, base=base, arms=arms, seeds=seeds)


def _digits(seeds: tuple[int, ...]) -> Comparison:
    """The selective arm on a tenth of MNIST, for the paper's 50,000 steps or so."""
    found = _selective(seeds, epochs=1000, every=100)
    data = Torchvision(name="MNIST", root="torchvision", channels=1, num_train=6000)
    return replace(found, base=replace(found.base, task=replace(found.base.task, data=data)))  # type: ignore[type-var]


# ----------------------------------------------------------------------------------------------------------- carry out


def begin(study: ForgettingStudy) -> tuple[Path, list[Run]]:
    """The study's folder and all its trainings: begun anew, or opened where an earlier call has made them.

    A study that has gained arms or seeds since keeps what it has, and the new trainings are begun beside it.

    Raises:
        SettingError: a setting that cannot work, unequal budgets, data that networks cannot be examined on, or
        trainings there of other settings; before any folder is made.
    """
    prepared = {
        key: prepare_arms(comparison, lambda config: prepare(_fitted(config)))
        for key, comparison in study.comparisons.items()
    }
    for arms_of in prepared.values():
        problem = check_budgets(arms_of)
        if problem:
            raise SettingError(problem)
    for comparison in study.comparisons.values():
        if set(study.examined) & set(comparison.arms):
            check_examination(comparison.base.task, study.examination)
    folder, runs = look(study, there=False), []
    for key, arms_of in prepared.items():
        for (arm, _), config in study.runs(key).items():
            place = folder / config.name
            if (place / "run.json").exists():
                runs.append(open_run(place))
            else:
                runs.append(create(replace(arms_of[arm], config=config), place, parent=".."))
    keep(folder, name=study.name, size=study.size, study=to_plain(study))
    names = list(study.trainings())
    return folder, sorted(runs, key=lambda run: names.index(run.folder.name))


def look(study: ForgettingStudy, *, there: bool = True) -> Path:
    """The study's folder; nothing in it is touched.

    Raises:
        SettingError: it does not exist (unless ``there`` is False), or holds trainings of other settings.
    """
    return check_trainings(Path(study.folder) / study.name, study.name, study.trainings(), there=there)


def carry_out(
    folder: Path,
    study: ForgettingStudy,
    runs: list[Run],
    *,
    display: bool = True,
    verbose: bool = False,
    on_signal: Callable[[int], None] | None = None,
    say: Callable[[str], object] = lambda words: None,
) -> list[Outcome]:
    """Train what is unfinished and examine what is trained, side by side; how each training ended."""
    from llf_ray.cluster.apart import execute_apart, map_apart

    with spending(folder), ExitStack() as keep:  # one Ray for both
        say(f"Ray starts; then trainings go side by side, each on its own share ({_own(runs[0].config.resources)})")
        outcomes = execute_apart(
            runs,
            title=study.name,
            display=display,
            verbose=verbose,
            log_file=folder / "driver.log",
            on_signal=on_signal,
            on_end=draw_run,
            keep=keep,
        )
        if any(outcome.state == "stopped" for outcome in outcomes):
            return outcomes
        wanted = study.examinations()
        left = []
        for run, outcome in zip(runs, outcomes, strict=True):
            how = wanted.get(run.folder.name)
            how = None if how is None or is_examined(run.folder, how) else how
            whole = run.folder.name.startswith(f"{KELS}-") and not (run.folder / SLIM).exists()
            if outcome.state == "finished" and (how is not None or whole):
                left.append((str(run.folder), how, whole))
        if left:
            say(f"examining {len(left)} trained networks: {', '.join(study.examination.measures)}")
        map_apart(
            _look_at,
            left,
            runs[0].config.resources,
            log_file=folder / "driver.log",
            on_signal=on_signal,
            on_end=lambda number: say(f"examined {number} of {len(left)} networks"),
            keep=keep,
        )
        return outcomes


def _own(resources: Resources) -> str:
    return f"{resources.cpus:g} CPU" + (f", {resources.gpus:g} GPU" if resources.gpus else "")


def _look_at(asked: tuple[str, Examination | None, bool]) -> None:
    """Examine the network of a finished run (its folder), and take the slim ones out of it, as far as is asked."""
    folder, how, slim = asked
    if how is not None:
        examine(Path(folder), how)
    if slim:
        keep_slim(Path(folder))


def keep_slim(run_folder: Path) -> None:
    """Take the slim networks out of a run of knowledge evolution, as every generation ended; keep their test scores and
    the whole ones' by generation, or why there are none.
    """
    from llf_ray.studies.slim import slim_of

    last = open_run(run_folder).plan.generations - 1
    pairs: dict[int, tuple[float, float]] = {}
    try:
        for generation in range(last + 1):
            with tempfile.TemporaryDirectory() as aside:
                place = None if generation == last else Path(aside)
                found = slim_of(run_folder, place, generation=None if generation == last else generation)
            pairs[generation] = (found.scores["accuracy"], found.whole_scores["accuracy"])
        about: dict[str, Any] = {"generations": pairs}
    except SettingError as error:
        about = {"why": str(error)}
    replace_text(run_folder / SLIM, json.dumps(about))
