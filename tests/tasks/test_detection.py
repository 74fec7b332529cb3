"""Images to objects: losses, the auxiliary task, average precision, and the way back to an image's own pixels."""

import copy
import json
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import save_file
from torch import nn

from llf_ray.config import SettingError, check, from_plain, override, to_plain
from llf_ray.data.base import ROLES
from llf_ray.data.instances import packed
from llf_ray.data.order import Draw
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.measures.average_precision import Detections, Truth, average_precision
from llf_ray.nn.detector import Found, Learned
from llf_ray.recipes.long import Long
from llf_ray.run import RunConfig, prepare
from llf_ray.tasks import FromFile, FromRun, Pretrained, TimmModel
from llf_ray.tasks.detection import tiny
from llf_ray.train.evaluation import evaluate

CPU = torch.device("cpu")


def batch_of(task, role="train", indices=range(4), key=(0, 0, 0)):
    return next(iter(task.batches(role, [Draw(np.array(indices), key)], CPU)))


class Says(nn.Module):
    """A detector that knows the answers: the objects of each image, and what it makes of them."""

    def __init__(self, task, change=lambda found: found):
        super().__init__()
        self.task, self.change, self.batch = task, change, None

    def forward(self, images):
        return [self.change(self.found(truth)) for truth in self.batch.truths]

    def found(self, truth):
        there, where = truth.instances, truth.where
        boxes = torch.from_numpy(there.boxes).double() * (where.width / truth.width)
        # a mask of 28 x 28 in its box, as the head gives it: here each pixel's own box is looked up
        masks = torch.stack([self.cut_out(mask, box) for mask, box in zip(there.masks, there.boxes, strict=True)])
        return Found(boxes.float(), torch.from_numpy(there.labels), torch.linspace(0.9, 0.8, len(there)), masks)

    def cut_out(self, mask, box):
        x0, y0, x1, y1 = (int(value) for value in box)
        part = torch.from_numpy(mask[y0:y1, x0:x1]).float()[None, None]
        return F.interpolate(part, (112, 112), mode="bilinear", align_corners=False)[0, 0]

    def scores(self, role="test"):
        records, tallies = [], []
        for batch in self.task.batches(role, [Draw(np.arange(6))], CPU):
            self.batch = batch
            tally, record = self.task.evidence(self, batch)
            records.append(record)
            tallies.append(tally)
        return {"count_error": tallies[0]["count_error"].mean, **self.task.conclude(role, records)}


def test_the_tiny_task_is_whole():
    tiny.prepare()
    check(tiny)
    assert [tiny.num_items(role) for role in ROLES] == [24, 6, 6]
    assert from_plain(json.loads(json.dumps(to_plain(tiny)))) == tiny
    assert override(tiny, {"heads.anchors": "8,16,32,64"}).heads.anchors == (8, 16, 32, 64)


