"""The MLP of a Hiera block with few channels as one Triton kernel.

The other linear layers of the block are `linear.linear`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.activations import gelu
from sam2_fast.kernels.launch import HOPPER, capability_of, kernel
from torch import Tensor

MLP_CHANNELS = 160  # maximum for the MLP in one launch (docs/kernels/hiera_block.md)


@triton.jit
def _normalized(
    x, norm_weight, norm_bias, row, row_mask, channel, channels, mean, rstd, dtype: tl.constexpr
):
    """Channels `channel` of rows after the layer norm, rounded to `dtype`."""
    channel_mask = channel < channels
    x_ptrs = x + row[:, None] * channels + channel[None, :]
    mask = row_mask[:, None] & channel_mask[None, :]
    tile = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(norm_weight + channel, mask=channel_mask, other=0.0)
    shift = tl.load(norm_bias + channel, mask=channel_mask, other=0.0)
    normed = (tile - mean[:, None]) * rstd[:, None] * scale.to(tl.float32)[None, :]
    return (normed + shift.to(tl.float32)[None, :]).to(dtype)


@triton.jit
def _store(out, x, bias, accumulator, row, row_mask, channel, channels):
    """Store channels `channel` of accumulator + bias + residual."""
    channel_mask = channel < channels
    offsets = row[:, None] * channels + channel[None, :]
    mask = row_mask[:, None] & channel_mask[None, :]
    shift = tl.load(bias + channel, mask=channel_mask, other=0.0).to(tl.float32)
    result = accumulator + shift[None, :]
    result = result + tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=mask)


@kernel
def mlp_kernel(
    x,
    norm_weight,
    norm_bias,
    weight1,
    bias1,
    weight2,
    bias2,
    out,
    rows,
    channels,
    hidden,
    eps,
    LOW: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    EXACT: tl.constexpr,
):
    """x + MLP(norm(x)) of BLOCK_M rows, with GELU.

    BLOCK_H hidden channels are computed at a time; the hidden layer is never stored.

    Pointers, all contiguous:
    x: [rows, channels], any float dtype.
    norm_weight, norm_bias: of the layer norm [channels], any float dtype.
    weight1: [hidden, channels], compute dtype.
    bias1: [hidden], any float dtype.
    weight2: [channels, hidden], compute dtype.
    bias2: [channels], any float dtype.
    out: [rows, channels], dtype of x.

    rows, channels, hidden: int. eps: float, of the layer norm. LOW + REST >= channels: the
    channels are processed in two parts of power-of-two size; REST may be 0.
    Grid: (cdiv(rows, BLOCK_M),).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    dtype: tl.constexpr = weight1.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = row < rows
    low = tl.arange(0, LOW)
    low_mask = row_mask[:, None] & (low < channels)[None, :]
    low_ptrs = x + row[:, None] * channels + low[None, :]
    low_tile = tl.load(low_ptrs, mask=low_mask, other=0.0).to(tl.float32)
    mean = tl.sum(low_tile, 1)
    if REST > 0:
        rest = LOW + tl.arange(0, REST)
        rest_mask = row_mask[:, None] & (rest < channels)[None, :]
        rest_ptrs = x + row[:, None] * channels + rest[None, :]
        rest_tile = tl.load(rest_ptrs, mask=rest_mask, other=0.0).to(tl.float32)
        mean += tl.sum(rest_tile, 1)
    mean = mean / channels
    low_centered = tl.where(low_mask, low_tile - mean[:, None], 0.0)
    variance = tl.sum(low_centered * low_centered, 1)
    if REST > 0:
        rest_centered = tl.where(rest_mask, rest_tile - mean[:, None], 0.0)
        variance += tl.sum(rest_centered * rest_centered, 1)
        rest_accumulator = tl.zeros([BLOCK_M, REST], tl.float32)
    rstd = tl.rsqrt(variance / channels + eps)
    low_normed = _normalized(
        x, norm_weight, norm_bias, row, row_mask, low, channels, mean, rstd, dtype
    )
    if REST > 0:
        rest_normed = _normalized(
            x, norm_weight, norm_bias, row, row_mask, rest, channels, mean, rstd, dtype
        )
    low_accumulator = tl.zeros([BLOCK_M, LOW], tl.float32)
    for start in range(0, hidden, BLOCK_H):
        unit = start + tl.arange(0, BLOCK_H)
        hidden_mask = unit < hidden
        weight_ptrs = weight1 + unit[None, :] * channels + low[:, None]
        mask = hidden_mask[None, :] & (low < channels)[:, None]
        matrix = tl.load(weight_ptrs, mask=mask, other=0.0)
        value = tl.dot(low_normed, matrix, input_precision=precision)
        if REST > 0:
            weight_ptrs = weight1 + unit[None, :] * channels + rest[:, None]
            mask = hidden_mask[None, :] & (rest < channels)[:, None]
            matrix = tl.load(weight_ptrs, mask=mask, other=0.0)
            value = tl.dot(rest_normed, matrix, value, input_precision=precision)
        value += tl.load(bias1 + unit, mask=hidden_mask, other=0.0).to(tl.float32)[None, :]
        value = gelu(value).to(dtype)
        weight_ptrs = weight2 + low[None, :] * hidden + unit[:, None]
        mask = (low < channels)[None, :] & hidden_mask[:, None]
        matrix = tl.load(weight_ptrs, mask=mask, other=0.0)
        low_accumulator = tl.dot(value, matrix, low_accumulator, input_precision=precision)
        if REST > 0:
            weight_ptrs = weight2 + rest[None, :] * hidden + unit[:, None]
            mask = (rest < channels)[None, :] & hidden_mask[:, None]
            matrix = tl.load(weight_ptrs, mask=mask, other=0.0)
            rest_accumulator = tl.dot(value, matrix, rest_accumulator, input_precision=precision)
    _store(out, x, bias2, low_accumulator, row, row_mask, low, channels)
    if REST > 0:
        _store(out, x, bias2, rest_accumulator, row, row_mask, rest, channels)


