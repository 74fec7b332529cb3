"""Every picture of the project, from plain data to a PNG. Nothing here reads plans; of a run, its journal alone.

Colours are Okabe and Ito's, which people of every colour vision tell apart; lines differ in their dashes too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import wrap
from typing import Any
from zlib import crc32

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from llf_ray.config import shortened
from llf_ray.journal import FRACTIONS, RunSummary, blank_summary, read

__all__ = [
    "NUMBERS",
    "PROBES",
    "Arm",
    "Band",
    "Course",
    "Courses",
    "Differences",
    "Interval",
    "KeepMap",
    "Lane",
    "Line",
    "Marks",
    "Objects",
    "Scene",
    "Segmented",
    "Timeline",
    "comparison",
    "courses",
    "depths",
    "detections",
    "draw_all",
    "draw_probes",
    "draw_run",
    "intervals",
    "keep_map",
    "keep_maps",
    "reliability",
    "segmentation_sheet",
    "timeline",
]

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#6b6b6b",
)
ARM_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, "#000000", GREY)
OBJECT_COLOURS = (ORANGE, SKY, GREEN, PURPLE, RED, "#F0E442", BLUE)
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
PHASE_COLOURS = ("#cfe3f1", "#f7dcb0", "#c5e6da", "#eacfdf", "#dddddd", "#f4cdb9")
DESCEND, HOLD, ASCEND = "#a9cde4", "#d0d0d0", "#e8a07c"
MAY_END: Any = {"edgecolor": "white", "hatch": "////", "linewidth": 0}  # the second half of a phase without sure end

RUN, PROBES = "figures/run.png", "figures/probes.png"  # where a run's pictures lie in its folder

STYLE: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "savefig.dpi": 130,
}


@contextmanager
def _drawing(path: Path, width: float, height: float, *, constrained: bool = True) -> Iterator[Figure]:
    """A figure in the project's style, written to ``path`` when all went well; no global state of matplotlib is
    touched.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
        canvas = FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.print_figure(path, format="png")


def _count_steps(ax: Axes) -> None:
    """Ticks of an axis of steps, all in one unit: ``4,000``, ``250k``, ``1.25M``."""
    most = ax.get_xlim()[1]
    unit, letter = (1e6, "M") if most >= 2e6 else (1e3, "k") if most >= 2e4 else (1.0, "")
    ax.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{round(value / unit, 6):,g}{letter}" if value else "0")
    )
    ax.set_xlabel("optimizer steps", labelpad=3)


# ------------------------------------------------------------------------------------------------------------- timeline


@dataclass(frozen=True, kw_only=True)
class Band:
    """A phase: optimizer steps [start, stop). ``until`` says what may end it before."""

    start: int
    stop: int
    name: str
    generation: int
    until: str = ""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A group of parameters and its direction, as (start, stop, direction) over the run."""

    label: str
    spans: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """The rate at which a group moves by optimizer step; below zero it ascends."""

    label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Steps at which something happens."""

    label: str
    steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What a run will do, ready to be drawn.

    ``held`` are, by the name of a mask, the stretches in which its zeros stay zero: (start, stop, share of zeros, or
    nan where it is not known). ``rates_note`` says what the lines leave out. ``ran`` are the steps [start, stop) that a
    run has done of them; what lies outside is drawn faint.
    """

    title: str
    total: int
    bands: tuple[Band, ...]
    lanes: tuple[Lane, ...]
    lines: tuple[Line, ...]
    marks: tuple[Marks, ...] = ()
    held: tuple[Lane, ...] = ()
    rates_note: str = ""
    ran: tuple[int, int] | None = None


WIDTH, LEFT, RIGHT = 11.0, 2.0, 0.3  # of a timeline, in inches: fixed, so that plans below one another share steps
TITLE, STRIP, GAP, RATES, ASCENT, LEGEND, ROW, HIGH_ROW, AXIS = 0.42, 0.46, 0.1, 1.4, 0.6, 0.34, 0.26, 0.32, 0.6
MEASURED, MEASURED_GAP = 1.7, 0.16  # of an axis of scores


def timeline(pictures: Sequence[Timeline], path: Path) -> Path:
    """Draw plans below one another on one scale of optimizer steps.

    Each has a strip of phases, the learning rate of every group (ascent on a scale of its own below), one lane a group
    with its direction, and one lane for every operation.
    """
    height = sum(_height(picture) for picture in pictures)
    most = max(picture.total for picture in pictures)
    with _drawing(path, WIDTH, height, constrained=False) as figure:
        top = height
        for picture in pictures:
            _draw_timeline(Sheet(figure, top, most), picture)
            top -= _height(picture)
    return path


def _ascends(picture: Timeline) -> bool:
    return any(value < 0 for line in picture.lines for value in line.values)


def _labels(picture: Timeline) -> list[str]:
    """Of the rows below the rates, in two lines at most."""
    held = [f"held at zero: {lane.label}" for lane in picture.held]
    every = [*(lane.label for lane in picture.lanes), *held, *(marks.label for marks in picture.marks)]
    return ["\n".join(wrap(label, 32, max_lines=2, placeholder=" ...")) for label in every]


def _lanes_height(picture: Timeline) -> float:
    labels = _labels(picture)
    return (HIGH_ROW if any("\n" in label for label in labels) else ROW) * len(labels)


def _height(picture: Timeline) -> float:
    return TITLE + STRIP + GAP + RATES + (GAP + ASCENT) * _ascends(picture) + LEGEND + _lanes_height(picture) + AXIS


class Sheet:
    """Hands out axes from the top down, on one scale of steps. It remembers where the last one ended, hence a class."""

    def __init__(self, figure: Figure, top: float, most: int) -> None:
        self.figure, self.top, self.most = figure, top, most

    def axes(self, height: float, above: float = 0.0) -> Axes:
        """The next axes, ``height`` inches high, ``above`` inches below what is there."""
        total = self.figure.get_figheight()
        self.top -= above + height
        ax = self.figure.add_axes((LEFT / WIDTH, self.top / total, (WIDTH - LEFT - RIGHT) / WIDTH, height / total))
        ax.set_xlim(0, self.most)
        ax.tick_params(axis="x", bottom=False, labelbottom=False)
        return ax


def _draw_timeline(sheet: Sheet, picture: Timeline, measured: Sequence[Measured] = ()) -> None:
    strip = sheet.axes(STRIP, TITLE)
    strip.set_title(shortened(picture.title, 80), pad=5)
    scores = [sheet.axes(MEASURED, MEASURED_GAP) for _ in measured]
    rates = sheet.axes(RATES, MEASURED_GAP if measured else GAP)
    ascent = sheet.axes(ASCENT, GAP) if _ascends(picture) else None
    lanes = sheet.axes(_lanes_height(picture), LEGEND)
    _draw_bands(strip, picture)
    for ax, one in zip(scores, measured, strict=True):
        _draw_measured(ax, one)
    _draw_rates(rates, ascent, picture)
    _draw_lanes(lanes, picture)
    generations = _generation_starts(picture.bands)[1:]
    for ax in filter(None, (strip, *scores, rates, ascent, lanes)):
        for start in generations:
            ax.axvline(start, color="#999999", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.5)
    for ax in scores:
        for band in picture.bands[1:]:
            if band.start not in generations:
                ax.axvline(band.start, color="#cccccc", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.5)
    for ax in filter(None, (strip, rates, ascent, lanes)):
        _veil(ax, picture)
    lanes.tick_params(axis="x", bottom=True, labelbottom=True)
    _count_steps(lanes)


def _veil(ax: Axes, picture: Timeline) -> None:
    """Make faint what a run has not done."""
    start, stop = picture.ran or (0, picture.total)
    for low, high in ((0, start), (stop, picture.total)):
        if low < high:
            ax.axvspan(low, high, color="white", alpha=0.7, linewidth=0, zorder=6)


def _generation_starts(bands: Sequence[Band]) -> list[int]:
    """Where each generation begins."""
    starts: dict[int, int] = {}
    for band in bands:
        starts.setdefault(band.generation, band.start)
    return list(starts.values())


def _draw_bands(ax: Axes, picture: Timeline) -> None:
    names = list(dict.fromkeys(band.name for band in picture.bands))
    colours = {name: PHASE_COLOURS[number % len(PHASE_COLOURS)] for number, name in enumerate(names)}
    for band in picture.bands:
        ax.barh(
            0.0,
            band.stop - band.start,
            left=band.start,
            height=0.9,
            color=colours[band.name],
            edgecolor="white",
            linewidth=0.6,
        )
        if band.until:
            half = (band.stop - band.start) / 2
            ax.barh(0.0, half, left=band.start + half, height=0.9, color="none", **MAY_END)
        _write(ax, band.name, band.start, band.stop, 0.0)
    _number_generations(ax, picture)
    if len(names) > 1:
        handles = [Patch(color=colours[name], label=name) for name in names]
        ax.legend(
            handles=handles,
            loc="lower right",
            bbox_to_anchor=(1.0, 0.97),
            borderaxespad=0,
            ncols=len(names),
            handlelength=1.2,
            columnspacing=1.2,
        )
    ax.set_ylim(-0.5, 1.2)
    ax.set_yticks([0.0, 0.85], ["phase", "generation"])
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)


def _number_generations(ax: Axes, picture: Timeline) -> None:
    """Every generation's number over its middle, or every second, fifth, ... where they would touch."""
    last = {band.generation: band.stop for band in picture.bands}
    starts = _generation_starts(picture.bands)
    labels = [
        ax.text((start + stop) / 2, 0.85, str(generation), ha="center", va="center", fontsize=8.5)
        for start, (generation, stop) in zip(starts, last.items(), strict=True)
    ]
    widest = max(label.get_window_extent().width for label in labels) + 5
    low, high = ax.get_window_extent().intervalx
    room = (high - low) * picture.total / (ax.get_xlim()[1] * len(labels))
    every = next(10**power * step for power in range(9) for step in (1, 2, 5) if 10**power * step * room > widest)
    for number, label in enumerate(labels):
        label.set_visible(number % every == 0)


