"""The official package on the same clip with the same weights, under bfloat16 autocast: ratio and
IoU."""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

import torch

from benchmarks import peers
from benchmarks.first_light.context import Context
from benchmarks.first_light.steps.golden import build
from benchmarks.first_light.steps.speed import frames_of
from benchmarks.video import Contestant


def run(context: Context) -> None:
    """Entry point."""
    if context.mode == "fake":
        context.record("official", status="not run: nothing is computed")
        return
    for name in context.models:
        context.attempt(f"{name} official", lambda n=name: _ratio(context, n))


def _ratio(context: Context, name: str) -> dict[str, Any]:
    folder = str(context.frames())
    ours = build(name, context.device, torch.float32, context.size)
    peer = peers.official(name, ours.state_dict(), context.size, context.device)
    if peer is None:
        return {"status": "not run: the official package is not at hand"}
    ours.to(context.dtype)

    def autocast() -> Any:
        return torch.autocast("cuda", torch.bfloat16) if context.cuda else contextlib.nullcontext()

    pair = {
        "ours": Contestant(ours, folder, 1, contextlib.nullcontext),
        "official": Contestant(peer, folder, 1, autocast),
    }
    first = {who: torch.stack([m.float().cpu() > 0 for m in c.masks(8)]) for who, c in pair.items()}
    a, b = (x.flatten(1) for x in first.values())
    iou = ((a & b).sum(1) + 1e-9) / ((a | b).sum(1) + 1e-9)
    frames = frames_of(context)
    times: dict[str, list[float]] = {who: [] for who in pair}
    for _ in range(2):
        for who, contestant in pair.items():
            times[who].append(contestant.milliseconds(frames))
    ms = {who: statistics.median(t) for who, t in times.items()}
    return {
        "least_iou": iou.min().item(),
        "ms": ms,
        "all_ms": times,
        "ratio": ms["official"] / ms["ours"],
    }
