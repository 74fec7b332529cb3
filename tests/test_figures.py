"""Pictures are made from plain data, with everything readable inside the frame."""

from dataclasses import replace
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
from scipy.stats import binomtest

from llf_ray.figures import (
    BLUE,
    SCHEDULES,
    Arm,
    Band,
    Course,
    Courses,
    Differences,
    Interval,
    KeepMap,
    Lane,
    Line,
    Marks,
    Objects,
    Scene,
    Segmented,
    Timeline,
    comparison,
    courses,
    depths,
    detections,
    draw_probes,
    draw_run,
    intervals,
    keep_map,
    keep_maps,
    reliability,
    segmentation_sheet,
    timeline,
)
from llf_ray.journal import Journal, update_run


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


def rate_line(values: list[float], boundary: int) -> Timeline:
    """One group over two phases, a value a step."""
    bands = (Band(start=0, stop=boundary, name="a", generation=0),)
    bands += (Band(start=boundary, stop=len(values), name="b", generation=1),)
    line = Line(label="rest", steps=tuple(range(len(values))), values=tuple(values))
    lane = Lane(label="rest", spans=((0, len(values), 1.0),))
    return Timeline(title="", total=len(values), bands=bands, lanes=(lane,), lines=(line,))


@pytest.mark.parametrize(
    ("values", "gaps"),
    [
        ([0.1 * (1 - step % 50 / 50) for step in range(100)], [50]),  # a restart
        ([0.1] * 50 + [0.02] * 50, [50]),
        ([0.1 * (1 - step / 100) for step in range(100)], []),  # goes on over the boundary
        ([0.1 * (1 - step / 50) for step in range(50)] + [0.01 * step for step in range(50)], []),  # warms up from zero
        ([0.1] * 100, []),
    ],
)
def test_a_rate_that_jumps_at_a_boundary_is_no_slope(values, gaps, drawn, tmp_path):
    timeline([rate_line(values, 50)], tmp_path / "plan.png")
    (line,) = [line for line in drawn[0].axes[1].lines if len(line.get_xdata()) >= 100]
    assert [x for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if np.isnan(y)] == gaps
    assert [y for y in line.get_ydata() if not np.isnan(y)] == values


@pytest.mark.parametrize("scale", [0.07, 0.001, 3.0])
def test_the_ticks_of_the_ascent_reach_its_whole_curve(scale, drawn, tmp_path):
    whole = plan(2)
    line = whole.lines[0]
    ascent = replace(line, values=tuple(value * scale * 30 if value < 0 else value for value in line.values))
    timeline([replace(whole, lines=(ascent,))], tmp_path / "plan.png")
    below = drawn[0].axes[2]
    assert min(below.get_yticks()) <= min(ascent.values)
    assert below.get_ylim()[0] <= min(ascent.values)
    texts_inside(drawn[0])


def test_masks_that_hold_zeros_have_a_hatched_row(drawn, tmp_path):
    held = (Lane(label="alive", spans=((1000, 2000, 0.75),)),)
    timeline([replace(plan(2), held=held)], tmp_path / "plan.png")
    lanes = drawn[0].axes[-1]
    (bar,) = [patch for patch in lanes.patches if patch.get_hatch()]
    assert (bar.get_x(), bar.get_width()) == (1000, 1000)
    row = round(bar.get_y() + bar.get_height() / 2)
    assert lanes.get_yticklabels()[row].get_text() == "held at zero: alive"
    assert lanes.get_yticklabels()[row + 1].get_text() == "redraw rest"
    assert [text.get_text() for text in lanes.texts if text.get_visible()] == ["75 %"]
    alone = replace(held[0], spans=((1000, 2000, float("nan")),))
    timeline([replace(plan(2), held=(alone,))], tmp_path / "plan.png")
    assert not drawn[1].axes[-1].texts, "before it is made nobody knows how much"


def test_a_phase_that_may_end_early_is_hatched_in_its_second_half(drawn, tmp_path):
    bands = [replace(band, until="loss >= 1.3 x" if band.name == "ascent" else "") for band in plan(3).bands]
    timeline([replace(plan(3), bands=tuple(bands))], tmp_path / "plan.png")
    strip = drawn[0].axes[0]
    hatched = [(patch.get_x(), patch.get_width()) for patch in strip.patches if patch.get_hatch()]
    assert hatched == [(1125, 125), (2125, 125)]
    assert drawn[0].axes[-1].get_legend().get_texts()[0].get_text() == "may end early: loss >= 1.3 x"
    texts_inside(drawn[0])


