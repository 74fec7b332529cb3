"""The study of forgetting: arms of one budget, trained once, read back into tables, figures and verdicts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import llf_ray.cluster.apart
from llf_ray.cli import main
from llf_ray.cluster.outcome import read_outcome, write_outcome
from llf_ray.config import SettingError, from_plain, to_plain
from llf_ray.data import Arrays, FashionOnPhotographs, FashionSample
from llf_ray.data.base import ROLES, ROOT_VARIABLE, anchored
from llf_ray.journal import read
from llf_ray.plan import operations_of, spans
from llf_ray.recipes.bunched import BunchedResets
from llf_ray.recipes.long import Long
from llf_ray.run import prepare
from llf_ray.studies import forgetting as study_module
from llf_ray.studies import forgetting_results as results
from llf_ray.studies.examine import Examination, check_examination, examined, is_examined
from llf_ray.studies.forgetting import (
    MAIN,
    SELECTIVE,
    SIZES,
    TINY_IMAGENET,
    ForgettingStudy,
    begin,
    carry_out,
    look,
    make,
)
from llf_ray.studies.forgetting_results import claims, document, findings, report, write
from llf_ray.studies.measure import check_targets
from llf_ray.tasks import SmallResNet
from llf_ray.tasks.classification import Classification
from llf_ray.tasks.models import Normalised
from llf_ray.train.adviser import read_cuts
from llf_ray.train.folder import create, load_module
from llf_ray.train.state import Run
from llf_ray.train.worker import Outcome
from tests.data.test_paper_sets import flowers
from tests.data.test_sets import write_cifar, write_mosaic
from tests.local import carry

REDRAWS = (
    *("later_layer", "later_layer_fixed", "later_layer_fixed_held", "bunched_early", "bunched_late"),
    *("forget_fc", "forget_all", "rifle"),
)


def tiny(folder: Path, seeds: int = 1) -> ForgettingStudy:
    """The quick study in miniature: networks of a few channels, one epoch a generation."""
    study = make("quick", seeds=seeds, folder=str(folder))
    budget = replace(study.budget, epochs=1, ascent_epochs=0.5, gap_epochs=0.5)
    main, selective = study.comparisons[MAIN], study.comparisons[SELECTIVE]
    task = replace(
        main.base.task,
        model=SmallResNet(widths=(4, 4, 6, 8), stem_stride=4),
        data=FashionOnPhotographs(num_train=150, num_held_out=60),
    )
    short = Long(generations=1, epochs=2)
    probe = replace(selective.base.probes[0], every=15, examples=200)
    return replace(
        study,
        budget=budget,
        comparisons={
            MAIN: study_module._main(replace(main.base, task=task), budget, main.seeds),
            SELECTIVE: replace(
                selective, base=replace(selective.base, recipe=short, probes=(probe,)), arms={SELECTIVE: short}
            ),
        },
        examination=replace(
            study.examination,
            protocol=replace(study.examination.protocol, images=10, signs=2, episodes=3, examples=60),
        ),
        examined=("long", "layer_wise", "later_layer", "seal"),
        curved=("later_layer",),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ForgettingStudy, list[list[str]]]:
    """A study that was carried out, then asked for again: its folder, and what each call trained and examined."""
    patch = pytest.MonkeyPatch()
    done: list[list[str]] = []
    kept: list[object] = []

    def execute_apart(runs: Sequence[Run], *, log_file: Path, keep: object, **rest: object) -> list[Outcome]:
        kept.append(keep)
        log_file.touch()
        done.append([])
        for run in runs:
            if read_outcome(run.folder) is None:
                done[-1].append(run.folder.name)
                write_outcome(run.folder, carry(run))
        return [outcome for run in runs if (outcome := read_outcome(run.folder)) is not None]

    def map_apart(function, items, resources, *, log_file, on_signal, on_end, keep):  # type: ignore[no-untyped-def]
        assert keep is kept[-1], "both calls share one Ray"
        done.append([Path(item[0]).name for item in items])
        return [function(item) for item in items]  # by folder, how, and whether to take the slim network

    patch.setattr(llf_ray.cluster.apart, "execute_apart", execute_apart)
    patch.setattr(llf_ray.cluster.apart, "map_apart", map_apart)
    study = tiny(tmp_path_factory.mktemp("study"))
    for _ in range(2):
        folder, runs = begin(study)
        carry_out(folder, study, runs)
    patch.undo()
    return folder, study, done


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_the_same_questions_and_comes_back_from_plain_data(size, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)  # no data lie here
    study = make(size, folder=str(tmp_path))
    assert [part.name for part in study.parts][:4] == ["methods", "spread", "share", "pruning"]
    named = {arm for part in study.parts for arm in part.arms}
    there = {arm for comparison in study.comparisons.values() for arm in comparison.arms}
    assert named | {SELECTIVE} == there, "every arm answers a question, and every question has its arms"
    assert from_plain(to_plain(study)) == study
    assert study.seeds == ((0,) if size == "quick" else (0, 1, 2))
    probed = study.comparisons[SELECTIVE].base
    assert (probed.optim.lr, probed.optim.momentum, probed.engine.batch) == (0.1, 0.0, 128), "the paper's"
    assert size == "quick" or {*study.parts[0].arms, "pruning"} <= set(study.examined), "transfer of every method"


@pytest.mark.parametrize("size", ["quick", "small"])
def test_arms_have_one_budget_and_as_many_resets_as_they_say(size, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)  # no data lie here
    study = make(size, seeds=1, folder=str(tmp_path))
    plans = {arm: prepare(config).plan for (arm, _), config in study.runs(MAIN).items()}
    assert len({plan.budget for plan in plans.values()}) == 1
    for arm in REDRAWS:
        redraws = [op.label for phase in plans[arm].phases for op in phase.entry if op.label.startswith("redraw")]
        assert len(redraws) == study.budget.generations - 1, arm
    early, spread, late = (
        [start for start, _ in spans(plans[arm])][1:] for arm in ("bunched_early", "later_layer", "bunched_late")
    )
    assert early[0] == spread[0]
    assert early[-1] < spread[-1]
    assert late[-1] == spread[-1]
    assert late[0] > spread[0]


def test_the_quick_size_shows_an_ascent_that_ends_early(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    config = make("quick", folder=str(tmp_path)).runs(MAIN)["seal_adaptive", 0]
    run = create(prepare(config), tmp_path / "run")
    assert carry(run).state == "finished"
    cuts = read_cuts(run.folder)
    assert cuts
    assert {run.plan.phases[cut.phase].name for cut in cuts} == {"ascent"}


def test_every_method_of_the_family_is_an_arm(tmp_path) -> None:
    jobs = Path(__file__).parents[2] / "jobs"
    family = {type(recipe) for recipe in load_module(jobs / "compare_methods.py").comparison.arms.values()}
    study = make("quick", seeds=3, folder=str(tmp_path))
    arms = study.comparisons[MAIN].arms
    assert family <= {type(recipe) for recipe in arms.values()}
    assert family - {BunchedResets} == {type(arms[name]) for name in (*study.parts[0].arms, "pruning")}, (
        "bunching is a control"
    )
    ablations = load_module(jobs / "compare_ablations.py").comparison.arms
    for name in set(ablations) & set(arms):  # one name, one method
        lengths = {field: getattr(arms[name], field) for field in ("generations", "epochs", "warmup_epochs")}
        tuned = {"ascent_epochs", "ascent_rate"} & {field.name for field in fields(arms[name])}
        lengths |= {field: getattr(arms[name], field) for field in tuned}
        assert arms[name] == replace(ablations[name], **lengths), name
    published = load_module(jobs / "paper" / "alternating_imagenet_resnet50.py").config.recipe
    shared = {"generations": 3, "epochs": 5, "warmup_epochs": 0.5}
    assert arms["alternating"] == replace(published, **shared)
    assert arms["seal_later_layer"] == replace(arms["seal"], forget_later=True)


def bare(task: Classification) -> Classification:
    """Without normalisers that wait, and without processes that read."""
    model = task.model.model if isinstance(task.model, Normalised) else task.model
    return replace(task, model=model, num_workers=0)


def test_the_paper_size_is_what_the_paper_jobs_say(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    jobs = Path(__file__).parents[2] / "jobs" / "paper"

    def job(name: str):  # type: ignore[no-untyped-def]
        module = load_module(jobs / f"{name}.py")
        found = getattr(module, "config", None) or module.comparison.base
        return replace(found, task=anchored(found.task))

    study = make("paper", folder=str(tmp_path))
    for key, arm, published in (
        (MAIN, "later_layer", job("later_layer_cub_resnet18")),
        (MAIN, "layer_wise", job("layer_wise_cub_resnet18")),
        (MAIN, "long", job("long_cub_resnet18")),
        (TINY_IMAGENET, "tiny_seal", job("seal_tiny_imagenet_resnet50")),
        (SELECTIVE, SELECTIVE, job("selective_forgetting_mnist_lenet")),
    ):
        ours = study.runs(key)[arm, 0]
        for part in ("task", "recipe", "optim", "engine", "resources"):
            theirs = getattr(published, part)
            if part == "task":  # a job of plain Augment reads with no processes of its own, and needs no normalisers
                assert bare(ours.task) == bare(theirs), (arm, part)
            else:
                assert getattr(ours, part) == theirs, (arm, part)
    for name, other in (
        ("flowers102", "flowers"),
        ("aircraft", "aircraft"),
        ("mit67", "mit67"),
        ("stanford_dogs", "dogs"),
    ):
        assert study.examination.targets[name] == job(f"compare_{other}_resnet18").task.data
    assert list(study.parts[2].arms) == [
        *("restarts", "forget_fc", "later_layer", "forget_layer3", "forget_layer2", "forget_all")
    ], "the main arm redraws from layer4 here"
    assert study.normal("seal") == "long"
    assert study.normal("tiny_seal") == "tiny_long"


def test_wrong_labels_are_drawn_by_the_runs_seed(tmp_path) -> None:
    study = make("quick", seeds=3, folder=str(tmp_path))
    taught = [study.trainings()[f"{SELECTIVE}-seed{seed}"].task.labels("train") for seed in (0, 1, 2)]
    assert not np.array_equal(taught[0], taught[1])
    assert not np.array_equal(taught[1], taught[2])


def test_normalisers_that_wait_change_no_bit(tmp_path) -> None:
    """All arms have them, layer-wise re-initialisation alone switches them on."""
    layered = make("quick", seeds=3, folder=str(tmp_path)).runs(MAIN)["long", 1].task
    plain = bare(layered)
    assert plain != layered
    networks = [task.initial(1) for task in (plain, layered)]
    images = torch.randn(4, *plain.example().shape[1:], generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        given, same = (network.train(training)(images) for network in networks)
        assert torch.equal(given, same)
    for one, other in zip(networks[0].named_parameters(), networks[1].named_parameters(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])


def test_data_that_cannot_be_examined_on_are_said_before_anything_is_made(tmp_path) -> None:
    study, colour = tiny(tmp_path), np.zeros((20, 8, 8, 3), np.uint8)
    parts = {f"x_{role}": colour for role in ROLES} | {f"y_{role}": np.arange(20) % 2 for role in ROLES}
    np.savez(tmp_path / "colour.npz", **parts)
    coloured = Arrays(path=str(tmp_path / "colour.npz"), channels=3)
    for how, said in (
        (
            replace(study.examination, few_shot={"few": FashionSample(num_train=20, num_held_out=10)}),
            "target 'few': shots = 5: class",
        ),
        (
            replace(study.examination, targets={"far": Arrays(path=str(tmp_path / "far.npz"))}),
            "target 'far': .*far.npz",
        ),
        (replace(study.examination, targets={"colour": coloured}), "the network sees 1"),
    ):
        with pytest.raises(SettingError, match=said):
            begin(replace(study, examination=how))
    assert not (tmp_path / study.name).exists()


def cifar_mosaics(root: Path, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "test"):
        labels = np.arange(10 * classes) % classes
        tiles = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        write_mosaic(root / f"cifar{classes}", part, tiles, labels, columns=5 * classes)


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (cifar_mosaics, ""),
        (write_cifar, ""),
        (write_cifar, "torchvision"),
        (write_cifar, "cifar10"),
    ],
    ids=["mosaics", "torchvision's", "torchvision's in torchvision", "torchvision's in cifar10"],
)
def test_real_images_are_used_in_the_layouts_that_they_have(write, place, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    write(tmp_path / place, 10, monkeypatch)
    alone = make("small", seeds=1, folder=str(tmp_path))
    assert alone.about.startswith("1,000 images of CIFAR-10, ")
    assert "other data: none, since there is none of flowers17, flowers-102, " in alone.about
    task = alone.comparisons[MAIN].base.task
    assert task.data.root.startswith(str(tmp_path))
    task.prepare()
    assert task.example().shape == (1, 3, 32, 32)
    check_examination(task, alone.examination)

    write(tmp_path / place.replace("10", "100"), 100, monkeypatch)
    flowers(tmp_path / "flowers-102")
    study = make("small", seeds=1, folder=str(tmp_path))
    assert study.about.endswith("other data: flowers102 and cifar100")
    assert study.examination.few_shot == study.examination.targets, "every pair of method and target"
    check_targets(task, ("transfer",), study.examination.protocol, study.examination.targets)


def test_a_folder_of_data_without_what_is_wanted_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    study = make("small")
    assert "bundled" in study.about
    assert study.about.endswith("other data: fashion")
    data = tmp_path / "data"
    (data / "cifar100").mkdir(parents=True)
    (data / "cifar-10-batches-bin").mkdir()
    monkeypatch.setenv(ROOT_VARIABLE, "")  # the command sets it
    line = refused("--data-root", data)
    assert f"--data-root (or {ROOT_VARIABLE}) {data}: " in line
    assert "cifar10/y_train.npy, cifar-10-batches-py, torchvision/cifar-10-batches-py, cifar10/cifar-10-" in line
    assert "did you mean 'cifar-10-batches-bin' there?" in line
    assert "goes with --size small or paper" in refused("--size", "quick", "--data-root", data)
    assert not (tmp_path / "runs").exists()


def test_what_is_there_and_broken_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    own, other = (write_cifar(tmp_path / "torchvision", classes, monkeypatch) for classes in (10, 100))
    (other / "test").write_bytes(b"half of it")
    study = make("small", folder=str(tmp_path))
    with pytest.raises(SettingError, match=r"target 'cifar100': .*/test is not the published file"):
        check_examination(study.comparisons[MAIN].base.task, study.examination)
    (own / "data_batch_3").unlink()
    assert "cifar-10-batches-py/data_batch_3 does not exist" in refused("--data-root", tmp_path)
    assert not (tmp_path / "runs").exists()


def refused(*words: object) -> str:
    """The one line that the command answers."""
    result = CliRunner().invoke(main, ["study", "forgetting", *map(str, words)])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def test_what_cannot_work_is_said(tmp_path) -> None:
    with pytest.raises(SettingError, match="size 'smal' does not exist; did you mean 'small'"):
        make("smal")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="--seeds 0"):
        make("quick", seeds=0)
    with pytest.raises(SettingError, match="measure 'dept' does not exist; did you mean 'depth'"):
        Examination(measures=("dept",))


# ------------------------------------------------------------------------------------------------------------- results


def test_nothing_is_trained_or_examined_twice(trained) -> None:
    folder, study, ((*first,), (*looked,), (*again,), (*looked_again,)) = trained
    assert sorted(first) == sorted(study.trainings())
    order = [name[-1] for name in tiny(folder.parent, seeds=3).trainings()]
    assert order == sorted(order), "seed by seed"
    assert sorted(looked) == sorted([*study.examinations(), "kels-seed0"]), "and the slim network"
    assert again == looked_again == []
    assert all(is_examined(folder / name, how) for name, how in study.examinations().items())
    assert not is_examined(folder / looked[0], replace(study.examination, measures=("depth",)))


def test_a_folder_of_other_settings_is_refused(trained) -> None:
    _, study, _ = trained
    main = study.comparisons[MAIN]
    other = replace(main, base=replace(main.base, optim=replace(main.base.optim, lr=0.2)))
    with pytest.raises(SettingError, match="holds a training of other settings"):
        begin(replace(study, comparisons={**study.comparisons, MAIN: other}))


def only(study: ForgettingStudy, *arms: str) -> ForgettingStudy:
    """The study without its other arms."""
    main = study.comparisons[MAIN]
    kept = replace(main, arms={arm: main.arms[arm] for arm in arms})
    parts = tuple(replace(part, arms=tuple(arm for arm in part.arms if arm in arms)) for part in study.parts)
    return replace(study, comparisons={**study.comparisons, MAIN: kept}, parts=parts, examined=("long",), curved=())


def test_a_study_that_has_gained_arms_keeps_what_it_has(tmp_path) -> None:
    before, whole = (only(tiny(tmp_path), "long", "restarts", "pruning", *more) for more in ((), ("rifle",)))
    folder, _ = begin(before)
    about = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps({**about, "seconds": 12.0}))
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*-seed0/*")}
    found = findings(look(whole), whole)
    assert "rifle-seed0" in found.missing
    assert "rifle" not in {arm.arm for arm in found.results["methods"].arms}
    folder, runs = begin(whole)
    assert {run.folder.name for run in runs} == set(whole.trainings())
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    about = json.loads((folder / "study.json").read_text())
    assert about["seconds"] == 12.0
    assert from_plain(about["study"]) == whole


def test_findings_are_what_the_trainings_left(trained) -> None:
    folder, study, _ = trained
    found = findings(folder, study)
    assert found.missing == []
    scores = {}
    for line in (folder / "seal-seed0" / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "score":
            scores[record["role"], record["step"]] = record["values"]["accuracy"]
    (test,) = [value for (role, _), value in scores.items() if role == "test"]
    assert found.test("seal")[0] == test
    minus = found.minus("seal", "long")
    assert minus.mean == found.test("seal")[0] - found.test("long")[0]
    assert found.shares["restarts"] == 0
    assert found.shares["forget_all"] == 1
    assert list(found.sparse["pruning"]) == [1.0, 0.5, 0.25]
    same = [found.sparse[arm][1.0] for arm in ("pruning", "pruning_random", "pruning_reinit")]
    assert same[0] == same[1] == same[2], "level 0 is dense, whatever comes later"
    for arm in ("pruning", "pruning_random", "pruning_reinit"):
        assert [list(values) for values in found.sparse[arm].values()] == [[0]] * 3, "a score at every level"
        path = folder / f"{arm}-seed0"
        plan = from_plain(json.loads((path / "plan.json").read_text()))
        names = {phase.name: n for n, phase in enumerate(plan.phases) if phase.generation == 1}
        (score,) = [
            record["values"]["accuracy"]
            for record in read(path / "journal.jsonl")
            if record["kind"] == "score" and record["phase"] == names["sparse"]
        ]
        assert found.sparse[arm][0.5][0] == score, "the arm's own, not that of the ticket beside it"
    assert found.measured("later_layer", "depth")[0] == examined(folder / "later_layer-seed0")["depth"]
    assert set(found.examined["later_layer"]) - set(found.examined["seal"]) == {
        "curvature/largest",
        "curvature/smallest",
        "curvature/trace",
    }
    assert list(found.probed["magnitude redraw 70"]["selectivity/hard"]) == [15, 30]
    assert {generation: set(pairs) for generation, pairs in found.slim.items()} == {number: {0} for number in range(3)}
    assert found.slim[2][0][1] == found.test("kels")[0], "the whole network at the end"
    ends = [record["values"] for record in read(folder / "kels-seed0" / "journal.jsonl") if record["kind"] == "score"]
    assert len(ends) > 3
    kept = {arm: list((folder / f"{arm}-seed0" / "checkpoints").glob("step-*")) for arm in ("kels", "wels")}
    assert len(kept["kels"]) > len(kept["wels"]), "other arms keep their end alone"


def with_scores(folder: Path, study: ForgettingStudy, place: Path, scores: dict[str, tuple[float, ...]]) -> None:
    """Copies of seed 0's trainings for every seed, with these scores on record at the last step."""
    for arm in study.comparisons[MAIN].arms:
        for seed, test in enumerate(scores.get(arm, (0.4, 0.41, 0.39))):
            copy = place / f"{arm}-seed{seed}"
            shutil.copytree(folder / f"{arm}-seed0", copy)
            records = [json.loads(line) for line in (copy / "journal.jsonl").read_text().splitlines()]
            last = max(record["step"] for record in records if record.get("role") == "test")
            for record in records:
                if record["kind"] == "score" and record["step"] == last:
                    record["values"]["accuracy"] = test
            (copy / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    shutil.copytree(folder / f"{SELECTIVE}-seed0", place / f"{SELECTIVE}-seed0")
    shutil.copy(folder / "study.json", place)


def test_verdicts_follow_from_the_scores(trained, tmp_path) -> None:
    folder, one, _ = trained
    study = tiny(tmp_path, seeds=3)
    scores = {
        "later_layer": (0.50, 0.52, 0.51),  # far above all others
        "later_layer_reverse": (0.30, 0.50, 0.20),  # worse on the mean, and noisy
        "later_layer_fixed": (0.50, 0.53, 0.50),  # much the same; held it is as all others
        "seal": (0.42, 0.43, 0.41),  # a little above normal training, below later-layer forgetting
    }
    with_scores(folder, one, tmp_path / study.name, scores)
    judged = {f.claim.name: f for f in claims(findings(tmp_path / study.name, replace(study, size="small")))}
    assert judged["later_layer"].verdict == judged["restarts"].verdict == "reproduced"
    assert judged["later_layer"].ours.startswith("LLF - long +11.00 (")
    assert "70.76" in judged["later_layer"].claim.published
    assert judged["evolution"].verdict == judged["spread"].verdict == "reproduced"
    assert judged["fixed_held"].verdict == "reproduced"
    assert judged["fixed"].verdict == "not reproduced", "a question of its own, with an arm of its own"
    assert judged["reverse"].verdict == "not reproduced"
    assert "interval holds zero" in judged["reverse"].why
    assert judged["seal"].verdict == "not reproduced"
    assert judged["seal"].why == "the difference has the other sign"
    assert judged["seal_normal"].verdict == "reproduced"
    assert judged["share"].verdict == "reproduced", "from layer3, the arm far above, against the head and all"
    for found in judged.values():
        for words in found.ours.split("; "):
            named = not re.search(r"[+-]\d+\.\d+( \(|$)", words) or re.match(r".*\S - \S.* [+-]\d", words)
            assert named, f"{found.claim.name}: {words!r} does not say what is taken from what"
    never = {name for name, found in judged.items() if found.ours == "-"}
    assert never == {"large", "rifle", "negative"}, "seal's curvature was not taken"
    assert not any("[M]" in f.claim.source + f.claim.published for f in judged.values()), "nothing merely remembered"


def test_the_quick_size_judges_nothing(trained) -> None:
    folder, study, _ = trained
    quick = claims(findings(folder, study))
    assert {one.verdict for one in quick} == {"cannot be tested here"}
    assert len({one.claim.name for one in quick}) == len(quick)


def test_tables_numbers_and_figures_are_written(trained) -> None:
    folder, study, _ = trained
    found = findings(folder, study)
    written = write(folder, found)
    assert all(path.stat().st_size > 500 for path in written)
    names = {path.name for path in written}
    assert names >= {"claims.md", "tables.md", "result.json", "methods.png", "share_sweep.png", "sparsity.png"}
    assert names >= {"transfer.png", "selectivity.png"}
    text = (folder / "tables.md").read_text()
    for part in study.parts:
        assert part.question in text
        assert "; 1 seed; " in text
        assert all(f"\n| {arm} | " in text for arm in part.arms)
    plain = json.loads((folder / "result.json").read_text())
    assert plain["parts"]["methods"]["arms"]["seal"]["test"]["0"] == found.test("seal")[0]
    with Path("/dev/null").open("w") as nowhere:
        Console(file=nowhere).print(report(found))


def test_an_unfinished_study_has_tables_too(trained, tmp_path) -> None:
    _, study, _ = trained
    begun = replace(study, folder=str(tmp_path))
    main = {key: replace(c, base=replace(c.base, folder=str(tmp_path))) for key, c in study.comparisons.items()}
    folder, _ = begin(replace(begun, comparisons=main))
    found = findings(folder, begun)
    assert len(found.missing) == len(study.trainings())
    assert "Not finished: " in (write(folder, found)[1]).read_text()
    assert {one.verdict for one in claims(replace(found, study=replace(begun, size="small")))} == {
        "cannot be tested here"
    }


def test_operations_of_the_bunched_arms_are_keyed_by_generation(trained) -> None:
    """Three redraws under one name would be one draw: what sets them apart is the generation."""
    _, study, _ = trained
    plan = prepare(study.runs(MAIN)["bunched_early", 0]).plan
    from llf_ray.plan import Schedule

    schedule = Schedule(plan)
    keys = [
        (key, plan.phases[index].generation)
        for start, _ in spans(plan)
        for key, index, _ in operations_of(plan, schedule.at(start))
    ]
    assert [generation for _, generation in keys] == [1, 2]
    assert len(set(keys)) == 2


def test_tables_are_made_without_touching_a_training(trained, tmp_path, monkeypatch) -> None:
    folder, study, _ = trained
    monkeypatch.setattr(study_module, "make", lambda size, **how: study)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if folder in path.parents[1:]}
    result = CliRunner().invoke(main, ["study", "forgetting", "--tables", "--folder", str(folder.parent)])
    assert result.exit_code == 0, result.output
    of_runs = {path for path in before if path.relative_to(folder).parts[0] != "figures"}
    assert len(of_runs) > 100
    assert all(path.stat().st_mtime_ns == before[path] for path in of_runs)
    monkeypatch.setattr(study_module, "make", lambda size, **how: replace(study, folder=str(tmp_path)))
    result = CliRunner().invoke(main, ["study", "forgetting", "--tables", "--folder", str(tmp_path)])
    assert result.exit_code == 2
    assert "there is no study in" in result.output
    assert list(tmp_path.iterdir()) == []
    main_arms = study.comparisons[MAIN]
    other = replace(main_arms, base=replace(main_arms.base, optim=replace(main_arms.base.optim, lr=0.2)))
    with pytest.raises(SettingError, match="holds a training of other settings"):
        look(replace(study, comparisons={**study.comparisons, MAIN: other}))


