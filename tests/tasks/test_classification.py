"""Images to classes: models, starting weights, loss, score."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from llf_ray.config import SettingError, check, from_plain, override, to_plain
from llf_ray.data import Augment, FashionOnPhotographs, FashionSample, Folder, Mosaic, TimmAugment
from llf_ray.data.base import ROLES, anchored
from llf_ray.data.loading import ImageBatch
from llf_ray.data.order import Draw
from llf_ray.forget.operations import WEIGHTS, Forget
from llf_ray.measures.selectivity import perturbed
from llf_ray.plan import Pass
from llf_ray.tasks import Classification, FromFile, FromRun, Pretrained, SmallResNet, TimmModel
from llf_ray.tasks.base import Tally
from llf_ray.tasks.classification import tiny
from llf_ray.tasks.start import starting_weights
from llf_ray.train.folder import load_module

CPU = torch.device("cpu")
JOBS = Path(__file__).parents[2] / "jobs/paper"


@dataclass(frozen=True)
class Headless:
    """A model that gives no class scores."""

    def make(self, num_classes, channels):
        return nn.Flatten()

    def head(self, network):
        return ()


class LookingNet(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.fc = nn.Linear(784, size)

    def forward(self, images):
        return self.fc(images.flatten(1)) * (1.0 if images.sum().item() >= 0 else -1.0)


@dataclass(frozen=True)
class Looking:
    """A model that cannot be followed without values."""

    def make(self, num_classes, channels):
        return LookingNet(num_classes)

    def head(self, network):
        return ("fc",)


@dataclass(frozen=True)
class Blind(Looking):
    """One that looks, and is made for other images."""

    def make(self, num_classes, channels):
        network = LookingNet(num_classes)
        network.fc = nn.Linear(5, num_classes)
        return network


def batch_of(task, role="train", size=8, key=(0, 0, 0)):
    return next(task.batches(role, [Draw(np.arange(size), key)], CPU))


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items()) and first.keys() == second.keys()


def test_the_tiny_task_is_whole():
    tiny.prepare()
    check(tiny)
    assert [tiny.num_items(role) for role in ROLES] == [40, 20, 20]
    assert tiny.metric in tiny.score(tiny.build(0).eval(), batch_of(tiny, "test", key=None))


def test_settings_survive_being_written_and_overridden():
    assert from_plain(json.loads(json.dumps(to_plain(tiny)))) == tiny
    changed = override(tiny, {"data.num_train": "20", "model.widths": "4,4", "augment.shift": "1", "mixup": "0.2"})
    assert (changed.data.num_train, changed.model.widths, changed.augment.shift, changed.mixup) == (
        20,
        (4, 4),
        1,
        0.2,
    )


def test_weights_are_a_function_of_the_seed_alone():
    first = tiny.build(3).state_dict()
    torch.rand(5)
    state = torch.get_rng_state()
    assert same(first, tiny.build(3).state_dict())
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(first, tiny.build(4).state_dict())
    assert same(tiny.initial(3).state_dict(), first)


@pytest.mark.parametrize(
    "model",
    [
        SmallResNet(),
        TimmModel(name="resnet10t"),
        TimmModel(name="vit_tiny_patch16_224", options={"img_size": 32}),
    ],
)
def test_a_skeleton_costs_no_memory_and_has_the_models_names(model):
    task = replace(tiny, model=model)
    with torch.device("meta"):
        skeleton = task.skeleton()
    assert all(p.device.type == "meta" for p in skeleton.parameters())
    assert {n: p.shape for n, p in skeleton.named_parameters()} == {
        n: p.shape for n, p in task.build(0).named_parameters()
    }


def test_the_loss_is_torchs_cross_entropy_with_label_smoothing():
    task = replace(tiny, label_smoothing=0.2)
    network, batch = task.build(0), batch_of(task)
    loss, tallies = task.loss(network, batch)
    scores = network(batch.images)
    assert torch.equal(loss, torch.nn.CrossEntropyLoss(label_smoothing=0.2)(scores, batch.labels))
    assert tallies["accuracy"].total == (scores.argmax(1) == batch.labels).sum()


def test_the_loss_of_mixed_images_is_the_mixture_of_the_losses():
    task = replace(tiny, mixup=0.5, cutmix=0.5)
    network, batch = task.build(0).eval(), batch_of(task)
    assert batch.blended is not None
    logs = F.log_softmax(network(batch.images), 1)
    smooth = 0.9 * batch.blended + 0.1 / 10
    assert torch.allclose(task.loss(network, batch)[0], -(smooth * logs).sum(1).mean())
    assert batch_of(task, "validation", key=None).blended is None


def test_scores_add_up_over_batches():
    network = tiny.build(0).eval()
    whole = tiny.score(network, batch_of(tiny, "test", size=20, key=None))
    draws = [Draw(np.arange(20)[start : start + 6]) for start in range(0, 20, 6)]
    parts = [tiny.score(network, batch) for batch in tiny.batches("test", draws, CPU)]
    assert set(whole) == {"accuracy", "accuracy_top5", "loss"}
    for name, tally in whole.items():
        total = sum((part[name] for part in parts[1:]), start=parts[0][name])
        assert total.count == tally.count == 20
        assert total.mean == pytest.approx(tally.mean, rel=1e-6)


def test_accuracy_counts_what_is_right():
    class Says(torch.nn.Module):
        def forward(self, images):
            return F.one_hot(torch.tensor([0, 1, 2, 2]), 6).float()

    batch = ImageBatch(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 5]))
    scores = tiny.score(Says(), batch)
    assert scores["accuracy"].mean == 0.75
    assert Tally(torch.tensor(1.0), 2) + Tally(torch.tensor(2.0), 4) == Tally(torch.tensor(3.0), 6)


def test_pixels_are_scaled_by_the_training_images():
    images = torch.cat([b.images for b in tiny.batches("train", [Draw(np.arange(40))], CPU)])
    assert abs(images.mean()) < 1e-5
    assert images.std(correction=0) == pytest.approx(1, abs=1e-5)
    assert replace(tiny, mean=(0.5,), std=(0.25,)).scaling().mean == (0.5,)


# --------------------------------------------------------------------------------------------------- timm


def test_a_typo_in_timms_name_is_answered_with_the_nearest():
    with pytest.raises(
        SettingError, match="name = 'resnet81': timm has no model of this name; did you mean 'resnet18'"
    ):
        TimmModel(name="resnet81")
    with pytest.raises(SettingError, match=r"no weights 'a1_in2k' for resnet18; did you mean 'resnet18\.a1_in1k'"):
        TimmModel(name="resnet18.a1_in2k")


def test_timms_options_are_checked():
    with pytest.raises(SettingError, match="num_classes comes from the data"):
        TimmModel(name="resnet18", options={"num_classes": 3})
    with pytest.raises(SettingError, match="'resnet10t' does not take"):
        replace(tiny, model=TimmModel(name="resnet10t", options={"depth_of_sea": 3})).skeleton()


def test_a_timm_model_takes_classes_channels_and_drop_rates():
    model = TimmModel(name="vit_tiny_patch16_224", drop=0.1, drop_path=0.2, options={"img_size": 32, "depth": 3})
    network = replace(tiny, model=model).build(0)
    assert network.patch_embed.proj.in_channels == 1
    assert network.head.out_features == 10
    assert network.head_drop.p == 0.1
    assert network.blocks[2].drop_path1.drop_prob == pytest.approx(0.2)


def test_networks_of_the_papers_start_sqrt_six_above_their_redraws():
    """Spec 1.3: Kaiming-normal by fan_in, in each layer; timm's own start is another one."""
    redraw = Forget(select=WEIGHTS)
    for job in ("later_layer_cub_resnet18", "seal_tiny_imagenet_resnet50"):
        model = load_module(JOBS / f"{job}.py").config.task.model
        torch.manual_seed(0)
        network = model.make(200, 3)
        start = network.state_dict()
        drawn = perturbed(network, (redraw,)).state_dict()
        ratios = {
            name: float(start[name].std() / drawn[name].std()) for name, value in start.items() if value.dim() > 1
        }
        assert ratios == pytest.approx(dict.fromkeys(ratios, 6**0.5), rel=0.03)
        assert all(torch.equal(drawn[name], value) for name, value in start.items() if name not in ratios)
    own = replace(model, init="timm").make(200, 3).state_dict()["layer2.0.downsample.0.weight"]
    assert float(own.std() / own[0].numel() ** -0.5) < 1.2, "by fan_out, where channels double"
    with pytest.raises(SettingError, match="init = 'kaiming_normal': pretrained weights are not drawn"):
        replace(tiny, model=TimmModel(name="resnet18", init="kaiming_normal"), start=Pretrained()).prepare()