def _write(ax: Axes, words: str, start: int, stop: int, height: float, **style: Any) -> None:
    """Words in the middle of a stretch of steps, left out where they are wider than it."""
    text = ax.text((start + stop) / 2, height, words, ha="center", va="center", fontsize=8.5, **style)
    (low, _), (high, _) = ax.transData.transform([(start, 0), (stop, 0)])
    text.set_visible(text.get_window_extent().width + 4 < high - low)


def _broken(line: Line, bands: Sequence[Band]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a line, with a gap wherever the rate jumps from one phase to the next: where it changes
    faster across the boundary than on either side of it.
    """
    steps, values = np.asarray(line.steps, dtype=float), np.asarray(line.values, dtype=float)
    if len(steps) < 2:
        return steps, values
    slopes = np.abs(np.diff(values) / np.diff(steps))
    jumps = []
    for place in sorted({int(np.searchsorted(steps, band.start)) for band in bands}):
        if 0 < place < len(steps):
            beside = max([*slopes[max(0, place - 2) : place - 1], *slopes[place : place + 1]], default=0.0)
            jumps += [place] if slopes[place - 1] > 2 * beside + 1e-9 else []
    return np.insert(steps, jumps, steps[jumps]), np.insert(values, jumps, np.nan)


def _plot(ax: Axes, steps: Any, values: Any, **style: Any) -> None:
    """A line; a point without a neighbour, of which no line is made, gets a dot."""
    known = np.isfinite(np.asarray(values, dtype=float))
    before, after = np.append(False, known[:-1]), np.append(known[1:], False)
    alone = np.flatnonzero(known & ~before & ~after).tolist()
    ax.plot(steps, values, marker="o", markersize=3.0, markevery=alone, **style)


def _draw_rates(above: Axes, below: Axes | None, picture: Timeline) -> None:
    for number, line in enumerate(picture.lines):
        steps, values = _broken(line, picture.bands)
        style: dict[str, Any] = {
            "color": ARM_COLOURS[number % len(ARM_COLOURS)],
            "linestyle": DASHES[number % len(DASHES)],
            "linewidth": 1.6,
        }
        _plot(above, steps, np.where(values >= 0, values, np.nan), label=line.label, **style)
        if below is not None:
            _plot(below, steps, np.where(values < 0, values, np.nan), **style)
    above.set_ylim(bottom=0)
    _label(above, "learning rate")
    above.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if picture.rates_note:
        above.plot([], [], linestyle="none", label=picture.rates_note)
    if len(picture.lines) > 1 or picture.rates_note:
        above.set_ylim(top=above.get_ylim()[1] * 1.2)
        every = zip(*above.get_legend_handles_labels(), strict=True)
        shown = [entry for entry in every if len(picture.lines) > 1 or entry[1] == picture.rates_note]
        above.legend(
            *zip(*shown, strict=True), loc="upper right", ncols=min(4, len(shown)), handlelength=2.2, borderaxespad=0.1
        )
    if below is not None:
        lowest = min(value for line in picture.lines for value in line.values)
        ticks = MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]).tick_values(lowest, 0.0)
        below.set_ylim(min(ticks[0], 1.05 * lowest), 0)
        below.set_yticks([tick for tick in ticks if tick < 0])
        _label(below, "ascent")
        below.spines["bottom"].set_visible(False)
        below.spines["top"].set_visible(True)


def _label(ax: Axes, words: str) -> None:
    """A name left of an axis, upright: there is room, and heads stay straight."""
    ax.text(
        -0.72 / (WIDTH - LEFT - RIGHT),
        0.5,
        "\n".join(words.split()),
        transform=ax.transAxes,
        ha="right",
        va="center",
        fontsize=9,
    )


def _direction_colour(direction: float) -> str:
    return DESCEND if direction > 0 else HOLD if direction == 0 else ASCEND


def _draw_lanes(ax: Axes, picture: Timeline) -> None:
    labels = _labels(picture)
    for row, lane in enumerate(picture.lanes):
        for start, stop, direction in lane.spans:
            ax.barh(row, stop - start, left=start, height=0.66, color=_direction_colour(direction), linewidth=0)
    for row, lane in enumerate(picture.held, start=len(picture.lanes)):
        ax.axhline(row, color="#e3e3e3", linewidth=0.8, zorder=0.4)
        for start, stop, share in lane.spans:
            ax.barh(row, stop - start, left=start, height=0.5, color="white", edgecolor=GREY, hatch="////", linewidth=0)
            if np.isfinite(share):
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
                _write(ax, f"{100 * share:.3g} %", start, stop, row, bbox=box)
    for row, marks in enumerate(picture.marks, start=len(picture.lanes) + len(picture.held)):
        ax.axhline(row, color="#e3e3e3", linewidth=0.8, zorder=0.4)
        ax.plot(
            marks.steps,
            [row] * len(marks.steps),
            linestyle="none",
            marker="D",
            markersize=5,
            color="#333333",
            clip_on=False,
        )
    ax.set_yticks(range(len(labels)), labels)
    for text in ax.get_yticklabels():
        text.set_fontsize(7 if len(text.get_text()) > 24 else 8.5)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, pad=8)
    ax.spines["left"].set_visible(False)
    directions = {direction for lane in picture.lanes for _, _, direction in lane.spans}
    found = [("descend", DESCEND, any(d > 0 for d in directions)), ("hold", HOLD, 0 in directions)]
    strengths = sorted({-d for d in directions if d < 0})
    found.append((f"ascend x {', '.join(f'{s:g}' for s in strengths)}", ASCEND, bool(strengths)))
    handles = [Patch(color=colour, label=label) for label, colour, there in found if there]
    untils = dict.fromkeys(band.until for band in picture.bands if band.until)
    handles = [*(Patch(facecolor=GREY, label=f"may end early: {until}", **MAY_END) for until in untils), *handles]
    if len(handles) > 1:
        anchor = (1.0, 1.0)
        ax.legend(
            handles=handles,
            loc="lower right",
            bbox_to_anchor=anchor,
            borderaxespad=0.15,
            ncols=len(handles),
            handlelength=1.2,
            columnspacing=1.2,
        )


# --------------------------------------------------------------------------------------------------------- a single run


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A value by optimizer step, and single points of it that have names."""

    label: str
    metric: str
    colour: str
    points: tuple[tuple[int, float], ...]
    named: tuple[tuple[str, int, float], ...] = ()  # (name, step, value)


def draw_all(run_folder: Path, planned: Timeline) -> None:
    """Every picture of a run that ended, into its folder."""
    draw_run(run_folder, run_folder / RUN, planned)
    draw_probes(run_folder, run_folder / PROBES)


def draw_run(run_folder: Path, path: Path, planned: Timeline) -> Path:
    """Draw what became of a run: from its journal training loss, validation and test score by optimizer step, and how
    much a mask holds at zero; above and below them phases, rates, directions and operations as they were planned.

    Args:
        run_folder: of the run.
        path: where to.
        planned: its plan, with the ends of the phases that were cut. Rates are drawn from it: the journal knows them
            every few steps only, and a line through those points has other corners.

    Raises:
        ValueError: the run has begun no phase.
    """
    records = list(read(run_folder / "journal.jsonl"))
    run = blank_summary(run_folder)
    for record in records:
        run.see(record)
    if run.total is None:
        raise ValueError(f"{run_folder} has begun no phase: there is nothing to draw")
    picture = _run_timeline(run, records, planned)
    measured = [one for one in (_training_loss(records), _scores(run, records)) if one.points or one.named]
    height = _height(picture) + len(measured) * (MEASURED + MEASURED_GAP)
    with _drawing(path, WIDTH, height, constrained=False) as figure:
        _draw_timeline(Sheet(figure, height, max(1, picture.total)), picture, measured)
    return path


def _run_timeline(run: RunSummary, records: Sequence[Mapping[str, Any]], planned: Timeline) -> Timeline:
    begun = min(record["step"] for record in records if record["kind"] == "phase")
    told = f"{run.step:,} of {planned.total:,}" if run.step < planned.total else f"{planned.total:,}"
    return replace(
        planned,
        title=f"{run.name}: {run.state}, {told} optimizer steps",
        bands=tuple(replace(band, until="") if band.stop <= run.step else band for band in planned.bands),
        held=tuple(
            replace(lane, spans=tuple((*span[:2], _sparsity(lane.label, span[0], records)) for span in lane.spans))
            for lane in planned.held
        ),
        ran=(begun, run.step),
    )


def _sparsity(mask: str, step: int, records: Sequence[Mapping[str, Any]]) -> float:
    """Share of zeros of a mask as it is at a step; nan before it was made."""
    made = [
        r["masks"][mask]
        for r in records
        if r["kind"] == "operation" and mask in (r.get("masks") or {}) and r["step"] <= step
    ]
    return 1 - made[-1][0] / made[-1][1] if made else float("nan")


def _training_loss(records: Sequence[Mapping[str, Any]]) -> Measured:
    points = [
        (record["step"], record["values"]["train/loss"])
        for record in records
        if record["kind"] == "metrics" and "train/loss" in record["values"]
    ]
    return Measured(label="training loss", metric="loss", colour=GREY, points=tuple(points))


def _scores(run: RunSummary, records: Sequence[Mapping[str, Any]]) -> Measured:
    """Validation and test, by the first metric that is not the loss."""
    names = [name for values in run.scores.values() for name in values]
    metric = next((name for name in names if name != "loss"), "loss")
    found = [
        (record["role"], record["step"], record["values"][metric])
        for record in records
        if record["kind"] == "score" and metric in record["values"]
    ]
    return Measured(
        label=f"validation {metric.replace('_', ' ')}",
        metric=metric,
        colour=BLUE,
        points=tuple((step, value) for role, step, value in found if role == "validation"),
        named=tuple((role, step, value) for role, step, value in found if role == "test"),
    )


def _draw_measured(ax: Axes, measured: Measured) -> None:
    style: dict[str, Any] = {"color": measured.colour, "linewidth": 1.6, "clip_on": False}
    if len(measured.points) < 100:
        style |= {"marker": "o", "markersize": 3.2}
    ax.plot([step for step, _ in measured.points], [value for _, value in measured.points], **style)
    ax.margins(y=0.14)
    for name, step, value in measured.named:
        words = f"{name} {_in_full(value, measured.metric)}" + f" at step {step:,}" * (len(measured.named) > 1)
        dot: dict[str, Any] = {"marker": "o", "markersize": 7, "color": RED, "markeredgecolor": "white"}
        ax.plot([step], [value], linestyle="none", clip_on=False, zorder=4, label=words, **dot)
    if measured.named:  # above all curves: beside its dot a word would stand on them
        ax.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 0.92),
            borderaxespad=0,
            ncols=len(measured.named),
            handletextpad=0.2,
            labelcolor=RED,
        )
    _label(ax, measured.label)
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _score(value, measured.metric)))


