"""Typical tasks: automatic masks, a click on an encoded image, and the start of a process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.first_light.context import Context
from benchmarks.video import COLD_START


def run(context: Context) -> None:
    """Run the step."""
    picture = np.asarray(Image.open(sorted(context.frames().glob("*.jpg"))[0]).convert("RGB"))
    for name in context.models:
        context.attempt(f"{name} image", lambda n=name: _image(context, n, picture))
    if context.mode != "fake":
        context.attempt("start, kernels kept", lambda: _start(context, None))
        with tempfile.TemporaryDirectory() as folder:
            context.attempt("start, no kernels kept", lambda: _start(context, Path(folder)))


def _image(context: Context, name: str, picture: np.ndarray) -> dict[str, Any]:
    """Wall-clock milliseconds from pictures on the host to masks on the host, minimum of three."""
    from sam2_fast.build_sam import build_sam2
    from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
    from sam2_fast.image.predictor import SAM2ImagePredictor

    model = build_sam2(
        name, device=context.device, dtype=context.dtype, seed=0, image_size=context.size
    )
    predictor = SAM2ImagePredictor(model)
    side = 32 if context.cuda else 4
    generator = SAM2AutomaticMaskGenerator(
        model,
        points_per_side=side,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        box_nms_thresh=1.0,
    )
    mask_counts: list[int] = []

    def click() -> None:
        predictor.predict(point_coords=np.array([[200.0, 150.0]]), point_labels=np.array([1]))

    set_image_ms = _least_ms(context, lambda: predictor.set_image(picture))
    click_ms = _least_ms(context, click)
    automatic_ms = _least_ms(
        context, lambda: mask_counts.append(len(generator.generate(picture))), 2
    )
    return {
        "set_image_ms": set_image_ms,
        "click_ms": click_ms,
        "automatic_ms": automatic_ms,
        "clicks": side**2,
        "masks": mask_counts[-1],
    }


def _least_ms(context: Context, function: Any, repeats: int = 3) -> float | None:
    """Milliseconds of the fastest call, or None if nothing is computed."""
    if context.mode == "fake":
        function()
        return None
    times = []
    for _ in range(repeats + 1):  # the first call is a warm-up
        start = time.perf_counter()
        function()
        context.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times[1:])


def _start(context: Context, cache: Path | None) -> dict[str, Any]:
    """Seconds from the first import of a new process to its second tracked frame.

    cache: an empty kernel cache, or None for the one of this process.
    """
    environment = dict(os.environ)
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", COLD_START, context.device.type, str(context.size), str(root)]
    result = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, timeout=90, check=False
    )
    if result.returncode != 0:
        raise RuntimeError(result.stderr[-500:])
    return {"seconds_to_masks": float(result.stdout.split()[-1]), "torch": torch.__version__}
