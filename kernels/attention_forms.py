"""Tile sizes and spans of `attention.attend`: what fits into shared memory and fills a device."""

from __future__ import annotations

import triton
from sam2_fast.kernels.launch import HOPPER

SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
"""Shared memory that one block may have, by compute capability (CUDA programming guide)."""
ATTEND_FORMS = (
    (256, 64, 16, 2),
    (128, 128, 8, 2),
    (128, 64, 8, 3),
    (128, 64, 8, 2),
    (64, 128, 4, 2),
    (64, 64, 8, 2),
    (64, 64, 4, 2),
    (64, 32, 8, 1),
)
"""Queries and keys of a block, warps, stages."""


def blocks(values: int, size: int, capability: int) -> tuple[int, int, int, int]:
    """Queries and keys of a block, warps, stages: what compiles without spills and fits
    (docs/kernels/rope_attention.md).

    values: channels of a value as a power of two; size: bytes of an element; capability: 80, 86...
    """
    if size == 4:
        return 32, 32, 4, 1
    if capability in HOPPER:
        return (128, 64, 8, 2) if values > 128 else (256, 64, 16, 2)
    if capability == 80:
        return (64, 64, 8, 2) if values > 128 else (128, 64, 8, 2)
    return (64, 32, 8, 1) if values > 128 else (64, 64, 4, 2)


def forms(wide: int, values: int, size: int, capability: int) -> list[tuple[int, int, int, int]]:
    """The forms that fit into shared memory: a tile of queries, and keys and values for each
    stage."""
    if size == 4:
        return []
    limit = SHARED_KIB.get(capability, 99) * 1024
    hopper = capability in HOPPER

    def shared(queries: int, keys: int, stages: int) -> int:
        buffers = stages if hopper else max(stages - 1, 1)
        return size * (queries * wide + buffers * keys * (wide + values))

    return [form for form in ATTEND_FORMS if shared(form[0], form[1], form[3]) <= limit]


def least_spans(values: int) -> int:
    """Spans at least. Where a program stores wide results in the dtype of values, registers are
    spilled."""
    return 2 if values > 128 else 1


def spans_for(programs: int, keys: int, block_k: int, multiprocessors: int, resident: int) -> int:
    """In how many spans keys are taken, so that `programs` times as many blocks fill the device
    once.

    resident: blocks that a multiprocessor holds at once.
    """
    return max(min(resident * multiprocessors // programs, triton.cdiv(keys, 4 * block_k)), 1)