# --------------------------------------------------------------------------------------------------------------- probes

GROUP_LOOKS: Mapping[str, Mapping[str, Any]] = {
    "clean": {"color": BLUE, "linestyle": "-"},
    "mislabelled": {"color": RED, "linestyle": "-"},
    "easy": {"color": SKY, "linestyle": DASHES[1]},
    "hard": {"color": ORANGE, "linestyle": DASHES[1]},
}
GROUP_NAMES = {"easy": "easy (largest margin)", "hard": "hard (smallest margin)"}
PANELS = 4  # panels in a row, one a perturbation


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a probe found at a step, how many examples each group has, and what it found before the perturbation."""

    step: int
    values: Mapping[str, float]
    counts: Mapping[str, int]
    before: Mapping[str, float] = field(default_factory=dict)

    def within(self, group: str, what: str) -> tuple[float, float]:
        """The interval of a group's accuracy, or of its retention, which divides it by the accuracy before: that is
        taken as it is.
        """
        low, high = _share_within(self.values[f"{group}/accuracy"], self.counts[group])
        whole = 1.0 if what == "accuracy" else self.before[f"{group}/accuracy"]
        return low / whole, high / whole


NUMBERS = "a number behind a perturbation's name: so many per cent of the weights are forgotten"


def draw_probes(run_folder: Path, path: Path) -> Path | None:
    """Draw what a run's probes found, from its journal alone; None where there are none.

    On top what each group of examples gets right by optimizer step, and how selective each perturbation was at the last
    probe (retention of the clean or easy group less that of the mislabelled or hard one), a row each; below the
    retention of every group by optimizer step, a panel a perturbation. Bands and bars are 95 % intervals of so many
    examples (`_share_within`), not of seeds: a run has one.
    """
    records = [record for record in read(run_folder / "journal.jsonl") if record["kind"] == "probe"]
    found: dict[str, list[Probed]] = {}
    for record in records:
        point = Probed(step=record["step"], values=record["values"], counts=record["counts"])
        found.setdefault(record["perturbation"], []).append(point)
    before = found.pop("before", [])
    right = {point.step: point.values for point in before}
    found = {name: [replace(point, before=right[point.step]) for point in of] for name, of in found.items()}
    if not before or not found:
        return None
    rows = -(-len(found) // PANELS)
    selective = [(key, title, groups) for key, title, groups in SELECTIVITIES if _ever(found.values(), key)]
    names = ["\n".join(wrap(name, 28)) for name in found]
    high = max(2.6, 0.9 + 0.19 * sum(1 + name.count("\n") for name in names))
    with _drawing(path, 11.5, 0.8 + high + 2.3 * rows) as figure:
        parts: Any = figure.subfigures(2, 1, height_ratios=[high, 0.5 + 2.3 * rows])
        above, below = parts
        first, *others = above.subplots(1, 1 + len(selective), squeeze=False)[0]
        _draw_groups(first, before, "accuracy")
        first.set_ylim(0, 1.03)
        first.set_title("right, before the perturbation", fontsize=10)
        for number, (ax, (key, title, groups)) in enumerate(zip(others, selective, strict=True)):
            _draw_selectivity(ax, found, key, groups)
            ax.set_yticks(range(len(names)), names if not number else [""] * len(names), fontsize=8)
            ax.set_title(title, fontsize=10)
        panels = below.subplots(rows, PANELS, squeeze=False).flatten()
        for place, (ax, name, points) in enumerate(zip(panels, names, found.values(), strict=False)):
            _draw_groups(ax, points, "retention")
            ax.set_ylim(0, 1.25)
            ax.set_title(name, fontsize=9)
            if place % PANELS == 0:
                ax.set_ylabel("retention")
        for ax in panels[len(found) :]:
            ax.remove()
        below.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=len(GROUP_LOOKS))
        below.supxlabel(f"bands and bars: 95 % intervals of so many examples; {NUMBERS}", fontsize=9, color="#444444")
        figure.suptitle(shortened(f"{blank_summary(run_folder).name}: targeted forgetting on a clone", 90))
    return path


SELECTIVITIES = (
    ("selectivity/mislabelled", "retention, clean less mislabelled", ("clean", "mislabelled")),
    ("selectivity/hard", "retention, easy less hard", ("easy", "hard")),
)


def _ever(found: Any, key: str) -> bool:
    return any(key in point.values for points in found for point in points)


def _share_within(share: float, number: int) -> tuple[float, float]:
    """The 95 % interval of a share that was found in so many examples (Wilson 1927)."""
    z = 1.959964
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return middle - half, middle + half


def _draw_groups(ax: Axes, points: Sequence[Probed], what: str) -> None:
    for group, look in GROUP_LOOKS.items():
        known = [point for point in points if f"{group}/{what}" in point.values]
        if known:
            steps, values = [point.step for point in known], [point.values[f"{group}/{what}"] for point in known]
            name = GROUP_NAMES.get(group, group)
            ax.plot(steps, values, label=name, linewidth=1.7, **_dotted(known), **look)
            ends = np.array([point.within(group, what) for point in known])
            ax.fill_between(steps, ends[:, 0], ends[:, 1], color=look["color"], alpha=0.1, linewidth=0)
    _finish_panel(ax)


def _draw_selectivity(ax: Axes, found: Mapping[str, Sequence[Probed]], key: str, groups: tuple[str, str]) -> None:
    """At the last probe. The interval of a difference is put together from those of its two sides (Newcombe 1998)."""
    ax.axvline(0, color="#555555", linewidth=1.0, zorder=1)
    for row, points in enumerate(found.values()):
        values = points[-1].values
        if key not in values:
            continue
        kept = [values[f"{group}/retention"] for group in groups]
        (low, high), (other_low, other_high) = (points[-1].within(group, "retention") for group in groups)
        down, up = np.hypot(kept[0] - low, other_high - kept[1]), np.hypot(high - kept[0], kept[1] - other_low)
        ax.hlines(row, values[key] - down, values[key] + up, color=GREY, linewidth=2.0, zorder=2)
        ax.plot([values[key]], [row], "D", color="black", markersize=5.5, markeredgecolor="white", zorder=3)
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"at step {max(points[-1].step for points in found.values()):,}, with 95 % interval", labelpad=3)
    ax.grid(axis="x", color="#e6e6e6", linewidth=0.8)


def _dotted(points: Sequence[Any]) -> dict[str, Any]:
    """A single point is no line: it gets a dot."""
    return {"marker": "o", "markersize": 4.0} if len(points) == 1 else {}


def _finish_panel(ax: Axes) -> None:
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    ax.set_xlim(left=0)
    _count_steps(ax)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


# ----------------------------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One schedule of a comparison: validation scores by optimizer step for each seed, and the test score of each
    seed.

    ``generations`` are the steps at which a generation begins, ``ascents`` the [start, stop) of phases in which some
    group ascends.
    """

    label: str
    curves: Mapping[int, Sequence[tuple[int, float]]]
    test: Mapping[int, float]
    generations: tuple[int, ...] = ()
    ascents: tuple[tuple[int, int], ...] = ()


