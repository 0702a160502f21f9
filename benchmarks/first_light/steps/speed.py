"""Frames per second of whole videos, host time, and peak memory."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import Any

import torch

from benchmarks.first_light.context import Context
from benchmarks.first_light.steps.golden import build
from benchmarks.video import STEADY, TimedPredictor

FRAMES = 40


def run(context: Context) -> None:
    """Run the step."""
    for name in context.models:
        predictor = build(name, context.device, context.dtype, context.size)
        cuda_graphs = predictor.graphs
        for label, graphs in (("graphs", cuda_graphs), ("no graphs", None)):
            context.attempt(
                f"{name} 1 object, {label}", partial(measure, context, predictor, graphs, 1)
            )
        many = (8, 16) if name == context.models[-1] else (8,)
        for objects in many if context.cuda else (2,):
            context.attempt(
                f"{name} {objects} objects",
                partial(measure, context, predictor, cuda_graphs, objects),
            )


def measure(context: Context, predictor: Any, graphs: Any, objects: int) -> dict[str, Any]:
    """Time frames that attend to 7 maps and 16 pointers, after one warm-up pass over the video."""
    predictor.graphs = graphs
    timed = TimedPredictor(predictor, str(context.frames()), objects, contextlib.nullcontext)
    if context.mode == "fake":
        count = sum(1 for _ in timed.masks(3))
        return {"frames": count, "status": "not timed: nothing is computed"}
    frames = frames_of(context)
    if context.cuda:
        torch.cuda.reset_peak_memory_stats()
    timed.milliseconds(frames)
    milliseconds = [timed.milliseconds(frames) for _ in range(2 if context.cuda else 1)]
    peak = round(torch.cuda.max_memory_allocated() / 1e6) if context.cuda else None
    host = _host_milliseconds(timed, frames)
    return {"fps": 1e3 / min(milliseconds), "ms": milliseconds, "host_ms": host, "peak_mb": peak}


def frames_of(context: Context) -> int:
    """Number of frames of a pass. Raises ValueError if the video is too short to be timed."""
    available = len(list(context.frames().glob("*.jpg")))
    if available < STEADY + 4:
        raise ValueError(
            f"{context.frames()}: expected {STEADY + 4} frames or more, got {available}"
        )
    return min(FRAMES if context.cuda else STEADY + 4, available)


def _host_milliseconds(timed: TimedPredictor, frames: int) -> float:
    """Milliseconds per frame without synchronisation with the device at the end of a frame."""
    start = 0.0
    for number, _ in enumerate(timed.masks(frames)):
        if number == STEADY - 1:
            start = time.perf_counter()
    return 1e3 * (time.perf_counter() - start) / (frames - STEADY)
