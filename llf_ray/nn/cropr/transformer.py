"""Token pruning inside the vision transformers that timm already has.

`apply` gives a timm model modules behind some of its blocks and its forward pass the cuts. Everything that timm made
stays: blocks, names of parameters, head. The model's class becomes a subclass of its own class, so that it is saved,
copied, compiled and exported like any other, and timm's functions still know it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import torch
from timm.layers import AttentionRope, DropPath
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import Attention, Block, ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llf_ray.config import SettingError, check_number
from llf_ray.nn.cropr.flops import block_costs
from llf_ray.nn.cropr.merge import most_merged, paired
from llf_ray.nn.cropr.module import Cropr, Scorer
from llf_ray.nn.cropr.schedule import Budget, Schedule, Shape, places
from llf_ray.nn.cropr.select import Attended, attended, class_attention, draw, patch_variance, ranked
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
        return _lengths(self.cropping, self.cropping.at(epoch), self._shape(self.grid))

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
        if grid and self.cropping.selector == "merge":
            raise SettingError("grid = True: merged tokens (selector = 'merge') have no place of their own")
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

    def forward_intermediates(self, *_: Any, **__: Any) -> Any:
        """Refused: timm's runs every block on all tokens and puts what lies between them on the whole grid.

        Raises:
            SettingError: always.
        """
        raise SettingError(
            "forward_intermediates: between its blocks this model has fewer tokens than the grid has places; features "
            "of the last block are model(images, grid=True)"
        )

    def set_input_size(self, *args: Any, **settings: Any) -> None:
        """As timm's; the schedule is then for the new number of patches."""
        super().set_input_size(*args, **settings)  # type: ignore[misc]
        _fit(self)

    def _run(
        self, images: Tensor, kept: tuple[int, ...] | None, detailed: bool, grid: bool
    ) -> tuple[Tensor, list[Tensor], Tensor | None, Tensor | None, tuple[int, int]]:
        """Tokens behind the last block, auxiliary answers, the patch that each token is, depths, and the grid."""
        cropping, prefix = self.cropping, self.num_prefix_tokens
        shape = self._grid_of(images)
        if detailed and cropping.queries == "patches":
            self._check_queries(shape)
        tokens, table, mixed = self._embedded(images)
        alive = tokens.shape[1] - prefix
        if kept is None:
            kept = self.kept if shape == self.grid else _lengths(cropping, cropping.schedule, self._shape(shape))
        targets = dict(zip(self.after, kept, strict=True))
        needed = table is not None or detailed or grid or cropping.selector == "variance"
        where = torch.arange(alive, device=tokens.device).expand(tokens.shape[0], -1) if needed else None
        flatness = patch_variance(images, shape) if cropping.selector == "variance" else None
        sizes = tokens.new_ones(tokens.shape[:2]) if cropping.selector == "merge" else None
        depth = None if where is None or not detailed or sizes is not None else torch.full_like(where, len(self.blocks))
        each = torch.arange(tokens.shape[0], device=tokens.device)[:, None]  # images, by number
        first = torch.arange(prefix, device=tokens.device).expand(tokens.shape[0], -1) if prefix else None
        rope, moved = table, False
        stash: list[tuple[Tensor, Tensor | None]] = []
        auxiliary: list[Tensor] = []

        for number, block in enumerate(self.blocks, 1):
            if number == len(self.blocks) and stash:
                tokens = torch.cat([tokens, *(cut for cut, _ in stash)], 1)
                moved = where is not None
                if where is not None:
                    where = torch.cat([where, *(place for _, place in stash if place is not None)], 1)
            if table is not None and (mixed or moved):
                rope, moved = _rows_of(table[number - 1] if mixed else table, where, alive < shape[0] * shape[1]), False
            target = targets.get(number, alive)
            if sizes is not None:
                tokens, sizes = self._merged(block, tokens, sizes, target, alive)
                alive = target
                continue
            tokens, found = self._through(block, tokens, rope, listen=target < alive)
            if number not in targets or (target == alive and not (detailed and cropping.learns)):
                continue
            scores = self._scored(block, number, tokens, found, where, flatness, auxiliary if detailed else None)
            if target == alive:
                continue
            chosen, others = ranked(scores, target, both=cropping.fusion or depth is not None)
            if cropping.fusion and others is not None:
                place = None if where is None else where.gather(1, others)
                stash.append((_picked(tokens, others + prefix, each), place))
            if depth is not None and others is not None and where is not None:
                depth = depth.scatter(1, where.gather(1, others), number)
            rows = chosen + prefix if first is None else torch.cat([first, chosen + prefix], 1)
            tokens, alive = _picked(tokens, rows, each), target
            if where is not None:
                where, moved = where.gather(1, chosen), True
        return tokens, auxiliary, where, depth, shape

    def _scored(
        self,
        block: nn.Module,
        number: int,
        tokens: Tensor,
        attention: Attended | None,
        where: Tensor | None,
        flatness: Tensor | None,
        auxiliary: list[Tensor] | None,
    ) -> Tensor:
        """A score for each patch, (B, M); the module's auxiliary answer joins the others where they are wanted."""
        selector, prefix = self.cropping.selector, self.num_prefix_tokens
        if selector == "random":
            return draw(tokens[:, prefix:], number, training=self.training)
        if selector == "variance":
            assert flatness is not None
            assert where is not None
            return flatness.gather(1, where)
        if selector == "class_attention":
            assert attention is not None
            return class_attention(attention, prefix)
        module = cast("Cropr | Scorer", block.cropr)
        seen = self._seen(tokens) if auxiliary is not None and isinstance(module, Cropr) else None
        # the prefix is scored in vain: to leave it out would copy all the others
        scores, answer = module(tokens, seen)
        scores = scores[:, prefix:]
        if answer is not None and auxiliary is not None:
            auxiliary.append(answer)
        temperature = self.cropping.options.sampled
        if self.training and temperature:
            scores = scores.float() / temperature - torch.rand_like(scores.float()).log().neg().log()
        return -scores if selector == "non_salient" else scores

    def _check_queries(self, grid: tuple[int, int]) -> None:
        """Raise where there are not as many queries as patches."""
        modules = (getattr(block, "cropr", None) for block in self.blocks)
        made = next((len(module.queries) for module in modules if isinstance(module, Cropr)), None)
        if made not in (None, grid[0] * grid[1]):
            raise SettingError(
                f"queries = 'patches': the modules have {made}, one for each patch of the grid that they were made "
                f"for; these images have {_by(grid)} patches"
            )

    def _seen(self, tokens: Tensor) -> Tensor:
        """What an aggregator looks at."""
        prefix = self.num_prefix_tokens
        classes = int(getattr(self, "cls_token", None) is not None)
        first = {"class": classes, "prefix": prefix, "patches": 0}[self.cropping.sees]
        return tokens if first == prefix else torch.cat([tokens[:, :first], tokens[:, prefix:]], 1)

    def _through(
        self, block: nn.Module, tokens: Tensor, rope: Tensor | None, *, listen: bool
    ) -> tuple[Tensor, Attended | None]:
        """One block, as timm runs it, and what its attention compared where the class token's is asked for."""
        given = {} if rope is None else {"rope": rope}
        run: Any = block
        if getattr(self, "grad_checkpointing", False) and self.training:
            run = partial(checkpoint, block, use_reentrant=False)
        if not listen or self.cropping.selector != "class_attention":
            return run(tokens, **given), None
        with attended(getattr(block, "attn", block)) as found:
            tokens = run(tokens, **given)
        return tokens, found

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
        """Patches from top to bottom and from left to right.

        Raises:
            SettingError: the model cannot take images of this size.
        """
        embed: Any = self.patch_embed
        size, own = tuple(images.shape[-2:]), tuple(embed.img_size)
        if size != own and not getattr(self, "dynamic_img_size", False):
            raise SettingError(f"images of {_by(size)}: the model takes {_by(own)}, or any with dynamic_img_size=True")
        steps = tuple(side // patches for side, patches in zip(own, self.grid, strict=True))
        if size != own and not embed.dynamic_img_pad and (size[0] % steps[0] or size[1] % steps[1]):
            raise SettingError(f"images of {_by(size)}: the model takes sides that are multiples of {_by(steps)}")
        return cast("tuple[int, int]", tuple(embed.dynamic_feat_size(size)))

    def _shape(self, grid: tuple[int, int]) -> Shape:
        return _shape(self, grid, self.cropping.fusion)


class CroppedVisionTransformer(Cropped, VisionTransformer):  # type: ignore[misc]  # other arguments than timm's
    """timm's ViT (AugReg, MAE, DeiT, DINOv2, SigLIP, CLIP, ...) that loses tokens."""


class CroppedDistilled(Cropped, VisionTransformerDistilled):  # type: ignore[misc]
    """DeiT with a distillation token."""


class CroppedEva(Cropped, Eva):  # type: ignore[misc]
    """timm's EVA family (EVA-02, DINOv3, ViT with rotary positions): each token keeps its own place."""

    def _embedded(self, images: Tensor) -> tuple[Tensor, Tensor | None, bool]:
        tokens, table = self._pos_embed(self.patch_embed(images))
        return self.norm_pre(tokens), table, bool(getattr(self, "rope_mixed", False))


_CLASSES: dict[type[nn.Module], type[Cropped]] = {
    VisionTransformer: CroppedVisionTransformer,
    VisionTransformerDistilled: CroppedDistilled,
    Eva: CroppedEva,
}
_HEARD = (Attention, AttentionRope, EvaAttention, ParallelScalingBlock)  # one comparison of queries and keys each
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
    _check(network, cropping)
    # all that may raise comes first: a model that is refused stays as it was
    grid = _grid(network)
    shape = _shape(network, grid, cropping.fusion)
    schedule = _solved(network, cropping, shape)
    after, kept = places(schedule, shape), _lengths(cropping, schedule, shape)
    modules = _modules(network, cropping, shape, outputs, len(after)) if cropping.learns else ()
    network.__class__ = _CLASSES[type(model)]
    network.cropping, network.grid = replace(cropping, schedule=schedule), grid
    network.after, network.kept = after, kept
    for module in network.blocks[-1].modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    for number, added in zip(after, modules, strict=False):
        network.blocks[number - 1].cropr = added
    return cast("Cropped", network)


def _modules(network: Any, cropping: Cropping, shape: Shape, outputs: int | None, number: int) -> tuple[Cropr, ...]:
    outputs = network.num_classes if outputs is None else outputs
    check_number("outputs", outputs, low=1)
    queries = shape.patches if cropping.queries == "patches" else cropping.queries
    like = next(network.blocks[0].parameters())
    return tuple(
        Cropr(network.embed_dim, outputs, queries, cropping.options).to(like.device, like.dtype) for _ in range(number)
    )


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
    selector, kinds = cropping.selector, [(block, getattr(block, "attn", block)) for block in network.blocks]
    if selector == "class_attention":
        if getattr(network, "cls_token", None) is None:
            raise SettingError(f"selector = {selector!r}: the model has no class token whose attention could choose")
        for _, attention in kinds:
            if type(attention) not in _HEARD:
                raise SettingError(
                    f"selector = {selector!r}: {type(attention).__name__} has no single attention of the class token"
                )
    if selector == "merge":
        for block, attention in kinds:
            if type(block) is not Block or type(attention) is not Attention:
                raise SettingError(
                    f"selector = {selector!r}: tokens merge between attention and MLP of timm's Block, and the model "
                    f"has {type(block).__name__} with {type(attention).__name__}"
                )
    rate = getattr(network, "patch_drop", None)
    if getattr(rate, "prob", 0.0):
        raise SettingError("model: patch dropout takes patches at random before any module sees them; set it to 0")


def _fit(network: Any) -> None:
    """Lengths for the images that the network is made for."""
    network.grid = _grid(network)
    network.kept = _lengths(network.cropping, network.cropping.schedule, network._shape(network.grid))


def _grid(network: Any) -> tuple[int, int]:
    embed = network.patch_embed
    return cast("tuple[int, int]", tuple(embed.dynamic_feat_size(tuple(embed.img_size))))


def _shape(network: Any, grid: tuple[int, int], fusion: bool) -> Shape:
    return Shape(patches=grid[0] * grid[1], prefix=network.num_prefix_tokens, blocks=len(network.blocks), fusion=fusion)


def _solved(network: Any, cropping: Cropping, shape: Shape) -> Schedule:
    """The schedule with concrete numbers: a budget in FLOPs becomes a rate."""
    schedule = cropping.schedule
    if not isinstance(schedule, Budget):
        return schedule
    costs, after = block_costs(network), places(schedule, shape)

    def share(kept: tuple[int, ...]) -> float:
        return costs.share(shape, after, kept, attention=schedule.attention)

    return schedule.solved(shape, share)


def _lengths(cropping: Cropping, schedule: Schedule | Budget, shape: Shape) -> tuple[int, ...]:
    """Patches alive behind each module.

    Raises:
        SettingError: they do not fit the network, or one merging would have to take more than there is.
    """
    kept = _kept(cast("Any", schedule), shape)
    if cropping.selector != "merge":
        return kept
    for block, before, now in zip(places(schedule, shape), (shape.patches, *kept), kept, strict=False):
        most = most_merged(before, 0)
        if before - now > most:
            raise SettingError(
                f"selector = 'merge': {before - now} of {before} patches behind block {block}; one merging takes "
                f"away at most half, {most}"
            )
    return kept


@lru_cache(maxsize=256)
def _kept(schedule: Schedule, shape: Shape) -> tuple[int, ...]:
    return schedule.kept(shape)


def _picked(tokens: Tensor, which: Tensor, each: Tensor) -> Tensor:
    """Tokens by number, (B, K, D) of (B, M, D), each image its own (B, K); ``each`` numbers the images, (B, 1).

    Rows of one long matrix are copied whole; `torch.gather` would look each of its numbers up.
    """
    batch, length, width = tokens.shape
    rows = torch.add(which, each, alpha=length).flatten()
    return tokens.reshape(-1, width).index_select(0, rows).view(batch, -1, width)


def _rows_of(table: Tensor, where: Tensor | None, cut: bool) -> Tensor:
    """Rotary rows of the patches that are alive: (B, 1, K, d) of a table (N, d), (B, heads, K, d) of one for each head,
    (heads, N, d); the table itself as long as nothing was ``cut``.

    The axis of heads is spelled out: a table (B, K, d) would be read as one for each head where B equals the heads.
    """
    if not cut or where is None:
        return table
    if table.dim() == 2:
        return table.index_select(0, where.flatten()).view(where.shape[0], 1, -1, table.shape[-1])
    rows = table.index_select(1, where.flatten()).view(table.shape[0], where.shape[0], -1, table.shape[-1])
    return rows.transpose(0, 1)


def _in_raster(patches: Tensor, where: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """Tokens at their own places, (B, h, w, D); zeros where patches are gone."""
    assert where is not None
    batch, _, width = patches.shape
    number = shape[0] * shape[1]
    index = where[..., None].expand(-1, -1, width)
    return patches.new_zeros(batch, number, width).scatter(1, index, patches).unflatten(1, shape)


def _by(size: Any) -> str:
    return " x ".join(str(side) for side in size)
