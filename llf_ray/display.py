"""A person's view of runs, drawn from their journals alone: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from llf_ray.config import shortened
from llf_ray.journal import (
    ENDED,
    FRACTIONS,
    LOST,
    RunSummary,
    Tail,
    blank_summary,
    is_lost,
    run_folders,
    summary,
)

__all__ = [
    "Display",
    "Trimmed",
    "amount",
    "duration",
    "mask_lines",
    "metric_words",
    "overall",
    "runs_table",
    "size_words",
    "state_words",
    "watch",
]

logger = logging.getLogger(__name__)

QUIET = 10.0  # seconds between two plain lines about a run's progress
SHORT = 1.0  # seconds between two plain lines about phases of one generation
POLL = 0.5  # seconds between two looks at the journals
LOST_CHECK = 5.0  # seconds between two checks whether a silent run's driver lives
WINDOW = 40  # metric records over which the rate of steps is taken

STYLES = {
    "waiting": "dim",
    "starting": "yellow",
    "running": "cyan",
    "stopped": "yellow",
    "finished": "green",
    "failed": "bold red",
    "lost": "bold red",
    "damaged": "bold red",
}
DIRECTION_STYLES = {"ascend": "magenta", "hold": "blue", "descend": ""}


# ------------------------------------------------------------------------------------------------------ words


def amount(name: str, value: float) -> str:
    """A score or loss in the width that a person reads: accuracies in per cent, others in four digits."""
    return f"{100 * value:.1f} %" if name.rpartition("/")[2] in FRACTIONS else f"{value:#.4g}"


def overall(values: Mapping[str, float]) -> dict[str, float]:
    """Scores less those of single seeds, ``accuracy/seed_1``, which are in the journal and in MLflow."""
    return {name: value for name, value in values.items() if not re.fullmatch(r"seed_\d+", name.rpartition("/")[2])}


def metric_words(name: str) -> str:
    """``accuracy_top5`` as ``top-5 accuracy``, ``test/loss`` as ``test loss``."""
    return re.sub(r"(\w+)_top(\d+)", r"top-\2 \1", name).replace("/", " ")


def reason(state: str, message: str) -> str:
    """A state's message without the state itself, where it begins with it."""
    return message.removeprefix(state).lstrip(" :") if message.startswith(state) else message


def state_words(state: str, message: str) -> str:
    """What has become of a run, its state named once: ``stopped at step 230``, ``lost: its driver is gone``."""
    return message if message.startswith(state) else f"{state}: {message}" if message else state


def size_words(number: int) -> str:
    """Bytes as ``1.23 GB``."""
    if not number:
        return "-"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B"


def duration(seconds: float) -> str:
    """``3:07``, ``2:03:07``, ``4 d 02 h``."""
    whole = max(0, round(seconds))
    if whole >= 2 * 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
    hours = f"{whole // 3600}:{whole % 3600 // 60:02d}" if whole >= 3600 else f"{whole // 60}"
    return f"{hours}:{whole % 60:02d}"


def directions(run: RunSummary) -> list[tuple[str, str]]:
    """(what, groups): groups that move alike together, ``("ascend x0.01", "stem, layer1")``."""
    alike: dict[str, list[str]] = {}
    for group, direction in run.directions.items():
        if direction == 0:
            what = "hold"
        else:
            what = "descend" if direction > 0 else "ascend"
            what += f" x{abs(direction):g}" if abs(direction) != 1 else ""
        alike.setdefault(what, []).append(group)
    return [(what, _listed(groups)) for what, groups in alike.items()]


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def of(number: int | None, total: int | None) -> str:
    return "" if number is None else f"{number}" if total is None else f"{number}/{total}"


def generation(run: RunSummary) -> str:
    """``1 of 0-3``: counted from 0, as everywhere that a person can name one."""
    return f"{run.generation}" + (f" of 0-{run.generations - 1}" if run.generations else "")


def place(run: RunSummary) -> str:
    """``generation 1 of 0-3, phase ascent``."""
    words = [f"generation {generation(run)}"] if run.generation is not None else []
    if run.phase:
        words.append(f"phase {run.phase}")
    return ", ".join(words)


def spot(run: RunSummary) -> str:
    """``gen 1, ascent``: for lines in which room is short."""
    return run.phase if run.generation is None else f"gen {run.generation}, {run.phase}"


