"""Tile sizes of `window_attention`."""

from __future__ import annotations

import triton
from sam2_fast.kernels.choices import Form
from sam2_fast.kernels.launch import HOPPER


def parts(head: int) -> tuple[int, int]:
    """A head's channels as two powers of two, each 16 or more: 56 as 32 + 32, 72 as 64 + 16, 96 as
    64 + 32."""
    low = max(triton.next_power_of_2(head) // 2, 16)
    return low, max(triton.next_power_of_2(max(head - low, 1)), 16)


def shape(tall: int, wide: int, by: int) -> tuple[int, int, int]:
    """Queries and keys of a block, and windows that share one: small ones are packed until they
    fill a tile."""
    keys = tall * wide
    pack = max(64 // keys, 1)
    queries = pack * (tall // by) * (wide // by)
    block_q = max(min(triton.next_power_of_2(queries), 64), 16)
    block_k = max(min(triton.next_power_of_2(pack * keys), 64), 16)
    return block_q, block_k, pack


WIDE_FORMS = (
    (64, 128, 4, 2),
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (128, 64, 8, 2),
    (128, 128, 8, 2),
    (64, 64, 8, 2),
)
"""Queries and keys of a block, warps, stages, of windows that take several blocks of either."""


def warps(head: int, capability: int, padded: bool, pack: int) -> int:
    """Of a block. capability: 80, 86, 90...

    Four warps spill registers: of wide heads on 8.x, of padded windows without wgmma; eight of
    windows that share a tile.
    """
    if padded and capability not in HOPPER:
        return 8
    return 8 if head > 80 and capability < 90 and pack == 1 else 4


def forms(
    tall: int, wide: int, by: int, head: int, capability: int, padded: bool, size: int
) -> list[Form]:
    """Queries and keys of a block, warps, stages; the first is the default, others fit and give the
    same.

    "library": torch's attention, where no window extends beyond the grid.
    """
    block_q, block_k, pack = shape(tall, wide, by)
    default = (block_q, block_k, warps(head, capability, padded, pack), 2)
    if padded or size == 4:
        return [default]
    if pack > 1 or tall * wide // by**2 < 128:
        return [default, "library"]
    regular: list[Form] = [form for form in WIDE_FORMS if is_regular(tall, wide, form[1])]
    first = [regular[0]] if capability in HOPPER and head <= 80 and regular else []
    return list(dict.fromkeys([*first, default, *regular, "library"]))


def is_regular(tall: int, wide: int, block_k: int) -> bool:
    """Whether `block_k` keys are whole rows of a window, and all blocks of it are whole."""
    return block_k % wide == 0 and tall * wide % block_k == 0
