"""Every job of the project can be read, prepared, drawn and told apart, and says what it repeats."""

import ast
import importlib
import pkgutil
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import llf_ray.recipes
from llf_ray.data.base import held_out
from llf_ray.plan import Schedule, compute, operations_of
from llf_ray.run import Comparison, RunConfig, prepare
from llf_ray.studies.compare import prepare_arms
from llf_ray.studies.show import check_budgets
from llf_ray.tasks import Fresh
from llf_ray.train.folder import load_module

ROOT = Path(__file__).parents[1] / "jobs"
SMALL = sorted(ROOT.glob("*.py"))
PAPER = sorted((ROOT / "paper").glob("*.py"))
READ = [path for path in SMALL if path.stem.startswith(("nuclei", "coco128"))]  # small, of data that are not bundled
GAMES = [path for path in (*SMALL, *PAPER) if path.stem.startswith("language_")]  # of other lengths, without data
SEGMENTATION = [path for path in SMALL if path.stem.startswith("segmentation_")]  # of other lengths; one starts another
ITEMS = {  # of the training parts, less what is cut off for validation
    "aircraft": 3_334,
    "cifar10": 45_000,
    "cifar100": 45_000,
    "cub": 5_594,
    "dogs": 11_400,
    "flowers": 1_020,
    "imagenet": 1_268_000,
    "mit67": 5_092,
    "tiny_imagenet": 98_000,
    "mnist": 6_000,
    "ade20k": 20_008,
    "coco": 114_920,  # about 1,000 images have no object
}
EPOCHS = {  # of each arm, as published; those of another job are for all jobs on its set and network
    "cub_resnet18": 11 * 200,
    "knowledge_evolution_flowers_resnet18": 10 * 200,
    "wels_flowers_resnet18": 10 * 200,
    "flowers_resnet18": 11 * 200,
    "aircraft_resnet18": 11 * 200,
    "dogs_resnet18": 11 * 200,
    "mit67_resnet18": 11 * 200,
    "tiny_imagenet_resnet50": 10 * 160,
    "rifle_cub_resnet50": 40,
    "cifar10_resnet20": 4 * 160,
    "dense_sparse_imagenet_resnet50": 180,
    "alternating_imagenet_resnet50": 100,
    "shrink_perturb_cifar10_resnet18": 45 * 8,
    "selective_forgetting_mnist_lenet": 1000,
    "detection_coco": 22,
    "imagenet_vit_large": 50,
    "cropr_imagenet_eva02_large": 30,
    "ade20k_eva02_large": 64,
}

IMAGES = [path for path in PAPER if any(name in path.stem for name in ITEMS)]
MADE = [path for path in PAPER if path not in IMAGES and path not in GAMES]  # their data are made, not read
PER_CLASS = {"cub": [30] * 194 + [29] * 6, "tiny_imagenet": [500] * 200}  # of the training parts as published
SIZES = {
    "resnet18": 11_000_000,
    "resnet20": 270_000,
    "resnet50": 23_000_000,
    "vit": 5_000_000,
    "lenet": 260_000,
    "vit_large": 300_000_000,
    "eva02_large": 300_000_000,
}  # entries, or more


def longest(table: dict[str, int], name: str) -> int:
    """The entry whose key is the longest end or part of a job's name."""
    return table[max((key for key in table if key in name), key=len)]


def value_of(path: Path) -> RunConfig | Comparison:
    module = load_module(path)
    assert hasattr(module, "config") != hasattr(module, "comparison")
    return module.config if hasattr(module, "config") else module.comparison


def configs(path: Path) -> list[RunConfig]:
    value = value_of(path)
    return [value] if isinstance(value, RunConfig) else list(value.runs().values())


