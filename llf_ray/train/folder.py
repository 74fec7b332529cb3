"""A run's folder: made once from prepared settings, read back by whoever carries the run on."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from llf_ray.config import SettingError, accepted, from_plain, override, to_plain
from llf_ray.engine.pieces import Pieces
from llf_ray.forget.groups import Slot
from llf_ray.journal import replace_text, update_run
from llf_ray.plan import Cut, Plan, curves_of, spans
from llf_ray.run import Prepared, RunConfig, prepare
from llf_ray.train.adviser import STOP_REQUEST, read_cuts
from llf_ray.train.state import Run, checkpoint_at, checkpoints, verify_checkpoint

__all__ = [
    "OUTCOME",
    "branch_of",
    "create",
    "extend",
    "is_longer",
    "keep_job",
    "load_module",
    "load_types",
    "open_run",
    "with_folder",
]

JOB, OUTCOME, RUN, PLAN = "job", "outcome.json", "run.json", "plan.json"
FREE = (
    "resources",
    "checkpoints",
    "tracking",
    "folder",
    "engine.stage",
    "engine.precision",
    "engine.micro_batch",
    "engine.accumulation",
    "recipe.generations",
)
"""Settings that a run may be resumed with: where and how it is carried out, and for how many generations."""


def create(
    prepared: Prepared,
    folder: Path,
    *,
    job_file: Path | None = None,
    branch: tuple[Path, int] | None = None,
    parent: str | None = None,
) -> Run:
    """Make a run's folder.

    Args:
        prepared: settings that were checked, and their plan.
        folder: where; must not exist.
        job_file: the file that the settings came from; it is kept with what it imports from its own folder, so that
            types it defines can be read back.
        branch: checkpoint folder to start from and the step of this plan at which to start.
        parent: name of the comparison or sweep that the run belongs to.

    Raises:
        SettingError: the name is in use.
    """
    if folder.exists():
        state = "is a run" if (folder / RUN).exists() else "exists"
        raise SettingError(
            f"name {folder.name!r} is in use: {folder} {state}; carry it on with `llf-ray resume {folder.name}`, "
            "choose another name=..., or add --again for a numbered copy"
        )
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise SettingError(
            f"folder = {str(folder.parent)!r}: cannot make a run's folder there ({error.strerror})"
        ) from None
    if job_file is not None:
        keep_job(job_file, folder)
    about = {
        "name": folder.name,
        "created": time.time(),
        "state": "starting",
        "parent": parent,
        "job": to_plain(prepared.config),
        "job_file": str(job_file) if job_file else None,
        "job_module": module_name(job_file) if job_file else None,
        "branch": [str(branch[0]), branch[1]] if branch else None,
        "total": prepared.plan.total,
        "plan": prepared.plan.fingerprint,
    }
    replace_text(folder / PLAN, json.dumps(to_plain(prepared.plan), indent=1))
    replace_text(folder / RUN, json.dumps(about, indent=1))
    return _run(prepared, prepared.plan, folder, about)


def _run(prepared: Prepared, plan: Plan, folder: Path, about: Mapping[str, Any]) -> Run:
    branch = about.get("branch")
    return Run(
        config=prepared.config,
        plan=plan,
        slots=prepared.slots,
        groups=prepared.groups,
        folder=folder.resolve(),
        branch=Path(branch[0]) if branch else None,
        branch_step=branch[1] if branch else 0,
    )


def open_run(folder: Path, assignments: Mapping[str, Any] | None = None) -> Run:
    """Read a run's folder to carry it on, with other settings of where and how it is carried out.

    Raises:
        SettingError: no run there, a setting that would change what the run computes, or settings that no longer give
        its plan.
    """
    about = read_about(folder)
    for key in assignments or {}:
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            raise SettingError(
                f"{key}: a resumed run keeps what it computes; free to change are {', '.join(FREE)}. "
                f"For other settings branch it: llf-ray run JOB --from {folder.name}@GENERATION"
            )
    load_types(folder, about)
    config: RunConfig = from_plain(about["job"])
    prepared = prepare(override(config, assignments) if assignments else config)
    plan = _read_plan(folder)
    if "recipe.generations" in (assignments or {}):
        _check_longer(folder, plan, prepared.plan)
        plan = prepared.plan
    if prepared.plan.fingerprint != plan.fingerprint:
        raise SettingError(
            f"run {folder.name!r}: its settings now give plan {prepared.plan.fingerprint}, "
            f"it was started with {plan.fingerprint} (other data or another version of this package)"
        )
    (folder / STOP_REQUEST).unlink(missing_ok=True)
    return _run(prepared, plan, folder, about)


def _check_longer(folder: Path, plan: Plan, longer: Plan) -> None:
    """Raise unless a plan goes on where the run's own ends: what has been done must have been done alike."""
    begun = replace(longer, phases=longer.phases[: len(plan.phases)], steps=longer.steps[: len(plan.steps)])
    begun = replace(begun, epoch_steps=longer.epoch_steps[: len(plan.epoch_steps)])
    over_the_run = [phase for phase in plan.phases for curve in curves_of(phase) if curve.over == "run"]
    if begun != plan or len(longer.phases) <= len(plan.phases) or over_the_run:
        why = (
            "its rate follows one curve over the whole run"
            if over_the_run
            else f"it has generations 0 to {plan.generations - 1}, and the new plan does not begin with them"
        )
        raise SettingError(f"recipe.generations: run {folder.name!r} cannot be made longer: {why}")
    if _finished(folder) and not checkpoint_at(folder / "checkpoints", _end(folder, plan)).exists():
        raise SettingError(
            f"recipe.generations: run {folder.name!r} kept no checkpoint in front of its end (checkpoints.keep = 1)"
        )


