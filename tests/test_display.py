"""What a person sees of a run: on a screen, in a log file, of one run and of many."""

import io
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from llf_ray import display as module
from llf_ray.cli import _outcome_lines
from llf_ray.config import shortened
from llf_ray.display import Display, Trimmed, amount, duration, metric_words, runs_table, state_words, watch
from llf_ray.journal import Journal, driver_stamp, update_run
from llf_ray.train.worker import Outcome

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
            values |= {"examples_per_second": 912.4, "lr/stem": 0.1}
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
            "912 examples/s",
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


def pruned() -> list[dict]:
    """The first half of a run that has stored a mask at its begin, and a sparser one in the middle."""

    def stored(record: dict, live: int, effective: int) -> dict:
        about = {"operation": "mask alive: keep 50 % of weights", "entries": 0, "tensors": 0}
        of = {"masks": {"alive": [live, 307_088]}, "effective": {"alive": effective}}
        return {**{key: record[key] for key in ("step", "time", "generation")}, "kind": "operation", **about, **of}

    begun = [record for record in first_half() if record["kind"] != "operation"]
    at = [n for n, record in enumerate(begun) if record["kind"] == "phase" and record["name"] == "ascent"]
    for n, live, effective in reversed([(at[0], 307_088, 307_088), (at[2], 153_544, 152_000)]):
        begun.insert(n, stored(begun[n], live, effective))
    return begun


@pytest.mark.parametrize("width", WIDTHS)
def test_what_a_mask_leaves_is_told_where_it_is_stored_and_at_the_end(width: int) -> None:
    words = "153,544 of 307,088 live (50 %), 49.5 % on a path to the output"
    told = [line for line in printed(pruned()) if "live" in line]
    assert told == [
        "step 0  mask alive: keep 50 % of weights, 307,088 of 307,088 live (100 %), 100 % on a path to the output",
        f"step 200/400  mask alive: keep 50 % of weights, {words}",
    ]
    display = Display(["pruning"], console=screen(width))
    for record in pruned():
        display.update("pruning", record)
    assert f"  mask alive: {words}" in shown(display, width)
    end = {"kind": "state", "time": 1100.0, "state": "finished", "message": ""}
    display.update("pruning", end)
    assert f"  mask alive: {words}" in shown(display, width)
    assert "307,088 of" not in shown(display, width)


