"""The command line: read settings, check them, hand them on. A user's mistake is one line on stderr and exit code 2.

Heavy packages are imported by the commands that need them, so that `llf-ray --help` answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from llf_ray import __version__
from llf_ray.config import SettingError, nearest, override, parse_assignments

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from llf_ray.run import Comparison, Prepared, RunConfig
    from llf_ray.train.worker import Outcome

__all__ = ["main", "main_job"]

LOG = "driver.log"
PIPE_WIDTH = 160  # characters of a line where nobody's terminal says how many: tables stay whole in files


class Commands(click.Group):
    """Turns a user's mistakes into one line. In the order of `--help`: as they are written below."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        with _one_line():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _one_line():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(128 + signal.SIGINT) from None
        except BrokenPipeError:  # `llf-ray show ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(128 + signal.SIGPIPE) from None


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except SettingError as error:
        _leave(str(error), 2)
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:  # its own way would print the usage, too
        _leave(error.format_message(), 2)


def _leave(message: str, code: int) -> NoReturn:
    click.echo(f"llf-ray: {' '.join(message.split())}", err=True)
    raise SystemExit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Iterative training on Ray: forget, relearn, anneal, prune and rewind over generations.

    JOB is a Python file that holds `config = RunConfig(...)` or `comparison = Comparison(...)`; SETTINGS are
    key=value, under dotted keys such as optim.lr=0.05. RUN is a run's name in the folder of runs, or the path of its
    folder.
    """


def main_job(file: str) -> NoReturn:
    """For the last lines of a job file: what `llf-ray run` (or `compare`) does with it, with the same arguments behind
    it.
    """
    path = Path(file).resolve()
    try:
        command = "compare" if hasattr(_module(path), "comparison") else "run"
    except SettingError as error:
        _leave(str(error), 2)
    main(args=[command, str(path), *sys.argv[1:]], prog_name=f"python {Path(file).name}")
    raise SystemExit(0)


# ----------------------------------------------------------------------------------------------------------- arguments

job_argument = click.argument("job", type=click.Path(path_type=Path))
settings_argument = click.argument("settings", nargs=-1)
run_argument = click.argument("run")
runs_option = click.option(
    "--folder", default="runs", show_default=True, type=click.Path(path_type=Path), help="Folder in which the runs are."
)
into_option = click.option(
    "--folder",
    "into",
    metavar="DIR",
    help="Folder in which the runs are, this one too: the job's setting `folder`.  [default: the job's own]",
)
again_option = click.option("--again", is_flag=True, help="Where the name is in use, make a numbered copy.")
plain_option = click.option("--plain", is_flag=True, help="Plain lines, also on a terminal.")
verbose_option = click.option("--verbose", is_flag=True, help="Show on the screen what goes to the log file.")


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def _module(job: Path) -> Any:
    from llf_ray.train.folder import load_module

    return load_module(job)


def _job(job: Path) -> RunConfig | Comparison:
    """What a job file holds.

    Raises:
        SettingError: the file is missing, fails, or holds neither or both.
    """
    from llf_ray.run import Comparison, RunConfig

    module = _module(job)
    found = {name: getattr(module, name) for name in ("config", "comparison") if hasattr(module, name)}
    if len(found) != 1:
        held = "both (import a neighbour's under another name)" if found else "neither"
        raise SettingError(
            f"{job}: a job holds `config = RunConfig(...)` or `comparison = Comparison(...)`; this file has {held}"
        )
    ((name, value),) = found.items()
    kind = RunConfig if name == "config" else Comparison
    if not isinstance(value, kind):
        raise SettingError(f"{job}: {name} = {value!r:.60}: must be a {kind.__name__}")
    return value


def _assignments(settings: Sequence[str], into: str | None) -> dict[str, str]:
    """SETTINGS, and what `--folder` sets."""
    return parse_assignments([*settings, *([] if into is None else [f"folder={into}"])])


def _run_job(job: Path, settings: Sequence[str], into: str | None = None) -> RunConfig:
    from llf_ray.data.base import anchored
    from llf_ray.run import RunConfig
    from llf_ray.train.folder import with_folder

    value = _job(job)
    if not isinstance(value, RunConfig):
        raise SettingError(f"{job} holds a comparison, not a run: use `llf-ray compare {job}`")
    config = override(value, _assignments(settings, into))
    # workers stand in folders of their own: every path is made whole here
    return with_folder(replace(config, task=anchored(config.task), recipe=anchored(config.recipe)), Path(config.folder))


def _comparison_job(
    job: Path, settings: Sequence[str], seeds: int | None, arms: str | None, into: str | None = None
) -> Comparison:
    from llf_ray.run import Comparison
    from llf_ray.studies.compare import adjust

    value = _job(job)
    if not isinstance(value, Comparison):
        raise SettingError(f"{job} holds one run, not a comparison: use `llf-ray run {job}`")
    if seeds is not None and seeds < 1:
        raise SettingError(f"--seeds {seeds}: must be 1 or more")
    names = None if arms is None else [name.strip() for name in arms.split(",") if name.strip()]
    return adjust(value, _assignments(settings, into), num_seeds=seeds, arms=names)


def _prepare(config: RunConfig) -> Prepared:
    """`llf_ray.run.prepare`; missing or broken data are the user's mistakes too.

    Raises:
        SettingError: the first thing that cannot work.
    """
    from llf_ray.run import prepare

    try:
        return prepare(config)
    except (ValueError, OSError) as error:
        raise error if isinstance(error, SettingError) else SettingError(str(error)) from error


def _find(run: str, folder: Path) -> Path:
    """A run's folder from its path or name.

    Raises:
        SettingError: there is none; with the nearest name.
    """
    from llf_ray.journal import run_folders

    for path in (folder / run, Path(run)):
        if (path / "run.json").exists():
            return path
        if (path / "study.json").exists():
            inside = [str(one.relative_to(path.parent)) for one in run_folders(path)]
            example = f", for example {inside[0]!r} (there are {len(inside)})" if inside else ""
            raise SettingError(f"{run!r} is a study: name one of its trainings with it{example}")
    known = {str(path.relative_to(folder)): path for path in run_folders(folder)} if folder.is_dir() else {}
    same = [path for path in known.values() if path.name == run]
    if len(same) == 1:
        return same[0]
    if same:
        raise SettingError(
            f"run {run!r} may be {' or '.join(str(path.relative_to(folder)) for path in same)}: name it whole"
        )
    near = nearest(run, known)
    hint = f"; did you mean {near!r}?" if near else ""
    listed = (
        f" (`llf-ray runs --folder {folder}` lists the {len(known)} there are)" if known else f": {folder} holds no run"
    )
    raise SettingError(f"run {run!r} does not exist in {folder}{hint}{listed}")


# ---------------------------------------------------------------------------------------------------------------- show


@main.command()
@job_argument
@settings_argument
@click.option("--all", "everything", is_flag=True, help="Every generation and every name, nothing shortened.")
@click.option("--figure", type=click.Path(path_type=Path), help="Where to draw the timeline [default: NAME-plan.png].")
@click.option("--time", "timed", is_flag=True, help="Run 20 steps here and price the plan: hours, memory per worker.")
@click.option(
    "--apply",
    "weights",
    type=click.Path(path_type=Path),
    help="Try the plan's operations on a checkpoint, run folder or file of weights.",
)
@click.option("--operation", type=int, help="With --apply: only the operation of this number.")
def show(
    job: Path,
    settings: tuple[str, ...],
    everything: bool,
    figure: Path | None,
    timed: bool,
    weights: Path | None,
    operation: int | None,
) -> None:
    """Print what a job will do and draw it; nothing is started."""
    from llf_ray.run import Comparison
    from llf_ray.studies import show as views

    if operation is not None and weights is None:
        raise SettingError(f"--operation {operation} goes with --apply CHECKPOINT")
    value = _job(job)
    if isinstance(value, Comparison):
        from llf_ray.studies.compare import prepare_arms

        comparison = _comparison_job(job, settings, None, None)
        plans = prepare_arms(comparison, _prepare)
        trainings, name = len(comparison.seeds), comparison.name
        view = views.show_comparison(comparison, plans, everything=everything)
    else:
        config = _run_job(job, settings)
        plans, trainings, name = {config.name: _prepare(config)}, 1, config.name
        view = views.show(plans[config.name], everything=everything)
    tried = [] if weights is None else _tried(plans, weights, operation)
    console = _console()
    for part in (view, *tried):
        console.print(part)
    if timed:
        _price(console, plans, trainings)
    console.print(f"\ntimeline: {views.draw(plans, figure or Path(f'{name}-plan.png'))}", soft_wrap=True)


def _price(console: Console, plans: Mapping[str, Prepared], trainings: int) -> None:
    """Of a comparison the first arm is measured: steps of one model and batch cost the same in every arm."""
    from llf_ray.studies.price import price, report

    prepared = next(iter(plans.values()))
    console.print(report(prepared, price(prepared), trainings=len(plans) * trainings))


def _tried(plans: Mapping[str, Prepared], weights: Path, operation: int | None) -> list[RenderableType]:
    """What each plan's operations do to the weights; arms of a comparison without operations are left out."""
    from llf_ray.studies import trial

    acting = {name: prepared for name, prepared in plans.items() if trial.deeds(prepared)} or dict(plans)
    parts: list[RenderableType] = []
    for name, prepared in acting.items():
        saved = trial.open_weights(weights, prepared.slots)
        parts += [f"\n== {name} =="] if len(plans) > 1 else []
        parts.append(trial.report(saved, trial.try_operations(prepared, saved, operation)))
    return parts


