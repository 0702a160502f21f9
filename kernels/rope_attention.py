"""Rotary attention in Triton: queries and keys are rotated once, then attend.

Channels are stored as [even ones | odd ones] after rotating: a product of two rows does not mind, and no pair has to be taken apart again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.attention import attend
from sam2_fast.kernels.launch import kernel
from torch import Tensor

TURN_BLOCK = 32  # tokens of a program that rotates


@kernel
def turn_kernel(x, table, out, tokens, queries, rotated, channels, BLOCK: tl.constexpr, HALF: tl.constexpr):
    """x: [B, tokens, channels] -> out: [B, tokens, 2 * HALF], pairs turned by table [2, queries, channels / 2] where token < rotated.

    The table repeats every `queries` tokens. What lies past channels / 2 in a half is 0.
    """
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    base = tl.program_id(1).to(tl.int64) * tokens
    channel = tl.arange(0, 2 * HALF)
    place = (base + token)[:, None] * channels + channel[None, :]
    here = (token < tokens)[:, None] & (channel < channels)[None, :]
    pairs = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(pairs, [BLOCK, HALF, 2]))
    pair = tl.arange(0, HALF)
    angle = (token % queries)[:, None] * (channels // 2) + pair[None, :]
    turned = (token < rotated)[:, None] & (pair < channels // 2)[None, :]
    cos = tl.load(table + angle, mask=turned, other=1.0)
    sin = tl.load(table + queries * (channels // 2) + angle, mask=turned, other=0.0)
    row = (base + token)[:, None] * (2 * HALF) + pair[None, :]
    inside = (token < tokens)[:, None] & (pair < HALF)[None, :]
    tl.store(out + row, (even * cos - odd * sin).to(out.dtype.element_ty), mask=inside)
    tl.store(out + row + HALF, (even * sin + odd * cos).to(out.dtype.element_ty), mask=inside)


def turn(x: Tensor, table: Tensor, rotated: int) -> Tensor:
    """x: [B, T, d] contiguous -> [B, T, halves], channels as above; the first `rotated` tokens are turned by table [2, N, d / 2]."""
    batch, tokens, dim = x.shape
    half = max(triton.next_power_of_2(dim) // 2, 8)
    out = x.new_empty(batch, tokens, 2 * half)
    with torch.cuda.device_of(x):
        turn_kernel[triton.cdiv(tokens, TURN_BLOCK), batch](
            x, table, out, tokens, table.shape[1], rotated, dim, TURN_BLOCK, half
        )  # fmt: skip
    return out


def rope_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int, spans: int | None = None) -> Tensor:
    """q: [B, N, d]; k: [B, K, d]; v: [B, K, dv]; table: [2, N, d / 2] float32, all contiguous -> [B, N, dv], on the current stream."""
    if q.shape[0] == 0 or q.shape[1] == 0:
        return q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    return attend(turn(q, table, q.shape[1]), turn(k, table, k.shape[1] - num_unrotated), v, q.shape[2], spans=spans)
