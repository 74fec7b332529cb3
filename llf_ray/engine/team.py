"""Who this process is among the ranks, and the few collective calls that everything else is built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Team"]

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The ranks that train one model together. A team of one needs no process group."""

    rank: int
    size: int
    device: torch.device

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank = {self.rank}: must lie from 0 to {self.size - 1}")

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> Team:
        """A team of one."""
        return cls(0, 1, torch.device(device))

    @classmethod
    def current(cls, device: torch.device | str) -> Team:
        """The team of the process group that is already there, or a team of one."""
        if not dist.is_initialized():
            return cls.alone(device)
        return cls(dist.get_rank(), dist.get_world_size(), torch.device(device))

    def share(self, value: T | None) -> T:
        """Every rank calls: rank 0's picklable value. What the others pass is ignored."""
        if self.size == 1:
            return cast(T, value)
        box: list[Any] = [value if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return cast(T, box[0])

    def gather(self, value: T) -> list[T]:
        """Every rank calls: the picklable values of all ranks, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def total(self, tensor: Tensor) -> Tensor:
        """Every rank calls: the sum over ranks, as a new tensor on the team's device."""
        result = tensor.detach().to(self.device, copy=True).contiguous()
        if self.size > 1:
            dist.all_reduce(result)
        return result

    def spread(self, tensor: Tensor) -> None:
        """Every rank calls: overwrite a contiguous tensor with rank 0's."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Every rank calls: nobody goes on before all are here."""
        if self.size > 1:
            self.total(
                torch.zeros((), device=self.device)
            ).item()  # works alike on gloo and nccl, and waits for the device
