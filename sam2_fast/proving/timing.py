"""How long work takes on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

_SLEEPS_MS = (10, 40, 160)
_CYCLES_PER_MS = 2_000_000
"""Of a GPU at 2 GHz: a slower one sleeps longer."""


def milliseconds(function: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Median of `repeats` calls after one that warms up."""
    return statistics.median(timed(function, device, repeats))


def timed(function: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Milliseconds of `repeats` calls on a CPU or a CUDA device, after one that warms up."""
    function()
    if device.type != "cuda":
        return [cpu_milliseconds(function) for _ in range(repeats)]
    with torch.cuda.device(device):  # events are those of the current device
        return [cuda_milliseconds(function) for _ in range(repeats)]


def cpu_milliseconds(function: Callable[[], Any]) -> float:
    """Of one call, by the host's clock. Freeing the result is not timed."""
    start = time.perf_counter()
    result = function()
    taken = (time.perf_counter() - start) * 1e3
    del result
    return taken


def cuda_milliseconds(
    function: Callable[[], Any], before: Callable[[], Any] | None = None
) -> float:
    """Time that the device takes for what `function` enqueues on the current stream.

    A function that waits for the device itself, or enqueues more than the driver's queue holds
    (about a thousand launches), is timed by the wall clock. `before` runs untimed ahead of every
    call of `function`.
    """
    taken = device_milliseconds(function, before)
    return wall_milliseconds(function, before) if taken is None else taken


def device_milliseconds(
    function: Callable[[], Any], before: Callable[[], Any] | None
) -> float | None:
    """By events of the device, which sleeps while the host enqueues: work that is enqueued more
    slowly than it runs is timed right. Where the device woke up before all was enqueued, it is done
    again with a longer sleep; None where it woke up three times.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for sleep_ms in _SLEEPS_MS:
        _prepare(before)
        torch.cuda._sleep(sleep_ms * _CYCLES_PER_MS)
        start.record()
        function()
        end.record()
        slept = not start.query()
        torch.cuda.synchronize()
        if slept:
            return start.elapsed_time(end)
    return None


def wall_milliseconds(function: Callable[[], Any], before: Callable[[], Any] | None) -> float:
    """From the call until the device is done, by the host's clock."""
    _prepare(before)
    begin = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin)


def _prepare(before: Callable[[], Any] | None) -> None:
    if before is not None:
        before()
    torch.cuda.synchronize()
