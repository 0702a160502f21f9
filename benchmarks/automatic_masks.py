"""Automatic masks of a photograph on a CPU, ours against the official generator: the same weights,
grid and filters.
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
"""Nothing is dropped: random weights would pass no filter, and every mask must be compared."""


def agreement(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """The lowest IoU between masks of the same click and rank; 0 where their numbers differ."""
    from pycocotools import mask as coco

    def table(records: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[Any]]:
        found: dict[tuple[Any, ...], list[Any]] = {}
        for record in sorted(records, key=lambda r: -r["predicted_iou"]):
            place = tuple(round(v, 3) for v in record["point_coords"][0])
            found.setdefault(place, []).append(record["segmentation"])
        return found

    a, b = table(mine), table(theirs)
    if {k: len(v) for k, v in a.items()} != {k: len(v) for k, v in b.items()}:
        return 0.0
    return min(
        float(coco.iou([x], [y], [0])[0, 0]) for k in a for x, y in zip(a[k], b[k], strict=True)
    )


def measure(options: Options) -> Iterator[Case]:
    """8 x 8 clicks on a photograph of 600 x 900 pixels, tiny."""
    if options.device.type != "cpu":
        return
    path = next(p for p in PHOTOGRAPHS if p.is_file())
    size, side = (256, 4) if options.quick else (1024, 8)
    yield Case(
        f"tiny {size}, {side} x {side} clicks, {path.stem}", generators, (path, size, side, options)
    )


@torch.inference_mode()
def generators(case: str, path: Path, size: int, side: int, options: Options) -> Iterator[Row]:
    """Both find the same masks; `side`: clicks along a side."""
    image = np.array(
        Image.open(path).convert("RGB").resize((225, 150) if options.quick else (900, 600))
    )
    model = build_sam2("tiny", device="cpu", seed=0, image_size=size)
    ours = SAM2AutomaticMaskGenerator(model, points_per_side=side, **FILTERS)
    functions: dict[str, Callable[[], Any]] = {"sam2_fast": lambda: ours.generate(image)}
    if "official" in (options.peers or ("official",)) and (
        model_there := peers.official("tiny", model.state_dict(), size, options.device)
    ):
        from sam2 import automatic_mask_generator as official

        # torchvision's own needs a binary that matches torch; ours gives the same rows and takes
        # milliseconds
        official.batched_nms = batched_nms
        theirs = official.SAM2AutomaticMaskGenerator(model_there, points_per_side=side, **FILTERS)
        functions["official"] = lambda: theirs.generate(image)
    lowest = 1.0
    if "official" in functions:
        lowest = agreement(functions["sam2_fast"](), functions["official"]())
        require(lowest >= 0.99, case, "official")
    times = interleaved(functions, options)
    mine = statistics.median(times["sam2_fast"])
    notes = {
        who: {"x ours": statistics.median(t) / mine, "lowest IoU": lowest}
        for who, t in times.items()
    }
    yield from rows(case, times, notes)
