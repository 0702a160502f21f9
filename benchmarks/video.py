"""Whole videos in frames per second, and the time from import to the first tracked frame.

This library runs with and without CUDA graphs, against the official package and transformers.
Frames from 17 on are timed, which attend to 7 maps and 16 pointers: by the wall clock, after
synchronisation with the device at both ends.

On a GPU all four model sizes run in bfloat16 with up to 64 objects, the peers under autocast. Peers
are `official,transformers` by default; `official-compiled` is the official package with
`vos_optimized=True`, which takes minutes to compile. With `--quick`, and always on a CPU, the tiny
model runs in float32 at 256 pixels. The environment variable SAM2_FAST_VIDEO names a folder of JPEG
files to track in; by default the video is noise with a moving square. Weights are random with a
fixed seed.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks import peers
from benchmarks.predictors import FRAME_GFLOP, clip, write_jpegs
from benchmarks.timing import Case, Options, Row, matrix_peak, require
from sam2_fast.build_sam import build_sam2_video_predictor
from sam2_fast.config import PRESETS
from sam2_fast.io.transforms import frame_input
from sam2_fast.io.video import open_video

STEADY = 17
"""The first frame that attends to the largest number of maps and pointers."""
FRAMES = 60
COLD_START = """
import time

start = time.perf_counter()
import sys, torch, sam2_fast

sys.path.insert(0, sys.argv[3])
from benchmarks.predictors import clip

