"""Images: the encoder by batch, a picture to its first mask, a further click, automatic masks; with and without recordings.

On a GPU all four sizes in bfloat16 (the official package under autocast; `--peer official,official-compiled` adds its compiled encoder,
which takes minutes to begin). `--quick`, and any run on a CPU: tiny at 256 pixels, float32. Weights are random and seeded;
SAM2_FAST_PHOTO names a photograph, without it a picture of noise and squares is taken.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import peers
from benchmarks.predictors import GFLOP, clip
from benchmarks.timing import Options, Row, interleaved, matrix_peak, require, rows
from sam2_fast.build_sam import build_sam2
from sam2_fast.config import PRESETS
from sam2_fast.graphs import Graphs
from sam2_fast.image_predictor import SAM2ImagePredictor
from sam2_fast.mask_generator import SAM2AutomaticMaskGenerator

Functions = dict[str, Callable[[], Any]]
ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0, "output_mode": "coco_rle"}
"""Nothing is dropped: random weights would pass no filter."""


def photograph(quick: bool) -> np.ndarray:
    """[H, W, 3] uint8."""
    path = os.environ.get("SAM2_FAST_PHOTO")
    picture = np.array(Image.open(path).convert("RGB")) if path else clip(1, 1200, 1800)[0]
    return picture[::6, ::6].copy() if quick else picture


def around(options: Options) -> Any:
    """What the official package runs under."""
    return torch.autocast("cuda", torch.bfloat16) if options.device.type == "cuda" else contextlib.nullcontext()


def within(function: Callable[[], Any], options: Options) -> Callable[[], Any]:
    """`function` as the official package runs it."""

    def run() -> Any:
        with around(options):
            return function()

    return run


def described(case: str, functions: Functions, options: Options, notes: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Times with ratios to ours."""
    times = interleaved(functions, options)
    ours = statistics.median(times["sam2_fast"])
    yield from rows(case, times, {who: {"x ours": statistics.median(t) / ours, **notes.get(who, {})} for who, t in times.items()})


def encoders(name: str, size: int, exact: Any, ours: Any, theirs: dict[str, Any], options: Options) -> Iterator[Row]:
    """By batch: ours errs at most twice as much as the official package in the same precision."""
    cuda = options.device.type == "cuda"
    peak = matrix_peak(options.device, torch.bfloat16 if cuda else torch.float32)
    graphs = Graphs()
    for batch in (1, 4, 8, 16) if cuda else (1, 2):
        images = torch.randn(batch, 3, size, size, device=options.device)
        functions: Functions = {"sam2_fast": lambda x=images: ours.encode_image(x).low}
        if cuda:
            functions = {
                "sam2_fast": lambda x=images: graphs.encode(ours, x).low,
                "sam2_fast, no recordings": lambda x=images: ours.encode_image(x).low,
            }
        for who, model in theirs.items():
            functions[who] = within(lambda x=images, m=model: m.forward_image(x)["vision_features"], options)
        case = f"{name} {size}, image encoder, batch {batch}"
        truth: Tensor = exact.encode_image(images).low.double()
        error = {who: (f().double() - truth).square().mean().sqrt().item() for who, f in functions.items()}
        floor = 1e-4 * truth.abs().max().item()
        for who in functions:
            require(not who.startswith("sam2_fast") or error[who] <= max(2 * error.get("official", 0.0), floor), case, who)
        flop = batch * GFLOP["image encoder"][name] if size == 1024 else 0.0  # type: ignore[index]
        for row in described(case, functions, options, {who: {"rms error": e} for who, e in error.items()}):
            rate = flop / row.median_ms  # TFLOP/s
            extra = {"images/s": 1e3 * batch / row.median_ms}
            extra |= {"TFLOP/s": rate, "% of matrix peak": 100 * rate * 1e3 / peak} if flop else {}
            yield Row(row.case, row.who, row.median_ms, row.low_ms, row.high_ms, {**row.notes, **extra})


def clicks(name: str, size: int, predictors: dict[str, Any], picture: np.ndarray, options: Options) -> Iterator[Row]:
    """Bytes in to masks out on the host, then a further click; each call clicks somewhere else."""
    place = count()

    def click(predictor: Any) -> Any:
        x = 40.0 + 13 * (next(place) % 50)
        return predictor.predict(point_coords=np.array([[x % picture.shape[1], 50.0]]), point_labels=np.array([1]))

    def both(predictor: Any) -> Any:
        predictor.set_image(picture)
        return click(predictor)

    def wrap(who: str, function: Callable[[], Any]) -> Callable[[], Any]:
        return function if who.startswith("sam2_fast") else within(function, options)

    first = {who: wrap(who, lambda p=p: both(p)) for who, p in predictors.items()}
    yield from described(f"{name} {size}, set_image and one click", first, options, {})
    further = {who: wrap(who, lambda p=p: click(p)) for who, p in predictors.items()}
    for function in further.values():
        function()  # recordings are made when a shape comes the second time
    yield from described(f"{name} {size}, a further click", further, options, {})


def generators(name: str, size: int, models: dict[str, Any], picture: np.ndarray, options: Options) -> Iterator[Row]:
    """Automatic masks, nothing dropped: everybody finds equally many."""
    side = 32 if size == 1024 else 4
    functions: Functions = {}
    for who, model in models.items():
        if who.startswith("sam2_fast"):
            functions[who] = partial(SAM2AutomaticMaskGenerator(model, points_per_side=side, **ALL).generate, picture)
        elif options.device.type == "cuda":  # its filters need torchvision's operators, which here have a GPU's build alone
            from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator as Official

            functions[who] = within(partial(Official(model, points_per_side=side, **ALL).generate, picture), options)
            if who == "official-compiled":  # as segment-anything-fast sets it: compiled encoder, all clicks in one batch
                whole = Official(model, points_per_side=side, points_per_batch=side * side, **ALL)
                functions[f"{who}, one batch"] = within(partial(whole.generate, picture), options)
    case = f"{name} {size}, automatic masks, {side} x {side}"
    found = {who: len(f()) for who, f in functions.items()}
    for who, number in found.items():
        require(number == found["sam2_fast"], case, who)
    few = Options(options.device, min(options.repeats, 3))
    yield from described(case, functions, few, {who: {"masks": n} for who, n in found.items()})


@torch.inference_mode()
def measure(options: Options) -> Iterator[Row]:
    """Entry point of `benchmarks.run`."""
    cuda = options.device.type == "cuda"
    full = cuda and not options.quick
    size, picture = 1024 if full else 256, photograph(not full)
    wanted = options.peers or ("official",)
    for name in tuple(PRESETS) if full else ("tiny",):
        exact = build_sam2(name, device=options.device, seed=0, image_size=size)
        ours = build_sam2(name, device=options.device, seed=0, image_size=size, dtype=torch.bfloat16 if cuda else None)
        theirs: dict[str, Any] = {}
        for who, overrides in (("official", []), ("official-compiled", ["++model.compile_image_encoder=true"])):
            if who in wanted and (made := peers.official(name, exact.state_dict(), size, options.device, overrides)) is not None:
                theirs[who] = made
        yield from encoders(name, size, exact, ours, theirs, options)
        predictors: dict[str, Any] = {"sam2_fast": SAM2ImagePredictor(ours)}
        theirs = theirs if size == 1024 else {}  # whose predictor knows no other size
        if theirs:
            from sam2.sam2_image_predictor import SAM2ImagePredictor as Official

            predictors |= {who: Official(model) for who, model in theirs.items()}
        yield from clicks(name, size, predictors, picture, options)
        yield from generators(name, size, {"sam2_fast": ours, **theirs}, picture, options)
