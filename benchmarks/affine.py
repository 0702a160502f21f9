"""The template op: tokens of an image against torch's multiplication and addition, and the memory that must be read and written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.timing import Case, Options, Row, dtypes, interleaved, placed, require, rms_error, rows
from sam2_fast.ops.affine import affine, affine_reference


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """4096 tokens of 256 channels, as the image embedding has, in each number format."""
    for dtype in dtypes(options):
        tokens = 256 if options.quick else 4096
        yield Case(f"{tokens} x 256, {str(dtype)[6:]}", scaling, (tokens, dtype, options))


@torch.inference_mode()
def scaling(case: str, tokens: int, dtype: torch.dtype, options: Options) -> Iterator[Row]:
    """One shape."""
    torch.manual_seed(0)
    given = placed((torch.randn(tokens, 256).to(dtype), torch.randn(256), torch.randn(256)), options.device)
    functions: dict[str, Callable[[], torch.Tensor]] = {
        "sam2_fast": partial(affine, *given), "torch": partial(affine_reference, *given)
    }  # fmt: skip
    exact = affine_reference(*(x.double() for x in given))
    theirs = rms_error(functions["torch"](), exact)
    require(rms_error(functions["sam2_fast"](), exact) <= 2 * theirs, case, "sam2_fast")
    times = interleaved(functions, options)
    ours, moved = statistics.median(times["sam2_fast"]), 2 * tokens * 256 * dtype.itemsize
    notes = {who: {"x ours": statistics.median(t) / ours, "GB/s": moved / statistics.median(t) / 1e6} for who, t in times.items()}
    yield from rows(case, times, notes)
