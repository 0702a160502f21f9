"""Projections of memory attention in Triton: keys of memories, and tokens behind a layer norm,
rotated as they are written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels import memory_slots
from sam2_fast.kernels.launch import kernel
from sam2_fast.kernels.layer_norm import normalize_rows
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
    slots,
    position,
    temporal,
    table,
    weight,
    bias,
    keys,
    values,
    tokens,
    channels,
    layers,
    layer_stride,
    NARROW: tl.constexpr,
    HALF: tl.constexpr,
    COPY: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Keys of BLOCK tokens of one slot for all layers, and with COPY the tokens as values.

    A map's tokens get position and temporal row and are rotated; pointer tokens get what lies at
    the slot's address of what is added.

    Pointers, contiguous but for keys:
    slots: [S, SLOT_FIELDS] int64, a `memory_slots.Slot` each; addresses are of the dtype of values.
    position: positional encoding of a map [tokens, channels], any float dtype.
    temporal: temporal encodings [T, channels], any float dtype.
    table: cosines, then sines, of a map's tokens [2, tokens, HALF] float32.
    weight: projections of the layers [layers, 2 * HALF, channels], compute dtype.
    bias: [layers, 2 * HALF], any float dtype.
    keys: [even channels | odd channels] [layers, ., 2 * HALF], compute dtype; layers lie
        layer_stride elements apart.
    values: [., channels], compute dtype; written with COPY.

    tokens, channels, layers, layer_stride: int; channels: memory_dim.
    Grid: (cdiv(most tokens of a slot, BLOCK), S).
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
    channel = tl.arange(0, NARROW)
    half = tl.arange(0, HALF)
    in_tokens = (token < count)[:, None]
    inside = in_tokens & (channel < channels)[None, :]
    offsets = token[:, None] * channels + channel[None, :]
    x = tl.load(memory + offsets, mask=inside, other=0.0)
    if COPY:
        value_at = values + (first + token)[:, None] * channels + channel[None, :]
        tl.store(value_at, x, mask=inside)
    if added == 0:
        temporal_at = temporal + temporal_row * channels + channel
        time = tl.load(temporal_at, mask=channel < channels, other=0.0).to(tl.float32)
        encoding = tl.load(position + offsets, mask=inside, other=0.0).to(tl.float32)
        encoding = encoding + time[None, :]
    else:
        added_at = added.to(tl.pointer_type(values.dtype.element_ty)) + offsets
        encoding = tl.load(added_at, mask=inside, other=0.0).to(tl.float32)
    x = (x.to(tl.float32) + encoding.to(x.dtype).to(tl.float32)).to(x.dtype)
    in_channels = (channel < channels)[:, None]
    angle = token[:, None] * HALF + half[None, :]
    rotated = (token < tl.where(added == 0, count, 0))[:, None] & (half < HALF)[None, :]
    cos = tl.load(table + angle, mask=rotated, other=1.0)
    sin = tl.load(table + tokens * HALF + angle, mask=rotated, other=0.0)
    weight_at = weight + 2 * half[None, :] * channels + channel[:, None]
    key_at = keys + (first + token)[:, None] * (2 * HALF) + half[None, :]
    for layer in range(layers):
        bias_at = bias + layer * 2 * HALF + 2 * half
        even_weight = tl.load(weight_at, mask=in_channels, other=0.0)
        even = tl.dot(x, even_weight, input_precision=precision)
        even = even + tl.load(bias_at).to(tl.float32)[None, :]
        odd_weight = tl.load(weight_at + channels, mask=in_channels, other=0.0)
        odd = tl.dot(x, odd_weight, input_precision=precision)
        odd += tl.load(bias_at + 1).to(tl.float32)[None, :]
        tl.store(key_at, (even * cos - odd * sin).to(keys.dtype.element_ty), mask=in_tokens)
        tl.store(key_at + HALF, (even * sin + odd * cos).to(keys.dtype.element_ty), mask=in_tokens)
        weight_at += 2 * HALF * channels
        key_at += layer_stride


@kernel
def project_kernel(
    x,
    norm_weight,
    norm_bias,
    table,
    weight,
    bias,
    out,
    rows,
    tokens,
    rotated_parts,
    eps,
    CHANNELS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EXACT: tl.constexpr,
):
    """BLOCK tokens through a layer norm and 2 * BLOCK_N columns of a linear layer.

    The first parts are rotated and written as [even channels | odd channels], the others as they
    are. Rows are read whole, so that they are normalized once.

    Pointers, all contiguous:
    x: tokens [rows, CHANNELS], any float dtype.
    norm_weight, norm_bias: of the layer norm [CHANNELS], any float dtype.
    table: cosines, then sines, [2, tokens, HALF] float32; it repeats every `tokens` rows.
    weight: [parts * CHANNELS, CHANNELS], compute dtype.
    bias: [parts * CHANNELS], any float dtype.
    out: [parts, rows, CHANNELS], compute dtype.

    rows, tokens: int. rotated_parts: int, how many of the first parts are rotated. eps: float, of
    the layer norm. Grid: (cdiv(rows, BLOCK), parts * cdiv(HALF, BLOCK_N)).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    steps: tl.constexpr = (HALF + BLOCK_N - 1) // BLOCK_N
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNELS)
    part = tl.program_id(1) // steps
    step = tl.program_id(1) % steps
    column = step * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = (row < rows)[:, None]
    x_at = x + row.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    tile = tl.load(x_at, mask=in_rows, other=0.0).to(tl.float32)
    normed = normalize_rows(tile, norm_weight, norm_bias, channel, eps, CHANNELS)
    normed = normed.to(weight.dtype.element_ty)
    is_rotated = part < rotated_parts
    first = part * CHANNELS + tl.where(is_rotated, 2 * column, column)
    second = tl.where(is_rotated, first + 1, first + HALF)
    in_columns = column < HALF
    first_at = weight + first[None, :] * CHANNELS + channel[:, None]
    first_weight = tl.load(first_at, mask=in_columns[None, :], other=0.0)
    second_at = weight + second[None, :] * CHANNELS + channel[:, None]
    second_weight = tl.load(second_at, mask=in_columns[None, :], other=0.0)
    first_result = tl.dot(normed, first_weight, input_precision=precision)
    second_result = tl.dot(normed, second_weight, input_precision=precision)
    first_result += tl.load(bias + first, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    second_result += tl.load(bias + second, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    angle = (row % tokens)[:, None] * HALF + column[None, :]
    stored = in_rows & in_columns[None, :]
    rotated = (row < tl.where(is_rotated, rows, 0))[:, None] & in_columns[None, :]
    cos = tl.load(table + angle, mask=rotated, other=1.0)
    sin = tl.load(table + tokens * HALF + angle, mask=rotated, other=0.0)
    out_at = out + (part.to(tl.int64) * rows + row)[:, None] * CHANNELS + column[None, :]
    result = first_result * cos - second_result * sin
    tl.store(out_at, result.to(out.dtype.element_ty), mask=stored)
    result = first_result * sin + second_result * cos
    tl.store(out_at + HALF, result.to(out.dtype.element_ty), mask=stored)


def projection_tile(size: int) -> tuple[int, int, int]:
    """Tokens and half of the columns of a program of `project_kernel`, and its warps.

    size: bytes of an element.
    """
    return (16, 16, 4) if size == 4 else (64, 64, 4)


def project(x: Tensor, layer: Layer, table: Tensor, rotated: int) -> Tensor:
    """x: [B, N, C] through a layer norm and a linear layer of a multiple of C columns -> [parts, B,
    N, C].

    The first `rotated` parts are rotated by table [2, N, C / 2], and have [even channels | odd
    channels]. The result has the dtype of the weight. All contiguous; C is a power of two. On the
    current stream.
    """
    batch, tokens, channels = x.shape
    half = channels // 2
    norm = layer.norm
    parts = len(layer.weight) // channels
    assert norm is not None
    out = x.new_empty(parts, batch, tokens, channels, dtype=layer.weight.dtype)
    block, columns, warps = projection_tile(layer.weight.element_size())
    columns = min(columns, max(half, 16))
    with torch.cuda.device_of(x):
        project_kernel[triton.cdiv(batch * tokens, block), parts * triton.cdiv(half, columns)](
            x=x,
            norm_weight=norm.weight,
            norm_bias=norm.bias,
            table=table,
            weight=layer.weight,
            bias=layer.bias,
            out=out,
            rows=batch * tokens,
            tokens=tokens,
            rotated_parts=rotated,
            eps=norm.eps,
            CHANNELS=channels,
            HALF=half,
            BLOCK=block,
            BLOCK_N=columns,
            EXACT=layer.weight.dtype == torch.float32,
            num_warps=warps,
            num_stages=1,
        )
    return out


@kernel
def gather_kernel(addresses, like, out, channels, BLOCK: tl.constexpr):
    """One row from an address; zeros where the address is 0.

    Pointers, all contiguous:
    addresses: of rows of `channels` numbers of the dtype of `like`, [R] int64.
    like: anything of the rows' dtype; not read.
    out: [R, channels], any float dtype.

    channels: int <= BLOCK. Grid: (R,).
    """
    channel = tl.arange(0, BLOCK)
    address = tl.load(addresses + tl.program_id(0))
    loaded = channel < tl.where(address == 0, 0, channels)
    row_at = address.to(tl.pointer_type(like.dtype.element_ty)) + channel
    row = tl.load(row_at, mask=loaded, other=0.0)
    out_at = out + tl.program_id(0) * channels + channel
    tl.store(out_at, row.to(out.dtype.element_ty), mask=channel < channels)


def gather_rows(addresses: Tensor, like: Tensor, out: Tensor) -> None:
    """Fill `out` [R, C] with rows that lie at `addresses` [R] int64 in the dtype of `like`, on the
    current stream."""
    with torch.cuda.device_of(out):
        gather_kernel[(len(out),)](
            addresses=addresses,
            like=like,
            out=out,
            channels=out.shape[1],
            BLOCK=triton.next_power_of_2(out.shape[1]),
            num_warps=4,
        )


def memory_keys(
    slots: Tensor,
    most: int,
    position: Tensor,
    temporal: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
    keys: Tensor,
    values: Tensor,
    copy: bool,
) -> None:
    """Fill `keys` [layers, ., C] from all slots, on the current stream, and with `copy` also
    `values` [., memory_dim]; C is a power of two.

    weight: [layers, C, memory_dim]; bias: [layers, C]; most: the most tokens of a slot. What
    `slots` points to has the dtype of `values`, is contiguous, and must outlive the launch.
    """
    with torch.cuda.device_of(keys):
        keys_kernel[triton.cdiv(most, BLOCK), len(slots)](
            slots=slots,
            position=position,
            temporal=temporal,
            table=table,
            weight=weight,
            bias=bias,
            keys=keys,
            values=values,
            tokens=position.shape[0],
            channels=position.shape[1],
            layers=len(keys),
            layer_stride=keys.stride(0),
            NARROW=max(triton.next_power_of_2(position.shape[1]), 16),
            HALF=keys.shape[2] // 2,
            COPY=copy,
            BLOCK=BLOCK,
            EXACT=keys.dtype == torch.float32,
            num_warps=8,
        )
