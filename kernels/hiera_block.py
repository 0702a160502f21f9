"""Products of a Hiera block in Triton: norms are part of those that read them, activations and residuals of those that write them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

MOMENT_ROWS = 16  # rows of a program that takes their moments
MLP_CHANNELS = 160  # up to which the MLP is one launch (docs/kernels/hiera_block.md)
NONE, GELU, RELU = 0, 1, 2


@kernel
def moments_kernel(x, moments, rows, channels, eps, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """x: [rows, channels] -> moments [rows, 2] float32: mean, and one over the deviation of the norm."""
    row, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDE)
    here = (row < rows)[:, None] & (channel < channels)[None, :]
    values = tl.load(x + row.to(tl.int64)[:, None] * channels + channel[None, :], mask=here, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / channels
    centred = tl.where(here, values - mean[:, None], 0.0)
    tl.store(moments + 2 * row, mean, mask=row < rows)
    tl.store(moments + 2 * row + 1, tl.rsqrt(tl.sum(centred * centred, 1) / channels + eps), mask=row < rows)


@kernel
def linear_kernel(
    x, moments, norm_weight, norm_bias, weight, bias, gamma, residual, out, rows, inner, outer, width,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, SCALE: tl.constexpr, ADD: tl.constexpr, POOL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A tile of gamma activation(norm(x) weight' + bias) + residual. x: [rows, inner]; weight: [outer, inner]; the others: [., outer].

    NORM: x is less its mean, over its deviation (`moments`), times norm_weight plus norm_bias, rounded to the dtype of weight.
    POOL: rows are taken by fours, the tokens of a 2 x 2 cell of grids that are `width` wide, and out gets the largest: rows / 4.
    Tiles run down GROUP blocks of rows before they go to the next columns, so that both are found in the L2 cache.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    tall, wide = tl.cdiv(rows, BLOCK_M), tl.cdiv(outer, BLOCK_N)
    group = tl.program_id(0) // (GROUP * wide)
    deep = tl.minimum(tall - group * GROUP, GROUP)
    inside = tl.program_id(0) % (GROUP * wide)
    place = (group * GROUP + inside % deep) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = inside // deep * BLOCK_N + tl.arange(0, BLOCK_N)
    there, known = place < rows, column < outer
    row = place.to(tl.int64)
    if POOL:
        cell, corner = row // 4, row % 4
        line, x_cell = cell // (width // 2), cell % (width // 2)  # lines of cells, of all images
        row = (2 * line + corner // 2) * width + 2 * x_cell + corner % 2
    if NORM:
        mean = tl.load(moments + 2 * row, mask=there, other=0.0)
        shrink = tl.load(moments + 2 * row + 1, mask=there, other=0.0)
    sum_ = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, inner, BLOCK_K):
        channel = first + tl.arange(0, BLOCK_K)
        real = channel < inner
        tile = tl.load(x + row[:, None] * inner + channel[None, :], mask=there[:, None] & real[None, :], other=0.0)
        if NORM:
            gain, offset = tl.load(norm_weight + channel, mask=real, other=0.0), tl.load(norm_bias + channel, mask=real, other=0.0)
            tile = (tile.to(tl.float32) - mean[:, None]) * shrink[:, None] * gain.to(tl.float32)[None, :] + offset.to(tl.float32)[None, :]
        matrix = tl.load(weight + column[None, :].to(tl.int64) * inner + channel[:, None], mask=known[None, :] & real[:, None], other=0.0)
        sum_ = tl.dot(tile.to(matrix.dtype), matrix, sum_, input_precision=precision)
    sum_ += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == 1:
        sum_ = 0.5 * sum_ * (1.0 + tl.erf(sum_ * 0.7071067811865476))
    if ACTIVATION == 2:
        sum_ = tl.maximum(sum_, 0.0)
    if SCALE:
        sum_ *= tl.load(gamma + column, mask=known, other=0.0).to(tl.float32)[None, :]
    if POOL:
        sum_ = tl.max(tl.reshape(sum_, [BLOCK_M // 4, 4, BLOCK_N]), 1)
        place = (group * GROUP + inside % deep) * (BLOCK_M // 4) + tl.arange(0, BLOCK_M // 4)
        there = place < rows // 4
    at = place.to(tl.int64)[:, None] * outer + column[None, :]
    written = there[:, None] & known[None, :]
    if ADD:
        sum_ += tl.load(residual + at, mask=written, other=0.0).to(tl.float32)
    tl.store(out + at, sum_.to(out.dtype.element_ty), mask=written)


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


def tiles(inner: int, outer: int, size: int, capability: int) -> tuple[int, int, int, int, int]:
    """Rows, columns and channels of a tile, warps, stages (docs/kernels/hiera_block.md).

    size: bytes of an element; capability: 80, 86, 90, 120...
    """
    if size == 4:
        return 32, 32, 32, 4, 1
    wide = max(triton.next_power_of_2(outer), 16) if outer <= 128 else 128 if -(-outer // 128) * 128 <= 1.15 * outer else 64
    deep = 64 if inner % 64 == 0 or inner > 256 else 32
    roomy = capability in (80, 90, 100, 103)  # 160 KB of shared memory a block, or more; others have 99
    return 128, wide, deep, 8, 3 if roomy else 2


def moments(x: Tensor, eps: float) -> Tensor:
    """x: [rows, C] -> [rows, 2] float32, for `linear`."""
    found = x.new_empty(len(x), 2, dtype=torch.float32)
    with torch.cuda.device_of(x):
        moments_kernel[(triton.cdiv(len(x), MOMENT_ROWS),)](
            x, found, len(x), x.shape[1], eps, MOMENT_ROWS, triton.next_power_of_2(x.shape[1]), num_warps=8
        )  # fmt: skip
    return found


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor, Tensor] | None = None, activation: int = NONE,
    residual: Tensor | None = None, dtype: torch.dtype | None = None, width: int = 0, gamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """x: [rows, K], weight: [N, K], bias: [N] -> [rows, N] in `dtype` (None: that of weight), on the current stream; all contiguous.

    norm: moments of x, weight and bias of the norm. gamma: [N], factors of the channels. residual: [rows, N], added last. width: of the
    grids whose tokens the rows are, where 2 x 2 cells are max-pooled: [rows / 4, N]; 0: nothing is pooled.
    """
    rows, (outer, inner) = len(x), weight.shape
    out = x.new_empty(rows // 4 if width else rows, outer, dtype=dtype or weight.dtype)
    if out.numel() == 0:
        return out
    major, minor = torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0)
    block_m, block_n, block_k, warps, stages = tiles(inner, outer, weight.element_size(), 10 * major + minor)
    with torch.cuda.device_of(x):
        linear_kernel[(triton.cdiv(rows, block_m) * triton.cdiv(outer, block_n),)](
            x, *(norm or (None, None, None)), weight, bias, gamma, residual, out, rows, inner, outer, width, norm is not None,
            activation, gamma is not None, residual is not None, width > 0, block_m, block_n, block_k, 8, weight.dtype == torch.float32,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out


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
    return (128, 32, 2) if stream == 2 or capability in (90, 100, 103) else (64, 32, 1)


def mlp(x: Tensor, norm: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor, Tensor, Tensor], eps: float) -> Tensor:
    """x: [rows, C] -> x + MLP(norm(x)), [rows, C] in the dtype of x, in one launch on the current stream.

    norm: weight and bias; weights: [H, C], [H], [C, H], [C], all contiguous; C up to `MLP_CHANNELS`.
    """
    out = torch.empty_like(x)
    if not len(x):
        return out
    major, minor = torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0)
    block, deep, stages = mlp_tile(weights[0].element_size(), x.element_size(), 10 * major + minor)
    with torch.cuda.device_of(x):
        mlp_kernel[(triton.cdiv(len(x), block),)](
            x, *norm, *weights, out, *x.shape, len(weights[0]), eps, *parts(x.shape[1]), block, deep,
            weights[0].dtype == torch.float32, num_warps=8, num_stages=stages,
        )  # fmt: skip
    return out
