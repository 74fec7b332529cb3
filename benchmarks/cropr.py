"""Token Cropr: against random pruning, against what multiply-adds allow, against token merging; and in training.

Weights and images are noise, which time does not depend on. Models are stripped, as they are shipped. On a CPU one
thread in fp32, in processor time; on a GPU bf16, by the clock. Multiply-adds stand beside in both countings, since the
one in use for transformers leaves attention out.
"""

from __future__ import annotations

import copy
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.harness import RESAMPLES, Block, Contender, Ratio, Report, Size, Target, interleave, ratio, spread
from llf_ray.nn.cropr import Budget, Count, Cropping, EarlyCut, Schedule, Steady, apply, count, shape_of, strip

__all__ = ["measure"]

MODELS: dict[str, dict[str, Any]] = {
    "ViT-Ti": {"model_name": "vit_tiny_patch16_224"},
    "ViT-S": {"model_name": "vit_small_patch16_224"},
    "ViT-B": {"model_name": "vit_base_patch16_224"},
    "toy": {"model_name": "vit_tiny_patch16_224", "depth": 4, "embed_dim": 48},
}
SIDES = (224, 384)  # pixels
LARGE = 32  # images a batch
HELD = 80e9  # multiply-adds of a dense forward pass at most: on a CPU batches of large models are smaller
SECONDS = 3.0  # that one comparison may take on a CPU, before which it still has `FEWEST` rounds
FEWEST = 4
PER_SECOND = 30e9  # multiply-adds of one thread, roughly: only the number of rounds depends on it
DENSE, CROPR, RANDOM, MERGED = "dense", "Cropr", "random", "merging"
FUSED = ", fusion"


def measure(size: Size) -> Report:
    """All comparisons; a tiny one of each shows that they run."""
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    for part in (against_random, against_dense, over_resolution, against_merging, segmentation, training):
        more, aims = part(size)
        rows, targets = [*rows, *more], [*targets, *aims]
    return Report(
        name=f"cropr-{size.device}",
        title="Token Cropr",
        rows=rows,
        targets=targets,
        notes=[
            "10^9 multiply-adds an image: linear layers and patch embedding alone; and with attention",
            "of FLOPs: speed-up over the dense model, of the speed-up that multiply-adds with attention allow",
            "fusion: the last block sees all tokens again",
            "on a CPU: images a second of processor time of one thread, and large batches are smaller for large models",
        ],
    )


# --------------------------------------------------------------------------------------------------------- comparisons


def against_random(size: Size) -> tuple[list[dict[str, Any]], list[Target]]:
    """The same schedule, scored by modules and drawn by lot: what choosing costs."""
    rows: list[dict[str, Any]] = []
    found: list[Ratio] = []
    for name, side, batch in _cells(size):
        for fusion in (False, True):
            learnt = _steady(0.95, name, side, fusion=fusion)
            drawn = replace(learnt, selector="random")
            case = _Case(f"{CROPR} and {RANDOM}" + FUSED * fusion, name, side, batch)
            more, blocks = case.measured({CROPR: _pruned(case, learnt), RANDOM: _pruned(case, drawn)}, size)
            found.append(_times(blocks, RANDOM, CROPR, size))
            more[0]["of random"] = found[-1]
            rows += more
    values = [each.value for each in found]
    worst = min(found, key=lambda each: each.value)
    return rows, [
        Target(what="Cropr over random, median of cells", limit=0.98, least=True, found=_median(values)),
        Target(what="Cropr over random, worst cell", limit=0.95, least=True, found=worst),
    ]


def against_dense(size: Size) -> tuple[list[dict[str, Any]], list[Target]]:
    """Speed-ups, and what is left of those that multiply-adds allow."""
    rows: list[dict[str, Any]] = []
    kept: dict[str, list[Ratio]] = {}
    early: list[Ratio] = []
    for name, side, batch in _cells(size):
        if batch == 1 or (name == "ViT-B" and side > 224 and size.device == "cpu"):
            continue
        case = _Case("against dense", name, side, batch)
        models = {DENSE: case.made()}
        for share in (0.9, 0.95):
            models[f"{CROPR} {share:.0%}"] = _pruned(case, _steady(share, name, side, fusion=False))
        models[f"{CROPR} 95%{FUSED}"] = _pruned(case, _steady(0.95, name, side, fusion=True))
        models["early cut"] = _pruned(case, Cropping(schedule=EarlyCut(pruned=0.8, block=1), fusion=False))
        more, blocks = case.measured(models, size)
        rows += _beside_dense(more, blocks, size)
        for row in more[1:]:
            kept.setdefault(row["who"], []).append(row["of FLOPs"])
        early.append(_times(blocks, DENSE, "early cut", size))
    aims = [
        Target(
            what=f"{who}: speed-up over what FLOPs allow, worst cell",
            limit=0.95,
            least=True,
            found=min(each, key=lambda found: found.value),
        )
        for who, each in kept.items()
    ]
    worst = min(early, key=lambda found: found.value)
    return rows, [*aims, Target(what="early cut over dense, worst cell", limit=3.0, least=True, found=worst)]


