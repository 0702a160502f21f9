"""Memory attention's kernel alone: its operations a second against a matrix product, and its time
against torch's own attention.
"""

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

DIM, MEMORY, LOOSE = 256, 64, 64  # channels of q and k, of a memory; tokens of 16 object pointers


def measure(options: Options) -> Iterator[Case]:
    """Self-attention and attention to 1 and 7 memory maps, each number format, with projected
    values 256 wide for torch.
    """
    side = 16 if options.quick else 64
    for dtype in dtypes(options):
        best = matrix_peak(options.device, dtype)
        for maps in (0, 1, 7):
            what = f"{maps} maps" if maps else "self"
            yield Case(
                f"{what}, {side * side} queries, {str(dtype)[6:]}",
                attention,
                (side, maps, dtype, best, options),
            )


def attention(
    case: str, side: int, maps: int, dtype: torch.dtype, best: float, options: Options
) -> Iterator[Row]:
    """Attention to `maps` memory maps, 0: self-attention; `best`: GFLOP/s of a matrix product."""
    table, generator = rope_table(DIM, side).to(options.device), torch.Generator().manual_seed(0)
    loose = LOOSE if maps else 0
    keys, width = (maps * side * side + loose, MEMORY) if maps else (side * side, DIM)
    shapes = ((side * side, DIM), (keys, DIM), (keys, width))
    q, k, v = to_device(
        [torch.randn(1, n, c, generator=generator).to(dtype) for n, c in shapes], options.device
    )
    mine, theirs = (
        rope_attention(q, k, v, table, loose),
        rope_attention_reference(q, k, v, table, loose),
    )
    exact = _exact(q, k, v, table, loose)
    require(rms_error(mine, exact) <= 2 * rms_error(theirs, exact), case, "sam2_fast")
    times = interleaved(
        {
            "sam2_fast": lambda q=q, k=k, v=v, n=loose: rope_attention(q, k, v, table, n),
            "torch": lambda q=q, k=k, v=v, n=loose: rope_attention_reference(q, k, v, table, n),
        },
        options,
    )
    flops = 2 * side * side * keys * (DIM + width)
    ours = statistics.median(times["sam2_fast"])
    notes = {
        who: {
            "x ours": statistics.median(t) / ours,
            "GFLOP/s": flops / statistics.median(t) / 1e6,
            "% of matrix peak": flops / statistics.median(t) / 1e4 / best,
        }
        for who, t in times.items()
    }
    yield from rows(case, times, notes)


def _exact(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor, loose: int
) -> torch.Tensor:
    return rope_attention_reference(q.double(), k.double(), v.double(), table.double(), loose)
