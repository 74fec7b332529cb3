"""Images to the class of every pixel: network, losses, curriculum, scores against other libraries, bad settings."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.metrics import balanced_accuracy_score, jaccard_score
from torch import nn

from llf_ray.config import SettingError, check, from_plain, override, to_plain
from llf_ray.data import FashionMasks, FashionOnPhotographs, MaskAugment
from llf_ray.data.base import ROLES
from llf_ray.data.masks import IGNORED
from llf_ray.data.order import Draw
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.nn.cropr import Cropping, KeepRate, Steady, apply, strip
from llf_ray.nn.segmenter import Segmenter
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import CroppedTransformer, FromFile, FromRun, Segmentation, TimmModel
from llf_ray.tasks.segmentation import DENSE, labelled_cross_entropy, on_patches, tiny
from tests.local import journal, whole

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
VIT = tiny.model.model


def batch_of(task, role="train", size=8, key=(0, 0, 0)):
    return next(task.batches(role, [Draw(np.arange(size), key)], CPU))


def cropped(**settings) -> Segmentation:
    """The tiny task with another way to lose tokens."""
    return replace(tiny, model=CroppedTransformer(model=VIT, cropping=replace(tiny.model.cropping, **settings)))


def dense() -> Segmentation:
    return replace(tiny, model=VIT)


def gradients(network: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: value.grad for name, value in network.named_parameters() if value.grad is not None}


def test_the_tiny_task_is_whole():
    tiny.prepare()
    check(tiny)
    assert [tiny.num_items(role) for role in ROLES] == [40, 20, 20]
    network = tiny.build(0).eval()
    tallies, record = tiny.evidence(network, batch_of(tiny, "test", key=None))
    assert tiny.metric in tiny.conclude("test", [record])
    assert {name: value.mean for name, value in tallies.items()} == {
        name: value.mean for name, value in tiny.score(network, batch_of(tiny, "test", key=None)).items()
    }
    assert tiny.network_recipe()["segmenter"] == {"num_classes": 2}


def test_settings_survive_being_written_and_overridden():
    assert from_plain(json.loads(json.dumps(to_plain(tiny)))) == tiny
    assert override(tiny, {"model.cropping.schedule.rate": 2}).model.cropping.schedule == Steady(rate=2)


# ------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize(
    ("cropping", "total"),
    [(DENSE, 304_393_302), (Cropping(schedule=Steady(rate=40), queries="patches"), 515_596_602)],
)
def test_eva02_large_has_the_published_number_of_parameters(cropping, total):
    """As the logs of the paper's code count them: 22 modules of 1,024 queries for 150 classes, or none."""
    with torch.device("meta"):
        backbone = timm.create_model("eva02_large_patch14_224.mim_m38m", img_size=512, patch_size=16, num_classes=0)
        network = Segmenter(apply(backbone, cropping, outputs=150), 150)
    assert sum(value.numel() for value in network.parameters()) == total


def test_the_dense_network_is_timms_tokens_and_a_linear_layer():
    network = dense().build(3).eval()
    plain = timm.create_model(VIT.name, num_classes=0, in_chans=1, **VIT.options).eval()
    plain.load_state_dict({k.removeprefix("backbone."): v for k, v in network.state_dict().items() if "backbone" in k})
    images = torch.randn(3, 1, 24, 24)
    with torch.no_grad():
        tokens = plain.forward_features(images)[:, 1:] @ network.head.weight.T + network.head.bias
        expected = F.interpolate(tokens.mT.unflatten(2, (4, 4)), scale_factor=6, mode="bilinear")
        torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fusion", [True, False])
def test_at_rate_zero_it_gives_what_the_dense_network_gives(fusion, tmp_path):
    save_file(dense().build(1).state_dict(), tmp_path / "dense.safetensors")
    task = replace(
        cropped(schedule=Steady(rate=0), fusion=fusion),
        start=FromFile(path=str(tmp_path / "dense.safetensors"), head="fresh"),
    )
    images = torch.randn(2, 1, 24, 24)
    with torch.no_grad():
        assert torch.equal(task.build(2).eval()(images), dense().build(1).eval()(images))


