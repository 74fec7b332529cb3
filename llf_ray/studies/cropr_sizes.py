"""The study of Token Cropr at three sizes: what is trained on what, and for how long."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llf_ray.config import unknown
from llf_ray.data import (
    Ade20k,
    Augment,
    CamVid,
    Coco128,
    FashionMasks,
    FashionOnPhotographs,
    FashionScenes,
    Folder,
    LargeScaleJitter,
    MaskAugment,
    Mosaic,
    Nuclei,
    TimmAugment,
)
from llf_ray.data.base import ROOT_VARIABLE, DataSet, located
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.nn.cropr import Cropping, CroprOptions, KeepRate, Schedule, Steady
from llf_ray.nn.detector_settings import Heads
from llf_ray.recipes.long import Long
from llf_ray.run import Checkpoints, Resources, RunConfig
from llf_ray.studies.cropr import DENSE, SIZES, CroprStudy, Family, Size, check_size

__all__ = ["classification_arms", "make"]

UNLEARNED = ("merge", "class_attention", "variance", "random")  # what can choose in a network that was never trained to


def make(size: Size, *, seeds: int | None = None, folder: str = "runs", name: str = "") -> CroprStudy:
    """The study at one of three sizes; data that are not bundled are looked for below ``LLF_RAY_DATA``.

    Raises:
        SettingError: an unknown size, no seed, or data that a size cannot do without.
    """
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    numbers = check_size(size, seeds)
    study = {"quick": _quick, "small": _small, "paper": _paper}[size](numbers)
    return replace(study, name=name or study.name, folder=str(Path(folder).resolve()))


def _base(recipe: Long, task: Any, *, batch: int, lr: float, decay: float = 0.05, **changes: Any) -> RunConfig:
    """One worker, one core, AdamW; validation at the end."""
    return RunConfig(
        name="study",
        task=task,
        recipe=recipe,
        optim=Optim(name="adamw", lr=lr, weight_decay=decay, decay="matrices"),
        engine=EngineSettings(batch=batch),
        resources=Resources(workers=1, cpus=1),
        checkpoints=Checkpoints(every_minutes=None, keep=1, keep_generations=False),
        tracking=Tracking(off=True, evaluate_every=1000, log_every=50),
        **changes,
    )


def classification_arms(task: Any, schedule: Schedule, *, options: bool = False) -> dict[str, Any]:
    """What takes tokens away, on one schedule; the first is dense. ``options``: what of a module is worth what, too."""

    def arm(**changes: Any) -> Any:
        return _cut(task, schedule, **changes)

    arms = {
        DENSE: task,
        "cropr": arm(),
        "random": arm(selector="random"),
        "non_salient": arm(selector="non_salient"),
        "variance": arm(selector="variance"),
        "class_attention": arm(selector="class_attention"),
        "merge": arm(selector="merge"),
        "cropr_fusion": arm(fusion=True),
        "random_fusion": arm(selector="random", fusion=True),
    }
    if options:
        arms |= {
            "cropr_attached": arm(options=CroprOptions(detach=False)),
            "cropr_no_mlp": arm(options=CroprOptions(mlp_ratio=0.0)),
        }
    return arms


def _cut(task: Any, schedule: Schedule, **changes: Any) -> Any:
    return _with(task, Cropping(schedule=schedule, **{"fusion": False, **changes}))


def _clothes(task_changes: Mapping[str, Any], data: DataSet, *, depth: int, width: int) -> Any:
    """A vision transformer that says which piece of clothing lies on a photograph of 72 x 72 pixels, 81 patches: the
    piece covers a seventh of the picture.
    """
    from llf_ray.tasks import Classification, TimmModel

    options = {"img_size": 72, "patch_size": 8, "depth": depth, "embed_dim": width, "num_heads": width // 16}
    return Classification(
        model=TimmModel(name="vit_tiny_patch16_224", options=options),
        data=data,
        augment=Augment(shift=8, flip=0.5),
        **task_changes,
    )


def _classification(task: Any, start: Long, tuning: Long, *, batch: int, lr: float, options: bool) -> Family:
    return Family(
        name="classification",
        question="Which patches does it take to tell a piece of clothing on a photograph?",
        base=_base(tuning, task, batch=batch, lr=lr / 4),
        arms=classification_arms(task, Steady(rate=13), options=options),
        untrained={f"{name}_untrained": _cut(task, Steady(rate=13), selector=name) for name in UNLEARNED},
        start=_base(start, task, batch=batch, lr=lr),
    )


def _segmentation(data: Any, *, start: float, tuning: float) -> Family:
    """Street scenes by a transformer of 6 blocks at 96 pixels, 64 patches."""
    from llf_ray.tasks import Segmentation, TimmModel

    options = {"img_size": 96, "patch_size": 12, "embed_dim": 96, "depth": 6, "num_heads": 3}
    task = Segmentation(
        model=TimmModel(name="vit_tiny_patch16_224", options=options),
        data=data,
        augment=MaskAugment(size=96, scale=(0.75, 1.5), colour=0.0),
    )

    def arm(**changes: Any) -> Any:
        cut = Steady(rate=13, after=(1, 2, 3, 4))  # with and without fusion, which by itself leaves out block 5
        return _with(task, Cropping(schedule=cut, queries="patches", ramp=round(tuning / 3), **changes))

    return Family(
        name="segmentation",
        question="Can the class of every pixel be told by tokens that left on the way?",
        base=_base(Long(generations=1, epochs=tuning, warmup_epochs=min(1, tuning / 4)), task, batch=8, lr=1e-3),
        arms={
            DENSE: task,
            "cropr_fusion": arm(),
            "random_fusion": arm(selector="random"),
            "cropr": arm(fusion=False),
        },
        start=_base(Long(generations=1, epochs=start, warmup_epochs=min(1, start / 4)), task, batch=8, lr=1.5e-3),
    )


def _with(task: Any, cropping: Cropping) -> Any:
    from llf_ray.tasks import CroppedTransformer

    return replace(task, model=CroppedTransformer(model=task.model, cropping=cropping))


def _instances(task: Any, *, start: float, tuning: float) -> Family:
    """Objects and their masks by a transformer that keeps half of its patches behind each block."""
    return Family(
        name="instances",
        question="Do objects keep their outlines where seven of eight patches leave on the way?",
        base=_base(Long(generations=1, epochs=tuning, warmup_epochs=tuning / 10), task, batch=4, lr=5e-4),
        arms={
            DENSE: task,
            "cropr_fusion": _with(task, Cropping(schedule=KeepRate(keep=0.5))),
            "random_fusion": _with(task, Cropping(schedule=KeepRate(keep=0.5), selector="random")),
        },
        start=_base(Long(generations=1, epochs=start, warmup_epochs=start / 10), task, batch=4, lr=1e-3),
    )


def _small_heads(**changes: Any) -> Heads:
    """Those that two cores can train."""
    small: dict[str, Any] = {
        "channels": 64,
        "proposal_convs": 1,
        "proposals_learned": 128,
        "region_scale": 112,
        "regions_learned": 64,
        "box_convs": 0,
        "mask_size": 8,
        "mask_convs": 2,
    }
    return Heads(**{**small, **changes})


def _nuclei() -> Any:
    from llf_ray.tasks import Detection, TimmModel

    options = {
        **{"img_size": 256, "patch_size": 8, "embed_dim": 96, "depth": 5, "num_heads": 3},
        **{"class_token": False, "global_pool": ""},
    }
    return Detection(
        model=TimmModel(name="vit_tiny_patch16_224", options=options),
        data=Nuclei(root="nuclei", channels=1),
        augment=LargeScaleJitter(size=256, scale=(0.75, 1.5)),
        heads=_small_heads(
            strides=(4, 8, 16), anchors=(10, 16, 26), ratios=(1.0,), proposals=(400, 300), box_size=5, box_width=128
        ),
    )


def _scenes(**few: int) -> Any:
    from llf_ray.tasks import Detection, TimmModel

    options = {
        **{"img_size": 128, "patch_size": 16, "embed_dim": 48, "depth": 5, "num_heads": 3},
        **{"class_token": False, "global_pool": ""},
    }
    return Detection(
        model=TimmModel(name="vit_tiny_patch16_224", options=options),
        data=FashionScenes(**few),
        augment=LargeScaleJitter(size=128, scale=(0.75, 1.5)),
        heads=_small_heads(
            strides=(8, 16), anchors=(24, 48), ratios=(0.5, 1.0, 2.0), proposals=(100, 50), box_width=64
        ),
    )


def _by_heart() -> Family:
    """A detector learns 32 photographs of COCO by heart; no published number is claimed."""
    from llf_ray.tasks import Detection, TimmModel

    task = Detection(
        model=TimmModel(
            name="vit_tiny_patch16_224",
            options={"img_size": 256, "depth": 5, "class_token": False, "global_pool": ""},
        ),
        data=Coco128(root="coco128", held_out="train2017", num_train=32),
        augment=LargeScaleJitter(size=256, scale=(1.0, 1.0), flip=0.0),
        heads=_small_heads(anchors=(16, 32, 64, 128), proposals=(400, 200), box_width=256),
    )
    return Family(
        name="by_heart",
        question="Can a detector that loses tokens fit photographs of COCO at all?",
        base=_base(Long(generations=1, epochs=100, warmup_epochs=3), task, batch=4, lr=1e-3, decay=0.01),
        arms={"cropr_fusion": _with(task, Cropping(schedule=KeepRate(keep=0.5)))},
        start=None,
        most_seeds=1,
    )


def _quick(seeds: tuple[int, ...]) -> CroprStudy:
    data = FashionOnPhotographs(size=72, num_train=400, num_held_out=200)
    task = _clothes({}, data, depth=6, width=48)
    recipe = Long(generations=1, epochs=2, warmup_epochs=0.5)
    family = _classification(task, recipe, replace(recipe, epochs=1), batch=50, lr=2e-3, options=False)
    pixels = _segmentation(
        FashionMasks(pictures=FashionOnPhotographs(size=48, num_train=100, num_held_out=40)), start=2, tuning=2
    )
    objects = _instances(_scenes(num_train=40, num_held_out=20), start=2, tuning=1)
    return CroprStudy(
        name="cropr-quick",
        size="quick",
        families=(family, pixels, objects),
        seeds=seeds,
        about="bundled images (clothes on photographs): 400 of 72x72, 100 with masks, 40 scenes of several pieces",
    )


def _small(seeds: tuple[int, ...]) -> CroprStudy:
    root = os.environ.get(ROOT_VARIABLE)
    more = Mosaic(root="fashion_mnist", tile=28, channels=1)
    items = more if root and located("fashion_mnist/y_train.npy").exists() else None
    data = FashionOnPhotographs(size=72, items=items, num_train=6000 if items else None, num_held_out=2000)
    task = _clothes({}, data, depth=6, width=64)
    family = _classification(
        task,
        Long(generations=1, epochs=20, warmup_epochs=2),
        Long(generations=1, epochs=8, warmup_epochs=0.5),
        batch=50,
        lr=2e-3,
        options=True,
    )
    told = ["6,000 images of clothes on photographs" if items else "2,000 bundled images of clothes on photographs"]
    families = [family]
    for mark, words, make_family in (
        ("camvid/train", "CamVid", lambda: _segmentation(CamVid(), start=10, tuning=6)),
        ("nuclei/images", "nuclei", lambda: _instances(_nuclei(), start=10, tuning=5)),
        ("coco128/instances_train2017.json.gz", "32 photographs of COCO128", _by_heart),
    ):
        if root and located(mark).exists():
            families.append(make_family())
            told.append(words)
        else:
            told.append(f"no {words} (there is no {mark} where data lie)")
    return CroprStudy(name="cropr-small", size="small", families=tuple(families), seeds=seeds, about="; ".join(told))


def _paper(seeds: tuple[int, ...]) -> CroprStudy:
    """Table 1, as in jobs/paper/vit_imagenet_vit_large.py."""
    from llf_ray.tasks import Classification, Pretrained, TimmModel

    task = Classification(
        model=TimmModel(
            name="vit_large_patch16_224.mae",
            drop_path=0.2,
            options={"global_pool": "avg", "pool_include_prefix": True},
        ),
        data=Folder(root="imagenet"),
        augment=TimmAugment(size=224, policy="rand-m9-mstd0.5-inc1", erase=0.25),
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
        start=Pretrained(),
        num_workers=12,
    )
    recipe = Long(generations=1, epochs=50, warmup_epochs=5)
    base = _base(recipe, task, batch=1024, lr=4e-3)
    base = replace(
        base,
        optim=replace(base.optim, layer_decay=0.75),
        engine=EngineSettings(batch=1024, micro_batch=256, precision="bf16"),
        resources=Resources(workers=1, cpus=16, gpus=1),
        checkpoints=Checkpoints(),
    )
    family = Family(
        name="classification",
        question="What does ViT-L/16 of MAE keep on ImageNet?",
        base=base,
        arms=classification_arms(task, Steady(rate=8), options=True),
        untrained={f"{name}_untrained": _cut(task, Steady(rate=8), selector=name) for name in UNLEARNED},
        start=None,
    )
    return CroprStudy(
        name="cropr-paper",
        size="paper",
        families=(family, _scenes_of_ade20k(base)),
        seeds=seeds,
        about="ImageNet with ViT-L/16 of MAE at 224, R = 8, 50 epochs; ADE20K with EVA-02-L at 512, R = 40, 64 epochs",
    )


def _scenes_of_ade20k(base: RunConfig) -> Family:
    """As in jobs/paper/segmentation_cropr_ade20k_eva02_large.py."""
    from llf_ray.tasks import Pretrained, Segmentation, TimmModel

    task = Segmentation(
        model=TimmModel(
            name="eva02_large_patch14_224.mim_m38m",
            drop_path=0.2,
            options={"img_size": 512, "patch_size": 16},
        ),
        data=Ade20k(),
        augment=MaskAugment(size=512),
        start=Pretrained(),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        num_workers=12,
    )

    def arm(**changes: Any) -> Any:
        return _with(task, Cropping(schedule=Steady(rate=40), queries="patches", ramp=32, **changes))

    recipe = Long(generations=1, epochs=64, warmup_epochs=0, shape="linear", power=0.9)
    return Family(
        name="segmentation",
        question="What does EVA-02-L keep on ADE20K?",
        base=replace(
            base,
            recipe=recipe,
            optim=replace(base.optim, lr=2e-5, layer_decay=0.9),
            engine=EngineSettings(batch=8, precision="bf16"),
        ),
        arms={DENSE: task, "cropr_fusion": arm(), "random_fusion": arm(selector="random"), "cropr": arm(fusion=False)},
        start=None,
    )
