"""Attention with rotary positions, one head: its rate, and its time against torch's attention."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

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
from sam2_fast.ops.rope_attention import rope_attention, rope_attention_reference, rope_table

DIM = 256  # channels of queries and keys
MEMORY_DIM = 64  # channels of a memory
POINTER_TOKENS = 64  # tokens of 16 object pointers


def measure(options: Options) -> Iterator[Case]:
    """Self-attention and attention to 1 and 7 memory maps, for each dtype of the device."""
    side = 16 if options.quick else 64
    for dtype in dtypes(options):
        peak = matrix_peak(options.device, dtype)
        for maps in (0, 1, 7):
            kind = f"{maps} maps" if maps else "self"
            yield Case(
                f"{kind}, {side * side} queries, {str(dtype)[6:]}",
                attention,
                (side, maps, dtype, peak, options),
            )


def attention(
    case: str, side: int, maps: int, dtype: torch.dtype, peak: float, options: Options
) -> Iterator[Row]:
    """Attention to memory maps.

    maps: number of maps, or 0 for self-attention. peak: GFLOP/s of a matrix product.
    """
    table = rope_table(DIM, side).to(options.device)
    generator = torch.Generator().manual_seed(0)
    pointers = POINTER_TOKENS if maps else 0
    keys, value_dim = (maps * side * side + pointers, MEMORY_DIM) if maps else (side * side, DIM)
    shapes = ((side * side, DIM), (keys, DIM), (keys, value_dim))
    q, k, v = to_device(
        [torch.randn(1, n, c, generator=generator).to(dtype) for n, c in shapes], options.device
    )
    ours = rope_attention(q, k, v, table, pointers)
    reference = rope_attention_reference(q, k, v, table, pointers)
    exact = _exact(q, k, v, table, pointers)
    require(rms_error(ours, exact) <= 2 * rms_error(reference, exact), case, "sam2_fast")
    times = interleaved(
        {
            "sam2_fast": lambda q=q, k=k, v=v, n=pointers: rope_attention(q, k, v, table, n),
            "torch": lambda q=q, k=k, v=v, n=pointers: rope_attention_reference(q, k, v, table, n),
        },
        options,
    )
    flops = 2 * side * side * keys * (DIM + value_dim)
    our_median = statistics.median(times["sam2_fast"])
    notes = {
        name: {
            "x ours": statistics.median(t) / our_median,
            "GFLOP/s": flops / statistics.median(t) / 1e6,
            "% of matrix peak": flops / statistics.median(t) / 1e4 / peak,
        }
        for name, t in times.items()
    }
    yield from rows(case, times, notes)


def _exact(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor, pointers: int
) -> torch.Tensor:
    """The result in float64."""
    return rope_attention_reference(q.double(), k.double(), v.double(), table.double(), pointers)
