"""Automatic masks of a photograph on a CPU, against the official generator.

Both use the same weights, grid of clicks and filters.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import peers
from benchmarks.timing import Case, Options, Row, interleaved, require, rows
from sam2_fast.build_sam import build_sam2
from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
from sam2_fast.ops.nms import batched_nms

PHOTOGRAPHS = (Path("../shared/data/truck.jpg"), Path("examples/coffee.jpg"))
FILTERS = {
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
    "output_mode": "coco_rle",
}
"""Settings that drop no mask: masks of random weights pass no filter, and all are compared."""


def agreement(ours: list[dict[str, Any]], official: list[dict[str, Any]]) -> float:
    """The lowest IoU of two masks with the same click and rank, or 0 if their numbers differ."""
    from pycocotools import mask as coco

    def masks_by_click(records: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[Any]]:
        masks: dict[tuple[Any, ...], list[Any]] = {}
        for record in sorted(records, key=lambda r: -r["predicted_iou"]):
            click = tuple(round(v, 3) for v in record["point_coords"][0])
            masks.setdefault(click, []).append(record["segmentation"])
        return masks

    a = masks_by_click(ours)
    b = masks_by_click(official)
    if {k: len(v) for k, v in a.items()} != {k: len(v) for k, v in b.items()}:
        return 0.0
    return min(
        float(coco.iou([x], [y], [0])[0, 0]) for k in a for x, y in zip(a[k], b[k], strict=True)
    )


def measure(options: Options) -> Iterator[Case]:
    """The tiny model with 8 x 8 clicks on a photograph of 600 x 900 pixels."""
    if options.device.type != "cpu":
        return
    path = next(p for p in PHOTOGRAPHS if p.is_file())
    size, side = (256, 4) if options.quick else (1024, 8)
    yield Case(
        f"tiny {size}, {side} x {side} clicks, {path.stem}", generators, (path, size, side, options)
    )


@torch.inference_mode()
def generators(case: str, path: Path, size: int, side: int, options: Options) -> Iterator[Row]:
    """Check that both generators return the same masks, then time them. side: clicks per side."""
    image = np.array(
        Image.open(path).convert("RGB").resize((225, 150) if options.quick else (900, 600))
    )
    model = build_sam2("tiny", device="cpu", seed=0, image_size=size)
    ours = SAM2AutomaticMaskGenerator(model, points_per_side=side, **FILTERS)
    functions: dict[str, Callable[[], Any]] = {"sam2_fast": lambda: ours.generate(image)}
    if "official" in (options.peers or ("official",)) and (
        official_model := peers.official("tiny", model.state_dict(), size, options.device)
    ):
        from sam2 import automatic_mask_generator

        # torchvision's `batched_nms` needs a build that matches the version of torch. This
        # library's returns the same indices, and its share of the time is milliseconds.
        automatic_mask_generator.batched_nms = batched_nms
        official = automatic_mask_generator.SAM2AutomaticMaskGenerator(
            official_model, points_per_side=side, **FILTERS
        )
        functions["official"] = lambda: official.generate(image)
    lowest = 1.0
    if "official" in functions:
        lowest = agreement(functions["sam2_fast"](), functions["official"]())
        require(lowest >= 0.99, case, "official")
    times = interleaved(functions, options)
    our_median = statistics.median(times["sam2_fast"])
    notes = {
        name: {"x ours": statistics.median(t) / our_median, "lowest IoU": lowest}
        for name, t in times.items()
    }
    yield from rows(case, times, notes)
