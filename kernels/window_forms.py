"""Tile sizes of `window_attention`."""

from __future__ import annotations

import triton
from sam2_fast.kernels.choices import Form
from sam2_fast.kernels.launch import HOPPER


def split_head_dim(head_dim: int) -> tuple[int, int]:
    """LOW and REST of `window_kernel`: two powers of two of at least 16, at least head_dim in all.

    56 channels are 32 + 32, 72 are 64 + 16, 96 are 64 + 32.
    """
    low = max(triton.next_power_of_2(head_dim) // 2, 16)
    return low, max(triton.next_power_of_2(max(head_dim - low, 1)), 16)


def tile_shape(window_height: int, window_width: int, step: int) -> tuple[int, int, int]:
    """BLOCK_Q, BLOCK_K and the number of windows per block, more than one if windows are small.

    step: 2 if queries are pooled, else 1.
    """
    keys = window_height * window_width
    pack = max(64 // keys, 1)
    queries = pack * (window_height // step) * (window_width // step)
    block_q = max(min(triton.next_power_of_2(queries), 64), 16)
    block_k = max(min(triton.next_power_of_2(pack * keys), 64), 16)
    return block_q, block_k, pack


REGULAR_FORMS = (
    (64, 128, 4, 2),
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (128, 64, 8, 2),
    (128, 128, 8, 2),
    (64, 64, 8, 2),
)
"""BLOCK_Q, BLOCK_K, warps and stages for windows of several blocks of queries and keys."""


def num_warps(head_dim: int, capability: int, padded: bool, pack: int) -> int:
    """Warps of a block. capability: 80, 86, 90...

    Four warps would spill registers for large heads on 8.x, and for padded windows without wgmma;
    eight warps would spill them if several windows share a tile.
    """
    if padded and capability not in HOPPER:
        return 8
    return 8 if head_dim > 80 and capability < 90 and pack == 1 else 4


def forms(
    window_height: int,
    window_width: int,
    step: int,
    head_dim: int,
    capability: int,
    padded: bool,
    size: int,
) -> list[Form]:
    """Possible forms, BLOCK_Q, BLOCK_K, warps and stages, the first of which is the default.

    "library" is torch's attention; it is possible if no window extends beyond the grid.
    step: 2 if queries are pooled, else 1; size: bytes per element.
    """
    block_q, block_k, pack = tile_shape(window_height, window_width, step)
    default = (block_q, block_k, num_warps(head_dim, capability, padded, pack), 2)
    if padded or size == 4:
        return [default]
    if pack > 1 or window_height * window_width // step**2 < 128:
        return [default, "library"]
    regular: list[Form] = [
        form for form in REGULAR_FORMS if is_regular(window_height, window_width, form[1])
    ]
    first = [regular[0]] if capability in HOPPER and head_dim <= 80 and regular else []
    return list(dict.fromkeys([*first, default, *regular, "library"]))


def is_regular(window_height: int, window_width: int, block_k: int) -> bool:
    """Whether a window divides into blocks of `block_k` keys that are entire rows of it."""
    return block_k % window_width == 0 and window_height * window_width % block_k == 0