def test_what_rates_leave_out_is_said_beside_them(drawn, tmp_path):
    one = replace(rate_line([0.1] * 100, 50), rates_note="rate of the last layer")
    timeline([one], tmp_path / "plan.png")
    assert [text.get_text() for text in drawn[0].axes[1].get_legend().get_texts()] == ["rate of the last layer"]


@pytest.mark.parametrize("length", range(20, 100, 7))
def test_labels_of_operations_stay_off_their_neighbours(length, drawn, tmp_path):
    words = ("keep 50% largest per network of weights, mask alive rewound to start " * 2)[:length].strip()
    marks = tuple(Marks(label=f"{number} {words}", steps=(100,)) for number in range(4))
    timeline([replace(plan(2), marks=marks)], tmp_path / "plan.png")
    texts_inside(drawn[0])
    boxes = [label.get_window_extent() for label in drawn[0].axes[-1].get_yticklabels() if label.get_text()]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) >= 4
    assert all(lower.y1 <= upper.y0 + 1.5 for lower, upper in pairwise(boxes))


def test_a_long_name_in_one_word_keeps_both_its_ends(drawn, tmp_path):
    names = ["later_layer_redrawn_from_layer3", "later_layer_redrawn_from_layer4"]
    two = [replace(arm, label=name) for arm, name in zip(arms(2, 2), names, strict=True)]
    comparison("x" * 120 + "_end", two, tmp_path / "comparison.png")
    main, side = drawn[0].axes
    ticks = [label.get_text() for label in side.get_xticklabels()]
    assert ticks[0].endswith("layer3")
    assert ticks[1].endswith("layer4")
    assert main._left_title.get_text().endswith("_end") or main.get_title().endswith("_end")


def arms(number: int, seeds: int) -> list[Arm]:
    curves = {seed: [(step, 0.5 + step / 1e4 + seed / 100) for step in range(100, 4001, 100)] for seed in range(seeds)}
    test = {seed: points[-1][1] for seed, points in curves.items()}
    return [
        Arm(label=f"arm_with_a_name_{i}", curves=curves, test=test, generations=(2000,), ascents=((2000, 2400),))
        for i in range(number)
    ]


@pytest.mark.parametrize(("number", "seeds"), [(1, 1), (4, 2), (8, 5)])
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


def test_more_arms_than_colours_have_a_panel_each(drawn, tmp_path):
    every = arms(18, 3)
    late = replace(every[4], curves={seed: points[-1:] for seed, points in every[4].curves.items()}, ascents=())
    every[4] = replace(late, test={0: 0.5, 1: 0.7, 2: 0.9})
    comparison("a comparison", every, tmp_path / "comparison.png")
    (figure,) = drawn
    texts_inside(figure)
    *panels, side = figure.axes
    assert [ax.get_title(loc="left") for ax in panels] == [arm.label for arm in every]
    assert len({ax.get_ylim() for ax in panels}) == 1
    own = [[line for line in ax.lines if line.get_color() == BLUE] for ax in panels]
    assert [len(lines) for lines in own] == [1] * 18, "one in colour"
    assert own[4][0].get_markersize() > own[3][0].get_markersize(), "a single point is seen"
    others = [line for line in panels[0].lines if line.get_color() == "#cccccc"]
    assert len(others) == 17
    ascending = [any(bar.get_transform() == ax.get_xaxis_transform() for bar in ax.collections) for ax in panels]
    assert ascending == [number != 4 for number in range(18)], "whose ascent it is, is where it is drawn"
    assert [label.get_text() for label in tick_labels(side.yaxis)] == [arm.label for arm in every]
    assert [text.get_text() for text in side.texts][4] == "70.0 %"
    boxes = [text.get_window_extent() for text in side.texts]
    assert not any(one.overlaps(other) for one, other in pairwise(boxes))


@pytest.mark.parametrize("number", [2, 8])
def test_the_key_of_a_comparison_lies_beside_its_axes(number, drawn, tmp_path):
    comparison("a comparison", arms(number, 2), tmp_path / "comparison.png")
    (figure,) = drawn
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert not any(ax.get_legend() or box.overlaps(ax.get_window_extent()) for ax in figure.axes)


