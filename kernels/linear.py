"""Linear layers in Triton, with what comes before and after them: layer norm, activation, pooling, residual.

A layer norm in front of a product is folded into it where the product reads the tokens as they are stored:

    norm(x) W' + b = rstd (x (g W)' - mean colsum(g W)) + (W c + b)

for the norm's weight g and bias c. `fold` makes g W, its column sums and the new bias once; the kernel
applies mean and rstd of a row to its sums. A kernel that writes rows can give their moments at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from sam2_fast.kernels.choices import Form, choose
from sam2_fast.kernels.launch import HOPPER, ROOMY, capability_of, kernel, multiprocessors_of
from torch import Tensor

NONE, GELU, RELU = 0, 1, 2
ROW_NUMBERS = 8192  # numbers that a program reads at once to take moments or to normalize
GROUP = 8  # blocks of rows that share columns of the weight in the L2 cache
WGMMA_FORMS: tuple[Form, ...] = (
    (128, 128, 64, 8, 3), (64, 128, 64, 4, 4), (128, 64, 64, 4, 3), (128, 256, 64, 8, 3), (64, 64, 64, 4, 4), "library",
)  # fmt: skip
"""Rows, columns and channels of a tile, warps, stages; "library": layer norm, product and the rest by torch."""


@kernel
def moments_kernel(x, moments, rows, channels, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """x: [rows, channels] -> moments [rows, 2] float32: the mean, and the sum of squared differences from it."""
    row, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDE)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    values = tl.load(x + row.to(tl.int64)[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / channels
    centered = tl.where(inside, values - mean[:, None], 0.0)
    tl.store(moments + 2 * row, mean, mask=row < rows)
    tl.store(moments + 2 * row + 1, tl.sum(centered * centered, 1), mask=row < rows)


@kernel
def normalize_kernel(x, weight, bias, out, rows, channels, eps, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Layer norm of x [rows, channels] as out [rows, channels]; weight, bias: [channels]."""
    row, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDE)
    known = channel < channels
    inside = (row < rows)[:, None] & known[None, :]
    place = row.to(tl.int64)[:, None] * channels + channel[None, :]
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    centered = tl.where(inside, values - (tl.sum(values, 1) / channels)[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centered * centered, 1) / channels + eps)
    scale = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    normed = centered * rstd[:, None] * scale[None, :] + shift[None, :]
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _mean_and_rstd(moments, row, mask, channels, size, eps, PARTS: tl.constexpr):
    """Of rows whose channels were measured in PARTS groups of `size` (the last has the rest): Chan's update."""
    mean = tl.zeros(row.shape, tl.float32)
    for part in tl.static_range(PARTS):
        share = tl.minimum(channels - part * size, size).to(tl.float32) / channels
        mean += share * tl.load(moments + (row * PARTS + part) * 2, mask=mask, other=0.0)
    squares = tl.zeros(row.shape, tl.float32)
    for part in tl.static_range(PARTS):
        count = tl.minimum(channels - part * size, size).to(tl.float32)
        off = tl.load(moments + (row * PARTS + part) * 2, mask=mask, other=0.0) - mean
        squares += tl.load(moments + (row * PARTS + part) * 2 + 1, mask=mask, other=0.0) + count * off * off
    return mean, tl.rsqrt(squares / channels + eps)


