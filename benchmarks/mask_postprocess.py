"""Mask logits to counts, boxes and run lengths, on smooth masks and on noise, against torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.timing import Case, Options, Row, interleaved, require, rows
from sam2_fast.io.rle import mask_to_rle
from sam2_fast.masks import boxes, stability_score
from sam2_fast.ops.mask_postprocess import interpolate, mask_postprocess


def in_torch(logits: torch.Tensor, size: tuple[int, int]) -> int:
    """Compute the same results in torch, over full-size logits. Returns the number of runs."""
    full = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    masks = full > 0
    stability_score(full, 0.0, 1.0)
    boxes(masks)
    return sum(len(rle["counts"]) for rle in mask_to_rle(masks))


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """64 masks of 256 x 256 pixels, resized to 600 x 900."""
    count, size = (8, (150, 225)) if options.quick else (64, (600, 900))
    for kind in ("smooth", "noise"):
        case = f"{count} masks to {size[0]} x {size[1]}, {kind}"
        yield Case(case, postprocess, (kind, count, size, options))


@torch.inference_mode()
def postprocess(
    case: str, kind: str, count: int, size: tuple[int, int], options: Options
) -> Iterator[Row]:
    """Check and time one set of masks. kind: "smooth" or "noise"."""
    noise = torch.randn(count, 256, 256, generator=torch.Generator().manual_seed(0))
    if kind == "smooth":
        noise = F.avg_pool2d(F.avg_pool2d(noise[:, None], 33, 1, 16), 33, 1, 16)[:, 0] * 100
    logits = noise.to(options.device)
    output = mask_postprocess(logits, size, 0.0, 1.0)
    masks = interpolate(logits, size) > 0
    expected = mask_to_rle(masks)
    require(torch.equal(output.boxes, boxes(masks)), case, "sam2_fast")
    require(
        all(a.tolist() == b["counts"] for a, b in zip(output.runs, expected, strict=True)),
        case,
        "sam2_fast",
    )
    times = interleaved(
        {
            "sam2_fast": lambda x=logits: mask_postprocess(x, size, 0.0, 1.0),
            "torch": lambda x=logits: in_torch(x, size),
        },
        options,
    )
    ours = statistics.median(times["sam2_fast"])
    yield from rows(
        case, times, {name: {"x ours": statistics.median(t) / ours} for name, t in times.items()}
    )
