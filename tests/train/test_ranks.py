"""Two workers at every ZeRO stage give what one plain process gives.

Operations and resumption do not depend on who carries them out.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llf_ray.journal import read
from tests.train.ranks import ENGINES, METHODS, OPERATIONS, STAGES
from tests.train.reference import METHODS as REFERENCES
from tests.train.reference import seal

LOSS = 2e-4  # how far, relatively, a loss may be from the reference's
RELATIVE, ABSOLUTE = 2e-3, 2e-4  # the same of a weight


@pytest.fixture(scope="module")
def plain() -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    """Losses and weights of the plain references."""
    found = {}
    for name, method in REFERENCES.items():
        losses, net = method()
        found[name] = (losses, dict(net.state_dict()))
    return found


def losses_of(run: Path) -> list[float]:
    """Training loss of every step, from the journal."""
    return [record["values"]["train/loss"] for record in read(run / "journal.jsonl") if record["kind"] == "metrics"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", METHODS)
def test_two_workers_follow_the_plain_reference(ranks: Path, plain, method: str, stage: int) -> None:
    losses, weights = plain[method]
    run = ranks / f"{method}-z{stage}"
    assert losses_of(run) == pytest.approx(losses, rel=LOSS)
    final = load_file(run / "final" / "model.safetensors")
    assert final.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(
            final[name].to(value.dtype),
            value,
            rtol=RELATIVE,
            atol=ABSOLUTE,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("ascent_rate", [0.0, -1.0], ids=["still", "descending"])
def test_the_reference_would_notice_a_missing_ascent(ranks: Path, ascent_rate: float) -> None:
    """What the ascent does to losses and weights is far above what the comparison lets pass."""
    losses, net = seal(ascent_rate)
    found, final = losses_of(ranks / "seal-sgd-z0"), load_file(ranks / "seal-sgd-z0" / "final" / "model.safetensors")
    assert found[:13] == pytest.approx(losses[:13], rel=LOSS), "until the first ascending step has been made"
    apart = [abs(one - other) / abs(other) for one, other in zip(found, losses, strict=True)]
    assert max(apart[13:24]) > 50 * LOSS
    assert max(apart[24:]) > 100 * LOSS
    stem = net.stem[0].weight
    assert ((final["stem.0.weight"] - stem).abs() / (ABSOLUTE + RELATIVE * stem.abs())).max() > 100


@pytest.mark.parametrize("place", range(len(OPERATIONS)), ids=[operation.label for operation in OPERATIONS])
def test_an_operation_gives_one_digest_on_any_number_of_workers_and_at_any_stage(ranks: Path, place: int) -> None:
    found = {
        (world, case): json.loads((ranks / f"digests-{world}.json").read_text())[case][place]
        for world in (1, 2, 4)
        for case in ENGINES
    }
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("stage", [0, 3])
def test_a_run_of_two_ranks_does_not_notice_its_probes(ranks: Path, stage: int) -> None:
    plain, probed = ranks / f"seal-sgd-z{stage}", ranks / f"probed-z{stage}"
    assert (probed / "outcome.txt").read_text() == (plain / "outcome.txt").read_text()
    assert exactly(plain, probed)
    assert losses_of(plain) == losses_of(probed)
    records = [record for record in read(probed / "journal.jsonl") if record["kind"] == "probe"]
    assert len(records) == 9 * 3, "nine times, the network as it is and under two perturbations"
    assert {sum(record["counts"][group] for group in ("clean", "mislabelled")) for record in records} == {40}
    changed = [r["values"]["clean/loss"] for r in records if r["step"] == 36]
    assert len(set(changed)) == 3


def test_different_operations_give_different_digests(ranks: Path) -> None:
    found = json.loads((ranks / "digests-1.json").read_text())["stage 0"]
    assert len(set(found)) == len(OPERATIONS)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("where", ["ascent", "boundary"])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(ranks: Path, where: str, stage: int) -> None:
    stopped = json.loads((ranks / f"{where}-z{stage}" / "stopped.json").read_text())
    assert (
        stopped["step"] == {"ascent": 15, "boundary": 12}[where]
    )  # inside [12, 16), or after its redraw and before its first step
    assert ("step-00000012-crossed" in stopped["crossed"]) == (where == "boundary")
    assert exactly(ranks / f"{where}-z{stage}", ranks / f"whole-z{stage}")
    assert losses_of(ranks / f"{where}-z{stage}") == losses_of(ranks / f"whole-z{stage}")


def exactly(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same bits."""
    left, right = (load_file(run / "final" / "model.safetensors") for run in (one, other))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("name", "whole"), [("other-stage", "whole-z0"), ("other-workers", "whole-calm")])
def test_a_run_goes_on_at_another_stage_and_with_another_number_of_workers(ranks: Path, name: str, whole: str) -> None:
    assert (ranks / name / "outcome.txt").read_text().startswith("finished")
    steps = [record["step"] for record in read(ranks / name / "journal.jsonl") if record["kind"] == "metrics"]
    assert steps == list(range(1, 37)), "every step once"
    assert losses_of(ranks / name) == pytest.approx(losses_of(ranks / whole), rel=LOSS)


def test_replicas_agree_to_the_end(ranks: Path) -> None:
    """A difference would have ended the run as failed."""
    for run in ranks.glob("whole-z*"):
        assert (run / "outcome.txt").read_text().split()[0] == "finished"
        assert next(r for r in read(run / "journal.jsonl") if r["kind"] == "operation")["digest"]
