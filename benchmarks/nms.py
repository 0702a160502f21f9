"""Suppression of boxes: the masks of a crop, and many more, against
torchvision where it is there.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module

import torch

from benchmarks.timing import Case, Options, Row, interleaved, require, rows
from sam2_fast.ops.nms import nms


def boxes_of(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of whole pixels in a picture of 1080 x 1920, crowded around 40 places, and scores."""
    generator = torch.Generator().manual_seed(0)
    centres = (torch.rand(count, 2, generator=generator) * torch.tensor([1920.0, 1080.0])).div(
        240
    ).floor() * 240
    half = torch.rand(count, 2, generator=generator) * 300 + 20
    boxes = torch.cat([centres - half, centres + half], 1).round()
    return boxes.to(device), torch.rand(count, generator=generator).to(device)


def torchvision(boxes: torch.Tensor, scores: torch.Tensor) -> Callable[[], torch.Tensor] | None:
    """Its own operator, or None: builds for another torch lack it."""
    try:
        suppress = partial(import_module("torchvision.ops").nms, boxes, scores, 0.7)
        suppress()
    except (ImportError, RuntimeError, AttributeError):
        return None
    return suppress


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """3072 boxes (32 x 32 clicks, three masks each) and 20,000."""
    for count in (300,) if options.quick else (3072, 20000):
        yield Case(f"{count} boxes", suppression, (count, options))


@torch.inference_mode()
def suppression(case: str, count: int, options: Options) -> Iterator[Row]:
    """Equal sets of boxes, then times."""
    boxes, scores = boxes_of(count, options.device)
    functions: dict[str, Callable[[], torch.Tensor]] = {
        "sam2_fast": partial(nms, boxes, scores, 0.7),
        "torch": partial(nms, boxes, scores, 0.7, backend="torch"),
    }
    wanted = functions["torch"]()
    require(torch.equal(functions["sam2_fast"](), wanted), case, "sam2_fast")
    if (theirs := torchvision(boxes, scores)) is not None:
        require(torch.equal(theirs().sort().values, wanted.nonzero()[:, 0]), case, "torchvision")
        functions["torchvision"] = theirs
    times = interleaved(functions, options)
    ours = statistics.median(times["sam2_fast"])
    yield from rows(
        case, times, {who: {"x ours": statistics.median(t) / ours} for who, t in times.items()}
    )
