"""Time of the host for a tracked frame: all Python and dispatch of a steady propagation, without
what a GPU would do.

A CUDA graph's capture and replay, streams and kernels are left out; tensors are small and lie on
the CPU, so that what remains is what the host spends before it can go on to the next frame.
Processor time of the main thread is measured, which other processes disturb little. What a dozen
operators of torch take in it,
which would be launches on a GPU, is measured alone and subtracted: the last column.
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
    """As `sam2_fast.recording.cuda_graph.Recorder`, without a device."""

    def __init__(self, device: torch.device) -> None:
        del device

    def exclusive(self) -> Any:
        """Nothing has to be ordered."""
        return nullcontext()

    def synchronize(self) -> None:
        """Nothing is under way."""


class NoSideStream:
    """As `sam2_fast.recording.cuda_graph.SideStream`, without a device."""

    def __init__(self, device: torch.device) -> None:
        del device

    def enter(self, read: object = None) -> Any:
        """Work stays where it is."""
        del read
        return nullcontext()

    def record_event(self) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: None, tensors: Any) -> None:
        """Nothing to wait for."""


def _replay_of(model: Any) -> Callable[..., Callable[[], Any]]:
    """In place of a capture: a function that returns results of the right shapes."""
    config = model.config
    dim, memory_dim, side = config.hidden_dim, config.memory_dim, config.grid

    def capture(recorder: Any, run: Callable[[], Any]) -> Callable[[], Any]:
        owner = getattr(run, "__self__", None)
        if isinstance(owner, frame_graph.FrameGraph):
            count = owner._room.objects
            logits = torch.randn(count, 1, 4 * side, 4 * side)
            presence = torch.ones(count, 1)
            maps = torch.zeros(count, side * side, memory_dim, dtype=model.dtype)
            found: Any = Tracked(logits, torch.zeros(count, dim, dtype=model.dtype), presence, maps)
        else:
            shapes = ((dim, side), (dim // 4, 2 * side), (dim // 8, 4 * side))
            batch = ahead.BATCH
            found = Features(
                *(
                    torch.zeros(batch, n, n, c, dtype=model.dtype).permute(0, 3, 1, 2)
                    for c, n in shapes
                )
            )
        return lambda: found

    return capture


_KERNELS: dict[str, Callable[..., Any]] = {
    "preprocess_frame": lambda frame, size, *_: torch.empty(3, size, size),
    "small_components": lambda masks, *_: masks,
}
"""Kernels of a frame outside its CUDA graphs, without what they compute."""


@contextmanager
def without_a_device(model: Any) -> Iterator[None]:
    """CUDA graphs of `model` cost what Python costs; nothing is computed."""
    capture = _replay_of(model)
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
            plain = registry._implementations[op, "cpu"]
            stack.enter_context(
                patch.dict(registry._implementations, {(op, "cpu"): replace(plain, run=run)})
            )
        yield


def operators_ms(model: Any, objects: int) -> float:
    """Milliseconds of the operators of torch that a frame executes outside its CUDA graphs, run
    alone.
    """
    config = model.config
    dim, memory_dim, side = config.hidden_dim, config.memory_dim, config.grid
    maps = [
        torch.zeros(1, n, n, c, dtype=model.dtype).permute(0, 3, 1, 2)
        for c, n in ((dim, side), (dim // 4, 2 * side), (dim // 8, 4 * side))
    ]
    static = [torch.empty_like(x) for x in maps]
    logits, memory = (
        torch.randn(objects, 1, 4 * side, 4 * side),
        torch.zeros(objects, side * side, memory_dim, dtype=model.dtype),
    )
    results = [logits, torch.zeros(objects, dim, dtype=model.dtype), torch.ones(objects, 1), memory]

    def run() -> None:
        for target, source in zip(static, maps, strict=True):
            target.copy_(source)
        found = [x[:objects].clone() for x in results]
        torch.where((found[0][:, 0] <= 0)[:, None], 0.1, found[0])
        torch.stack(found[0].unbind())

    taken = []
    with torch.inference_mode():
        for _ in range(20):
            start = time.thread_time()
            for _ in range(50):
                run()
            taken.append((time.thread_time() - start) / 50 * 1e3)
    return statistics.median(taken)


def measure(options: Options) -> Iterator[Case]:
    """A tracked frame of one and of eight objects, of the tiny and of the large model."""
    frames = 20 if options.quick else 80
    for name in ("tiny",) if options.quick else ("tiny", "large"):
        for objects in (1, 8):
            yield Case(f"{name}, {objects} objects", host_time, (name, objects, frames, options))


def host_time(case: str, name: str, objects: int, frames: int, options: Options) -> Iterator[Row]:
    """Milliseconds of a frame, median of passes over `frames` frames; each has masks of all
    objects.
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
            passes = [list(_marks(model, state, objects, case)) for _ in range(options.repeats + 1)]
        operators = operators_ms(model, objects)
    finally:
        torch.set_num_threads(threads)
    # the first frames of a pass begin the reading ahead
    taken = [(marks[-1] - marks[5]) / (len(marks) - 6) * 1e3 for marks in passes[1:]]
    median = statistics.median(taken)
    notes = {"operators ms": operators, "without launches ms": median - operators}
    yield Row(case, "sam2_fast", median, min(taken), max(taken), notes)


def _marks(model: Any, state: Any, objects: int, case: str) -> Iterator[float]:
    for _, ids, masks in model.propagate_in_video(state, start_frame_idx=0):
        require(len(ids) == len(masks) == objects, case, "the number of masks")
        yield time.thread_time()