def comparison(title: str, arms: Sequence[Arm], path: Path, *, metric: str = "accuracy") -> Path:
    """Draw validation scores by budget and test scores at its end.

    Arms that have a colour each lie over one another: mean lines, up to six with a band from the lowest seed to the
    highest. More have a panel each, in which the others are grey, and a row each of test scores.
    """
    draw = _compare_few if len(arms) <= len(ARM_COLOURS) else _compare_many
    draw(title, arms, path, metric)
    return path


def _compare_few(title: str, arms: Sequence[Arm], path: Path, metric: str) -> None:
    with _drawing(path, 10.5, 5.2) as figure:
        main, side = figure.subplots(1, 2, width_ratios=[4.0, max(1.0, 0.28 * len(arms))])
        looks = _looks([arm.label for arm in arms])
        for arm in arms:
            _draw_arm(main, arm, looks[arm.label], band=len(arms) <= 6)
        _draw_test(side, arms, looks, metric)
        main.set_title(shortened(title, 90))
        main.set_ylabel(f"validation {metric.replace('_', ' ')}")
        main.set_xlim(left=0)
        _count_steps(main)
        main.set_ylim(*_range(arms))
        _draw_boundaries(main, arms, looks)
        for ax in (main, side):
            ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _score(value, metric)))
        handles, labels = main.get_legend_handles_labels()
        if any(arm.ascents for arm in arms):
            handles, labels = [*handles, Patch(color="#b0b0b0")], [*labels, "ascent (below, in the arm's colour)"]
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=4, handlelength=3.2)


ACROSS = 3  # panels in a row, one an arm


def _compare_many(title: str, arms: Sequence[Arm], path: Path, metric: str) -> None:
    rows = -(-len(arms) // ACROSS)
    with _drawing(path, 12.0, 1.0 + max(1.45 * rows, 0.3 * len(arms))) as figure:
        grid = figure.add_gridspec(rows, ACROSS + 1, width_ratios=[1.0] * ACROSS + [1.7])
        first: Axes | None = None
        for number, arm in enumerate(arms):
            row, column = divmod(number, ACROSS)
            ax = first = figure.add_subplot(grid[row, column], sharex=first, sharey=first)
            _draw_alone(ax, arm, arms)
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _score(value, metric)))
            ax.tick_params(labelleft=not column, labelbottom=number + ACROSS >= len(arms))
            if row < rows - 1:
                ax.set_xlabel("")
        assert first is not None
        first.set_xlim(left=0)
        first.set_ylim(*_range(arms))
        figure.supylabel(f"validation {metric.replace('_', ' ')}", fontsize=10)
        _draw_test_rows(figure.add_subplot(grid[:, ACROSS]), arms, metric)
        figure.suptitle(shortened(title, 100), fontsize=11, fontweight="bold", x=0.01, ha="left")
        looks: list[Any] = [Patch(color=BLUE, alpha=0.3), Patch(color="#cccccc")]
        words = ["the arm: mean and range of its seeds", "every other arm: mean"]
        if any(arm.ascents for arm in arms):
            looks, words = [*looks, Patch(color=RED)], [*words, "the arm ascends"]
        figure.legend(looks, words, loc="outside lower center", ncols=3)


def _draw_alone(ax: Axes, arm: Arm, arms: Sequence[Arm]) -> None:
    """One arm over all others in grey."""
    for other in arms:
        steps, scores = _on_common_steps(other.curves)
        if other is not arm and steps:
            ax.plot(steps, scores.mean(0), color="#cccccc", linewidth=0.8, zorder=1)
    _draw_arm(ax, arm, {"color": BLUE, "linestyle": "-"}, band=True)
    _draw_boundaries(ax, [arm], {arm.label: {"color": RED}})
    ax.set_title(shortened(arm.label, 30), fontsize=9.5, pad=3)
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    _count_steps(ax)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))


def _draw_test_rows(ax: Axes, arms: Sequence[Arm], metric: str) -> None:
    """Every arm's seeds as dots in a row, their mean as a bar; its value stands at the right margin."""
    ax.set_title("test, with means")
    for row, arm in enumerate(arms):
        scores = list(arm.test.values())
        if scores:
            mean = float(np.mean(scores))
            ax.plot(scores, [row] * len(scores), "o", color=BLUE, alpha=0.55, markersize=5, zorder=3)
            ax.vlines(mean, row - 0.3, row + 0.3, color="black", linewidth=2.2, zorder=4)
            where = ax.get_yaxis_transform()
            ax.text(1.03, row, _in_full(mean, metric), transform=where, va="center", ha="left", fontsize=9)
    ax.set_yticks(range(len(arms)), [shortened(arm.label, 24) for arm in arms])
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _score(value, metric)))
    ax.grid(color="#e6e6e6", linewidth=0.8)


