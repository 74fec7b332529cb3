"""Prediction depth: the layer from which on k-NN probes agree with what a network says in the end.

Baldock et al. 2021, arXiv:2106.09647. Shapes: N examples, P probes from the input to the softmax, M bank entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.forget.groups import block_of

__all__ = [
    "Depths",
    "knn_predictions",
    "numbered_blocks",
    "pooled",
    "prediction_depth",
    "prediction_depths",
    "probe_features",
    "residual_probes",
]

INPUT, SOFTMAX = "input", "softmax"


def prediction_depth(probes: Tensor, final: Tensor) -> Tensor:
    """The smallest probe from which on all probes say what the network says, (N,); P where the last one does not.

    Args:
        probes: classes that each probe gives, (P, N), from the input on.
        final: classes that the network gives, (N,).
    """
    agrees = probes == final[None]
    from_here_on = agrees.flip(0).long().cumprod(0).flip(0)
    return probes.shape[0] - from_here_on.sum(0)


@torch.no_grad()
def knn_predictions(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    k: int = 30,
    leave_one_out: bool = False,
    block: int = 2048,
    classes: int | None = None,
) -> Tensor:
    """The most frequent class among the ``k`` nearest bank entries (Euclidean), (N,); ties go to the lower class.

    Exact, ``block`` queries at a time: memory beside the features is that of one (block, M) matrix of distances and
    of the search in it, 0.4 GB for a bank of 50,000; the features of 50,000 examples, 2,048 each, are another 0.4 GB.

    Args:
        bank: features, (M, D).
        labels: their classes, (M,).
        queries: features, (N, D).
        k: neighbours.
        leave_one_out: query i is bank entry i and does not count among its own neighbours.
        block: queries at a time.
        classes: how many there are; None: the largest label and one.

    Raises:
        ValueError: fewer bank entries than neighbours.
    """
    if bank.shape[0] - leave_one_out < k:
        raise ValueError(f"k = {k}: the bank has {bank.shape[0]} entries" + ", one of them the query" * leave_one_out)
    number = classes or int(labels.max()) + 1
    squares = torch.cat([part.square().sum(1) for part in bank.split(block)])  # not of all at once: that is a copy
    memory = bank.new_empty(min(block, queries.shape[0]), bank.shape[0])  # one for all blocks
    found = []
    for start in range(0, queries.shape[0], block):
        part = queries[start : start + block]
        # of |q - b|^2 what does not depend on b is left out: the order is the same
        distances = torch.addmm(squares[None], part, bank.T, alpha=-2.0, out=memory[: part.shape[0]])
        if leave_one_out:
            own = torch.arange(start, start + part.shape[0], device=bank.device)
            distances[torch.arange(part.shape[0], device=bank.device), own] = torch.inf
        nearest = distances.topk(k, dim=1, largest=False, sorted=False).indices
        votes = torch.zeros(part.shape[0], number, dtype=torch.int32, device=bank.device)
        votes.scatter_add_(1, labels[nearest], torch.ones_like(nearest, dtype=torch.int32))
        found.append(votes.argmax(1))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)


def numbered_blocks(network: nn.Module) -> tuple[str, ...]:
    """The innermost blocks that have numbers and parts of their own, in the network's order (``layer1.0``,
    ``stages.2.blocks.1``, ``features.denseblock1.denselayer2``; see `llf_ray.forget.groups.block_of`).
    """
    found = [
        name
        for name, module in network.named_modules()
        if "." in name and block_of(name) == name and next(module.children(), None) is not None
    ]
    return tuple(name for name in found if not any(other.startswith(f"{name}.") for other in found))


def residual_probes(network: nn.Module) -> tuple[str, ...]:
    """Modules to probe: the stem, then every block of `numbered_blocks`; in a network without such blocks, its top
    modules. The input and the softmax come by themselves.
    """
    blocks = numbered_blocks(network)
    return (*_stem(network, blocks[0]), *blocks) if blocks else tuple(name for name, _ in network.named_children())


def _stem(network: nn.Module, block: str) -> tuple[str, ...]:
    """The module in front of a block, the outermost if there are several; empty where nothing is in front."""
    path = block.split(".")
    for depth, name in enumerate(path):
        outside = network.get_submodule(".".join(path[:depth]))
        names = [child for child, _ in outside.named_children()]
        if before := names[: names.index(name)]:
            return (".".join([*path[:depth], before[-1]]),)
    return ()


@contextmanager
def _watching(network: nn.Module, names: Sequence[str], square: bool, seen: dict[str, Tensor]) -> Iterator[None]:
    """Notes the features behind each module, of ``square`` images or others; what the modules give is not kept."""
    told = getattr(network, "output_fmt", "NCHW") == "NHWC"  # timm's word for it, which not every network has

    def pool(values: Tensor) -> Tensor:
        shape = values.shape
        return pooled(values, channels_last=told or (square and len(shape) == 4 and shape[1] == shape[2] != shape[3]))

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and given and isinstance(given[0], list):  # dense: what comes next sees all
                seen[name] = torch.cat([pool(part) for part in (*given[0], output)], 1)
            elif isinstance(output, Tensor):
                seen[name] = pool(output)
            else:
                raise SettingError(f"module {name!r} gives a {type(output).__name__}, no tensor: it cannot be probed")

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def pooled(values: Tensor, *, channels_last: bool = False) -> Tensor:
    """Features of one vector an example, (N, D): the mean over places of images, (N, C, H, W) or with the channels
    last (N, H, W, C), and over tokens, (N, T, C).
    """
    if values.dim() == 4:
        return values.mean((1, 2) if channels_last else (2, 3))
    return values.mean(1) if values.dim() == 3 else values.flatten(1)


@torch.no_grad()
def probe_features(
    network: nn.Module,
    batches: Iterable[Tensor],
    names: Sequence[str],
) -> tuple[Mapping[str, Tensor], Tensor]:
    """Features at the input, behind each named module and at the softmax, (N, D) on the CPU; the classes said, (N,).

    What a module gives is `pooled`, the input is flattened as it is. A dense layer (one that is given a list) gives its
    own channels alone; behind it are those that it was given, too.

    Args:
        network: in evaluation mode.
        batches: inputs, (B, ...).
        names: modules, in the order in which data pass them.

    Raises:
        SettingError: a module gives something else than a tensor.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in (INPUT, *names, SOFTMAX)}
    said = []
    for batch in batches:
        seen: dict[str, Tensor] = {}
        with _watching(network, names, batch.shape[-2] == batch.shape[-1], seen):
            scores = network(batch).float()
        parts[INPUT].append(batch.flatten(1).float().cpu())
        for name in names:
            parts[name].append(seen[name].float().cpu())
        parts[SOFTMAX].append(scores.softmax(1).cpu())
        said.append(scores.argmax(1).cpu())
    return {name: torch.cat(values) for name, values in parts.items()}, torch.cat(said)


