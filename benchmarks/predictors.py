"""Stages and tracked frames against the official package and transformers at equal weights, and
peak memory by video length.

`--quick` takes 256-pixel images; otherwise 1024. Weights are random and seeded, frames are noise
with a moving square.
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

Runs = dict[str, dict[str, Callable[[], Any]]]  # stage -> name -> what to time
Models = tuple[Any, Any, Any]
# GFLOP at 1024 pixels with nothing rewritten, one object, 7 maps and 16 pointers (2 FLOP a
# multiply-add)
GFLOP = {
    "image encoder": {"tiny": 292, "small": 360, "base_plus": 647, "large": 1823},
    "memory attention": 606,
    "decoder": 3.6,
    "memory encoder": 11.6,
}
# a tracked frame of one object at 1024 pixels without the work that need not be done
FRAME_GFLOP = {"tiny": 715, "small": 777, "base_plus": 1049, "large": 2250}
SCRIPT = """
import re, sys

sys.path.insert(0, sys.argv[4])
from benchmarks import predictors

predictors.track_for_memory(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
# not ru_maxrss: that starts from what the parent process held
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


def clip(count: int, height: int = 270, width: int = 480) -> np.ndarray:
    """[count, height, width, 3] uint8."""
    frames = np.repeat(
        np.random.default_rng(0).integers(0, 120, (1, height, width, 3), dtype=np.uint8),
        count,
        axis=0,
    )
    for t in range(count):
        x = 20 + 5 * t % (width - 120)
        frames[t, 60:160, x : x + 100] += 120
    return frames


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to what reordering float32 sums can change."""
    return bool((a.float() - b.float()).abs().max() <= 1e-4 * b.abs().max())


def stages(models: Models, image_size: int) -> Runs:
    """Each stage by itself, ours and the official one; the encoder also of transformers."""
    ours, theirs, hf = models
    device, side = next(ours.parameters()).device, image_size // 16
    image = torch.randn(1, 3, image_size, image_size, device=device)
    features = ours.encode_image(image)
    maps, pointers = (
        torch.randn(1, 7, side * side, 64, device=device),
        torch.randn(1, 16, 256, device=device),
    )
    rows_, ages = [[6, 5, 4, 3, 2, 1, 0]], [list(range(16))]
    click = Points(
        torch.tensor([[[300.0, 200.0]]], device=device),
        torch.ones(1, 1, dtype=torch.int32, device=device),
    )
    mask, presence = (
        torch.randn(1, 1, image_size, image_size, device=device),
        torch.ones(1, 1, device=device),
    )
    runs: Runs = {
        "image encoder": {"sam2_fast": lambda: ours.encode_image(image).low},
        "memory attention": {
            "sam2_fast": lambda: ours.attend(features.low, maps, rows_, pointers, ages, 15)
        },
        "decoder": {"sam2_fast": lambda: ours.track(features.low, features, click, None, True)[0]},
        "memory encoder": {
            "sam2_fast": lambda: ours.encode_memory(features.low, mask, presence, False)
        },
    }
    if theirs is not None:
        vision = theirs._prepare_backbone_features(theirs.forward_image(image))[1:]
        state = official_state(theirs, maps, pointers, side)
        prompt, levels = (
            {"point_coords": click.coords, "point_labels": click.labels},
            [features.high, features.mid],
        )
        runs["image encoder"]["official"] = lambda: theirs.forward_image(image)["vision_features"]
        runs["memory attention"]["official"] = lambda: theirs._prepare_memory_conditioned_features(
            16, False, vision[0][-1:], vision[1][-1:], vision[2][-1:], state, 100
        )
        runs["decoder"]["official"] = lambda: theirs._forward_sam_heads(
            features.low, prompt, None, levels, True
        )[3]
        runs["memory encoder"]["official"] = lambda: (
            theirs._encode_new_memory(vision[0], vision[2], mask, presence, False)[0].flatten(2).mT
        )
    if hf is not None:
        runs["image encoder"]["transformers"] = lambda: hf.get_image_features(
            image
        ).fpn_hidden_states[-1]
    runs["memory attention"]["sam2_fast"] = lambda: in_official_order(
        ours, features, maps, pointers
    )
    return runs


def _work(stage: str, name: str) -> float:
    work = GFLOP[stage]
    return work[name] if isinstance(work, dict) else work


@torch.inference_mode()
def timed(
    case: str,
    stage: str,
    runs: Callable[[], Runs],
    side: int,
    narrow: bool,
    peak: float,
    flop: float | None,
    options: Options,
) -> Iterator[Row]:
    """A stage, proved equal, then timed; narrow: under the caller's bfloat16 autocast, without
    transformers.
    """
    functions = runs()[stage]
    expected = functions["sam2_fast"]()
    given = (
        {who: autocast(f) for who, f in functions.items() if who != "transformers"}
        if narrow
        else dict(functions)
    )
    error = {}
    for who, function in given.items():
        found = function()
        if who == "transformers":  # its features are tokens first
            found = found.reshape(side * side, 1, -1).permute(1, 2, 0).reshape(expected.shape)
        error[who] = (found.double() - expected.double()).square().mean().sqrt().item()
        require(narrow or close(found, expected), case, who)
    require(not narrow or error["sam2_fast"] <= 2 * error.get("official", 1.0), case, "sam2_fast")
    for row in with_ratio(rows(case, interleaved(given, options))):
        extra = (
            {
                "GFLOP/s": flop / row.median_ms * 1e3,
                "% of matrix peak": 100 * flop / row.median_ms * 1e3 / peak,
            }
            if flop
            else {}
        )
        extra |= {"rms error": error[row.implementation]} if narrow else {}
        yield row.with_notes(extra)


def autocast(function: Callable[[], Any]) -> Callable[[], Any]:
    """`function` under bfloat16 autocast on the CPU."""

    def narrow() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return function()

    return narrow


def official_state(
    theirs: Any, maps: torch.Tensor, pointers: torch.Tensor, side: int
) -> dict[str, Any]:
    """Frame 0 prompted and frames 1 to 15 tracked; frames 10 to 15 and the prompt carry maps."""
    position = theirs.memory_encoder.position_encoding(maps.new_zeros(1, 64, side, side))
    as_map = [m.T.reshape(1, 64, side, side) for m in maps[0]]

    def output(frame: int) -> dict[str, Any]:
        which = 0 if frame == 0 else max(frame - 9, 0)
        return {
            "maskmem_features": as_map[which],
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
    """Our attention over exactly what `official_state` holds."""
    order = [0, *range(15, 0, -1)]
    return ours.attend(
        features.low, maps, [[6, 5, 4, 3, 2, 1, 0]], pointers[:, order], [[16, *range(1, 16)]], 15
    )


def with_ratio(measured: list[Row]) -> list[Row]:
    """Each row with how many times slower than ours it was."""
    ours = measured[0].median_ms
    return [row.with_notes({"x ours": row.median_ms / ours}) for row in measured]


class Steady:
    """One tracked frame at a time in the steady state: every frame attends to 7 maps and 16
    pointers.
    """

    def __init__(
        self,
        predictor: Any,
        folder: str | np.ndarray,
        objects: int,
        frames: int,
        narrow: bool = False,
    ) -> None:
        self.predictor, self.frames, self.now, self.narrow = predictor, frames, 17, narrow
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            self.state = predictor.init_state(folder)
            for i in range(objects):
                predictor.add_new_points_or_box(
                    self.state, 0, i, points=[[40 + 20 * i, 100]], labels=[1]
                )
            for _ in predictor.propagate_in_video(self.state, max_frame_num_to_track=16):
                pass

    def __call__(self) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.narrow):
            output = next(iter(self.predictor.propagate_in_video(self.state, self.now, 0)))
        self.now = 17 + (self.now - 16) % (self.frames - 17)
        return output[2]


@torch.inference_mode()
def frame(
    case: str,
    objects: int,
    narrow: bool,
    models: Callable[[], Models],
    flop: float | None,
    options: Options,
) -> Iterator[Row]:
    """A tracked frame; `flop`: the GFLOP that it takes at least."""
    ours, theirs, _ = models()
    count = 17 + options.repeats + 3
    folder = folder_of(clip(count))
    functions: dict[str, Callable[[], Any]] = {
        "sam2_fast": Steady(ours, folder, objects, count, narrow)
    }
    if theirs is not None:
        functions["official"] = Steady(theirs, folder, objects, count, narrow)
        a, b = functions["sam2_fast"]() > 0, functions["official"]() > 0
        overlap = ((a & b).sum() / (a | b).sum().clamp(min=1)).item()
        # in bfloat16 both err, and random weights draw masks near zero: the stages' errors are what
        #     is proved
        require(overlap >= (0.0 if narrow else 0.999) or not (a | b).any(), case, "official")
    dtype = torch.bfloat16 if narrow else torch.float32
    # Ms that the products alone take at the machine's best.
    floor = flop / matrix_peak(options.device, dtype) * 1e3 if flop else None
    for row in with_ratio(rows(case, interleaved(functions, options))):
        notes = {"frames/s": 1e3 / row.median_ms}
        if floor:
            notes["% of GEMM floor"] = 100 * floor / row.median_ms
        yield row.with_notes(notes)


def folder_of(pictures: np.ndarray) -> str:
    """Frames as JPEGs in a temporary folder, which both predictors read alike."""
    import tempfile

    from PIL import Image

    folder = tempfile.mkdtemp()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(f"{folder}/{i:05d}.jpg")
    return folder


def track_for_memory(who: str, count: int, image_size: int) -> None:
    """Track one object through `count` frames; run in a process of its own, whose peak memory is
    then read.
    """
    ours = build_sam2_video_predictor("tiny", device="cpu", seed=0, image_size=image_size)
    predictor = (
        peers.official("tiny", ours.state_dict(), image_size, torch.device("cpu"))
        if who == "official"
        else ours
    )
    keep = {"keep": "reachable"} if who == "sam2_fast" else {}
    with torch.inference_mode():
        state = predictor.init_state(folder_of(clip(count, 120, 160)), **keep)
        predictor.add_new_points_or_box(state, 0, 1, points=[[60, 60]], labels=[1])
        for _ in predictor.propagate_in_video(state):
            pass


def memory(case: str, who: str, count: int, image_size: int) -> Iterator[Row]:
    """Peak resident memory of a video, one object, in MB among the notes; the times of these rows
    are empty.
    """
    command = [sys.executable, "-c", SCRIPT, who, str(count), str(image_size), str(peers.ROOT)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(run.stdout.strip().splitlines()[-1]) / 1e6
    yield Row(case, who, 0.0, 0.0, 0.0, {"MB": peak})


def build(name: str, image_size: int, options: Options) -> Models:
    """At equal weights: ours, the official predictor and transformers' model, each of the latter
    None where it is not at hand.
    """
    wanted = options.peers or ("official", "transformers")
    ours = build_sam2_video_predictor(name, device=options.device, seed=0, image_size=image_size)
    ours.fill_hole_area = 0
    # random weights find most objects absent, whose masks are a constant: nothing would be compared
    ours.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(10.0)
    state = ours.state_dict()
    theirs = (
        peers.official(name, state, image_size, options.device) if "official" in wanted else None
    )
    hf = (
        peers.transformers(name, state, image_size, options.device)
        if "transformers" in wanted
        else None
    )
    return ours, theirs, hf


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """Stages, then tracked frames, for each size; on a CPU peak memory last."""
    image_size = 256 if options.quick else 1024
    cpu = options.device.type == "cpu"
    for name in ("tiny",) if options.quick or cpu else tuple(PRESETS):
        models = cache(partial(build, name, image_size, options))
        runs = cache(lambda m=models: stages(m(), image_size))
        for narrow in (False, True) if cpu else (False,):
            peak = matrix_peak(options.device, torch.bfloat16 if narrow else torch.float32)
            for stage in GFLOP:
                case = f"{name} {image_size}, {stage}{', bfloat16' if narrow else ''}"
                flop = None if options.quick else _work(stage, name)
                yield Case(
                    case, timed, (stage, runs, image_size // 16, narrow, peak, flop, options)
                )
        # a full-size frame of four objects takes half a minute on a CPU, and each measurement
        # starts with seventeen
        full = cpu and not options.quick
        for objects in (1,) if full else (1, 4):
            for narrow in (False, True) if cpu else (False,):
                case = (
                    f"{name} {image_size}, frame, {objects} objects{', bfloat16' if narrow else ''}"
                )
                yield Case(
                    case,
                    frame,
                    (objects, narrow, models, FRAME_GFLOP[name] if full else None, options),
                )
    if cpu:
        for who in (
            ("sam2_fast", "official") if peers.has_official(options.peers) else ("sam2_fast",)
        ):
            for count in (25, 100, 200):
                yield Case(f"tiny 256, peak memory, {count} frames", memory, (who, count, 256))