def _score(value: float, metric: str) -> str:
    """A tick's score as people say it: shares in per cent."""
    return f"{round(100 * value, 10):g} %" if metric in FRACTIONS else f"{round(value, 10):g}"


def _in_full(value: float, metric: str) -> str:
    """A score that was measured: ``78.0 %``."""
    return f"{100 * value:.1f} %" if metric in FRACTIONS else f"{value:#.4g}"


SCHEDULES = (
    *("long", "restarts", "seal", "later_layer"),
    *("later_layer_reverse", "later_layer_hold_later", "later_layer_hold_early", "later_layer_fixed"),
    *("seal_reverse", "seal_hold_late", "seal_later_layer"),
    *("pruning", "warm_start", "wels", "kels", "shrink_perturb"),
    *("bunched_early", "pruning_random", "bunched_late", "tiny_later_layer", "pruning_reinit"),
    *("forget_fc", "forget_layer4", "forget_layer2", "forget_all", "later_layer_fixed_held"),
)  # each keeps its look in every comparison, whoever else is in it


def _looks(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes of every arm, by its name; no two of 32 alike.

    A name that we do not know has the look that its letters draw, or the next one that is free, in a free colour while
    there is one.
    """
    num_looks = len(ARM_COLOURS) * len(DASHES)
    numbers = {label: SCHEDULES.index(label) for label in labels if label in SCHEDULES}
    for label in sorted(set(labels) - set(SCHEDULES)):
        wished = [(crc32(label.encode()) + further) % num_looks for further in range(num_looks)]
        free = [number for number in wished if number not in numbers.values()]
        colours = {number % len(ARM_COLOURS) for number in numbers.values()}
        new = [number for number in free if number % len(ARM_COLOURS) not in colours]
        numbers[label] = next(iter([*new, *free, *wished]))
    return {label: _look(number) for label, number in numbers.items()}


def _look(number: int) -> dict[str, Any]:
    return {
        "color": ARM_COLOURS[number % len(ARM_COLOURS)],
        "linestyle": DASHES[(number + number // len(ARM_COLOURS)) % len(DASHES)],
    }


def _on_common_steps(curves: Mapping[int, Sequence[tuple[int, float]]]) -> tuple[list[int], np.ndarray]:
    """Steps at which every seed was scored, and the scores, (seeds, steps)."""
    by_seed = [dict(points) for points in curves.values() if points]
    if not by_seed:
        return [], np.empty((0, 0))
    steps = sorted(set.intersection(*(set(points) for points in by_seed)))
    return steps, np.array([[points[step] for step in steps] for points in by_seed])


def _draw_arm(ax: Axes, arm: Arm, look: Mapping[str, Any], *, band: bool) -> None:
    """Its mean; the band of its seeds where there is room: many bands on one another hide what they show."""
    steps, scores = _on_common_steps(arm.curves)
    if not steps:
        return
    size = 3.2 if len(steps) > 1 else 7.0  # a single point is no line
    ax.plot(steps, scores.mean(0), label=arm.label, marker="o", markersize=size, linewidth=2.0, zorder=3, **look)
    if band and len(scores) > 1:
        ax.fill_between(steps, scores.min(0), scores.max(0), color=look["color"], alpha=0.15, linewidth=0, zorder=2)


def _draw_boundaries(ax: Axes, arms: Sequence[Arm], looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Generations as dotted lines; where an arm ascends, a thin bar at the bottom in its colour."""
    for step in sorted({step for arm in arms for step in arm.generations}):
        ax.axvline(step, color="#999999", linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    ascending = [arm for arm in arms if arm.ascents]
    bar = min(0.014, 0.1 / max(1, len(ascending)))  # as a share of the height
    for row, arm in enumerate(ascending):
        ax.broken_barh(
            [(start, stop - start) for start, stop in arm.ascents],
            (row * bar, 0.8 * bar),
            transform=ax.get_xaxis_transform(),
            color=looks[arm.label]["color"],
            linewidth=0,
            zorder=4,
        )


def _draw_test(ax: Axes, arms: Sequence[Arm], looks: Mapping[str, Mapping[str, Any]], metric: str) -> None:
    """Seeds as dots on the left of an arm's place, their mean as a line; its value stands above them."""
    ax.set_title("test, with means")
    for number, arm in enumerate(arms):
        scores = list(arm.test.values())
        if not scores:
            continue
        colour, mean = looks[arm.label]["color"], float(np.mean(scores))
        places = number - 0.2 + (np.arange(len(scores)) - (len(scores) - 1) / 2) * min(0.12, 0.3 / len(scores))
        ax.plot(
            places, scores, linestyle="none", marker="o", markersize=6, color=colour, markeredgecolor="white", zorder=3
        )
        ax.hlines(mean, number - 0.4, number + 0.44, color=colour, linewidth=2.2, zorder=2)
        ax.annotate(
            _in_full(mean, metric).removesuffix(" %"),
            (number, max(scores)),  # above the seeds: beside the mean it would lie on one of them
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9 if len(arms) <= 6 else 7,
            color=colour,
        )
    labels = [shortened(arm.label, 24) for arm in arms]
    ax.set_xticks(range(len(arms)), labels, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.6, len(arms) - 0.4)
    ax.margins(y=0.25)


def _range(arms: Sequence[Arm]) -> tuple[float | None, float | None]:
    """From a little below the lowest score after the first sixth of the budget: the first climb would press all else
    together.
    """
    points = [(step, value) for arm in arms for curve in arm.curves.values() for step, value in curve]
    if not points:
        return None, None
    last = max(step for step, _ in points)
    values = [value for step, value in points if step >= last / 6]
    room = max(0.02, 0.06 * (max(values) - min(values)))
    return min(values) - room, max(values) + room


# ------------------------------------------------------------------------------------------------------------- measures


def depths(title: str, histograms: Mapping[str, Sequence[int]], probes: Sequence[str], path: Path) -> Path:
    """Draw shares of examples by prediction depth, several networks over one another; their means as lines with values.

    Args:
        title: of the picture.
        histograms: examples of each depth, 0 to the number of probes, by the network's name.
        probes: names of the probes, in order.
        path: where to.
    """
    with _drawing(path, max(7.0, 1.6 + 0.55 * (len(probes) + 1)), 4.4) as figure:
        ax = figure.subplots()
        looks = _looks(list(histograms))
        edges = np.arange(len(probes) + 2) - 0.5
        for label, counts in histograms.items():
            shares = np.asarray(counts) / sum(counts)
            mean = float(shares @ np.arange(len(shares)))
            look = looks[label]
            name = f"{shortened(label, 40)}: mean {mean:.2f}"
            ax.stairs(shares, edges, color=look["color"], alpha=0.15 if len(histograms) < 4 else 0.06, fill=True)
            ax.stairs(shares, edges, linewidth=2.0, label=name, **look)
            ax.axvline(mean, ymax=0.97, linewidth=1.2, alpha=0.9, **look)
        names = [*probes, "none"]
        labels = [f"{number}  {shortened(name, 16)}" for number, name in enumerate(names)]
        ax.set_xticks(range(len(names)), labels, rotation=40, ha="right", rotation_mode="anchor")
        ax.set_xlim(-0.6, len(names) - 0.4)
        ax.set_title(shortened(title, 80))
        ax.set_xlabel("depth: the first probe from which on all agree with the network")
        ax.set_ylabel("share of examples")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _score(value, "accuracy")))
        ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        ax.set_ylim(0, ax.get_ylim()[1] * (1.04 + 0.07 * len(histograms)))
        ax.legend(loc="upper left", handlelength=2.6)
    return path


