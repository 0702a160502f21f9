"""Scale and shift per channel against torch. A template for new benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import (
    Case,
    Options,
    Row,
    dtypes,
    interleaved,
    require,
    rms_error,
    rows,
    to_device,
)
from sam2_fast.ops.affine import AffineWeights, affine, affine_reference


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """Tokens of a 1024-pixel frame after stages of the tiny trunk."""
    for dtype in dtypes(options):
        for side, channels in ((32, 96),) if options.quick else ((256, 96), (64, 384), (32, 768)):
            case = f"{side}^2 x {channels}, {str(dtype)[6:]}"
            yield Case(case, scaling, (side * side, channels, dtype, options))


@torch.inference_mode()
def scaling(
    case: str, count: int, channels: int, dtype: torch.dtype, options: Options
) -> Iterator[Row]:
    """Check that the error of one shape is at most twice torch's, then time it."""
    torch.manual_seed(0)
    weights = AffineWeights.build(lambda _, shape: torch.randn(shape), C=channels)
    x, weights = to_device((torch.randn(count, channels).to(dtype), weights), options.device)
    functions: dict[str, Callable[[], Tensor]] = {
        "sam2_fast": partial(affine, x, weights),
        "torch": partial(affine_reference, x, weights),
    }
    exact = affine_reference(x.double(), weights.to(torch.float64))
    errors = {name: rms_error(function(), exact) for name, function in functions.items()}
    require(errors["sam2_fast"] <= 2 * errors["torch"], case, "sam2_fast")
    times = interleaved(functions, options)
    ours = statistics.median(times["sam2_fast"])
    bytes_moved = 2 * x.numel() * x.itemsize  # read once, written once
    notes = {}
    for name, milliseconds in times.items():
        median = statistics.median(milliseconds)
        notes[name] = {"x ours": median / ours, "GB/s": bytes_moved / median / 1e6}
    yield from rows(case, times, notes)


def small_shapes(device: torch.device, dtype: torch.dtype, backend: str) -> None:
    """Run shapes that are no multiple of a tile, for compute-sanitizer."""
    for shape in ((1, 1), (3, 5), (33, 130)):
        weights = AffineWeights.build(lambda _, size: torch.randn(size), C=shape[-1])
        x, weights = to_device((torch.randn(shape).to(dtype), weights), device)
        affine(x, weights, backend=backend)