def test_weights_are_a_function_of_the_seed_alone():
    first, again, other = (tiny.build(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["pyramid.levels.p4.0.weight"], other["pyramid.levels.p4.0.weight"])
    with torch.device("meta"):
        skeleton = tiny.skeleton()
    assert {name: value.shape for name, value in skeleton.state_dict().items()} == {
        name: value.shape for name, value in first.items()
    }


FEW = replace(tiny, data=replace(tiny.data, num_train=7), heads=replace(tiny.heads, score_threshold=0.0))


@pytest.fixture(scope="module")
def trained():
    """A network after forty steps on two images, and what it went through."""
    model, batch = FEW.build(0).train(), batch_of(FEW, indices=(1, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses, parts = [], []
    for step in range(40):
        torch.manual_seed(step)
        loss, watched = FEW.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        parts.append({name: value.mean for name, value in watched.items()})
    return model, losses, parts


def test_losses_fall_on_two_images(trained):
    _, losses, parts = trained
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])
    assert set(parts[0]) == {"objectness", "rpn_box_reg", "classifier", "box_reg", "mask", "auxiliary_loss"}
    for name in ("objectness", "classifier", "mask", "auxiliary_loss"):
        assert np.mean([part[name] for part in parts[-5:]]) < np.mean([part[name] for part in parts[:3]]), name


class Answering(nn.Module):
    """Gives losses that are known, and one auxiliary answer of its own for each image."""

    def __init__(self, classes, size):
        super().__init__()
        self.answer = nn.Parameter(torch.randn(size, 1, classes))
        self.backbone = SimpleNamespace(kept=(3,), kept_at=lambda epoch: (epoch,))
        self.asked = None

    def forward(self, images, targets, *, kept):
        self.asked = kept, targets
        return Learned({"loss_mask": torch.tensor(2.0), "loss_classifier": torch.tensor(3.0)}, (self.answer,) * 2)


def test_the_loss_is_a_plain_sum_and_the_auxiliary_task_is_presence():
    """Binary cross-entropy, spelled out: which classes are in the square, each module with weight 1."""
    model, batch = Answering(10, 4), batch_of(tiny, key=(0, 0, 2))
    loss, watched = tiny.loss(model, batch)
    total = 0.0
    for answer, target in zip(model.answer[:, 0].tolist(), batch.targets, strict=True):
        for label, logit in enumerate(answer):
            probability = 1 / (1 + np.exp(-logit))
            total -= np.log(probability if label in target["labels"] else 1 - probability) / 40
    assert float(loss.detach()) == pytest.approx(5 + 2 * total, rel=1e-5)
    assert watched["auxiliary_loss"].mean == pytest.approx(total, rel=1e-5)
    assert watched["mask"].mean == 2
    kept, targets = model.asked
    assert kept == (2,), "the curriculum's, of the third epoch"
    assert "masks" in targets[0]
    boxes_alone = replace(tiny, heads=replace(tiny.heads, masks=False))
    boxes_alone.loss(model, batch)
    assert "masks" not in model.asked[1][0]


def test_modules_learn_from_their_own_task_alone():
    model, batch = tiny.build(0).train(), batch_of(tiny)
    own = {name for name, _ in model.named_parameters() if ".cropr." in name}
    assert own

    def touched(loss):
        model.zero_grad()
        loss.backward()
        return {name for name, p in model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}

    losses, answers = model(batch.images, list(batch.targets))
    assert not touched(sum(losses.values())) & own
    losses, answers = model(batch.images, list(batch.targets))
    assert touched(sum(answer.sum() for answer in answers)) <= own


def test_a_batch_without_any_object_has_losses():
    batch = batch_of(tiny)
    empty = {"boxes": torch.zeros(0, 4, dtype=torch.float64), "labels": torch.zeros(0, dtype=torch.int64)}
    empty["masks"] = torch.zeros(0, 64, 64, dtype=torch.bool)
    model = tiny.build(0).train()
    loss, watched = tiny.loss(model, replace(batch, targets=(empty,) * 4))
    loss.backward()
    assert bool(loss.isfinite())
    assert watched["mask"].mean == watched["box_reg"].mean == 0
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


# ------------------------------------------------------------------------------------------------------- scores


def test_perfect_predictions_score_one():
    scores = Says(tiny).scores()
    assert scores["box_ap"] == pytest.approx(1)
    assert scores["mask_ap50"] == pytest.approx(1)
    assert scores["mask_ap75"] == pytest.approx(1)
    assert scores["mask_ap"] > 0.8, "straps of a sandal are narrower than the pixels that masks are pasted with"
    assert scores["count_error"] == 0
    assert "box_ap_large" not in scores, "no object is above 96 x 96 pixels"
    assert tiny.metric == "mask_ap"
    without = replace(tiny, heads=replace(tiny.heads, masks=False))
    assert without.metric == "box_ap"


def test_predictions_that_are_off_score_less():
    def shifted(found):
        return replace(found, boxes=found.boxes + 2)  # of 64, in squares of half the image's side

    def doubtful(found):
        return replace(found, scores=found.scores / 2)

    assert Says(tiny, shifted).scores()["box_ap"] < 0.8
    assert Says(tiny, doubtful).scores()["count_error"] > 1, "none is more likely than not"
    none = Says(tiny, lambda found: replace(found, **{n: getattr(found, n)[:0] for n in vars(found)})).scores()
    assert none["mask_ap"] == 0


def random_images(number=12, classes=3):
    """Truths, some of them crowds, and detections that hit some of them, as records."""
    random, pairs = np.random.default_rng(0), []
    for _ in range(number):
        high, wide = random.integers(60, 160, 2)

        def some(count, high=high, wide=wide):
            corner = random.uniform(0, 0.7, (count, 2)) * (wide, high)
            side = random.uniform(0.1, 0.6, (count, 2)) * (wide, high)
            boxes = np.concatenate([corner, np.minimum(corner + side, (wide, high))], 1).round().astype(np.float32)
            masks = np.zeros((count, high, wide), dtype=bool)
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
                mask[y0:y1, x0:x1] = random.random((y1 - y0, x1 - x0)) > 0.1
            return boxes, masks, random.integers(0, classes, count)

        boxes, masks, labels = some(int(random.integers(0, 6)))
        crowd = random.random(len(boxes)) < 0.15
        area = masks.sum((1, 2)).astype(np.float32)
        truth = Truth((int(high), int(wide)), boxes, labels, crowd, area, packed(masks))
        more, others, names = some(int(random.integers(0, 6)))
        near = (boxes + random.normal(0, 3, boxes.shape)).clip(0, [wide, high, wide, high]).astype(np.float32)
        found = Detections(
            np.concatenate([near, more]),
            np.concatenate([labels, names]),
            random.random(len(boxes) + len(more)).astype(np.float32),
            packed(np.concatenate([np.roll(masks, 2, 2), others])),
        )
        pairs.append((found, truth))
    return pairs


def test_average_precision_is_that_of_pycocotools():
    pairs, images, annotations, results = random_images(), [], [], []
    for number, (found, truth) in enumerate(pairs, 1):
        images.append({"id": number, "height": truth.size[0], "width": truth.size[1]})
        for box, label, crowd, area, mask in zip(
            truth.boxes.tolist(),
            truth.labels.tolist(),
            truth.crowd.tolist(),
            truth.area.tolist(),
            truth.masks,
            strict=True,
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": label, "iscrowd": int(crowd),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "area": area, "segmentation": mask,
                }
            )  # fmt: skip
        for box, label, score, mask in zip(
            found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), found.masks, strict=True
        ):
            whole = {"image_id": number, "category_id": label, "score": score}
            results.append((whole, [box[0], box[1], box[2] - box[0], box[3] - box[1]], mask))
    truth = COCO()
    truth.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": n} for n in range(3)],
        "info": {},
    }
    truth.createIndex()
    ours = average_precision(pairs, masks=True)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        own = [
            {**whole, **({"bbox": box} if kind == "bbox" else {"segmentation": mask})} for whole, box, mask in results
        ]
        judge = COCOeval(truth, truth.loadRes(own), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        names = [f"{name}_{end}" for end in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")]
        expected = {key: value for key, value in zip(names, judge.stats, strict=False) if value >= 0}
        assert {key: value for key, value in ours.items() if key.startswith(name)} == pytest.approx(expected, abs=1e-6)
        assert 0.02 < ours[f"{name}_ap"] < 0.9
    boxes = average_precision(pairs, masks=False)
    assert set(boxes) == {key for key in ours if key.startswith("box")}
    assert boxes["box_ap"] == pytest.approx(ours["box_ap"])


class Ranks:
    """Threads that stand for ranks: what one has, all get."""

    def __init__(self, size):
        self.size, self.barrier, self.board = size, threading.Barrier(size, timeout=60), [None] * size

    def exchange(self, rank, value):
        self.board[rank] = value
        self.barrier.wait()
        everyone = list(self.board)
        self.barrier.wait()
        return everyone


class Member:
    """A team of one of them; values pass through pickle, as between processes."""

    device = CPU

    def __init__(self, ranks, rank):
        self.ranks, self.rank, self.size = ranks, rank, ranks.size

    def gather(self, value):
        return [pickle.loads(each) for each in self.ranks.exchange(self.rank, pickle.dumps(value))]

    def share(self, value):
        return self.gather(value)[0]

    def total(self, values):
        return sum(self.gather(values))


class Few:
    """The task, in batches of four: seven images are two batches, so that of three ranks one has none."""

    scored_together = 4

    def __init__(self, task):
        self.task = task

    def __getattr__(self, name):
        return getattr(self.task, name)


def test_one_rank_and_several_give_the_same_precision(trained):
    model, found = trained[0], {}
    for size in (1, 2, 3):
        ranks = Ranks(size)
        config = SimpleNamespace(task=Few(FEW), engine=EngineSettings(batch=6), optim=Optim())

        def scored(rank, ranks=ranks, config=config):
            engine = SimpleNamespace(module=copy.deepcopy(model), sync_buffers=lambda: None)
            return evaluate(config, engine, Member(ranks, rank), "train")

        with ThreadPoolExecutor(size) as pool:
            found[size] = list(pool.map(scored, range(size)))
    assert all(values == found[1][0] for size in found for values in found[size])
    assert 0.001 < found[1][0]["box_ap"] < 1


@pytest.mark.slow
def test_the_detector_trains_under_every_kind_of_sharding(tmp_path):
    """Whole and sharded weights go the same way; half precision goes its own, and ends."""
    command = [sys.executable, "-m", "tests.tasks.detection_ranks", str(tmp_path)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=600)
    assert not [path.read_text() for path in tmp_path.glob("error-*.txt")]
    whole, sharded, half = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("zero-0", "zero-3", "half")
    )
    assert {found.pop("state") for found in (whole, sharded, half)} == {"finished"}
    assert sharded == pytest.approx(whole, abs=1e-3)
    assert half.keys() == whole.keys()


# ------------------------------------------------------------------------------------------------------- starts


def dense(task=tiny):
    return replace(task, model=task.model.model)


def test_pruning_starts_from_a_dense_run(tmp_path):
    folder = tmp_path / "dense" / "final"
    folder.mkdir(parents=True)
    trained = dense().build(5).state_dict()
    save_file({name: value.contiguous() for name, value in trained.items()}, folder / "model.safetensors")
    task = replace(tiny, start=FromRun(run=str(tmp_path / "dense"), head="fresh"))
    task.prepare()
    found = task.build(7).state_dict()
    assert all(torch.equal(found[name], value) for name, value in trained.items())
    drawn = {name: value for name, value in found.items() if name not in trained}
    assert all(name.startswith("backbone.blocks.") and ".cropr." in name for name in drawn)
    fresh = tiny.initial(7).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in drawn.items())
    with pytest.raises(ValueError, match=r"missing backbone.blocks.0.cropr.queries"):
        replace(tiny, start=FromRun(run=str(tmp_path / "dense"))).prepare()