def test_pretrained_weights_that_cannot_be_had_are_said(monkeypatch):
    import timm

    with pytest.raises(SettingError, match="only timm's models have pretrained weights"):
        replace(tiny, start=Pretrained())
    with pytest.raises(
        SettingError,
        match="no pretrained weights for 'darknet17'",
    ):
        replace(tiny, model=TimmModel(name="darknet17"), start=Pretrained()).prepare()
    task = replace(tiny, model=TimmModel(name="resnet18"), start=Pretrained())
    whole = timm.create_model

    def offline(name, *, pretrained, **arguments):
        if pretrained:
            raise OSError("no route\nto the hub")
        return whole(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        SettingError, match=r"'resnet18' could not be loaded \(no route to the hub\); offline, give a file"
    ):
        task.build(0)
    monkeypatch.undo()
    given = {}

    def downloaded(name, *, pretrained, **arguments):
        given.update(pretrained=pretrained, **arguments)
        return whole(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", downloaded)
    state = torch.get_rng_state()
    task.build(0)
    assert given == {"pretrained": True, "num_classes": 10, "in_chans": 1}
    assert torch.equal(torch.get_rng_state(), state)


def test_pretrained_weights_bring_their_scaling():
    data = Folder(root="x")
    task = Classification(model=TimmModel(name="resnet18"), data=data, augment=Augment(size=32), start=Pretrained())
    assert task.scaling().mean == pytest.approx((0.485, 0.456, 0.406))


# -------------------------------------------------------------------------------------------- starting
# weights


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped", "run"])
def test_weights_start_from_a_file_or_a_run(tmp_path, kind):
    weights = tiny.build(5).state_dict()
    if kind == "run":
        (tmp_path / "r" / "final").mkdir(parents=True)
        save_file(weights, tmp_path / "r" / "final" / "model.safetensors")
        start = FromRun(run=str(tmp_path / "r"))
    elif kind == "safetensors":
        save_file(weights, tmp_path / "w.safetensors")
        start = FromFile(path=str(tmp_path / "w.safetensors"))
    else:
        wrapped = {"state_dict": {f"module.{name}": value for name, value in weights.items()}, "epoch": 3}
        torch.save(weights if kind == "pt" else wrapped, tmp_path / "w.pt")
        start = FromFile(path=str(tmp_path / "w.pt"))
    task = replace(tiny, start=start)
    task.prepare()
    assert same(task.build(0).state_dict(), weights)
    assert same(task.initial(0).state_dict(), tiny.initial(0).state_dict())
    assert same(starting_weights(start), weights)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("text", [b"hi", b"root:x:0:0", b"", b"\x80\x02."])
def test_what_is_no_file_of_weights_is_one_line(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=f"{name} cannot be read as a file of weights: ") as caught:
        replace(tiny, start=FromFile(path=str(tmp_path / name))).prepare()
    assert "\n" not in str(caught.value)


def test_a_run_to_start_from_is_found_from_here_wherever_data_are(tmp_path, monkeypatch):
    (tmp_path / "r" / "final").mkdir(parents=True)
    save_file(tiny.build(5).state_dict(), tmp_path / "r" / "final" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLF_RAY_DATA", str(tmp_path / "elsewhere"))
    task = anchored(replace(tiny, start=FromRun(run="r")))
    assert task.start.run == str(tmp_path / "r")
    assert same(task.build(0).state_dict(), tiny.build(5).state_dict())


def test_distilling_is_a_blend_of_labels_and_teacher():
    model, teacher = tiny.build(0).eval(), tiny.build(1).eval()
    batch = batch_of(tiny, size=20)
    own = tiny.loss(model, batch)[0]
    assert tiny.distil(model, teacher, batch, 0.0, 4.0)[0] == own
    for temperature in (1.0, 3.0):
        taught, tallies = tiny.distil(model, teacher, batch, 1.0, temperature)
        with torch.no_grad():
            student, soft = (net(batch.images) / temperature for net in (model, teacher))
        divergence = F.kl_div(student.log_softmax(1), soft.log_softmax(1), log_target=True, reduction="batchmean")
        entropy = -(soft.softmax(1) * soft.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(taught, temperature**2 * (divergence + entropy))
        assert tallies["accuracy"].count == 20
        half = tiny.distil(model, teacher, batch, 0.5, temperature)[0]
        torch.testing.assert_close(half, 0.5 * own + 0.5 * taught)
    taught.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert model.fc.weight.grad.abs().sum() > 0


def test_a_model_that_cannot_take_the_images_is_refused_by_prepare():
    with pytest.raises(SettingError, match=r"model: TimmModel does not take the data's images \(1 channels, 28 x 28"):
        replace(tiny, model=TimmModel(name="vit_tiny_patch16_224")).prepare()
    with pytest.raises(SettingError, match=r"gives \(2, 784\) for two images; \(2, 10\) is needed"):
        replace(tiny, model=Headless()).prepare()
    replace(tiny, model=TimmModel(name="vit_tiny_patch16_224", options={"img_size": 28, "patch_size": 7})).prepare()


def test_what_needs_values_to_follow_is_tried_with_them():
    task = replace(tiny, model=Looking())
    with torch.device("meta"), pytest.raises(RuntimeError):
        task.skeleton()(torch.empty(2, 1, 28, 28))
    task.prepare()
    with pytest.raises(SettingError, match="model: Blind does not take the data's images"):
        replace(tiny, model=Blind()).prepare()


def test_weights_that_do_not_fit_are_listed(tmp_path):
    weights = tiny.build(0).state_dict()
    weights["linear.weight"] = weights.pop("fc.weight")
    weights["conv1.weight"] = torch.zeros(4, 3, 3, 3)
    save_file(weights, tmp_path / "w.safetensors")
    start = FromFile(path=str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="does not fit the model"):
        replace(tiny, start=start).build(0)
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        replace(tiny, start=start).prepare()
    message = str(caught.value)
    assert "w.safetensors" in message
    assert "missing fc.weight" in message
    assert "not in the model: linear.weight" in message
    assert "conv1.weight is (4, 3, 3, 3), not (4, 1, 3, 3)" in message
    assert "\n" not in message
    weights["conv1.weight"] = torch.zeros(4, 1, 3, 3)
    save_file(weights, tmp_path / "w.safetensors")
    renamed = replace(start, rename={"linear.": "fc."})
    assert replace(tiny, start=renamed).build(0).conv1.weight.abs().sum() == 0


def test_a_classifier_of_another_size_is_fresh_only_where_that_is_said(tmp_path):
    weights = {**tiny.build(0).state_dict(), "fc.weight": torch.zeros(3, 8), "fc.bias": torch.zeros(3)}
    save_file(weights, tmp_path / "w.safetensors")
    start = FromFile(path=str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match=r"fc\.weight is \(3, 8\), not \(10, 8\).*head=fresh"):
        replace(tiny, start=start).build(1)
    network = replace(tiny, start=replace(start, head="fresh")).build(1)
    assert torch.equal(network.conv1.weight, weights["conv1.weight"])
    assert torch.equal(network.fc.weight, tiny.build(1).fc.weight)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", b"nothing", "cannot be read as a file of weights"),
        ("w.safetensors", b"nothing", "cannot be read as a file of weights"),
    ],
)
def test_files_that_are_no_weights_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        replace(tiny, start=FromFile(path=str(tmp_path / name))).build(0)
    with pytest.raises(FileNotFoundError, match=f"did you mean '{name}'"):
        replace(tiny, start=FromFile(path=str(tmp_path / f"x{name}"))).prepare()
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no weights by name"):
        replace(tiny, start=FromFile(path=str(tmp_path / "other.pt"))).build(0)


# ------------------------------------------------------------------------------------------------ other data


def folder_of(tmp_path):
    generator = np.random.default_rng(0)
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        for number in range(10):
            pixels = generator.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    return Folder(root=str(tmp_path))


def test_images_of_different_sizes_need_a_size(tmp_path):
    data = folder_of(tmp_path)
    with pytest.raises(SettingError, match=r"augment\.size = None: images of Folder may differ"):
        replace(tiny, data=data).prepare()
    for augment in (Augment(size=16), TimmAugment(size=16)):
        task = replace(tiny, data=data, augment=augment)
        task.prepare()
        assert batch_of(task, size=4).images.shape == (4, 3, 16, 16)
        assert task.loss(task.build(0), batch_of(task, size=4))[0].isfinite()


def test_a_broken_image_stops_training_by_its_name(tmp_path):
    data = folder_of(tmp_path)
    for path in sorted(tmp_path.glob("*/*.png")):
        path.write_bytes(path.read_bytes()[:200])
    task = replace(tiny, data=data, augment=TimmAugment(size=16), mean=(0.5,) * 3, std=(0.5,) * 3)
    task.prepare()
    with pytest.raises(ValueError, match=r"\d\.png cannot be read as an image"):
        batch_of(task, size=4)


def test_the_default_task_can_be_learned():
    task = Classification(
        model=SmallResNet(widths=(8, 16), blocks=(1, 1), stem_stride=2),
        data=FashionOnPhotographs(num_train=50, num_held_out=50),
    )
    network = task.build(0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    draws = [Draw(np.arange(50), (0, 0, epoch)) for epoch in range(30)]
    losses = []
    for batch in task.batches("train", draws, CPU):
        loss, _ = task.loss(network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(("blocks", "name", "accuracy"), [(3, "resnet20-12fca82f.th", 0.91)])
def test_published_weights_reach_their_published_accuracy(shared_data, blocks, name, accuracy):
    task = Classification(
        model=SmallResNet(widths=(16, 32, 64), blocks=(blocks,) * 3, shortcut="pad"),
        data=Mosaic(root="cifar10", tile=32, num_held_out=1000),
        start=FromFile(path=f"models/{name}", rename={"linear.": "fc."}),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    task.prepare()
    network = task.build(0).eval()
    draws = [Draw(np.arange(start, start + 250)) for start in range(0, 1000, 250)]
    scores = [task.score(network, batch)["accuracy"] for batch in task.batches("test", draws, CPU)]
    assert sum(scores[1:], start=scores[0]).mean > accuracy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing = 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing = -0.1"),
        ({"mixup": -1.0}, "mixup = -1.0"),
        ({"mean": (0.5,)}, "both or neither"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, "one number for each of the 1 channels"),
        ({"mean": (0.5,), "std": (0.0,)}, "std = "),
        ({"num_workers": -1}, "num_workers = -1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(SettingError, match=message):
        replace(tiny, **changes)
    with pytest.raises(SettingError, match="one number of each"):
        SmallResNet(widths=(4, 8), blocks=(1,))


def test_labels_beyond_the_classes_are_found(tmp_path):
    images = np.zeros((20, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(20) % 2, x_test=images, y_test=np.arange(20) % 3)
    from llf_ray.data import Arrays

    with pytest.raises(ValueError, match="the test part has the label 2, but there are 2 classes"):
        replace(tiny, data=Arrays(path=str(tmp_path / "a.npz"))).prepare()


def test_the_sample_counts_as_one_size():
    assert replace(tiny, data=FashionSample(num_train=10, num_held_out=10)).num_items("test") == 10


def test_a_pass_that_there_is_not_is_named_with_the_nearest():
    with pytest.raises(SettingError, match="pass 'recalibrate' does not exist; did you mean 'recalibrate statistics'"):
        tiny.check_pass(Pass(what="recalibrate"))