video = sam2_fast.build_sam2_video_predictor(
    "tiny",
    device=sys.argv[1],
    seed=0,
    image_size=int(sys.argv[2]),
    dtype=torch.float32 if sys.argv[1] == "cpu" else torch.bfloat16,
)
state = video.init_state(clip(2))
video.add_new_points_or_box(state, 0, 1, points=[[60, 100]], labels=[1])
masks = [masks.sum().item() for _, _, masks in video.propagate_in_video(state)]
print(time.perf_counter() - start)
"""


class TimedPredictor:
    """A video predictor on one video, with a new session for every run.

    autocast: returns the context manager in which the predictor runs.
    """

    def __init__(
        self, predictor: Any, folder: str, objects: int, autocast: Callable[[], Any]
    ) -> None:
        self._predictor = predictor
        self._folder = folder
        self._objects = objects
        self._autocast = autocast

    def masks(self, frames: int) -> Iterator[torch.Tensor]:
        """Logits of the first `frames` frames."""
        with torch.inference_mode(), self._autocast():
            state = self._predictor.init_state(self._folder)
            for i, points in enumerate(clicks(self._objects)):
                self._predictor.add_new_points_or_box(state, 0, i, points=points, labels=[1])
            for _, _, masks in self._predictor.propagate_in_video(
                state, max_frame_num_to_track=frames - 1
            ):
                yield masks

    def milliseconds(self, frames: int) -> float:
        """Milliseconds per frame, from frame `STEADY` on."""
        start = 0.0
        for number, masks in enumerate(self.masks(frames)):
            if number == STEADY - 1:
                _synchronize(masks)
                start = time.perf_counter()
        _synchronize(masks)
        return (time.perf_counter() - start) / (frames - STEADY) * 1e3


class TimedTransformers(TimedPredictor):
    """`Sam2VideoModel`, which needs all frames on the device before it starts."""

    def masks(self, frames: int) -> Iterator[torch.Tensor]:
        """Logits [N, 1, 256, 256] of the first `frames` frames."""
        model = self._predictor
        tool = peers.transformers_tool()
        with torch.inference_mode(), self._autocast():
            video = open_video(self._folder)
            size = 1024
            device = next(model.parameters()).device
            pictures = torch.stack([frame_input(video[i], size, device) for i in range(frames)])
            session = tool.hf_video_session(pictures, (video.height, video.width))
            session.inference_device = device
            session.inference_state_device = device
            session.video_storage_device = device
            for i, points in enumerate(clicks(self._objects)):
                scaled = np.array(points) / [video.width, video.height] * size
                tool.hf_add_points(session, 0, i, scaled, [1])
            for output in model.propagate_in_video_iterator(session, start_frame_idx=0):
                yield output.pred_masks


def clicks(objects: int) -> list[list[list[float]]]:
    """One click per object, in pixels of the video."""
    return [[[40.0 + 50 * (i % 8), 60.0 + 20 * (i // 8)]] for i in range(objects)]


def _synchronize(masks: torch.Tensor) -> None:
    if masks.is_cuda:
        torch.cuda.synchronize(masks.device)


def predictors(name: str, image_size: int, options: Options) -> dict[str, Any]:
    """Predictors with equal weights, by name.

    "exact" is this library in float32, "ours" in the dtype to measure, "no graphs" the same without
    CUDA graphs. The others are peers, or None if they are not available.
    """
    device = options.device
    is_cuda = device.type == "cuda"
    requested = options.peers or ("official", "transformers")
    built = {
        variant: build_sam2_video_predictor(name, device=device, seed=0, image_size=image_size)
        for variant in ("exact", "ours", "no graphs")
    }
    for predictor in built.values():
        predictor.fill_hole_area = 0
        # With random weights most objects are predicted to be absent. Their masks are constant, so
        # a comparison would show nothing.
        predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(10.0)
    state = built["exact"].state_dict()
    if is_cuda:
        built["ours"].to(torch.bfloat16)
        built["no graphs"].to(torch.bfloat16)
    built["no graphs"].graphs = None
    for peer, arguments in (("official", {}), ("official-compiled", {"vos_optimized": True})):
        if peer in requested:
            built[peer] = peers.official(name, state, image_size, device, **arguments)
    if "transformers" in requested:
        built["transformers"] = peers.transformers(name, state, image_size, device)
    return built


def timed_predictors(
    built: dict[str, Any], folder: str, objects: int, options: Options
) -> dict[str, TimedPredictor]:
    """The predictors to time on the video in `folder`, by their names in the results."""
    is_cuda = options.device.type == "cuda"

    def autocast() -> Any:
        return torch.autocast("cuda", torch.bfloat16) if is_cuda else contextlib.nullcontext()

    def ours(variant: str) -> TimedPredictor:
        return TimedPredictor(built[variant], folder, objects, contextlib.nullcontext)

    timed = {"sam2_fast": ours("ours")}
    if is_cuda:
        timed["sam2_fast, no recordings"] = ours("no graphs")
    for peer in ("official", "official-compiled"):
        if built.get(peer) is not None:
            timed[peer] = TimedPredictor(built[peer], folder, objects, autocast)
    if built.get("transformers") is not None:
        timed["transformers"] = TimedTransformers(built["transformers"], folder, objects, autocast)
    return timed


def check(timed: dict[str, TimedPredictor], exact: TimedPredictor, case: str) -> dict[str, float]:
    """Root mean square errors of four frames' logits against float32, by name.

    The error of this library must be at most twice that of the official package.
    """
    reference = torch.stack([m.double() for m in exact.masks(4)])
    error = {}
    for name, predictor in timed.items():
        if isinstance(predictor, TimedTransformers):
            continue  # its logits do not have the size of the video
        logits = torch.stack([m.double() for m in predictor.masks(4)])
        error[name] = (logits - reference).square().mean().sqrt().item()
    floor = 1e-4 * reference.abs().max().item()
    for name in error:
        if name.startswith("sam2_fast"):
            require(error[name] <= max(2 * error.get("official", error[name]), floor), case, name)
    return error


def video(
    case: str, name: str, image_size: int, count: int, folder: str, peak: float, options: Options
) -> Iterator[Row]:
    """Check and time a whole video with `count` objects. peak: GFLOP/s of a matrix product.

    Predictors are built anew for every case, so that the peak memory does not include CUDA graphs
    of other cases.
    """
    is_cuda = options.device.type == "cuda"
    if "official-compiled" in options.peers:
        # torch compiles a function for a limited number of shapes only, then runs it uncompiled.
        torch.compiler.reset()
    built = predictors(name, image_size, options)
    timed = timed_predictors(built, folder, count, options)
    error: dict[str, float] = {}
    if count == 1:
        exact = TimedPredictor(built["exact"], folder, count, contextlib.nullcontext)
        error = check(timed, exact, case)
    times: dict[str, list[float]] = {key: [] for key in timed}
    memory: dict[str, float] = {}
    frames = FRAMES if is_cuda else STEADY + 4
    for _ in range(max(2, options.repeats // 3)):
        for key, predictor in timed.items():
            if is_cuda:
                torch.cuda.reset_peak_memory_stats(options.device)
            times[key].append(predictor.milliseconds(frames))
            if is_cuda:
                memory[key] = torch.cuda.max_memory_allocated(options.device) / 1e6
    ours = statistics.median(times["sam2_fast"])
    for key, milliseconds in times.items():
        median = statistics.median(milliseconds)
        notes: dict[str, Any] = {"frames/s": 1e3 / median, "x ours": median / ours}
        notes |= {"rms error": error[key]} if key in error else {}
        notes |= {"peak MB": memory[key]} if key in memory else {}
        if image_size == 1024 and count == 1:
            notes["% of GEMM floor"] = 100 * FRAME_GFLOP[name] / peak * 1e3 / median
        yield Row(case, key, median, min(milliseconds), max(milliseconds), notes)


def cold_start(case: str, image_size: int, cache: str, options: Options) -> Iterator[Row]:
    """Time from the first import of a new process to the masks of its second frame on the host.

    cache: folder of Triton's compiled kernels, which the process fills if it is empty.
    """
    arguments = [options.device.type, str(image_size), str(peers.ROOT)]
    command = [sys.executable, "-c", COLD_START, *arguments]
    environment = dict(os.environ, TRITON_CACHE_DIR=cache)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    elapsed = 1e3 * float(run.stdout.strip().splitlines()[-1])
    yield Row(case, "sam2_fast", elapsed, elapsed, elapsed, {})


def measure(options: Options) -> Iterator[Case]:
    """The start of a process, then whole videos.

    Few objects with every model size come before many objects, which take minutes.
    """
    is_cuda = options.device.type == "cuda"
    full = is_cuda and not options.quick
    image_size = 1024 if full else 256
    folder = os.environ.get("SAM2_FAST_VIDEO") or write_jpegs(clip(FRAMES))
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty kernel cache", "warm kernel cache"):
            case = f"tiny {image_size}, import to first tracked frame, {state}"
            yield Case(case, cold_start, (image_size, cache, options))
    peak = matrix_peak(options.device, torch.bfloat16 if is_cuda else torch.float32)
    for count in (1, 4, 8, 16, 64) if full else (1, 4):
        for name in tuple(PRESETS) if full else ("tiny",):
            case = f"{name} {image_size}, video, {count} objects"
            yield Case(case, video, (name, image_size, count, folder, peak, options))
