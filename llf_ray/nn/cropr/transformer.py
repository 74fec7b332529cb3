"""Token pruning inside the vision transformers that timm already has.

`apply` gives a timm model modules behind some of its blocks and its forward pass the cuts. Everything that timm made
stays: blocks, names of parameters, head. The model's class becomes a subclass of its own class, so that it is saved,
copied, compiled and exported like any other, and timm's functions still know it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llf_ray.config import SettingError, check_number
from llf_ray.nn.cropr.merge import most_merged, paired
from llf_ray.nn.cropr.module import Cropr, Scorer
from llf_ray.nn.cropr.schedule import Budget, Schedule, Shape, places
from llf_ray.nn.cropr.select import attended, class_attention, draw, patch_variance, ranked
from llf_ray.nn.cropr.settings import Cropping

__all__ = [
    "Cropped",
    "CroppedDistilled",
    "CroppedEva",
    "CroppedVisionTransformer",
    "Seen",
    "apply",
    "cropr_modules",
    "module_names",
    "refusal",
    "shape_of",
]


class Seen(NamedTuple):
    """A forward pass in detail.

    ``output``: class scores (B, classes), or features on the patch grid (B, h, w, D). ``auxiliary``: the answer of each
    module, (B, queries, outputs). ``depth``: the number of blocks that each patch went through before it was cut,
    (B, h, w); the number of all blocks where it never was. None under token merging.
    """

    output: Tensor
    auxiliary: tuple[Tensor, ...]
    depth: Tensor | None


class Cropped(nn.Module):
    """What `apply` adds to a timm model."""

    cropping: Cropping
    kept: tuple[int, ...]  # patches alive behind each of `after`, for the grid that the model was made for
    after: tuple[int, ...]
    grid: tuple[int, int]
    blocks: Any
    num_prefix_tokens: int

    def kept_at(self, epoch: int) -> tuple[int, ...]:
        """Patches alive behind each module in a training epoch, from 0: fewer are cut over the first `ramp` epochs."""
        if epoch >= self.cropping.ramp:
            return self.kept
        return _kept(cast("Schedule", self.cropping.at(epoch)), self._shape(self.grid))

    def forward(
        self,
        x: Tensor,
        *,
        kept: tuple[int, ...] | None = None,
        detailed: bool = False,
        grid: bool = False,
    ) -> Any:
        """Class scores of images (B, C, H, W), or `Seen`.

        Args:
            x: images.
            kept: patches alive behind each module; None: those of the schedule.
            detailed: `Seen` instead, with auxiliary answers and depths.
            grid: the output is the last block's tokens, normalised, in raster order, in place of class scores; where
                patches were cut for good, zeros.
        """
        tokens, auxiliary, places_of, depth, shape = self._run(x, kept, detailed, grid)
        tokens = self.norm(tokens)  # type: ignore[operator]
        patches = tokens[:, self.num_prefix_tokens :]
        output = _in_raster(patches, places_of, shape) if grid else self.forward_head(tokens)  # type: ignore[operator]
        if not detailed:
            return output
        return Seen(output, tuple(auxiliary), None if depth is None else depth.unflatten(1, shape))

    def forward_features(self, x: Tensor, **_: Any) -> Tensor:
        """Tokens behind the last block, normalised, prefix first; patches in the order in which they were kept."""
        return cast("Tensor", self.norm(self._run(x, None, False, False)[0]))  # type: ignore[operator]

    def _run(
        self, images: Tensor, kept: tuple[int, ...] | None, detailed: bool, grid: bool
    ) -> tuple[Tensor, list[Tensor], Tensor | None, Tensor | None, tuple[int, int]]:
        """Tokens behind the last block, auxiliary answers, the patch that each token is, depths, and the grid."""
        cropping, prefix = self.cropping, self.num_prefix_tokens
        tokens, table, mixed = self._embedded(images)
        shape = self._grid_of(images)
        alive = tokens.shape[1] - prefix
        if kept is None:
            kept = self.kept if shape == self.grid else _kept(_solved(self, shape), self._shape(shape))
        needed = table is not None or detailed or grid or cropping.selector == "variance"
        where = torch.arange(alive, device=tokens.device).expand(tokens.shape[0], -1) if needed else None
        rope = table
        flatness = patch_variance(images, shape) if cropping.selector == "variance" else None
        sizes = tokens.new_ones(tokens.shape[:2]) if cropping.selector == "merge" else None
        depth = _depths(where, len(self.blocks)) if detailed and sizes is None else None
        stash: list[tuple[Tensor, Tensor | None]] = []
        auxiliary: list[Tensor] = []
        targets = dict(zip(self.after, kept, strict=True))

        for number, block in enumerate(self.blocks, 1):
            if number == len(self.blocks) and stash:
                tokens = torch.cat([tokens, *(cut for cut, _ in stash)], 1)
                if where is not None:
                    where = torch.cat([where, *(place for _, place in stash if place is not None)], 1)
                    rope = table if table is None else _gathered(table, where)
            own = rope if rope is None or not mixed else rope[number - 1]
            target = targets.get(number, alive)
            if sizes is not None:
                tokens, sizes = self._merged(block, tokens, sizes, target, alive)
                alive = target
                continue
            if cropping.selector == "class_attention" and target < alive:
                with attended(block.attn) as found:
                    tokens = self._through(block, tokens, own)
                scores = class_attention(found, prefix)
            else:
                tokens = self._through(block, tokens, own)
                if number not in targets or (target == alive and not (detailed and cropping.learns)):
                    continue
                scores = self._scored(block, number, tokens, where, flatness, auxiliary, detailed)
            if target < alive:
                chosen, others = ranked(scores, target, both=cropping.fusion or depth is not None)
                if cropping.fusion and others is not None:
                    stash.append((_picked(tokens, others, prefix), None if where is None else where.gather(1, others)))
                if depth is not None and others is not None and where is not None:
                    depth = depth.scatter(1, where.gather(1, others), number)
                tokens = torch.cat([tokens[:, :prefix], _picked(tokens, chosen, prefix)], 1)
                if where is not None:
                    where = where.gather(1, chosen)
                    rope = table if table is None else _gathered(table, where)
                alive = target
        return tokens, auxiliary, where, depth, shape

    def _scored(
        self,
        block: nn.Module,
        number: int,
        tokens: Tensor,
        where: Tensor | None,
        flatness: Tensor | None,
        auxiliary: list[Tensor],
        detailed: bool,
    ) -> Tensor:
        """A score for each patch, (B, M); the module's auxiliary answer joins the others."""
        selector, prefix = self.cropping.selector, self.num_prefix_tokens
        patches = tokens[:, prefix:]
        if selector == "random":
            return draw(patches, number, training=self.training)
        if selector == "variance":
            assert flatness is not None
            assert where is not None
            return flatness.gather(1, where)
        module = cast("Cropr | Scorer", block.cropr)
        seen = None
        if detailed and isinstance(module, Cropr):
            first = {"class": 0, "prefix": 0, "patches": prefix}[self.cropping.sees]
            if self.cropping.sees == "class" and prefix:
                has_class = getattr(self, "cls_token", None) is not None
                seen = torch.cat([tokens[:, : int(has_class)], patches], 1)
            else:
                seen = tokens[:, first:]
        scores, answer = module(patches, seen)
        if answer is not None:
            auxiliary.append(answer)
        temperature = self.cropping.options.sampled
        if self.training and temperature:
            scores = scores.float() / temperature - torch.rand_like(scores.float()).log().neg().log()
        return cast("Tensor", -scores if selector == "non_salient" else scores)

    def _through(self, block: nn.Module, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """One block, as timm runs it."""
        given = {} if rope is None else {"rope": rope}
        if getattr(self, "grad_checkpointing", False) and self.training:
            return cast("Tensor", checkpoint(block, tokens, use_reentrant=False, **given))
        return cast("Tensor", block(tokens, **given))

    def _merged(self, block: Any, tokens: Tensor, sizes: Tensor, target: int, alive: int) -> tuple[Tensor, Tensor]:
        """A block that merges tokens between attention and MLP."""
        prefix = self.num_prefix_tokens
        bias = sizes.log()[:, None, None] if self.cropping.proportional else None
        with attended(block.attn, bias) as found:
            tokens = tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))
        if target < alive:
            tokens, sizes = paired(found.key, alive - target, prefix).merged(tokens, sizes)
        return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens)))), sizes

    def _embedded(self, images: Tensor) -> tuple[Tensor, Tensor | None, bool]:
        """Tokens in front of the first block, the rotary table of all patches, and whether it has one for each block
        and head.
        """
        tokens = self.patch_drop(self._pos_embed(self.patch_embed(images)))  # type: ignore[operator]
        return self.norm_pre(tokens), None, False  # type: ignore[operator]

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        high, wide = images.shape[-2:]
        if (high, wide) == tuple(self.patch_embed.img_size or ()):  # type: ignore[union-attr]
            return self.grid
        return cast("tuple[int, int]", tuple(self.patch_embed.dynamic_feat_size((high, wide))))  # type: ignore[union-attr, operator]

    def _shape(self, grid: tuple[int, int]) -> Shape:
        return Shape(
            patches=grid[0] * grid[1],
            prefix=self.num_prefix_tokens,
            blocks=len(self.blocks),
            fusion=self.cropping.fusion,
        )


