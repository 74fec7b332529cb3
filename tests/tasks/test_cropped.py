"""Classification with a transformer that loses tokens, as a run sees it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llf_ray.config import SettingError, from_plain, override, to_plain
from llf_ray.data import Augment, FashionOnPhotographs
from llf_ray.data.order import Draw
from llf_ray.engine.base import Optim
from llf_ray.forget.groups import Select, layout, resolve
from llf_ray.nn.cropr import Cropping, CroprOptions, Steady
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.run import prepare
from llf_ray.tasks import Classification, CroppedTransformer, Pretrained, TimmModel
from tests.local import settings, watched

VIT = TimmModel(
    name="vit_tiny_patch16_224",
    options={"img_size": 36, "patch_size": 6, "depth": 4, "embed_dim": 32, "num_heads": 2},
)
CROPPING = Cropping(schedule=Steady(rate=8), fusion=False, ramp=3)
TASK = Classification(
    model=CroppedTransformer(model=VIT, cropping=CROPPING),
    data=FashionOnPhotographs(num_train=60, num_held_out=40),
    augment=Augment(shift=2),
)


def batch_of(key=(0, 0, 0), task=TASK, role="train", number=20):
    (batch,) = task.batches(role, [Draw(np.arange(number), key)], torch.device("cpu"))
    return batch


def test_the_loss_is_the_main_one_and_the_plain_sum_of_all_auxiliary_ones():
    network, batch = TASK.build(0).train(), batch_of((0, 0, 5))
    loss, watched_by = TASK.loss(network, batch)
    seen = network(batch.images, detailed=True)
    parts = [
        F.cross_entropy(scores, batch.labels, label_smoothing=0.1)
        for scores in (seen.output, *(answer[:, 0] for answer in seen.auxiliary))
    ]
    assert len(parts) == 4
    torch.testing.assert_close(loss, sum(parts))
    assert watched_by["auxiliary_loss"].mean == pytest.approx(float(sum(parts[1:]).detach()) / 3, rel=1e-6)


def test_modules_learn_from_their_own_loss_and_the_network_from_its_own():
    network, batch = TASK.build(0).train(), batch_of((0, 0, 5))
    TASK.loss(network, batch)[0].backward()
    both = {name: value.grad.clone() for name, value in network.named_parameters()}
    network.zero_grad()
    scores = network(batch.images)
    F.cross_entropy(scores, batch.labels, label_smoothing=0.1).backward()
    for name, value in network.named_parameters():
        if ".cropr." in name:
            assert value.grad is None
            assert bool(both[name].abs().sum() > 0), name
        else:
            torch.testing.assert_close(both[name], value.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        ((0, 0, 0), (36, 36, 36)),
        ((0, 0, 1), (31, 27, 23)),  # half of 8 a module, and the class token's one
        ((0, 0, 2), (27, 19, 11)),
        ((0, 0, 9), (27, 19, 11)),
        ((0, 1, 0), (27, 19, 11)),  # later generations prune in full from their first epoch on
        (None, (27, 19, 11)),
    ],
)
def test_pruning_grows_over_the_epochs_of_the_first_generation(key, kept):
    network = TASK.build(0)
    assert TASK.model.kept(network, key) == kept
    role = "train" if key else "validation"
    assert batch_of(key, role=role).key == key


def test_a_student_trains_its_modules_too():
    network, teacher, batch = TASK.build(0), TASK.build(1).eval(), batch_of((0, 0, 5))
    TASK.distil(network, teacher, batch, weight=1.0, temperature=2.0)[0].backward()
    assert bool(network.blocks[0].cropr.queries.grad.abs().sum() > 0)


def test_a_module_belongs_to_the_block_that_it_follows():
    slots = layout(TASK.skeleton())
    later = resolve(Select(since="blocks.2"), slots)
    assert any(name.startswith("blocks.2.cropr.") for name in later)
    assert not any(name.startswith("blocks.1.cropr.") for name in later)


def test_later_layer_forgetting_redraws_later_modules_alone(tmp_path):
    recipe = LaterLayer(generations=2, epochs=1, warmup_epochs=0, threshold="blocks.2")
    still = Optim(name="sgd", lr=1e-12, momentum=0.0, weight_decay=0.0)  # so that only the boundary changes weights
    watch = watched(settings(recipe, task=TASK, optim=still), tmp_path / "run")
    half = len(watch.weights) // 2
    redrawn = {
        name
        for name, value in watch.weights[half].items()
        if (value - watch.weights[half - 1][name]).abs().max() > 1e-3
    }
    module = {name for name in redrawn if ".cropr." in name}
    assert module == {
        f"blocks.2.cropr.{name}" for name in ("queries", "mlp.fc1.weight", "mlp.fc2.weight", "head.weight")
    }
    assert {name.split(".")[1] for name in redrawn if name.startswith("blocks.")} == {"2", "3"}


def test_modules_and_head_learn_at_the_full_rate_under_layer_decay():
    optim = Optim(name="adamw", lr=1e-3, layer_decay=0.5)
    groups = prepare(settings(Long(generations=1, epochs=1, warmup_epochs=0), task=TASK, optim=optim)).groups
    factors = {name: group.factor for group in groups for name in group.parameters}
    assert factors["blocks.0.cropr.queries"] == factors["blocks.2.cropr.head.weight"] == factors["head.weight"] == 1.0
    assert factors["blocks.0.attn.qkv.weight"] == 0.5**4
    assert factors["patch_embed.proj.weight"] == 0.5**5


def test_settings_are_a_value():
    assert from_plain(to_plain(TASK)) == TASK
    changed = override(TASK, {"model.cropping.schedule.rate": "4", "model.cropping.options.heads": "2"})
    assert changed.model.cropping == replace(CROPPING, schedule=Steady(rate=4), options=CroprOptions(heads=2))


def cropped(model=VIT, **changes):
    return replace(TASK, model=CroppedTransformer(model=model, cropping=replace(CROPPING, **changes)))


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (
            cropped(schedule=Steady(rate=20)),
            r"rate = 20: 3 modules cut more than the 36 patches .* at most 11 leaves one",
        ),
        (cropped(schedule=Steady(rate=2, after=(4,))), r"after = \(4,\): 4 is no place .* 1 to 3"),
        (cropped(schedule=Steady(rate=2, after=(3,)), fusion=True), "fusion what is cut there would come back"),
        (cropped(model=TimmModel(name="resnet18")), "ResNet cannot lose tokens: it is none of timm's plain"),
        (
            cropped(model=TimmModel(name="swin_tiny_patch4_window7_224")),
            "SwinTransformer cannot lose tokens: it attends within windows",
        ),
        (cropped(options=CroprOptions(heads=5)), "heads = 5: must divide the width of the tokens, 32"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_starts(task, words):
    with pytest.raises(SettingError, match=words) as caught:
        prepare(settings(Long(generations=1, epochs=1, warmup_epochs=0), task=task))
    assert "\n" not in str(caught.value)


def test_an_image_size_that_the_model_cannot_take_is_named():
    task = replace(TASK, data=replace(TASK.data, size=40))
    with pytest.raises(SettingError, match=r"does not take the data's images .* 40 x 40 pixels"):
        prepare(settings(Long(generations=1, epochs=1, warmup_epochs=0), task=task))


def test_pretrained_weights_that_do_not_exist_are_named():
    task = replace(cropped(model=TimmModel(name="vit_tiny_patch16_384")), start=Pretrained())
    assert task.start == Pretrained()
    none = TimmModel(name="vit_small_patch8_224", init="kaiming_normal")
    with pytest.raises(SettingError, match="init = 'kaiming_normal': pretrained weights are not drawn"):
        replace(cropped(model=none), start=Pretrained()).model.check_pretrained()
