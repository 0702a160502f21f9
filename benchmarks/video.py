"""Whole videos, frames a second as a user sees them: ours with and without recordings, the official
package, transformers.

Steady state: frames from 17 on, which attend to 7 maps and 16 pointers; wall clock, the device
awaited at both ends. On a GPU all four sizes and up to 64 objects, in bfloat16 (peers under
autocast); `--peer official,transformers` are the default, `official-compiled` adds
`vos_optimized=True`, which compiles for minutes first. `--quick`, and any run on a CPU: tiny at 256
pixels, float32. SAM2_FAST_VIDEO names a folder of JPEGs to track in; without it a square moves over
noise. Weights are random and seeded.
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
from benchmarks.predictors import FRAME_GFLOP, clip, folder_of
from benchmarks.timing import Case, Options, Row, matrix_peak, require
from sam2_fast.build_sam import build_sam2_video_predictor
from sam2_fast.config import PRESETS
from sam2_fast.io.transforms import frame_input
from sam2_fast.io.video import open_video

STEADY = 17
"""The first frame that attends to all there can be."""
FRAMES = 60
COLD = """
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


class Contestant:
    """A video predictor that is run over the clip from a new session each time."""

    def __init__(
        self, predictor: Any, folder: str, objects: int, around: Callable[[], Any]
    ) -> None:
        self._predictor, self._folder, self._objects, self._around = (
            predictor,
            folder,
            objects,
            around,
        )

    def masks(self, frames: int) -> Iterator[torch.Tensor]:
        """Logits of `frames` frames."""
        with torch.inference_mode(), self._around():
            state = self._predictor.init_state(self._folder)
            for i, place in enumerate(places(self._objects)):
                self._predictor.add_new_points_or_box(state, 0, i, points=place, labels=[1])
            for _, _, masks in self._predictor.propagate_in_video(
                state, max_frame_num_to_track=frames - 1
            ):
                yield masks

    def milliseconds(self, frames: int) -> float:
        """A steady frame."""
        start = 0.0
        for number, masks in enumerate(self.masks(frames)):
            if number == STEADY - 1:
                _await(masks)
                start = time.perf_counter()
        _await(masks)
        return (time.perf_counter() - start) / (frames - STEADY) * 1e3


class Transformers(Contestant):
    """`Sam2VideoModel`, which wants all frames on the device before it begins."""

    def masks(self, frames: int) -> Iterator[torch.Tensor]:
        """Logits [N, 1, 256, 256] of `frames` frames."""
        model, tool = self._predictor, peers.transformers_tool()
        with torch.inference_mode(), self._around():
            video = open_video(self._folder)
            size, device = 1024, next(model.parameters()).device
            pictures = torch.stack([frame_input(video[i], size, device) for i in range(frames)])
            session = tool.hf_video_session(pictures, (video.height, video.width))
            for place in ("inference_device", "inference_state_device", "video_storage_device"):
                setattr(session, place, device)
            for i, click in enumerate(places(self._objects)):
                scaled = np.array(click) / [video.width, video.height] * size
                tool.hf_add_points(session, 0, i, scaled, [1])
            for output in model.propagate_in_video_iterator(session, start_frame_idx=0):
                yield output.pred_masks