def reliability(title: str, bins: Mapping[str, Sequence[tuple[int, float, float]]], path: Path) -> Path:
    """Draw accuracy by confidence, and below it where the confidence lies; on the diagonal a network is calibrated.

    Args:
        title: of the picture.
        bins: examples, mean confidence and accuracy of each bin of equal width, by the network's name.
        path: where to.
    """
    with _drawing(path, 5.6, 6.0) as figure:
        above, below = figure.subplots(2, 1, height_ratios=[3.2, 1.0], sharex=True)
        looks = _looks(list(bins))
        above.plot([0, 1], [0, 1], color="#999999", linewidth=1.0, linestyle=(0, (4, 3)), label="calibrated")
        for label, own in bins.items():
            counts = np.array([number for number, _, _ in own])
            there = [(confidence, accuracy) for number, confidence, accuracy in own if number]
            gap = sum(number * abs(accuracy - confidence) for number, confidence, accuracy in own) / counts.sum()
            name = f"{shortened(label, 30)}: error {100 * gap:.1f} %"
            above.plot(*zip(*there, strict=True), marker="o", markersize=4.5, linewidth=1.8, label=name, **looks[label])
            edges = np.linspace(0, 1, len(own) + 1)
            shares = counts / counts.sum()
            below.stairs(shares, edges, color=looks[label]["color"], alpha=0.12, fill=True)
            below.stairs(shares, edges, linewidth=1.6, **looks[label])
        above.set_title(shortened(title, 60))
        above.set_ylabel("accuracy")
        above.legend(loc="upper left", handlelength=2.6)
        above.set_ylim(0, 1.02)
        below.set_xlim(0, 1)
        below.set_xlabel("confidence")
        below.set_ylabel("share of examples", fontsize=9)
        for axis in (above.yaxis, below.yaxis, below.xaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: _score(value, "accuracy")))
        for ax in (above, below):
            ax.grid(color="#e6e6e6", linewidth=0.8)
    return path


# ----------------------------------------------------------------------------------------------------------- detections


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Objects of an image, in its pixels: boxes (N, 4) x0, y0, x1, y1, classes (N,) from 0, masks (N, H, W), scores."""

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    scores: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image (H, W, C), what is in it and what was found; ``depth`` (h, w) is the number of ``blocks`` that each
    patch went through, over the part of the image that ``covered`` (height, width) pixels from the upper left are.
    """

    pixels: np.ndarray
    truth: Objects
    found: Objects
    depth: np.ndarray | None = None
    covered: tuple[float, float] | None = None
    blocks: int = 0


def detections(title: str, scenes: Sequence[Scene], classes: Sequence[str], path: Path) -> Path:
    """Draw a row for each image: its objects, what was found, and where the network stopped looking.

    Objects of several classes have a colour and a name for each class; those of a single one have neither, and colours
    only tell neighbours apart.
    """
    columns = 3 if any(scene.depth is not None for scene in scenes) else 2
    shapes = [scene.pixels.shape[0] / scene.pixels.shape[1] for scene in scenes]
    wide = 3.4
    high = sum(wide * shape + 0.12 for shape in shapes)
    with _drawing(path, columns * wide + 0.3, high + 0.75) as figure:
        axes = figure.subplots(len(scenes), columns, squeeze=False, height_ratios=shapes)
        for row, scene in zip(axes, scenes, strict=True):
            grey = scene.pixels.shape[2] == 1
            picture = scene.pixels[:, :, 0] if grey else scene.pixels
            for column, ax in enumerate(row):
                ax.set_axis_off()
                # under the veil of cut patches a paler picture, so that a dark one does not swallow its shades
                shown = picture if column < 2 else (0.45 * picture + 0.55 * 255).astype(np.uint8)
                ax.imshow(shown, cmap="gray" if grey else None, vmin=0, vmax=255)
            for ax, objects in ((row[0], scene.truth), (row[1], scene.found)):
                _draw_objects(ax, objects, classes)
            if columns == 3 and scene.depth is not None:
                _draw_depth(row[2], scene)
        for ax, name in zip(axes[0], ("truth", "found", "blocks that a patch went through"), strict=False):
            ax.set_title(name, fontsize=10, fontweight="normal", loc="left")
        if columns == 3:
            _depth_legend(figure, scenes)
        figure.suptitle(shortened(title, 70 if columns == 3 else 46), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return path


def _draw_objects(ax: Axes, objects: Objects, classes: Sequence[str]) -> None:
    high, wide = ax.get_images()[0].get_array().shape[:2]  # type: ignore[union-attr]
    named = len(classes) > 1
    layer = np.zeros((high, wide, 4))
    order = range(len(objects.labels))
    if objects.scores is not None:
        order = np.argsort(objects.scores, kind="stable").tolist()  # the surest on top
    for number in order:
        colour = OBJECT_COLOURS[(int(objects.labels[number]) if named else number) % len(OBJECT_COLOURS)]
        if objects.masks is not None:
            layer[objects.masks[number].astype(bool)] = (*to_rgb(colour), 0.45)
        x0, y0, x1, y1 = (float(value) for value in objects.boxes[number])
        ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.1))
        if named:
            text = shortened(classes[int(objects.labels[number])], 14)
            if objects.scores is not None:
                text += f" {100 * float(objects.scores[number]):.0f} %"
            inside = y0 < 0.07 * high  # no room above the box
            right = x0 > 0.75 * wide
            ax.text(
                min(x1, wide) if right else max(x0, 0),
                y0 if inside else y0 - 1,
                text,
                fontsize=7,
                color="white",
                ha="right" if right else "left",
                va="top" if inside else "bottom",
                clip_on=True,
                bbox={"facecolor": _darker(colour), "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            )
    ax.imshow(layer)


def _draw_depth(ax: Axes, scene: Scene) -> None:
    """A veil over each patch, the thicker the earlier it was cut."""
    assert scene.depth is not None
    veil = np.zeros((*scene.depth.shape, 4))
    veil[..., :3] = to_rgb(BLUE)
    veil[..., 3] = 0.85 * (1 - scene.depth / scene.blocks)
    high, wide = scene.covered or scene.pixels.shape[:2]
    limits = ax.get_xlim(), ax.get_ylim()
    ax.imshow(veil, extent=(-0.5, wide - 0.5, high - 0.5, -0.5), interpolation="nearest")
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])


def _depth_legend(figure: Figure, scenes: Sequence[Scene]) -> None:
    depths, blocks = (
        sorted({int(d) for s in scenes if s.depth is not None for d in np.unique(s.depth)}),
        scenes[0].blocks,
    )
    handles = []
    for depth in depths:
        alpha = 0.85 * (1 - depth / blocks)
        red, green, blue = (alpha * value + (1 - alpha) * 0.82 for value in to_rgb(BLUE))
        handles.append(Patch(facecolor=(red, green, blue), label=str(depth) if depth < blocks else f"all {blocks}"))
    figure.legend(
        handles=handles, loc="outside lower right", ncols=min(len(handles), 8), fontsize=8.5, handlelength=1.2
    )


def _darker(colour: str) -> tuple[float, ...]:
    return tuple(0.6 * value for value in to_rgb(colour))


# -------------------------------------------------------------------------------------------------------------- courses


@dataclass(frozen=True, kw_only=True)
class Course:
    """A measure along an axis: ``values`` of every seed at each of ``times``; not every time has every seed."""

    label: str
    times: Sequence[float]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Courses:
    """One panel: several courses over one axis of optimizer steps, or of what else is said.

    ``metric`` decides how values are written. ``top``: the vertical axis goes from zero to there; ``limits``: what
    lies beyond them is cut off. ``dots`` shows single seeds. ``shares``: the axis is logarithmic, of shares that shrink
    to the right. ``names`` are those of the places 0, 1, 2, ... of an axis without numbers. ``level`` is a horizontal
    line with its name.
    """

    title: str
    time: str
    measure: str
    courses: Sequence[Course]
    metric: str = ""
    top: float | None = None
    limits: tuple[float, float] | None = None
    dots: bool = False
    shares: bool = False
    names: Sequence[str] = ()
    level: tuple[str, float] | None = None


BANDS = "line: mean over seeds; band: from the lowest seed to the highest"