def of(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def test_a_random_mask_decides_nothing_about_masks_of_magnitude(trained) -> None:
    folder, study, _ = trained
    sure, noise = of([0.32, 0.33, 0.34]), of([0.3, -0.2, 0.4])
    cells = {"magnitude redraw 70": sure, "magnitude zero 70": sure, "new random redraw 50": noise}
    probed = {
        name: {"selectivity/mislabelled": {9: of([0.0] * 3), 20: values}, "selectivity/hard": {20: sure}}
        for name, values in cells.items()
    }
    found = replace(findings(folder, study), study=replace(study, size="small"), probed=probed)
    judged = {one.claim.name: one for one in claims(found) if one.claim.name.startswith("selective")}
    assert {name: one.verdict for name, one in judged.items()} == {
        "selective": "reproduced",
        "selective_other": "not reproduced",
        "selective_hard": "reproduced",
        "selective_hard_other": "reproduced",
    }
    assert "random" not in judged["selective"].ours
    assert "magnitude redraw" not in judged["selective_other"].ours


def test_normal_training_is_warm_restarts_and_the_long_run(trained) -> None:
    """What Sarfi et al. call normal, and what Zhou et al. do: a claim holds against both or not at all."""
    folder, study, _ = trained
    largest = "curvature/largest"
    networks = {  # LLF is far below the long run and far above restarts; so is SEAL's depth
        "later_layer": {
            "transfer/a": of([0.30, 0.31, 0.29]),
            "depth": of([9.0, 9.1, 9.2]),
            largest: of([27.0, 27.1, 27.3]),
        },
        "seal": {"depth": of([2.0, 2.1, 2.2]), largest: of([5.0, 5.1, 5.2])},
        "long": {"transfer/a": of([0.40, 0.40, 0.41]), "depth": of([3.0, 3.2, 3.1]), largest: of([9.0, 9.2, 9.1])},
        "restarts": {"transfer/a": of([0.20, 0.20, 0.21]), "depth": of([1.0, 1.2, 1.1]), largest: of([4.0, 4.2, 4.1])},
    }
    found = replace(findings(folder, study), study=replace(study, size="small"), examined=networks)
    judged = {one.claim.name: one for one in claims(found)}
    assert judged["flat"].verdict == "reproduced", "flatter than LLF says nothing of normal training"
    for name in ("transfer", "depth", "flat_normal"):
        assert judged[name].verdict == "not reproduced"
        assert "- restarts" in judged[name].why
        assert "- long" not in judged[name].why
        assert "- long" in judged[name].ours


FAR, NEAR = [0.10, 0.11, 0.10], [0.405, 0.401, 0.403]  # of a whole network at 0.40


@pytest.mark.parametrize(
    ("first", "last", "verdict"),
    [
        (FAR, NEAR, "reproduced"),
        (NEAR, NEAR, "not reproduced"),  # there was no gap to close
        ([0.10, 0.50, 0.10], NEAR, "not reproduced"),  # nor is one within the noise of seeds
        (FAR, [0.43, 0.37, 0.40], "not reproduced"),  # the mean is within a point, the interval is not
        (FAR, [0.30, 0.31, 0.29], "not reproduced"),
        (FAR[:2], [0.40, 0.41], "cannot be tested here"),
        ([], NEAR, "cannot be tested here"),  # the first generation's end was not kept
        ([], [], "cannot be tested here"),
    ],
)
def test_slim_networks_are_judged_by_the_gap_and_its_closing(first, last, verdict, trained) -> None:
    folder, study, _ = trained
    pairs = {
        generation: {seed: (value, 0.40) for seed, value in of(values).items()}
        for generation, values in ((0, first), (study.budget.generations - 1, last))
        if values
    }
    found = replace(
        findings(folder, study), study=replace(study, size="small"), slim=pairs, no_slim={9: "blocks are wired"}
    )
    (judged,) = [one for one in claims(found) if one.claim.name == "slim"]
    assert judged.verdict == verdict
    assert "No slim network of kels, seed 9: blocks are wired." in document(found)
    assert last or "blocks are wired" in judged.why
    if verdict == "not reproduced":
        assert ("after generation 1: " in judged.why) == (first != FAR)


@pytest.mark.parametrize(
    ("smallest", "sparse", "verdicts"),
    [
        ([-0.01, 0.0, -0.02], [0.50, 0.505, 0.495], ("reproduced", "reproduced")),
        ([-0.5, 0.0, -0.02], [0.55, 0.44, 0.50], ("not reproduced", "not reproduced")),
        ([-0.01, 0.0], [0.50, 0.51], ("cannot be tested here", "cannot be tested here")),
    ],
)
def test_fewer_than_three_seeds_and_wide_intervals_reproduce_nothing(smallest, sparse, verdicts, trained) -> None:
    folder, study, _ = trained
    found = findings(folder, study)
    seal = {"curvature/smallest": of(smallest), "curvature/largest": of([10.0] * len(smallest))}
    levels = {"pruning": {1.0: of([0.50] * len(sparse)), 0.125: of(sparse)}}
    found = replace(found, study=replace(study, size="small"), examined={"seal": seal}, sparse=levels)
    judged = {one.claim.name: one.verdict for one in claims(found)}
    assert (judged["negative"], judged["pruning_keeps"]) == verdicts


@pytest.mark.parametrize(
    ("tolerance", "verdict", "words"),
    [
        (1e-2, "reproduced", "none below -1 % of the largest"),
        (1e-3, "not reproduced", "the interval reaches below -0.1 % of the largest"),
    ],
)
def test_an_eigenvalue_is_negative_as_far_as_the_search_can_tell(tolerance, verdict, words, trained) -> None:
    """Half a per cent below zero: nothing to a search to one per cent, and something to one to a tenth of that."""
    folder, study, _ = trained
    examination = replace(study.examination, protocol=replace(study.examination.protocol, tolerance=tolerance))
    seal = {"curvature/smallest": of([-0.05, -0.05, -0.051]), "curvature/largest": of([10.0] * 3)}
    study = replace(study, size="small", examination=examination)
    found = replace(findings(folder, study), examined={"seal": seal})
    (judged,) = [one for one in claims(found) if one.claim.name == "negative"]
    assert judged.verdict == verdict
    assert words in f"{judged.ours}; {judged.why}"
    # one of five seeds far below, though the interval of the mean is not
    seal = {"curvature/smallest": of([0.1, 0.1, 0.1, 0.1, -0.15]), "curvature/largest": of([10.0] * 5)}
    found = replace(found, examined={"seal": seal})
    assert [one.verdict for one in claims(found) if one.claim.name == "negative"] == ["not reproduced"]


def test_the_command_says_what_is_wrong(tmp_path) -> None:
    result = CliRunner().invoke(main, ["study", "forgetting", "--seeds", "0", "--folder", str(tmp_path)])
    assert result.exit_code == 2
    assert "--seeds 0: must be 1 or more" in result.output


def test_measures_are_named_in_words_and_told_in_one_unit() -> None:
    assert results._words("transfer/flowers17") == "transfer: flowers17"
    assert results._words("few_shot/flowers17/5") == "few-shot: flowers17, 5 a class"
    assert results._words("curvature/largest") == "curvature: largest eigenvalue"
    assert [results._scale(measure) for measure in ("calibration", "transfer/a", "depth")] == [100, 100, 1]
