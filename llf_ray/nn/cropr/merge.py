"""Token merging: alike tokens become their mean, instead of some being cut. The rival that needs no training.

Bolya et al., Token Merging: Your ViT But Faster (arXiv:2210.09461), section 3: between attention and MLP the tokens are
dealt to two sets in turn, each of the first finds its nearest of the second by the cosine of their keys, and the
closest pairs merge; sizes of merged tokens weigh the means and enter later attention as the logarithm of the size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Matching", "most_merged", "paired"]


def most_merged(length: int, prefix: int) -> int:
    """How many of ``length`` tokens one merging can take away: half of the patches."""
    return (length - prefix) // 2


class Matching:
    """Which tokens merge into which, for one batch."""

    def __init__(self, source: Tensor, target: Tensor, rest: Tensor, prefix: int) -> None:
        """Numbers of patches, without the prefix: ``source`` and ``target`` (B, R) become one, ``rest`` (B, M - R)
        stays, targets among it.
        """
        self.source, self.target, self.rest, self.prefix = source, target, rest, prefix

    def merged(self, tokens: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Size-weighted means, (B, M - R, D), and new sizes, (B, M - R), prefix first."""
        heavy = self._summed(tokens * sizes[..., None])
        added = self._summed(sizes[..., None])
        return heavy / added, added[..., 0]

    def _summed(self, values: Tensor) -> Tensor:
        head, patches = values[:, : self.prefix], values[:, self.prefix :]
        width = values.shape[-1]
        gone = patches.gather(1, self.source[..., None].expand(-1, -1, width))
        patches = patches.scatter_add(1, self.target[..., None].expand(-1, -1, width), gone)
        return torch.cat([head, patches.gather(1, self.rest[..., None].expand(-1, -1, width))], 1)


@torch.no_grad()
def paired(keys: Tensor, number: int, prefix: int) -> Matching:
    """The ``number`` closest pairs between patches of even and of odd places.

    Args:
        keys: of the attention, (B, heads, M, d), prefix first; the mean over heads is compared.
        number: of tokens to be taken away, at most `most_merged`.
        prefix: tokens that never merge.
    """
    metric = F.normalize(keys.mean(1)[:, prefix:].float(), dim=-1)
    first, second = metric[:, ::2], metric[:, 1::2]
    closeness, nearest = (first @ second.mT).max(-1)
    order = closeness.argsort(-1, descending=True)
    chosen, left = order[:, :number], order[:, number:]
    target = nearest.gather(1, chosen) * 2 + 1
    odd = torch.arange(1, metric.shape[1], 2, device=keys.device).expand(keys.shape[0], -1)
    return Matching(chosen * 2, target, torch.cat([left * 2, odd], 1), prefix)