# ----------------------------------------------------------------------------------------------------- run and resume


class Heard:
    """The signal that stopped a driver, for its exit code."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int) -> None:
        self.number = number


def _end(outcomes: Sequence[Outcome], heard: Heard, lines: Sequence[str], log_file: Path) -> NoReturn:
    """Say how it ended; the last line names the log file. Exit code 0, 1 after a failure, 128 + signal after a stop."""
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    for line in lines:
        click.echo(line)
    click.echo(f"log: {log_file}")
    if failed:
        raise SystemExit(1)
    stopped = any(outcome.state != "finished" for outcome in outcomes)
    raise SystemExit(128 + (heard.number or signal.SIGINT) if stopped else 0)


def _quiet(plain: bool) -> None:
    if plain:
        os.environ["TERM"] = "dumb"  # what rich and every other library understand
    logging.getLogger().addHandler(logging.NullHandler())


@main.command()
@job_argument
@settings_argument
@click.option(
    "--from",
    "branch",
    metavar="RUN@GENERATION",
    help="Start from another run's weights at the end of a generation (0 is the first). RUN is a name in --folder or a "
    "path.",
)
@again_option
@plain_option
@verbose_option
@into_option
def run(
    job: Path, settings: tuple[str, ...], branch: str | None, again: bool, plain: bool, verbose: bool, into: str | None
) -> None:
    """Carry out a job."""
    from llf_ray.studies.compare import free_folder
    from llf_ray.studies.show import draw
    from llf_ray.train.folder import create

    config = _run_job(job, settings, into)
    place = free_folder(Path(config.folder) / config.name, again=again)
    prepared = _prepare(replace(config, name=place.name))
    start = _branch(branch, Path(config.folder), prepared) if branch else None
    made = create(prepared, place, job_file=job.resolve(), branch=start)
    draw({place.name: prepared}, place / "figures" / "plan.png")
    with _name_free_again(place):
        _carry_on(made, plain, verbose)


@contextmanager
def _name_free_again(place: Path) -> Iterator[None]:
    """A new run that is refused before anything starts leaves no folder: the same command with other settings works."""
    from llf_ray.journal import read

    try:
        yield
    except SettingError:
        states = [record.get("state") for path in place.rglob("journal.jsonl") for record in read(path)]
        if "running" not in states and not any(place.rglob("checkpoints")):
            shutil.rmtree(place, ignore_errors=True)
        raise


def _branch(text: str, folder: Path, prepared: Prepared) -> tuple[Path, int]:
    from llf_ray.train.folder import branch_of

    name, at, generation = text.rpartition("@")
    if not at or not name or not generation.isdigit():
        raise SettingError(f"--from {text!r}: must be RUN@GENERATION, for example seal-small@2")
    return branch_of(_find(name, folder), int(generation), prepared)


def _carry_on(made: Any, plain: bool, verbose: bool) -> NoReturn:
    from llf_ray.cluster.launch import execute
    from llf_ray.studies.show import draw_run

    _quiet(plain)
    heard, log_file = Heard(), made.folder / LOG
    (outcome,) = execute(
        [made], title=made.folder.name, verbose=verbose, log_file=log_file, on_signal=heard, on_end=draw_run
    )
    _end([outcome], heard, _outcome_lines(made.folder, outcome), log_file)


def _outcome_lines(folder: Path, outcome: Outcome) -> list[str]:
    from llf_ray.display import amount, duration, mask_lines, metric_words, overall
    from llf_ray.journal import summary

    if outcome.state != "finished":
        said = outcome.message if outcome.message.startswith(outcome.state) else f"{outcome.state}: {outcome.message}"
        return [said, f"{'once its cause is gone, ' * (outcome.state == 'failed')}go on with: llf-ray resume {folder}"]
    scores: dict[str, list[str]] = {}  # a line for each role
    for name, value in overall(outcome.scores).items():
        scores.setdefault(name.partition("/")[0], []).append(f"{metric_words(name)} {amount(name, value)}")
    total = sum(outcome.seconds.values())
    share = (
        f" ({outcome.seconds.get('steps', 0.0) / total:.0%} of {duration(total)} in optimizer steps)" if total else ""
    )
    return [
        f"finished after {outcome.step:,} steps{share}",
        *(", ".join(words) for words in scores.values()),
        *mask_lines(summary(folder)),
        f"weights: {folder / 'final' / 'model.safetensors'}",
        f"picture: {folder / 'figures' / 'run.png'}",
    ]


@main.command()
@run_argument
@settings_argument
@plain_option
@verbose_option
@runs_option
def resume(run: str, settings: tuple[str, ...], plain: bool, verbose: bool, folder: Path) -> None:
    """Carry on a run or comparison that stopped.

    It goes on as if nothing had happened. Settings of where and how may change (resources.workers=4, engine.stage=2),
    and a run may get more generations (recipe.generations=6), also when it is finished.
    """
    from llf_ray.journal import read_run, summary
    from llf_ray.studies.compare import is_comparison
    from llf_ray.train.folder import open_run

    found, assignments = _find(run, folder), parse_assignments(settings)
    now = summary(found)
    if now.state in ("starting", "running") and read_run(found).get("driver"):  # without one nobody has taken it up
        raise SettingError(f"run {run!r} is {now.state}: watch it with `llf-ray watch {run}`")
    if is_comparison(found):
        _resume_comparison(found, assignments, plain, verbose)
    if now.state == "finished" and "recipe.generations" not in assignments:
        raise SettingError(
            f"run {run!r} is finished; for more generations: llf-ray resume {run} recipe.generations=...; "
            f"with other settings: llf-ray run JOB --from {run}@GENERATION name=..."
        )
    _carry_on(_checked(lambda: open_run(found, assignments)), plain, verbose)


def _checked(read: Callable[[], Any]) -> Any:
    """What reads a run's folder finds missing data as `_prepare` does."""
    try:
        return read()
    except (ValueError, OSError) as error:
        raise error if isinstance(error, SettingError) else SettingError(str(error)) from error