def courses(panels: Sequence[Courses], path: Path, *, columns: int = 2, note: str = "") -> Path:
    """Draw panels side by side: means over seeds, bands from the lowest seed to the highest, which the picture says
    itself, and ``note`` after it; one legend where panels have the same labels, no names for a single line.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    labels = list(dict.fromkeys(course.label for panel in panels for course in panel.courses))
    looks = {label: _look(number) for number, label in enumerate(labels)}
    wide = 5.2 if columns < 3 else 3.6  # a picture that is wider than a page has small words there
    size = (7.6, 4.8) if len(panels) == 1 else (1.5 + wide * columns, 0.7 + 0.65 * wide * rows)
    with _drawing(path, *size) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for ax, panel in zip(axes, panels, strict=False):
            _draw_courses(ax, panel, looks)
        for ax in axes[len(panels) :]:
            ax.remove()
        handles = {
            label: handle
            for ax in axes[: len(panels)]
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        many = any(len(values) > 1 for panel in panels for course in panel.courses for values in course.values)
        said = [line for words in (BANDS if many else "", note) for line in wrap(words, int(13 * size[0]))]
        if len(handles) == 1:
            handles = {}
        if handles or said:
            across = 4 if columns > 1 else 3
            legend = figure.legend(
                handles.values(),
                handles,
                loc="outside lower center",
                ncols=across,
                handlelength=3.2,
                title="\n".join(said) or None,
                title_fontsize=9,
            )
            legend.get_title().set_multialignment("center")
    return path


def _draw_courses(ax: Axes, panel: Courses, looks: Mapping[str, Mapping[str, Any]]) -> None:
    for course in panel.courses:
        look = looks[course.label]
        means = [float(np.mean(values)) for values in course.values]
        alone: dict[str, Any] = (
            {"marker": "D", "markersize": 6.0} if len(means) == 1 else {}
        )  # a single point is no line
        ax.plot(course.times, means, label=course.label, linewidth=1.8, zorder=3, **alone, **look)
        low, high = [min(values) for values in course.values], [max(values) for values in course.values]
        ax.fill_between(course.times, low, high, color=look["color"], alpha=0.12, linewidth=0, zorder=2)
        if alone:
            ax.vlines(course.times, low, high, color=look["color"], alpha=0.35, linewidth=3.0, zorder=2)
        if panel.dots:
            times = np.repeat(course.times, [len(values) for values in course.values])
            dots = np.concatenate(course.values)
            ax.plot(times, dots, "o", color=look["color"], markersize=4, markeredgecolor="white")
    if panel.level is not None:
        name, height = panel.level
        ax.axhline(height, color=GREY, linestyle=(0, (4, 2)), linewidth=1.2, zorder=1, label=name)
    if panel.shares:
        ax.set_xscale("log")
        ax.invert_xaxis()
        ticks = sorted({time for course in panel.courses for time in course.times})
        ax.set_xticks(ticks, [f"{100 * tick:.3g} %" for tick in ticks])
        ax.minorticks_off()
    elif panel.names:
        ax.set_xticks(range(len(panel.names)), panel.names)
        ax.margins(x=0.06)
    else:
        ax.set_xlim(left=0)
        _count_steps(ax)
    if panel.limits is not None:
        low_end, high_end = ax.get_ylim()
        ax.set_ylim(max(low_end, panel.limits[0]), min(high_end, panel.limits[1]))
    if panel.top is not None:
        ax.set_ylim(0, panel.top)
    ax.set_title(shortened(panel.title, 90))
    ax.set_xlabel(panel.time, labelpad=3)
    ax.set_ylabel(panel.measure)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _score(value, panel.metric)))
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)


# -------------------------------------------------------------------------------------------------- studies at a glance


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean difference with the ends of its interval, if it has one, and the difference of every seed."""

    label: str
    mean: float
    ends: tuple[float, float] | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Differences:
    """A measure's differences; ``unit`` is theirs."""

    title: str
    unit: str
    rows: Sequence[Interval]