def colours(drawn: list[Figure], names: list[str], folder: Path) -> dict[str, tuple[object, str]]:
    """Colour and dashes of each name in a picture of these."""
    depths("", {name: [1, 2] for name in names}, ["input"], folder / "d.png")
    lines = zip(names, drawn[-1].axes[0].lines, strict=True)
    return {name: (line.get_color(), str(line._unscaled_dash_pattern)) for name, line in lines}


def test_a_schedule_keeps_its_colour_whoever_else_is_compared(drawn, tmp_path):
    every = colours(drawn, [*SCHEDULES, "my_own", "yours"], tmp_path)
    assert len(set(every.values())) == len(every)
    for few in (["seal", "long"], ["yours", "later_layer"], ["my_own"]):
        assert colours(drawn, few, tmp_path) == {name: every[name] for name in few}


def test_ascents_are_thin_bars_in_the_colour_of_their_arm(drawn, tmp_path):
    one, two, three = arms(3, 1)
    comparison("", [one, replace(two, ascents=()), replace(three, ascents=((100, 300),))], tmp_path / "c.png")
    main = drawn[0].axes[0]
    curves = {line.get_label(): line.get_color() for line in main.lines}
    bars = [bar for bar in main.collections if bar.get_transform() == main.get_xaxis_transform()]
    assert [matplotlib.colors.to_hex(bar.get_facecolor()[0]) for bar in bars] == [
        *(matplotlib.colors.to_hex(curves[arm.label]) for arm in (one, three))
    ]
    boxes = [bar.get_paths()[0].get_extents(bar.get_transform()) for bar in bars]
    assert all(box.height < 0.02 * main.get_window_extent().height for box in boxes)
    assert not boxes[0].overlaps(boxes[1])


def test_means_are_written_above_their_seeds(drawn, tmp_path):
    scores = {0: 0.70, 1: 0.90, 2: 0.83}
    comparison("", [replace(arms(1, 1)[0], test=scores)], tmp_path / "c.png")
    (text,) = drawn[0].axes[1].texts
    assert text.get_text() == "81.0"
    assert text.xy[1] == pytest.approx(0.90)


def test_a_comparison_that_has_no_scores_yet_is_drawn(tmp_path):
    assert comparison("nothing", [Arm(label="long", curves={0: []}, test={})], tmp_path / "c.png").exists()


