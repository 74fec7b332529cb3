"""What a person sees of a run: on a screen, in a log file, of one run and of many."""

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from llf_ray import display as module
from llf_ray.display import Display, duration, runs_table, shortened, watch
from llf_ray.journal import Journal, driver_stamp, update_run

WIDTHS = (80, 120)


def records(total: int = 400, seconds: float = 100.0, accuracy: float = 0.7) -> Iterator[dict]:
    """The journal of a whole run of four generations, each an ascent and a descent."""
    each = total // 4

    def at(step: int) -> float:
        return 1000.0 + seconds * step / total

    yield {"kind": "state", "time": 1000.0, "state": "starting", "message": ""}
    yield {"kind": "state", "time": 1000.0, "state": "running", "message": ""}
    for index in range(8):
        first = index // 2 * each + (each // 5 if index % 2 else 0)
        stop = (index + 1) // 2 * each if index % 2 else first + each // 5
        name, early = ("descent", 1.0) if index % 2 else ("ascent", -0.01)
        yield {
            **{"kind": "phase", "step": first, "time": at(first), "index": index, "name": name, "stop": stop},
            **{"generation": index // 2, "generations": 4, "phases": 8, "total": total},
            "directions": {"stem": early, "layer1": early, "layer2": 1.0, "head": 1.0},
        }
        if index % 2 == 0:
            yield {
                **{"kind": "operation", "step": first, "time": at(first), "generation": index // 2},
                **{"operation": "redraw(layer2, head)", "entries": 123456, "tensors": 14},
            }
        for step in range(first + 10, stop + 1, 10):
            values = {"train/loss": 2.0 - step / total, "train/accuracy": accuracy * step / total}
            values |= {"images_per_second": 912.4, "lr/stem": 0.1}
            yield {"kind": "metrics", "step": step, "time": at(step), "values": values}
        score = {"accuracy": accuracy * stop / total, "loss": 1.0}
        yield {
            **scored("validation", stop, at(stop)),
            "generation": index // 2,
            "phase": index,
            "values": score,
        }
    yield {**scored("test", total, at(total)), "values": {"accuracy": accuracy, "loss": 1.1}}
    yield {"kind": "state", "time": at(total), "state": "finished", "message": ""}


def scored(role: str, step: int, time: float) -> dict:
    return {"kind": "score", "step": step, "time": time, "role": role}


def first_half() -> list[dict]:
    return [record for record in records() if record.get("step", 0) <= 210 and record.get("state") != "finished"]


def screen(width: int, height: int = 25) -> Console:
    return Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=True,
        record=True,
        color_system="truecolor",
        legacy_windows=False,
        _environ={},
    )


def shown(display: Display, width: int) -> str:
    console = screen(width)
    console.print(display.render())
    return console.export_text()


def plain() -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=False, highlight=False, _environ={})


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_live_picture_of_one_run_says_all_and_fits(width: int) -> None:
    display = Display(["seal"], console=screen(width), clock=lambda: 1052.5)
    for record in first_half():
        display.update("seal", record)
    text = shown(display, width)
    for words in (
        *(
            "seal  running",
            "generation 2 of 0-3",
            "phase ascent (5 of 8)",
            "ascend x0.01 stem, layer1",
            "descend layer2",
        ),
        *(
            "step 210/400",
            "52 %",
            "0:48 left",
            "loss 1.475",
            "accuracy 36.8 %",
            "912 images/s",
            "validation 35.0 %",
        ),
        "last operation: redraw(layer2, head), 123,456 entries in 14 tensors",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) <= 6


@pytest.mark.parametrize("width", WIDTHS)
def test_the_live_picture_of_a_comparison_has_a_line_for_each_training(width: int) -> None:
    names = [f"{arm}-seed{seed}" for seed in (0, 1) for arm in ("long", "restarts", "seal", "later_layer")]
    names.append("a-very-long-name-of-an-ablation-with-frozen-early-layers-and-reversed-order-seed1")
    display = Display(names, title="compare", console=screen(width), clock=lambda: 1052.5)
    for record in records():
        display.update("long-seed0", record)
    for record in first_half():
        display.update("restarts-seed0", record)
    text = shown(display, width)
    lines = text.splitlines()
    assert lines[0].startswith("compare  1 of 9 trainings done, 0:52 so far, about 12:28 left")
    assert [line.split()[:2] for line in lines[2:5]] == [
        *(["long-seed0", "finished"], ["restarts-seed0", "running"], ["seal-seed0", "waiting"])
    ]
    assert "400/400  70.0 %  70.0 %" in lines[2]
    assert "restarts-seed0  running  generation 2 of 0-3" in text
    assert "a-very" in lines[10]
    assert lines[10].split()[0].endswith("seed1")
    assert max(map(len, lines)) <= width


