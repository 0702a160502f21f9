"""Images: the encoder by batch, set_image and a click, a further click, and automatic masks.

On a GPU all four model sizes run in bfloat16 at 1024 pixels, the encoder with and without CUDA
graphs, and the official package runs under autocast. `--peer official,official-compiled` adds the
official package with a compiled encoder, which takes minutes to compile. With `--quick`, and always
on a CPU, the tiny model runs in float32 at 256 pixels. Weights are random with a fixed seed. The
environment variable SAM2_FAST_PHOTO names a photograph; by default the picture consists of noise
and a square.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import peers
from benchmarks.predictors import GFLOP, clip
from benchmarks.timing import Case, Options, Row, interleaved, matrix_peak, require, rows
from sam2_fast.build_sam import build_sam2
from sam2_fast.config import PRESETS
from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.recording.cache import Graphs

Functions = dict[str, Callable[[], Any]]
KEEP_ALL = {
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
    "output_mode": "coco_rle",
}
"""Settings that drop no mask: masks of random weights pass no filter."""


def photograph(quick: bool) -> np.ndarray:
    """The picture to segment: [H, W, 3] uint8. quick: at a sixth of its size."""
    path = os.environ.get("SAM2_FAST_PHOTO")
    picture = np.array(Image.open(path).convert("RGB")) if path else clip(1, 1200, 1800)[0]
    return picture[::6, ::6].copy() if quick else picture


def with_autocast(function: Callable[[], Any], options: Options) -> Callable[[], Any]:
    """`function` under the autocast that the official package needs on a GPU."""

    def run() -> Any:
        is_cuda = options.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if is_cuda else contextlib.nullcontext():
            return function()

    return run


def timed_rows(
    case: str, functions: Functions, options: Options, notes: dict[str, dict[str, Any]]
) -> Iterator[Row]:
    """Time the functions. Rows have the ratio to this library's time among their notes."""
    times = interleaved(functions, options)
    ours = statistics.median(times["sam2_fast"])
    yield from rows(
        case,
        times,
        {
            name: {"x ours": statistics.median(t) / ours, **notes.get(name, {})}
            for name, t in times.items()
        },
    )


class Models:
    """Models of one size with equal weights.

    name, size: size of the model, size of the image.
    exact, ours: this library's model in float32, and in the dtype to measure.
    official: models of the official package by name.
    """

    def __init__(self, name: str, size: int, options: Options) -> None:
        is_cuda = options.device.type == "cuda"
        self.name = name
        self.size = size
        self.graphs = Graphs()
        self.exact = build_sam2(name, device=options.device, seed=0, image_size=size)
        self.ours = build_sam2(
            name,
            device=options.device,
            seed=0,
            image_size=size,
            dtype=torch.bfloat16 if is_cuda else None,
        )
        self.official: dict[str, Any] = {}
        state = self.exact.state_dict()
        for peer, overrides in (
            ("official", []),
            ("official-compiled", ["++model.compile_image_encoder=true"]),
        ):
            if peer in (options.peers or ("official",)):
                model = peers.official(name, state, size, options.device, overrides)
                if model is not None:
                    self.official[peer] = model

    def official_for_predictor(self) -> dict[str, Any]:
        """Models for the official image predictor, which supports images of 1024 pixels only."""
        return self.official if self.size == 1024 else {}

    def predictors(self) -> dict[str, Any]:
        """Image predictors by name."""
        predictors: dict[str, Any] = {"sam2_fast": SAM2ImagePredictor(self.ours)}
        if models := self.official_for_predictor():
            from sam2.sam2_image_predictor import SAM2ImagePredictor as Official

            predictors |= {name: Official(model) for name, model in models.items()}
        return predictors


Build = Callable[[], Models]