def over_resolution(size: Size) -> tuple[list[dict[str, Any]], list[Target]]:
    """One image at a time, 95 % pruned, from small images to large ones."""
    rows: list[dict[str, Any]] = []
    for side in (64, 96) if size.tiny else (160, 224, 320, 384, 512):
        case = _Case("over resolution", "toy" if size.tiny else "ViT-S", side, 1)
        models = {DENSE: case.made()}
        for fusion in (False, True):
            models[f"{CROPR} 95%" + FUSED * fusion] = _pruned(case, _steady(0.95, case.name, side, fusion=fusion))
        more, blocks = case.measured(models, size)
        rows += _beside_dense(more, blocks, size)
    return rows, []


def against_merging(size: Size) -> tuple[list[dict[str, Any]], list[Target]]:
    """Token merging at a published rate, and Cropr at no more multiply-adds."""
    rows: list[dict[str, Any]] = []
    found: list[Ratio] = []
    for name, side, batch in _cells(size):
        if name == "ViT-B" or (side > 224 and (batch == 1 or (name == "ViT-S" and size.device == "cpu"))):
            continue
        case = _Case("against merging", name, side, batch)
        rate = 1 if size.tiny else {224: 13, 384: 40}[side]
        merging = Cropping(schedule=Steady(rate=rate, absorb=False), selector="merge", fusion=False)
        models = {DENSE: case.made(), MERGED: _pruned(case, merging)}
        share = case.counted(models[MERGED]).total / case.counted(models[DENSE]).total
        models[CROPR] = _pruned(case, Cropping(schedule=Budget(flops=share), fusion=False))
        more, blocks = case.measured(models, size)
        rows += _beside_dense(more, blocks, size)
        found.append(_times(blocks, MERGED, CROPR, size))
        more[-1]["of merging"] = found[-1]
    worst = min(found, key=lambda each: each.value)
    return rows, [Target(what="Cropr over merging at equal FLOPs, worst cell", limit=1.0, least=True, found=worst)]


def segmentation(size: Size) -> tuple[list[dict[str, Any]], list[Target]]:
    """Features of every patch of one image; a query for each patch, folded and as the paper's code runs them."""
    name, side = ("toy", 96) if size.tiny else ("ViT-S", 512)
    case = _Case("features of all patches", name, side, 1)
    cropping = Cropping(schedule=_about(0.86, name, side, True), queries="patches")
    with _seeded():
        whole = apply(case.made(), cropping, outputs=2)
    models = {
        DENSE: _Features(case.made()),
        CROPR: _Grid(_finished(strip(whole), size)),
        f"{CROPR}, not folded": _Grid(_finished(_unfolded(whole), size)),
    }
    rows, blocks = case.measured(models, size)
    rows = _beside_dense(rows, blocks, size)
    over, folded = _times(blocks, DENSE, CROPR, size), _times(blocks, f"{CROPR}, not folded", CROPR, size)
    return rows, [
        Target(what="features of all patches, one image: Cropr over dense", limit=1.0, least=True, found=over),
        Target(what="the same: folded over not folded", limit=1.0, least=True, found=folded),
    ]


