"""Host time of a tracked frame: Python and dispatch of a propagation, without the GPU's work.

Capture and replay of CUDA graphs, streams and kernels are replaced by functions that do nothing.
Tensors are small and on the CPU. What remains is the time the host needs before it can continue
with the next frame. It is measured as processor time of the main thread, which other processes
hardly affect. It includes about a dozen torch operators, which on a GPU would be launches: their
time is measured separately, and the last column is the time without them.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.timing import Case, Options, Row, require
from sam2_fast.build_sam import build_sam2_video_predictor
from sam2_fast.ops.core import registry
from sam2_fast.recording import cache as graphs
from sam2_fast.recording import frame as frame_graph
from sam2_fast.types import Features, Tracked
from sam2_fast.video import lookahead as ahead
from sam2_fast.video import tracker as video_tracker

SIDE = 64  # pixels of a frame


class NoRecorder:
    """Replaces `sam2_fast.recording.cuda_graph.Recorder` and does nothing."""

    def __init__(self, device: torch.device) -> None:
        del device

    def exclusive(self) -> Any:
        """A context manager that does nothing."""
        return nullcontext()

    def synchronize(self) -> None:
        """Do nothing."""


class NoSideStream:
    """Replaces `sam2_fast.recording.cuda_graph.SideStream` and does nothing."""

    def __init__(self, device: torch.device) -> None:
        del device

    def enter(self, read: object = None) -> Any:
        """A context manager that does nothing."""
        del read
        return nullcontext()

    def record_event(self) -> None:
        """Do nothing."""

    def wait_event(self, event: None, tensors: Any) -> None:
        """Do nothing."""


def _fake_capture(model: Any) -> Callable[..., Callable[[], Any]]:
    """A replacement of `captured` that returns functions with results of the right shapes."""
    config = model.config
    dim = config.hidden_dim
    memory_dim = config.memory_dim
    side = config.grid

    def capture(recorder: Any, run: Callable[[], Any]) -> Callable[[], Any]:
        owner = getattr(run, "__self__", None)
        if isinstance(owner, frame_graph.FrameGraph):
            count = owner._room.objects
            logits = torch.randn(count, 1, 4 * side, 4 * side)
            presence = torch.ones(count, 1)
            maps = torch.zeros(count, side * side, memory_dim, dtype=model.dtype)
            pointers = torch.zeros(count, dim, dtype=model.dtype)
            output: Any = Tracked(logits, pointers, presence, maps)
        else:
            shapes = ((dim, side), (dim // 4, 2 * side), (dim // 8, 4 * side))
            batch = ahead.BATCH
            output = Features(
                *(
                    torch.zeros(batch, n, n, c, dtype=model.dtype).permute(0, 3, 1, 2)
                    for c, n in shapes
                )
            )
        return lambda: output

    return capture


_KERNELS: dict[str, Callable[..., Any]] = {
    "preprocess_frame": lambda frame, size, *_: torch.empty(3, size, size),
    "small_components": lambda masks, *_: masks,
}
"""Replacements of the ops that a frame calls outside its CUDA graphs, without their computation."""


@contextmanager
def without_a_device(model: Any) -> Iterator[None]:
    """Replace everything that would run on a GPU, so that `model` costs host time only."""
    capture = _fake_capture(model)
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (graphs, "capture", capture),
            (frame_graph, "capture", capture),
            (graphs, "Recorder", NoRecorder),
            (ahead, "SideStream", NoSideStream),
            (graphs, "no_cuda_graphs_on", lambda device: None),
            (graphs, "is_capturing", lambda: False),
            (graphs, "triton_refusal", lambda *_: None),
            (video_tracker, "upsample", lambda logits, size: logits),
        ):
            stack.enter_context(patch.object(target, name, value))
        for op, run in _KERNELS.items():
            implementation = replace(registry._implementations[op, "cpu"], run=run)
            stack.enter_context(
                patch.dict(registry._implementations, {(op, "cpu"): implementation})
            )
        yield


def operators_ms(model: Any, objects: int) -> float:
    """Milliseconds of the torch operators that a frame executes outside its CUDA graphs."""
    config = model.config
    dim = config.hidden_dim
    memory_dim = config.memory_dim
    side = config.grid
    maps = [
        torch.zeros(1, n, n, c, dtype=model.dtype).permute(0, 3, 1, 2)
        for c, n in ((dim, side), (dim // 4, 2 * side), (dim // 8, 4 * side))
    ]
    static = [torch.empty_like(x) for x in maps]
    logits = torch.randn(objects, 1, 4 * side, 4 * side)
    memory = torch.zeros(objects, side * side, memory_dim, dtype=model.dtype)
    results = [logits, torch.zeros(objects, dim, dtype=model.dtype), torch.ones(objects, 1), memory]

    def run() -> None:
        for target, source in zip(static, maps, strict=True):
            target.copy_(source)
        clones = [x[:objects].clone() for x in results]
        torch.where((clones[0][:, 0] <= 0)[:, None], 0.1, clones[0])
        torch.stack(clones[0].unbind())

    milliseconds = []
    with torch.inference_mode():
        for _ in range(20):
            start = time.thread_time()
            for _ in range(50):
                run()
            milliseconds.append((time.thread_time() - start) / 50 * 1e3)
    return statistics.median(milliseconds)


def measure(options: Options) -> Iterator[Case]:
    """A tracked frame with one and with eight objects, of the tiny and of the large model."""
    frames = 20 if options.quick else 80
    for name in ("tiny",) if options.quick else ("tiny", "large"):
        for objects in (1, 8):
            yield Case(f"{name}, {objects} objects", host_time, (name, objects, frames, options))


def host_time(case: str, name: str, objects: int, frames: int, options: Options) -> Iterator[Row]:
    """Median milliseconds per frame of passes over a video of `frames` frames.

    Every frame must return masks of all objects.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = build_sam2_video_predictor(
            name, device="cpu", dtype=torch.bfloat16, seed=0, image_size=SIDE
        )
        video = np.zeros((frames + 2, SIDE, SIDE, 3), np.uint8)
        state = model.init_state(video)
        with without_a_device(model):
            for i in range(objects):
                model.add_new_mask(state, 0, i, np.eye(SIDE, dtype=bool))
            passes = [
                list(_frame_ends(model, state, objects, case)) for _ in range(options.repeats + 1)
            ]
        operators = operators_ms(model, objects)
    finally:
        torch.set_num_threads(threads)
    # The first frames of a pass are left out: in them frames are encoded ahead for the first time.
    milliseconds = [(ends[-1] - ends[5]) / (len(ends) - 6) * 1e3 for ends in passes[1:]]
    median = statistics.median(milliseconds)
    notes = {"operators ms": operators, "without launches ms": median - operators}
    yield Row(case, "sam2_fast", median, min(milliseconds), max(milliseconds), notes)


def _frame_ends(model: Any, state: Any, objects: int, case: str) -> Iterator[float]:
    """Processor time in seconds after every frame."""
    for _, ids, masks in model.propagate_in_video(state, start_frame_idx=0):
        require(len(ids) == len(masks) == objects, case, "the number of masks")
        yield time.thread_time()