@torch.inference_mode()
def encoder(case: str, batch: int, build: Build, peak: float, options: Options) -> Iterator[Row]:
    """Check and time the image encoder on one batch.

    The error of this library is at most twice that of the official package in the same precision.
    peak: GFLOP/s of a matrix product.
    """
    models = build()
    ours = models.ours
    graphs = models.graphs
    size = models.size
    images = torch.randn(batch, 3, size, size, device=options.device)
    functions: Functions = {"sam2_fast": lambda x=images: ours.encode_image(x).low}
    if options.device.type == "cuda":
        functions = {
            "sam2_fast": lambda x=images: graphs.encode(ours, x).low,
            "sam2_fast, no recordings": lambda x=images: ours.encode_image(x).low,
        }
    for name, model in models.official.items():
        functions[name] = with_autocast(
            lambda x=images, m=model: m.forward_image(x)["vision_features"], options
        )
    exact: Tensor = models.exact.encode_image(images).low.double()
    error = {
        name: (f().double() - exact).square().mean().sqrt().item() for name, f in functions.items()
    }
    floor = 1e-4 * exact.abs().max().item()
    for name in functions:
        require(
            not name.startswith("sam2_fast")
            or error[name] <= max(2 * error.get("official", 0.0), floor),
            case,
            name,
        )
    flop = batch * GFLOP["image encoder"][models.name] if size == 1024 else 0.0
    notes = {name: {"rms error": e} for name, e in error.items()}
    for row in timed_rows(case, functions, options, notes):
        rate = flop / row.median_ms  # TFLOP/s
        extra = {"images/s": 1e3 * batch / row.median_ms}
        extra |= {"TFLOP/s": rate, "% of matrix peak": 100 * rate * 1e3 / peak} if flop else {}
        yield row.with_notes(extra)


@torch.inference_mode()
def clicks(
    case: str, first: bool, build: Build, picture: np.ndarray, options: Options
) -> Iterator[Row]:
    """Time image predictors, from uint8 pictures on the host to masks on the host.

    first: time `set_image` and one click; otherwise a further click on the same image. Every call
    clicks at another position.
    """
    position = count()
    predictors = build().predictors()

    def click(predictor: Any) -> Any:
        x = 40.0 + 13 * (next(position) % 50)
        return predictor.predict(
            point_coords=np.array([[x % picture.shape[1], 50.0]]), point_labels=np.array([1])
        )

    def set_image_and_click(predictor: Any) -> Any:
        predictor.set_image(picture)
        return click(predictor)

    def functions(call: Callable[[Any], Any]) -> Functions:
        calls = {name: partial(call, predictor) for name, predictor in predictors.items()}
        return {
            name: f if name.startswith("sam2_fast") else with_autocast(f, options)
            for name, f in calls.items()
        }

    for function in functions(set_image_and_click).values():
        function()
    if not first:  # a CUDA graph is captured at the second call with the same shapes
        for function in functions(click).values():
            function()
    yield from timed_rows(case, functions(set_image_and_click if first else click), options, {})


@torch.inference_mode()
def generators(
    case: str, side: int, build: Build, picture: np.ndarray, options: Options
) -> Iterator[Row]:
    """Automatic masks without filters: all generators return the same number of masks.

    side: clicks per side of the grid.
    """
    models = build()
    ours = SAM2AutomaticMaskGenerator(models.ours, points_per_side=side, **KEEP_ALL)
    functions: Functions = {"sam2_fast": partial(ours.generate, picture)}
    # The official generator needs torchvision's operators, which are available on a GPU only.
    official = models.official_for_predictor() if options.device.type == "cuda" else {}
    for name, model in official.items():
        from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator as Official

        generator = Official(model, points_per_side=side, **KEEP_ALL)
        functions[name] = with_autocast(partial(generator.generate, picture), options)
        if name == "official-compiled":  # with all clicks in one batch, as segment-anything-fast
            generator = Official(
                model, points_per_side=side, points_per_batch=side * side, **KEEP_ALL
            )
            functions[f"{name}, one batch"] = with_autocast(
                partial(generator.generate, picture), options
            )
    mask_counts = {name: len(f()) for name, f in functions.items()}
    for name, number in mask_counts.items():
        require(number == mask_counts["sam2_fast"], case, name)
    few_repeats = Options(options.device, min(options.repeats, 3))
    notes = {name: {"masks": number} for name, number in mask_counts.items()}
    yield from timed_rows(case, functions, few_repeats, notes)


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """For each model size the encoder by batch, clicks, and automatic masks."""
    is_cuda = options.device.type == "cuda"
    full = is_cuda and not options.quick
    size = 1024 if full else 256
    picture = photograph(not full)
    peak = matrix_peak(options.device, torch.bfloat16 if is_cuda else torch.float32)
    side = 32 if full else 4
    for name in tuple(PRESETS) if full else ("tiny",):
        build = cache(partial(Models, name, size, options))
        for batch in (1, 4, 8, 16) if is_cuda else (1, 2):
            yield Case(
                f"{name} {size}, image encoder, batch {batch}",
                encoder,
                (batch, build, peak, options),
            )
        for what, first in (("set_image and one click", True), ("a further click", False)):
            yield Case(f"{name} {size}, {what}", clicks, (first, build, picture, options))
        yield Case(
            f"{name} {size}, automatic masks, {side} x {side}",
            generators,
            (side, build, picture, options),
        )
