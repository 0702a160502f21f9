"""Stages of a model, tracked frames, and peak memory by length of the video.

Peers are the official package and transformers with the same weights. Images have 1024 pixels, with
`--quick` 256. Weights are random with a fixed seed; frames are noise with a moving square.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from benchmarks import peers
from benchmarks.timing import Case, Options, Row, interleaved, matrix_peak, require, rows
from sam2_fast.build_sam import build_sam2_video_predictor
from sam2_fast.config import PRESETS
from sam2_fast.types import Points

Runs = dict[str, dict[str, Callable[[], Any]]]  # stage -> name -> function to time
Models = tuple[Any, Any, Any]  # of this library, of the official package, of transformers
# GFLOP of the original computation at 1024 pixels, with one object, 7 maps and 16 pointers. A
# multiply-add counts as two.
GFLOP = {
    "image encoder": {"tiny": 292, "small": 360, "base_plus": 647, "large": 1823},
    "memory attention": 606,
    "decoder": 3.6,
    "memory encoder": 11.6,
}
# GFLOP of a tracked frame of one object at 1024 pixels, without work that can be avoided.
FRAME_GFLOP = {"tiny": 715, "small": 777, "base_plus": 1049, "large": 2250}
SCRIPT = """
import re, sys

sys.path.insert(0, sys.argv[4])
from benchmarks import predictors