def test_a_transformer_alone_can_be_the_start(tmp_path):
    """Weights as a classifier's file has them: its head is left behind, everything above the tokens is new."""
    network = tiny.model.model.make(7, 1)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    task = dense(
        replace(tiny, start=FromFile(path=str(tmp_path / "vit.safetensors"), head="fresh", rename={"": "backbone."}))
    )
    task.prepare()
    found = task.build(0)
    assert torch.equal(found.backbone.blocks[1].attn.qkv.weight, network.blocks[1].attn.qkv.weight)
    assert torch.equal(found.pyramid.levels["p8"][0].weight, task.initial(0).pyramid.levels["p8"][0].weight)


def test_pretrained_weights_are_the_transformers(monkeypatch):
    import timm

    whole, given = timm.create_model, {}

    def trained(name, *, pretrained, **arguments):
        given.update(arguments, pretrained=pretrained)
        network = whole(name, pretrained=False, **arguments)
        if pretrained:
            nn.init.constant_(network.blocks[0].mlp.fc1.weight, 0.25)
        return network

    monkeypatch.setattr(timm, "create_model", trained)
    found = replace(tiny, start=Pretrained()).build(0)
    assert given["pretrained"]
    assert given["num_classes"] == 0
    assert bool((found.backbone.blocks[0].mlp.fc1.weight == 0.25).all())