def test_a_stripped_network_says_the_same():
    network = tiny.build(0).eval()
    images = torch.randn(2, 1, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(strip(network)(images), network(images))


def test_pooling_by_attention_is_left_out():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, num_classes=0, class_token=False, global_pool="map", fc_norm=False
    )
    network = Segmenter(apply(model, DENSE), 5)
    assert not [name for name, _ in network.named_parameters() if "attn_pool" in name]
    loss = network(torch.randn(1, 3, 32, 32)).square().mean()
    assert set(gradients(network, loss)) == {name for name, _ in network.named_parameters()}


def test_class_attention_that_has_nothing_to_cut_yet_needs_no_module():
    """Under a curriculum, or where lengths are rounded, some cuts are empty."""
    task = cropped(schedule=KeepRate(keep=0.999), selector="class_attention", queries=1)
    images = torch.randn(2, 1, 24, 24)
    with torch.no_grad():
        assert torch.equal(task.build(0).eval()(images), dense().build(0).eval()(images))


# --------------------------------------------------------------------------------------------------------------- losses


def test_a_loss_is_the_mean_over_images_of_the_mean_over_labelled_pixels():
    scores = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    labels = torch.randint(0, 4, (3, 5, 6))
    labels[0, :3], labels[2] = IGNORED, IGNORED
    expected = []
    for image in range(3):
        terms = [
            -scores[image, :, row, column].log_softmax(0)[labels[image, row, column]]
            for row in range(5)
            for column in range(6)
            if labels[image, row, column] != IGNORED
        ]
        expected.append(float(sum(terms)) / len(terms) if terms else 0.0)
    found = labelled_cross_entropy(scores, labels)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert expected[2] == 0.0


def test_what_is_ignored_moves_nothing():
    network, batch = tiny.build(0), batch_of(tiny)
    gone = replace(batch, labels=torch.full_like(batch.labels, IGNORED))
    loss, watched = tiny.loss(network, gone)
    found = gradients(network, loss)
    assert loss.item() == 0.0
    assert found
    assert all(not value.any() for value in found.values())
    assert watched["pixel_accuracy"].mean == 0.0


def test_targets_of_modules_are_the_labels_of_single_pixels_of_patches():
    labels = torch.randint(0, 200, (2, 24, 24))
    assert torch.equal(on_patches(labels, (4, 4)), labels[:, ::6, ::6].flatten(1))


def test_the_auxiliary_task_moves_modules_and_nothing_else():
    network, batch = tiny.build(0), batch_of(tiny)
    total, watched = tiny.loss(network, batch)
    seen = network(batch.images, detailed=True)
    assert [tuple(answer.shape) for answer in seen.auxiliary] == [(8, 16, 2)] * 2
    own = labelled_cross_entropy(seen.output, batch.labels).mean()
    target = batch.labels[:, ::6, ::6].flatten(1)
    others = [
        torch.stack(
            [F.cross_entropy(*image, ignore_index=IGNORED) for image in zip(answer, target, strict=True)]
        ).mean()
        for answer in seen.auxiliary
    ]
    together, alone = gradients(network, total), gradients(network, own)
    assert not [name for name in alone if ".cropr." in name]
    assert {name for name in together if name not in alone} == {
        name for name, _ in network.named_parameters() if ".cropr." in name
    }
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value)
    assert total.item() == pytest.approx((own + sum(others)).item(), rel=1e-5), "each with weight 1"
    assert watched["auxiliary_loss"].mean == pytest.approx(sum(others).item() / 2, rel=1e-5)


def test_parts_of_a_batch_add_up_to_it():
    """So the number of ranks and micro-batches changes no gradient."""
    network, batch = tiny.build(0).eval(), batch_of(tiny)
    parts = [replace(batch, images=batch.images[i : i + 4], labels=batch.labels[i : i + 4]) for i in (0, 4)]
    together = gradients(network, tiny.loss(network, batch)[0])
    apart = gradients(network, sum(tiny.loss(network, part)[0] for part in parts) / 2)
    for name, value in together.items():
        torch.testing.assert_close(apart[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", [tiny, dense()], ids=["cropr", "dense"])
def test_a_few_images_are_learned(task):
    network, batch = task.build(0), batch_of(task, size=8)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, watched = task.loss(network, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]
    assert watched["pixel_accuracy"].mean > 0.85 * float((batch.labels != IGNORED).float().mean())


def test_pruning_grows_over_the_first_generation_and_is_whole_in_evaluation():
    task = cropped(ramp=3)
    network = task.build(0)
    alive = []
    network.backbone.register_forward_pre_hook(
        lambda module, args, given: alive.append(given["kept"]), with_kwargs=True
    )
    keys = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 9), (0, 1, 0)]
    for key in keys:
        task.loss(network, batch_of(task, size=2, key=key))
    # 16 patches, two modules: nothing, then one and two, then three and the class token's share
    assert alive == [(16, 16), (14, 13), (12, 9), (12, 9), (12, 9)]
    network.eval()
    depth = network(torch.randn(1, 1, 24, 24), detailed=True).depth
    assert [int((depth == block).sum()) for block in (1, 2, 4)] == [4, 3, 9]


