"""A task small enough for laws: sixteen-by-sixteen noise with a class-dependent patch, a network with batch
normalisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llf_ray.config import SettingError
from llf_ray.data.order import Draw
from llf_ray.nn.normaliser import freeze, recalibrate, with_normalisers
from llf_ray.plan import FREEZE, RECALIBRATE, Pass
from llf_ray.tasks.base import Role, Tally

SIZES = {"train": 48, "validation": 20, "test": 23}


class ToyNet(nn.Module):
    """Two convolutions with batch normalisation, dropout, and a head; sizes that no number of workers divides.

    No bias stands in front of a normaliser: its gradient would be rounding noise, which Adam turns into full steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 5, 3, stride=2, bias=False), nn.BatchNorm2d(5), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(5, 7, 3, stride=2, bias=False), nn.BatchNorm2d(7), nn.ReLU())
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(7, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, 3)."""
        return self.head(self.drop(self.body(self.stem(images)).mean((2, 3))))


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Three classes of noisy images, fixed by a seed of their own; ``dropout`` switches the network's on."""

    noise: float = 1.0
    dropout: bool = False
    normalised: bool = False  # with a normaliser behind stem and body, which nothing switches on but a pass
    metric: str = "accuracy"

    def prepare(self) -> None:
        """Nothing to check."""

    def num_items(self, role: Role) -> int:
        """Items of a role."""
        return SIZES[role]

    def initial(self, seed: int) -> nn.Module:
        """A fresh network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = ToyNet()
        net.drop.p = 0.1 if self.dropout else 0.0
        return with_normalisers(net, {"stem": 5, "body": 7}) if self.normalised else net

    build = initial

    def skeleton(self) -> nn.Module:
        """Names and shapes."""
        return with_normalisers(ToyNet(), {"stem": 5, "body": 7}) if self.normalised else ToyNet()

    def data(self, role: Role) -> tuple[Tensor, Tensor]:
        """All images and labels of a role."""
        random = torch.Generator().manual_seed({"train": 1, "validation": 2, "test": 3}[role])
        labels = torch.arange(SIZES[role]) % 3
        images = self.noise * torch.randn(SIZES[role], 1, 16, 16, generator=random)
        for label in range(3):
            images[labels == label, :, 4 * label : 4 * label + 6, 3:9] += 1.0
        return images, labels

    def batches(self, role: Role, draws: Iterable[Draw], device: torch.device) -> Iterator[Any]:
        """Images and labels of each draw."""
        images, labels = self.data(role)
        for draw in draws:
            yield images[draw.indices].to(device), labels[draw.indices].to(device)

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tally]]:
        """Cross-entropy and hits."""
        images, labels = batch
        logits = model(images)
        hits = (logits.detach().argmax(1) == labels).sum()
        return nn.functional.cross_entropy(logits.float(), labels), {"accuracy": Tally(hits, len(labels))}

    def pairs(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Inputs and labels."""
        images, labels = batch
        return images, labels

    def replaced(self) -> Any:
        """Every seventh label counts as drawn."""
        return (torch.arange(SIZES["train"]) % 7 == 0).numpy()

    def distil(
        self, model: nn.Module, teacher: nn.Module, batch: Any, weight: float, temperature: float
    ) -> tuple[Tensor, dict[str, Tally]]:
        """Cross-entropy with the labels and with the teacher's classes."""
        images, _ = batch
        own, tallies = self.loss(model, batch)
        with torch.no_grad():
            soft = (teacher(images) / temperature).softmax(1)
        taught = nn.functional.cross_entropy(model(images).float() / temperature, soft) * temperature**2
        return (1 - weight) * own + weight * taught, tallies

    def store_size(self, what: str) -> int:
        """Any wish is half the training part."""
        return SIZES["train"] // 2

    def generate(self, model: nn.Module, what: str, seed: int) -> dict[str, Tensor]:
        """Noise keyed by the seed, and what the network says of it."""
        random = torch.Generator().manual_seed(seed)
        images = torch.randn(self.store_size(what), 1, 16, 16, generator=random)
        device = next(model.parameters()).device
        return {"images": images, "said": model(images.to(device)).argmax(1)}

    def stored_batches(
        self, store: Mapping[str, Tensor], draws: Iterable[Draw], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and what was said of them."""
        for draw in draws:
            yield store["images"][draw.indices].to(device), store["said"][draw.indices].to(device)

    def imitate(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tally]]:
        """Cross-entropy with what was said."""
        return self.loss(model, batch)

    def check_pass(self, operation: Pass) -> None:
        """Those of images."""
        if operation.what not in (FREEZE, RECALIBRATE):
            raise SettingError(f"pass {operation.what!r} does not exist")

    def run_pass(self, model: nn.Module, operation: Pass, batches: Iterable[Any]) -> None:
        """Statistics anew, or a normaliser that stays."""
        images = (images for images, _ in batches)
        if operation.what == RECALIBRATE:
            recalibrate(model, images)
        else:
            freeze(model, operation.where, images)

    def score(self, model: nn.Module, batch: Any) -> dict[str, Tally]:
        """Hits and summed loss."""
        images, labels = batch
        logits = model(images).float()
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return {"accuracy": Tally((logits.argmax(1) == labels).sum(), len(labels)), "loss": Tally(loss, len(labels))}