# --------------------------------------------------------------------------------------------------- bad settings


def changed_model(**options):
    return replace(tiny.model, model=replace(tiny.model.model, options={**tiny.model.model.options, **options}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(tiny, model=changed_model(img_size=48)), r"does not take squares of augment.size = 64 pixels"),
        (lambda: replace(tiny, model=TimmModel(name="resnet18")), "ResNet cannot lose tokens"),
        (lambda: replace(tiny, heads=replace(tiny.heads, strides=(6, 12, 24, 48))), "stride 6: must be the patch's"),
        (
            lambda: replace(tiny, heads=replace(tiny.heads, strides=(16, 32, 64, 128))),
            "augment.size = 64: must be a multiple of heads.strides' largest, 128",
        ),
        (
            lambda: replace(tiny, model=replace(tiny.model, cropping=replace(tiny.model.cropping, queries="patches"))),
            "model.cropping.queries = 'patches'",
        ),
        (
            lambda: replace(tiny, model=replace(tiny.model, cropping=replace(tiny.model.cropping, fusion=False))),
            "model.cropping.fusion = False: boxes need a feature at every place",
        ),
        (lambda: replace(tiny, mean=(0.5,)), "mean = .*both or neither"),
        (lambda: replace(tiny, mean=(0.5,) * 3, std=(0.5,) * 3), "one number for each of the 1 channels"),
        (lambda: replace(tiny, num_workers=-1), "num_workers = -1"),
    ],
)
def test_impossible_settings_are_one_line(make, message):
    with pytest.raises(SettingError, match=message) as found:
        make().prepare()
    assert "\n" not in str(found.value)


