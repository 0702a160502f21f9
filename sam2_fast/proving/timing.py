"""Time measurements on CPUs and GPUs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

_SLEEPS_MS = (10, 40, 160)
_CYCLES_PER_MS = 2_000_000
"""At 2 GHz; a slower GPU sleeps longer."""


def milliseconds(function: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Median of `repeats` calls after a warm-up call."""
    return statistics.median(timed(function, device, repeats))


def timed(function: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Milliseconds of `repeats` calls on a CPU or a CUDA device, after a warm-up call."""
    function()
    if device.type != "cuda":
        return [cpu_milliseconds(function) for _ in range(repeats)]
    with torch.cuda.device(device):  # events belong to the current device
        return [cuda_milliseconds(function) for _ in range(repeats)]


def cpu_milliseconds(function: Callable[[], Any]) -> float:
    """Milliseconds of one call, by the host's clock. Freeing the result is not included."""
    start = time.perf_counter()
    result = function()
    elapsed = (time.perf_counter() - start) * 1e3
    del result
    return elapsed


def cuda_milliseconds(
    function: Callable[[], Any], before: Callable[[], Any] | None = None
) -> float:
    """Milliseconds of the device for the work that `function` enqueues on the current stream.

    A function that waits for the device, or enqueues more work than the driver's queue can hold
    (about a thousand launches), is timed by the wall clock. `before` runs before every call of
    `function` and is not included.
    """
    elapsed = device_milliseconds(function, before)
    return wall_milliseconds(function, before) if elapsed is None else elapsed


def device_milliseconds(
    function: Callable[[], Any], before: Callable[[], Any] | None
) -> float | None:
    """Milliseconds between two events on the device, or None.

    The device sleeps while the host enqueues, so that the time is correct for work that runs faster
    than it is enqueued. If the sleep ends before everything is enqueued, the measurement is
    repeated with a longer sleep, at most twice; then the result is None.
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
    """Milliseconds from the call until the device has finished, by the host's clock."""
    _prepare(before)
    begin = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin)


def _prepare(before: Callable[[], Any] | None) -> None:
    if before is not None:
        before()
    torch.cuda.synchronize()
