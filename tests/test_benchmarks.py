"""The benchmarks' arithmetic, and that each of them runs. What they measure is nobody's to test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import boundary, cropr, masks, neighbours, worker_loop
from benchmarks.__main__ import main, names
from benchmarks.harness import (
    Block,
    Contender,
    Ratio,
    Report,
    Size,
    Target,
    interleave,
    over_ranks,
    ratio,
    save,
    show,
    spread,
    table,
)

ROOT = Path(__file__).parents[1]
TINY = Size(rounds=1, tiny=True)


def test_contenders_take_turns_forth_and_back():
    order: list[str] = []
    contenders = [Contender(name=name, run=lambda name=name: order.append(name)) for name in "abc"]
    found = interleave(contenders, rounds=4, warm_up=1)
    assert "".join(order) == "cba" + "abc" + "cba" + "abc" + "cba"
    assert {name: len(blocks) for name, blocks in found.items()} == {"a": 4, "b": 4, "c": 4}


def test_every_block_has_a_barrier_on_both_sides():
    events: list[str] = []
    interleave(
        [Contender(name="a", run=lambda: events.append("run"))],
        rounds=2,
        warm_up=0,
        wait=lambda: events.append("wait"),
    )
    assert events == ["wait", "run", "wait"] * 2


def test_a_block_of_all_ranks_lasts_as_long_as_the_slowest_and_costs_what_all_spent():
    ranks = [{"a": [Block(1.0, 0.5, 1), Block(2.0, 0.5, 1)]}, {"a": [Block(1.5, 0.7, 2), Block(1.0, 0.6, 3)]}]
    assert over_ranks(ranks) == {"a": [Block(1.5, 1.2, 3), Block(2.0, 1.1, 4)]}


def test_spread_is_median_and_quartile_distance():
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0]) == (3.0, 2.0)
    assert spread([7.0]) == (7.0, 0.0)


def test_a_ratio_pairs_rounds_so_that_what_slows_both_drops_out():
    slow = [1.0, 10.0, 1.0, 5.0, 2.0, 3.0, 1.0]  # the machine's, from round to round
    found = ratio([2.0 * s for s in slow], slow)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_of_a_ratio_holds_it_and_narrows_with_rounds():
    few, many = ([1.0 + 0.1 * (-1) ** k * (k % 5) for k in range(rounds)] for rounds in (9, 90))
    wide, narrow = (ratio(pairs, [1.0] * len(pairs)) for pairs in (few, many))
    assert wide.low <= wide.value <= wide.high
    assert narrow.high - narrow.low < wide.high - wide.low


@pytest.mark.parametrize(
    ("low", "high", "least", "verdict"),
    [
        (0.96, 0.99, True, "met"),
        (0.90, 0.94, True, "missed"),
        (0.93, 0.97, True, "within the noise"),
        (0.80, 0.90, False, "met"),
        (0.96, 0.99, False, "missed"),
    ],
)
def test_a_target_is_met_or_missed_only_where_the_whole_interval_says_so(low, high, least, verdict):
    assert Target(what="x", limit=0.95, least=least, found=Ratio((low + high) / 2, low, high)).verdict == verdict


def test_a_table_aligns_and_leaves_nothing_out():
    lines = table([{"what": "a", "ms": 1.23456, "n": 12345}, {"what": "long name", "GB/s": 2.0}]).splitlines()
    assert lines[0].split() == ["what", "ms", "n", "GB/s"]
    assert lines[2].split() == ["a", "1.23", "12,345", "-"]
    assert lines[3].split() == ["long", "name", "-", "-", "2"]


def test_a_report_is_saved_with_versions_and_without_paths(tmp_path):
    target = Target(what="speed", limit=1, least=True, found=Ratio(2.0, 1.5, 2.5))
    report = Report(name="x", title="X", rows=[{"ratio": Ratio(2.0, 1.5, 2.5)}], targets=[target])
    text = save(report, tmp_path).read_text()
    plain = json.loads(text)
    assert plain["targets"][0]["verdict"] == "met"
    assert plain["environment"]["versions"]["torch"]
    assert str(ROOT) not in text
    assert "speed >= 1: 2 [1.5, 2.5], met" in show(report)


def test_every_file_is_a_benchmark_that_can_be_named():
    assert {"boundary", "cropr", "masks", "neighbours", "worker_loop"} <= set(names())


def test_an_unknown_name_says_which_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "boundary" in capsys.readouterr().err


def test_without_a_gpu_its_rows_are_not_measured(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    main(["boundary", "--device", "cuda"])
    assert "not measured" in capsys.readouterr().out


def test_they_import_without_ray_and_deepspeed():
    code = (
        "import sys; import benchmarks.worker_loop, benchmarks.boundary, benchmarks.masks\n"
        "import benchmarks.cropr, benchmarks.__main__\n"
        "assert not {'ray', 'deepspeed', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_the_boundary_runs():
    report = boundary.measure(TINY)
    assert {row["what"] for row in report.rows} > {"redraw all weights", "copy", "random generator", "a question"}
    assert report.targets[-1].found.value > 0


def test_the_neighbours_run_and_say_how_much_memory_they_take():
    report = neighbours.measure(TINY)
    assert [row["what"] for row in report.rows] == [neighbours.KNN, neighbours.PRODUCT, "peak memory of a process"]
    assert report.targets[0].found.value > 0
    assert 0.05 < report.rows[-1]["GB"] < 3, "torch itself, and next to nothing more"


def test_transformers_that_lose_tokens_run_beside_those_that_do_not():
    report = cropr.measure(TINY)
    assert {row["what"] for row in report.rows} == {
        "Cropr and random",
        "Cropr and random, fusion",
        "against dense",
        "over resolution",
        "against merging",
        "features of all patches",
        "training",
    }
    assert all(row["images/s"] > 0 for row in report.rows)
    merging = [row for row in report.rows if row["what"] == "against merging"]
    pruned = {row["who"]: row["with attention"] for row in merging}
    assert pruned[cropr.CROPR] <= pruned[cropr.MERGED] < pruned[cropr.DENSE]
    assert all(target.found.value > 0 for target in report.targets)


def test_one_process_with_the_local_engine_runs():
    found = worker_loop.alone(worker_loop.cases(TINY)[0], TINY)
    assert [row["loop"] for row in found.rows()] == ["plain loop", "worker, local", "engine.step, local"]
    assert all(row["images/s"] > 0 for row in found.rows())


def test_steps_under_masks_run():
    rows, targets, _ = masks.step(TINY)
    assert [row["what"].split(", ")[2] for row in rows] == ["dense", "masked", "what holding adds"]
    assert targets[0].found.value > 0


@pytest.mark.parametrize(
    ("name", "row"), [("worker_loop", "worker, ZeRO 0"), ("masks", "counted from the parts, ZeRO 1")]
)
def test_two_ranks_run(name, row):
    """In a process of its own: it forks, which a process with Ray's threads must not."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--tiny", "--rounds", "1", "--device", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert row in done.stdout
    assert "written" not in done.stdout
