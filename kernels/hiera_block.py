"""The MLP of a Hiera block with few channels as one Triton kernel; the block's other products are `linear`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import HOPPER, capability_of, kernel
from torch import Tensor

MLP_CHANNELS = 160  # up to which the MLP is one launch (docs/kernels/hiera_block.md)


@triton.jit
def _part(x, norm_weight, norm_bias, row, there, channel, channels, mean, shrink, kind: tl.constexpr):
    """Some channels of a row after the norm, rounded to `kind`."""
    real = channel < channels
    tile = tl.load(x + row[:, None] * channels + channel[None, :], mask=there[:, None] & real[None, :], other=0.0).to(tl.float32)
    gain, offset = tl.load(norm_weight + channel, mask=real, other=0.0), tl.load(norm_bias + channel, mask=real, other=0.0)
    return ((tile - mean[:, None]) * shrink[:, None] * gain.to(tl.float32)[None, :] + offset.to(tl.float32)[None, :]).to(kind)


@triton.jit
def _written(out, x, bias, sum_, row, there, channel, channels):
    """Some channels of the result: sums, bias and residual."""
    real = channel < channels
    at, here = row[:, None] * channels + channel[None, :], there[:, None] & real[None, :]
    value = (
        sum_ + tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)[None, :] + tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    )
    tl.store(out + at, value.to(out.dtype.element_ty), mask=here)


@kernel
def mlp_kernel(
    x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, out, rows, channels, hidden, eps,
    LOW: tl.constexpr, REST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """x + MLP(norm(x)) of BLOCK_M rows with GELU, BLOCK_H hidden channels at a time: the hidden layer is never written.

    x, out: [rows, channels]; weight1: [hidden, channels], weight2: [channels, hidden]. Channels are taken as LOW + REST powers of two
    (REST 0: LOW alone), of which the last may not exist.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    kind: tl.constexpr = weight1.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    there, low = row < rows, tl.arange(0, LOW)
    here = there[:, None] & (low < channels)[None, :]
    tile = tl.load(x + row[:, None] * channels + low[None, :], mask=here, other=0.0).to(tl.float32)
    mean = tl.sum(tile, 1)
    if REST > 0:
        rest = LOW + tl.arange(0, REST)
        there_too = there[:, None] & (rest < channels)[None, :]
        more = tl.load(x + row[:, None] * channels + rest[None, :], mask=there_too, other=0.0).to(tl.float32)
        mean += tl.sum(more, 1)
    mean = mean / channels
    centred = tl.where(here, tile - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1)
    if REST > 0:
        centred_too = tl.where(there_too, more - mean[:, None], 0.0)
        variance += tl.sum(centred_too * centred_too, 1)
        sum_rest = tl.zeros([BLOCK_M, REST], tl.float32)
    shrink = tl.rsqrt(variance / channels + eps)
    normed = _part(x, norm_weight, norm_bias, row, there, low, channels, mean, shrink, kind)
    if REST > 0:
        normed_rest = _part(x, norm_weight, norm_bias, row, there, rest, channels, mean, shrink, kind)
    sum_low = tl.zeros([BLOCK_M, LOW], tl.float32)
    for first in range(0, hidden, BLOCK_H):
        unit = first + tl.arange(0, BLOCK_H)
        real = unit < hidden
        matrix = tl.load(weight1 + unit[None, :] * channels + low[:, None], mask=real[None, :] & (low < channels)[:, None], other=0.0)
        value = tl.dot(normed, matrix, input_precision=precision)
        if REST > 0:
            matrix = tl.load(weight1 + unit[None, :] * channels + rest[:, None], mask=real[None, :] & (rest < channels)[:, None], other=0.0)
            value = tl.dot(normed_rest, matrix, value, input_precision=precision)
        value += tl.load(bias1 + unit, mask=real, other=0.0).to(tl.float32)[None, :]
        value = (0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))).to(kind)
        matrix = tl.load(weight2 + low[None, :] * hidden + unit[:, None], mask=(low < channels)[None, :] & real[:, None], other=0.0)
        sum_low = tl.dot(value, matrix, sum_low, input_precision=precision)
        if REST > 0:
            matrix = tl.load(weight2 + rest[None, :] * hidden + unit[:, None], mask=(rest < channels)[None, :] & real[:, None], other=0.0)
            sum_rest = tl.dot(value, matrix, sum_rest, input_precision=precision)
    _written(out, x, bias2, sum_low, row, there, low, channels)
    if REST > 0:
        _written(out, x, bias2, sum_rest, row, there, rest, channels)


def parts(channels: int) -> tuple[int, int]:
    """Channels as one power of two, or two where that leaves fewer that do not exist: 96 = 64 + 32, 112 in 128, 144 = 128 + 16."""
    whole = max(triton.next_power_of_2(channels), 16)
    low = whole // 2
    rest = max(triton.next_power_of_2(channels - low), 16)
    return (low, rest) if low >= 16 and low + rest < whole else (whole, 0)


def mlp_tile(size: int, stream: int, capability: int) -> tuple[int, int, int]:
    """Rows, hidden channels and stages of `mlp_kernel`, eight warps. size, stream: bytes of a matrix's element and of a token's."""
    if size == 4:
        return 32, 32, 1
    return (128, 32, 2) if stream == 2 or capability in HOPPER else (64, 32, 1)


def mlp(x: Tensor, norm: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor, Tensor, Tensor], eps: float) -> Tensor:
    """x: [rows, C] -> x + MLP(norm(x)), [rows, C] in the dtype of x, in one launch on the current stream.

    norm: weight and bias; weights: [H, C], [H], [C, H], [C], all contiguous; C up to `MLP_CHANNELS`.
    """
    out = torch.empty_like(x)
    if not len(x):
        return out
    block, deep, stages = mlp_tile(weights[0].element_size(), x.element_size(), capability_of(x))
    with torch.cuda.device_of(x):
        mlp_kernel[(triton.cdiv(len(x), block),)](
            x, *norm, *weights, out, *x.shape, len(weights[0]), eps, *parts(x.shape[1]), block, deep,
            weights[0].dtype == torch.float32, num_warps=8, num_stages=stages,
        )  # fmt: skip
    return out