def test_a_low_screen_shows_the_lines_around_the_active_training() -> None:
    names = [f"run{number}" for number in range(40)]
    display = Display(names, console=screen(80, height=20), clock=lambda: 1052.5)
    for record in first_half():
        display.update("run20", record)
    text = shown(display, 80)
    assert len(text.splitlines()) <= 20
    assert "run20" in text
    assert "and 31 more" in text
    assert "run39" not in text
    console = screen(80, height=20)
    console.print(display.picture())  # what stays after the end has them all
    assert set(names) <= set(console.export_text().split())


def test_many_groups_are_told_by_what_they_do() -> None:
    display = Display(["vit"], console=screen(80), clock=lambda: 1000.0)
    groups = {f"blocks.{number}": 0.0 if number < 4 else 1.0 for number in range(12)}
    phase = {
        "kind": "phase",
        "step": 0,
        "time": 1.0,
        "index": 0,
        "name": "thaw",
        "total": 10,
        "directions": groups,
    }
    display.update("vit", phase)
    text = shown(display, 80)
    assert "hold blocks.0, blocks.1, blocks.2, blocks.3" in text
    assert max(map(len, text.splitlines())) <= 80


def test_names_with_brackets_are_no_markup() -> None:
    display = Display(["run[red]x[/red]"], console=screen(80), clock=lambda: 0.0)
    display.update("run[red]x[/red]", {"kind": "note", "time": 1.0, "message": "[bold]careful[/bold]"})
    text = shown(display, 80)
    assert "run[red]x[/red]" in text
    assert "[bold]careful[/bold]" in text


def test_a_failed_run_says_why() -> None:
    console = screen(80)
    with Display(["seal"], console=console) as display:
        for record in first_half():
            display.update("seal", record)
        failed = {"kind": "state", "time": 1060.0, "state": "failed"}
        display.update("seal", {**failed, "message": "the loss is NaN in phase 4 (ascent) at step 211"})
    assert "the loss is NaN in phase 4 (ascent) at step 211" in console.export_text()


def test_a_comparison_ends_with_the_reasons_of_those_that_failed() -> None:
    display = Display(["a", "b"], console=screen(80), clock=lambda: 0.0)
    display.update("a", {"kind": "state", "time": 1.0, "state": "failed", "message": "the loss is NaN"})
    display.update("b", {"kind": "state", "time": 2.0, "state": "finished", "message": "done"})
    assert shown(display, 80).splitlines()[-1] == "a: the loss is NaN"


def test_time_left_starts_anew_after_a_restart() -> None:
    display = Display(["seal"], console=screen(80), clock=lambda: 5000.0)
    for record in first_half():
        display.update("seal", record)
    display.update("seal", {"kind": "state", "time": 4990.0, "state": "running", "message": "resumed"})
    assert " left" not in shown(display, 80)


GOLDEN = """\
starting
running
step 0/400  gen 0, ascent  (stem, layer1 ascend x0.01; layer2, head descend)
step 20/400  gen 0, ascent  validation accuracy 3.5 %  loss 1.000  (912 images/s, 1:35 left)
step 20/400  gen 0, descent  (stem, layer1, layer2, head descend)
step 100/400  gen 0, descent  validation accuracy 17.5 %  loss 1.000  (912 images/s, 1:15 left)
step 100/400  gen 1, ascent  (stem, layer1 ascend x0.01; layer2, head descend)
"""


def test_a_log_file_gets_calm_plain_lines() -> None:
    console = plain()
    with Display(["seal"], console=console) as display:
        for record in records(seconds=200.0):
            display.update("seal", record)
    lines = text_of(console).splitlines()
    assert lines[: len(GOLDEN.splitlines())] == [
        line.replace("1:35", "3:10").replace("1:15", "2:30") for line in GOLDEN.splitlines()
    ]
    assert lines[-2].startswith("step 400/400  gen 3, descent  test accuracy 70.0 %  loss 1.100")
    assert lines[-1] == "finished"
    assert "\x1b" not in text_of(console)
    assert text_of(console).isascii()


def test_a_fast_run_does_not_flood_a_log_file() -> None:
    console = plain()
    with Display(["seal"], console=console) as display:
        for record in records(total=40_000, seconds=15.0):
            display.update("seal", record)
    assert len(text_of(console).splitlines()) <= 9


def test_a_long_phase_says_once_a_minute_that_it_goes_on() -> None:
    console = plain()
    with Display(["seal"], console=console) as display:
        for record in list(records(total=4000, seconds=20_000.0))[:60]:
            display.update("seal", record)
    lines = [line for line in text_of(console).splitlines() if "loss" in line]
    assert 20 <= len(lines) <= 45
    assert lines[0].startswith("step 20/4000  gen 0, ascent  loss 1.995  accuracy 0.4 %")


