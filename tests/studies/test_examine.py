"""How a study examines networks: as `llf-ray measure` does, by measures that are called here on their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llf_ray.config import SettingError
from llf_ray.data import Arrays, FashionSample, Folder
from llf_ray.data.base import ROLES
from llf_ray.engine.base import EngineSettings
from llf_ray.measures.calibration import calibration
from llf_ray.measures.curvature import curvature
from llf_ray.measures.depth import prediction_depths
from llf_ray.measures.features import Labelled, class_scores, pooled_features
from llf_ray.measures.few_shot import few_shot
from llf_ray.measures.transfer import linear_probe
from llf_ray.recipes.long import Long
from llf_ray.studies import measure
from llf_ray.studies.examine import Examination, check_examination, examine, examined, is_examined
from llf_ray.studies.measure import Protocol, Subject, open_subject
from llf_ray.tasks.classification import tiny
from tests.local import settings, whole

TASK = replace(tiny, mislabelled=0.5)
CONFIG = settings(Long(generations=1, epochs=2, warmup_epochs=0), task=TASK, engine=EngineSettings(batch=20))
OTHERS = FashionSample(num_train=150, num_held_out=100)
HOW = Examination(
    protocol=Protocol(seed=4, images=12, shots=(2, 5), episodes=7, examples=35, eigenvalues=1, tolerance=1e-2, signs=3),
    targets={"clothes": OTHERS},
    few_shot={"clothes": OTHERS},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(CONFIG, tmp_path_factory.mktemp("runs") / "long")


def features(subject: Subject, role: str) -> Labelled:
    """Of the other data, with the labels that they have on disk."""
    scaling = TASK.scaling()
    task = replace(tiny, data=OTHERS, mean=scaling.mean, std=scaling.std)
    found = pooled_features(subject.network, subject.batches(role, task=task))  # type: ignore[arg-type]
    assert found.labels.tolist() == OTHERS.load(role).labels.tolist()  # type: ignore[arg-type]
    return found


def test_an_examination_is_what_the_measures_give_one_by_one(run: Path) -> None:
    found = examine(run, HOW)
    subject, wanted = open_subject(run), {}
    train, validation, test = (features(subject, role) for role in ("train", "validation", "test"))
    wanted["transfer/clothes"] = linear_probe(train, test, validation, seed=4).accuracy
    values, labels = (torch.cat([getattr(one, of) for one in (train, validation, test)]) for of in ("values", "labels"))
    for shots in (2, 5):
        wanted[f"few_shot/clothes/{shots}"] = few_shot(values, labels, shots=shots, episodes=7, seed=4).mean
    scores = class_scores(subject.network, subject.batches("test"))
    wanted["calibration"] = calibration(scores.values, scores.labels).error
    places = {role: subject.drawn(role, 35, HOW.protocol) for role in ("train", "test")}
    of = {role: list(subject.batches(role, chosen=chosen)) for role, chosen in places.items()}  # type: ignore[arg-type]
    (bank, bank_labels), (held_out, truth) = (map(torch.cat, zip(*of[role], strict=True)) for role in ("train", "test"))
    parts = {"train": (lambda: [bank], bank_labels), "test": (lambda: [held_out], truth)}
    wanted["depth"] = prediction_depths(subject.network, parts, bank="train")["test"].mean
    some = list(subject.batches("train", chosen=subject.drawn("train", 12, HOW.protocol)))
    bent = curvature(
        subject.network,
        some,
        lambda given, classes: F.cross_entropy(given, classes, label_smoothing=TASK.label_smoothing),
        top=1,
        probes=3,
        tolerance=1e-2,
        seed=4,
    )
    wanted |= {"curvature/largest": bent.top[0], "curvature/smallest": bent.smallest, "curvature/trace": bent.trace}
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert examined(run) == found
    assert is_examined(run, HOW)
    assert not is_examined(run, replace(HOW, few_shot={}))


def test_what_is_found_does_not_depend_on_what_else_is_asked(run: Path) -> None:
    alone = replace(HOW, targets={}, measures=(), protocol=replace(HOW.protocol, shots=(5,)))
    assert examine(run, alone) == {"few_shot/clothes/5": examine(run, HOW)["few_shot/clothes/5"]}


def test_the_bank_of_depths_has_the_classes_that_were_taught(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    banks = []

    def looked(network, parts, bank):  # type: ignore[no-untyped-def]
        banks.append(parts[bank][1])
        return prediction_depths(network, parts, bank=bank)

    monkeypatch.setattr(measure, "prediction_depths", looked)
    subject = open_subject(run)
    measure.MEASURES["depth"].take(subject, Protocol(), {})
    taught = torch.cat([labels for _, labels in subject.batches("train")])
    right = torch.from_numpy(tiny.data.load("train").labels)
    assert not torch.equal(taught, right), "half of them were drawn anew"
    assert all(torch.equal(bank, taught) for bank in banks)
    assert len(banks) == 1


@pytest.mark.parametrize("order", ["taking turns", "sorted"])
def test_images_that_are_drawn_have_every_class(order: str, run: Path, tmp_path: Path) -> None:
    labels = np.arange(1000) % 10 if order == "taking turns" else np.arange(1000) // 100
    images = np.zeros((1000, 8, 8), dtype=np.uint8)
    parts = {f"{kind}_{role}": {"x": images, "y": labels}[kind] for kind in "xy" for role in ("train", "test")}
    np.savez(tmp_path / "many.npz", **parts)
    task = replace(tiny, data=Arrays(path=str(tmp_path / "many.npz"), channels=1, validation=0.1))
    subject = replace(open_subject(run), task=task)
    for role in ("train", "test"):
        taught = task.labels(role)[subject.drawn(role, 100, Protocol())]  # type: ignore[arg-type]
        assert len(taught) == 100
        assert set(taught.tolist()) == set(range(10))
    assert len(subject.drawn("test", None, Protocol())) == 1000
    again, other = (subject.drawn("test", 100, Protocol(seed=seed)).tolist() for seed in (0, 1))
    assert subject.drawn("test", 100, Protocol()).tolist() == again != other


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": {"birds": Folder(root="brids", channels=1)}}, "target 'birds': .*brids does not exist"),
        ({"targets": {"birds": Arrays(path="x.npz", channels=3)}}, "target 'birds': channels = 3: the network sees 1"),
        (
            {"few_shot": {"few": FashionSample(num_train=20, num_held_out=10)}},
            "target 'few': shots = 2: class .* has 4",
        ),
    ],
)
def test_data_that_cannot_serve_are_one_line(changes: dict, said: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    colour = np.zeros((20, 8, 8, 3), dtype=np.uint8)
    np.savez("x.npz", **{f"x_{role}": colour for role in ROLES}, **{f"y_{role}": np.arange(20) % 2 for role in ROLES})
    with pytest.raises(SettingError, match=said) as caught:
        check_examination(TASK, replace(HOW, **changes))
    assert "\n" not in str(caught.value)


def test_a_networks_own_data_are_no_other_data(run: Path) -> None:
    how = replace(HOW, targets={"own": TASK.data}, few_shot={}, measures=())
    assert examine(run, how) == {}