# ------------------------------------------------------------------------------------------------------------- compare


@main.command()
@job_argument
@settings_argument
@click.option("--seeds", type=int, metavar="N", help="Seeds 0 to N-1 in place of the job's.")
@click.option("--arms", metavar="A,B", help="Only these schedules; the first is what the others are compared with.")
@again_option
@plain_option
@verbose_option
@into_option
def compare(
    job: Path,
    settings: tuple[str, ...],
    seeds: int | None,
    arms: str | None,
    again: bool,
    plain: bool,
    verbose: bool,
    into: str | None,
) -> None:
    """Train several schedules at one budget and compare them.

    SETTINGS are those of the base; recipe.KEY=value sets a key of every arm, arms.NAME.KEY=value of one.
    """
    from llf_ray.studies.compare import begin

    comparison = _comparison_job(job, settings, seeds, arms, into)
    place, made = _checked(lambda: begin(comparison, job_file=job.resolve(), again=again))
    with _name_free_again(place):
        _compare(place, comparison, made, plain, verbose)


def _resume_comparison(found: Path, assignments: Mapping[str, str], plain: bool, verbose: bool) -> NoReturn:
    from llf_ray.studies.compare import reopen

    comparison, made = _checked(lambda: reopen(found, assignments))
    _compare(found.resolve(), comparison, made, plain, verbose)