def test_the_last_lines_of_a_run_say_what_its_masks_leave(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for record in pruned():
        journal.append(record)
    outcome = Outcome(state="finished", message="", step=400, scores={"accuracy": 0.7}, seconds={})
    assert "mask alive: 153,544 of 307,088 live (50 %), 49.5 % on a path to the output" in _outcome_lines(
        tmp_path, outcome
    )


def test_a_run_of_many_seeds_ends_with_its_scores_over_all_of_them(tmp_path: Path) -> None:
    """Each in its own unit; single seeds are in the journal."""
    values = {"accuracy": 0.0841, "held_out_accuracy": 0.2, "topographic_similarity": 0.344}
    each = {f"{name}/seed_{seed}": value for name, value in values.items() for seed in range(3)}
    scores = {f"{role}/{name}": value for role in ("validation", "test") for name, value in (each | values).items()}
    outcome = Outcome(state="finished", message="", step=400, scores=scores, seconds={})
    lines = _outcome_lines(tmp_path, outcome)
    assert lines[1] == "validation accuracy 8.4 %, validation held_out_accuracy 20.0 %, " + (
        "validation topographic_similarity 0.3440"
    )
    assert lines[2].startswith("test accuracy 8.4 %, ")
    assert not any("seed_" in line for line in lines)
    assert "seed_" not in module.numbers(each | values)


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
step 20/400  gen 0, ascent  loss 1.950  accuracy 3.5 %  (912 examples/s, 3:10 left)
step 20/400  gen 0, descent  (stem, layer1, layer2, head descend)
step 40/400  gen 0, descent  loss 1.900  accuracy 7.0 %  validation 3.5 %  (912 examples/s, 3:00 left)
"""

LAST = """\
step 400/400  gen 3, descent  loss 1.000  accuracy 70.0 %  validation 56.0 %  (912 examples/s)
step 400/400  gen 3, descent  validation accuracy 70.0 %  loss 1.000  (912 examples/s)
step 400/400  gen 3, descent  test accuracy 70.0 %  loss 1.100  (912 examples/s)
finished
"""


def printed(records: Iterable[dict]) -> list[str]:
    """The plain lines of one run."""
    console = plain()
    with Display(["seal"], console=console) as display:
        for record in records:
            display.update("seal", record)
    assert "\x1b" not in text_of(console)
    assert text_of(console).isascii()
    return text_of(console).splitlines()


def test_a_log_file_gets_calm_plain_lines() -> None:
    lines = printed(records(seconds=200.0))
    assert lines[:6] == GOLDEN.splitlines()
    assert lines[-4:] == LAST.splitlines()
    assert sum("ascend" in line or "(stem" in line for line in lines) == 8  # every phase
    progress = [line for line in lines if "loss" in line and "test" not in line]
    assert len(progress) == 200 / 10 + 1  # one every ten seconds, and the last


def test_a_run_of_short_phases_says_one_a_second_and_each_generation() -> None:
    def phase(index: int, generation: int, time: float) -> dict:
        return {
            **{"kind": "phase", "step": index, "time": time, "index": index, "name": f"phase{index}", "stop": 99},
            **{"generation": generation, "total": 99, "directions": {}},
        }

    begun = [phase(index, 0, 100 + index * 0.1) for index in range(25)]
    begun += [phase(25, 1, 102.5), phase(26, 1, 102.6), phase(27, 2, 102.7), phase(28, 2, 102.8)]
    told = [line.split()[-1] for line in printed([*begun, {"kind": "state", "time": 102.9, "state": "failed"}])]
    assert told == ["phase0", "phase10", "phase20", "phase25", "phase27", "phase28", "failed"]


def test_a_run_of_short_phases_says_which_one_it_has_come_to() -> None:
    phases = [record for record in records(total=4000, seconds=1.0) if record["kind"] == "phase"][:2]
    much_later = {"kind": "metrics", "step": 30, "time": 1001.5, "values": {"train/loss": 1.0}}
    assert [line.split()[:4] for line in printed([*phases, much_later])] == [
        *(["step", "0/4000", "gen", "0,"], ["step", "200/4000", "gen", "0,"])
    ]


def test_a_fast_run_does_not_flood_a_log_file() -> None:
    assert len(printed(records(total=40_000, seconds=15.0))) == 2 + 8 + 1 + 2 + 1  # states, phases, progress, scores


def test_a_slow_run_tells_of_every_record_of_its_progress() -> None:
    lines = [line for line in printed(list(records(total=4000, seconds=20_000.0))[:60]) if "loss" in line]
    assert lines[0].startswith("step 10/4000  gen 0, ascent  loss 1.998  accuracy 0.2 %")
    assert len(lines) == sum(r["kind"] in ("metrics", "score") for r in list(records(total=4000))[:60]) - 1
    # but for a score at the moment of a metric


@pytest.mark.parametrize(
    ("state", "message", "words"),
    [
        ("stopped", "stopped at step 230 of 640; nothing is lost", "stopped at step 230 of 640; nothing is lost"),
        ("failed", "the loss is NaN", "failed: the loss is NaN"),
        ("finished", "", "finished"),
    ],
)
def test_a_state_is_said_once(state: str, message: str, words: str) -> None:
    record = {"kind": "state", "time": 1.0, "state": state, "message": message}
    assert state_words(state, message) == words
    assert printed([record]) == [words]
    display = Display(["seal"], console=screen(80))
    display.update("seal", record)
    assert shown(display, 80).count(state) == 1


def test_a_finished_run_that_was_cut_is_whole() -> None:
    cut = [record for record in records() if record.get("step", 0) <= 330 and record["kind"] != "state"]
    cut += [{**scored("test", 330, 1083.0), "values": {"accuracy": 0.5}}]
    assert " left" not in printed(cut)[-1]
    display = Display(["seal"], console=screen(80), clock=lambda: 1083.0)
    for record in (*cut, {"kind": "state", "time": 1083.0, "state": "finished"}):
        display.update("seal", record)
    assert "step 330/330  100 %" in shown(display, 80)
    assert " left" not in shown(display, 80)


def test_scores_have_names_for_people() -> None:
    assert metric_words("accuracy_top5") == "top-5 accuracy"
    assert metric_words("test/accuracy_top5") == "test top-5 accuracy"
    assert amount("accuracy_top5", 0.984) == "98.4 %"
    score = {**scored("test", 5, 1.0), "values": {"accuracy": 0.7, "accuracy_top5": 0.984}}
    assert "test accuracy 70.0 %  top-5 accuracy 98.4 %" in printed([score])[-1]


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
    assert "\n  step 210/400   52 %" in text_of(console)  # no bar
    assert text_of(console).isascii()
    assert not any(line.endswith(" ") for line in text_of(console).splitlines())


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
    assert not any(line.endswith(" ") for line in text_of(console).splitlines())


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


def test_trainings_of_two_studies_are_told_apart(tmp_path: Path) -> None:
    for study in ("forgetting-quick", "forgetting-small"):
        write_run(tmp_path / study / "kels-seed0", list(records()), parent="..")
    console = plain()
    console.print(runs_table(tmp_path))
    names = [line.split()[0] for line in text_of(console).splitlines()[1:]]
    assert names == ["forgetting-quick/kels-seed0", "forgetting-small/kels-seed0"]


LONG_NAME = "seal-frozen-early-layers-reversed-seed0-5e6f7a8b"


def listed(root: Path, width: int) -> list[str]:
    console = screen(width)
    console.print(runs_table(root, now=1000.0 + 7200))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert not any(line.endswith(" ") for line in lines)
    return lines


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_runs_fits_and_never_cuts_a_name(tmp_path: Path, width: int) -> None:
    write_run(tmp_path / "long-seed0-1a2b3c4d", list(records()))
    write_run(tmp_path / LONG_NAME, first_half(), driver=driver_stamp())
    write_run(tmp_path / "gone", first_half(), driver={**driver_stamp(), "started": "1"})
    update_run(tmp_path / "new", name="new", state="starting", created=2e9, driver=driver_stamp())
    lines = listed(tmp_path, width)
    assert len(lines) == 5
    text = "\n".join(lines)
    for words in ("lost", "finished", "running", "starting", "400/400", "210/400", "70.0 %", f"{LONG_NAME} "):
        assert words in text
    assert lines[-1].startswith("new")
    assert ("2 h ago" in text) == (width == 120)  # what gives way to names


def test_a_name_longer_than_the_screen_is_folded(tmp_path: Path) -> None:
    write_run(tmp_path / LONG_NAME, first_half(), driver=driver_stamp())
    lines = listed(tmp_path, 50)
    assert "".join(line.split()[0] for line in lines[1:]) == LONG_NAME


def test_trainings_stand_below_their_comparison(tmp_path: Path) -> None:
    write_run(tmp_path / "alone", list(records()), created=1.0)
    write_run(tmp_path / "beside", list(records()), created=9.0, parent="../compare")
    for number, name in enumerate(("long-seed0", "seal-seed0")):
        write_run(tmp_path / "compare" / name, list(records()), created=2.0 + number, parent="..")
    update_run(tmp_path / "compare", name="compare", created=5.0, state="finished")
    names = [line[:13].rstrip() for line in listed(tmp_path, 80)[1:]]
    assert names == ["alone", "compare", "  long-seed0", "  seal-seed0", "  beside"]
    assert "3 trainings" in listed(tmp_path, 80)[2]


def test_lines_that_fill_the_screen_are_trimmed_for_a_file() -> None:
    console = plain()
    console.print(Trimmed(Text("a  \n   \nb", justify="center")))
    assert [line.rstrip() for line in text_of(console).splitlines()] == text_of(console).splitlines()
    assert text_of(console).split() == ["a", "b"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (187, "3:07"), (7387, "2:03:07"), (350_000, "4 d 01 h"), (-3, "0:00")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_long_names_keep_both_ends() -> None:
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcd..hijk"
