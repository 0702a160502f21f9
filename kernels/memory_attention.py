"""Projections of memory attention in Triton: keys of memories, and tokens behind a layer norm, rotated as they are written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels import memory_slots
from sam2_fast.kernels.launch import kernel
from sam2_fast.kernels.linear import Layer
from torch import Tensor

BLOCK = 64  # tokens of a program that makes keys
SLOT_FIELDS = tl.constexpr(memory_slots.SLOT_FIELDS)
SLOT_TOKENS_ADDRESS = tl.constexpr(memory_slots.SLOT_TOKENS_ADDRESS)
SLOT_ADDED_ADDRESS = tl.constexpr(memory_slots.SLOT_ADDED_ADDRESS)
SLOT_FIRST_KEY = tl.constexpr(memory_slots.SLOT_FIRST_KEY)
SLOT_NUM_TOKENS = tl.constexpr(memory_slots.SLOT_NUM_TOKENS)
SLOT_TEMPORAL_ROW = tl.constexpr(memory_slots.SLOT_TEMPORAL_ROW)


@kernel
def keys_kernel(
    slots, place, temporal, table, weight, bias, keys, values, tokens, channels, layers, layer_stride,
    NARROW: tl.constexpr, HALF: tl.constexpr, COPY: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Tokens of one slot: keys of `layers` layers [., 2 * HALF] as [even channels | odd channels], and with
    COPY the tokens as values [., channels].

    slots: [S, SLOT_FIELDS] int64, a `memory_slots.Slot` each. The tokens of a map are rotated by table
    [2, tokens, HALF] and get place [tokens, channels] + temporal[row]. weight: [layers, 2 * HALF, channels] and bias: [layers,
    2 * HALF] of the projections. layer_stride: numbers from a layer's keys to the next one's.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    slot = slots + tl.program_id(1) * SLOT_FIELDS
    memory = tl.load(slot + SLOT_TOKENS_ADDRESS).to(tl.pointer_type(values.dtype.element_ty))
    added = tl.load(slot + SLOT_ADDED_ADDRESS)
    first = tl.load(slot + SLOT_FIRST_KEY)
    count = tl.load(slot + SLOT_NUM_TOKENS)
    temporal_row = tl.load(slot + SLOT_TEMPORAL_ROW)
    if tl.program_id(0) * BLOCK >= count:  # a slot that is not in use, or a short one
        return
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel, half = tl.arange(0, NARROW), tl.arange(0, HALF)
    in_tokens = (token < count)[:, None]
    inside = in_tokens & (channel < channels)[None, :]
    at = token[:, None] * channels + channel[None, :]
    x = tl.load(memory + at, mask=inside, other=0.0)
    if COPY:
        tl.store(values + (first + token)[:, None] * channels + channel[None, :], x, mask=inside)
    if added == 0:
        when = tl.load(temporal + temporal_row * channels + channel, mask=channel < channels, other=0.0).to(tl.float32)
        where = tl.load(place + at, mask=inside, other=0.0).to(tl.float32) + when[None, :]
    else:
        where = tl.load(added.to(tl.pointer_type(values.dtype.element_ty)) + at, mask=inside, other=0.0).to(tl.float32)
    x = (x.to(tl.float32) + where.to(x.dtype).to(tl.float32)).to(x.dtype)
    known = (channel < channels)[:, None]
    angle = token[:, None] * HALF + half[None, :]
    rotated = (token < tl.where(added == 0, count, 0))[:, None] & (half < HALF)[None, :]
    cos = tl.load(table + angle, mask=rotated, other=1.0)
    sin = tl.load(table + tokens * HALF + angle, mask=rotated, other=0.0)
    rows = weight + 2 * half[None, :] * channels + channel[:, None]
    out = keys + (first + token)[:, None] * (2 * HALF) + half[None, :]
    for layer in range(layers):
        shift = bias + layer * 2 * HALF + 2 * half
        even = tl.dot(x, tl.load(rows, mask=known, other=0.0), input_precision=precision) + tl.load(shift).to(tl.float32)[None, :]
        odd = tl.dot(x, tl.load(rows + channels, mask=known, other=0.0), input_precision=precision)
        odd += tl.load(shift + 1).to(tl.float32)[None, :]
        tl.store(out, (even * cos - odd * sin).to(keys.dtype.element_ty), mask=in_tokens)
        tl.store(out + HALF, (even * sin + odd * cos).to(keys.dtype.element_ty), mask=in_tokens)
        rows += 2 * HALF * channels
        out += layer_stride


@kernel
def project_kernel(
    x, norm_weight, norm_bias, table, weight, bias, out, rows, tokens, rotated_parts, eps,
    CHANNELS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """BLOCK tokens x [rows, CHANNELS] through a layer norm and 2 * BLOCK_N columns of a linear layer.

    weight: [parts * CHANNELS, CHANNELS]; out: [parts, rows, CHANNELS]. The first `rotated_parts` parts are
    rotated by table [2, tokens, HALF] (repeated every `tokens` rows) and written as [even channels | odd
    channels], the others as they are. Rows are read whole, so that they are normalized once.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    steps: tl.constexpr = (HALF + BLOCK_N - 1) // BLOCK_N
    row, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, CHANNELS)
    part, step = tl.program_id(1) // steps, tl.program_id(1) % steps
    column = step * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = (row < rows)[:, None]
    tile = tl.load(x + row.to(tl.int64)[:, None] * CHANNELS + channel[None, :], mask=in_rows, other=0.0).to(tl.float32)
    centered = tile - (tl.sum(tile, 1) / CHANNELS)[:, None]
    rstd = tl.rsqrt(tl.sum(centered * centered, 1) / CHANNELS + eps)
    scale, shift = tl.load(norm_weight + channel).to(tl.float32), tl.load(norm_bias + channel).to(tl.float32)
    normed = (centered * rstd[:, None] * scale[None, :] + shift[None, :]).to(weight.dtype.element_ty)
    is_rotated = part < rotated_parts
    first = part * CHANNELS + tl.where(is_rotated, 2 * column, column)
    second = tl.where(is_rotated, first + 1, first + HALF)
    known = column < HALF
    lower = tl.load(weight + first[None, :] * CHANNELS + channel[:, None], mask=known[None, :], other=0.0)
    upper = tl.load(weight + second[None, :] * CHANNELS + channel[:, None], mask=known[None, :], other=0.0)
    low = tl.dot(normed, lower, input_precision=precision)
    high = tl.dot(normed, upper, input_precision=precision)
    low += tl.load(bias + first, mask=known, other=0.0).to(tl.float32)[None, :]
    high += tl.load(bias + second, mask=known, other=0.0).to(tl.float32)[None, :]
    angle = (row % tokens)[:, None] * HALF + column[None, :]
    inside = in_rows & known[None, :]
    turning = (row < tl.where(is_rotated, rows, 0))[:, None] & known[None, :]
    cos = tl.load(table + angle, mask=turning, other=1.0)
    sin = tl.load(table + tokens * HALF + angle, mask=turning, other=0.0)
    at = out + (part.to(tl.int64) * rows + row)[:, None] * CHANNELS + column[None, :]
    tl.store(at, (low * cos - high * sin).to(out.dtype.element_ty), mask=inside)
    tl.store(at + HALF, (low * sin + high * cos).to(out.dtype.element_ty), mask=inside)


