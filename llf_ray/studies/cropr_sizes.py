"""The study of Token Cropr at three sizes: what is trained on what, and for how long."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llf_ray.config import unknown
from llf_ray.data import Augment, FashionOnPhotographs, Folder, Mosaic, TimmAugment
from llf_ray.data.base import ROOT_VARIABLE, DataSet, located
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.nn.cropr import Cropping, CroprOptions, Schedule, Steady
from llf_ray.recipes.long import Long
from llf_ray.run import Checkpoints, Resources, RunConfig
from llf_ray.studies.cropr import DENSE, SIZES, CroprStudy, Family, Size, check_size

__all__ = ["classification_arms", "make"]


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
    from llf_ray.tasks import CroppedTransformer

    def arm(**changes: Any) -> Any:
        cropping = Cropping(schedule=schedule, **{"fusion": False, **changes})
        return replace(task, model=CroppedTransformer(model=task.model, cropping=cropping))

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
        start=_base(start, task, batch=batch, lr=lr),
    )


def _quick(seeds: tuple[int, ...]) -> CroprStudy:
    data = FashionOnPhotographs(size=72, num_train=400, num_held_out=200)
    task = _clothes({}, data, depth=6, width=48)
    recipe = Long(generations=1, epochs=2, warmup_epochs=0.5)
    family = _classification(task, recipe, replace(recipe, epochs=1), batch=50, lr=2e-3, options=False)
    return CroprStudy(
        name="cropr-quick",
        size="quick",
        families=(family,),
        seeds=seeds,
        about="400 bundled images (clothes on photographs, 72x72), a ViT of 6 blocks",
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
    words = "6,000 images of clothes on photographs" if items else "2,000 bundled images of clothes on photographs"
    return CroprStudy(
        name="cropr-small", size="small", families=(family,), seeds=seeds, about=f"{words} (72x72), a ViT of 6 blocks"
    )


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
        start=None,
    )
    return CroprStudy(
        name="cropr-paper",
        size="paper",
        families=(family,),
        seeds=seeds,
        about="ImageNet with ViT-L/16 of MAE at 224, R = 8, 50 epochs",
    )