def _finished(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / OUTCOME).read_text())["state"] == "finished")
    except (FileNotFoundError, ValueError, KeyError):
        return False


def _end(folder: Path, plan: Plan) -> int:
    """The step at which a plan ends, cuts taken into account."""
    return spans(plan, read_cuts(folder))[-1][1]


def is_longer(run: Run) -> bool:
    """Whether a run is to be carried on by a longer plan than its folder has."""
    return _read_plan(run.folder).fingerprint != run.plan.fingerprint


def extend(run: Run) -> None:
    """Give a run's folder the longer plan that it is carried on with; at its old end the next generation begins."""
    if not is_longer(run):
        return
    ended = checkpoint_at(run.folder / "checkpoints", _end(run.folder, _read_plan(run.folder)), crossed=True)
    if ended.exists():  # there the operations of the next generation are missing
        ended.rename(ended.with_name(f"ended-{ended.name}"))
    replace_text(run.folder / PLAN, json.dumps(to_plain(run.plan), indent=1))
    update_run(run.folder, total=run.plan.total, plan=run.plan.fingerprint)


def read_about(folder: Path) -> dict[str, Any]:
    """What run.json says.

    Raises:
        SettingError: there is no run.
    """
    try:
        return dict(json.loads((folder / RUN).read_text()))
    except FileNotFoundError:
        raise SettingError(f"no run at {folder}: it has no {RUN}") from None
    except (OSError, ValueError) as error:
        raise SettingError(f"{folder / RUN} cannot be read: {error}") from None


def _read_plan(folder: Path) -> Plan:
    try:
        plan: Plan = from_plain(json.loads((folder / PLAN).read_text()))
    except FileNotFoundError:
        raise SettingError(f"run {folder.name!r} is not whole: {folder / PLAN} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{folder / PLAN} cannot be read: {error}") from None
    return plan