# --------------------------------------------------------------------------------------------------------------- scores


@pytest.fixture(scope="module")
def kinds() -> Segmentation:
    """Eleven classes of which some are on no image, parts of it ignored."""
    data = FashionMasks(pictures=FashionOnPhotographs(num_train=40, num_held_out=7))
    return replace(tiny, data=data, augment=MaskAugment(size=24))


def test_scores_are_those_of_scikit_learn(kinds):
    network = kinds.build(5).eval()
    torch.nn.init.normal_(network.head.weight, std=0.5)
    with torch.no_grad():
        network.head.bias[8:] = -100.0  # seven images have seven kinds; three are neither said nor seen
    records, predicted, true, losses = [], [], [], []
    for batch in kinds.batches("test", [Draw(np.arange(3)), Draw(np.arange(3, 7))], CPU):
        marked = tuple(labels.clone() for labels in batch.labels)
        for labels in marked:
            labels[:4], labels[labels == 5] = IGNORED, IGNORED  # the fifth kind is said and not seen
        tallies, record = kinds.evidence(network, replace(batch, labels=marked))
        records.append(record)
        losses.append(tallies["loss"])
        for image, labels in zip(batch.images, marked, strict=True):
            with torch.no_grad():  # a square image: nothing is padded
                scores = F.interpolate(network(image[None]), size=labels.shape, mode="bilinear")[0]
            predicted += scores.argmax(0)[labels != IGNORED].tolist()
            true += labels[labels != IGNORED].tolist()
    there = sorted({*predicted, *true})
    assert len(there) == 8
    assert 5 in predicted
    assert 5 not in true
    found = kinds.conclude("test", records)
    assert found["miou"] == pytest.approx(jaccard_score(true, predicted, labels=there, average="macro"), rel=1e-6)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert found["class_accuracy"] == pytest.approx(balanced_accuracy_score(true, predicted), rel=1e-6)
    accuracy = sum(int(record.diag().sum()) for record in records) / sum(int(record.sum()) for record in records)
    assert accuracy == pytest.approx(np.mean(np.array(true) == np.array(predicted)))
    assert sum(tally.count for tally in losses) == 7


def test_what_is_perfect_scores_one():
    matrix = torch.diag(torch.tensor([5, 7]))
    assert tiny.conclude("test", [matrix, matrix]) == {"miou": 1.0, "class_accuracy": 1.0}


