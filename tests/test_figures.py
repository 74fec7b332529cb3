"""Pictures are made from plain data, with everything readable inside the frame."""

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from llf_ray.figures import Arm, Band, Lane, Line, Marks, Timeline, comparison, timeline


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, as matplotlib had them."""
    figures: list[Figure] = []
    write = FigureCanvasAgg.print_figure

    def keep(canvas, *args, **kwargs):
        figures.append(canvas.figure)
        return write(canvas, *args, **kwargs)

    monkeypatch.setattr(FigureCanvasAgg, "print_figure", keep)
    return figures


def plan(generations: int, label: str = "rest", ascent: float = 0.25) -> Timeline:
    """A plan of 1,000 steps a generation; all but the first begin with an ascent."""
    bands, steps, values = [], list(range(0, 1000 * generations, 10)), []
    for generation in range(generations):
        start, turn = 1000 * generation, 1000 * generation + round(1000 * ascent) * (generation > 0)
        bands += [Band(start=start, stop=turn, name="ascent", generation=generation)] * (turn > start)
        bands.append(Band(start=turn, stop=start + 1000, name="descent", generation=generation))
    for step in steps:
        rising = step >= 1000 and step % 1000 < 1000 * ascent
        values.append((-0.003 if rising else 0.1) * (1 - step % 1000 / 1000))
    lane = tuple((band.start, band.stop, -0.03 if band.name == "ascent" else 1.0) for band in bands)
    return Timeline(
        title=f"{generations} generations",
        total=1000 * generations,
        bands=tuple(bands),
        lanes=(Lane(label=label, spans=lane), Lane(label="held", spans=((0, 1000 * generations, 0.0),))),
        lines=(
            Line(label=label, steps=tuple(steps), values=tuple(values)),
            Line(label="held", steps=(0, 10), values=(0, 0)),
        ),
        marks=(Marks(label="redraw " + label, steps=tuple(range(1000, 1000 * generations, 1000))),),
    )


def tick_labels(axis: Axis) -> list[Text]:
    """Labels of the ticks that are in view."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low - 1e-9 <= tick.get_loc() <= high + 1e-9]
    return [tick.label1 for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]


def texts_inside(figure: Figure) -> None:
    """Every visible text lies inside the picture, and tick labels of one axis do not touch."""
    figure.canvas.draw()
    frame = figure.bbox
    for ax in figure.axes:
        words = [
            ax._left_title,
            *ax.texts,
            ax.xaxis.label,
            ax.yaxis.label,
            *tick_labels(ax.xaxis),
            *tick_labels(ax.yaxis),
        ]  # type: ignore[attr-defined]
        for text in (word for word in words if word.get_visible() and word.get_text()):
            box = text.get_window_extent()
            assert box.x0 >= frame.x0 - 1, text.get_text()
            assert box.x1 <= frame.x1 + 1, text.get_text()
            assert box.y0 >= frame.y0 - 1, text.get_text()
            assert box.y1 <= frame.y1 + 1, text.get_text()
        shown = sorted((label.get_window_extent() for label in tick_labels(ax.yaxis)), key=lambda box: box.y0)
        for lower, upper in pairwise(shown):
            assert lower.y1 <= upper.y0 + 1.5, [label.get_text() for label in tick_labels(ax.yaxis)]


@pytest.mark.parametrize("generations", [1, 2, 4, 11, 60])
def test_a_timeline_keeps_its_words_inside(generations, drawn, tmp_path):
    path = timeline([plan(generations)], tmp_path / "new" / "plan.png")
    pixels = imread(path)
    assert pixels.shape[1] >= 1100
    assert pixels.std() > 0.05
    (figure,) = drawn
    texts_inside(figure)
    names = [text.get_text() for ax in figure.axes for text in ax.texts if text.get_visible()]
    assert ("descent" in names) == (generations <= 11)
    numbered = [int(name) for name in names if name.isdigit()]
    assert numbered == list(range(0, generations, 2 if generations == 60 else 1))


def test_plans_below_one_another_share_their_steps(drawn, tmp_path):
    timeline(
        [plan(1), plan(4, label="a group with a name that is far too long for the margin of a picture")],
        tmp_path / "plan.png",
    )
    (figure,) = drawn
    texts_inside(figure)
    assert {ax.get_xlim() for ax in figure.axes} == {(0.0, 4000.0)}
    assert len({(round(ax.get_position().x0, 6), round(ax.get_position().x1, 6)) for ax in figure.axes}) == 1


def test_ascent_is_drawn_below_zero_on_a_scale_of_its_own(drawn, tmp_path):
    timeline([plan(4)], tmp_path / "plan.png")
    timeline([plan(1)], tmp_path / "flat.png")
    ascending, flat = drawn
    assert len(ascending.axes) == len(flat.axes) + 1
    rates, below = ascending.axes[1:3]
    assert rates.get_ylim()[0] == 0
    assert below.get_ylim()[1] == 0
    assert np.nanmin(
        np.concatenate([line.get_ydata() for line in below.lines if len(line.get_ydata()) > 2])
    ) == pytest.approx(-0.003)


def arms(number: int, seeds: int) -> list[Arm]:
    curves = {seed: [(step, 0.5 + step / 1e4 + seed / 100) for step in range(100, 4001, 100)] for seed in range(seeds)}
    test = {seed: points[-1][1] for seed, points in curves.items()}
    return [
        Arm(label=f"arm_with_a_name_{i}", curves=curves, test=test, generations=(2000,), ascents=((2000, 2400),))
        for i in range(number)
    ]


@pytest.mark.parametrize(("number", "seeds"), [(1, 1), (4, 2), (10, 5)])
def test_a_comparison_shows_mean_band_and_test(number, seeds, drawn, tmp_path):
    path = comparison("a comparison", arms(number, seeds), tmp_path / "comparison.png")
    assert imread(path).std() > 0.05
    (figure,) = drawn
    texts_inside(figure)
    main, side = figure.axes
    curves = [line for line in main.lines if len(line.get_xdata()) == 40]
    assert len(curves) == number
    assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in curves}) == number
    np.testing.assert_allclose(curves[0].get_ydata()[-1], 0.9 + (seeds - 1) / 200)
    assert len([line for line in side.lines if len(line.get_xdata()) == seeds]) == number


def test_a_comparison_that_has_no_scores_yet_is_drawn(tmp_path):
    assert comparison("nothing", [Arm(label="long", curves={0: []}, test={})], tmp_path / "c.png").exists()


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    timeline([plan(2)], tmp_path / "plan.png")
    assert dict(matplotlib.rcParams) == before
