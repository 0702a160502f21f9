"""An encoding and a tracked frame as CUDA graphs, timed as a whole and kernel by kernel."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from typing import Any

import torch

from benchmarks.first_light.context import Context
from tools.gpu.stages import stages

STAGES = ("encode 1", "encode 4", "track 1", "track 8")
MOST = 60
"""The largest number of kernels in a record. profile_*.json has all of them."""


def run(context: Context) -> None:
    """Run the step."""
    for name in context.models:
        replays = stages(name, context.device, context.dtype, context.size, context.graph)
        # CUDA graphs of tracked frames need the Triton kernels.
        for stage in STAGES if context.mode != "cpu" else STAGES[:2]:
            context.attempt(f"{name} {stage}", lambda r=replays[stage]: context.microseconds(r, 30))
        for stage in STAGES[:3] if context.cuda else ():
            profile = partial(_profile, context, name, stage, replays[stage])
            context.attempt(f"{name} {stage} kernels", profile)


def _profile(context: Context, name: str, stage: str, replay: Any) -> dict[str, Any]:
    """Microseconds of one replay by name of the kernel."""
    replay()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        replay()
        torch.cuda.synchronize()
    spent: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent[event.name].append(event.self_device_time_total)
    rows = sorted(((sum(t), len(t), n) for n, t in spent.items()), reverse=True)
    whole = [{"kernel": n, "launches": count, "us": round(us, 1)} for us, count, n in rows]
    (context.files / f"profile_{name}_{stage.replace(' ', '_')}.json").write_text(
        json.dumps(whole, indent=1)
    )
    kernels = [[n[:60], count, round(us, 1)] for us, count, n in rows[:MOST]]
    busy = sum(us for us, _, _ in rows)
    return {
        "busy_us": busy,
        "launches": sum(c for _, c, _ in rows),
        "top": [k[0][:24] for k in kernels[:4]],
        "kernels": kernels,
    }
