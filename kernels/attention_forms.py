"""Tile sizes and spans of `attention.attend` that fit shared memory and fill a device."""

from __future__ import annotations

import triton
from sam2_fast.kernels.launch import HOPPER

SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
"""KiB of shared memory a block may use, by compute capability (CUDA programming guide)."""
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
"""Forms (BLOCK_Q, BLOCK_K, warps, stages) that may be faster than the default."""


def default_form(value_dim: int, size: int, capability: int) -> tuple[int, int, int, int]:
    """BLOCK_Q, BLOCK_K, warps and stages that fit a device (docs/kernels/rope_attention.md).

    They compile without spills and fit into shared memory.
    value_dim: channels of a value as a power of two; size: bytes per element; capability: 80, 86...
    """
    if size == 4:
        return 32, 32, 4, 1
    if capability in HOPPER:
        return (128, 64, 8, 2) if value_dim > 128 else (256, 64, 16, 2)
    if capability == 80:
        return (64, 64, 8, 2) if value_dim > 128 else (128, 64, 8, 2)
    return (64, 32, 8, 1) if value_dim > 128 else (64, 64, 4, 2)


def forms(
    key_dim: int, value_dim: int, size: int, capability: int
) -> list[tuple[int, int, int, int]]:
    """The entries of `ATTEND_FORMS` that fit into shared memory.

    It holds a tile of queries and, for each stage, a tile of keys and one of values.
    key_dim, value_dim: channels as powers of two; size: bytes per element.
    """
    if size == 4:
        return []
    limit = SHARED_KIB.get(capability, 99) * 1024
    hopper = capability in HOPPER

    def shared(queries: int, keys: int, stages: int) -> int:
        buffers = stages if hopper else max(stages - 1, 1)
        return size * (queries * key_dim + buffers * keys * (key_dim + value_dim))

    return [form for form in ATTEND_FORMS if shared(form[0], form[1], form[3]) <= limit]


def min_spans(value_dim: int) -> int:
    """Minimum number of spans: two for more than 128 channels.

    A program that stores so many channels in the dtype of the values, as it does for a single
    span, would spill registers.
    """
    return 2 if value_dim > 128 else 1


def spans_to_fill(
    programs: int, keys: int, block_k: int, multiprocessors: int, resident: int
) -> int:
    """Number of spans of keys for which `programs * spans` blocks fill the device once.

    resident: blocks that run on a multiprocessor at the same time.
    """
    return max(min(resident * multiprocessors // programs, triton.cdiv(keys, 4 * block_k)), 1)