def keep_map_of(side: int, channels: int, seed: int = 0) -> KeepMap:
    """Patches of 4 pixels, cut behind blocks 2 and 3 of 5 or never."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (side, side, channels), dtype=np.uint8)
    depth = random.choice([2, 3, 5], (side // 4, side // 4))
    return KeepMap(name=f"{seed}.png", answer="a coat 51.2 %", pixels=pixels, depth=depth)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_keep_map_shows_kept_patches_as_they_are_and_others_in_the_colour_of_their_block(channels, drawn, tmp_path):
    picture = keep_map_of(24, channels)
    assert keep_map(picture, (2, 3), 5, tmp_path / "map.png") == tmp_path / "map.png"
    (figure,) = drawn
    plain, cut, bar = figure.axes
    shown = cut.images[0].get_array()
    inside = np.kron(picture.depth, np.ones((4, 4), dtype=int))
    whole = np.broadcast_to(picture.pixels, (24, 24, 3)) / 255
    np.testing.assert_allclose(shown[inside == 5], whole[inside == 5])
    np.testing.assert_array_equal(plain.images[0].get_array(), np.broadcast_to(picture.pixels, (24, 24, 3)))
    legend = bar.collections[-1]  # a colour for each block
    grey = whole.mean(2, keepdims=True)
    colours = [legend.cmap(legend.norm(number))[:3] for number in (0, 1)]
    for block, colour in zip((2, 3), colours, strict=True):
        np.testing.assert_allclose(shown[inside == block], (0.28 * grey + 0.72 * np.asarray(colour))[inside == block])
    assert [label.get_text() for label in bar.get_yticklabels()] == ["2", "3"]
    assert f"{100 * (picture.depth == 5).mean():.0f} % of patches kept" in cut.get_title(loc="left")


def test_frames_of_a_keep_map_run_between_kept_and_cut_patches(drawn, tmp_path):
    depth = np.full((6, 6), 2)
    depth[1, 2:4] = 5
    picture = replace(keep_map_of(24, 3), depth=depth)
    keep_map(picture, (2, 3), 5, tmp_path / "map.png")
    (frame,) = drawn[0].axes[1].collections
    lines = {tuple(map(tuple, line)) for line in frame.get_segments()}
    around = {((8, 4), (12, 4)), ((12, 4), (16, 4)), ((8, 8), (12, 8)), ((12, 8), (16, 8))}
    around |= {((8, 4), (8, 8)), ((16, 4), (16, 8))}
    assert lines == {tuple((x - 0.5, y - 0.5) for x, y in line) for line in around}


@pytest.mark.parametrize("number", [1, 7])
def test_a_sheet_of_keep_maps_has_a_picture_and_a_map_for_each(number, drawn, tmp_path):
    keep_maps("what is cut where", [keep_map_of(24, 3, seed) for seed in range(number)], (2, 3), 5, tmp_path / "s.png")
    figure = drawn[0]
    *axes, bar = figure.axes
    pictured = [ax for ax in axes if ax.images]
    assert len(pictured) == 2 * number
    width, height = figure.canvas.get_width_height()
    for text in (*(ax.title for ax in pictured), *(ax._left_title for ax in pictured), bar.xaxis.label):
        box = text.get_window_extent()
        assert not text.get_text() or (box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height)


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    timeline([plan(2)], tmp_path / "plan.png")
    assert dict(matplotlib.rcParams) == before


# ------------------------------------------------------------------------------------------------------------------ run


def journalled(folder: Path, *, steps: int = 200, end: str = "finished") -> Path:
    """A run of two generations of 100 steps: the second begins with an operation and an ascent of 20 steps."""
    phases = [(0, 100, "train", 0, {"rest": 1.0}), (100, 120, "ascent", 1, {"early": -0.05, "rest": 1.0})]
    phases.append((120, 200, "descent", 1, {"rest": 1.0}))
    update_run(folder, name="seal", state=end)
    with Journal(folder / "journal.jsonl") as journal:
        for index, (start, stop, name, generation, directions) in enumerate(phases):
            if start >= steps:
                break
            journal.append(
                {
                    **{"kind": "phase", "step": start, "index": index, "name": name, "generation": generation},
                    **{"generations": 2, "phases": 3, "stop": stop, "total": 200, "directions": directions},
                }
            )
            if index == 1:
                operation = {"kind": "operation", "step": start, "generation": 1, "operation": "redraw head"}
                journal.append({**operation, "entries": 1, "tensors": 1, "masks": {"alive": [5, 8]}})
            for step in range(start + 10, min(stop, steps) + 1, 10):
                rates = {f"lr/{group}": 0.1 for group in directions}
                rates |= {f"direction/{group}": direction for group, direction in directions.items()}
                journal.append({"kind": "metrics", "step": step, "values": {"train/loss": 2 - step / 200, **rates}})
            score = {"kind": "score", "step": min(stop, steps), "role": "validation"}
            journal.append({**score, "values": {"loss": 1.0, "accuracy": 0.5 + stop / 1000}})
        if end == "finished":
            journal.append({"kind": "score", "step": steps, "role": "test", "values": {"loss": 1.0, "accuracy": 0.68}})
        journal.append({"kind": "state", "state": end})
    return folder


def seal_plan(last: int = 200) -> Timeline:
    """The plan of that run: every rate falls from 0.1 to 0 within a phase."""
    ends = ((0, 100), (100, 120), (120, last))
    rates = [0.1 * (stop - step) / (stop - start) for start, stop in ends for step in range(start, stop)]
    early = [-0.05 * rate if 100 <= step < 120 else rate for step, rate in enumerate(rates)]
    names = (("train", 0), ("ascent", 1), ("descent", 1))
    steps = tuple(range(last))
    return Timeline(
        title="planned",
        total=last,
        bands=tuple(
            Band(start=start, stop=stop, name=name, generation=generation, until="loss >= 2" * (name == "ascent"))
            for (start, stop), (name, generation) in zip(ends, names, strict=True)
        ),
        lanes=(
            Lane(label="early", spans=tuple((*end, -0.05 if end[0] == 100 else 1.0) for end in ends)),
            Lane(label="rest", spans=tuple((*end, 1.0) for end in ends)),
        ),
        lines=(
            Line(label="early", steps=steps, values=tuple(early)),
            Line(label="rest", steps=steps, values=tuple(rates)),
        ),
        marks=(Marks(label="redraw head", steps=(100,)), Marks(label="new optimizer", steps=(100,))),
        held=(Lane(label="alive", spans=((0, 100, float("nan")), (100, last, float("nan")))),),
    )


def test_a_run_is_drawn_from_its_journal_and_its_plan(drawn, tmp_path):
    path = draw_run(journalled(tmp_path / "seal"), tmp_path / "figures" / "run.png", seal_plan())
    assert imread(path).std() > 0.05
    (figure,) = drawn
    texts_inside(figure)
    strip, loss, accuracy, rates, ascent, lanes = figure.axes
    assert strip._left_title.get_text() == "seal: finished, 200 optimizer steps"  # type: ignore[attr-defined]
    assert loss.lines[0].get_ydata()[-1] == pytest.approx(1.0)
    assert [tuple(point) for point in accuracy.lines[0].get_xydata()] == [
        *(pytest.approx(point) for point in [(100, 0.6), (120, 0.62), (200, 0.7)])
    ]
    assert tuple(accuracy.lines[1].get_xydata()[0]) == (200, 0.68)
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["test 68.0 %"]
    for ax in (loss, accuracy):
        assert {line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1} >= {100, 120}
    assert np.nanmin(ascent.lines[0].get_ydata()) == pytest.approx(-0.005)
    rest = rates.lines[1]
    assert rest.get_ydata()[:100] == pytest.approx([0.1 * (1 - step / 100) for step in range(100)]), "the plan's curve"
    names = [label.get_text() for label in lanes.get_yticklabels()]
    assert names == ["early", "rest", "held at zero: alive", "redraw head", "new optimizer"]
    assert [text.get_text() for text in lanes.texts if text.get_visible()] == ["37.5 %"], "since its mask was made"
    assert not [patch for patch in strip.patches if patch.get_hatch()], "how long the ascent took is known"


def test_a_run_that_was_cut_is_drawn_to_its_own_end(drawn, tmp_path):
    draw_run(journalled(tmp_path / "seal", steps=170), tmp_path / "run.png", seal_plan(170))
    assert drawn[0].axes[0].get_xlim() == (0, 170)
    assert drawn[0].axes[0].patches[-1].get_width() == 50


def test_a_run_that_failed_is_drawn_as_far_as_it_came(drawn, tmp_path):
    draw_run(journalled(tmp_path / "seal", steps=90, end="failed"), tmp_path / "run.png", seal_plan())
    title = drawn[0].axes[0]._left_title.get_text()
    assert title == "seal: failed, 90 of 200 optimizer steps"
    assert drawn[0].axes[2].get_legend() is None
    strip, *_, lanes = drawn[0].axes
    for ax in (strip, lanes):
        veil = [patch for patch in ax.patches if patch.get_alpha() == 0.7]
        assert [(patch.get_x(), patch.get_width()) for patch in veil] == [(90, 110)], "what was not done is faint"
    assert [patch.get_x() for patch in strip.patches if patch.get_hatch()] == [110], "and may still end early"


def test_a_run_without_a_phase_is_not_drawn(tmp_path):
    update_run(tmp_path / "seal", name="seal")
    with pytest.raises(ValueError, match="has begun no phase"):
        draw_run(tmp_path / "seal", tmp_path / "run.png", seal_plan())


def test_courses_are_panels_with_one_legend_and_the_end_that_is_known(drawn, tmp_path):
    values = ((0.1, 0.2), (0.2, 0.4), (0.3, 0.2))
    panels = [
        Courses(
            title=title,
            time="steps of the game",
            measure="kept",
            top=1.1,
            courses=[Course(label=label, times=(0, 10, 20), values=values) for label in labels],
        )
        for title, labels in (("one", ("a", "b")), ("other", ("b", "c")), ("third", ("a",)))
    ]
    courses(panels, tmp_path / "made" / "courses.png")
    (figure,) = drawn
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["one", "other", "third"]
    assert all(ax.get_ylim() == (0, 1.1) for ax in figure.axes)
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([0.15, 0.3, 0.25])
    assert figure.axes[0].lines[1].get_color() == figure.axes[1].lines[0].get_color()  # a method keeps its look


# ---------------------------------------------------------------------------------------------- probes and studies


COUNTS = {"clean": 900, "mislabelled": 90}


def probed(folder: Path, perturbations: int) -> Path:
    """A run that was probed five times."""
    with Journal(folder / "journal.jsonl") as journal:
        for step in range(100, 600, 100):
            for number in range(perturbations + 1):
                shares = {"clean": 0.9, "mislabelled": step / 600}
                left = {"clean": 0.9, "mislabelled": 0.9 - 0.1 * number} if number else dict.fromkeys(shares, 1.0)
                kept = {f"{group}/retention": share for group, share in left.items()}
                values = {f"{group}/accuracy": share * left[group] for group, share in shares.items()}
                kept["selectivity/mislabelled"] = left["clean"] - left["mislabelled"]
                name = f"magnitude {number} redraw of a long name" if number else "before"
                record = {"kind": "probe", "step": step, "perturbation": name, "counts": COUNTS}
                journal.append({**record, "values": values if number == 0 else values | kept})
    update_run(folder, name=folder.name)
    return folder


@pytest.mark.parametrize("perturbations", [1, 4, 9])
def test_probes_have_a_panel_for_each_perturbation(perturbations, drawn, tmp_path):
    path = draw_probes(probed(tmp_path / "run", perturbations), tmp_path / "probes.png")
    assert path is not None
    (figure,) = drawn
    texts_inside(figure)
    assert len(figure.axes) == 2 + perturbations, "what is right, selectivity, and a panel each"
    assert "so many per cent of the weights are forgotten" in figure.subfigs[1].get_supxlabel()
    names = [text.get_text() for text in figure.subfigs[1].legends[0].get_texts()]
    assert names == ["clean", "mislabelled"], "colours are those of groups alone"
    _, selectivity, *panels = figure.axes
    rows = [" ".join(label.get_text().split()) for label in tick_labels(selectivity.yaxis)]
    assert rows == [f"magnitude {number} redraw of a long name" for number in range(1, perturbations + 1)]
    (found,) = [line.get_xdata()[0] for line in selectivity.lines if line.get_marker() == "D"][:1]
    assert found == pytest.approx(0.1)
    right = {"clean": 0.9 * 0.9, "mislabelled": 500 / 600 * 0.8}  # after the first perturbation, at the last probe
    ends = {
        group: np.array(binomtest(round(share * COUNTS[group]), COUNTS[group]).proportion_ci(method="wilson")[:])
        for group, share in right.items()
    }
    kept = {"clean": ends["clean"] / 0.9, "mislabelled": ends["mislabelled"] / (500 / 600)}
    for group, band in zip(("clean", "mislabelled"), panels[0].collections, strict=True):
        last = [y for x, y in band.get_paths()[0].vertices if x == 500]
        assert (min(last), max(last)) == pytest.approx(tuple(kept[group]), abs=1e-4)
    (low, high), (other_low, other_high) = kept["clean"], kept["mislabelled"]
    bar = selectivity.collections[0].get_segments()[0][:, 0]
    assert bar[0] == pytest.approx(0.1 - np.hypot(0.9 - low, other_high - 0.8), abs=1e-4)
    assert bar[1] == pytest.approx(0.1 + np.hypot(high - 0.9, 0.8 - other_low), abs=1e-4)
    before = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert before["mislabelled"] == pytest.approx([step / 600 for step in range(100, 600, 100)])


def test_a_run_without_probes_has_no_picture_of_them(tmp_path):
    assert draw_probes(journalled(tmp_path / "seal"), tmp_path / "probes.png") is None
    assert not (tmp_path / "probes.png").exists()


def test_a_sweep_shows_means_bands_and_seeds(drawn, tmp_path):
    lines = [
        Course(label="a", times=(1.0, 0.5), values=((0.1, 0.3), (0.2, 0.4))),
        Course(label="b", times=(1.0,), values=((0.5,),)),
    ]
    panel = Courses(title="t", time="x", measure="y", metric="accuracy", courses=lines, dots=True)
    courses([replace(panel, shares=True, level=("dense", 0.25))], tmp_path / "s.png")
    line = replace(lines[0], times=(0, 1))
    courses([replace(panel, courses=[line], names=["one\n1 %", "two\n2 %"], limits=(0.0, 0.2))], tmp_path / "n.png")
    figure, named = drawn
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "dense"]
    assert not named.legends[0].get_texts(), "a single line needs no name"
    said = "line: mean over seeds; band: from the lowest seed to the highest"
    assert [one.legends[0].get_title().get_text() for one in drawn] == [said, said]
    alone = replace(line, values=((0.1,), (0.2,)))
    courses([replace(panel, courses=[alone], names=["one", "two"])], tmp_path / "a.png")
    assert not drawn[-1].legends, "one line of one seed has nothing to explain"
    courses([replace(panel, courses=[alone], names=["one", "two"])], tmp_path / "a.png", note="what y is")
    assert drawn[-1].legends[0].get_title().get_text() == "what y is"
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [list(one.get_ydata()) for one in dots] == [[0.1, 0.3, 0.2, 0.4], [0.5]]
    texts_inside(figure)
    texts_inside(named)
    means = next(line for line in figure.axes[0].lines if line.get_label() == "a")
    assert list(means.get_ydata()) == pytest.approx([0.2, 0.3])
    assert figure.axes[0].get_xlim()[0] > figure.axes[0].get_xlim()[1], "shares shrink to the right"
    assert named.axes[0].get_ylim()[1] == 0.2


def test_a_course_of_one_time_is_seen(drawn, tmp_path):
    lines = [
        Course(label="none", times=(180,), values=((0.2, 0.4),)),
        Course(label="a", times=(0, 180), values=((1,),) * 2),
    ]
    courses([Courses(title="t", time="x", measure="y", courses=lines)], tmp_path / "c.png")
    (ax,) = drawn[0].axes
    one, line = ax.lines
    assert (one.get_marker(), list(one.get_ydata())) == ("D", [pytest.approx(0.3)])
    assert line.get_marker() == "None", "a line needs no mark"
    assert [tuple(end) for end in ax.collections[1].get_segments()[0]] == [(180, 0.2), (180, 0.4)]


def test_eight_panels_fit_a_page(drawn, tmp_path):
    line = Course(label="a", times=(0, 10), values=((0.1,), (0.2,)))
    panels = [Courses(title=str(number), time="x", measure="y", courses=[line]) for number in range(8)]
    courses(panels, tmp_path / "c.png", columns=3)
    assert drawn[0].get_figwidth() < 13
    texts_inside(drawn[0])


def test_intervals_that_hold_zero_are_grey(drawn, tmp_path):
    rows = [
        Interval(label="up", mean=2.0, ends=(1.0, 3.0), by_seed=(1.5, 2.5)),
        Interval(label="unsure", mean=0.5, ends=(-1.0, 2.0), by_seed=(0.0, 1.0)),
        Interval(label="one seed", mean=0.5, ends=None, by_seed=(0.5,)),
    ]
    panels = [Differences(title=f"to {number}", unit="points", rows=rows[number:]) for number in (1, 0, 2, 1, 0)]
    intervals("differences", panels, tmp_path / "i.png")
    (figure,) = drawn
    texts_inside(figure)
    assert figure.get_figwidth() < 11.5, "three side by side"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "the 95 % interval leaves out zero",
        "it holds zero, or there is none",
        "a seed",
    ]
    colours = [line.get_color() for line in figure.axes[1].lines if line.get_marker() == "D"]
    assert len(figure.axes) == 5
    assert [label.get_text() for label in tick_labels(figure.axes[3].yaxis)] == ["unsure", "one seed", "up"]
    assert colours[0] != colours[1] == colours[2]


@pytest.mark.parametrize("number", [1, 4])
def test_depths_of_several_networks_lie_over_one_another(tmp_path, drawn, number):
    probes = ["input", "bn1", *(f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)), "softmax"]
    counts = np.random.default_rng(0).integers(1, 90, (number, len(probes) + 1))
    path = depths("depth", {f"run-{n}": row.tolist() for n, row in enumerate(counts)}, probes, tmp_path / "d.png")
    assert imread(path).std() > 0.05
    (figure,) = drawn
    texts_inside(figure)
    (ax,) = figure.axes
    shares = [patch.get_data().values for patch in ax.patches if not patch.get_fill()]
    assert np.allclose(shares, counts / counts.sum(1, keepdims=True))
    assert len(ax.get_xticks()) == len(probes) + 1
    means = [float(line.get_xdata()[0]) for line in ax.lines]
    assert np.allclose(means, counts @ np.arange(len(probes) + 1) / counts.sum(1))


def test_a_reliability_diagram_has_the_bins_that_hold_something(tmp_path, drawn):
    bins = [(0, 0.0, 0.0), (10, 0.4, 0.5), (30, 0.9, 0.8)]
    path = reliability("reliability", {"one": bins, "other": bins[::-1]}, tmp_path / "r.png")
    assert imread(path).std() > 0.05
    (figure,) = drawn
    texts_inside(figure)
    line = figure.axes[0].lines[1]
    assert line.get_xydata().tolist() == [[0.4, 0.5], [0.9, 0.8]]
    assert line.get_label() == "one: error 10.0 %"


@pytest.mark.parametrize(("classes", "cut"), [(2, False), (11, True), (150, True)])
def test_segmented_images_have_a_row_each_and_a_colour_for_each_class_that_occurs(classes, cut, drawn, tmp_path):
    random = np.random.default_rng(0)
    scenes = []
    for high, wide, channels in ((30, 40, 3), (36, 36, 1)):
        labels = random.integers(0, min(classes, 12), (high, wide))
        labels[:3] = 255
        scenes.append(
            Segmented(
                image=random.integers(0, 255, (high, wide, channels)).astype(np.uint8),
                labels=labels,
                predicted={"dense": labels.clip(max=classes - 1), "pruned": np.zeros_like(labels)},
                depth={"pruned": np.where(labels > 0, 6, 1)} if cut else {},
            )
        )
    names = [f"class {number}" for number in range(classes)]
    path = segmentation_sheet("two images", scenes, names, tmp_path / "sheet.png", blocks=6)
    assert imread(path).std() > 0.05
    (figure,) = drawn
    texts_inside(figure)
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == 2 * (5 if cut else 4)
    assert [ax.get_title(loc="left") for ax in panels[:4]] == ["image", "labels", "dense", "pruned"]
    shown = panels[1].images[0].get_array()
    assert (shown[:3] == 1).all(), "what has no class is white"
    colours = {tuple(pixel) for pixel in shown[3:].reshape(-1, 3)}
    assert len(colours) == min(classes, 12)
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend == {*names[:12], names[-1]}
    if cut:
        assert [label.get_text() for label in figure.axes[-1].get_yticklabels()] == ["1", "2", "3", "4", "5", "6"]


# ----------------------------------------------------------------------------------------------------------- detections


def scene(classes=1, *, depth=True, channels=1):
    """A grey image with two objects, one of them found a little to the right."""
    pixels = np.full((40, 60, channels), 90, dtype=np.uint8)
    masks = np.zeros((2, 40, 60), dtype=bool)
    masks[0, 5:20, 4:24], masks[1, 22:38, 40:58] = True, True
    boxes = np.array([[4, 5, 24, 20], [40, 22, 58, 38]], dtype=np.float32)
    truth = Objects(boxes=boxes, labels=np.array([0, classes - 1]), masks=masks)
    found = Objects(boxes=boxes[:1] + 2, labels=np.array([0]), masks=None, scores=np.array([0.875]))
    cut = np.array([[5, 1, 1], [2, 5, 5]])
    return Scene(pixels=pixels, truth=truth, found=found, depth=cut if depth else None, covered=(48, 72), blocks=5)


def test_objects_are_drawn_where_they_are(drawn, tmp_path):
    path = detections("Two", [scene(2), scene(2)], ("shirt", "ankle boot"), tmp_path / "figure.png")
    assert path.exists()
    (figure,) = drawn
    axes = figure.axes
    assert len(axes) == 6
    boxes = [patch.get_bbox().extents.tolist() for patch in axes[0].patches]
    assert boxes == [[3.5, 4.5, 23.5, 19.5], [39.5, 21.5, 57.5, 37.5]], "edges of pixels, not their centres"
    assert [text.get_text() for text in axes[0].texts] == ["shirt", "ankle boot"]
    assert [text.get_text() for text in axes[1].texts] == ["shirt 88 %"]
    veiled = axes[0].get_images()[-1].get_array()[..., 3] > 0
    assert veiled.sum() == 15 * 20 + 16 * 18
    veil = axes[2].get_images()[-1]
    assert veil.get_extent() == [-0.5, 71.5, 47.5, -0.5], "patches reach beyond the image"
    assert axes[2].get_xlim() == (-0.5, 59.5)
    alphas = veil.get_array()[..., 3]
    assert alphas[0, 1] > alphas[1, 0] > alphas[0, 0] == 0, "the earlier cut, the thicker"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["1", "2", "all 5"]


def test_one_class_needs_no_names_and_a_dense_network_no_third_column(drawn, tmp_path):
    detections("One", [scene(depth=False, channels=3)], ("nucleus",), tmp_path / "figure.png")
    (figure,) = drawn
    assert len(figure.axes) == 2
    assert not figure.axes[0].texts
    first, second = (patch.get_edgecolor() for patch in figure.axes[0].patches)
    assert first != second
