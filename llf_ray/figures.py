"""Every picture of the project, from plain data to a PNG. Nothing here reads runs, plans or journals.

Colours are Okabe and Ito's, which people of every colour vision tell apart; lines differ in their dashes too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten, wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

__all__ = ["Arm", "Band", "Lane", "Line", "Marks", "Timeline", "comparison", "timeline"]

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
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
PHASE_COLOURS = ("#cfe3f1", "#f7dcb0", "#c5e6da", "#eacfdf", "#dddddd", "#f4cdb9")
DESCEND, HOLD, ASCEND = "#a9cde4", "#d0d0d0", "#e8a07c"

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
    """A phase: optimizer steps [start, stop)."""

    start: int
    stop: int
    name: str
    generation: int


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
    """What a run will do, ready to be drawn."""

    title: str
    total: int
    bands: tuple[Band, ...]
    lanes: tuple[Lane, ...]
    lines: tuple[Line, ...]
    marks: tuple[Marks, ...] = ()


WIDTH, LEFT, RIGHT = (
    11.0,
    1.85,
    0.3,
)  # of a timeline, in inches: fixed, so that plans below one another share their steps
TITLE, STRIP, GAP, RATES, ASCENT, LEGEND, ROW, AXIS = 0.42, 0.46, 0.1, 1.4, 0.5, 0.34, 0.26, 0.6


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


def _lanes_height(picture: Timeline) -> float:
    return ROW * (len(picture.lanes) + len(picture.marks))


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


def _draw_timeline(sheet: Sheet, picture: Timeline) -> None:
    strip = sheet.axes(STRIP, TITLE)
    strip.set_title(shorten(picture.title, 80, placeholder=" ..."), pad=5)
    rates = sheet.axes(RATES, GAP)
    ascent = sheet.axes(ASCENT, GAP) if _ascends(picture) else None
    lanes = sheet.axes(_lanes_height(picture), LEGEND)
    _draw_bands(strip, picture)
    _draw_rates(rates, ascent, picture)
    _draw_lanes(lanes, picture)
    for ax in filter(None, (strip, rates, ascent, lanes)):
        for start in _generation_starts(picture.bands)[1:]:
            ax.axvline(start, color="#999999", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.5)
    lanes.tick_params(axis="x", bottom=True, labelbottom=True)
    _count_steps(lanes)


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


def _write(ax: Axes, words: str, start: int, stop: int, height: float) -> None:
    """Words in the middle of a stretch of steps, left out where they are wider than it."""
    text = ax.text((start + stop) / 2, height, words, ha="center", va="center", fontsize=8.5)
    (low, _), (high, _) = ax.transData.transform([(start, 0), (stop, 0)])
    text.set_visible(text.get_window_extent().width + 4 < high - low)


def _draw_rates(above: Axes, below: Axes | None, picture: Timeline) -> None:
    for number, line in enumerate(picture.lines):
        steps, values = np.asarray(line.steps, dtype=float), np.asarray(line.values, dtype=float)
        style: dict[str, Any] = {
            "color": ARM_COLOURS[number % len(ARM_COLOURS)],
            "linestyle": DASHES[number % len(DASHES)],
            "linewidth": 1.6,
        }
        above.plot(steps, np.where(values >= 0, values, np.nan), label=line.label, **style)
        if below is not None:
            below.plot(steps, np.where(values < 0, values, np.nan), **style)
    above.set_ylim(bottom=0)
    _label(above, "learning rate")
    above.yaxis.set_major_locator(MaxNLocator(4))
    if len(picture.lines) > 1:
        above.set_ylim(top=above.get_ylim()[1] * 1.2)
        above.legend(loc="upper right", ncols=min(4, len(picture.lines)), handlelength=2.2, borderaxespad=0.1)
    if below is not None:
        below.set_ylim(top=0)
        _label(below, "ascent")
        below.set_yticks(
            [tick for tick in MaxNLocator(3).tick_values(*below.get_ylim()) if below.get_ylim()[0] <= tick < 0]
        )
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
    labels = [lane.label for lane in picture.lanes] + [marks.label for marks in picture.marks]
    for row, lane in enumerate(picture.lanes):
        for start, stop, direction in lane.spans:
            ax.barh(row, stop - start, left=start, height=0.66, color=_direction_colour(direction), linewidth=0)
    for row, marks in enumerate(picture.marks, start=len(picture.lanes)):
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
    ax.set_yticks(range(len(labels)), ["\n".join(wrap(shorten(label, 54, placeholder=" ..."), 28)) for label in labels])
    for text in ax.get_yticklabels():
        text.set_fontsize(7 if "\n" in text.get_text() else 8.5)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    directions = {direction for lane in picture.lanes for _, _, direction in lane.spans}
    found = [("descend", DESCEND, any(d > 0 for d in directions)), ("hold", HOLD, 0 in directions)]
    strengths = sorted({-d for d in directions if d < 0})
    found.append((f"ascend x {', '.join(f'{s:g}' for s in strengths)}", ASCEND, bool(strengths)))
    handles = [Patch(color=colour, label=label) for label, colour, there in found if there]
    if len(handles) > 1:
        anchor = (1.0, 1.0)
        ax.legend(
            handles=handles,
            loc="lower right",
            bbox_to_anchor=anchor,
            borderaxespad=0.15,
            ncols=3,
            handlelength=1.2,
            columnspacing=1.2,
        )


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
    """Draw validation scores by budget (mean line, band from the lowest seed to the highest) and test scores at its
    end.
    """
    many = len(arms) > 6
    with _drawing(path, 10.5, 5.0 + 0.25 * many * len(arms) / 2) as figure:
        main, side = figure.subplots(1, 2, width_ratios=[4.0, min(3.0, max(1.0, 0.28 * len(arms)))])
        for number, arm in enumerate(arms):
            _draw_arm(main, arm, number)
        _draw_boundaries(main, arms)
        _draw_test(side, arms, metric)
        main.set_title(shorten(title, 90, placeholder=" ..."))
        main.set_ylabel(f"validation {metric}")
        main.set_xlim(left=0)
        _count_steps(main)
        main.set_ylim(*_range(arms))
        for ax in (main, side):
            ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _score(value, metric)))
        handles, labels = main.get_legend_handles_labels()
        if many:
            figure.legend(handles, labels, loc="outside lower center", ncols=4, handlelength=3.2)
        elif handles:
            main.legend(handles, labels, loc="lower right", handlelength=3.2)
    return path


def _score(value: float, metric: str, digits: int = 10) -> str:
    """A score as people say it: shares in per cent."""
    return (
        f"{round(100 * value, digits):g} %" if metric in ("accuracy", "top1", "top5") else f"{round(value, digits):g}"
    )


def _look(number: int) -> dict[str, Any]:
    """Colour and dashes of an arm: no two of 32 alike."""
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


def _draw_arm(ax: Axes, arm: Arm, number: int) -> None:
    steps, scores = _on_common_steps(arm.curves)
    if not steps:
        return
    ax.plot(
        steps, scores.mean(0), label=arm.label, marker="o", markersize=3.2, linewidth=2.0, zorder=3, **_look(number)
    )
    if len(scores) > 1:
        ax.fill_between(
            steps, scores.min(0), scores.max(0), color=_look(number)["color"], alpha=0.15, linewidth=0, zorder=2
        )


def _draw_boundaries(ax: Axes, arms: Sequence[Arm]) -> None:
    """Generations as dotted lines; stretches in which some arm ascends, shaded once whoever shares them."""
    for step in sorted({step for arm in arms for step in arm.generations}):
        ax.axvline(step, color="#999999", linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    shared: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for arm in arms:
        if arm.ascents:
            shared.setdefault(arm.ascents, []).append(arm.label)
    for ascents, labels in shared.items():
        for place, (start, stop) in enumerate(ascents):
            label = shorten(f"ascent in {', '.join(labels)}", 44, placeholder=" ...") if place == 0 else None
            ax.axvspan(start, stop, color=ASCEND, alpha=0.25, linewidth=0, zorder=0, label=label)


def _draw_test(ax: Axes, arms: Sequence[Arm], metric: str) -> None:
    ax.set_title("test, at the end")
    for number, arm in enumerate(arms):
        scores = list(arm.test.values())
        if not scores:
            continue
        colour, mean = _look(number)["color"], float(np.mean(scores))
        places = number + (np.arange(len(scores)) - (len(scores) - 1) / 2) * min(0.12, 0.5 / len(scores))
        ax.plot(
            places, scores, linestyle="none", marker="o", markersize=6, color=colour, markeredgecolor="white", zorder=3
        )
        ax.hlines(mean, number - 0.34, number + 0.34, color=colour, linewidth=2.2, zorder=2)
        text = _score(mean, metric, 1 if metric in ("accuracy", "top1", "top5") else 4).removesuffix(" %")
        ax.annotate(
            text,
            (number, max(scores)),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=colour,
        )
    labels = [shorten(arm.label, 24, placeholder="...") for arm in arms]
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
