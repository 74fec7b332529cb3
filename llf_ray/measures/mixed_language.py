"""What of a mixed language does forgetting remove? A sender learns a language that is half compositional, half
holistic; perturbed clones of it tell which half is lost.

Zhou et al. 2022, arXiv:2202.00155, section 5, in the consistent variant of its code: the halves are sets of objects,
fixed for the whole training.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llf_ray.forget.draw import key_of
from llf_ray.forget.masks import Bernoulli, Magnitude, MaskSource
from llf_ray.forget.operations import EVERYTHING, Forget
from llf_ray.forget.plain import apply, module_view
from llf_ray.nn.agents import Sender, Weights, speak, stacked

__all__ = ["MixedLanguage", "mixed_language", "perturbations", "probe_mixed_language"]

START = "start"  # the store of the weights at initialisation


@dataclass(frozen=True, kw_only=True)
class MixedLanguage:
    """Shares of messages that are said without a mistake, compositional half and holistic half on the last axis.

    ``steps`` are those of training at which clones were perturbed, T of them; S senders.
    """

    steps: tuple[int, ...]
    before: Tensor  # (S, T, 2)
    after: Mapping[str, Tensor]  # by perturbation, each (S, T, 2)

    def retention(self, name: str) -> Tensor:
        """Accuracy after over accuracy before, (S, T, 2); NaN where nothing was right before: what was never learned
        cannot be forgotten.
        """
        return torch.where(self.before > 0, self.after[name] / self.before, torch.nan)

    def selectivity(self, name: str) -> Tensor:
        """What is kept of the compositional half less what is kept of the holistic one, (S, T); NaN where one of the
        two is.
        """
        kept = self.retention(name)
        return kept[..., 0] - kept[..., 1]


def perturbations(keep: float = 0.5) -> dict[str, Forget]:
    """The paper's eight: a mask that is random or of large weights, new every time or the same, and what is forgotten
    drawn anew or zero.

    "same" masks are one draw, or the largest weights at initialisation; "new" ones are a draw each time, or the largest
    weights as they are.
    """
    masks: dict[str, MaskSource] = {
        "new random": Bernoulli(keep=keep, fixed=False),
        "same random": Bernoulli(keep=keep, fixed=True),
        "new magnitude": Magnitude(keep=keep),
        "same magnitude": Magnitude(keep=keep, of=START),
    }
    fills = {"redraw": "initial", "zero": "zero"}
    return {
        f"{mask}, {word}": Forget(select=EVERYTHING, keep=source, fill=fill)  # type: ignore[arg-type]
        for mask, source in masks.items()
        for word, fill in fills.items()
    }


def mixed_language(meanings: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A message for each object, (N, A), and whether it is compositional, (N,).

    Half of the objects, drawn at random, are named attribute by attribute; the others have their messages from the same
    language with all messages dealt anew.

    Args:
        meanings: attributes of objects, (N, A).
        seed: of the halves and of the deal.
    """
    random = torch.Generator().manual_seed(seed)
    number = len(meanings)
    compositional = torch.zeros(number, dtype=torch.bool)
    compositional[torch.randperm(number, generator=random)[: number // 2]] = True
    dealt = meanings[torch.randperm(number, generator=random)]
    return torch.where(compositional[:, None], meanings, dealt), compositional


def probe_mixed_language(
    meanings: Tensor,
    features: Tensor,
    *,
    seeds: tuple[int, ...] = (0,),
    num_symbols: int = 8,
    hidden: int = 100,
    keep: float = 0.5,
    steps: int = 700,
    every: int = 10,
    rate: float = 1e-3,
) -> MixedLanguage:
    """Train senders on mixed languages, side by side, and every few steps perturb clones of them.

    Each step sees all objects; the loss is the cross-entropy of symbols, a sender hears the symbols that it finds most
    probable. Clones are perturbed by this project's own operations.

    Args:
        meanings: attributes of objects, (N, A).
        features: what senders see, (N, F).
        seeds: of senders and languages.
        num_symbols: V.
        hidden: units of a sender.
        keep: share of weights that a perturbation keeps.
        steps: of training, by Adam.
        every: steps between two perturbations (1 in the paper).
        rate: Adam's.
    """
    number, length = meanings.shape
    languages = [mixed_language(meanings, seed) for seed in seeds]
    messages, compositional = (torch.stack(parts) for parts in zip(*languages, strict=True))

    def fresh(draw: int) -> nn.ModuleDict:
        return _senders(seeds, features.shape[1], hidden, num_symbols, draw)

    senders = fresh(0)
    start = {name: value.detach().clone() for name, value in senders.state_dict().items()}
    optimizer = torch.optim.Adam(senders.parameters(), lr=rate)
    targets = torch.arange(number).expand(len(seeds), -1)

    def right(weights: Weights) -> Tensor:
        said, _ = speak(weights, features, targets, length)
        whole = (said == messages).all(-1).double()
        return torch.stack([(whole * half).sum(1) / half.sum(1) for half in (compositional, ~compositional)], -1)

    asked, before = [], []
    after: dict[str, list[Tensor]] = {name: [] for name in perturbations(keep)}
    for step in range(1, steps + 1):
        weights = stacked(list(senders.children()))
        _, scores = speak(weights, features, targets, length)
        loss = -scores.log_softmax(-1).gather(-1, messages[..., None]).mean((-1, -2, -3)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every:
            continue
        with torch.no_grad():
            asked.append(step)
            before.append(right(stacked(list(senders.children()))))
            for name, forget in perturbations(keep).items():
                clone = copy.deepcopy(senders)
                view = module_view(clone, fresh=fresh, stores={START: start}, seed=0, key=name, generation=step)
                apply(clone, forget(view))
                after[name].append(right(stacked(list(clone.children()))))
    return MixedLanguage(
        steps=tuple(asked),
        before=torch.stack(before, 1),
        after={name: torch.stack(values, 1) for name, values in after.items()},
    )


def _senders(seeds: tuple[int, ...], features: int, hidden: int, symbols: int, draw: int) -> nn.ModuleDict:
    """A sender for each seed, its weights a function of its seed and the draw."""
    made = {}
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key_of("sender", seed, draw))
            made[f"seed_{seed}"] = Sender(features, hidden, symbols)
    return nn.ModuleDict(made)
