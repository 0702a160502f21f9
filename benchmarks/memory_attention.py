"""Memory attention: all four layers, by number of maps and objects, against torch's layers around
`rope_attention`; errors on sharp attention too."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import cache

import torch

from benchmarks.timing import (
    Case,
    Options,
    Row,
    dtypes,
    interleaved,
    matrix_peak,
    require,
    rows,
    to_device,
)
from sam2_fast.ops.core.layout import Leaf
from sam2_fast.ops.memory_attention import Memories, MemoryAttentionWeights, memory_attention
from sam2_fast.ops.memory_attention.reference import memory_attention_reference
from sam2_fast.ops.rope_attention import rope_table
from sam2_fast.proving.errors import cast

DIM, NARROW, HIDDEN, LAYERS, POINTERS = 256, 64, 2048, 4, 64
PEER = "torch's layers and rope_attention"
Arguments = tuple[
    torch.Tensor, list[torch.Tensor], torch.Tensor, Memories, torch.Tensor, torch.Tensor
]


def operations(tokens: int, maps: int, objects: int) -> int:
    """Multiplications and additions with values projected after attention and the frame's part
    computed once.
    """
    keys = maps * tokens + POINTERS
    frame = tokens * 4 * DIM * DIM + 2 * tokens * tokens * DIM  # self-attention
    queries = tokens * DIM * DIM
    memory = (
        tokens * keys * (DIM + NARROW)
        + keys * NARROW * DIM
        + tokens * (NARROW + DIM) * DIM
        + 2 * tokens * DIM * HIDDEN
    )
    return 2 * (frame + queries + objects * ((LAYERS - 1) * (frame + queries) + LAYERS * memory))


def arguments(
    side: int, maps: int, objects: int, dtype: torch.dtype, sharp: float = 1.0
) -> Arguments:
    """Random weights of a size that keeps values near one; `sharp` multiplies the queries."""
    generator = torch.Generator().manual_seed(0)
    tokens = side * side

    def weight(leaf: Leaf, shape: tuple[int, ...]) -> torch.Tensor:
        part, kind = leaf.name.split(".")[-2:]
        if part.startswith("norm"):
            return torch.full(shape, float(kind == "weight"), dtype=dtype)
        spread = shape[-1] ** -0.5 if leaf.matrix else 0.1
        if leaf.matrix and part in ("q", "self_q"):
            spread *= sharp
        return (torch.randn(shape, generator=generator) * spread).to(dtype)

    weights = MemoryAttentionWeights.build(weight, count=LAYERS, C=DIM, M=NARROW, F=HIDDEN)
    stored = [
        torch.randn(tokens, NARROW, generator=generator).to(dtype) for _ in range(maps * objects)
    ]
    pointers = torch.randn(2, POINTERS * objects, NARROW, generator=generator).to(dtype)
    first = [maps * i for i in range(objects + 1)]
    memories = Memories(
        stored,
        list(range(maps * objects)),
        list(range(maps)) * objects,
        first,
        pointers[0],
        pointers[1],
        [POINTERS * i for i in range(objects + 1)],
    )
    x, place = (
        torch.randn(*s, generator=generator).to(dtype) for s in ((1, tokens, DIM), (tokens, NARROW))
    )
    return (
        x,
        weights,
        rope_table(DIM, side),
        memories,
        torch.randn(7, NARROW, generator=generator).to(dtype),
        place,
    )


@cache
def errors(
    side: int, dtype: torch.dtype, sharp: float, device: torch.device
) -> tuple[float, float]:
    """Root mean square errors of ours and of torch's layers against float64, two maps."""
    given = to_device(arguments(side, 2, 1, dtype, sharp), device)
    exact = memory_attention_reference(*cast(given, torch.float64))
    mine, theirs = memory_attention(*given), memory_attention_reference(*given)
    return tuple((found.double() - exact).square().mean().sqrt().item() for found in (mine, theirs))


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """1, 4 and 7 maps of 64 x 64 tokens with 64 pointer tokens, one object and four."""
    side = 16 if options.quick else 64
    for dtype in dtypes(options):
        best = matrix_peak(options.device, dtype)
        for maps, objects in ((1, 1), (4, 1), (7, 1), (7, 4)):
            case = f"{maps} maps, {objects} objects, {side}^2 queries, {str(dtype)[6:]}"
            yield Case(case, attention, (side, maps, objects, dtype, best, options))


@torch.inference_mode()
def attention(
    case: str, side: int, maps: int, objects: int, dtype: torch.dtype, best: float, options: Options
) -> Iterator[Row]:
    """Errors of the number format, then times; `best`: GFLOP/s of a matrix product."""
    error = {}
    for sharp in (1.0, 8.0):
        mine, theirs = errors(min(side, 32), dtype, sharp, options.device)
        require(mine <= 2 * theirs, f"{case}, queries x {sharp:g}", "sam2_fast")
        error[sharp] = mine, theirs
    given = to_device(arguments(side, maps, objects, dtype), options.device)
    times = interleaved(
        {
            "sam2_fast": lambda g=given: memory_attention(*g),
            PEER: lambda g=given: memory_attention_reference(*g),
        },
        options,
    )
    ours, flops = statistics.median(times["sam2_fast"]), operations(side * side, maps, objects)
    notes = {
        who: {
            "x ours": statistics.median(t) / ours,
            "GFLOP/s": flops / statistics.median(t) / 1e6,
            "% of matrix peak": flops / statistics.median(t) / 1e4 / best,
            "rms error": error[1.0][i],
            "rms error, sharp": error[8.0][i],
        }
        for i, (who, t) in enumerate(times.items())
    }
    yield from rows(case, times, notes)
