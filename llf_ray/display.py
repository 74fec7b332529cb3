"""A person's view of runs, drawn from their journals alone: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llf_ray.journal import (
    ENDED,
    LOST,
    RunSummary,
    Tail,
    blank_summary,
    is_lost,
    run_folders,
    summary,
)

__all__ = ["Display", "runs_table", "watch"]

logger = logging.getLogger(__name__)

QUIET = 10.0  # seconds between two plain lines of one run, unless the second is one that nobody may miss
STILL_HERE = 60.0  # seconds without a phase or a score after which a plain line says that steps go on
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
FRACTIONS = ("accuracy", "accuracy_top5", "top1", "top5")  # scores that people read in per cent


# ------------------------------------------------------------------------------------------------------ words


def amount(name: str, value: float) -> str:
    """A score or loss in the width that a person reads: accuracies in per cent, others in four digits."""
    return f"{100 * value:.1f} %" if name.rpartition("/")[2] in FRACTIONS else f"{value:#.4g}"


def duration(seconds: float) -> str:
    """``3:07``, ``2:03:07``, ``4 d 02 h``."""
    whole = max(0, round(seconds))
    if whole >= 2 * 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
    hours = f"{whole // 3600}:{whole % 3600 // 60:02d}" if whole >= 3600 else f"{whole // 60}"
    return f"{hours}:{whole % 60:02d}"


def shortened(text: str, width: int) -> str:
    """A long name without its middle: what tells runs apart stands at both ends."""
    if len(text) <= width:
        return text
    kept = max(0, width - 2)
    return text[: kept - kept // 2] + ".." + text[len(text) - kept // 2 :]


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
    printed: dict[str, float] = field(default_factory=dict)  # last plain line by kind of record, by its clock

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
        return max(0.0, left - max(0.0, now - end))


def operation_words(record: Mapping[str, Any]) -> str:
    entries, tensors = record.get("entries"), record.get("tensors")
    touched = f", {entries:,} entries" if entries is not None else ""
    touched += f" in {tensors} tensors" if entries is not None and tensors is not None else ""
    return f"{record['operation']}{touched}"


def plain_line(view: View, record: Mapping[str, Any]) -> str | None:
    """What a log file should say about a record, without the run's name; None: nothing."""
    run, kind = view.run, record["kind"]
    step = f"step {of(record.get('step', run.step), run.total)}"
    if kind == "state":
        return record["state"] + (f": {record['message']}" if record.get("message") else "")
    if kind == "note":
        return str(record["message"])
    if kind == "phase":
        moves = "; ".join(f"{groups} {what}" for what, groups in directions(run))
        return f"{step}  {spot(run)}" + (f"  ({moves})" if moves else "")
    if kind == "score":
        return f"{step}  {spot(run)}  {record['role']} {numbers(record['values'])}" + _pace(view, record["time"])
    if kind == "metrics":
        return f"{step}  {spot(run)}  {numbers(losses(run))}" + _pace(view, record["time"])
    return None


def losses(run: RunSummary) -> dict[str, float]:
    """Training values for people: those below "train/"."""
    return {name.removeprefix("train/"): value for name, value in run.values.items() if name.startswith("train/")}


def numbers(values: Mapping[str, float], most: int = 4) -> str:
    return "  ".join(f"{name} {amount(name, value)}" for name, value in list(values.items())[:most])


def _pace(view: View, now: float) -> str:
    words = []
    if "images_per_second" in view.run.values:
        words.append(f"{view.run.values['images_per_second']:,.0f} images/s")
    left = view.seconds_left(now)
    if left is not None:
        words.append(f"{duration(left)} left")
    return f"  ({', '.join(words)})" if words else ""


# ---------------------------------------------------------------------------------------------------- display