def places(objects: int) -> list[list[list[float]]]:
    """A click for each object, pixels of the clip."""
    return [[[40.0 + 50 * (i % 8), 60.0 + 20 * (i // 8)]] for i in range(objects)]


def _await(masks: torch.Tensor) -> None:
    if masks.is_cuda:
        torch.cuda.synchronize(masks.device)


def predictors(name: str, image_size: int, options: Options) -> dict[str, Any]:
    """At equal weights, by name; "wide" is ours in float32, "bare" ours without recordings."""
    cuda = options.device.type == "cuda"
    wanted = options.peers or ("official", "transformers")
    made = {
        who: build_sam2_video_predictor(name, device=options.device, seed=0, image_size=image_size)
        for who in ("wide", "ours", "bare")
    }
    for predictor in made.values():
        predictor.fill_hole_area = 0
        # random weights find most objects absent, whose masks are a constant: nothing would be
        #     compared
        predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(10.0)
    state = made["wide"].state_dict()
    if cuda:
        made["ours"].to(torch.bfloat16), made["bare"].to(torch.bfloat16)
    made["bare"].graphs = None
    for who, more in (("official", {}), ("official-compiled", {"vos_optimized": True})):
        if who in wanted:
            made[who] = peers.official(name, state, image_size, options.device, **more)
    if "transformers" in wanted:
        made["transformers"] = peers.transformers(name, state, image_size, options.device)
    return made


def contestants(
    built: dict[str, Any], folder: str, objects: int, options: Options
) -> dict[str, Contestant]:
    """Over the clip in `folder`, by name."""
    cuda = options.device.type == "cuda"

    def autocast() -> Any:
        return torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext()

    plain = contextlib.nullcontext
    found = {"sam2_fast": Contestant(built["ours"], folder, objects, plain)}
    if cuda:
        found["sam2_fast, no recordings"] = Contestant(built["bare"], folder, objects, plain)
    for who in ("official", "official-compiled"):
        if built.get(who) is not None:
            found[who] = Contestant(built[who], folder, objects, autocast)
    if built.get("transformers") is not None:
        found["transformers"] = Transformers(built["transformers"], folder, objects, autocast)
    return found


def prove(who: dict[str, Contestant], exact: Contestant, case: str) -> dict[str, float]:
    """Root mean square errors of four frames' logits against float32; ours is at most twice the
    official one.
    """
    truth = torch.stack([m.double() for m in exact.masks(4)])
    # Whose logits are not at the size of the video.
    alike = {name: c for name, c in who.items() if not isinstance(c, Transformers)}
    error = {
        name: (torch.stack([m.double() for m in c.masks(4)]) - truth).square().mean().sqrt().item()
        for name, c in alike.items()
    }
    floor = 1e-4 * truth.abs().max().item()
    for name in error:
        if name.startswith("sam2_fast"):
            require(error[name] <= max(2 * error.get("official", error[name]), floor), case, name)
    return error


def video(
    case: str, name: str, image_size: int, count: int, folder: str, peak: float, options: Options
) -> Iterator[Row]:
    """A whole video with `count` objects; `peak`: GFLOP/s of a matrix product.

    Predictors are built anew for every case: what recordings of other cases hold is not in the peak
        memory.
    """
    cuda = options.device.type == "cuda"
    if "official-compiled" in options.peers:
        # torch compiles a function for a limited number of shapes, then runs it as it is
        torch.compiler.reset()
    built = predictors(name, image_size, options)
    who = contestants(built, folder, count, options)
    error = (
        prove(who, Contestant(built["wide"], folder, count, contextlib.nullcontext), case)
        if count == 1
        else {}
    )
    times: dict[str, list[float]] = {x: [] for x in who}
    memory: dict[str, float] = {}
    frames = FRAMES if cuda else STEADY + 4
    for _ in range(max(2, options.repeats // 3)):
        for x, contestant in who.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats(options.device)
            times[x].append(contestant.milliseconds(frames))
            if cuda:
                memory[x] = torch.cuda.max_memory_allocated(options.device) / 1e6
    ours = statistics.median(times["sam2_fast"])
    for x, found in times.items():
        middle = statistics.median(found)
        notes: dict[str, Any] = {"frames/s": 1e3 / middle, "x ours": middle / ours}
        notes |= {"rms error": error[x]} if x in error else {}
        notes |= {"peak MB": memory[x]} if x in memory else {}
        if image_size == 1024 and count == 1:
            notes["% of GEMM floor"] = 100 * FRAME_GFLOP[name] / peak * 1e3 / middle
        yield Row(case, x, middle, min(found), max(found), notes)


def cold_start(case: str, image_size: int, cache: str, options: Options) -> Iterator[Row]:
    """From the interpreter's start of imports to the second frame's masks on the host, in a process
    of its own.

    cache: the folder of Triton's compiled kernels, which the process fills where it is empty.
    """
    command = [sys.executable, "-c", COLD, options.device.type, str(image_size), str(peers.ROOT)]
    environment = dict(os.environ, TRITON_CACHE_DIR=cache)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    taken = 1e3 * float(run.stdout.strip().splitlines()[-1])
    yield Row(case, "sam2_fast", taken, taken, taken, {})


def measure(options: Options) -> Iterator[Case]:
    """The start of a process; then few objects of every size before many, which take minutes."""
    cuda = options.device.type == "cuda"
    full = cuda and not options.quick
    image_size = 1024 if full else 256
    folder = os.environ.get("SAM2_FAST_VIDEO") or folder_of(clip(FRAMES))
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty kernel cache", "warm kernel cache"):
            case = f"tiny {image_size}, import to first tracked frame, {state}"
            yield Case(case, cold_start, (image_size, cache, options))
    peak = matrix_peak(options.device, torch.bfloat16 if cuda else torch.float32)
    for count in (1, 4, 8, 16, 64) if full else (1, 4):
        for name in tuple(PRESETS) if full else ("tiny",):
            case = f"{name} {image_size}, video, {count} objects"
            yield Case(case, video, (name, image_size, count, folder, peak, options))
