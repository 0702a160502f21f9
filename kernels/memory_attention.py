"""Projections of memory attention in Triton, with rotary encoding applied before the store.

One kernel projects memories to keys, one applies a layer norm and a linear layer to tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels import memory_slots
from sam2_fast.kernels.launch import kernel
from sam2_fast.kernels.layer_norm import normalize_rows
from sam2_fast.kernels.linear import Layer
from torch import Tensor

BLOCK = 64  # tokens of a program of `keys_kernel`
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

    The encoding of a map's tokens is position + temporal row, and their keys are rotated; the
    encoding of pointer tokens is loaded from the slot's added_address.

    Pointers, all contiguous except keys:
    slots: a `memory_slots.Slot` per row [S, SLOT_FIELDS] int64; addresses are those of tensors in
        the dtype of values.
    position: positional encoding of a map [tokens, channels], any float dtype.
    temporal: temporal encodings [T, channels], any float dtype.
    table: rotary table of a map's tokens, cosines, then sines [2, tokens, HALF] float32.
    weight: key projections of the layers [layers, 2 * HALF, channels], compute dtype.
    bias: [layers, 2 * HALF], any float dtype.
    keys: result, channels as [even channels | odd channels] [layers, all keys, 2 * HALF], compute
        dtype; layer_stride is the stride between layers, in elements.
    values: result if COPY [all keys, channels], compute dtype.

    tokens, layers, layer_stride: int. channels: int, memory_dim; NARROW: the same as a power of
    two. Grid: (cdiv(maximum tokens of a slot, BLOCK), S).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    slot = slots + tl.program_id(1) * SLOT_FIELDS
    memory = tl.load(slot + SLOT_TOKENS_ADDRESS).to(tl.pointer_type(values.dtype.element_ty))
    added = tl.load(slot + SLOT_ADDED_ADDRESS)
    first_key = tl.load(slot + SLOT_FIRST_KEY)
    count = tl.load(slot + SLOT_NUM_TOKENS)
    temporal_row = tl.load(slot + SLOT_TEMPORAL_ROW)
    if tl.program_id(0) * BLOCK >= count:  # the slot is unused, or has no token in this block
        return
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, NARROW)
    half = tl.arange(0, HALF)
    token_mask = (token < count)[:, None]
    mask = token_mask & (channel < channels)[None, :]
    offsets = token[:, None] * channels + channel[None, :]
    x = tl.load(memory + offsets, mask=mask, other=0.0)
    if COPY:
        value_ptrs = values + (first_key + token)[:, None] * channels + channel[None, :]
        tl.store(value_ptrs, x, mask=mask)
    if added == 0:
        temporal_ptrs = temporal + temporal_row * channels + channel
        time = tl.load(temporal_ptrs, mask=channel < channels, other=0.0).to(tl.float32)
        encoding = tl.load(position + offsets, mask=mask, other=0.0).to(tl.float32)
        encoding = encoding + time[None, :]
    else:
        added_ptrs = added.to(tl.pointer_type(values.dtype.element_ty)) + offsets
        encoding = tl.load(added_ptrs, mask=mask, other=0.0).to(tl.float32)
    x = (x.to(tl.float32) + encoding.to(x.dtype).to(tl.float32)).to(x.dtype)
    channel_mask = (channel < channels)[:, None]
    angle = token[:, None] * HALF + half[None, :]
    rotate_mask = (token < tl.where(added == 0, count, 0))[:, None] & (half < HALF)[None, :]
    cos = tl.load(table + angle, mask=rotate_mask, other=1.0)
    sin = tl.load(table + tokens * HALF + angle, mask=rotate_mask, other=0.0)
    weight_ptrs = weight + 2 * half[None, :] * channels + channel[:, None]
    key_ptrs = keys + (first_key + token)[:, None] * (2 * HALF) + half[None, :]
    for layer in range(layers):
        bias_ptrs = bias + layer * 2 * HALF + 2 * half
        even_weight = tl.load(weight_ptrs, mask=channel_mask, other=0.0)
        even = tl.dot(x, even_weight, input_precision=precision)
        even = even + tl.load(bias_ptrs).to(tl.float32)[None, :]
        odd_weight = tl.load(weight_ptrs + channels, mask=channel_mask, other=0.0)
        odd = tl.dot(x, odd_weight, input_precision=precision)
        odd += tl.load(bias_ptrs + 1).to(tl.float32)[None, :]
        tl.store(key_ptrs, (even * cos - odd * sin).to(keys.dtype.element_ty), mask=token_mask)
        tl.store(
            key_ptrs + HALF, (even * sin + odd * cos).to(keys.dtype.element_ty), mask=token_mask
        )
        weight_ptrs += 2 * HALF * channels
        key_ptrs += layer_stride


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
    """Layer norm and 2 * BLOCK_N columns of a linear layer for BLOCK tokens.

    The output has parts of CHANNELS columns. The first rotated_parts are rotated, with channels
    stored as [even channels | odd channels]; the other parts are stored in their usual order.

    Pointers, all contiguous:
    x: tokens [rows, CHANNELS], any float dtype.
    norm_weight, norm_bias: of the layer norm [CHANNELS], any float dtype.
    table: rotary table, cosines, then sines [2, tokens, HALF] float32; repeats every `tokens` rows.
    weight: [parts * CHANNELS, CHANNELS], compute dtype.
    bias: [parts * CHANNELS], any float dtype.
    out: [parts, rows, CHANNELS], compute dtype.

    rows, tokens: int. rotated_parts: int, number of rotated parts. eps: float, of the layer norm.
    Grid: (cdiv(rows, BLOCK), parts * cdiv(HALF, BLOCK_N)).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    column_blocks: tl.constexpr = (HALF + BLOCK_N - 1) // BLOCK_N
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNELS)
    part = tl.program_id(1) // column_blocks
    column_block = tl.program_id(1) % column_blocks
    column = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = (row < rows)[:, None]
    x_ptrs = x + row.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    tile = tl.load(x_ptrs, mask=row_mask, other=0.0).to(tl.float32)
    normed = normalize_rows(tile, norm_weight, norm_bias, channel, eps, CHANNELS)
    normed = normed.to(weight.dtype.element_ty)
    is_rotated = part < rotated_parts
    first = part * CHANNELS + tl.where(is_rotated, 2 * column, column)
    second = tl.where(is_rotated, first + 1, first + HALF)
    column_mask = column < HALF
    first_ptrs = weight + first[None, :] * CHANNELS + channel[:, None]
    first_weight = tl.load(first_ptrs, mask=column_mask[None, :], other=0.0)
    second_ptrs = weight + second[None, :] * CHANNELS + channel[:, None]
    second_weight = tl.load(second_ptrs, mask=column_mask[None, :], other=0.0)
    first_result = tl.dot(normed, first_weight, input_precision=precision)
    second_result = tl.dot(normed, second_weight, input_precision=precision)
    first_result += tl.load(bias + first, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    second_result += tl.load(bias + second, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    angle = (row % tokens)[:, None] * HALF + column[None, :]
    store_mask = row_mask & column_mask[None, :]
    rotate_mask = (row < tl.where(is_rotated, rows, 0))[:, None] & column_mask[None, :]
    cos = tl.load(table + angle, mask=rotate_mask, other=1.0)
    sin = tl.load(table + tokens * HALF + angle, mask=rotate_mask, other=0.0)
    out_ptrs = out + (part.to(tl.int64) * rows + row)[:, None] * CHANNELS + column[None, :]
    result = first_result * cos - second_result * sin
    tl.store(out_ptrs, result.to(out.dtype.element_ty), mask=store_mask)
    result = first_result * sin + second_result * cos
    tl.store(out_ptrs + HALF, result.to(out.dtype.element_ty), mask=store_mask)


def projection_tile(size: int) -> tuple[int, int, int]:
    """BLOCK, BLOCK_N and warps of `project_kernel`.

    size: bytes per element.
    """
    return (16, 16, 4) if size == 4 else (64, 64, 4)


def project(x: Tensor, layer: Layer, table: Tensor, rotated_parts: int) -> Tensor:
    """Layer norm and linear layer of x [B, N, C]: [parts, B, N, C] in the dtype of the weight.

    layer: weight [parts * C, C]; C is a power of two.
    table: rotary table [2, N, C / 2] float32.
    rotated_parts: number of parts that are rotated, from the first on; their channels are stored as
        [even channels | odd channels].
    All contiguous; computed on the current stream.
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
            rotated_parts=rotated_parts,
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
    """Copy one row from its address, or zeros if the address is 0.

    Pointers, all contiguous:
    addresses: of rows with `channels` elements in the dtype of `like` [R] int64.
    like: any tensor in the dtype of the rows; not loaded.
    out: [R, channels], any float dtype.

    channels: int <= BLOCK. Grid: (R,).
    """
    channel = tl.arange(0, BLOCK)
    address = tl.load(addresses + tl.program_id(0))
    mask = channel < tl.where(address == 0, 0, channels)
    row_ptrs = address.to(tl.pointer_type(like.dtype.element_ty)) + channel
    row = tl.load(row_ptrs, mask=mask, other=0.0)
    out_ptrs = out + tl.program_id(0) * channels + channel
    tl.store(out_ptrs, row.to(out.dtype.element_ty), mask=channel < channels)


def gather_rows(addresses: Tensor, like: Tensor, out: Tensor) -> None:
    """Fill `out` [R, C] with the rows at `addresses` [R] int64, on the current stream.

    The rows have the dtype of `like`; a row with address 0 is filled with zeros.
    """
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
    max_tokens: int,
    position: Tensor,
    temporal: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
    keys: Tensor,
    values: Tensor,
    copy: bool,
) -> None:
    """Fill `keys` [layers, all keys, C], and with `copy` also `values` [all keys, memory_dim].

    slots: [S, SLOT_FIELDS] int64; the tensors that they point to are contiguous, in the dtype of
        `values`, and must outlive the launch.
    max_tokens: maximum number of tokens of a slot.
    position, temporal, table: as in `keys_kernel`.
    weight: [layers, C, memory_dim]; bias: [layers, C]; C is a power of two.
    Computed on the current stream.
    """
    with torch.cuda.device_of(keys):
        keys_kernel[triton.cdiv(max_tokens, BLOCK), len(slots)](
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