def intervals(title: str, panels: Sequence[Differences], path: Path) -> Path:
    """Draw differences from zero, a row each and a panel for each measure, three side by side: mean and interval as a
    bar, single seeds as dots; in colour where the interval leaves out zero.
    """
    rows = list(dict.fromkeys(one.label for panel in panels for one in panel.rows))
    across, down = min(3, len(panels)), -(-len(panels) // 3)
    with _drawing(path, 2.2 + 2.9 * across, 0.8 + (0.9 + 0.3 * len(rows)) * down) as figure:
        every = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
        for ax, panel in zip(every, panels, strict=False):
            _draw_differences(ax, panel, rows)
        for ax in every[len(panels) :]:
            ax.remove()
        every[0].set_yticks(range(len(rows)), rows)
        every[0].set_ylim(len(rows) - 0.5, -0.5)
        figure.suptitle(shortened(title, 100), fontsize=11, fontweight="bold", x=0.01, ha="left")
        looks: dict[str, Any] = {"marker": "D", "markersize": 6.5, "markeredgecolor": "white", "linewidth": 2.2}
        words = {BLUE: "the 95 % interval leaves out zero", GREY: "it holds zero, or there is none"}
        handles = [Line2D([], [], color=colour, label=label, **looks) for colour, label in words.items()]
        handles.append(
            Line2D([], [], color=GREY, alpha=0.55, linestyle="none", marker="o", markersize=3.4, label="a seed")
        )
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return path


def _draw_differences(ax: Axes, panel: Differences, rows: Sequence[str]) -> None:
    ax.axvline(0, color="#555555", linewidth=1.0, zorder=1)
    for one in panel.rows:
        row = rows.index(one.label)
        sure = one.ends is not None and (one.ends[0] > 0 or one.ends[1] < 0)
        colour = BLUE if sure else GREY
        if one.ends is not None:
            ax.hlines(row, *one.ends, color=colour, linewidth=2.2, zorder=2)
        ax.plot(one.by_seed, [row] * len(one.by_seed), "o", color=colour, markersize=3.4, alpha=0.55, zorder=3)
        ax.plot([one.mean], [row], "D", color=colour, markersize=6.5, markeredgecolor="white", zorder=4)
    ax.set_title(shortened(panel.title, 40), fontsize=10)
    ax.set_xlabel(panel.unit)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    ax.tick_params(axis="y", length=0)


# --------------------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """One image of a `segmentation_sheet`: uint8 (height, width, channels), and what is known of its pixels, each
    (height, width).

    ``predicted`` is what each network says, by the network's name; ``depth`` the number of blocks that a pixel's patch
    went through, for networks that cut patches.
    """

    image: np.ndarray
    labels: np.ndarray
    predicted: Mapping[str, np.ndarray]
    depth: Mapping[str, np.ndarray] = field(default_factory=dict)


IGNORED_COLOUR = "#ffffff"


def segmentation_sheet(
    title: str, scenes: Sequence[Segmented], classes: Sequence[str], path: Path, *, blocks: int | None = None
) -> Path:
    """Draw images, a row each: the image, its labels, what networks say, and how deep each patch went.

    Args:
        title: of the picture.
        scenes: the images; all with the same networks.
        classes: names, label i is the i-th; any other label is white.
        path: where to.
        blocks: of the networks, the deepest that a patch can go; None: the deepest that one went.
    """
    said, cut = list(scenes[0].predicted), list(scenes[0].depth)
    names = ["image", "labels", *said, *(f"{name}: depth" for name in cut)]
    colours = _class_colours(len(classes))
    deepest = blocks or max((int(deep.max()) for scene in scenes for deep in scene.depth.values()), default=1)
    depth_colours = matplotlib.colormaps["magma"].resampled(deepest + 2)
    shown = sorted(
        {
            int(label)
            for scene in scenes
            for part in (scene.labels, *scene.predicted.values())
            for label in np.unique(part)
        }
        & set(range(len(classes)))
    )
    wide = 2.3
    heights = [scene.image.shape[0] / scene.image.shape[1] for scene in scenes]
    rows_of_legend = -(-len(shown) // 6)
    height = wide * sum(heights) + 0.08 * len(scenes) + 0.75 + 0.25 * rows_of_legend
    with _drawing(path, wide * len(names) + 0.2 + (0.6 if cut else 0), height) as figure:
        figure.suptitle(shortened(title, 22 * len(names)), x=0.01, ha="left", fontsize=11, fontweight="bold")
        axes = figure.subplots(len(scenes), len(names), squeeze=False, height_ratios=heights)
        for row, scene in zip(axes, scenes, strict=True):
            grey = scene.image.shape[2] == 1
            row[0].imshow(scene.image[..., 0] if grey else scene.image, **({"cmap": "gray"} if grey else {}))
            for ax, labels in zip(row[1:], (scene.labels, *scene.predicted.values()), strict=False):
                ax.imshow(_coloured(labels, colours), interpolation="nearest")
            for ax, name in zip(row[2 + len(said) :], cut, strict=True):
                drawn = ax.imshow(
                    scene.depth[name], cmap=depth_colours, vmin=-1.5, vmax=deepest + 0.5, interpolation="nearest"
                )
            for ax in row:
                ax.set_xticks([])
                ax.set_yticks([])
                for side in ax.spines.values():
                    side.set_visible(False)
        for ax, name in zip(axes[0], names, strict=True):
            ax.set_title(shortened(name, 30), fontsize=9.5, fontweight="normal")
        if cut:
            bar = figure.colorbar(drawn, ax=axes[:, -1], aspect=30, shrink=0.9)
            bar.ax.set_ylim(0.5, deepest + 0.5)
            bar.set_label("blocks that a patch went through", fontsize=9)
            bar.set_ticks([number for number in range(1, deepest + 1) if deepest <= 12 or number % 4 == 0])
        handles: list[Any] = [Patch(facecolor=colours[label], label=classes[label]) for label in shown]
        figure.legend(handles=handles, loc="outside lower left", ncols=min(6, len(handles)), handlelength=1.1)
    return path


def _class_colours(number: int) -> list[Any]:
    """A colour for each class; of very many some are much alike."""
    if number <= len(ARM_COLOURS):
        return list(ARM_COLOURS[:number])
    if number <= 20:
        return list(matplotlib.colormaps["tab20"].colors)[:number]  # type: ignore[attr-defined]
    hue = (np.arange(number) * 0.618034) % 1
    light = 0.55 + 0.45 * ((np.arange(number) * 0.754878) % 1)
    return list(matplotlib.colors.hsv_to_rgb(np.stack([hue, 0.75 * np.ones(number), light], 1)))


def _coloured(labels: np.ndarray, colours: Sequence[Any]) -> np.ndarray:
    """Labels (height, width) as a picture (height, width, 3)."""
    table = np.full((256, 3), matplotlib.colors.to_rgb(IGNORED_COLOUR))
    table[: len(colours)] = [matplotlib.colors.to_rgb(colour) for colour in colours]
    return table[labels]


# ------------------------------------------------------------------------------------------------------------ keep maps


@dataclass(frozen=True, kw_only=True)
class KeepMap:
    """An image as a network sees it, (H, W, channels), and the number of blocks that each of its patches went through
    before it was cut, (h, w); the number of all blocks where it never was.
    """

    name: str
    answer: str
    pixels: np.ndarray
    depth: np.ndarray


CUTS = ("BuPu_r", 0.0, 0.72)  # from dark to pale: early cuts, late cuts; a hue that few photographs are full of
COVER = 0.72  # how much of a cut patch its colour covers
SIDE = 3.6  # of a picture, in inches


def keep_map(picture: KeepMap, after: Sequence[int], blocks: int, path: Path) -> Path:
    """Draw an image, and beside it the block behind which each patch was cut: kept ones as they are and in a frame, the
    others grey under the block's colour.

    Args:
        picture: the image.
        after: the blocks, from 1, that patches are cut behind.
        blocks: how many there are.
        path: where to.
    """
    with _drawing(path, 2 * SIDE + 1.4, SIDE + 0.7) as figure:
        plain, cut = figure.subplots(1, 2)
        plain.imshow(_in_three(picture.pixels), interpolation=_smoothing(picture))
        plain.set_title(shortened(picture.name, 40))
        _draw_cuts(cut, picture, after, blocks)
        kept = float((picture.depth >= blocks).mean())
        cut.set_title(f"{shortened(picture.answer, 32)}; {100 * kept:.0f} % of patches kept")
        plain.set_axis_off()
        _cuts_legend(figure, [plain, cut], after, blocks, fraction=0.05, pad=0.02, shrink=0.85, aspect=22)
    return path


def keep_maps(
    title: str, pictures: Sequence[KeepMap], after: Sequence[int], blocks: int, path: Path, *, columns: int = 6
) -> Path:
    """Draw many images as `keep_map` does, each above its map, on one sheet."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    side = 1.9
    with _drawing(path, max(5.0, side * columns), (2 * side + 0.24) * rows + 0.95) as figure:
        figure.get_layout_engine().set(h_pad=0.02, hspace=0.0)  # type: ignore[union-attr, call-arg]
        axes = figure.subplots(2 * rows, columns, squeeze=False)
        for ax in axes.flatten():
            ax.set_axis_off()
        for number, picture in enumerate(pictures):
            row, column = divmod(number, columns)
            plain, cut = axes[2 * row, column], axes[2 * row + 1, column]
            plain.imshow(_in_three(picture.pixels), interpolation=_smoothing(picture))
            words = (shortened(picture.name, 26), shortened(picture.answer, 26))
            plain.set_title("\n".join(words), fontsize=7.5, fontweight="normal", pad=3)
            _draw_cuts(cut, picture, after, blocks, frame=0.9)
        figure.suptitle(shortened(title, 100), fontsize=11, fontweight="bold", x=0.01, ha="left")
        wide, _ = figure.get_size_inches()
        _cuts_legend(figure, axes, after, blocks, location="bottom", shrink=min(1.0, 4.6 / wide), aspect=28, pad=0.01)
    return path


def _in_three(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def _smoothing(picture: KeepMap) -> str:
    """Small images show their pixels."""
    return "antialiased" if picture.pixels.shape[0] >= 128 else "nearest"


def _cut_colours(after: Sequence[int]) -> np.ndarray:
    """A colour, red, green and blue from 0 to 1, for each of the blocks that patches are cut behind."""
    name, low, high = CUTS
    places = np.linspace(low, high, len(after)) if len(after) > 1 else np.full(len(after), 0.3)
    return np.asarray(matplotlib.colormaps[name](places))[:, :3]


def _draw_cuts(ax: Axes, picture: KeepMap, after: Sequence[int], blocks: int, frame: float = 1.5) -> None:
    """The image with cut patches covered, and a frame, so many points wide, around what was kept."""
    pixels = _in_three(picture.pixels) / 255
    high, wide = pixels.shape[:2]
    down, across = picture.depth.shape
    depth = picture.depth[np.arange(high)[:, None] * down // high, np.arange(wide) * across // wide]
    colours = np.zeros((blocks + 1, 3))
    colours[list(after)] = _cut_colours(after)
    grey = pixels.mean(2, keepdims=True).repeat(3, 2)
    covered = np.where((depth >= blocks)[..., None], pixels, (1 - COVER) * grey + COVER * colours[depth])
    ax.imshow(covered, interpolation=_smoothing(picture))
    lines = _frames(picture.depth >= blocks, high / down, wide / across)
    ax.add_collection(LineCollection(lines, colors="white", linewidths=frame))
    ax.set_axis_off()


def _frames(kept: np.ndarray, high: float, wide: float) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Lines (from, to) between patches that are kept and others; a patch is ``high`` by ``wide`` pixels."""
    padded = np.pad(kept, 1)
    flat = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])  # between rows
    steep = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    across = [((c * wide - 0.5, r * high - 0.5), ((c + 1) * wide - 0.5, r * high - 0.5)) for r, c in flat]
    down = [((c * wide - 0.5, r * high - 0.5), (c * wide - 0.5, (r + 1) * high - 0.5)) for r, c in steep]
    return across + down


def _cuts_legend(figure: Figure, axes: Any, after: Sequence[int], blocks: int, **place: Any) -> None:
    """A bar with a colour for each block that patches are cut behind."""
    if not after:
        return
    colours = ListedColormap(_cut_colours(after))
    norm = BoundaryNorm(np.arange(len(after) + 1) - 0.5, len(after))
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, **place)
    shown = range(0, len(after), -(-len(after) // 12))
    bar.set_ticks(list(shown), labels=[str(after[number]) for number in shown])
    bar.ax.minorticks_off()
    bar.set_label(f"cut behind block (of {blocks}); uncovered: never cut", fontsize=9)
