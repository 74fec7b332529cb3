"""One Cropr module: it learns, by a task of its own, which tokens a network can do without.

Bergner et al., Token Cropr (arXiv:2412.00965): learned queries attend over the detached tokens behind a block; what
they gather must solve the auxiliary task. How strongly the queries ask for a token, before any softmax, is its score.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.nn.cropr.settings import PROJECTIONS, CroprOptions

__all__ = ["Cropr", "Scorer"]


class Cropr(nn.Module):
    """Queries, aggregator and auxiliary head behind one block.

    Gradients of the auxiliary loss stop at the entrance; scores have none. So the main loss never moves a module, and a
    module never moves the network.
    """

    weights_of_its_own = ("queries",)  # a linear map from tokens to scores: forgotten and pruned as such

    def __init__(self, width: int, num_outputs: int, num_queries: int = 1, options: CroprOptions | None = None) -> None:
        """``width`` of the tokens; ``num_outputs`` of the auxiliary head, per query."""
        super().__init__()
        options = options or CroprOptions()
        if width % options.heads:
            raise SettingError(f"heads = {options.heads}: must divide the width of the tokens, {width}")
        self.options = options
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.norm = nn.LayerNorm(width, eps=1e-6) if options.norm else nn.Identity()
        self.query, self.key, self.value = (
            nn.Linear(width, width, bias=options.bias) if name in options.project else nn.Identity()
            for name in PROJECTIONS
        )
        self.out = nn.Linear(width, width) if options.heads > 1 else nn.Identity()
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6) if options.mlp_ratio else nn.Identity()
        self.mlp = Mlp(width, int(options.mlp_ratio * width)) if options.mlp_ratio else None
        self.head_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)
        self._start()

    def _start(self) -> None:
        # a normal draw of deviation 1, cut off at two deviations, then scaled: the deviation comes out a little smaller
        nn.init.trunc_normal_(self.queries, std=1.0)
        with torch.no_grad():
            self.queries.mul_(self.queries.shape[1] ** -0.5)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def direction(self) -> Tensor:
        """The one vector, (D,), whose product with a token (after `norm`) is the token's score, up to a constant.

        The sum over queries and heads of ``(W_q q + b_q) . (W_k x + b_k)`` is ``W_k^T (W_q sum q + N b_q) . x`` and
        something that all tokens of an image share.
        """
        summed = self.query(self.queries).sum(0)
        return summed @ self.key.weight if isinstance(self.key, nn.Linear) else summed

    @torch.no_grad()
    def scores(self, tokens: Tensor) -> Tensor:
        """Scores, (B, M), of tokens (B, M, D): raw logits summed over queries, and the highest are to be kept."""
        return _along(self.norm(tokens), self.direction())

    def forward(self, tokens: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Scores of ``tokens``, (B, M), and the auxiliary task's answer, (B, N, outputs), from the tokens ``seen``.

        Args:
            tokens: behind the block, (B, M, D).
            seen: what the aggregator looks at, (B, M', D); None: no answer is wanted.
        """
        scores = self.scores(tokens)
        return scores, None if seen is None else self._answer(seen)

    def _answer(self, seen: Tensor) -> Tensor:
        seen = self.norm(seen.detach() if self.options.detach else seen)
        queries, keys, values = self.query(self.queries), self.key(seen), self.value(seen)
        gathered = F.scaled_dot_product_attention(
            self._in_heads(queries[None].expand(seen.shape[0], -1, -1).to(keys.dtype)),
            self._in_heads(keys),
            self._in_heads(values),
        )
        gathered = self.out(gathered.transpose(1, 2).flatten(2))
        if self.mlp is not None:
            gathered = gathered + self.mlp(self.mlp_norm(gathered))
        answer: Tensor = self.head(self.head_norm(gathered))
        return answer

    def _in_heads(self, tokens: Tensor) -> Tensor:
        """(B, M, D) as (B, heads, M, D / heads)."""
        return tokens.unflatten(2, (self.options.heads, -1)).transpose(1, 2)


class Scorer(nn.Module):
    """What is left of a module when it only has to choose: one vector, and a LayerNorm without scale where it had one.

    For ``LN(x) = g n(x) + b`` the score ``u . LN(x)`` is ``(g u) . n(x)`` and a constant.
    """

    direction: Tensor

    def __init__(self, width: int, *, norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) if norm else nn.Identity()
        self.register_buffer("direction", torch.zeros(width))

    @classmethod
    def of(cls, module: Cropr) -> Scorer:
        """The scorer that ranks tokens as ``module`` does."""
        scorer = cls(module.queries.shape[1], norm=module.options.norm).to(module.queries.device, module.queries.dtype)
        with torch.no_grad():
            direction = module.direction()
            scale = module.norm.weight if isinstance(module.norm, nn.LayerNorm) else 1.0
            scorer.direction.copy_(direction * scale)
        return scorer

    def forward(self, tokens: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Scores, (B, M); it has no answer to an auxiliary task."""
        tokens = self.norm(tokens) if isinstance(self.norm, nn.LayerNorm) else tokens
        return _along(tokens, self.direction), None


def _along(tokens: Tensor, direction: Tensor) -> Tensor:
    """Products of all tokens with one vector, (B, M): one matrix times a vector, however tokens lie in memory."""
    batch, length, width = tokens.shape
    return tokens.reshape(-1, width).mv(direction.to(tokens.dtype)).view(batch, length)