def test_two_ranks_score_as_one_does(tmp_path):
    """Of three batches of at most eight images the second rank has one, and then one that does not count."""
    command = [sys.executable, "-m", "tests.tasks.segmentation_ranks", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(found) == {"1-0", "2-0", "2-1"}
    assert found["2-0"] == found["2-1"]
    assert found["2-0"] == pytest.approx(found["1-0"], rel=1e-12)
    assert set(found["1-0"]) == {"loss", "pixel_accuracy", "miou", "class_accuracy"}


@pytest.mark.parametrize(
    "recipe",
    [
        Long(generations=1, epochs=2, warmup_epochs=0, shape="linear", power=0.9),
        LaterLayer(generations=2, epochs=1, threshold="backbone.blocks.2", head="head"),
    ],
    ids=["long", "later_layer"],
)
def test_a_run_of_it_trains_and_is_scored(recipe, tmp_path):
    config = RunConfig(
        name="x",
        task=tiny,
        recipe=recipe,
        optim=Optim(name="adamw", lr=1e-3, weight_decay=0.05, decay="matrices", layer_decay=0.9),
        engine=EngineSettings(batch=8),
        resources=Resources(workers=1),
    )
    whole(config, tmp_path / "run")
    (test,) = [record for record in journal(tmp_path / "run", "score") if record["role"] == "test"]
    assert 0 < test["values"]["miou"] < 1
    again = replace(tiny, start=FromRun(run=str(tmp_path / "run")))
    again.prepare()
    assert again.build(1).head.weight.shape == (2, 24)


@pytest.mark.parametrize("how", [{"precision": "bf16", "channels_last": True}, {"checkpoint_gradients": True}])
def test_low_precision_and_checkpointed_blocks_give_nearly_the_same(how, tmp_path):
    def trained(folder: Path, **settings) -> dict[str, float]:
        config = RunConfig(
            name="x",
            task=tiny,
            recipe=Long(generations=1, epochs=1, warmup_epochs=0),
            optim=Optim(name="adamw", lr=1e-3),
            engine=EngineSettings(batch=20, **settings),
            resources=Resources(workers=1),
        )
        whole(config, folder)
        return next(record for record in journal(folder, "score") if record["role"] == "test")["values"]

    assert trained(tmp_path / "one", **how)["loss"] == pytest.approx(trained(tmp_path / "two")["loss"], rel=0.02)


def test_a_look_at_an_image_is_in_its_own_size():
    network = tiny.build(0).eval()
    first, second = tiny.look(network, "test", [4, 2], CPU)
    assert first.image.shape == (36, 36, 1)
    assert np.array_equal(first.labels, tiny.data.load("test").pair(4)[1])
    assert np.array_equal(second.labels, tiny.data.load("test").pair(2)[1])
    matrix = tiny.evidence(network, next(tiny.batches("test", [Draw(np.array([4]))], CPU)))[1]
    assert int(matrix.diag().sum()) == int((first.labels == first.predicted).sum())
    assert set(np.unique(first.depth)) == {1, 2, 4}
    assert (first.depth == 1).sum() == 4 * 81, "four patches, each a sixteenth of the image"
    assert first.blocks == 4


# ------------------------------------------------------------------------------------------------------ where it starts


def test_weights_of_a_transformer_alone_start_one(tmp_path):
    """Such as timm's, with a classifier that is of no use here."""
    plain = timm.create_model(VIT.name, num_classes=7, in_chans=1, **VIT.options)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    start = FromFile(path=str(tmp_path / "plain.safetensors"), head="fresh", rename={"": "backbone."})
    task = replace(tiny, start=start)
    task.prepare()
    assert torch.equal(task.build(0).backbone.blocks[2].mlp.fc1.weight, plain.blocks[2].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: cropped(queries=1), "queries = 1: segmentation asks for the class of each patch"),
        (lambda: cropped(selector="merge", fusion=False), "merged tokens have no place"),
        (lambda: replace(tiny, mean=(0.5,)), "both or neither"),
        (lambda: replace(tiny, mean=(0.5,) * 3, std=(0.5,) * 3), "one number for each of the 1 channels"),
        (lambda: replace(tiny, mean=(0.5,), std=(0.0,)), "must be > 0"),
        (lambda: replace(tiny, num_workers=-1), "num_workers = -1"),
    ],
)
def test_settings_that_cannot_be(make, complaint):
    with pytest.raises(SettingError, match=complaint):
        make()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"augment": MaskAugment(size=32)}, r"does not take squares of augment.size = 32 pixels: images of 32 x 32"),
        (
            {"model": TimmModel(name=VIT.name, options={**VIT.options, "dynamic_img_size": True})}
            | {"augment": MaskAugment(size=30)},
            "size = 30 pixels: it is made for 4 x 4 patches",
        ),
        ({"model": TimmModel(name="swin_tiny_patch4_window7_224")}, "SwinTransformer cannot lose tokens: it attends"),
        ({"model": replace(tiny.model, cropping=Cropping(schedule=Steady(rate=8), queries="patches"))}, "at most 7"),
        ({"start": FromRun(run="runs/nowhere", head="fresh")}, "the final weights of a finished run"),
    ],
)
def test_what_cannot_work_is_said_before_a_run(change, complaint):
    with pytest.raises((SettingError, FileNotFoundError), match=complaint) as found:
        replace(tiny, **change).prepare()
    assert "\n" not in str(found.value)


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    other = replace(tiny, model=TimmModel(name=VIT.name, options={**VIT.options, "embed_dim": 16}))
    save_file(other.build(0).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors does not fit the model: other shapes: backbone.cls_token"):
        replace(tiny, start=FromFile(path=str(tmp_path / "other.safetensors"), head="fresh")).prepare()
