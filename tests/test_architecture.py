"""Who may import whom: design.md section 3 as data, held against the source text of every module.

Imports inside functions and under `TYPE_CHECKING` count too: an arrow that is drawn late is still an arrow.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each part and the parts it may import; an arrow allows everything below it too. A module belongs to the part
# with the longest name that its own begins with: `engine.zero` is a part, `engine.base` is one of `engine`.
ARROWS: dict[str, tuple[str, ...]] = {
    # leaves, and what every part may import
    "config": (),
    "journal": (),
    "plan": (),
    "forget": ("plan",),  # where the protocols are that its operations and selections meet
    "nn": (),
    "data": (),
    "figures": (),
    # what a run is made of
    "measures": ("nn", "forget"),
    "tasks": ("nn", "data", "measures"),
    "recipes": ("forget",),
    "engine": ("forget",),  # base, team, pieces
    "engine.local": ("engine",),
    "engine.zero": ("engine",),
    "run": ("recipes", "tasks", "engine"),
    "train": ("engine.local", "run"),
    "estimators": ("train",),
    # what only a cluster or a person needs
    "display": (),
    "tracking": (),
    "cluster": ("tracking", "engine.zero", "train", "display"),
    "studies": ("cluster", "estimators", "figures"),
    "cli": ("studies", "display"),
    "__main__": ("cli",),
}
FOR_EVERYONE = ("config", "journal")  # but config, the lowest of all, imports nothing of ours

# The only part that may import each of these packages.
OWNERS = {
    "ray": "cluster",
    "deepspeed": "engine.zero",
    "mlflow": "tracking",
    "matplotlib": "figures",
    "click": "cli",
}

# Parts that may import nothing from outside but the standard library and these.
OUTSIDE: dict[str, tuple[str, ...]] = {
    "config": (),
    "plan": (),
    "journal": (),
    "forget": ("numpy", "torch"),
    # torchvision for detection: proposals, pooling of regions and their heads are its own, and well kept there
    "nn": ("nflows", "numpy", "safetensors", "timm", "torch", "torchvision"),
}

# Values, trials and measurements use the package; the package never uses them.
ABOVE_THE_PACKAGE = ("benchmarks", "jobs", "scripts", "tests", "tune_spaces")
MEANINGLESS_NAMES = {"common", "helper", "helpers", "manager", "managers", "util", "utils"}

# Parts that need Ray, DeepSpeed or MLflow; all others must work without the three.
NEED_A_CLUSTER = {"cluster", "engine.zero", "tracking", "studies", "cli", "__main__"}


def below(part: str) -> set[str]:
    """Every part that `part` may import: its arrows, theirs, and what is there for everyone."""
    if part == "config":
        return {part}
    found: set[str] = {part, *FOR_EVERYONE}
    waiting = list(ARROWS[part])
    while waiting:
        found.add(following := waiting.pop())
        waiting += ARROWS[following]
    return found


def part_of(module: str) -> str | None:
    """The part that a module of llf_ray belongs to, None for the package itself and for an unknown part."""
    name = module.removeprefix("llf_ray").removeprefix(".")
    return max((part for part in ARROWS if f"{name}.".startswith(f"{part}.")), key=len, default=None)


def imports(source: str, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and full name of all that is imported anywhere in `source`; `modules` are those there are."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield node.lineno, inner if inner in modules else origin
        elif isinstance(node, ast.Call):  # importlib.import_module("name"), __import__("name")
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if function in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)


def check_import(module: str, target: str) -> str | None:
    """What is wrong with `module` importing `target`, None if nothing."""
    part, package = part_of(module), target.split(".")[0]
    if target.startswith("."):
        return "imports are absolute"
    if package in ABOVE_THE_PACKAGE:
        return f"the package never imports {package}/"
    if package == "llf_ray":
        other = part_of(target)
        if other is None or part is None or other in below(part):
            return None
        allowed = ", ".join(sorted(below(part) - {part})) or "nothing of ours"
        return f"{part} may not import {other}, only {allowed}"
    if package in OWNERS and part != OWNERS[package]:
        return f"only {OWNERS[package]} imports {package}"
    if part in OUTSIDE and package not in OUTSIDE[part] and package not in sys.stdlib_module_names:
        return f"{part} may import {', '.join(OUTSIDE[part]) or 'nothing'} from outside, not {package}"
    return None


def violations(sources: Mapping[str, str]) -> list[str]:
    """Every breach of the rules in `sources`, module name -> text, one line each."""
    found = []
    for module, source in sources.items():
        tree = ast.parse(source)
        if not ast.get_docstring(tree):
            found.append(f"{module}:1 has no docstring")
        if names := MEANINGLESS_NAMES.intersection(module.split(".")):
            found.append(f"{module}:1 is named {names.pop()}: name what it holds")
        if module != "llf_ray" and part_of(module) is None:
            found.append(f"{module}:1 is in no part: give it a row in ARROWS")
        if not module.split(".")[-1].startswith("__") and not declares_all(tree):
            found.append(f"{module}:1 has no __all__")
        for line, target in imports(source, set(sources)):
            if (wrong := check_import(module, target)) is not None:
                found.append(f"{module}:{line} imports {target}: {wrong}")
    return found


def declares_all(tree: ast.Module) -> bool:
    """Whether a module names what it offers in `__all__`, or has nothing to name."""
    named: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            named.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            named |= {alias.asname or alias.name for alias in node.names if getattr(node, "module", "") != "__future__"}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named |= {target.id for target in targets if isinstance(target, ast.Name)}
    return "__all__" in named or all(name.startswith("_") for name in named)


def package_sources() -> dict[str, str]:
    """Full module name -> text of every module of llf_ray; a package goes by its own name."""
    files = sorted((ROOT / "llf_ray").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return dict(zip(names, (file.read_text(encoding="utf-8") for file in files), strict=True))


def test_the_package_keeps_the_rules():
    assert violations(package_sources()) == []


@pytest.mark.parametrize("folder", ["jobs", "tune_spaces"])
def test_jobs_and_spaces_hold_values_only(folder):
    """They say what they are and take everything from the package; spaces may name Ray's searches."""
    modules = set(package_sources())
    for file in sorted((ROOT / folder).rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(source)), f"{file} has no docstring"
        neighbours = {other.stem for other in file.parent.glob("*.py")}  # what jobs derive from one another
        allowed = {"llf_ray", folder, *neighbours, *(["ray", "jobs"] if folder == "tune_spaces" else [])}
        outside = {target.split(".")[0] for _, target in imports(source, modules)} - allowed
        assert outside <= sys.stdlib_module_names, f"{file} imports {sorted(outside - sys.stdlib_module_names)}"