predictors.track_for_memory(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
# Not ru_maxrss, which starts from the memory of the parent process.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


def clip(count: int, height: int = 270, width: int = 480) -> np.ndarray:
    """A video of noise with a moving square: [count, height, width, 3] uint8."""
    frames = np.repeat(
        np.random.default_rng(0).integers(0, 120, (1, height, width, 3), dtype=np.uint8),
        count,
        axis=0,
    )
    for t in range(count):
        x = 20 + 5 * t % (width - 120)
        frames[t, 60:160, x : x + 100] += 120
    return frames


def is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors differ by no more than a different order of float32 sums explains."""
    return bool((a.float() - b.float()).abs().max() <= 1e-4 * b.abs().max())


def stages(models: Models, image_size: int) -> Runs:
    """Each stage by itself, of this library and the official package.

    The image encoder also of transformers.
    """
    ours, official, hf = models
    device = next(ours.parameters()).device
    side = image_size // 16
    image = torch.randn(1, 3, image_size, image_size, device=device)
    features = ours.encode_image(image)
    maps = torch.randn(1, 7, side * side, 64, device=device)
    pointers = torch.randn(1, 16, 256, device=device)
    map_rows = [[6, 5, 4, 3, 2, 1, 0]]
    ages = [list(range(16))]
    click = Points(
        torch.tensor([[[300.0, 200.0]]], device=device),
        torch.ones(1, 1, dtype=torch.int32, device=device),
    )
    mask = torch.randn(1, 1, image_size, image_size, device=device)
    presence = torch.ones(1, 1, device=device)
    runs: Runs = {
        "image encoder": {"sam2_fast": lambda: ours.encode_image(image).low},
        "memory attention": {
            "sam2_fast": lambda: ours.attend(features.low, maps, map_rows, pointers, ages, 15)
        },
        "decoder": {"sam2_fast": lambda: ours.track(features.low, features, click, None, True)[0]},
        "memory encoder": {
            "sam2_fast": lambda: ours.encode_memory(features.low, mask, presence, False)
        },
    }
    if official is not None:
        vision = official._prepare_backbone_features(official.forward_image(image))[1:]
        state = official_state(official, maps, pointers, side)
        prompt = {"point_coords": click.coords, "point_labels": click.labels}
        levels = [features.high, features.mid]
        runs["image encoder"]["official"] = lambda: official.forward_image(image)["vision_features"]
        runs["memory attention"]["official"] = lambda: (
            official._prepare_memory_conditioned_features(
                16, False, vision[0][-1:], vision[1][-1:], vision[2][-1:], state, 100
            )
        )
        runs["decoder"]["official"] = lambda: official._forward_sam_heads(
            features.low, prompt, None, levels, True
        )[3]
        runs["memory encoder"]["official"] = lambda: (
            official._encode_new_memory(vision[0], vision[2], mask, presence, False)[0]
            .flatten(2)
            .mT
        )
    if hf is not None:
        runs["image encoder"]["transformers"] = lambda: hf.get_image_features(
            image
        ).fpn_hidden_states[-1]
    runs["memory attention"]["sam2_fast"] = lambda: in_official_order(
        ours, features, maps, pointers
    )
    return runs


def _gflop(stage: str, name: str) -> float:
    gflop = GFLOP[stage]
    return gflop[name] if isinstance(gflop, dict) else gflop


@torch.inference_mode()
def time_stage(
    case: str,
    stage: str,
    runs: Callable[[], Runs],
    side: int,
    bfloat16: bool,
    peak: float,
    flop: float | None,
    options: Options,
) -> Iterator[Row]:
    """Check and time one stage.

    bfloat16: under bfloat16 autocast, without transformers. peak: GFLOP/s of a matrix product.
    flop: GFLOP of the stage, or None.
    """
    functions = runs()[stage]
    expected = functions["sam2_fast"]()
    if bfloat16:
        functions = {name: autocast(f) for name, f in functions.items() if name != "transformers"}
    error = {}
    for name, function in functions.items():
        output = function()
        if name == "transformers":  # its features are [tokens, batch, channels]
            output = output.reshape(side * side, 1, -1).permute(1, 2, 0).reshape(expected.shape)
        error[name] = (output.double() - expected.double()).square().mean().sqrt().item()
        require(bfloat16 or is_close(output, expected), case, name)
    require(not bfloat16 or error["sam2_fast"] <= 2 * error.get("official", 1.0), case, "sam2_fast")
    for row in with_ratios(rows(case, interleaved(functions, options))):
        extra = (
            {
                "GFLOP/s": flop / row.median_ms * 1e3,
                "% of matrix peak": 100 * flop / row.median_ms * 1e3 / peak,
            }
            if flop
            else {}
        )
        extra |= {"rms error": error[row.implementation]} if bfloat16 else {}
        yield row.with_notes(extra)


def autocast(function: Callable[[], Any]) -> Callable[[], Any]:
    """`function` under bfloat16 autocast on the CPU."""

    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return function()

    return run


def official_state(
    official: Any, maps: torch.Tensor, pointers: torch.Tensor, side: int
) -> dict[str, Any]:
    """Outputs of earlier frames in the official format: 0 is prompted, 1 to 15 are tracked.

    The maps are those of frame 0 and of frames 10 to 15.
    """
    position = official.memory_encoder.position_encoding(maps.new_zeros(1, 64, side, side))
    features = [m.T.reshape(1, 64, side, side) for m in maps[0]]

    def output(frame: int) -> dict[str, Any]:
        return {
            "maskmem_features": features[max(frame - 9, 0)],
            "maskmem_pos_enc": [position],
            "obj_ptr": pointers[:, frame],
        }

    return {
        "cond_frame_outputs": {0: output(0)},
        "non_cond_frame_outputs": {t: output(t) for t in range(1, 16)},
    }


def in_official_order(
    ours: Any, features: Any, maps: torch.Tensor, pointers: torch.Tensor
) -> torch.Tensor:
    """This library's memory attention over the maps and pointers of `official_state`."""
    order = [0, *range(15, 0, -1)]
    return ours.attend(
        features.low, maps, [[6, 5, 4, 3, 2, 1, 0]], pointers[:, order], [[16, *range(1, 16)]], 15
    )


def with_ratios(measured: list[Row]) -> list[Row]:
    """The rows with the ratio of their time to this library's, which is the first row."""
    ours = measured[0].median_ms
    return [row.with_notes({"x ours": row.median_ms / ours}) for row in measured]


class SteadyTracking:
    """Tracks one frame per call, in the steady state.

    The first 17 frames are tracked on construction, so that every timed frame attends to 7 maps and
    16 pointers.
    """

    def __init__(
        self,
        predictor: Any,
        folder: str | np.ndarray,
        objects: int,
        frames: int,
        bfloat16: bool = False,
    ) -> None:
        self.predictor = predictor
        self.frames = frames
        self.frame = 17
        self.bfloat16 = bfloat16
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            self.state = predictor.init_state(folder)
            for i in range(objects):
                predictor.add_new_points_or_box(
                    self.state, 0, i, points=[[40 + 20 * i, 100]], labels=[1]
                )
            for _ in predictor.propagate_in_video(self.state, max_frame_num_to_track=16):
                pass

    def __call__(self) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            output = next(iter(self.predictor.propagate_in_video(self.state, self.frame, 0)))
        self.frame = 17 + (self.frame - 16) % (self.frames - 17)
        return output[2]


@torch.inference_mode()
def time_frame(
    case: str,
    objects: int,
    bfloat16: bool,
    models: Callable[[], Models],
    flop: float | None,
    options: Options,
) -> Iterator[Row]:
    """Check and time a tracked frame. flop: the least GFLOP that it needs, or None."""
    ours, official, _ = models()
    count = 17 + options.repeats + 3
    folder = write_jpegs(clip(count))
    functions: dict[str, Callable[[], Any]] = {
        "sam2_fast": SteadyTracking(ours, folder, objects, count, bfloat16)
    }
    if official is not None:
        functions["official"] = SteadyTracking(official, folder, objects, count, bfloat16)
        a = functions["sam2_fast"]() > 0
        b = functions["official"]() > 0
        overlap = ((a & b).sum() / (a | b).sum().clamp(min=1)).item()
        # Masks are not compared in bfloat16: both implementations have errors, and logits of random
        # weights are near zero. The stages are, in `time_stage`.
        require(overlap >= (0.0 if bfloat16 else 0.999) or not (a | b).any(), case, "official")
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    # Milliseconds of the matrix products at the peak rate.
    floor = flop / matrix_peak(options.device, dtype) * 1e3 if flop else None
    for row in with_ratios(rows(case, interleaved(functions, options))):
        notes = {"frames/s": 1e3 / row.median_ms}
        if floor:
            notes["% of GEMM floor"] = 100 * floor / row.median_ms
        yield row.with_notes(notes)


def write_jpegs(pictures: np.ndarray) -> str:
    """Write frames as JPEG files to a temporary folder, for all predictors. Returns its path."""
    import tempfile

    from PIL import Image

    folder = tempfile.mkdtemp()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(f"{folder}/{i:05d}.jpg")
    return folder


def track_for_memory(implementation: str, count: int, image_size: int) -> None:
    """Track one object through `count` frames.

    `SCRIPT` runs this in a separate process and then reads the peak memory of that process.
    """
    ours = build_sam2_video_predictor("tiny", device="cpu", seed=0, image_size=image_size)
    predictor = (
        peers.official("tiny", ours.state_dict(), image_size, torch.device("cpu"))
        if implementation == "official"
        else ours
    )
    keep = {"keep": "reachable"} if implementation == "sam2_fast" else {}
    with torch.inference_mode():
        state = predictor.init_state(write_jpegs(clip(count, 120, 160)), **keep)
        predictor.add_new_points_or_box(state, 0, 1, points=[[60, 60]], labels=[1])
        for _ in predictor.propagate_in_video(state):
            pass


def peak_memory(case: str, implementation: str, count: int, image_size: int) -> Iterator[Row]:
    """Peak resident memory of tracking one object, in MB among the notes. Times are zero."""
    arguments = [implementation, str(count), str(image_size), str(peers.ROOT)]
    command = [sys.executable, "-c", SCRIPT, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(run.stdout.strip().splitlines()[-1]) / 1e6
    yield Row(case, implementation, 0.0, 0.0, 0.0, {"MB": peak})


def build(name: str, image_size: int, options: Options) -> Models:
    """This library's predictor, the official one and transformers' model, with equal weights.

    The latter two are None if they are not available or not requested.
    """
    requested = options.peers or ("official", "transformers")
    device = options.device
    ours = build_sam2_video_predictor(name, device=device, seed=0, image_size=image_size)
    ours.fill_hole_area = 0
    # With random weights most objects are predicted to be absent. Their masks are constant, so a
    # comparison would show nothing.
    ours.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(10.0)
    state = ours.state_dict()
    official = None
    if "official" in requested:
        official = peers.official(name, state, image_size, device)
    hf = None
    if "transformers" in requested:
        hf = peers.transformers(name, state, image_size, device)
    return ours, official, hf


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """Stages, then tracked frames, for each model size; on a CPU then peak memory."""
    image_size = 256 if options.quick else 1024
    cpu = options.device.type == "cpu"
    for name in ("tiny",) if options.quick or cpu else tuple(PRESETS):
        models = cache(partial(build, name, image_size, options))
        runs = cache(lambda m=models: stages(m(), image_size))
        for bfloat16 in (False, True) if cpu else (False,):
            peak = matrix_peak(options.device, torch.bfloat16 if bfloat16 else torch.float32)
            for stage in GFLOP:
                case = f"{name} {image_size}, {stage}{', bfloat16' if bfloat16 else ''}"
                flop = None if options.quick else _gflop(stage, name)
                arguments = (stage, runs, image_size // 16, bfloat16, peak, flop, options)
                yield Case(case, time_stage, arguments)
        # On a CPU a full-size frame of four objects takes half a minute, and 17 frames are tracked
        # before the first one is timed.
        full = cpu and not options.quick
        for objects in (1,) if full else (1, 4):
            for bfloat16 in (False, True) if cpu else (False,):
                suffix = ", bfloat16" if bfloat16 else ""
                flop = FRAME_GFLOP[name] if full else None
                yield Case(
                    f"{name} {image_size}, frame, {objects} objects{suffix}",
                    time_frame,
                    (objects, bfloat16, models, flop, options),
                )
    if cpu:
        for implementation in (
            ("sam2_fast", "official") if peers.has_official(options.peers) else ("sam2_fast",)
        ):
            for count in (25, 100, 200):
                case = f"tiny 256, peak memory, {count} frames"
                yield Case(case, peak_memory, (implementation, count, 256))