def projection_tile(size: int) -> tuple[int, int, int]:
    """Tokens and half of the columns of a program of `project_kernel`, and its warps. size: bytes of an element."""
    return (16, 16, 4) if size == 4 else (64, 64, 4)


def project(x: Tensor, layer: Layer, table: Tensor, rotated: int) -> Tensor:
    """x: [B, N, C] through a layer norm and a linear layer of some times C columns -> [parts, B, N, C].

    The first `rotated` parts are rotated by table [2, N, C / 2], and have [even channels | odd channels].
    The result has the dtype of the weight. All contiguous; C is a power of two. On the current stream.
    """
    batch, tokens, channels = x.shape
    parts, half, norm = len(layer.weight) // channels, channels // 2, layer.norm
    assert norm is not None
    out = x.new_empty(parts, batch, tokens, channels, dtype=layer.weight.dtype)
    block, columns, warps = projection_tile(layer.weight.element_size())
    columns = min(columns, max(half, 16))
    with torch.cuda.device_of(x):
        project_kernel[triton.cdiv(batch * tokens, block), parts * triton.cdiv(half, columns)](
            x, norm.weight, norm.bias, table, layer.weight, layer.bias, out, batch * tokens, tokens, rotated, norm.eps,
            CHANNELS=channels, HALF=half, BLOCK=block, BLOCK_N=columns, EXACT=layer.weight.dtype == torch.float32,
            num_warps=warps, num_stages=1,
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
    slots: Tensor, most: int, place: Tensor, temporal: Tensor, table: Tensor, weight: Tensor, bias: Tensor, keys: Tensor,
    values: Tensor, copy: bool,
) -> None:  # fmt: skip
    """Fill `keys` [layers, ., C] from all slots, on the current stream, and with `copy` also `values` [., m]; C is a power of two.

    weight: [layers, C, m]; bias: [layers, C]; most: the most tokens of a slot. What `slots` points to has
    the dtype of `values`, is contiguous, and must outlive the launch.
    """
    with torch.cuda.device_of(keys):
        keys_kernel[triton.cdiv(most, BLOCK), len(slots)](
            slots, place, temporal, table, weight, bias, keys, values, place.shape[0], place.shape[1], len(keys), keys.stride(0),
            NARROW=max(triton.next_power_of_2(place.shape[1]), 16), HALF=keys.shape[2] // 2, COPY=copy, BLOCK=BLOCK,
            EXACT=keys.dtype == torch.float32, num_warps=8,
        )  # fmt: skip