def main_score(run: RunSummary, role: str) -> str:
    """The score by which runs of a task are compared: its first metric that is not the loss."""
    values = run.scores.get(role, {})
    names = [name for name in values if name != "loss"] or list(values)
    return amount(names[0], values[names[0]]) if names else ""


# ---------------------------------------------------------------------------------------------------- one run


@dataclass
class View:
    """One run as the display has it: its summary and how fast it goes."""

    run: RunSummary
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    last_operation: str = ""
    last_note: str = ""
    last_lines: dict[str, float] = field(default_factory=dict)  # of "phase" and "progress", by the journal's clock
    last_generation: int | None = None  # of which a plain line has told
    held_back: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # newest "phase" and "progress" not told

    def see(self, record: Mapping[str, Any]) -> None:
        self.run.see(record)
        if record["kind"] == "state":
            self.recent.clear()  # a restart is no part of the rate
        elif record["kind"] == "metrics":
            self.recent.append((record["time"], record["step"]))
        elif record["kind"] == "operation":
            self.last_operation = operation_words(record)
        elif record["kind"] == "note":
            self.last_note = record["message"]

    def seconds_left(self, now: float) -> float | None:
        """At the pace of the last records, pauses for evaluation and boundaries included."""
        if self.run.total is None or len(self.recent) < 2:
            return None
        (begin, first), (end, last) = self.recent[0], self.recent[-1]
        if last <= first or end <= begin:
            return None
        left = (self.run.total - last) * (end - begin) / (last - first)
        return max(0.0, left - max(0.0, now - end)) if self.run.step < self.run.total else None


def operation_words(record: Mapping[str, Any]) -> str:
    if record.get("masks"):
        return f"{record['operation']}, {'; '.join(_mask_words(record, name) for name in record['masks'])}"
    entries, tensors = record.get("entries"), record.get("tensors")
    touched = f", {entries:,} entries" if entries is not None else ""
    touched += f" in {tensors} tensors" if entries is not None and tensors is not None else ""
    return f"{record['operation']}{touched}"


def _mask_words(record: Mapping[str, Any], name: str) -> str:
    live, entries = record["masks"][name]
    reached = record.get("effective", {}).get(name)
    effective = "" if reached is None else f", {100 * reached / entries:.3g} % on a path to the output"
    empty = record.get("empty", {}).get(name, ())
    without = f", nothing of {', '.join(empty)}" if empty else ""
    return f"{live:,} of {entries:,} live ({100 * live / entries:.3g} %){effective}{without}"


def mask_lines(run: RunSummary) -> list[str]:
    """What each mask of a run keeps, as it was stored last."""
    return [f"mask {name}: {_mask_words(record, name)}" for name, record in run.masks.items()]


def plain_line(view: View, record: Mapping[str, Any]) -> str | None:
    """What a log file should say about a record, without the run's name; None: nothing."""
    run, kind = view.run, record["kind"]
    step = f"step {of(record.get('step', run.step), run.total)}"
    if kind == "state":
        return state_words(record["state"], record.get("message", ""))
    if kind == "note":
        return str(record["message"])
    if kind == "phase":
        moves = "; ".join(f"{groups} {what}" for what, groups in directions(run))
        return f"{step}  {spot(run)}" + (f"  ({moves})" if moves else "")
    if kind == "operation":
        return f"{step}  {operation_words(record)}"
    if kind == "score":
        return f"{step}  {spot(run)}  {record['role']} {numbers(record['values'])}" + _pace(view, record["time"])
    if kind == "metrics":
        told = [spot(run), numbers(losses(run))]
        told += [f"validation {score}"] if (score := main_score(run, "validation")) else []
        return "  ".join((step, *told)) + _pace(view, record["time"])
    return None


def losses(run: RunSummary) -> dict[str, float]:
    """Training values for people: those below "train/"."""
    return {name.removeprefix("train/"): value for name, value in run.values.items() if name.startswith("train/")}


def numbers(values: Mapping[str, float], most: int = 4) -> str:
    return "  ".join(
        f"{metric_words(name)} {amount(name, value)}" for name, value in list(overall(values).items())[:most]
    )


def _pace(view: View, now: float) -> str:
    words = []
    if "examples_per_second" in view.run.values:
        words.append(f"{view.run.values['examples_per_second']:,.0f} examples/s")
    left = view.seconds_left(now)
    if left is not None:
        words.append(f"{duration(left)} left")
    return f"  ({', '.join(words)})" if words else ""


