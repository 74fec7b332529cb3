"""Curvature: the ends of the spectrum of a loss's Hessian, and its trace, from products of the Hessian with vectors.

A network's Hessian is never held: a product is a second backward pass (Pearlmutter 1994), summed over batches. The
largest and the smallest eigenvalue come from Lanczos iterations with restarts (ARPACK), the trace from random signs
(Hutchinson 1990). P: number of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from llf_ray.config import check_number
from llf_ray.measures.features import as_evaluated

__all__ = ["Curvature", "curvature", "hessian_product"]

Batches = Sequence[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """What the Hessian of a mean loss looks like from outside.

    ``top`` are its largest eigenvalues, the largest first, and ``smallest`` its smallest; ``error`` is the largest
    distance from any of them to a true eigenvalue, by its residual. ``trace_error`` is the standard error of the
    trace. ``notes`` say in words what was not found to the tolerance; what is not there is missing from ``top``, or
    None.
    """

    top: tuple[float, ...]
    smallest: float | None
    error: float
    trace: float
    trace_error: float
    num_weights: int
    num_examples: int
    num_products: int
    notes: tuple[str, ...] = ()


def curvature(
    network: nn.Module,
    batches: Batches,
    loss: Loss = F.cross_entropy,
    *,
    top: int = 5,
    probes: int = 100,
    tolerance: float = 1e-3,
    restarts: int = 100,
    seed: int = 0,
) -> Curvature:
    """Eigenvalues and trace of the Hessian of the mean loss over ``batches``, in evaluation mode.

    Over all weights that need a gradient. A Hessian-vector product takes about four forward passes over all batches;
    a search for eigenvalues takes twenty and some ten for each restart.

    Args:
        network: whose weights; it is left as it was.
        batches: inputs and classes, on the network's device; one to two thousand training examples are enough.
        loss: of scores and classes, the mean over a batch: the training loss.
        top: number of largest eigenvalues.
        probes: number of random vectors for the trace, 2 or more.
        tolerance: where Lanczos stops: residual over the eigenvalue; for the smallest, over the distance from the
            largest.
        restarts: the most of one search.
        seed: of the first vector and of the probes.

    Raises:
        ValueError: no examples, or too few weights for so many eigenvalues.
    """
    check_number("top", top, low=1)
    check_number("probes", probes, low=2)
    check_number("tolerance", tolerance, above=0.0)
    check_number("restarts", restarts, low=1)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    number = sum(weight.numel() for weight in weights)
    num_examples = sum(len(labels) for _, labels in batches)
    if not num_examples:
        raise ValueError("there are no examples")
    if number < top + 2:
        raise ValueError(f"top = {top}: the network has {number} weights")
    dtype = np.float64 if weights[0].dtype == torch.float64 else np.float32
    counted = [0]

    def product(vector: np.ndarray, shift: float = 0.0) -> np.ndarray:
        counted[0] += 1
        given = _shaped(torch.from_numpy(np.ascontiguousarray(vector.reshape(-1), dtype)), weights)
        moved = hessian_product(network, batches, given, loss)
        return np.asarray(torch.cat([part.reshape(-1) for part in moved]).cpu().numpy() - shift * vector.reshape(-1))

    first = np.random.default_rng(seed).standard_normal(number).astype(dtype)
    search = partial(_eigenvalues, product, first, tolerance=tolerance, restarts=restarts)
    notes = []
    values, vectors = search(top, "LA")
    if len(values) < top:
        notes.append(f"{len(values)} of the {top} largest eigenvalues reached {_told(tolerance, restarts)}")
    largest = float(values.max()) if len(values) else 0.0
    # shifted, so that the stop is one that a value near zero can reach; the vectors are the same
    low, low_vectors = search(1, "SA", shift=largest)
    if not len(low):
        notes.append(f"the smallest eigenvalue did not reach {_told(tolerance, restarts)}")
    found, directions = np.concatenate([values, low]), np.concatenate([vectors, low_vectors], 1)
    error = max((_residual(product, value, directions[:, i]) for i, value in enumerate(found)), default=math.nan)
    trace, trace_error = _trace(product, number, probes, seed, dtype)
    return Curvature(
        top=tuple(sorted((float(value) for value in values), reverse=True)),
        smallest=float(low[0]) if len(low) else None,
        error=error,
        trace=trace,
        trace_error=trace_error,
        num_weights=number,
        num_examples=num_examples,
        num_products=counted[0],
        notes=tuple(notes),
    )


def _eigenvalues(
    product: Callable[..., np.ndarray],
    first: np.ndarray,
    count: int,
    which: str,
    *,
    tolerance: float,
    restarts: int,
    shift: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Those at one end of the spectrum (``which``: "LA" or "SA") that Lanczos found, with their vectors."""
    operator = LinearOperator((len(first),) * 2, matvec=lambda vector: product(vector, shift), dtype=first.dtype)
    try:
        values, vectors = eigsh(operator, count, which=which, v0=first, tol=tolerance, maxiter=restarts)
    except ArpackNoConvergence as stopped:
        values, vectors = stopped.eigenvalues, stopped.eigenvectors
    return values.astype(float) + shift, vectors


def _told(tolerance: float, restarts: int) -> str:
    return f"the tolerance of {tolerance:g} in {restarts} restarts"


def _residual(product: Callable[[np.ndarray], np.ndarray], value: float, vector: np.ndarray) -> float:
    """Of a symmetric matrix some eigenvalue is at most |Hv - value v| / |v| away."""
    vector = vector / np.linalg.norm(vector)
    return float(np.linalg.norm(product(vector) - value * vector))


def _trace(
    product: Callable[[np.ndarray], np.ndarray], number: int, probes: int, seed: int, dtype: type
) -> tuple[float, float]:
    """Mean of v'Hv over vectors of random signs, and its standard error."""
    random = np.random.default_rng((seed, 1))
    found = []
    for _ in range(probes):
        signs: np.ndarray = (2 * random.integers(0, 2, number, dtype=np.int8) - 1).astype(dtype)
        found.append(float(np.dot(signs.astype(np.float64), product(signs))))
    return float(np.mean(found)), float(np.std(found, ddof=1)) / math.sqrt(probes)


def hessian_product(
    network: nn.Module, batches: Batches, vector: Sequence[Tensor], loss: Loss = F.cross_entropy
) -> list[Tensor]:
    """The Hessian of the mean loss over ``batches`` times a vector, shaped as the weights that need a gradient."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    total = [torch.zeros_like(weight) for weight in weights]
    num_examples = sum(len(labels) for _, labels in batches)
    with as_evaluated(network), _twice_differentiable(), torch.enable_grad():
        for inputs, labels in batches:
            mean = loss(network(inputs), labels) * (len(labels) / num_examples)
            slopes = torch.autograd.grad(mean, weights, create_graph=True, allow_unused=True)
            along = [(slope * part).sum() for slope, part in zip(slopes, vector, strict=True) if slope is not None]
            moved = torch.autograd.grad(sum(along, mean.new_zeros(())), weights, allow_unused=True)
            for so_far, part in zip(total, moved, strict=True):
                if part is not None:
                    so_far += part
    return total


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Attention by plain products: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _shaped(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([weight.numel() for weight in weights])
    return [part.view_as(weight).to(weight) for part, weight in zip(parts, weights, strict=True)]