def test_lines_of_several_runs_say_whose_they_are() -> None:
    console = plain()
    with Display(["a", "b"], console=console) as display:
        display.update("b", {"kind": "state", "time": 1.0, "state": "running"})
    assert text_of(console) == "b: running\n"


def test_a_display_follows_journals_that_appear_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.01)
    console = plain()
    with Display(console=console) as display:
        display.follow({"a": tmp_path / "a"})
        with Journal(tmp_path / "a" / "journal.jsonl") as journal:
            for record in records():
                journal.append(record)
    assert text_of(console).splitlines()[-1] == "finished"


def test_a_broken_record_stops_the_display_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.01)
    (tmp_path / "journal.jsonl").write_text('{"kind":"phase"}\n')
    with Display(console=plain()) as display:
        display.follow({"a": tmp_path})
        assert display._thread is not None
        display._thread.join(5)
        assert not display._thread.is_alive()


# ------------------------------------------------------------------------------------------ watch and listing


def write_run(folder: Path, what: list[dict], **run: object) -> None:
    update_run(folder, **{"name": folder.name, "created": 1000.0, **run})
    with Journal(folder / "journal.jsonl") as journal:
        for record in what:
            journal.append(record)


def test_watch_once_shows_where_a_run_stands(tmp_path: Path) -> None:
    write_run(tmp_path / "seal", first_half(), driver=driver_stamp())
    console = plain()
    assert watch(tmp_path / "seal", once=True, console=console) == "running"
    assert "step 210/400" in text_of(console)
    assert "\x1b" not in text_of(console)


def test_watch_follows_a_live_run_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.01)
    everything = list(records())
    write_run(tmp_path / "seal", everything[:30], driver=driver_stamp())

    def go_on() -> None:
        with Journal(tmp_path / "seal" / "journal.jsonl") as journal:
            for record in everything[30:]:
                time.sleep(0.002)
                journal.append(record)

    writer = threading.Thread(target=go_on)
    console = plain()
    writer.start()
    assert watch(tmp_path / "seal", console=console) == "finished"
    writer.join()
    lines = text_of(console).splitlines()
    assert lines[-1] == "finished"
    assert not any(line.startswith("step 0/") for line in lines)  # what was over before is no news


def test_watch_ends_when_the_driver_is_gone(tmp_path: Path) -> None:
    write_run(tmp_path / "seal", first_half(), driver={**driver_stamp(), "started": "1"})
    console = plain()
    assert watch(tmp_path / "seal", console=console) == "lost"
    assert text_of(console).startswith("lost: its driver is gone")


def test_watch_shows_the_trainings_of_a_comparison(tmp_path: Path) -> None:
    update_run(tmp_path / "compare", name="compare")
    write_run(tmp_path / "compare" / "long", list(records()), parent="..")
    write_run(tmp_path / "beside", list(records()), parent="../compare")
    console = plain()
    assert watch(tmp_path / "compare", once=True, console=console) == "finished"
    assert "2 of 2 trainings done" in text_of(console)
    assert "beside" in text_of(console)


def test_watching_what_is_no_run_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        watch(tmp_path, once=True)


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    write_run(tmp_path / "good", list(records()))
    update_run(tmp_path / "bad")
    (tmp_path / "bad" / "run.json").write_text("{")
    console = plain()
    console.print(runs_table(tmp_path))
    lines = text_of(console).splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["bad", "damaged"], ["good", "finished"]]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_runs_fits_and_names_the_ends_of_runs(tmp_path: Path, width: int) -> None:
    write_run(tmp_path / "long-seed0-1a2b3c4d", list(records()))
    write_run(tmp_path / "seal-frozen-early-layers-reversed-seed0-5e6f7a8b", first_half(), driver=driver_stamp())
    write_run(tmp_path / "gone", first_half(), driver={**driver_stamp(), "started": "1"})
    update_run(tmp_path / "new", name="new", state="starting", created=2e9, driver=driver_stamp())
    console = screen(width)
    console.print(runs_table(tmp_path, width, now=1000.0 + 7200))
    lines = console.export_text().splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for words in ("lost", "finished", "running", "starting", "400/400", "210/400", "70.0 %"):
        assert words in text
    assert lines[-1].startswith("new")
    assert "2 h ago" in text
    assert any(line.startswith("seal-fro") and "6f7a8b" in line.split()[0] for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (187, "3:07"), (7387, "2:03:07"), (350_000, "4 d 01 h"), (-3, "0:00")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_long_names_keep_both_ends() -> None:
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcd..hijk"