# ---------------------------------------------------------------------------------------------------- display


class Display:
    """Shows the runs of a driver: live where the console is a terminal, else as plain lines at a calm rate.

    Feed it with `update`, or let `follow` read the journals in a thread. A plain console gets a line for
    every state, note, stored mask, test score and generation of a run, for other phases at most one every `SHORT`
    seconds (the newest wins), and one about progress every `QUIET` seconds and at the end.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        *,
        title: str = "",
        console: Console | None = None,
        live: bool | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.title = title
        self.console = console if console is not None else Console(highlight=False)
        self._is_screen = self.console.is_terminal and not self.console.is_dumb_terminal
        self._clock = clock
        self._begun = clock()
        self._lock = threading.RLock()
        self._views = {name: View(RunSummary(folder=Path(name), name=name)) for name in names}
        self._active: str | None = None
        self._closing = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None
        if self._is_screen if live is None else live:
            self._live = Live(
                console=self.console,
                get_renderable=self.render,
                refresh_per_second=4,
                vertical_overflow="crop",
            )

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._closing = True  # the picture that stays has every run in it
        if self._live is not None:
            self._live.stop()

    def update(self, run_name: str, record: Mapping[str, Any]) -> None:
        """Take in one record of a run's journal and show it."""
        with self._lock:
            self.absorb(run_name, record)
            if self._live is None:
                self._print(run_name, self._views[run_name], record)

    def absorb(self, run_name: str, record: Mapping[str, Any]) -> None:
        """Take in a record of the past: the picture has it, a plain console gets no line."""
        with self._lock:
            self._views.setdefault(run_name, View(RunSummary(folder=Path(run_name), name=run_name))).see(record)

    def mark_lost(self, run_name: str) -> None:
        """Say that a run's driver is gone, which no record says."""
        self.update(run_name, {"kind": "state", "state": "lost", "message": LOST})

    def states(self) -> list[str]:
        with self._lock:
            return [view.run.state for view in self._views.values()]

    def follow(self, folders: Mapping[str, Path]) -> None:
        """Read journals in a thread until the display is closed; the run folders need not exist yet."""
        for name in folders:
            self._views.setdefault(name, View(RunSummary(folder=folders[name], name=name)))
        self._thread = threading.Thread(target=self._read, args=(folders,), name="display", daemon=True)
        self._thread.start()

    def _read(self, folders: Mapping[str, Path]) -> None:
        tails = {name: Tail(folder / "journal.jsonl") for name, folder in folders.items()}
        try:
            is_last = False
            while not is_last:
                is_last = self._stop.wait(POLL)  # what came before the end is shown too
                for name, tail in tails.items():
                    for record in tail.poll():
                        self.update(name, record)
        except Exception:  # a display must not take a training with it
            logger.exception("the display has stopped; the training goes on")

    # --- plain

    def _print(self, name: str, view: View, record: Mapping[str, Any]) -> None:
        kind, now = record["kind"], record.get("time") or 0.0
        is_end = record.get("state") in ENDED or record.get("role") == "test"
        if is_end:
            self._tell(name, view, "phase", now)
            self._tell(name, view, "progress", now)
        if is_end or kind in ("state", "note") or record.get("masks"):
            self._line(name, view, record)
        elif kind in ("phase", "metrics", "score"):
            view.held_back["phase" if kind == "phase" else "progress"] = record
        if view.run.generation != view.last_generation or now - view.last_lines.get("phase", 0.0) >= SHORT:
            self._tell(name, view, "phase", now)
        if now - view.last_lines.setdefault("progress", now) >= QUIET:
            self._tell(name, view, "progress", now)

    def _tell(self, name: str, view: View, what: str, now: float) -> None:
        """Print what was held back, if anything was."""
        if what not in view.held_back:
            return
        self._line(name, view, view.held_back.pop(what))
        view.last_lines[what] = now
        if what == "phase":
            view.last_generation = view.run.generation

    def _line(self, name: str, view: View, record: Mapping[str, Any]) -> None:
        line = plain_line(view, record)
        prefix = f"{name}: " if len(self._views) > 1 else ""
        if line is not None:  # no wrapping, no markup, no control codes: the line goes to a file
            self.console.print(Text(prefix + line), soft_wrap=True, highlight=False)

    # --- live

    def picture(self) -> RenderableType:
        """The picture that stays: every run is in it, however many."""
        self._closing = True
        return self.render()

    def render(self) -> RenderableType:
        """The picture of this moment, as high as the screen."""
        with self._lock:
            now = self._clock()
            width = self.console.width
            if not self._views:
                return Text("waiting for the first run", style="dim")
            self._active = self._choose()
            active = self._views[self._active]
            parts: list[RenderableType] = []
            if len(self._views) > 1:
                parts += [self._headline(now), self._overview(width)]
                parts += self._troubles()
                if active.run.state in ENDED:
                    return Group(*parts)
            alone = len(self._views) == 1
            parts += list(detail(active, now, width, alone=alone, is_screen=self._is_screen))
            return Group(*parts)

    def _choose(self) -> str:
        """The run to show in detail: it stays while it runs, so that the picture does not jump."""
        views = self._views
        if self._active in views and views[self._active].run.state == "running":
            return self._active
        running = [name for name, view in views.items() if view.run.state in ("running", "starting")]
        return max(running or views, key=lambda name: views[name].run.updated or 0.0)

    def _headline(self, now: float) -> Text:
        num_ended = sum(view.run.state in ENDED for view in self._views.values())
        runs = [view.run for view in self._views.values()]
        begun = min((run.started for run in runs if run.started is not None), default=self._begun)
        until = max((run.updated or begun for run in runs), default=now) if num_ended == len(runs) else now
        words = f"{num_ended} of {len(runs)} trainings done, {duration(until - begun)} so far"
        left = self._seconds_left(now)
        if left is not None and num_ended < len(self._views):
            words += f", about {duration(left)} left"
        return Text.assemble(
            (f"{self.title}  " if self.title else "", "bold"), words, no_wrap=True, overflow="ellipsis"
        )

    def _seconds_left(self, now: float) -> float | None:
        """Of all runs: waiting ones are taken to last as long as the active one."""
        active = self._views[self._choose()]
        if active.run.total is None:
            return None
        left = active.seconds_left(now)
        if left is None:
            return None
        (begin, first), (end, last) = active.recent[0], active.recent[-1]
        num_waiting = sum(view.run.state == "waiting" for view in self._views.values())
        return left + num_waiting * active.run.total * (end - begin) / (last - first)

    def _overview(self, width: int) -> Table:
        table = Table.grid(padding=(0, 2))
        detail = 11 + (len(self._views[self._active].run.masks) if self._active is not None else 0)
        room = self.console.height - detail  # below it: headline, trouble, detail
        shown, hidden = self._fitting(room if not self._closing else len(self._views))
        fixed = 9 + 2 + 13 + 2 + 7 + 2 + 7 + 2
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        for _ in range(3):
            table.add_column(no_wrap=True, justify="right")
        columns = (
            Text("run", style="dim"),
            *(Text(word, style="dim") for word in ("state", "step", "valid.", "test")),
        )
        table.add_row(*columns)
        for name in shown:
            run = self._views[name].run
            is_active = name == self._active and run.state not in ENDED
            table.add_row(
                Text(self._short(name, width - fixed), style="bold" if is_active else ""),
                Text(run.state, style=STYLES.get(run.state, "")),
                of(run.step, run.total) if run.step else "",
                main_score(run, "validation"),
                main_score(run, "test"),
            )
        if hidden:
            table.add_row(Text(f"and {hidden} more", style="dim"))
        return table

    def _troubles(self) -> list[RenderableType]:
        """Why trainings ended early; on a live screen the last one only."""
        lines = [
            Text(f"{self._short(name, 40)}: {view.run.message}", style=STYLES[view.run.state])
            for name, view in self._views.items()
            if view.run.state in ENDED and view.run.message and view.run.state != "finished"
        ]
        return [*(lines if self._closing else lines[-1:])]

    def _short(self, name: str, width: int) -> str:
        """A screen has its width; in a file a name stays whole."""
        return shortened(name, max(12, width)) if self._is_screen else name

    def _fitting(self, room: int) -> tuple[list[str], int]:
        """Names for the lines that a screen has: those around the active one, in their order."""
        names = list(self._views)
        room = max(3, room)
        if len(names) <= room:
            return names, 0
        centre = names.index(self._choose())
        first = min(max(0, centre - room // 2), len(names) - room)
        return names[first : first + room], len(names) - room


def detail(view: View, now: float, width: int, *, alone: bool, is_screen: bool) -> Iterator[RenderableType]:
    """The lines about one run: who and where, directions, progress, numbers, what happened last."""
    run = view.run
    if not alone:
        yield Text("")
    where = place(run)
    if run.phases is not None and run.phase_index is not None:
        where += f" ({run.phase_index + 1} of {run.phases})"
    name = shortened(run.name, max(12, width - len(where) - len(run.state) - 5)) if is_screen else run.name
    yield Text.assemble(
        (name, "bold"),
        "  ",
        (run.state, STYLES.get(run.state, "")),
        "  ",
        where,
        no_wrap=is_screen,
        overflow="ellipsis" if is_screen else "fold",
    )
    if run.state in ENDED and run.message:
        yield Text(f"  {reason(run.state, run.message)}", style=STYLES.get(run.state, ""))
    if run.directions and run.state not in ENDED:
        line = Text("  ", no_wrap=True, overflow="ellipsis")
        for number, (what, groups) in enumerate(directions(run)):
            line.append("   " if number else "")
            line.append(what, style=DIRECTION_STYLES[what.split()[0]])
            line.append(f" {groups}")
        yield line
    if run.total:
        yield _progress(view, now, width) if is_screen else Text(f"  {_progress_words(view, now)}")
    values = numbers(losses(run), most=3)
    if "examples_per_second" in run.values:
        values += f"  {run.values['examples_per_second']:,.0f} examples/s"
    scores = "  ".join(f"{role} {text}" for role in ("validation", "test") if (text := main_score(run, role)))
    whole = "   ".join(part for part in (values.strip(), scores if alone else "") if part)
    if whole:
        yield Text(f"  {whole}", no_wrap=True, overflow="ellipsis")
    for mask in mask_lines(run):
        yield Text(f"  {mask}", no_wrap=is_screen, overflow="ellipsis" if is_screen else "fold")
    last = view.last_note or (f"last operation: {view.last_operation}" if view.last_operation else "")
    if last and run.state not in ENDED:
        yield Text(f"  {last}", style="dim", no_wrap=True, overflow="ellipsis")


def _progress_words(view: View, now: float) -> str:
    run = view.run
    assert run.total
    left = view.seconds_left(now) if run.state not in ENDED else None
    words = f"step {run.step:,}/{run.total:,}  {100 * run.step / run.total:3.0f} %"
    return words + (f"  {duration(left)} left" if left is not None else "")


def _progress(view: View, now: float, width: int) -> Table:
    run, words = view.run, _progress_words(view, now)
    bar = ProgressBar(
        total=run.total,
        completed=run.step,
        width=max(10, min(50, width - len(words) - 6)),
        complete_style="cyan",
        finished_style="green",
    )
    table = Table.grid(padding=(0, 0))
    table.add_row(Text("  "), bar, Text(f"  {words}", no_wrap=True))
    return table


# ------------------------------------------------------------------------------------------ watch and listing


def watched_folders(run_folder: Path) -> dict[str, Path]:
    """The run folders that a person means: the run, or the trainings of a comparison.

    Raises:
        ValueError: the folder holds no run.
    """
    here = run_folder.resolve()
    itself = {blank_summary(run_folder).name: run_folder}
    if (run_folder / "journal.jsonl").exists():
        return itself
    runs = [blank_summary(folder) for folder in (*run_folders(run_folder), *run_folders(here.parent))]
    children = {run.name: run.folder for run in runs if run.parent and (run.folder / run.parent).resolve() == here}
    if children or (run_folder / "run.json").exists():
        return children or itself
    raise ValueError(f"{run_folder} holds no run (it has no run.json)")


def watch(run_folder: Path, once: bool = False, *, console: Console | None = None) -> str:
    """Follow a run, or the trainings of a comparison, from the journals until all have ended; returns the
    last state.

    ``once`` shows where it stands and returns. Needs neither Ray nor the run's machine, only its folder.
    """
    folders = watched_folders(run_folder)
    console = console if console is not None else Console(highlight=False)
    display = Display(console=console, title=run_folder.name if len(folders) > 1 else "")
    tails = {}
    for name, folder in folders.items():
        display.absorb(name, {"kind": "state", "state": blank_summary(folder).state})
        tails[name] = Tail(folder / "journal.jsonl")
    for name, record in _news(tails):  # what is over is in the picture; a plain console starts with now
        display.absorb(name, record)
    if once:
        _mark_lost(display, folders)
        console.print(Trimmed(display.picture()))
        return display.states()[-1]
    with display:
        last_check = float("-inf")
        while True:
            news = list(_news(tails))
            for name, record in news:
                display.update(name, record)
            if not news and time.monotonic() - last_check >= LOST_CHECK:
                last_check = time.monotonic()
                _mark_lost(display, folders)
            if not news and all(state in ENDED for state in display.states()):
                return display.states()[-1]
            time.sleep(POLL)


def _news(tails: Mapping[str, Tail]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, tail in tails.items():
        for record in tail.poll():
            yield name, record


def _mark_lost(display: Display, folders: Mapping[str, Path]) -> None:
    for (name, folder), state in zip(folders.items(), display.states(), strict=True):
        if state in ("starting", "running") and is_lost(folder):
            display.mark_lost(name)


@dataclass(frozen=True)
class Trimmed:
    """What it holds, without the blanks that fill lines up to the screen's edge: a file needs none."""

    body: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self.body, options, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            yield from line[:-1]
            yield from (Segment(last.text.rstrip(), last.style) for last in line[-1:])
            yield Segment.line()


HEADS = ("state", "where", "step", "valid.", "test", "begun")
DISPENSABLE = ("begun", "where", "valid.")  # columns that give way to the names, the first first


@dataclass(frozen=True)
class RunsTable:
    """Runs, a line each, as wide as the console: names stay whole, and other columns leave where room is short."""

    runs: Sequence[RunSummary]
    names: Sequence[str]
    rows: Sequence[Sequence[str]]  # by column of `HEADS`

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = {head: 2 + max(map(len, column)) for head, *column in zip(HEADS, *((HEADS, *self.rows)), strict=True)}
        longest = max(map(len, ("run", *self.names)))
        for head in DISPENSABLE:
            if longest + sum(widths.values()) > options.max_width:
                del widths[head]
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("run", overflow="fold")
        for head in widths:
            table.add_column(head, no_wrap=True, justify="right" if head in HEADS[2:] else "left")
        for run, name, row in zip(self.runs, self.names, self.rows, strict=True):
            cells = [Text(cell) for head, cell in zip(HEADS, row, strict=True) if head in widths]
            cells[0].stylize(STYLES.get(run.state, ""))
            table.add_row(Text(name), *cells)
        yield Trimmed(table)


def runs_table(root: Path, now: float | None = None) -> RunsTable:
    """All runs below ``root``, oldest first: what `llf-ray runs` prints. Trainings are indented below their comparison;
    those of a study, which is no run itself, have its name in front.
    """
    now = time.time() if now is None else now
    runs = {folder.resolve(): summary(folder, now) for folder in run_folders(root)}
    children: dict[Path | None, list[Path]] = {}
    for folder, run in runs.items():
        parent = (folder / run.parent).resolve() if run.parent else None
        children.setdefault(parent if parent in runs and parent != folder else None, []).append(folder)
    listed = [(runs[folder], depth, len(children.get(folder, ()))) for folder, depth in _family(children, None)]
    return RunsTable(
        runs=[run for run, _, _ in listed],
        names=[("  " * depth or _inside(root, run.folder)) + run.name for run, depth, _ in listed],
        rows=[
            (
                run.state,
                f"{trainings} trainings" if trainings else _where(run),
                of(run.step, run.total) if run.step else "",
                main_score(run, "validation"),
                main_score(run, "test"),
                age(now - run.started) if run.started else "",
            )
            for run, _, trainings in listed
        ],
    )


def _family(children: Mapping[Path | None, Sequence[Path]], parent: Path | None) -> Iterator[tuple[Path, int]]:
    """Everyone below a parent, each in front of its own, with its depth."""
    for folder in children.get(parent, ()):
        yield folder, 0
        yield from ((one, depth + 1) for one, depth in _family(children, folder))


def _inside(root: Path, folder: Path) -> str:
    """The folders between ``root`` and a run's own, as a person names them: ``forgetting-quick/``."""
    between = folder.parent.resolve().relative_to(root.resolve()).as_posix()
    return "" if between == "." else f"{between}/"


def _where(run: RunSummary) -> str:
    return "" if run.state in ("finished", "waiting") else spot(run)


def age(seconds: float) -> str:
    """``5 min ago``: the coarsest unit that says something."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name} ago"
    return "just now"