class Display:
    """Shows the runs of a driver: live where the console is a terminal, else as plain lines at a calm rate.

    Feed it with `update`, or let `follow` read the journals in a thread. A plain console gets a line for
    every state, note and test score of a run, for a phase and a validation score at most every `QUIET`
    seconds, and one a minute where nothing else comes.
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
        is_screen = self.console.is_terminal and not self.console.is_dumb_terminal
        self._clock = clock
        self._begun = clock()
        self._lock = threading.RLock()
        self._views = {name: View(RunSummary(folder=Path(name), name=name)) for name in names}
        self._active: str | None = None
        self._closing = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None
        if is_screen if live is None else live:
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
        must = kind in ("state", "note") or (kind == "score" and record["role"] == "test")
        if not must:
            if kind in ("operation", "checkpoint"):
                return
            last = max(view.printed.values(), default=now) if kind == "metrics" else view.printed.get(kind, -QUIET)
            if now - last < (STILL_HERE if kind == "metrics" else QUIET):
                return
        line = plain_line(view, record)
        if line is None:
            return
        view.printed[kind] = now
        prefix = f"{name}: " if len(self._views) > 1 else ""
        # no wrapping, no markup, no control codes: the line goes to a file
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
            parts += list(detail(active, now, width, alone=len(self._views) == 1))
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
        room = self.console.height - 11  # headline, trouble, detail
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
                Text(shortened(name, max(12, width - fixed)), style="bold" if is_active else ""),
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
            Text(f"{shortened(name, 40)}: {view.run.message}", style=STYLES[view.run.state])
            for name, view in self._views.items()
            if view.run.state in ENDED and view.run.message and view.run.state != "finished"
        ]
        return [*(lines if self._closing else lines[-1:])]

    def _fitting(self, room: int) -> tuple[list[str], int]:
        """Names for the lines that a screen has: those around the active one, in their order."""
        names = list(self._views)
        room = max(3, room)
        if len(names) <= room:
            return names, 0
        centre = names.index(self._choose())
        first = min(max(0, centre - room // 2), len(names) - room)
        return names[first : first + room], len(names) - room


def detail(view: View, now: float, width: int, *, alone: bool) -> Iterator[RenderableType]:
    """The lines about one run: who and where, directions, progress, numbers, what happened last."""
    run = view.run
    if not alone:
        yield Text("")
    where = place(run)
    if run.phases is not None and run.phase_index is not None:
        where += f" ({run.phase_index + 1} of {run.phases})"
    name = shortened(run.name, max(12, width - len(where) - len(run.state) - 5))
    yield Text.assemble(
        (name, "bold"),
        "  ",
        (run.state, STYLES.get(run.state, "")),
        "  ",
        where,
        no_wrap=True,
        overflow="ellipsis",
    )
    if run.state in ENDED and run.message:
        yield Text(f"  {run.message}", style=STYLES.get(run.state, ""))
    if run.directions and run.state not in ENDED:
        line = Text("  ", no_wrap=True, overflow="ellipsis")
        for number, (what, groups) in enumerate(directions(run)):
            line.append("   " if number else "")
            line.append(what, style=DIRECTION_STYLES[what.split()[0]])
            line.append(f" {groups}")
        yield line
    if run.total:
        yield _progress(view, now, width)
    values = numbers(losses(run), most=3)
    if "images_per_second" in run.values:
        values += f"  {run.values['images_per_second']:,.0f} images/s"
    scores = "  ".join(f"{role} {text}" for role in ("validation", "test") if (text := main_score(run, role)))
    whole = "   ".join(part for part in (values.strip(), scores if alone else "") if part)
    if whole:
        yield Text(f"  {whole}", no_wrap=True, overflow="ellipsis")
    last = view.last_note or (f"last operation: {view.last_operation}" if view.last_operation else "")
    if last and run.state not in ENDED:
        yield Text(f"  {last}", style="dim", no_wrap=True, overflow="ellipsis")


def _progress(view: View, now: float, width: int) -> Table:
    run = view.run
    assert run.total
    left = view.seconds_left(now) if run.state not in ENDED else None
    words = f"step {run.step:,}/{run.total:,}  {100 * run.step / run.total:3.0f} %"
    words += f"  {duration(left)} left" if left is not None else ""
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
        console.print(display.picture())
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


def runs_table(root: Path, width: int = 80, now: float | None = None) -> Table:
    """All runs below ``root``, oldest first, in ``width`` columns: what `llf-ray runs` prints."""
    now = time.time() if now is None else now
    runs = [summary(folder, now) for folder in run_folders(root)]
    rows = [
        (
            run.state,
            _where(run),
            of(run.step, run.total) if run.step else "",
            main_score(run, "validation"),
            main_score(run, "test"),
            age(now - run.started) if run.started else "",
        )
        for run in runs
    ]
    heads = ("state", "where", "step", "valid.", "test", "begun")
    others = sum(2 + max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads)))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for head in ("run", *heads):
        table.add_column(head, no_wrap=True, justify="right" if head in heads[2:] else "left")
    for run, row in zip(runs, rows, strict=True):
        name = shortened(run.name, max(12, width - others))
        table.add_row(Text(name), Text(row[0], style=STYLES.get(run.state, "")), *(Text(cell) for cell in row[1:]))
    return table


def _where(run: RunSummary) -> str:
    return "" if run.state in ("finished", "waiting") else shortened(spot(run), 20)


def age(seconds: float) -> str:
    """``5 min ago``: the coarsest unit that says something."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name} ago"
    return "just now"
