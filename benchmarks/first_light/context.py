"""What a step has: a device, models, a clock, and a place for its results."""

from __future__ import annotations

import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.failures import failures
from benchmarks.first_light.records import Record, append, is_good, read, this_run
from benchmarks.first_light.runner import RESTART
from benchmarks.timing import cuda_milliseconds


class Context:
    """One step of one run. mode: "cuda"; "cpu": small sizes on the CPU; "fake": full sizes, nothing
    is computed."""

    def __init__(self, step: str, out: Path, carried: Path | None, mode: str) -> None:
        self.step, self.mode, self.carried = step, mode, carried
        self.device = torch.device("cuda" if mode == "cuda" else "cpu")
        self.dtype = torch.float32 if mode == "cpu" else torch.bfloat16
        self.size = 256 if mode == "cpu" else 1024
        self.models = ("tiny",) if mode == "cpu" else ("tiny", "large")
        self.files = Path(os.environ.get("SAM2_FAST_FIRST_LIGHT_FILES", out))
        self._lines = out / "first_light.jsonl"
        records = [r for r in this_run(read(self._lines)) if r["step"] == step]
        self._known = {r["item"]: is_good(r) for r in records}

    @property
    def cuda(self) -> bool:
        """Whether kernels really run on a GPU."""
        return self.mode == "cuda"

    def record(self, item: str, **values: Any) -> None:
        """A result, kept from now on."""
        append(self._lines, {"step": self.step, "item": item, **values})

    def attempt(
        self, item: str, function: Callable[[], Record | None], again: bool = False
    ) -> None:
        """Record what `function` returns, or how it failed. What has a record from an earlier
        process of this run is left out.

        again: the following items need what `function` does besides, so that after a good record
        it runs in a later process, too. A CUDA error ends the process, whose context is lost; the
        runner starts the step again.
        """
        known = item in self._known
        if known and not (again and self._known[item]):
            return
        start = time.perf_counter()
        try:
            values = function() or {}
            self.synchronize()
        except failures() as error:
            values = {
                "status": f"failed: {type(error).__name__}: {error}"[:600],
                "traceback": traceback.format_exc()[-1500:],
            }
        if not known:
            self.record(item, **values, seconds=round(time.perf_counter() - start, 2))
        if self.cuda and "CUDA error" in values.get("status", ""):
            sys.exit(RESTART)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def microseconds(self, function: Callable[[], Any], repeats: int = 20) -> Record:
        """Device time of one call: median, least and most, after two calls that warm up."""
        if self.mode == "fake":
            function()
            return {"us": None}
        for _ in range(2):
            function()
        times = [1e3 * self._milliseconds(function) for _ in range(repeats if self.cuda else 2)]
        return {"us": statistics.median(times), "low": min(times), "high": max(times)}

    def _milliseconds(self, function: Callable[[], Any]) -> float:
        if self.cuda:
            return cuda_milliseconds(function)
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)

    def graph(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """`function` as the replay of a CUDA graph; without a GPU the function itself."""
        if not self.cuda:
            return function
        from sam2_fast.recording.cuda_graph import Recorder

        recorder = Recorder(self.device)
        with recorder.exclusive():
            replay: Callable[[], Any] = recorder.record(function).replay
        return replay

    @property
    def golden_frames(self) -> int:
        """Frames whose masks are compared."""
        return {"cuda": 8, "fake": 4, "cpu": 3}[self.mode]

    def frames(self) -> Path:
        """A folder of JPEG frames: the carried ones, or those of the example's video."""
        carried = self.carried / "frames" if self.carried is not None else None
        if carried is not None and carried.is_dir():
            return carried
        return decode(
            Path(__file__).resolve().parents[2] / "examples" / "clip.mp4", self.files / "frames"
        )


def decode(video: Path, folder: Path) -> Path:
    """Decode a video into numbered JPEG files, if that was not done before. Returns the folder."""
    from sam2_fast.io.video import open_video

    if not folder.is_dir():
        frames = open_video(str(video))
        made = folder.with_suffix(".part")
        made.mkdir(parents=True, exist_ok=True)
        for i in range(len(frames)):
            Image.fromarray(np.asarray(frames[i])).save(made / f"{i:05d}.jpg", quality=92)
        made.rename(folder)
    return folder


def run_one(step: str, out: Path, carried: Path | None, mode: str, fail: str) -> int:
    """Run one step in this process. Used by the runner."""
    if fail == step:
        raise RuntimeError(f"{step} was told to fail")
    if fail == f"{step}:hang":
        time.sleep(1e6)
    context = Context(step, out, carried, mode)
    with ExitStack() as stack:
        if mode == "fake":
            from tools.gpu.fake import FakeGpu

            stack.enter_context(FakeGpu(90))
        stack.enter_context(torch.no_grad())
        import_module(f"benchmarks.first_light.steps.{step}").run(context)
    return 0
