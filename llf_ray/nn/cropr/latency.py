"""The rate that keeps a model within a budget of measured time, on the machine where it will run.

Time is no function of FLOPs: kernels like some lengths, one image hardly fills a GPU. So it is measured, pruned and
dense forward pass in turn, since two times taken apart on a machine with other work cannot be compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from llf_ray.config import SettingError, check_number
from llf_ray.nn.cropr.flops import image_shape
from llf_ray.nn.cropr.schedule import Steady, smallest
from llf_ray.nn.cropr.stripped import strip
from llf_ray.nn.cropr.transformer import Cropped, shape_of

__all__ = ["rate_for_latency", "relative_time"]


def rate_for_latency(
    model: Cropped,
    share: float,
    *,
    batch: int = 1,
    device: torch.device | str = "cpu",
    rounds: int = 7,
) -> Steady:
    """The `Steady` schedule of the smallest rate whose forward pass takes at most ``share`` of the dense model's time.

    Rates are searched by halves, as if time never grew with the rate; its noise makes the answer uncertain by a token
    or two. Blocks, and rounding where it has any, are those of the model's own schedule.

    Args:
        model: as `apply` gives it; its selector and its fusion count. It stays as it is.
        share: of the dense model's time, above 0 and up to 1.
        batch: images at once.
        device: where the model will run.
        rounds: pairs of timings for each rate, whose median ratio counts.

    Raises:
        SettingError: no rate is enough.
    """
    check_number("share", share, above=0.0, high=1.0)
    fast, shape, own = strip(model).to(device), shape_of(model), model.cropping.schedule
    start = own if isinstance(own, Steady) else Steady(rate=0, after=own.after)
    most = start.most(shape)

    def taken(rate: int) -> float:
        kept = replace(start, rate=rate).kept(shape)
        return relative_time(fast, kept, (shape.patches,) * len(kept), batch=batch, rounds=rounds)

    least = taken(most)
    if least > share:
        raise SettingError(
            f"share = {share:g}: cannot be reached at batch {batch} on {device}; to cut {most} tokens behind each "
            f"module, which leaves next to none, still takes {least:.2f} of the dense model's time"
        )
    return replace(start, rate=smallest(lambda rate: rate == most or taken(rate) <= share, most))


@torch.inference_mode()
def relative_time(
    model: nn.Module, kept: tuple[int, ...], other: tuple[int, ...], *, batch: int = 1, rounds: int = 7
) -> float:
    """Time of a forward pass that keeps ``kept`` patches behind the modules, over that of one that keeps ``other``.

    The median over pairs; each is timed forth and back in turn, so that a drift cancels. On a CPU it is processor time
    of all threads, which leaves out other programs; on a GPU the time between two events on its stream.
    """
    check_number("batch", batch, low=1)
    check_number("rounds", rounds, low=1)
    like = next(model.parameters())
    images = torch.zeros(batch, *image_shape(model), device=like.device, dtype=like.dtype)
    ratios = []
    for number in range(-1, rounds):  # the first pair warms up
        turn = (kept, other) if number % 2 else (other, kept)
        seconds = {lengths: _seconds(partial(model, images, kept=lengths), like.device) for lengths in turn}
        ratios.append(seconds[kept] / seconds[other])
    return statistics.median(ratios[1:])


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.process_time()
        run()
        return time.process_time() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3