def training(size: Size) -> tuple[list[dict[str, Any]], list[Target]]:
    """Steps with all auxiliary losses, and the memory that they need."""
    name, side, batch = ("toy", 64, 2) if size.tiny else ("ViT-S", 224, 4 if size.device == "cpu" else 64)
    case = _Case("training", name, side, batch)
    models: dict[str, nn.Module] = {DENSE: case.made()}
    for fusion in (False, True):
        with _seeded():
            models[CROPR + FUSED * fusion] = apply(case.made(), _steady(0.95, name, side, fusion=fusion))
    with _settings(size):
        images, labels = case.images(size), torch.arange(batch, device=size.device) % 10
        steps = {who: partial(_step, model.to(size.device).train(), images, labels) for who, model in models.items()}
        memory = {who: _memory(step, models[who], size) for who, step in steps.items()}
        contenders = [Contender(name=who, run=step) for who, step in steps.items()]
        blocks = interleave(contenders, rounds=2 if size.tiny else 5, wait=_wait(size))
    rows: list[dict[str, Any]] = [
        {
            **case.row(who),
            "images/s": batch / spread(_seconds(blocks[who], size))[0],
            "x dense": None if who == DENSE else _times(blocks, DENSE, who, size),
            "MB": memory[who] / 1e6,
        }
        for who in models
    ]
    return rows, []


# ----------------------------------------------------------------------------------------------------------- contenders


@dataclass(frozen=True)
class _Case:
    """One network, image size and batch, in one comparison."""

    what: str
    name: str
    side: int
    batch: int

    def made(self) -> Any:
        """The dense network, in fp32 on the CPU; always the same one."""
        return copy.deepcopy(_fresh(self.name, self.side))

    def images(self, size: Size) -> Tensor:
        """A batch on the device."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, 3, self.side, self.side, generator=generator).to(size.device)

    def counted(self, model: nn.Module) -> Count:
        """Multiply-adds of one image."""
        return count(model, (1, 3, self.side, self.side))

    def row(self, who: str) -> dict[str, Any]:
        """What a row begins with."""
        return {"what": self.what, "model": f"{self.name}, {self.side} px", "batch": self.batch, "who": who}

    def measured(
        self, models: Mapping[str, nn.Module], size: Size
    ) -> tuple[list[dict[str, Any]], dict[str, list[Block]]]:
        """A row and blocks for each; models come in fp32."""
        costs = {who: self.counted(model) for who, model in models.items()}
        each = self.batch * sum(cost.total for cost in costs.values()) / PER_SECOND  # seconds a round
        rounds = 2 if size.tiny else size.rounds
        if size.device == "cpu" and not size.tiny:
            rounds = max(FEWEST, min(rounds, int(SECONDS / each)))
        # passes of a block: one that takes no time is all noise
        passes = 10 if size.device == "cuda" else max(1, round(0.05 * len(models) / each))
        passes = 1 if size.tiny else passes
        with _settings(size):
            ready = {who: _finished(model, size) for who, model in models.items()}
            images = self.images(size).to(_dtype(size))
            contenders = [
                Contender(name=who, run=partial(_passes, model, images, passes)) for who, model in ready.items()
            ]
            blocks = interleave(contenders, rounds=rounds, wait=_wait(size))
        rows: list[dict[str, Any]] = []
        for who in models:
            middle, apart = spread(_seconds(blocks[who], size))
            rows.append(
                {
                    **self.row(who),
                    "GMAC": costs[who].linear / 1e9,
                    "with attention": costs[who].total / 1e9,
                    "images/s": passes * self.batch / middle,
                    "spread": f"{100 * apart / middle:.0f} %",
                }
            )
        return rows, blocks


class _Features(nn.Module):
    """The dense network's tokens on the patch grid."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.model.forward_features(images)[:, self.model.num_prefix_tokens :]
        return tokens.unflatten(1, self.model.patch_embed.grid_size)


class _Grid(nn.Module):
    """The pruned network's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images, grid=True)


class _AllQueries(nn.Module):
    """A module's scores with every query multiplied out."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.queries = module.queries

    def forward(self, tokens: Tensor, seen: Tensor | None = None) -> tuple[Tensor, None]:
        return (self.queries @ tokens.mT).sum(1), None


def _unfolded(model: Any) -> nn.Module:
    model = copy.deepcopy(model)
    for number in model.after:
        model.blocks[number - 1].cropr = _AllQueries(model.blocks[number - 1].cropr)
    return model


def _pruned(case: _Case, cropping: Cropping) -> nn.Module:
    with _seeded():
        return strip(apply(case.made(), cropping, outputs=2))


def _finished(model: nn.Module, size: Size) -> nn.Module:
    return model.to(size.device, _dtype(size)).eval()


def _dtype(size: Size) -> torch.dtype:
    return torch.bfloat16 if size.device == "cuda" else torch.float32


