"""The official package on the same video with the same weights: ratio of times, and IoU of masks.

The official package runs under bfloat16 autocast.
"""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

import torch

from benchmarks import peers
from benchmarks.first_light.context import Context
from benchmarks.first_light.steps.golden import build
from benchmarks.first_light.steps.speed import frames_of
from benchmarks.video import TimedPredictor


def run(context: Context) -> None:
    """Run the step."""
    if context.mode == "fake":
        context.record("official", status="not run: nothing is computed")
        return
    for name in context.models:
        context.attempt(f"{name} official", lambda n=name: _ratio(context, n))


def _ratio(context: Context, name: str) -> dict[str, Any]:
    folder = str(context.frames())
    ours = build(name, context.device, torch.float32, context.size)
    official = peers.official(name, ours.state_dict(), context.size, context.device)
    if official is None:
        return {"status": "not run: the official package is not available"}
    ours.to(context.dtype)

    def autocast() -> Any:
        return torch.autocast("cuda", torch.bfloat16) if context.cuda else contextlib.nullcontext()

    pair = {
        "ours": TimedPredictor(ours, folder, 1, contextlib.nullcontext),
        "official": TimedPredictor(official, folder, 1, autocast),
    }
    masks = (torch.stack([m.float().cpu() > 0 for m in p.masks(8)]) for p in pair.values())
    a, b = (x.flatten(1) for x in masks)
    iou = ((a & b).sum(1) + 1e-9) / ((a | b).sum(1) + 1e-9)
    frames = frames_of(context)
    times: dict[str, list[float]] = {key: [] for key in pair}
    for _ in range(2):
        for key, predictor in pair.items():
            times[key].append(predictor.milliseconds(frames))
    ms = {key: statistics.median(t) for key, t in times.items()}
    return {
        "least_iou": iou.min().item(),
        "ms": ms,
        "all_ms": times,
        "ratio": ms["official"] / ms["ours"],
    }