def split_channels(channels: int) -> tuple[int, int]:
    """LOW and REST of `mlp_kernel`: two powers of two if they need less padding than one.

    96 channels are 64 + 32, 144 are 128 + 16; 112 are padded to 128 + 0.
    """
    padded = max(triton.next_power_of_2(channels), 16)
    low = padded // 2
    rest = max(triton.next_power_of_2(channels - low), 16)
    return (low, rest) if low >= 16 and low + rest < padded else (padded, 0)


def mlp_tile(weight_bytes: int, token_bytes: int, capability: int) -> tuple[int, int, int]:
    """Rows, hidden channels and stages of `mlp_kernel`, which has eight warps.

    weight_bytes, token_bytes: bytes per element of the matrices and of the tokens.
    """
    if weight_bytes == 4:
        return 32, 32, 1
    return (128, 32, 2) if token_bytes == 2 or capability in HOPPER else (64, 32, 1)


def mlp(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    eps: float,
) -> Tensor:
    """x + MLP(norm(x)) [rows, C] in the dtype of x, in one launch on the current stream.

    x: [rows, C], with C up to `MLP_CHANNELS`. norm: weight and bias. weights: [H, C], [H], [C, H],
    [C]. All contiguous.
    """
    out = torch.empty_like(x)
    rows, channels = x.shape
    if not rows:
        return out
    norm_weight, norm_bias = norm
    weight1, bias1, weight2, bias2 = weights
    low, rest = split_channels(channels)
    block, hidden_block, stages = mlp_tile(
        weight1.element_size(), x.element_size(), capability_of(x)
    )
    with torch.cuda.device_of(x):
        mlp_kernel[(triton.cdiv(rows, block),)](
            x=x,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            weight1=weight1,
            bias1=bias1,
            weight2=weight2,
            bias2=bias2,
            out=out,
            rows=rows,
            channels=channels,
            hidden=len(weight1),
            eps=eps,
            LOW=low,
            REST=rest,
            BLOCK_M=block,
            BLOCK_H=hidden_block,
            EXACT=weight1.dtype == torch.float32,
            num_warps=8,
            num_stages=stages,
        )
    return out