@pytest.mark.parametrize(
    "path", [path for path in SMALL if path not in (*GAMES, *SEGMENTATION, *READ)], ids=lambda path: path.stem
)
def test_a_small_job_prepares_at_the_common_budget(path):
    value = value_of(path)
    arms = {value.name: prepare(value)} if isinstance(value, RunConfig) else prepare_arms(value)
    assert check_budgets(arms) is None
    assert {prepared.plan.total for prepared in arms.values()} == {1600}


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_a_paper_job_gives_its_plan_without_data(path):
    """Steps an epoch follow from the number of items: 174 on CUB, 3,062 on Tiny-ImageNet."""
    items = longest(ITEMS, path.stem)
    recipes = {config.recipe: config.engine.batch for config in configs(path)}
    budgets = {compute(recipe.plan(), num_items=items, batch=batch).budget for recipe, batch in recipes.items()}
    (batch,) = set(recipes.values())
    if "pruning" in path.stem:  # each level but the first starts at step 500
        assert budgets == {(items // batch) * 11 * 160 - 10 * 500}
    elif "active" in path.stem:  # a reset every 1,000 updates
        assert budgets == {70 * 1000}
    else:
        assert budgets == {(items // batch) * longest(EPOCHS, path.stem)}


def test_a_pruned_model_starts_from_the_weights_of_the_dense_job(tmp_path, monkeypatch):
    """The dense job first; without its run the other says in one line what is missing."""
    dense, pruned = (value_of(ROOT / f"segmentation{part}_small.py") for part in ("", "_cropr"))
    assert prepare(dense).plan.total == 1600
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"runs does not exist: expected segmentation-small.*finished run"):
        prepare(pruned)
    final = tmp_path / pruned.task.start.run / "final"
    final.mkdir(parents=True)
    network = dense.task.initial(0)
    save_file(network.state_dict(), final / "model.safetensors")
    names = {slot.name for slot in prepare(pruned).slots}
    drawn = {name for name in names if name not in network.state_dict()}
    assert drawn == {name for name in names if ".cropr." in name}
    assert drawn


def test_jobs_on_camvid_prepare_where_it_is(shared_data, tmp_path, monkeypatch):
    dense, pruned = (value_of(ROOT / f"segmentation{part}_camvid.py") for part in ("", "_cropr"))
    monkeypatch.chdir(tmp_path)
    prepare(dense)
    final = tmp_path / pruned.task.start.run / "final"
    final.mkdir(parents=True)
    save_file(dense.task.initial(0).state_dict(), final / "model.safetensors")
    prepare(pruned)
    kept = pruned.task.skeleton().backbone.kept[-1]
    assert kept <= 0.2 * dense.task.skeleton().backbone.patch_embed.num_patches, "four patches in five leave"


def test_every_recipe_has_a_job_at_both_sizes():
    recipes = {
        type(importlib.import_module(f"llf_ray.recipes.{module.name}").tiny)
        for module in pkgutil.iter_modules(llf_ray.recipes.__path__)
        if module.name != "base"
    }
    for paths in (SMALL, PAPER):
        used = {
            type(config.recipe) for path in paths if isinstance(value_of(path), RunConfig) for config in configs(path)
        }
        assert not {recipe.__name__ for recipe in recipes - used}


@pytest.mark.parametrize("name", PER_CLASS)
def test_the_items_counted_here_are_what_the_jobs_cuts_leave(name):
    labels = np.repeat(np.arange(200), PER_CLASS[name])
    for config in (config for path in PAPER if name in path.stem for config in configs(path)):
        assert len(held_out(labels, "train", config.task.data, cut_validation=True)) == ITEMS[name]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_a_paper_job_fits_its_network(path, monkeypatch):
    """Thresholds and options meet the real network, with stand-ins for the data that are not here."""
    config = configs(path)[0]
    data = type(config.task.data)
    monkeypatch.setattr(data, "classes", lambda self: tuple(str(n) for n in range(200)))
    monkeypatch.setattr(type(config.task), "prepare", lambda self: None)
    monkeypatch.setattr(type(config.task), "num_items", lambda self, role: 100_000)
    for one in {repr(c.recipe): c for c in configs(path)}.values():
        prepared = prepare(one)
        assert sum(slot.size for slot in prepared.slots) > longest(SIZES, path.stem)


@pytest.mark.parametrize("path", READ, ids=lambda path: path.stem)
def test_a_small_job_of_real_data_prepares_where_they_are(path, shared_data):
    config = value_of(path)
    if path.stem == "nuclei_cropr":  # it starts from the dense run, which nobody has trained here
        assert config.task.start.run == f"runs/{value_of(ROOT / 'nuclei.py').name}"
        config = replace(config, task=replace(config.task, start=Fresh()))
    prepared = prepare(config)
    assert prepared.plan.total < 1600
    assert prepared.config.task.num_items("train") in (32, 217)


@pytest.mark.parametrize(("folder", "steps"), [(ROOT, {30_000}), (ROOT / "paper", {240_000, 240_400, 300_000})])
def test_jobs_of_the_language_game_play_it_for_as_many_steps(folder, steps):
    found = set()
    for path in (path for path in GAMES if path.parent == folder):
        plan = prepare(value_of(path)).plan
        found.add(sum(n for phase, n in zip(plan.phases, plan.steps, strict=True) if phase.objective.kind == "task"))
    assert found == steps


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.stem)
def test_a_paper_job_whose_data_are_made_prepares_as_it_is(path):
    """Ten times the small job's network, and no less training for each item."""
    small = prepare(value_of(ROOT / f"{path.stem.rpartition('_')[0]}_small.py"))
    for config in configs(path):
        prepared = prepare(config)
        sizes = [sum(slot.size for slot in one.slots) for one in (prepared, small)]
        assert sizes[0] > 10 * sizes[1]
        passes = [p.plan.total * p.config.engine.batch / p.config.task.num_items("train") for p in (prepared, small)]
        assert passes[0] >= passes[1]


def test_names_of_jobs_are_those_of_their_files():
    names = {path: value_of(path).name for path in (*SMALL, *PAPER)}
    assert all(name == path.stem.replace("_", "-") for path, name in names.items())


def test_jobs_compute_different_things():
    """Two files that give one identity but for the name would be one job told twice."""
    runs = [config for path in (*SMALL, *PAPER) for config in configs(path) if isinstance(value_of(path), RunConfig)]
    identities = [replace(config, name="x").identity for config in runs]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize("path", [*SMALL, *PAPER], ids=lambda path: path.stem)
def test_a_job_says_what_it_repeats_and_runs_as_a_script(path):
    text = path.read_text()
    stated = ast.get_docstring(ast.parse(text)) or ""
    assert re.search(r"arXiv:\d{4}\.\d{5}", stated), stated
    assert text.endswith('if __name__ == "__main__":\n    main_job(__file__)\n')


def test_the_ablations_differ_from_their_method_in_what_they_say():
    """Their plans, by the operations and directions that they hold."""

    def doing(name: str) -> list[tuple[object, ...]]:
        plan = prepare(value_of(ROOT / f"{name}.py")).plan
        schedule, found = Schedule(plan), []
        for index, phase in enumerate(plan.phases):
            start = sum(plan.steps[:index])
            labels = [operation.label for _, _, operation in operations_of(plan, schedule.at(start))]
            found.append((phase.generation, *labels, *sorted((k, v) for k, v in phase.directions.items() if v != 1)))
        return found[1:3]

    assert doing("later_layer_small") == [(1, "redraw later weights"), (2, "redraw later weights")]
    assert doing("later_layer_reverse_small") == [(1, "redraw early weights"), (2, "redraw early weights")]
    assert doing("later_layer_hold_later_small")[0] == (1, "redraw later weights", ("later, head apart", 0.0))
    assert doing("later_layer_hold_early_small")[0] == (1, "redraw later weights", ("early", 0.0))
    assert doing("later_layer_fixed_small")[0] == (1, "redraw later weights (same draw)", ("later, head apart", 0.0))
    assert doing("seal_small") == [(1, ("early", -0.07)), (1,)]
    assert doing("seal_reverse_small") == [(1, ("later", -0.07)), (1,)]
    assert doing("seal_hold_late_small") == [(1, ("early", -0.07), ("later", 0.0)), (1,)]
    assert doing("seal_later_layer_small") == [(1, "redraw later weights", ("early", -0.07)), (1,)]