class Nothing:
    """Three images without an object."""

    def __len__(self):
        return 3

    def labels_in(self, index):
        return np.zeros(0, dtype=np.int64)


class Bare(type(tiny.data)):
    def load(self, role):
        return Nothing()


def test_a_part_without_objects_is_refused():
    with pytest.raises(ValueError, match="data: no image of the train part has an object"):
        replace(tiny, data=Bare()).prepare()


def test_layer_wise_rates_count_the_transformers_blocks_alone():
    optim = Optim(name="adamw", lr=0.1, layer_decay=0.5)
    config = RunConfig(name="x", task=tiny, recipe=Long(epochs=1), optim=optim, engine=EngineSettings(batch=4))
    factors = {name: group.factor for group in prepare(config).groups for name in group.parameters}
    blocks = [factors[f"backbone.blocks.{number}.attn.qkv.weight"] for number in range(3)]
    assert blocks == [0.125, 0.25, 0.5], "the normaliser behind them is a layer, too"
    assert factors["backbone.blocks.0.cropr.queries"] == 1.0, "new, wherever it is"
    assert factors["backbone.patch_embed.proj.weight"] == 0.0625
    assert {factor for name, factor in factors.items() if not name.startswith("backbone.")} == {1.0}


# ------------------------------------------------------------------------------------------------------- figures


def test_what_a_figure_shows_is_in_the_images_own_pixels():
    task = replace(tiny, heads=replace(tiny.heads, score_threshold=0.0))
    _, second = task.examine(task.build(0), "test", [0, 3], CPU)
    pixels, there = tiny.data.load("test").scene(3)
    assert np.array_equal(second.pixels, pixels)
    assert np.array_equal(second.truth["masks"], there.masks)
    assert second.depth.shape == (4, 4)
    assert second.covered == (128, 128)
    assert set(np.unique(second.depth)) == {1, second.blocks}
    assert (second.depth == 1).sum() == 16 - 11, "rate 4, and one more for the class token"
    assert len(second.found["boxes"]) == len(second.found["masks"]) == len(second.found["scores"])