class CroppedVisionTransformer(Cropped, VisionTransformer):
    """timm's ViT (AugReg, MAE, DeiT, DINOv2, SigLIP, CLIP, ...) that loses tokens."""


class CroppedDistilled(Cropped, VisionTransformerDistilled):
    """DeiT with a distillation token."""


class CroppedEva(Cropped, Eva):
    """timm's EVA family (EVA-02, DINOv3, ViT with rotary positions): each token keeps its own place."""

    def _embedded(self, images: Tensor) -> tuple[Tensor, Tensor | None, bool]:
        tokens, table = self._pos_embed(self.patch_embed(images))
        return self.norm_pre(tokens), table, bool(getattr(self, "rope_mixed", False))


_CLASSES: dict[type[nn.Module], type[Cropped]] = {
    VisionTransformer: CroppedVisionTransformer,
    VisionTransformerDistilled: CroppedDistilled,
    Eva: CroppedEva,
}
_REASONS = {
    "SwinTransformer": "it attends within windows of a fixed grid and merges patches from stage to stage",
    "SwinTransformerV2": "it attends within windows of a fixed grid and merges patches from stage to stage",
    "VisionTransformerSAM": "it attends within windows of a fixed grid, with a bias for each relative position",
    "Hiera": "it pools tokens within windows of a fixed grid from stage to stage",
    "MultiScaleVit": "it pools tokens on a fixed grid from stage to stage",
    "PyramidVisionTransformerV2": "it shrinks keys and values on a fixed grid from stage to stage",
    "MaxxVit": "it attends within windows and grids of a fixed size",
    "Beit": "its attention has a bias for each relative position on the whole grid",
    "VisionTransformerRelPos": "its attention has a bias for each relative position on the whole grid",
    "Xcit": "it attends across channels and convolves the patch grid in every block",
    "Cait": "its class token joins behind the blocks that patches go through",
    "NaFlexVit": "it packs images of many sizes with masks of their own",
}