def _compare(place: Path, comparison: Comparison, made: Sequence[Any], plain: bool, verbose: bool) -> NoReturn:
    from llf_ray.studies import compare as study

    _quiet(plain)
    heard = Heard()
    outcomes = study.carry_out(place, comparison, made, verbose=verbose, on_signal=heard) if made else []
    lines = [
        f"{run.folder.name} {o.state}: {o.message}"
        for run, o in zip(made, outcomes, strict=True)
        if o.state != "finished"
    ]
    if lines:
        lines.append(f"go on with: llf-ray resume {place}")
    result = study.read_result(place)
    if any(training.curve for arm in result.arms for training in arm.trainings.values()):
        _console().print(study.report(result))
        lines = [*(f"{path.stem}: {path}" for path in study.write(place, result)), *lines]
    problem = study.publish(place)
    _end(outcomes, heard, [*lines, *([problem] if problem else [])], place / LOG)


# ------------------------------------------------------------------------------------------------------------- studies


@main.group(cls=Commands)
def study() -> None:
    """Hold published claims against numbers of one's own."""


def judged(size: str, data: str, seeds: str, name: str) -> Callable[[Any], Any]:
    """Options of a study with three sizes; what is said of each differs."""
    options = [
        click.option("--size", metavar="[quick|small|paper]", default="small", show_default=True, help=size),
        click.option(
            "--data-root",
            type=click.Path(path_type=Path, exists=True, file_okay=False),
            help=f"Where data sets lie, in place of the variable LLF_RAY_DATA: {data}.",
        ),
        click.option("--seeds", type=int, metavar="N", help=f"Seeds 0 to N-1 [default: {seeds}]."),
        click.option("--name", default="", help=f"Name of the study's folder [default: {name}]."),
        click.option(
            "--tables", is_flag=True, help="Train nothing, only read: make tables and figures of what is there."
        ),
        plain_option,
        verbose_option,
        runs_option,
    ]

    def with_options(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options


@study.command()
@judged(
    size="quick: a minute or two, shows that all works; small: 40 minutes on two cores; paper: a cluster's GPUs.",
    data="small wants CIFAR-10 there, paper its own sets",
    seeds="3; quick: 1",
    name="forgetting-SIZE",
)
def forgetting(
    size: str,
    data_root: Path | None,
    seeds: int | None,
    name: str,
    tables: bool,
    plain: bool,
    verbose: bool,
    folder: Path,
) -> None:
    """Train the whole family of forget-and-relearn methods at one budget and judge what was published of them.

    Trainings run side by side, one core (or GPU) each; the same command carries on a study that stopped.
    """
    _set_data_root(data_root, size)
    from llf_ray.studies import forgetting as settings
    from llf_ray.studies import forgetting_results as results

    _quiet(plain)
    asked = settings.make(size, seeds=seeds, folder=str(folder), name=name)  # type: ignore[arg-type]
    heard, outcomes, lines = Heard(), list[Any](), list[str]()
    if tables:
        place = _checked(lambda: settings.look(asked))
    else:
        place, made = _checked(lambda: settings.begin(asked))
        click.echo(f"{asked.name}: {asked.about}; {len(made)} trainings")
        with _same_command(heard, place / LOG):
            outcomes = settings.carry_out(place, asked, made, verbose=verbose, on_signal=heard, say=click.echo)
        lines = _unfinished(made, outcomes)
    found = results.findings(place, asked)
    _console().print(results.report(found))
    lines = [*(f"{path.stem}: {path}" for path in results.write(place, found)), *lines]
    _end(outcomes, heard, lines, place / LOG)


@study.command()
@click.option(
    "--size",
    metavar="[quick|small]",
    default="small",
    show_default=True,
    help="quick: a minute, shows that all works; small: about half an hour on two cores.",
)
@click.option("--seeds", type=int, metavar="N", help="Seeds 0 to N-1, side by side in every training [default: 3].")
@click.option("--name", default="", help="Name of the study's folder [default: language-SIZE].")
@plain_option
@verbose_option
@runs_option
def language(size: str, seeds: int | None, name: str, plain: bool, verbose: bool, folder: Path) -> None:
    """Does forgetting make languages that are easier to learn? Five methods play the same game.

    Trainings run side by side, one core each; the same command carries on a study that stopped.
    """
    from llf_ray.studies import language as settings

    _quiet(plain)
    asked, place = settings.study_of(size, seeds), folder.resolve() / (name or f"language-{size}")
    heard = Heard()
    made = _checked(lambda: settings.begin(asked, place))
    click.echo(f"{place.name}: {len(made)} trainings of {len(asked.seeds)} seed{'s' * (len(asked.seeds) > 1)} each")
    with _same_command(heard, place / LOG):
        outcomes = settings.carry_out(asked, place, made, verbose=verbose, on_signal=heard, say=click.echo)
    lines = _unfinished(made, outcomes)
    if not lines:
        result, written = settings.write(asked, place)
        lines = [*settings.conclusions(result), *(f"{path.stem}: {path}" for path in written)]
    _end(outcomes, heard, lines, place / LOG)


@study.command()
@judged(
    size="quick: a few minutes, shows that all works; small: real images, two cores; paper: a cluster's GPUs.",
    data="small wants CamVid and nuclei there",
    seeds="3; quick: 1; paper: 5",
    name="cropr-SIZE",
)
def cropr(
    size: str,
    data_root: Path | None,
    seeds: int | None,
    name: str,
    tables: bool,
    plain: bool,
    verbose: bool,
    folder: Path,
) -> None:
    """What can vision transformers do without? Tokens are pruned on four vision tasks, by Cropr and by its rivals.

    Trainings run side by side, one core (or GPU) each; the same command carries on a study that stopped.
    """
    _set_data_root(data_root, size)
    from llf_ray.studies import cropr as settings
    from llf_ray.studies import cropr_results as results
    from llf_ray.studies.cropr_sizes import make

    _quiet(plain)
    asked = make(size, seeds=seeds, folder=str(folder), name=name)  # type: ignore[arg-type]
    heard, outcomes, lines = Heard(), list[Any](), list[str]()
    if tables:
        _checked(lambda: settings.look(asked))
    else:
        starts = _checked(lambda: settings.begin(asked))
        click.echo(f"{asked.name}: {asked.about}; {len(asked.trainings())} trainings")
        with _same_command(heard, asked.place / LOG):
            made, outcomes = settings.carry_out(asked, starts, verbose=verbose, on_signal=heard, say=click.echo)
        lines = _unfinished(made, outcomes)
    found = results.findings(asked)
    _console().print(results.report(found))
    lines = [*(f"{path.stem}: {path}" for path in results.write(found)), *lines]
    _end(outcomes, heard, lines, asked.place / LOG)


def _set_data_root(data_root: Path | None, size: str) -> None:
    """Where a study's data lie, for everything that is called from here."""
    if data_root is None:
        return
    if size == "quick":
        raise SettingError(f"--data-root {data_root}: goes with --size small or paper; quick has bundled images")
    os.environ["LLF_RAY_DATA"] = str(data_root.resolve())


@contextmanager
def _same_command(heard: Heard, log_file: Path) -> Iterator[None]:
    """A study that is ended where no training has an outcome to tell of, as between them and while their networks are
    examined, says how to go on, too.
    """
    try:
        yield
    except KeyboardInterrupt:
        click.echo("stopped: go on with the same command")
        click.echo(f"log: {log_file}")
        raise SystemExit(128 + (heard.number or signal.SIGINT)) from None


def _unfinished(runs: Sequence[Any], outcomes: Sequence[Outcome]) -> list[str]:
    """What to say of a study that is not at its end; nothing of one that is."""
    failed = [
        f"{run.folder.name} {outcome.state}: {outcome.message}"
        for run, outcome in zip(runs, outcomes, strict=True)
        if outcome.state == "failed"
    ]
    over = all(outcome.state == "finished" for outcome in outcomes)
    return failed if over else [*failed, "go on with the same command"]


# ---------------------------------------------------------------------------------------------------- looking at runs


@main.command()
@runs_option
def runs(folder: Path) -> None:
    """List runs with state and position."""
    from llf_ray.display import runs_table
    from llf_ray.journal import run_folders

    if not run_folders(folder):
        click.echo(f"no runs in {folder}")
        return
    _console().print(runs_table(folder))


@main.command()
@run_argument
@click.option("--once", is_flag=True, help="Show where it stands and return.")
@plain_option
@runs_option
def watch(run: str, once: bool, plain: bool, folder: Path) -> None:
    """Follow a run or comparison until it ends."""
    from llf_ray.display import watch as follow

    found = _find(run, folder)
    _quiet(plain)
    follow(found, once, console=_console())


@main.command()
@run_argument
@runs_option
def cut(run: str, folder: Path) -> None:
    """End the present phase of a running run."""
    from llf_ray.journal import replace_text, summary
    from llf_ray.studies.compare import is_comparison

    found = _find(run, folder)
    if is_comparison(found):
        raise SettingError(f"{run!r} is a comparison: cut one of its trainings, for example {_some_training(found)}")
    now = summary(found)
    if now.state != "running" or now.phase_index is None:
        raise SettingError(f"run {run!r} is {now.state}: only a running run has a phase to cut")
    replace_text(found / "cut.request", json.dumps({"phase": now.phase_index, "time": time.time()}))
    click.echo(
        f"asked: phase {now.phase!r} of generation {now.generation} ends when the run next asks where it stands, "
        "within an epoch"
    )


def _some_training(comparison: Path) -> str:
    """The training that runs now, else the first."""
    from llf_ray.journal import read_run, summary

    names: list[str] = read_run(comparison)["trainings"]
    running = [name for name in names if summary(comparison / name).state == "running"]
    return str(Path(comparison.name) / (running or names)[0])


@main.command()
@run_argument
@click.option("--uri", help="Send it there, in place of where the run's own setting `tracking.uri` points.")
@runs_option
def sync(run: str, uri: str | None, folder: Path) -> None:
    """Send to MLflow what it lacks of a run."""
    from llf_ray.journal import read_run
    from llf_ray.studies.compare import is_comparison, publish
    from llf_ray.tracking import TrackingError
    from llf_ray.tracking import sync as send

    found = _find(run, folder)
    trainings = [found / name for name in read_run(found)["trainings"]] if is_comparison(found) else [found]
    inside = [path for path in trainings if (path / "journal.jsonl").exists()]
    try:
        for one in inside:
            click.echo(send(one, uri=uri))
    except TrackingError as error:
        _leave(str(error), 1)
    if is_comparison(found) and (problem := publish(found, uri)):
        _leave(problem, 1)


@main.command()
@run_argument
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it [default: RUN/slim].")
@click.option("--generation", type=int, help="As this generation ended, in place of the run.")
@runs_option
def slim(run: str, out: Path | None, generation: int | None, folder: Path) -> None:
    """Take the slim network out of a finished run of knowledge evolution by kernels.

    It is written as weights with a table of widths, which `llf_ray.nn.slim.load_slim` reads with torch and timm alone.
    """
    from llf_ray.display import amount, metric_words
    from llf_ray.studies.slim import slim_of

    found = _checked(lambda: slim_of(_find(run, folder), out, generation=generation))
    click.echo(
        f"slim: {found.parameters:,} of {found.whole_parameters:,} parameters "
        f"({found.parameters / found.whole_parameters:.1%}), {100 * found.share:g} % of the channels of each layer"
    )
    for name, value in found.scores.items():
        click.echo(
            f"test {metric_words(name)}: {amount(name, value)} (whole network {amount(name, found.whole_scores[name])})"
        )
    click.echo(f"largest difference from the whole network with its forgotten part zeroed: {found.difference:.2g}")
    click.echo(f"written: {found.folder}")


@main.command()
@run_argument
@click.option("--to", type=click.Path(path_type=Path), help="Folder to write it to  [default: RUN/exported]")
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="[safetensors|torch|onnx]",
    help="Weights with settings, a program of torch.export, ONNX. Repeatable.  [default: safetensors]",
)
@runs_option
def export(run: str, to: Path | None, formats: tuple[str, ...], folder: Path) -> None:
    """Write the network of a finished run for others to use, without what only training needs.

    A transformer that loses tokens is stripped: its modules' queries become one vector each, aggregators and auxiliary
    heads go. What was written is read back and checked on test images; `llf-ray predict` runs it.
    """
    from llf_ray.studies import export as study

    asked = study.check_formats(formats or study.FORMATS[:1])
    made = _checked(lambda: study.export_of(_find(run, folder), to, asked))
    for line in study.report(made):
        click.echo(line)
    wrong = [one.format for one in made.written if not one.sound]
    if wrong:
        _leave(f"{' and '.join(wrong)} in {made.folder} does not compute what the run's network does", 1)


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--to", metavar="FILE", type=click.Path(path_type=Path), help="Write answers there, .csv or .json.")
@click.option("--maps", metavar="FOLDER", type=click.Path(path_type=Path), help="Draw what is cut of each image.")
@click.option("--top", type=int, default=5, show_default=True, help="Classes of each image, likeliest first.")
@click.option("--batch", type=int, default=32, show_default=True, help="Images at a time.")
@click.option("--device", default="auto", show_default=True, help="As torch names it.")
@click.option("--skip-broken", is_flag=True, help="Pass over files that cannot be read as images.")
def predict(
    model: Path,
    images: Path,
    to: Path | None,
    maps: Path | None,
    top: int,
    batch: int,
    device: str,
    skip_broken: bool,
) -> None:
    """Run an exported model on images.

    MODEL is the folder that `llf-ray export` wrote; IMAGES an image, or a folder with images at any depth.
    """
    from llf_ray.studies import predict as study

    if to is not None:
        study.check_target(to)
    opened = study.open_model(model, device)
    files, names = study.images_at(images)

    def tell(line: str) -> None:
        click.echo(line, err=True)

    how: Any = {"top": top, "batch": batch, "maps": maps, "skip_broken": skip_broken, "tell": tell}
    answers = _checked(lambda: study.predict(opened, files, names, **how))
    if to is None:
        for answer in answers:
            click.echo(study.line(answer))
    else:
        _checked(lambda: study.write(answers, to))
    click.echo(study.conclusion(answers, len(files)), err=to is None)
    for name, path in (("answers", to), ("maps", maps)):
        if path is not None:
            click.echo(f"{name}: {path}")


