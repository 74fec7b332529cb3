"""A run that is probed is the run that is not; what was found is in its journal, once, also after a stop."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from llf_ray.cli import main
from llf_ray.config import SettingError, from_plain, to_plain
from llf_ray.data.order import Draw, order
from llf_ray.forget.groups import layout
from llf_ray.measures.selectivity import Probe, effects, targeted
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.run import prepare
from llf_ray.studies.probes import report, write
from llf_ray.studies.show import draw_run
from llf_ray.studies.trial import open_weights
from llf_ray.tracking import named_values
from llf_ray.train.folder import create, open_run
from tests.local import carry, final, journal, resumed, same_bits, settings, stopping_at, whole

LATER = LaterLayer(generations=2, epochs=2, warmup_epochs=1, threshold="body")
CELLS = (
    targeted("magnitude", "redraw", keep=0.3),
    targeted("new random", "zero", keep=0.5, rewind="start"),
    targeted("initial magnitude", "zero", keep=0.5, initial="third step"),
)
PROBE = Probe(perturbations=CELLS, every=2, examples=40, snapshots={"start": 0, "third step": 3})
PLAIN = settings(LATER)
PROBED = replace(PLAIN, probes=(PROBE,))


def found(folder):
    return {(r["step"], r["perturbation"]): r["values"] for r in journal(folder, "probe")}


def test_probes_leave_no_trace_in_the_run(tmp_path):
    plain, probed = whole(PLAIN, tmp_path / "plain"), whole(PROBED, tmp_path / "probed")
    assert same_bits(final(plain), final(probed))
    assert [r["digest"] for r in journal(plain, "operation")] == [r["digest"] for r in journal(probed, "operation")]

    def measured(folder):
        return [
            (r["step"], {k: v for k, v in r["values"].items() if k != "examples_per_second"})
            for r in journal(folder)
            if r["kind"] in ("metrics", "score")
        ]

    assert measured(plain) == measured(probed)
    assert PLAIN.identity == PROBED.identity


def test_what_is_recorded_is_what_the_function_finds_on_the_network_of_that_step(tmp_path):
    """At the end of the first generation, in front of the redraw, where the run kept a checkpoint."""
    folder = whole(PROBED, tmp_path / "run")
    task, network = PROBED.task, PROBED.task.initial(0)
    initial = task.build(0).state_dict()
    saved = open_weights(folder / "checkpoints" / "step-00000008", layout(network)).values
    network.load_state_dict({name: saved[name] for name in network.state_dict()})
    chosen = sorted(order(48, 0, None, -2)[:40].tolist())
    data = list(task.batches("train", [Draw(torch.tensor(chosen))], torch.device("cpu")))
    expected = effects(
        network,
        CELLS[:2],
        data,
        mislabelled=torch.from_numpy(task.replaced()[chosen]),
        stores={"start": initial},
        step=8,
    )
    for effect in expected:
        values = found(folder)[8, effect.name]
        assert values == pytest.approx(effect.values(), rel=1e-5), effect.name
        assert found(folder)[8, "before"]["clean/loss"] == pytest.approx(effect.before["clean"].loss, rel=1e-5)


def test_a_perturbation_waits_for_its_snapshot(tmp_path):
    folder = whole(PROBED, tmp_path / "run")
    names = [name for _, name in found(folder)]
    assert sorted({step for step, _ in found(folder)}) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert [names.count(name) for name in ("before", *(cell.name for cell in CELLS))] == [8, 8, 8, 7]


def test_a_resumed_run_goes_on_with_its_snapshots_and_probes_each_step_once(tmp_path):
    unbroken = whole(PROBED, tmp_path / "unbroken")
    run = create(prepare(PROBED), tmp_path / "broken")
    assert carry(run, adviser=stopping_at(5)).state == "stopped"
    assert resumed(tmp_path / "broken").state == "finished"
    assert found(tmp_path / "broken") == found(unbroken)
    assert len(journal(tmp_path / "broken", "probe")) == len(found(unbroken))
    assert same_bits(final(unbroken), final(tmp_path / "broken"))


def test_settings_of_probes_survive_as_plain_data():
    assert from_plain(to_plain(PROBED)) == PROBED


def test_probes_that_cannot_work_are_refused_before_training():
    missing = replace(PROBE, perturbations=(targeted("magnitude", "zero", other={"hed": 0.5}),))
    with pytest.raises(SettingError, match=r"probes\.0: perturbation .* layer 'hed' does not exist.*'head'"):
        prepare(replace(PLAIN, probes=(missing,)))
    later = replace(PROBE, snapshots={"start": 2, "third step": 3})
    with pytest.raises(SettingError, match=r"probes\.1\.snapshots\.start = 2: another probe takes it at 0"):
        prepare(replace(PLAIN, probes=(PROBE, later)))
    for late, said in (
        (replace(PROBE, every=17), r"probes\.0\.every = 17"),
        (replace(PROBE, snapshots={"start": 0, "third step": 16}), r"probes\.0\.snapshots\.third step = 16"),
    ):
        with pytest.raises(SettingError, match=f"{said}: the run has 16 optimizer steps"):
            prepare(replace(PLAIN, probes=(late,)))
    prepare(replace(PLAIN, probes=(replace(PROBE, every=16),)))


def test_probes_reach_mlflow_a_table_and_a_picture(tmp_path):
    folder = whole(PROBED, tmp_path / "run")
    (record,) = [r for r in journal(folder, "probe") if (r["step"], r["perturbation"]) == (8, CELLS[0].name)]
    assert named_values(record)[f"probe/{CELLS[0].name}/clean/accuracy"] == record["values"]["clean/accuracy"]
    draw_run(open_run(folder))
    table, figure = write(folder)
    assert (folder / "figures" / "run.png").exists()
    assert figure.stat().st_size > 20_000
    rows = [line for line in table.read_text().splitlines() if line.startswith(f"| {CELLS[0].name}")]
    assert len(rows) == 8
    shown = f"{100 * record['values']['clean/accuracy']:.1f}"
    assert f"| 8 | {shown} |" in "".join(rows)
    said = CliRunner().invoke(main, ["probes", str(folder)])
    assert said.exit_code == 0, said.output
    assert all(word in said.output for word in CELLS[2].name.split()), "folded where the table is narrow"
    assert str(figure) in said.output
    with pytest.raises(SettingError, match="has probed nothing yet"):
        report(whole(PLAIN, tmp_path / "plain"))
