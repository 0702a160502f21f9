"""Non-maximum suppression of boxes, against torch and, if it is installed, torchvision."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module

import torch

from benchmarks.timing import Case, Options, Row, interleaved, require, rows
from sam2_fast.ops.nms import nms


def boxes_of(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes with integer coordinates in a picture of 1080 x 1920 pixels, and their scores.

    Centres lie on a grid of 240 pixels, so that many boxes overlap.
    """
    generator = torch.Generator().manual_seed(0)
    centres = (torch.rand(count, 2, generator=generator) * torch.tensor([1920.0, 1080.0])).div(
        240
    ).floor() * 240
    half = torch.rand(count, 2, generator=generator) * 300 + 20
    boxes = torch.cat([centres - half, centres + half], 1).round()
    return boxes.to(device), torch.rand(count, generator=generator).to(device)


def torchvision(boxes: torch.Tensor, scores: torch.Tensor) -> Callable[[], torch.Tensor] | None:
    """torchvision's operator for these boxes, or None if it cannot run.

    A build of torchvision for another version of torch lacks the operator.
    """
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
    """Check that all implementations keep the same boxes, then time them."""
    boxes, scores = boxes_of(count, options.device)
    functions: dict[str, Callable[[], torch.Tensor]] = {
        "sam2_fast": partial(nms, boxes, scores, 0.7),
        "torch": partial(nms, boxes, scores, 0.7, backend="torch"),
    }
    expected = functions["torch"]()
    require(torch.equal(functions["sam2_fast"](), expected), case, "sam2_fast")
    if (peer := torchvision(boxes, scores)) is not None:
        require(torch.equal(peer().sort().values, expected.nonzero()[:, 0]), case, "torchvision")
        functions["torchvision"] = peer
    times = interleaved(functions, options)
    ours = statistics.median(times["sam2_fast"])
    yield from rows(
        case, times, {name: {"x ours": statistics.median(t) / ours} for name, t in times.items()}
    )
