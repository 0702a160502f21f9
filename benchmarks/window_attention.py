"""Windowed attention in all shapes of the tiny, base+ and large trunks, against torch.

With `--peer flex` also against the same steps around compiled FlexAttention.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.hiera_block import KINDS, TRUNKS
from benchmarks.timing import (
    Case,
    Options,
    Row,
    dtypes,
    interleaved,
    matrix_peak,
    require,
    rms_error,
    rows,
    to_device,
)
from sam2_fast.ops.window_attention import window_attention, window_attention_reference


def operations(side: int, channels: int, window: int, pool: bool) -> int:
    """Multiplications and additions of both products, without those of padding."""
    queries = side * side // (4 if pool else 1)
    spans = [min(window, side - start) for start in range(0, side, window)] if window else [side]
    keys = (sum(s * s for s in spans) / side) ** 2  # per query, on average
    return int(4 * queries * keys * channels)


@lru_cache
def compiled() -> Callable[..., torch.Tensor]:
    """FlexAttention, compiled as its documentation recommends."""
    return torch.compile(flex_attention, dynamic=False)


def flex(attend: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    """The reference implementation with `attend` in place of `scaled_dot_product_attention`."""
    with patch.object(F, "scaled_dot_product_attention", attend):
        return window_attention_reference(*arguments)


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """All shapes in each dtype of the device; with `quick` those of the tiny trunk only."""
    for dtype in dtypes(options):
        peak = matrix_peak(options.device, dtype)
        for trunk, (first, head) in list(TRUNKS.items())[: 1 if options.quick else None]:
            for kind, side, stage, factor, window, pool in KINDS:
                side = side // 4 if options.quick else side
                channels = (first << stage) * factor
                case = f"{trunk}, {kind}, {side}^2, {channels // head} x {head}, {str(dtype)[6:]}"
                yield Case(
                    case,
                    attention,
                    (side, channels, channels // head, window, pool, dtype, peak, options),
                )


@torch.inference_mode()
def attention(
    case: str,
    side: int,
    channels: int,
    heads: int,
    window: int,
    pool: bool,
    dtype: torch.dtype,
    peak: float,
    options: Options,
) -> Iterator[Row]:
    """Check and time one shape. peak: GFLOP/s of a matrix product."""
    torch.manual_seed(0)
    qkv = torch.randn(1, side, side, 3 * channels).to(dtype)
    pad = torch.randn(3 * channels).to(dtype)
    arguments = to_device((qkv, pad, heads, window, pool), options.device)
    functions: dict[str, Callable[[], torch.Tensor]] = {
        "sam2_fast": partial(window_attention, *arguments),
        "torch": partial(window_attention_reference, *arguments),
    }
    exact = window_attention_reference(arguments[0].double(), arguments[1].double(), *arguments[2:])
    limit = 2 * rms_error(functions["torch"](), exact)
    require(rms_error(functions["sam2_fast"](), exact) <= limit, case, "sam2_fast")
    if "flex" in options.peers:  # compilation takes about ten seconds per shape
        functions["flex"] = partial(flex, compiled(), *arguments)
        require(rms_error(functions["flex"](), exact) <= limit, case, "flex")
    del exact
    times = interleaved(functions, options)
    ours = statistics.median(times["sam2_fast"])
    flops = operations(side, channels, window, pool)
    bytes_moved = qkv.numel() * qkv.itemsize * (1 + (1 / 12 if pool else 1 / 3))

    def notes(median: float) -> dict[str, float]:
        return {
            "x ours": median / ours,
            "GFLOP/s": flops / median / 1e6,
            "% of matrix peak": flops / median / 1e4 / peak,
            "GB/s": bytes_moved / median / 1e6,
        }

    yield from rows(case, times, {name: notes(statistics.median(t)) for name, t in times.items()})
