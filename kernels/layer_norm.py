"""Layer norms over channels in Triton: moments of rows, and rows normalized."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

ROW_NUMBERS = 8192  # numbers that a program reads at once to take moments or to normalize


@triton.jit
def mean_and_rstd(moments, row, mask, channels, size, eps, PARTS: tl.constexpr):
    """Of rows whose moments are those of PARTS groups of `size` channels (the last has the rest):
    Chan's update."""
    mean = tl.zeros(row.shape, tl.float32)
    for part in tl.static_range(PARTS):
        share = tl.minimum(channels - part * size, size).to(tl.float32) / channels
        mean += share * tl.load(moments + (row * PARTS + part) * 2, mask=mask, other=0.0)
    squares = tl.zeros(row.shape, tl.float32)
    for part in tl.static_range(PARTS):
        count = tl.minimum(channels - part * size, size).to(tl.float32)
        off = tl.load(moments + (row * PARTS + part) * 2, mask=mask, other=0.0) - mean
        group_squares = tl.load(moments + (row * PARTS + part) * 2 + 1, mask=mask, other=0.0)
        squares += group_squares + count * off * off
    return mean, tl.rsqrt(squares / channels + eps)


@triton.jit
def normalize_tile(x, in_channels, channels, weight, bias, channel, eps):
    """Layer norm of rows [., WIDE] float32 over the channels that exist."""
    mean = tl.sum(tl.where(in_channels[None, :], x, 0.0), 1) / channels
    centered = tl.where(in_channels[None, :], x - mean[:, None], 0.0)
    x = centered * tl.rsqrt(tl.sum(centered * centered, 1) / channels + eps)[:, None]
    x = x * tl.load(weight + channel, in_channels, 0.0).to(tl.float32)[None, :]
    return x + tl.load(bias + channel, in_channels, 0.0).to(tl.float32)[None, :]


@triton.jit
def normalize_rows(x, weight, bias, channel, eps, DIM: tl.constexpr):
    """Layer norm of rows [., DIM] float32, all of whose channels exist."""
    centered = x - (tl.sum(x, 1) / DIM)[:, None]
    rstd = tl.rsqrt(tl.sum(centered * centered, 1) / DIM + eps)
    scale = tl.load(weight + channel).to(tl.float32)
    shift = tl.load(bias + channel).to(tl.float32)
    return centered * rstd[:, None] * scale[None, :] + shift[None, :]


@kernel
def moments_kernel(x, moments, rows, channels, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Mean, and sum of squared differences from it, of BLOCK rows.

    Pointers, all contiguous:
    x: [rows, channels], any float dtype.
    moments: mean and sum of squared differences [rows, 2] float32.

    rows, channels: int; channels <= WIDE. Grid: (cdiv(rows, BLOCK),).
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDE)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    x_at = x + row.to(tl.int64)[:, None] * channels + channel[None, :]
    values = tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / channels
    centered = tl.where(inside, values - mean[:, None], 0.0)
    tl.store(moments + 2 * row, mean, mask=row < rows)
    tl.store(moments + 2 * row + 1, tl.sum(centered * centered, 1), mask=row < rows)


@kernel
def normalize_kernel(
    x, weight, bias, out, rows, channels, eps, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    """Layer norm of BLOCK rows.

    Pointers, all contiguous:
    x: [rows, channels], any float dtype.
    weight, bias: of the layer norm [channels], any float dtype.
    out: [rows, channels], any float dtype.

    rows, channels: int; channels <= WIDE. eps: float. Grid: (cdiv(rows, BLOCK),).
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDE)
    in_channels = channel < channels
    inside = (row < rows)[:, None] & in_channels[None, :]
    offsets = row.to(tl.int64)[:, None] * channels + channel[None, :]
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    normed = normalize_tile(values, in_channels, channels, weight, bias, channel, eps)
    tl.store(out + offsets, normed.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Moments:
    """Mean and sum of squared differences of rows, for groups of their channels."""

    values: Tensor
    """[rows, groups, 2] float32."""
    group: int
    """Channels of a group; the last group has the rest."""


@dataclass(frozen=True)
class Norm:
    """A layer norm over channels. weight, bias: [C]."""

    weight: Tensor
    bias: Tensor
    eps: float


def _rows_at_once(channels: int) -> tuple[int, int]:
    """Rows of a program, and channels as a power of two."""
    wide = triton.next_power_of_2(channels)
    return max(ROW_NUMBERS // wide, 1), wide


def moments(x: Tensor) -> Moments:
    """Of the rows of x [rows, C], contiguous, on the current stream."""
    rows, channels = x.shape
    out = x.new_empty(rows, 1, 2, dtype=torch.float32)
    block, wide = _rows_at_once(channels)
    if rows:
        with torch.cuda.device_of(x):
            moments_kernel[(triton.cdiv(rows, block),)](
                x=x,
                moments=out,
                rows=rows,
                channels=channels,
                BLOCK=block,
                WIDE=wide,
                num_warps=8,
            )
    return Moments(out, channels)


def normalize(x: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
    """Layer norm of x [rows, C], contiguous, in `dtype`, on the current stream."""
    rows, channels = x.shape
    out = x.new_empty(x.shape, dtype=dtype)
    block, wide = _rows_at_once(channels)
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
                WIDE=wide,
                num_warps=8,
            )
    return out