def branch_of(folder: Path, generation: int, prepared: Prepared) -> tuple[Path, int]:
    """The checkpoint at the end of a generation of another run, and the step of the new plan at which its next
    generation starts.

    Raises:
        SettingError: the run has no such generation, kept no checkpoint of it, is of another model, or the new plan
        has no generation after it.
    """
    plan = prepared.plan
    about = read_about(folder)
    if about.get("job_module") not in sys.modules:  # a job file that is loaded now has the types of the new run
        load_types(folder, about)
    other = _read_plan(folder)
    cuts = read_cuts(folder)
    if not 0 <= generation < other.generations:
        raise SettingError(f"run {folder.name!r} has generations 0 to {other.generations - 1}, not {generation}")
    end = max(stop for _, stop in _spans_of(other, generation, cuts))
    kept = checkpoint_at(folder / "checkpoints", end)
    if not kept.exists():
        found = ", ".join(path.name for path in checkpoints(folder / "checkpoints"))
        raise SettingError(
            f"run {folder.name!r} kept no checkpoint at the end of generation {generation} (step {end}); "
            f"it has {found or 'none'}"
        )
    problem = verify_checkpoint(kept)
    if problem:
        raise SettingError(f"run {folder.name!r}: {problem}")
    _check_model(Pieces(kept), prepared.slots, folder.name)
    following = _spans_of(plan, generation + 1, ())
    if not following:
        raise SettingError(
            f"the new plan has generations 0 to {plan.generations - 1}: nothing follows generation {generation}; "
            "raise recipe.generations"
        )
    return kept.resolve(), following[0][0]


def _check_model(pieces: Pieces, slots: Sequence[Slot], run: str) -> None:
    saved = {name: pieces.shape(name) for kind in ("weight", "buffer") for name in pieces.names(kind)}
    wanted = {slot.name: tuple(slot.shape) for slot in slots}
    for name in [*wanted, *saved]:
        if saved.get(name) != wanted.get(name):
            has, needs = (f"shape {shapes[name]}" if name in shapes else "no such entry" for shapes in (saved, wanted))
            raise SettingError(f"run {run!r} has another model: {name}: it has {has}, this job's model has {needs}")


def _spans_of(plan: Plan, generation: int, cuts: Sequence[Cut]) -> list[tuple[int, int]]:
    every = zip(plan.phases, spans(plan, cuts), strict=True)
    return [span for phase, span in every if phase.generation == generation]


def load_types(folder: Path, about: Mapping[str, Any]) -> None:
    """Import the copy of a job file where its settings are of types that it defines.

    Only then, since it may import a neighbour.
    """
    module = about.get("job_module")
    if module and f'"{module}:' in json.dumps(about["job"]):
        load_module(folder / JOB / Path(about["job_file"]).name, module)


def keep_job(job_file: Path, folder: Path) -> None:
    """Copy a job file into a run's folder, and the neighbours that it imports, and theirs."""
    (folder / JOB).mkdir()
    waiting, kept = [job_file], set()
    while waiting:
        path = waiting.pop()
        if path in kept or not path.is_file():
            continue
        kept.add(path)
        shutil.copyfile(path, folder / JOB / path.name)
        waiting += [job_file.parent / f"{name}.py" for name in _imported(path)]


def _imported(path: Path) -> Iterator[str]:
    """First names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def module_name(path: Path) -> str:
    """The name a job file is imported under."""
    return f"llf_ray_job_{path.stem}"


def load_module(path: Path, name: str | None = None) -> ModuleType:
    """Import a job file. It may import its neighbours by their bare names, as it may when it is run as a script.

    Raises:
        SettingError: the file is missing or fails, with its own error and line.
    """
    name = name or module_name(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise SettingError(f"job file {path} does not exist" + (f"; there are: {', '.join(near)}" if near else ""))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except SettingError as error:
        raise SettingError(f"{path}{_line_of(error, path)}: {error}") from None
    except Exception as error:
        del sys.modules[name]
        raise SettingError(
            f"{path}{_line_of(error, path)} cannot be read: {type(error).__name__}: {error}{accepted(error)}"
        ) from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _line_of(error: Exception, path: Path) -> str:
    """The line of a file that an error came from, as ``:12``."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f":{lines[-1]}" if lines else ""


def with_folder(config: RunConfig, folder: Path) -> RunConfig:
    """Settings with an absolute folder: a worker's own folder is another one."""
    return replace(config, folder=str(folder.resolve()))
