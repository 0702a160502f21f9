"""Keys of memories and queries in Triton: what they are made of goes through their projection and is turned on its way out."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

BLOCK = 64  # tokens of a program that makes keys
QUERY_BLOCK = 32  # and of one that makes queries: 4096 tokens are 128 programs


@kernel
def keys_kernel(
    slots, place, temporal, table, weight, bias, keys, values, tokens, channels,
    NARROW: tl.constexpr, HALF: tl.constexpr, COPY: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Tokens of one slot: keys [., 2 * HALF] as [even channels | odd channels], and with COPY the tokens as values [., channels].

    slots: [S, 5] int64: address of the slot's tokens [count, channels]; address of what is added to them, or 0 for a map, whose tokens
    are turned by table [2, tokens, HALF] and get place [tokens, channels] + temporal[row]; where its keys begin; count; row.
    weight: [2 * HALF, channels] and bias: [2 * HALF] of the projection.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    slot = slots + tl.program_id(1) * 5
    memory = tl.load(slot).to(tl.pointer_type(values.dtype.element_ty))
    added = tl.load(slot + 1)
    first, count, temporal_row = tl.load(slot + 2), tl.load(slot + 3), tl.load(slot + 4)
    if tl.program_id(0) * BLOCK >= count:  # a slot that is not in use, or a short one
        return
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel, half = tl.arange(0, NARROW), tl.arange(0, HALF)
    here = (token < count)[:, None] & (channel < channels)[None, :]
    at = token[:, None] * channels + channel[None, :]
    x = tl.load(memory + at, mask=here, other=0.0)
    if COPY:
        tl.store(values + (first + token)[:, None] * channels + channel[None, :], x, mask=here)
    if added == 0:
        when = tl.load(temporal + temporal_row * channels + channel, mask=channel < channels, other=0.0).to(tl.float32)
        where = tl.load(place + at, mask=here, other=0.0).to(tl.float32) + when[None, :]
    else:
        where = tl.load(added.to(tl.pointer_type(values.dtype.element_ty)) + at, mask=here, other=0.0).to(tl.float32)
    x = (x.to(tl.float32) + where.to(x.dtype).to(tl.float32)).to(x.dtype)
    known = (channel < channels)[:, None]
    rows = weight + 2 * half[None, :] * channels + channel[:, None]
    even = tl.dot(x, tl.load(rows, mask=known, other=0.0), input_precision=precision) + tl.load(bias + 2 * half).to(tl.float32)[None, :]
    odd = tl.dot(x, tl.load(rows + channels, mask=known, other=0.0), input_precision=precision)
    odd += tl.load(bias + 2 * half + 1).to(tl.float32)[None, :]
    angle = token[:, None] * HALF + half[None, :]
    turned = (token < tl.where(added == 0, count, 0))[:, None] & (half < HALF)[None, :]
    cos = tl.load(table + angle, mask=turned, other=1.0)
    sin = tl.load(table + tokens * HALF + angle, mask=turned, other=0.0)
    out = keys + (first + token)[:, None] * (2 * HALF) + half[None, :]
    inside = (token < count)[:, None] & (half < HALF)[None, :]
    tl.store(out, (even * cos - odd * sin).to(keys.dtype.element_ty), mask=inside)
    tl.store(out + HALF, (even * sin + odd * cos).to(keys.dtype.element_ty), mask=inside)


@kernel
def queries_kernel(
    x, moments, norm_weight, norm_bias, table, weight, bias, out, rows, tokens,
    HALF: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """x: [rows, 2 * HALF] through a norm and a projection weight [2 * HALF, 2 * HALF], turned by table [2, tokens, HALF], which repeats
    every `tokens` rows -> out [rows, 2 * HALF] as [even channels | odd channels].

    moments: [rows, 2] float32, mean and one over the deviation.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    channels: tl.constexpr = 2 * HALF
    row, half = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, HALF)
    there = row < rows
    at = row.to(tl.int64)[:, None] * channels
    mean, shrink = tl.load(moments + 2 * row, mask=there, other=0.0), tl.load(moments + 2 * row + 1, mask=there, other=0.0)
    even, odd = tl.zeros([BLOCK, HALF], tl.float32), tl.zeros([BLOCK, HALF], tl.float32)
    for first in range(0, channels, BLOCK_K):
        channel = first + tl.arange(0, BLOCK_K)
        gain, offset = tl.load(norm_weight + channel).to(tl.float32), tl.load(norm_bias + channel).to(tl.float32)
        tile = tl.load(x + at + channel[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        tile = ((tile - mean[:, None]) * shrink[:, None] * gain[None, :] + offset[None, :]).to(weight.dtype.element_ty)
        lines = weight + 2 * half[None, :] * channels + channel[:, None]
        even = tl.dot(tile, tl.load(lines), even, input_precision=precision)
        odd = tl.dot(tile, tl.load(lines + channels), odd, input_precision=precision)
    even += tl.load(bias + 2 * half).to(tl.float32)[None, :]
    odd += tl.load(bias + 2 * half + 1).to(tl.float32)[None, :]
    angle = (row % tokens)[:, None] * HALF + half[None, :]
    cos = tl.load(table + angle, mask=there[:, None], other=1.0)
    sin = tl.load(table + tokens * HALF + angle, mask=there[:, None], other=0.0)
    tl.store(out + at + half[None, :], (even * cos - odd * sin).to(out.dtype.element_ty), mask=there[:, None])
    tl.store(out + at + HALF + half[None, :], (even * sin + odd * cos).to(out.dtype.element_ty), mask=there[:, None])


def turned_queries(
    x: Tensor, moments: Tensor, norm_weight: Tensor, norm_bias: Tensor, table: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """x: [B, N, C], its moments [B * N, 2], table: [2, N, C / 2] -> queries (or keys) [B, N, C], projected and turned.

    They have the dtype of weight. All contiguous; C is a power of two. On the current stream.
    """
    out = x.new_empty(x.shape, dtype=weight.dtype)
    rows, channels = x.shape[0] * x.shape[1], x.shape[2]
    with torch.cuda.device_of(x):
        queries_kernel[(triton.cdiv(rows, QUERY_BLOCK),)](
            x, moments, norm_weight, norm_bias, table, weight, bias, out, rows, x.shape[1], channels // 2, QUERY_BLOCK, min(channels, 64),
            weight.dtype == torch.float32, num_warps=4, num_stages=2,
        )  # fmt: skip
    return out


@kernel
def gather_kernel(addresses, like, out, channels, BLOCK: tl.constexpr):
    """Row i of out [R, channels] from addresses[i] int64, where numbers of the type of `like` lie; zeros where the address is 0."""
    channel = tl.arange(0, BLOCK)
    address = tl.load(addresses + tl.program_id(0))
    there = channel < tl.where(address == 0, 0, channels)
    row = tl.load(address.to(tl.pointer_type(like.dtype.element_ty)) + channel, mask=there, other=0.0)
    tl.store(out + tl.program_id(0) * channels + channel, row.to(out.dtype.element_ty), mask=channel < channels)


def gather_rows(addresses: Tensor, like: Tensor, out: Tensor) -> None:
    """Fill `out` [R, C] with rows that lie at `addresses` [R] int64 in the dtype of `like`, on the current stream."""
    with torch.cuda.device_of(out):
        gather_kernel[(len(out),)](addresses, like, out, out.shape[1], triton.next_power_of_2(out.shape[1]), num_warps=4)


def memory_keys(
    slots: Tensor, most: int, place: Tensor, temporal: Tensor, table: Tensor, weight: Tensor, bias: Tensor, keys: Tensor, values: Tensor,
    copy: bool,
) -> None:  # fmt: skip
    """Fill `keys` [., C] from all slots, on the current stream, and with `copy` also `values` [., m]; C is a power of two.

    most: the most tokens of a slot. What `slots` points to has the dtype of `values`, is contiguous, and must outlive the launch.
    """
    with torch.cuda.device_of(keys):
        keys_kernel[triton.cdiv(most, BLOCK), len(slots)](
            slots, place, temporal, table, weight, bias, keys, values, place.shape[0], place.shape[1],
            max(triton.next_power_of_2(place.shape[1]), 16), keys.shape[1] // 2, copy, BLOCK, keys.dtype == torch.float32, num_warps=8,
        )  # fmt: skip
