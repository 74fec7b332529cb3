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
    "Examples",
    "knn_predictions",
    "numbered_blocks",
    "pooled",
    "prediction_depth",
    "prediction_depths",
    "probe_features",
    "residual_probes",
]

INPUT, SOFTMAX = "input", "softmax"
FLOAT = 4  # bytes
LIMIT = 4 * 2**30  # bytes
Examples = tuple[Callable[[], Iterable[Tensor]], Tensor]  # inputs in batches at each call, and their classes, (N,)


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
    probes: Sequence[str],
    number: int,
    device: torch.device | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Features at some probes, each (N, D) in float32, and the classes said, (N,) on the CPU; None where the input is
    all that is asked for: that needs no network.

    What a module gives is `pooled`, the input is flattened as it is. A dense layer (one that is given a list) gives its
    own channels alone; behind it are those that it was given, too.

    Args:
        network: in evaluation mode.
        batches: inputs, (B, ...).
        probes: modules by name, "input" and "softmax".
        number: N, inputs of all batches together.
        device: where the features go; None: the CPU.

    Raises:
        SettingError: a module gives something else than a tensor.
        ValueError: there are more inputs, or fewer.
    """
    asked = any(name != INPUT for name in probes)
    said = torch.zeros(number, dtype=torch.long)
    held, stop = dict[str, Tensor](), 0
    inside = [name for name in probes if name not in (INPUT, SOFTMAX)]
    for batch in batches:
        start, stop = stop, stop + len(batch)
        if stop > number:
            break
        seen = {INPUT: batch.flatten(1)}
        if asked:
            with _watching(network, inside, batch.shape[-2] == batch.shape[-1], seen):
                scores = network(batch).float()
            seen[SOFTMAX], said[start:stop] = scores.softmax(1), scores.argmax(1)
        for name in probes:
            if name not in held:
                held[name] = torch.empty(number, seen[name].shape[1], dtype=torch.float32, device=device)
            held[name][start:stop] = seen[name]
    if stop != number:
        raise ValueError(f"{'more' if stop > number else stop} inputs where there should be {number}")
    return held, said if asked else None


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
    parts: Mapping[str, Examples],
    *,
    bank: str,
    names: Sequence[str] | None = None,
    k: int = 30,
    block: int = 2048,
    limit: int = LIMIT,
) -> dict[str, Depths]:
    """Depth of the examples of every part, by neighbours in one of them; its own are left out of their neighbours.

    Memory: the features of as many probes as ``limit`` has room for, of one at least, beside the search of
    `knn_predictions`. Features at a probe take 4 D bytes an example of any part. Where they do not all fit, the
    network sees everything several times, and the same is found. They lie on the device of the inputs where it has
    room for them twice, else on the CPU.

    Args:
        network: in evaluation mode.
        parts: by name inputs in batches, given anew at each call, and their true classes, (N,).
        bank: the part that holds the neighbours, training inputs.
        names: modules to probe; None: `residual_probes`.
        k: neighbours (30 in the paper, which found results hardly to depend on it).
        block: queries at a time.
        limit: bytes of features that are held at once.

    Raises:
        SettingError: a module gives something else than a tensor.
        ValueError: a part has another number of inputs than of classes, or the bank fewer entries than neighbours.
    """
    probes = (INPUT, *(residual_probes(network) if names is None else names), SOFTMAX)
    example = next(iter(parts[bank][0]()))
    widths = {name: one.shape[1] for name, one in probe_features(network, [example], probes, len(example))[0].items()}
    taught, number = parts[bank][1], sum(len(labels) for _, labels in parts.values())
    sizes = {name: FLOAT * number * width for name, width in widths.items()}
    search = 3 * FLOAT * min(block, number) * len(taught)  # distances, and what sorts them
    said: dict[str, Tensor] = {}
    found: dict[str, list[Tensor]] = {part: [] for part in parts}
    for some in _passes(sizes, limit):
        device = _room(example.device, sum(sizes[name] for name in some) + search)
        held = {}
        for part, (inputs, labels) in parts.items():
            held[part], classes = probe_features(network, inputs(), some, len(labels), device)
            said |= {} if classes is None else {part: classes}
        for name in some:
            here = {part: features.pop(name) for part, features in held.items()}
            for part, queries in here.items():
                own, num_classes = part == bank, widths[SOFTMAX]
                nearest = knn_predictions(
                    here[bank], taught.to(device), queries, k=k, leave_one_out=own, block=block, classes=num_classes
                )
                found[part].append(nearest.cpu())
            del here, queries  # before the next pass makes room
    return {
        part: Depths(
            probes=probes,
            depth=prediction_depth(torch.stack(found[part]), said[part]),
            accuracy=tuple(float((one == labels).double().mean()) for one in found[part]),
        )
        for part, (_, labels) in parts.items()
    }


def _passes(sizes: Mapping[str, int], limit: int) -> list[tuple[str, ...]]:
    """Probes in their order, in as few groups as the sum of a group's sizes allows; a group has one at least."""
    groups: list[tuple[str, ...]] = []
    room = -1
    for name, size in sizes.items():
        if size > room:
            groups.append(())
            room = limit
        groups[-1] += (name,)
        room -= size
    return groups


def _room(device: torch.device, needed: int) -> torch.device:
    """The device, if it has free memory for twice as many bytes; else the CPU."""
    if device.type == "cuda" and 2 * needed <= torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")