@kernel
def linear_kernel(
    x, moments, column_sums, weight, bias, gamma, residual, out, out_moments, rows, inner, outer, width, part_size, eps,
    PARTS: tl.constexpr, ACTIVATION: tl.constexpr, SCALE: tl.constexpr, ADD: tl.constexpr,
    POOL: tl.constexpr, MEASURE: tl.constexpr, EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A tile of gamma activation(x weight' + bias) + residual. x: [rows, inner]; weight: [outer, inner]; others: [., outer].

    PARTS > 0: a layer norm is folded in (module docstring): moments [rows, PARTS, 2] of part_size channels each,
    column_sums [outer]. POOL: rows are taken by fours, the tokens of a 2 x 2 cell of grids that are `width`
    wide, and out gets the largest: rows / 4. MEASURE: out_moments [rows, blocks of columns, 2] of what is
    written. EVEN: inner is a multiple of BLOCK_K. Tiles run down GROUP blocks of rows before they go to the
    next columns, so that both are found in the L2 cache.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    tall, wide = tl.cdiv(rows, BLOCK_M), tl.cdiv(outer, BLOCK_N)
    group = tl.program_id(0) // (GROUP * wide)
    deep = tl.minimum(tall - group * GROUP, GROUP)
    inside = tl.program_id(0) % (GROUP * wide)
    place = (group * GROUP + inside % deep) * BLOCK_M + tl.arange(0, BLOCK_M)
    column_block = inside // deep
    column = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows, in_columns = place < rows, column < outer
    row = tl.minimum(place, rows - 1).to(tl.int64)  # rows and columns outside are read twice and never written
    if POOL:
        cell, corner = row // 4, row % 4
        line, x_cell = cell // (width // 2), cell % (width // 2)  # lines of cells, of all images
        row = (2 * line + corner // 2) * width + 2 * x_cell + corner % 2
    channel = tl.arange(0, BLOCK_K)
    tile_at = x + row[:, None] * inner + channel[None, :]
    matrix_at = weight + tl.minimum(column, outer - 1)[None, :].to(tl.int64) * inner + channel[:, None]
    accumulator = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, inner, BLOCK_K):
        if EVEN:
            tile, matrix = tl.load(tile_at), tl.load(matrix_at)
        else:
            known = channel < inner - first
            tile = tl.load(tile_at, mask=known[None, :], other=0.0)
            matrix = tl.load(matrix_at, mask=known[:, None], other=0.0)
        accumulator = tl.dot(tile.to(matrix.dtype), matrix, accumulator, input_precision=precision)
        tile_at += BLOCK_K
        matrix_at += BLOCK_K
    if PARTS > 0:
        mean, rstd = _mean_and_rstd(moments, row, in_rows, inner, part_size, eps, PARTS)
        sums = tl.load(column_sums + column, mask=in_columns, other=0.0)
        accumulator = (accumulator - mean[:, None] * sums[None, :]) * rstd[:, None]
    accumulator += tl.load(bias + column, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == 1:
        accumulator = 0.5 * accumulator * (1.0 + tl.erf(accumulator * 0.7071067811865476))
    if ACTIVATION == 2:
        accumulator = tl.maximum(accumulator, 0.0)
    if SCALE:
        accumulator *= tl.load(gamma + column, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    if POOL:
        accumulator = tl.max(tl.reshape(accumulator, [BLOCK_M // 4, 4, BLOCK_N]), 1)
        place = (group * GROUP + inside % deep) * (BLOCK_M // 4) + tl.arange(0, BLOCK_M // 4)
        in_rows = place < rows // 4
    at = place.to(tl.int64)[:, None] * outer + column[None, :]
    written = in_rows[:, None] & in_columns[None, :]
    if ADD:
        accumulator += tl.load(residual + at, mask=written, other=0.0).to(tl.float32)
    value = accumulator.to(out.dtype.element_ty)
    tl.store(out + at, value, mask=written)
    if MEASURE:
        stored = tl.where(in_columns[None, :], value.to(tl.float32), 0.0)
        count = tl.minimum(outer - column_block * BLOCK_N, BLOCK_N).to(tl.float32)
        mean = tl.sum(stored, 1) / count
        centered = tl.where(in_columns[None, :], stored - mean[:, None], 0.0)
        target = out_moments + (place.to(tl.int64) * wide + column_block) * 2
        tl.store(target, mean, mask=in_rows)
        tl.store(target + 1, tl.sum(centered * centered, 1), mask=in_rows)


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


@dataclass(frozen=True)
class Layer:
    """A linear layer, and the layer norm in front of it, if any. weight: [N, K], bias: [N]."""

    weight: Tensor
    bias: Tensor
    norm: Norm | None = None
    folded: tuple[Tensor, Tensor, Tensor] | None = None
    """norm.weight * weight [N, K], its sums over K [N] float32, weight norm.bias + bias [N] float32."""


def fold(weight: Tensor, bias: Tensor, norm: Norm) -> Layer:
    """A linear layer behind a layer norm. weight: [N, K] in the dtype of products; all contiguous."""
    wide = weight.float()
    scaled = (wide * norm.weight.float()).to(weight.dtype).contiguous()
    # of the rounded matrix, so that a row's mean cancels exactly
    return Layer(weight, bias, norm, (scaled, scaled.float().sum(1), wide @ norm.bias.float() + bias.float()))


def _rows_at_once(channels: int) -> tuple[int, int]:
    wide = triton.next_power_of_2(channels)
    return max(ROW_NUMBERS // wide, 1), wide


def moments(x: Tensor) -> Moments:
    """Of the rows of x [rows, C], contiguous, on the current stream."""
    found = x.new_empty(len(x), 1, 2, dtype=torch.float32)
    block, wide = _rows_at_once(x.shape[1])
    if len(x):
        with torch.cuda.device_of(x):
            moments_kernel[(triton.cdiv(len(x), block),)](x, found, len(x), x.shape[1], BLOCK=block, WIDE=wide, num_warps=8)
    return Moments(found, x.shape[1])


def normalize(x: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
    """Layer norm of x [rows, C], contiguous, in `dtype`, on the current stream."""
    out = x.new_empty(x.shape, dtype=dtype)
    block, wide = _rows_at_once(x.shape[1])
    if len(x):
        with torch.cuda.device_of(x):
            normalize_kernel[(triton.cdiv(len(x), block),)](
                x, norm.weight, norm.bias, out, *x.shape, norm.eps, BLOCK=block, WIDE=wide, num_warps=8
            )  # fmt: skip
    return out


def behind_norm(x: Tensor, layer: Layer, measured: Moments | None = None) -> tuple[Tensor, Moments | None]:
    """What `linear` takes for a layer behind a norm: x [rows, C] and its moments if the norm can be folded in, else x normalized.

    measured: the moments of x, if they are known.
    """
    assert layer.norm is not None
    if x.dtype == layer.weight.dtype != torch.float32:
        return x, measured or moments(x)
    return normalize(x, layer.norm, layer.weight.dtype), None


def tiles(rows: int, inner: int, outer: int, size: int, capability: int, multiprocessors: int) -> tuple[int, int, int, int, int]:
    """Rows, columns and channels of a tile, warps, stages (docs/kernels/hiera_block.md).

    size: bytes of an element; capability: 80, 86, 90, 120...
    """
    if size == 4:
        return 32, 32, 32, 4, 1
    wide = max(triton.next_power_of_2(outer), 16) if outer <= 128 else 128 if -(-outer // 128) * 128 <= 1.15 * outer else 64
    deep = 64 if inner % 64 == 0 or inner > 256 else 32
    if capability in HOPPER and triton.cdiv(rows, 128) * triton.cdiv(outer, wide) < 2 * multiprocessors:
        return 64, wide, deep, 4, 4
    return 128, wide, deep, 8, 3 if capability in ROOMY else 2


def _form(layer: Layer, rows: int, device_of: Tensor, options: tuple[int, ...]) -> Form:
    outer, inner = layer.weight.shape
    size, capability = layer.weight.element_size(), capability_of(device_of)
    default = tiles(rows, inner, outer, size, capability, multiprocessors_of(device_of))
    if size == 4:
        return default
    forms = WGMMA_FORMS if capability in ROOMY else [(*f[:4], 2) for f in WGMMA_FORMS[:3] if not isinstance(f, str)] + ["library"]
    key = (size, triton.next_power_of_2(rows), inner, outer, *options)
    return choose(device_of.device, "linear", key, default, forms)


def linear(x: Tensor, layer: Layer, measured: Moments | None = None, **options: Any) -> Tensor:
    """`measured_linear` without the moments of the result."""
    return measured_linear(x, layer, measured, **options, measure=False)[0]


def measured_linear(
    x: Tensor, layer: Layer, measured: Moments | None = None, *, activation: int = NONE, residual: Tensor | None = None,
    dtype: torch.dtype | None = None, width: int = 0, gamma: Tensor | None = None, measure: bool = True,
) -> tuple[Tensor, Moments | None]:  # fmt: skip
    """x: [rows, K] through a layer [N, K] -> [rows, N] in `dtype` (None: that of the weight), and with `measure` its moments.

    measured: the moments of x, where the layer norm in front of the layer is to be folded in, whose input x
    then is. residual: [rows, N], added last. gamma: [N], factors of the channels. width: of the grids whose
    tokens the rows are, if 2 x 2 cells are max-pooled: [rows / 4, N]; 0: no pooling. All contiguous, on the
    current stream.
    """
    rows, (outer, inner) = len(x), layer.weight.shape
    out = x.new_empty(rows // 4 if width else rows, outer, dtype=dtype or layer.weight.dtype)
    if out.numel() == 0:
        return out, Moments(x.new_empty(len(out), 1, 2, dtype=torch.float32), outer) if measure else None
    options = (activation, int(measured is not None), int(residual is not None), int(width > 0))
    form = _form(layer, rows, x, options)
    if isinstance(form, str):
        result = _by_library(x, layer, measured is not None, activation, residual, out.dtype, width, gamma)
        return result, moments(result) if measure else None
    block_m, block_n, block_k, warps, stages = form
    weight, sums, bias = layer.weight, None, layer.bias
    if measured is not None:
        assert layer.folded is not None and layer.norm is not None
        weight, sums, bias = layer.folded
    blocks = triton.cdiv(outer, block_n)
    found = x.new_empty(len(out), blocks, 2, dtype=torch.float32) if measure else None
    with torch.cuda.device_of(x):
        linear_kernel[(triton.cdiv(rows, block_m) * blocks,)](
            x, measured.values if measured else None, sums, weight, bias, gamma, residual, out, found,
            rows, inner, outer, width, measured.group if measured else 0, layer.norm.eps if measured and layer.norm else 0.0,
            PARTS=measured.values.shape[1] if measured else 0, ACTIVATION=activation,
            SCALE=gamma is not None, ADD=residual is not None, POOL=width > 0, MEASURE=measure, EVEN=inner % block_k == 0,
            BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, GROUP=GROUP, EXACT=weight.dtype == torch.float32,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out, None if found is None else Moments(found, block_n)


def _by_library(
    x: Tensor, layer: Layer, normed: bool, activation: int, residual: Tensor | None, dtype: torch.dtype, width: int, gamma: Tensor | None
) -> Tensor:
    """The same by torch: layer norm, product with bias, and the rest as operations of their own."""
    weight = layer.weight
    with torch.autocast(x.device.type, enabled=False):
        if normed:
            assert layer.norm is not None
            scale, shift = layer.norm.weight.to(x.dtype), layer.norm.bias.to(x.dtype)
            x = F.layer_norm(x, (x.shape[1],), scale, shift, layer.norm.eps)
        y = F.linear(x.to(weight.dtype), weight, layer.bias.to(weight.dtype))
        if activation:
            y = F.gelu(y) if activation == GELU else F.relu(y)
        if gamma is not None:
            y = y * gamma
        if width:
            grid = y.unflatten(0, (-1, 2, width // 2, 2))
            y = grid.amax((1, 3)).flatten(0, 1)
        return (y if residual is None else residual + y).to(dtype)
