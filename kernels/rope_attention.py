"""Rotary attention in Triton: queries and keys are turned once, the keys are split over programs, and the parts are merged.

Channels are stored as [even ones | odd ones] after turning: a product of two rows does not mind, and no pair has to be taken apart again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

TURN_BLOCK = 32  # tokens of a program that turns


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


@kernel
def attend_kernel(
    q, k, v, firsts, out, sums, largest, totals, queries, shared, keys, values, scale,
    WIDE: tl.constexpr, VALUES: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, RAGGED: tl.constexpr, ALONE: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """One block of queries over one span of its object's keys. q: [1 if shared else B, queries, WIDE] turned; scale: to logarithms of 2.

    k: [B, keys, WIDE] turned and v: [B, keys, values]; or RAGGED, [., WIDE] and [., values], where object b has firsts[b] to
    firsts[b + 1].
    ALONE: there is one span, and `out` [B, queries, values] is written. Else `sums` [B, spans, queries, values], `largest` and `totals`
    [B, spans, queries], all float32, are what `merge_kernel` takes. Only the last spans may be empty.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    wide, narrow = tl.arange(0, WIDE), tl.arange(0, VALUES)
    there = row < queries
    base = batch * keys
    if RAGGED:
        base = tl.load(firsts + batch).to(tl.int64)
        keys = (tl.load(firsts + batch + 1) - base).to(tl.int32)
    image = tl.where(shared != 0, 0, batch)
    mine = tl.load(q + (image * queries + row)[:, None] * WIDE + wide[None, :], mask=there[:, None], other=0.0)
    span = tl.cdiv(tl.cdiv(keys, tl.num_programs(1)), BLOCK_K) * BLOCK_K
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, keys)
    high = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    sum_ = tl.zeros([BLOCK_Q, VALUES], tl.float32)
    for first in range(start, end, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        inside = key < end
        theirs = tl.load(k + (base + key)[None, :] * WIDE + wide[:, None], mask=inside[None, :], other=0.0)
        scores = tl.dot(mine, theirs, input_precision=precision) * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(high, tl.max(scores, 1))
        weight = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(high - higher)
        total = total * shrink + tl.sum(weight, 1)
        at = (base + key)[:, None] * values + narrow[None, :]
        value = tl.load(v + at, mask=inside[:, None] & (narrow < values)[None, :], other=0.0)
        sum_ = tl.dot(weight.to(value.dtype), value, sum_ * shrink[:, None], input_precision=precision)
        high = higher
    written = there[:, None] & (narrow < values)[None, :]
    if ALONE:
        place = (batch * queries + row)[:, None] * values + narrow[None, :]
        tl.store(out + place, (sum_ / total[:, None]).to(out.dtype.element_ty), mask=written)
    else:
        part = (batch * tl.num_programs(1) + tl.program_id(1)) * queries + row
        tl.store(sums + part[:, None] * values + narrow[None, :], sum_, mask=written)
        tl.store(largest + part, high, mask=there)
        tl.store(totals + part, total, mask=there)


@kernel
def merge_kernel(sums, largest, totals, out, queries, values, spans, BLOCK: tl.constexpr, VALUES: tl.constexpr):
    """What the spans found, weighed by their largest scores, as out [B, queries, values]."""
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    narrow = tl.arange(0, VALUES)
    there = row < queries
    written = there[:, None] & (narrow < values)[None, :]
    high = tl.load(largest + batch * spans * queries + row, mask=there, other=0.0)
    total = tl.load(totals + batch * spans * queries + row, mask=there, other=1.0)
    sum_ = tl.load(sums + (batch * spans * queries + row)[:, None] * values + narrow[None, :], mask=written, other=0.0)
    for span in range(1, spans):
        part = (batch * spans + span) * queries + row
        other = tl.load(largest + part, mask=there, other=0.0)
        higher = tl.maximum(high, other)
        mine, theirs = tl.exp2(high - higher), tl.exp2(other - higher)
        total = total * mine + tl.load(totals + part, mask=there, other=0.0) * theirs
        found = tl.load(sums + part[:, None] * values + narrow[None, :], mask=written, other=0.0)
        sum_ = sum_ * mine[:, None] + found * theirs[:, None]
        high = higher
    place = (batch * queries + row)[:, None] * values + narrow[None, :]
    tl.store(out + place, (sum_ / total[:, None]).to(out.dtype.element_ty), mask=written)


def blocks(values: int, size: int, capability: int) -> tuple[int, int, int, int]:
    """Queries and keys of a block, warps, stages: what compiles without spills and fits (docs/kernels/rope_attention.md).

    values: channels of a value as a power of two; size: bytes of an element; capability: 80, 86, 90, 120...
    """
    if size == 4:
        return 32, 32, 4, 1
    roomy = capability in (80, 90, 100, 103)  # 160 KB of shared memory a block, or more; others have 99
    if values > 128:
        return (64, 64, 8, 2) if roomy else (64, 32, 8, 1)
    return (128, 64, 8, 2) if roomy else (64, 64, 4, 1)


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


def attend(q: Tensor, k: Tensor, v: Tensor, dim: int, firsts: Tensor | None = None, most: int = 0, spans: int | None = None) -> Tensor:
    """softmax(q k' / sqrt(dim)) v of turned q [1 or B, N, halves]: -> [B, N, dv].

    k: [B, K, halves], v: [B, K, dv]; or with firsts [B + 1] int32 on the device, k: [., halves], v: [., dv], and `most`, the most keys of
    an object. spans: in how many parts the keys are taken; None: as many as give every multiprocessor two blocks.
    """
    ragged, queries, values = firsts is not None, q.shape[1], v.shape[-1]
    batch, keys = (len(firsts) - 1, most) if firsts is not None else tuple(k.shape[:2])
    out = q.new_empty(batch, queries, values)
    if out.numel() == 0:
        return out
    narrow = max(triton.next_power_of_2(values), 16)
    major, minor = torch.cuda.get_device_capability(q.device) if q.is_cuda else (9, 0)
    block_q, block_k, warps, stages = blocks(narrow, q.element_size(), 10 * major + minor)
    rows = triton.cdiv(queries, block_q)
    if spans is None:
        processors = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1
        spans = max(min(2 * processors // (rows * batch), triton.cdiv(keys, 4 * block_k)), 1)
    sums = q.new_empty((batch, spans, queries, values) if spans > 1 else (0,), dtype=torch.float32)
    largest, totals = (q.new_empty((batch, spans, queries) if spans > 1 else (0,), dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(q):
        attend_kernel[rows, spans, batch](
            q, k, v, firsts, out, sums, largest, totals, queries, int(q.shape[0] == 1), keys, values, 1.4426950408889634 * dim**-0.5,
            q.shape[2], narrow, block_q, block_k, ragged, spans == 1, q.dtype == torch.float32, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        if spans > 1:
            merge(sums, largest, totals, out)
    return out


def merge_warps(values: int) -> int:
    """Warps of a block of `merge_kernel`, for `values` channels: four spill registers where there are many."""
    return 8 if values > 128 else 4


def merge(sums: Tensor, largest: Tensor, totals: Tensor, out: Tensor) -> Tensor:
    """What spans of keys found, sums [B, spans, N, d], largest and totals [B, spans, N], float32, as out [B, N, d], contiguous."""
    batch, spans, queries, values = sums.shape
    with torch.cuda.device_of(out):
        merge_kernel[triton.cdiv(queries, 16), batch](
            sums, largest, totals, out, queries, values, spans, 16, max(triton.next_power_of_2(values), 16),
            num_warps=merge_warps(values),
        )  # fmt: skip
    return out


def rope_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int, spans: int | None = None) -> Tensor:
    """q: [B, N, d]; k: [B, K, d]; v: [B, K, dv]; table: [2, N, d / 2] float32, all contiguous -> [B, N, dv], on the current stream."""
    if q.shape[0] == 0 or q.shape[1] == 0:
        return q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    return attend(turn(q, table, q.shape[1]), turn(k, table, k.shape[1] - num_unrotated), v, q.shape[2], spans=spans)
