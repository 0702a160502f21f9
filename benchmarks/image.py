"""Images: the encoder by batch, a picture to its first mask, a further click, automatic masks; with
and without recordings.

On a GPU all four sizes in bfloat16 (the official package under autocast;
`--peer official,official-compiled` adds its compiled encoder, which takes minutes to begin).
`--quick`, and any run on a CPU: tiny at 256 pixels, float32. Weights are random and seeded;
SAM2_FAST_PHOTO names a photograph, without it a picture of noise and squares is taken.
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
ALL = {
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
    "output_mode": "coco_rle",
}
"""Nothing is dropped: random weights would pass no filter."""


def photograph(quick: bool) -> np.ndarray:
    """[H, W, 3] uint8."""
    path = os.environ.get("SAM2_FAST_PHOTO")
    picture = np.array(Image.open(path).convert("RGB")) if path else clip(1, 1200, 1800)[0]
    return picture[::6, ::6].copy() if quick else picture


def around(options: Options) -> Any:
    """What the official package runs under."""
    return (
        torch.autocast("cuda", torch.bfloat16)
        if options.device.type == "cuda"
        else contextlib.nullcontext()
    )


def within(function: Callable[[], Any], options: Options) -> Callable[[], Any]:
    """`function` as the official package runs it."""

    def run() -> Any:
        with around(options):
            return function()

    return run


def described(
    case: str, functions: Functions, options: Options, notes: dict[str, dict[str, Any]]
) -> Iterator[Row]:
    """Times with ratios to ours."""
    times = interleaved(functions, options)
    ours = statistics.median(times["sam2_fast"])
    yield from rows(
        case,
        times,
        {
            who: {"x ours": statistics.median(t) / ours, **notes.get(who, {})}
            for who, t in times.items()
        },
    )


class Models:
    """Models of one size: ours in float32 and in the precision of the device, the official ones by
    name.
    """

    def __init__(self, name: str, size: int, options: Options) -> None:
        cuda = options.device.type == "cuda"
        self.name, self.size, self.graphs = name, size, Graphs()
        self.exact = build_sam2(name, device=options.device, seed=0, image_size=size)
        self.ours = build_sam2(
            name,
            device=options.device,
            seed=0,
            image_size=size,
            dtype=torch.bfloat16 if cuda else None,
        )
        self.theirs: dict[str, Any] = {}
        state = self.exact.state_dict()
        for who, overrides in (
            ("official", []),
            ("official-compiled", ["++model.compile_image_encoder=true"]),
        ):
            if who in (options.peers or ("official",)):
                made = peers.official(name, state, size, options.device, overrides)
                self.theirs |= {} if made is None else {who: made}

    def at_full_size(self) -> dict[str, Any]:
        """The official models where the official image predictor can run them:
        at 1024 pixels only.
        """
        return self.theirs if self.size == 1024 else {}

    def predictors(self) -> dict[str, Any]:
        """Image predictors by name."""
        found: dict[str, Any] = {"sam2_fast": SAM2ImagePredictor(self.ours)}
        if self.at_full_size():
            from sam2.sam2_image_predictor import SAM2ImagePredictor as Official

            found |= {who: Official(model) for who, model in self.at_full_size().items()}
        return found


Build = Callable[[], Models]


@torch.inference_mode()
def encoder(case: str, batch: int, build: Build, peak: float, options: Options) -> Iterator[Row]:
    """The image encoder on one batch: ours errs at most twice as much as the official package in
    the same precision.
    """
    models = build()
    exact, ours, theirs, graphs = models.exact, models.ours, models.theirs, models.graphs
    cuda, name, size = options.device.type == "cuda", models.name, models.size
    images = torch.randn(batch, 3, size, size, device=options.device)
    functions: Functions = {"sam2_fast": lambda x=images: ours.encode_image(x).low}
    if cuda:
        functions = {
            "sam2_fast": lambda x=images: graphs.encode(ours, x).low,
            "sam2_fast, no recordings": lambda x=images: ours.encode_image(x).low,
        }
    for who, model in theirs.items():
        functions[who] = within(
            lambda x=images, m=model: m.forward_image(x)["vision_features"], options
        )
    truth: Tensor = exact.encode_image(images).low.double()
    error = {
        who: (f().double() - truth).square().mean().sqrt().item() for who, f in functions.items()
    }
    floor = 1e-4 * truth.abs().max().item()
    for who in functions:
        require(
            not who.startswith("sam2_fast")
            or error[who] <= max(2 * error.get("official", 0.0), floor),
            case,
            who,
        )
    flop = batch * GFLOP["image encoder"][name] if size == 1024 else 0.0
    for row in described(
        case, functions, options, {who: {"rms error": e} for who, e in error.items()}
    ):
        rate = flop / row.median_ms  # TFLOP/s
        extra = {"images/s": 1e3 * batch / row.median_ms}
        extra |= {"TFLOP/s": rate, "% of matrix peak": 100 * rate * 1e3 / peak} if flop else {}
        yield row.with_notes(extra)


@torch.inference_mode()
def clicks(
    case: str, first: bool, build: Build, picture: np.ndarray, options: Options
) -> Iterator[Row]:
    """Bytes in to masks out on the host, or a further click; each call clicks somewhere else."""
    place, predictors = count(), build().predictors()

    def click(predictor: Any) -> Any:
        x = 40.0 + 13 * (next(place) % 50)
        return predictor.predict(
            point_coords=np.array([[x % picture.shape[1], 50.0]]), point_labels=np.array([1])
        )

    def both(predictor: Any) -> Any:
        predictor.set_image(picture)
        return click(predictor)

    def wrap(who: str, function: Callable[[], Any]) -> Callable[[], Any]:
        return function if who.startswith("sam2_fast") else within(function, options)

    for who, predictor in predictors.items():
        wrap(who, partial(both, predictor))()
    if not first:
        for who, predictor in predictors.items():
            wrap(
                who, partial(click, predictor)
            )()  # recordings are made when a shape comes the second time
    once = both if first else click
    yield from described(
        case, {who: wrap(who, partial(once, p)) for who, p in predictors.items()}, options, {}
    )


@torch.inference_mode()
def generators(
    case: str, side: int, build: Build, picture: np.ndarray, options: Options
) -> Iterator[Row]:
    """Automatic masks, nothing dropped: all find equally many. `side`: clicks along a side."""
    made = build()
    models = {"sam2_fast": made.ours, **made.at_full_size()}
    functions: Functions = {}
    for who, model in models.items():
        if who.startswith("sam2_fast"):
            functions[who] = partial(
                SAM2AutomaticMaskGenerator(model, points_per_side=side, **ALL).generate, picture
            )
        elif (
            options.device.type == "cuda"
        ):  # its filters need torchvision's operators, which here have a GPU's build alone
            from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator as Official

            functions[who] = within(
                partial(Official(model, points_per_side=side, **ALL).generate, picture), options
            )
            if (
                who == "official-compiled"
            ):  # as segment-anything-fast sets it: compiled encoder, all clicks in one batch
                whole = Official(model, points_per_side=side, points_per_batch=side * side, **ALL)
                functions[f"{who}, one batch"] = within(partial(whole.generate, picture), options)
    found = {who: len(f()) for who, f in functions.items()}
    for who, number in found.items():
        require(number == found["sam2_fast"], case, who)
    few = Options(options.device, min(options.repeats, 3))
    yield from described(case, functions, few, {who: {"masks": n} for who, n in found.items()})


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """For each size the encoder by batch, clicks, automatic masks."""
    cuda = options.device.type == "cuda"
    full = cuda and not options.quick
    size, picture = 1024 if full else 256, photograph(not full)
    peak = matrix_peak(options.device, torch.bfloat16 if cuda else torch.float32)
    side = 32 if full else 4
    for name in tuple(PRESETS) if full else ("tiny",):
        build = cache(partial(Models, name, size, options))
        for batch in (1, 4, 8, 16) if cuda else (1, 2):
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
