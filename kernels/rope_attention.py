"""Rotary attention in Triton: queries and keys are rotated once, before `attention.attend`.

Rotated channels are stored as [even channels | odd channels], which saves interleaving them again:
the dot product of a query and a key does not depend on the order of their channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.attention import attend
from sam2_fast.kernels.launch import kernel
from torch import Tensor

ROTATE_BLOCK = 32  # tokens of a program of `rotate_kernel`


@kernel
def rotate_kernel(
    x,
    table,
    out,
    tokens,
    table_tokens,
    rotated,
    channels,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
):
    """Rotate pairs of channels of BLOCK tokens.

    Pointers, all contiguous:
    x: [B, tokens, channels], any float dtype.
    table: rotary table, cosines, then sines [2, table_tokens, channels / 2] float32.
    out: channels as [even channels | odd channels] [B, tokens, 2 * HALF], any float dtype; each
        half is padded with zeros.

    tokens, channels: int. table_tokens: int, number of tokens after which the table repeats.
    rotated: int, number of tokens that are rotated, from the first on; the channels of the others
    are only reordered. Grid: (cdiv(tokens, BLOCK), B).
    """
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    base = tl.program_id(1).to(tl.int64) * tokens
    channel = tl.arange(0, 2 * HALF)
    offsets = (base + token)[:, None] * channels + channel[None, :]
    load_mask = (token < tokens)[:, None] & (channel < channels)[None, :]
    pairs = tl.load(x + offsets, mask=load_mask, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(pairs, [BLOCK, HALF, 2]))
    pair = tl.arange(0, HALF)
    angle = (token % table_tokens)[:, None] * (channels // 2) + pair[None, :]
    rotate_mask = (token < rotated)[:, None] & (pair < channels // 2)[None, :]
    cos = tl.load(table + angle, mask=rotate_mask, other=1.0)
    sin = tl.load(table + table_tokens * (channels // 2) + angle, mask=rotate_mask, other=0.0)
    row = (base + token)[:, None] * (2 * HALF) + pair[None, :]
    store_mask = (token < tokens)[:, None] & (pair < HALF)[None, :]
    tl.store(out + row, (even * cos - odd * sin).to(out.dtype.element_ty), mask=store_mask)
    tl.store(out + row + HALF, (even * sin + odd * cos).to(out.dtype.element_ty), mask=store_mask)


def rotate(x: Tensor, table: Tensor, rotated: int) -> Tensor:
    """Rotated x as [even channels | odd channels], padded to a power of two of channels.

    x: [B, T, d], contiguous; table: [2, N, d / 2] float32, repeats every N tokens. Only the first
    `rotated` tokens are rotated.
    """
    batch, tokens, dim = x.shape
    half = max(triton.next_power_of_2(dim) // 2, 8)
    out = x.new_empty(batch, tokens, 2 * half)
    with torch.cuda.device_of(x):
        rotate_kernel[triton.cdiv(tokens, ROTATE_BLOCK), batch](
            x=x,
            table=table,
            out=out,
            tokens=tokens,
            table_tokens=table.shape[1],
            rotated=rotated,
            channels=dim,
            BLOCK=ROTATE_BLOCK,
            HALF=half,
        )
    return out


def rope_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int, spans: int | None = None
) -> Tensor:
    """Attention of rotated queries to rotated keys: [B, N, dv], computed on the current stream.

    q: [B, N, d]; k: [B, K, d]; v: [B, K, dv]; table: [2, N, d / 2] float32; all contiguous.
    num_unrotated: number of keys that are not rotated, at the end. spans: as in `attend`.
    """
    if q.shape[0] == 0 or q.shape[1] == 0:
        return q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    queries = rotate(q, table, q.shape[1])
    keys = rotate(k, table, k.shape[1] - num_unrotated)
    return attend(queries, keys, v, q.shape[2], spans=spans)