def refusal(model: nn.Module) -> str | None:
    """Why tokens cannot be pruned in ``model``, or None."""
    if isinstance(model, Cropped):
        return f"{type(model).__name__} loses tokens already; apply() goes on a model as timm makes it"
    if type(model) not in _CLASSES:
        name = type(model).__name__
        reason = _REASONS.get(name, "it is none of timm's plain vision transformers, whose blocks take any tokens")
        known = ", ".join(kind.__name__ for kind in _CLASSES)
        return f"{name} cannot lose tokens: {reason} (supported: {known})"
    table = getattr(model, "rope", None)
    if table is not None and "MRope" in type(table).__name__:
        return f"{type(table).__name__} cannot follow tokens: its tables are made anew for every image"
    return None


def apply(model: nn.Module, cropping: Cropping, *, outputs: int | None = None) -> Cropped:
    """Give a timm vision transformer the means to lose tokens; changes and returns ``model`` itself.

    Parameters keep their names; a module behind block i is ``blocks.{i - 1}.cropr``. Stochastic depth of the last block
    is set to 0, as published. New weights come from torch's ambient generator.

    Args:
        model: of timm's VisionTransformer, VisionTransformerDistilled or Eva.
        cropping: what is cut, where, and by what.
        outputs: of the auxiliary heads, per query; None for the model's own number of classes.

    Raises:
        SettingError: a model whose tokens cannot be pruned, by name and with the reason; a schedule that does not fit.
    """
    why = refusal(model)
    if why is not None:
        raise SettingError(f"model: {why}")
    network: Any = model
    grid = tuple(network.patch_embed.grid_size)
    _check(network, cropping)
    network.__class__ = _CLASSES[type(model)]
    network.cropping, network.grid = cropping, grid
    shape = network._shape(grid)
    schedule = _solved(network, grid)
    network.after = places(schedule, shape)
    network.kept = _kept(schedule, shape)
    if isinstance(cropping.schedule, Budget):
        network.cropping = replace(cropping, schedule=schedule)
    last = network.blocks[-1]
    for name in ("drop_path1", "drop_path2"):
        if hasattr(last, name):
            setattr(last, name, nn.Identity())
    if cropping.selector == "merge":
        _check_merging(network)
    if cropping.learns:
        outputs = network.num_classes if outputs is None else outputs
        check_number("outputs", outputs, low=1)
        queries = shape.patches if cropping.queries == "patches" else cropping.queries
        like = next(network.blocks[0].parameters())
        for number in network.after:
            module = Cropr(network.embed_dim, outputs, queries, cropping.options)
            network.blocks[number - 1].cropr = module.to(like.device, like.dtype)
    return cast("Cropped", network)


