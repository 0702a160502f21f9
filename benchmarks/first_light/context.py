"""The environment of a step: its device, models, clock, and file of results."""

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
    """One step of one run.

    pack: folder that `tools/pack_gpu.py` wrote, or None.
    mode: "cuda"; "cpu" for small sizes on the CPU; "fake" for full sizes without any computation.
    """

    def __init__(self, step: str, out: Path, pack: Path | None, mode: str) -> None:
        self.step = step
        self.mode = mode
        self.pack = pack
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
        """Whether kernels run on a real GPU."""
        return self.mode == "cuda"

    def record(self, item: str, **values: Any) -> None:
        """Write a result to the file of results."""
        append(self._lines, {"step": self.step, "item": item, **values})

    def attempt(
        self, item: str, function: Callable[[], Record | None], again: bool = False
    ) -> None:
        """Record what `function` returns, or its error.

        An item with a record from an earlier process of this run is left out. A CUDA error ends the
        process, since its context is lost; the runner then starts the step again.

        again: run `function` in a later process too if its record is good, because later items
        depend on its side effects.
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
        """Wait until the device is idle."""
        if self.cuda:
            torch.cuda.synchronize()

    def microseconds(self, function: Callable[[], Any], repeats: int = 20) -> Record:
        """Device time of one call: median, minimum and maximum, after two warm-up calls."""
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
        """The replay of a CUDA graph of `function`, or without a GPU `function` itself."""
        if not self.cuda:
            return function
        from sam2_fast.recording.cuda_graph import Recorder

        recorder = Recorder(self.device)
        with recorder.exclusive():
            replay: Callable[[], Any] = recorder.record(function).replay
        return replay

    @property
    def golden_frames(self) -> int:
        """Number of frames of which masks are compared."""
        return {"cuda": 8, "fake": 4, "cpu": 3}[self.mode]

    def frames(self) -> Path:
        """A folder of JPEG frames: from the pack, or else from the video in `examples`."""
        packed = self.pack / "frames" if self.pack is not None else None
        if packed is not None and packed.is_dir():
            return packed
        return decode(
            Path(__file__).resolve().parents[2] / "examples" / "clip.mp4", self.files / "frames"
        )


def decode(video: Path, folder: Path) -> Path:
    """Decode a video into numbered JPEG files unless `folder` exists. Returns the folder."""
    from sam2_fast.io.video import open_video

    if not folder.is_dir():
        frames = open_video(str(video))
        part = folder.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        for i in range(len(frames)):
            Image.fromarray(np.asarray(frames[i])).save(part / f"{i:05d}.jpg", quality=92)
        part.rename(folder)
    return folder


def run_one(step: str, out: Path, pack: Path | None, mode: str, fail: str) -> int:
    """Run one step in this process, for the runner. Returns the exit status."""
    if fail == step:
        raise RuntimeError(f"{step} was told to fail")
    if fail == f"{step}:hang":
        time.sleep(1e6)
    context = Context(step, out, pack, mode)
    with ExitStack() as stack:
        if mode == "fake":
            from tools.gpu.fake import FakeGpu

            stack.enter_context(FakeGpu(90))
        stack.enter_context(torch.no_grad())
        import_module(f"benchmarks.first_light.steps.{step}").run(context)
    return 0
