"""Memory attention, all four layers, against torch's layers around `rope_attention`.

Cases differ in the number of memory maps and objects. Errors are also measured on sharp attention.
"""

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

DIM = 256
MEMORY_DIM = 64
HIDDEN = 2048  # channels of the MLP
LAYERS = 4
POINTERS = 64  # pointer tokens of an object
PEER = "torch's layers and rope_attention"
Arguments = tuple[
    torch.Tensor, list[torch.Tensor], torch.Tensor, Memories, torch.Tensor, torch.Tensor
]


def operations(tokens: int, maps: int, objects: int) -> int:
    """Multiplications and additions of all layers.

    Values are projected after attention, and the part of the first layer that depends on the frame
    only is counted once for all objects.
    """
    keys = maps * tokens + POINTERS
    frame = tokens * 4 * DIM * DIM + 2 * tokens * tokens * DIM  # self-attention
    queries = tokens * DIM * DIM
    memory = (
        tokens * keys * (DIM + MEMORY_DIM)
        + keys * MEMORY_DIM * DIM
        + tokens * (MEMORY_DIM + DIM) * DIM
        + 2 * tokens * DIM * HIDDEN
    )
    return 2 * (frame + queries + objects * ((LAYERS - 1) * (frame + queries) + LAYERS * memory))


def arguments(
    side: int, maps: int, objects: int, dtype: torch.dtype, sharp: float = 1.0
) -> Arguments:
    """Arguments of the op, with random weights that keep values near one.

    sharp: factor of the queries, which makes attention sharper.
    """
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

    weights = MemoryAttentionWeights.build(weight, count=LAYERS, C=DIM, M=MEMORY_DIM, F=HIDDEN)
    stored = [
        torch.randn(tokens, MEMORY_DIM, generator=generator).to(dtype)
        for _ in range(maps * objects)
    ]
    pointers = torch.randn(2, POINTERS * objects, MEMORY_DIM, generator=generator).to(dtype)
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
    x = torch.randn(1, tokens, DIM, generator=generator).to(dtype)
    position = torch.randn(tokens, MEMORY_DIM, generator=generator).to(dtype)
    return (
        x,
        weights,
        rope_table(DIM, side),
        memories,
        torch.randn(7, MEMORY_DIM, generator=generator).to(dtype),
        position,
    )


@cache
def errors(
    side: int, dtype: torch.dtype, sharp: float, device: torch.device
) -> tuple[float, float]:
    """Root mean square errors of this library and of torch's layers against float64, two maps."""
    inputs = to_device(arguments(side, 2, 1, dtype, sharp), device)
    exact = memory_attention_reference(*cast(inputs, torch.float64))
    outputs = memory_attention(*inputs), memory_attention_reference(*inputs)
    return tuple((x.double() - exact).square().mean().sqrt().item() for x in outputs)


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """1, 4 and 7 maps of 64 x 64 tokens with 64 pointer tokens, one object and four."""
    side = 16 if options.quick else 64
    for dtype in dtypes(options):
        peak = matrix_peak(options.device, dtype)
        for maps, objects in ((1, 1), (4, 1), (7, 1), (7, 4)):
            case = f"{maps} maps, {objects} objects, {side}^2 queries, {str(dtype)[6:]}"
            yield Case(case, attention, (side, maps, objects, dtype, peak, options))


@torch.inference_mode()
def attention(
    case: str, side: int, maps: int, objects: int, dtype: torch.dtype, peak: float, options: Options
) -> Iterator[Row]:
    """Check the errors in this dtype, then time one case. peak: GFLOP/s of a matrix product."""
    error = {}
    for sharp in (1.0, 8.0):
        our_error, reference_error = errors(min(side, 32), dtype, sharp, options.device)
        require(our_error <= 2 * reference_error, f"{case}, queries x {sharp:g}", "sam2_fast")
        error[sharp] = our_error, reference_error
    inputs = to_device(arguments(side, maps, objects, dtype), options.device)
    times = interleaved(
        {
            "sam2_fast": lambda x=inputs: memory_attention(*x),
            PEER: lambda x=inputs: memory_attention_reference(*x),
        },
        options,
    )
    ours = statistics.median(times["sam2_fast"])
    flops = operations(side * side, maps, objects)
    notes = {
        name: {
            "x ours": statistics.median(t) / ours,
            "GFLOP/s": flops / statistics.median(t) / 1e6,
            "% of matrix peak": flops / statistics.median(t) / 1e4 / peak,
            "rms error": error[1.0][i],
            "rms error, sharp": error[8.0][i],
        }
        for i, (name, t) in enumerate(times.items())
    }
    yield from rows(case, times, notes)