@main.command()
@run_argument
@runs_option
def ensemble(run: str, folder: Path) -> None:
    """Score all generations of a finished run together: the mean of their probabilities, beside each alone."""
    from llf_ray.display import amount, metric_words
    from llf_ray.journal import read_run
    from llf_ray.studies.ensemble import ensemble_of
    from llf_ray.tracking import TrackingError
    from llf_ray.tracking import sync as send

    path = _find(run, folder)
    found = _checked(lambda: ensemble_of(path))
    for member in found.members:
        words = [
            f"{metric_words(name)} {amount(name, value)} (up to here together {amount(name, member.together[name])})"
            for name, value in member.alone.items()
        ]
        click.echo(f"generation {member.generation}: test {'; '.join(words)}")
    said = "; ".join(f"{metric_words(name)} {amount(name, value)}" for name, value in found.scores.items())
    click.echo(f"all {len(found.members)} together: test {said}")
    for line in found.left_out:
        click.echo(f"left out: {line}")
    click.echo(f"written: {found.file}")
    if not read_run(path)["job"]["tracking"].get("off"):
        try:
            click.echo(send(path))
        except TrackingError as error:  # what was found is in the folder all the same
            click.echo(str(error), err=True)


@main.command()
@run_argument
@click.argument("measures", nargs=-1, metavar="[MEASURE]...")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="FILE[:NAME]",
    help='Other data, for transfer and few-shot: a Python file with `targets = {"name": data}`, or a job. Repeatable.',
)
@click.option("--shots", metavar="A,B", help="Examples of a class that a few-shot head sees  [default: 5,20,50]")
@click.option("--episodes", type=int, help="Few-shot problems  [default: 600]")
@click.option("--images", type=int, help="Training images of curvature and norms  [default: 1024]")
@click.option("--seed", type=int, help="Of images, episodes and heads  [default: 0]")
@runs_option
def measure(run: str, measures: tuple[str, ...], targets: tuple[str, ...], folder: Path, **settings: Any) -> None:
    """Measure a finished run, or every training of a comparison, at its last step.

    MEASURES are depth, curvature, norms, calibration, transfer, few-shot; without any, all that the data are there for.
    What was measured before and has not changed is read back.
    """
    from llf_ray.studies import measure as study
    from llf_ray.studies.compare import is_comparison

    found = _find(run, folder)
    others = study.read_targets(targets)
    names = study.chosen(measures, others)
    given = {name: str(value) for name, value in settings.items() if value is not None}
    protocol = override(study.Protocol(), given)

    def tell(line: str) -> None:
        click.echo(f"{line} ...", err=True)

    if is_comparison(found):
        every = _checked(lambda: study.measure_comparison(found, names, protocol, others, tell))
        parts = study.report_comparison(found.name, every)
    else:
        taken = _checked(lambda: study.measure_run(study.open_subject(found), names, protocol, others, tell))
        parts = study.report(found.name, taken)
    console = _console()
    for part in parts:
        console.print(part)
    click.echo(f"written: {found / study.FOLDER}")
    if problem := study.publish_measures(found):
        click.echo(f"llf-ray: {problem}", err=True)


@main.command()
@run_argument
@runs_option
def probes(run: str, folder: Path) -> None:
    """Show and draw what a run's probes found: targeted forgetting on a clone, over training."""
    from llf_ray.studies import probes as found

    place = _find(run, folder)
    _console().print(found.report(place))
    for name, path in zip(("table", "figure"), found.write(place), strict=True):
        click.echo(f"{name}: {path}")


@main.command()
def version() -> None:
    """Versions of this package and of what it stands on."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    click.echo(f"llf_ray {__version__}")
    click.echo(f"python {sys.version.split()[0]}")
    for name in ("torch", "ray", "deepspeed", "mlflow", "timm"):
        try:
            click.echo(f"{name} {installed(name)}")
        except PackageNotFoundError:
            click.echo(f"{name} is not installed")


if __name__ == "__main__":
    main()