def test_arrows_point_downwards():
    """No part is below itself: the parts have an order, so no knot can be tied whatever the modules do."""
    for part, arrows in ARROWS.items():
        assert all(part not in below(other) for other in arrows), part
        assert part in FOR_EVERYONE or all(part not in below(other) for other in FOR_EVERYONE), part


def module(text: str) -> str:
    return f'"""A made-up module."""\n{text}\n__all__ = ["x"]\nx = 1\n'


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("llf_ray.tasks.new", "from llf_ray.cluster import launch", "tasks may not import cluster"),
        ("llf_ray.tasks.new", "from llf_ray import cluster", "tasks may not import cluster"),
        ("llf_ray.tasks.new", "import llf_ray.cluster.launch as launch", "tasks may not import cluster"),
        (
            "llf_ray.measures.new",
            "def f():\n    from llf_ray.tasks import base",
            "measures may not import tasks",
        ),
        ("llf_ray.engine.base", "from llf_ray.engine.zero import Zero", "engine may not import engine.zero"),
        (
            "llf_ray.engine.local",
            "from llf_ray.engine import zero",
            "engine.local may not import engine.zero",
        ),
        ("llf_ray.train.loop", "from llf_ray.engine.zero import Zero", "train may not import engine.zero"),
        ("llf_ray.recipes.new", "from llf_ray.tasks.base import Task", "recipes may not import tasks"),
        ("llf_ray.plan", "from llf_ray.forget import edit", "plan may not import forget"),
        ("llf_ray.plan", "import torch", "plan may import nothing from outside"),
        ("llf_ray.config", "def f():\n    import torch", "config may import nothing from outside"),
        ("llf_ray.config", "from llf_ray import journal", "config may not import journal"),
        ("llf_ray.display", "from llf_ray.run import RunConfig", "display may not import run"),
        ("llf_ray.nn.new", "import scipy.ndimage", "not scipy"),
        ("llf_ray.train.loop", "import ray", "only cluster imports ray"),
        (
            "llf_ray.train.loop",
            "import importlib\nimportlib.import_module('ray.train')",
            "only cluster imports ray",
        ),
        ("llf_ray.cli", "from ray.job_submission import JobSubmissionClient", "only cluster imports ray"),
        ("llf_ray.engine.local", "import deepspeed.comm", "only engine.zero imports deepspeed"),
        ("llf_ray.cluster.actor", "import mlflow", "only tracking imports mlflow"),
        ("llf_ray.cli", "from jobs.seal_small import config", "never imports jobs/"),
        ("llf_ray.cli", "import tune_spaces", "never imports tune_spaces/"),
        ("llf_ray.cli", "from . import run", "imports are absolute"),
        ("llf_ray.nn.helpers", "", "named helpers"),
        ("llf_ray.data.manager", "", "named manager"),
        ("llf_ray.newcomer", "", "is in no part"),
    ],
)
def test_a_breach_is_found(name, text, complaint):
    sources = {
        "llf_ray.cluster": module(""),
        "llf_ray.engine.zero": module(""),
        "llf_ray.journal": module(""),
    }
    (found,) = violations(sources | {name: module(text)})
    assert found.startswith(f"{name}:")
    assert complaint in found


def test_a_module_without_docstring_or_all_is_found():
    found = violations({"llf_ray": "__version__ = '1'\n", "llf_ray.plan": "x = 1\n"})
    assert [line.partition(" ")[::2] for line in found] == [
        ("llf_ray:1", "has no docstring"),
        ("llf_ray.plan:1", "has no docstring"),
        ("llf_ray.plan:1", "has no __all__"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "llf_ray.train.loop",
            "from llf_ray.forget.edit import apply",
        ),  # train -> engine.local -> engine -> forget
        ("llf_ray.nn.new", "from llf_ray import config, journal"),
        (
            "llf_ray.cluster.launch",
            "import ray\nfrom llf_ray import tracking\nfrom llf_ray.engine.zero import Zero",
        ),
        (
            "llf_ray.cli",
            "import click\nfrom llf_ray.studies.compare import compare\nfrom llf_ray import __version__",
        ),
        ("llf_ray.forget.masks", "import math\nimport torch\nfrom llf_ray.forget.draw import draw"),
    ],
)
def test_what_the_arrows_allow_passes(name, text):
    assert violations({name: module(text)}) == []


def test_training_works_without_ray_deepspeed_and_mlflow():
    """In a process where the three cannot be imported, every module that should not need them still can."""
    free = [name for name in package_sources() if part_of(name) not in NEED_A_CLUSTER]
    program = f"""
import importlib, sys
for name in ("ray", "deepspeed", "mlflow"):
    sys.modules[name] = None  # importing it now raises ImportError
for name in {free!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