def shape_of(model: Cropped) -> Shape:
    """What schedules are computed from, for the images that a model was made for."""
    return model._shape(model.grid)


def module_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that `apply` added, such as ``blocks.5.cropr``."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, (Cropr, Scorer)))


def cropr_modules(model: nn.Module) -> tuple[Cropr | Scorer, ...]:
    """The modules that `apply` added, from the first block to the last."""
    return tuple(module for module in model.modules() if isinstance(module, (Cropr, Scorer)))


def _check(network: Any, cropping: Cropping) -> None:
    if cropping.selector == "class_attention" and getattr(network, "cls_token", None) is None:
        raise SettingError("selector = 'class_attention': the model has no class token whose attention could choose")
    if cropping.selector == "merge" and not all(type(block) is Block for block in network.blocks):
        kind = next(type(block).__name__ for block in network.blocks if type(block) is not Block)
        raise SettingError(
            f"selector = 'merge': tokens merge between attention and MLP of timm's Block, and the model has {kind}"
        )
    rate = getattr(network, "patch_drop", None)
    if getattr(rate, "prob", 0.0):
        raise SettingError("model: patch dropout takes patches at random before any module sees them; set it to 0")


def _check_merging(network: Any) -> None:
    alive = network.grid[0] * network.grid[1]
    for number, target in zip(network.after, network.kept, strict=True):
        most = most_merged(alive, 0)
        if alive - target > most:
            raise SettingError(
                f"selector = 'merge': {alive - target} of {alive} patches behind block {number}; one merging takes "
                f"away at most half, {most}"
            )
        alive = target


def _solved(network: Any, grid: tuple[int, int]) -> Schedule:
    """The schedule with concrete numbers: a budget in FLOPs becomes a rate."""
    schedule = network.cropping.schedule
    if not isinstance(schedule, Budget):
        return cast("Schedule", schedule)
    from llf_ray.nn.cropr.flops import block_costs  # it runs blocks, which are made above

    costs = block_costs(network)
    shape = network._shape(grid)
    after = places(schedule, shape)

    def share(kept: tuple[int, ...]) -> float:
        return costs.share(shape, after, kept, attention=schedule.attention)

    return schedule.solved(shape, share)


@lru_cache(maxsize=256)
def _kept(schedule: Schedule, shape: Shape) -> tuple[int, ...]:
    return schedule.kept(shape)


def _picked(tokens: Tensor, which: Tensor, prefix: int) -> Tensor:
    """Patches by number, (B, K, D)."""
    return tokens.gather(1, (which + prefix)[..., None].expand(-1, -1, tokens.shape[-1]))


def _gathered(table: Tensor, where: Tensor) -> Tensor:
    """Rotary rows of the patches that are alive: (B, 1, K, d) of a table (N, d), (depth, B, heads, K, d) of one for
    each block and head, (depth, heads, N, d).

    The axis of heads is spelled out: a table (B, K, d) would be read as one for each head where B equals the heads.
    """
    if table.dim() == 2:
        return table[where][:, None]
    if table.dim() == 4:
        return table[:, :, where].transpose(1, 2)
    raise SettingError(
        f"model: a rotary table of shape {tuple(table.shape)} is not known; (N, d) or (depth, heads, N, d)"
    )


def _depths(where: Tensor | None, blocks: int) -> Tensor:
    assert where is not None
    return torch.full_like(where, blocks)


def _in_raster(patches: Tensor, where: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """Tokens at their own places, (B, h, w, D); zeros where patches are gone."""
    assert where is not None
    batch, _, width = patches.shape
    number = shape[0] * shape[1]
    index = where[..., None].expand(-1, -1, width)
    return patches.new_zeros(batch, number, width).scatter(1, index, patches).unflatten(1, shape)