@dataclass(frozen=True, kw_only=True)
class Depths:
    """Prediction depth of every example, (N,), in probes; ``accuracy`` of each probe against the true classes."""

    probes: tuple[str, ...]
    depth: Tensor
    accuracy: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean depth."""
        return float(self.depth.double().mean())

    @property
    def histogram(self) -> tuple[int, ...]:
        """How many examples have each depth, from 0 to the number of probes."""
        return tuple(torch.bincount(self.depth, minlength=len(self.probes) + 1).tolist())


def prediction_depths(
    network: nn.Module,
    bank: Iterable[Tensor],
    bank_labels: Tensor,
    queries: Iterable[Tensor] | None = None,
    query_labels: Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    k: int = 30,
    block: int = 2048,
) -> Depths:
    """Depth of held-out examples or, without ``queries``, of the bank's own, each left out of its own neighbours.

    Args:
        network: in evaluation mode.
        bank: training inputs in batches.
        bank_labels: their classes, (M,).
        queries: held-out inputs in batches.
        query_labels: their classes, (N,), for the probes' accuracy.
        names: modules to probe; None: `residual_probes`.
        k: neighbours (30 in the paper, which found results hardly to depend on it).
        block: queries at a time.
    """
    where = residual_probes(network) if names is None else tuple(names)
    features, said = probe_features(network, bank, where)
    own = queries is None
    asked, final = (features, said) if queries is None else probe_features(network, queries, where)
    truth = bank_labels if own else query_labels
    probes, accuracy = [], []
    for name in features:
        found = knn_predictions(
            features[name],
            bank_labels,
            asked[name],
            k=k,
            leave_one_out=own,
            block=block,
            classes=features[SOFTMAX].shape[1],
        )
        probes.append(found)
        accuracy.append(float((found == truth).double().mean()) if truth is not None else float("nan"))
    return Depths(probes=tuple(features), depth=prediction_depth(torch.stack(probes), final), accuracy=tuple(accuracy))