@torch.inference_mode()
def _passes(model: nn.Module, images: Tensor, number: int) -> None:
    for _ in range(number):
        model(images)


def _step(model: Any, images: Tensor, labels: Tensor) -> None:
    model.zero_grad()
    pruned = hasattr(model, "cropping")
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        seen = model(images, detailed=True) if pruned else None
        output = model(images) if seen is None else seen.output
        losses = [nn.functional.cross_entropy(output, labels)]
        if seen is not None:
            losses += [nn.functional.cross_entropy(answer[:, 0], labels) for answer in seen.auxiliary]
    torch.stack(losses).sum().backward()


def _memory(step: Callable[[], None], model: nn.Module, size: Size) -> float:
    """Bytes: on a GPU the most that a step has at once; on a CPU what its forward pass keeps for the backward pass."""
    if size.device == "cuda":
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return float(torch.cuda.max_memory_allocated())
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        step()
    return float(sum(kept.values()))


# ------------------------------------------------------------------------------------------------------------- settings


def _cells(size: Size) -> Iterator[tuple[str, int, int]]:
    """Models, pixels and batches."""
    if size.tiny:
        yield "toy", 64, 1
        yield "toy", 64, 2
        return
    for name in ("ViT-Ti", "ViT-S", "ViT-B"):
        for side in SIDES:
            yield name, side, 1
            yield name, side, _batch(name, side, size)


def _batch(name: str, side: int, size: Size) -> int:
    if size.device == "cuda":
        return LARGE
    with torch.device("meta"):
        dense = timm.create_model(**MODELS[name], pretrained=False, img_size=side)
    each = count(dense, (1, 3, side, side)).total
    return next((batch for batch in (LARGE, 16, 8, 4) if batch * each <= HELD), 2)


def _steady(share: float, name: str, side: int, *, fusion: bool) -> Cropping:
    return Cropping(schedule=_about(share, name, side, fusion), fusion=fusion)


def _about(share: float, name: str, side: int, fusion: bool) -> Schedule:
    """The steady rate behind every block that comes closest to cutting ``share`` of the patches."""
    with torch.device("meta"):
        model = timm.create_model(**MODELS[name], pretrained=False, img_size=side)
        shape = shape_of(apply(model, Cropping(schedule=Steady(rate=0), fusion=fusion), outputs=1))
    return Steady(rate=min(Steady(rate=0).most(shape), round((share * shape.patches - shape.prefix) / shape.last)))


@lru_cache(maxsize=1)
def _fresh(name: str, side: int) -> Any:
    with _seeded():
        return timm.create_model(**MODELS[name], pretrained=False, img_size=side, num_classes=1000)


@contextmanager
def _seeded() -> Iterator[None]:
    """Fresh weights are the same ones at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def _settings(size: Size) -> Iterator[None]:
    before = torch.get_num_threads()
    if size.device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _wait(size: Size) -> Callable[[], object]:
    return torch.cuda.synchronize if size.device == "cuda" else lambda: None


# ----------------------------------------------------------------------------------------------------------- arithmetic


def _seconds(blocks: Sequence[Block], size: Size) -> list[float]:
    """Of the clock on a GPU, of the processor on a CPU: one thread, so that other programs drop out."""
    return [block.wall if size.device == "cuda" else block.cpu for block in blocks]


def _times(blocks: Mapping[str, Sequence[Block]], above: str, below: str, size: Size) -> Ratio:
    return ratio(_seconds(blocks[above], size), _seconds(blocks[below], size))


def _beside_dense(
    rows: list[dict[str, Any]], blocks: Mapping[str, Sequence[Block]], size: Size
) -> list[dict[str, Any]]:
    """Rows, the dense model's first, with the speed-up over it and the share of it that multiply-adds allow."""
    for row in rows[1:]:
        row["x dense"] = _times(blocks, DENSE, row["who"], size)
        allowed = rows[0]["with attention"] / row["with attention"]
        found = row["x dense"]
        row["FLOPs allow"] = allowed
        row["of FLOPs"] = Ratio(found.value / allowed, found.low / allowed, found.high / allowed)
    return rows


def _median(values: Sequence[float]) -> Ratio:
    """Median over cells with an interval over draws of cells."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return Ratio(statistics.median(values), medians[RESAMPLES // 40], medians[-RESAMPLES // 40 - 1])
