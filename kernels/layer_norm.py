"""Layer norms over channels in Triton: statistics of rows, and normalized rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

BLOCK_ELEMENTS = 8192  # elements that a program loads at once


@triton.jit
def mean_and_rstd(statistics, row, mask, channels, size, eps, PARTS: tl.constexpr):
    """Mean and rstd of rows, merged from the statistics of their channel groups (Chan's update).

    statistics: [rows, PARTS, 2], mean and centred sum of squares of PARTS groups of `size` channels
        (the last group has the remaining channels).
    """
    mean = tl.zeros(row.shape, tl.float32)
    for part in tl.static_range(PARTS):
        fraction = tl.minimum(channels - part * size, size).to(tl.float32) / channels
        mean += fraction * tl.load(statistics + (row * PARTS + part) * 2, mask=mask, other=0.0)
    squares = tl.zeros(row.shape, tl.float32)
    for part in tl.static_range(PARTS):
        count = tl.minimum(channels - part * size, size).to(tl.float32)
        delta = tl.load(statistics + (row * PARTS + part) * 2, mask=mask, other=0.0) - mean
        group_squares = tl.load(statistics + (row * PARTS + part) * 2 + 1, mask=mask, other=0.0)
        squares += group_squares + count * delta * delta
    return mean, tl.rsqrt(squares / channels + eps)


@triton.jit
def normalize_tile(x, channel_mask, channels, weight, bias, channel, eps):
    """Layer norm of x [rows, WIDE] float32 over its first `channels` channels."""
    mean = tl.sum(tl.where(channel_mask[None, :], x, 0.0), 1) / channels
    centered = tl.where(channel_mask[None, :], x - mean[:, None], 0.0)
    x = centered * tl.rsqrt(tl.sum(centered * centered, 1) / channels + eps)[:, None]
    x = x * tl.load(weight + channel, channel_mask, 0.0).to(tl.float32)[None, :]
    return x + tl.load(bias + channel, channel_mask, 0.0).to(tl.float32)[None, :]


@triton.jit
def normalize_rows(x, weight, bias, channel, eps, DIM: tl.constexpr):
    """Layer norm of x [rows, DIM] float32, which has no padded channels."""
    centered = x - (tl.sum(x, 1) / DIM)[:, None]
    rstd = tl.rsqrt(tl.sum(centered * centered, 1) / DIM + eps)
    scale = tl.load(weight + channel).to(tl.float32)
    shift = tl.load(bias + channel).to(tl.float32)
    return centered * rstd[:, None] * scale[None, :] + shift[None, :]


@kernel
def row_statistics_kernel(x, statistics, rows, channels, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Mean and centred sum of squares of BLOCK rows.

    Pointers, all contiguous:
    x: [rows, channels], any float dtype.
    statistics: mean and centred sum of squares [rows, 2] float32.

    rows, channels: int; channels <= WIDE. Grid: (cdiv(rows, BLOCK),).
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDE)
    mask = (row < rows)[:, None] & (channel < channels)[None, :]
    x_ptrs = x + row.to(tl.int64)[:, None] * channels + channel[None, :]
    values = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / channels
    centered = tl.where(mask, values - mean[:, None], 0.0)
    tl.store(statistics + 2 * row, mean, mask=row < rows)
    tl.store(statistics + 2 * row + 1, tl.sum(centered * centered, 1), mask=row < rows)


@kernel
def normalize_kernel(
    x, weight, bias, out, rows, channels, eps, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    """Layer norm of BLOCK rows.

    Pointers, all contiguous:
    x: [rows, channels], any float dtype.
    weight, bias: [channels], any float dtype.
    out: [rows, channels], any float dtype.

    rows, channels: int; channels <= WIDE. eps: float. Grid: (cdiv(rows, BLOCK),).
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDE)
    channel_mask = channel < channels
    mask = (row < rows)[:, None] & channel_mask[None, :]
    offsets = row.to(tl.int64)[:, None] * channels + channel[None, :]
    values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    normed = normalize_tile(values, channel_mask, channels, weight, bias, channel, eps)
    tl.store(out + offsets, normed.to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class RowStatistics:
    """Mean and centred sum of squares of rows, for each group of their channels."""

    values: Tensor
    """[rows, groups, 2] float32."""
    group_size: int
    """Channels of a group; the last group has the remaining channels."""


@dataclass(frozen=True)
class Norm:
    """A layer norm over channels. weight, bias: [C]."""

    weight: Tensor
    bias: Tensor
    eps: float


def _rows_at_once(channels: int) -> tuple[int, int]:
    """Rows of a program, and channels as a power of two."""
    padded_channels = triton.next_power_of_2(channels)
    return max(BLOCK_ELEMENTS // padded_channels, 1), padded_channels


def row_statistics(x: Tensor) -> RowStatistics:
    """Statistics of the rows of x [rows, C], contiguous, computed on the current stream."""
    rows, channels = x.shape
    out = x.new_empty(rows, 1, 2, dtype=torch.float32)
    block, padded_channels = _rows_at_once(channels)
    if rows:
        with torch.cuda.device_of(x):
            row_statistics_kernel[(triton.cdiv(rows, block),)](
                x=x,
                statistics=out,
                rows=rows,
                channels=channels,
                BLOCK=block,
                WIDE=padded_channels,
                num_warps=8,
            )
    return RowStatistics(out, channels)


def normalize(x: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
    """Layer norm of x [rows, C], contiguous, in `dtype`, computed on the current stream."""
    rows, channels = x.shape
    out = x.new_empty(x.shape, dtype=dtype)
    block, padded_channels = _rows_at_once(channels)
    if rows:
        with torch.cuda.device_of(x):
            normalize_kernel[(triton.cdiv(rows, block),)](
                x=x,
                weight=norm.weight,
                bias=norm.bias,
                out=out,
                rows=rows,
                channels=channels,
                eps=norm.eps,
                BLOCK=block,
                WIDE=padded_channels,
                num_warps=8,
            )
    return out
