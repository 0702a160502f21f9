"""Windowed attention: every shape that the tiny, base+ and large trunks meet, against the same
steps in torch and FlexAttention.
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
    """Multiplications and additions of both products over the tokens that exist."""
    queries = side * side // (4 if pool else 1)
    spans = [min(window, side - at) for at in range(0, side, window)] if window else [side]
    keys = (sum(s * s for s in spans) / side) ** 2  # of a token, on average
    return int(4 * queries * keys * channels)


@lru_cache
def compiled() -> Callable[..., torch.Tensor]:
    """FlexAttention as its users run it."""
    return torch.compile(flex_attention, dynamic=False)


def flex(attend: Callable[..., torch.Tensor], *given: Any) -> torch.Tensor:
    """The same partition, padding and pooling around `attend` instead of torch's own attention."""
    with patch.object(F, "scaled_dot_product_attention", attend):
        return window_attention_reference(*given)


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """Of each number format; the tiny trunk's only where `quick`."""
    for dtype in dtypes(options):
        best = matrix_peak(options.device, dtype)
        for trunk, (first, head) in list(TRUNKS.items())[: 1 if options.quick else None]:
            for kind, side, stage, factor, window, pool in KINDS:
                side = side // 4 if options.quick else side
                channels = (first << stage) * factor
                case = f"{trunk}, {kind}, {side}^2, {channels // head} x {head}, {str(dtype)[6:]}"
                yield Case(
                    case,
                    attention,
                    (side, channels, channels // head, window, pool, dtype, best, options),
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
    best: float,
    options: Options,
) -> Iterator[Row]:
    """One shape; `best`: GFLOP/s of a matrix product."""
    torch.manual_seed(0)
    qkv, pad = (
        torch.randn(1, side, side, 3 * channels).to(dtype),
        torch.randn(3 * channels).to(dtype),
    )
    given = to_device((qkv, pad, heads, window, pool), options.device)
    functions: dict[str, Callable[[], torch.Tensor]] = {
        "sam2_fast": partial(window_attention, *given),
        "torch": partial(window_attention_reference, *given),
    }
    mine, theirs = functions["sam2_fast"](), functions["torch"]()
    exact = window_attention_reference(given[0].double(), given[1].double(), *given[2:])
    require(rms_error(mine, exact) <= 2 * rms_error(theirs, exact), case, "sam2_fast")
    if "flex" in options.peers:  # compiles some ten seconds a shape
        functions["flex"] = partial(flex, compiled(), *given)
        require(rms_error(functions["flex"](), exact) <= 2 * rms_error(theirs, exact), case, "flex")
    del mine, theirs, exact
    times = interleaved(functions, options)
    ours, flops = statistics.median(times["sam2_fast"]), operations(side, channels, window, pool)
    moved = qkv.numel() * qkv.itemsize * (1 + (1 / 12 if pool else 1 / 3))
    yield from rows(
        case,
        times,
        {who: _notes(statistics.median(t), ours, flops, moved, best) for who, t in times.items()},
    )


def _notes(median: float, ours: float, flops: int, moved: float, best: float) -> dict[str, float]:
    return {
        "x ours": median / ours,
        "GFLOP/s": flops / median / 1e6,
        "% of matrix peak": flops / median / 1e4 / best,
        "GB/s": moved / median / 1e6,
    }
