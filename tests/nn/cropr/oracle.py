"""Token Cropr once more, from the paper's words: one image at a time, tokens in lists, cross-attention in sums.

It shares with the package the timm model's own parts (embedding, blocks, norm, head) and the modules' weights, and no
line of code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Cut", "cropped", "gathered", "raw_scores"]


@dataclass
class Cut:
    """What one image's forward pass gives."""

    tokens: Tensor  # behind the last block, normalised, (M, D): prefix, then patches
    places: list[int]  # of the patches among them
    output: Tensor  # class scores
    answers: list[Tensor] = field(default_factory=list)  # of each module, (N, outputs)
    depths: dict[int, int] = field(default_factory=dict)  # blocks that a patch went through, where it was cut


def cropped(model: Any, image: Tensor, kept: dict[int, int], *, fusion: bool, sees: str = "class") -> Cut:
    """``kept``: patches alive behind a block, by its number from 1; a module there gives scores."""
    tokens, table, mixed = embedded(model, image[None])
    prefix = model.num_prefix_tokens
    head, alive = tokens[0, :prefix], [(place, token) for place, token in enumerate(tokens[0, prefix:])]
    pruned: list[tuple[int, Tensor]] = []
    cut = Cut(tokens, [], tokens)
    for number, block in enumerate(model.blocks, 1):
        if fusion and number == len(model.blocks):
            alive = alive + pruned
        places = [place for place, _ in alive]
        sequence = torch.stack([*head, *(token for _, token in alive)])[None]
        if table is None:
            sequence = block(sequence)[0]
        else:
            own = table[number - 1] if mixed else table
            sequence = block(sequence, rope=own[..., places, :])[0]
        head, alive = sequence[:prefix], list(zip(places, sequence[prefix:], strict=True))
        if number not in kept:
            continue
        classes = int(getattr(model, "cls_token", None) is not None)
        first = sequence[: {"class": classes, "prefix": prefix, "patches": 0}[sees]]
        cut.answers.append(gathered(block.cropr, torch.cat([first, sequence[prefix:]]).detach()))
        scores = raw_scores(block.cropr, sequence[prefix:].detach())
        order = sorted(range(len(alive)), key=lambda place: -scores[place].item())
        pruned += [alive[place] for place in order[kept[number] :]]
        cut.depths.update({alive[place][0]: number for place in order[kept[number] :]})
        alive = [alive[place] for place in order[: kept[number]]]
    cut.places = [place for place, _ in alive]
    cut.tokens = model.norm(torch.stack([*head, *(token for _, token in alive)])[None])[0]
    cut.output = model.forward_head(cut.tokens[None])[0]
    return cut


def embedded(model: Any, images: Tensor) -> tuple[Tensor, Tensor | None, bool]:
    """Tokens, rotary table, and whether it has one for each block: timm's own."""
    tokens = model._pos_embed(model.patch_embed(images))
    tokens, table = tokens if isinstance(tokens, tuple) else (tokens, None)
    return model.norm_pre(tokens), table, bool(getattr(model, "rope_mixed", False))


def raw_scores(module: Any, tokens: Tensor) -> Tensor:
    """Logits of all queries and heads, summed, (M,): no softmax, no scale."""
    queries, keys = projected(module, tokens)[:2]
    heads, width = module.options.heads, queries.shape[1] // module.options.heads
    scores = []
    for key in keys:
        total = torch.zeros((), dtype=tokens.dtype)
        for query in queries:
            for head in range(heads):
                span = slice(head * width, (head + 1) * width)
                total = total + (query[span] * key[span]).sum()
        scores.append(total)
    return torch.stack(scores)


def gathered(module: Any, tokens: Tensor) -> Tensor:
    """The auxiliary answer, (N, outputs): softmax attention, MLP with a residual around it alone, head."""
    queries, keys, values = projected(module, tokens)
    heads, width = module.options.heads, queries.shape[1] // module.options.heads
    rows = []
    for query in queries:
        parts = []
        for head in range(heads):
            span = slice(head * width, (head + 1) * width)
            logits = torch.stack([(query[span] * key[span]).sum() for key in keys]) / math.sqrt(width)
            weights = logits.exp() / logits.exp().sum()
            parts.append(sum(weight * value[span] for weight, value in zip(weights, values, strict=True)))
        row = torch.cat(parts)
        row = F.linear(row, module.out.weight, module.out.bias) if heads > 1 else row
        if module.mlp is not None:
            inner = F.layer_norm(row, row.shape, module.mlp_norm.weight, module.mlp_norm.bias, eps=1e-6)
            inner = F.gelu(F.linear(inner, module.mlp.fc1.weight, module.mlp.fc1.bias))
            row = row + F.linear(inner, module.mlp.fc2.weight, module.mlp.fc2.bias)
        row = F.layer_norm(row, row.shape, module.head_norm.weight, module.head_norm.bias, eps=1e-5)
        rows.append(F.linear(row, module.head.weight, module.head.bias))
    return torch.stack(rows)


def projected(module: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (N, D), keys and values (M, D) as they meet."""
    options = module.options
    if options.norm:
        tokens = F.layer_norm(tokens, tokens.shape[-1:], module.norm.weight, module.norm.bias, eps=1e-6)
    found = []
    for name, value in (("query", module.queries), ("key", tokens), ("value", tokens)):
        layer = getattr(module, name)
        found.append(F.linear(value, layer.weight, layer.bias) if name in options.project else value)
    return found[0], found[1], found[2]
