"""Linear layers in Triton, with what comes before and after them: layer norm, activation, pooling,
residual.

A layer norm in front of a product is folded into it where the product reads the tokens as they are
stored:

    norm(x) W' + b = rstd (x (g W)' - mean colsum(g W)) + (W c + b)

for the norm's weight g and bias c. `fold` makes g W, its column sums and the new bias once; the
kernel applies mean and rstd of a row to its sums. A kernel that writes rows can give their moments
at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from sam2_fast.kernels.activations import gelu
from sam2_fast.kernels.choices import Form, choose
from sam2_fast.kernels.launch import HOPPER, ROOMY, capability_of, kernel, multiprocessors_of
from sam2_fast.kernels.layer_norm import Moments, Norm, mean_and_rstd, moments, normalize
from torch import Tensor

NONE, GELU, RELU = 0, 1, 2
GROUP = 8  # blocks of rows that share columns of the weight in the L2 cache
WGMMA_FORMS: tuple[Form, ...] = (
    (128, 128, 64, 8, 3),
    (64, 128, 64, 4, 4),
    (128, 64, 64, 4, 3),
    (128, 256, 64, 8, 3),
    (64, 64, 64, 4, 4),
    "library",
)
"""Rows, columns and channels of a tile, warps, stages; "library": layer norm, product and the rest
by torch."""


@kernel
def linear_kernel(
    x,
    moments,
    column_sums,
    weight,
    bias,
    gamma,
    residual,
    out,
    out_moments,
    rows,
    inner,
    outer,
    width,
    part_size,
    eps,
    PARTS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
    ADD: tl.constexpr,
    POOL: tl.constexpr,
    MEASURE: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EXACT: tl.constexpr,
):
    """A tile of gamma * activation(x weight' + bias) + residual.

    Pointers, all contiguous:
    x: [rows, inner], compute dtype, or any float dtype that is converted to it.
    moments: of the rows of x [rows, PARTS, 2] float32; PARTS > 0: a layer norm is folded in.
    column_sums: of weight over inner [outer] float32; PARTS > 0.
    weight: [outer, inner], compute dtype.
    bias: [outer], any float dtype.
    gamma: factors of the channels [outer], any float dtype; SCALE.
    residual: [rows, outer], any float dtype; ADD.
    out: [rows, outer], any float dtype; POOL: [rows / 4, outer].
    out_moments: of the rows of out [rows, blocks of columns, 2] float32; MEASURE.

    rows, inner, outer: int. width: int, of the grids whose tokens the rows are; POOL: rows are
    taken by fours, the tokens of a 2 x 2 cell, and out gets the largest. part_size: int, channels
    of a group of `moments`. eps: float, of the layer norm. EVEN: inner is a multiple of BLOCK_K.
    Tiles run down GROUP blocks of rows before they go to the next columns, so that both stay in
    the L2 cache. Grid: (cdiv(rows, BLOCK_M) * cdiv(outer, BLOCK_N),).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    row_blocks = tl.cdiv(rows, BLOCK_M)
    column_blocks = tl.cdiv(outer, BLOCK_N)
    group = tl.program_id(0) // (GROUP * column_blocks)
    group_rows = tl.minimum(row_blocks - group * GROUP, GROUP)
    inside = tl.program_id(0) % (GROUP * column_blocks)
    out_row = (group * GROUP + inside % group_rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    column_block = inside // group_rows
    column = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = out_row < rows
    in_columns = column < outer
    # rows and columns outside are read twice and never stored
    row = tl.minimum(out_row, rows - 1).to(tl.int64)
    if POOL:
        cell = row // 4
        corner = row % 4
        cell_y = cell // (width // 2)  # lines of cells, of all images
        cell_x = cell % (width // 2)
        row = (2 * cell_y + corner // 2) * width + 2 * cell_x + corner % 2
    channel = tl.arange(0, BLOCK_K)
    x_at = x + row[:, None] * inner + channel[None, :]
    weight_row = tl.minimum(column, outer - 1)[None, :].to(tl.int64)
    weight_at = weight + weight_row * inner + channel[:, None]
    accumulator = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, inner, BLOCK_K):
        if EVEN:
            x_tile = tl.load(x_at)
            weight_tile = tl.load(weight_at)
        else:
            in_channels = channel < inner - first
            x_tile = tl.load(x_at, mask=in_channels[None, :], other=0.0)
            weight_tile = tl.load(weight_at, mask=in_channels[:, None], other=0.0)
        x_tile = x_tile.to(weight_tile.dtype)
        accumulator = tl.dot(x_tile, weight_tile, accumulator, input_precision=precision)
        x_at += BLOCK_K
        weight_at += BLOCK_K
    if PARTS > 0:
        mean, rstd = mean_and_rstd(moments, row, in_rows, inner, part_size, eps, PARTS)
        sums = tl.load(column_sums + column, mask=in_columns, other=0.0)
        accumulator = (accumulator - mean[:, None] * sums[None, :]) * rstd[:, None]
    accumulator += tl.load(bias + column, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == 1:
        accumulator = gelu(accumulator)
    if ACTIVATION == 2:
        accumulator = tl.maximum(accumulator, 0.0)
    if SCALE:
        accumulator *= tl.load(gamma + column, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    if POOL:
        accumulator = tl.max(tl.reshape(accumulator, [BLOCK_M // 4, 4, BLOCK_N]), 1)
        first_row = (group * GROUP + inside % group_rows) * (BLOCK_M // 4)
        out_row = first_row + tl.arange(0, BLOCK_M // 4)
        in_rows = out_row < rows // 4
    offsets = out_row.to(tl.int64)[:, None] * outer + column[None, :]
    stored = in_rows[:, None] & in_columns[None, :]
    if ADD:
        accumulator += tl.load(residual + offsets, mask=stored, other=0.0).to(tl.float32)
    result = accumulator.to(out.dtype.element_ty)
    tl.store(out + offsets, result, mask=stored)
    if MEASURE:
        rounded = tl.where(in_columns[None, :], result.to(tl.float32), 0.0)
        count = tl.minimum(outer - column_block * BLOCK_N, BLOCK_N).to(tl.float32)
        mean = tl.sum(rounded, 1) / count
        centered = tl.where(in_columns[None, :], rounded - mean[:, None], 0.0)
        moments_at = out_moments + (out_row.to(tl.int64) * column_blocks + column_block) * 2
        tl.store(moments_at, mean, mask=in_rows)
        tl.store(moments_at + 1, tl.sum(centered * centered, 1), mask=in_rows)


@dataclass(frozen=True)
class Layer:
    """A linear layer, and the layer norm in front of it, if any. weight: [N, K], bias: [N]."""

    weight: Tensor
    bias: Tensor
    norm: Norm | None = None
    folded: tuple[Tensor, Tensor, Tensor] | None = None
    """norm.weight * weight [N, K], its sums over K [N] float32, weight norm.bias + bias [N]
    float32."""


def fold(weight: Tensor, bias: Tensor, norm: Norm) -> Layer:
    """A linear layer behind a layer norm. weight: [N, K] in the compute dtype; all contiguous."""
    wide = weight.float()
    scaled = (wide * norm.weight.float()).to(weight.dtype).contiguous()
    # of the rounded matrix, so that a row's mean cancels exactly
    sums = scaled.float().sum(1)
    return Layer(weight, bias, norm, (scaled, sums, wide @ norm.bias.float() + bias.float()))


def behind_norm(
    x: Tensor, layer: Layer, measured: Moments | None = None
) -> tuple[Tensor, Moments | None]:
    """What `linear` takes for a layer behind a norm: x [rows, C] and its moments if the norm can be
    folded in, else x normalized.

    measured: the moments of x, if they are known.
    """
    assert layer.norm is not None
    if x.dtype == layer.weight.dtype != torch.float32:
        return x, measured or moments(x)
    return normalize(x, layer.norm, layer.weight.dtype), None


def tiles(
    rows: int, inner: int, outer: int, size: int, capability: int, multiprocessors: int
) -> tuple[int, int, int, int, int]:
    """Rows, columns and channels of a tile, warps, stages (docs/kernels/hiera_block.md).

    size: bytes of an element; capability: 80, 86, 90, 120...
    """
    if size == 4:
        return 32, 32, 32, 4, 1
    wide = 64
    if outer <= 128:
        wide = max(triton.next_power_of_2(outer), 16)
    elif -(-outer // 128) * 128 <= 1.15 * outer:
        wide = 128
    deep = 64 if inner % 64 == 0 or inner > 256 else 32
    blocks = triton.cdiv(rows, 128) * triton.cdiv(outer, wide)
    if capability in HOPPER and blocks < 2 * multiprocessors:
        return 64, wide, deep, 4, 4
    return 128, wide, deep, 8, 3 if capability in ROOMY else 2


def _form(layer: Layer, rows: int, device_of: Tensor, options: tuple[int, ...]) -> Form:
    """The form in which a layer is computed for `rows` rows, on the device of a tensor."""
    outer, inner = layer.weight.shape
    size = layer.weight.element_size()
    capability = capability_of(device_of)
    default = tiles(rows, inner, outer, size, capability, multiprocessors_of(device_of))
    if size == 4:
        return default
    forms = list(WGMMA_FORMS)
    if capability not in ROOMY:
        forms = [(*f[:4], 2) for f in WGMMA_FORMS[:3] if not isinstance(f, str)]
        forms.append("library")
    key = (size, triton.next_power_of_2(rows), inner, outer, *options)
    return choose(device_of.device, "linear", key, default, forms)


def linear(x: Tensor, layer: Layer, measured: Moments | None = None, **options: Any) -> Tensor:
    """`measured_linear` without the moments of the result."""
    return measured_linear(x, layer, measured, **options, measure=False)[0]


def measured_linear(
    x: Tensor,
    layer: Layer,
    measured: Moments | None = None,
    *,
    activation: int = NONE,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
    width: int = 0,
    gamma: Tensor | None = None,
    measure: bool = True,
) -> tuple[Tensor, Moments | None]:
    """x: [rows, K] through a layer [N, K] -> [rows, N] in `dtype` (None: that of the weight), and
    with `measure` its moments.

    measured: the moments of x, where the layer norm in front of the layer is to be folded in, whose
    input x then is. residual: [rows, N], added last. gamma: [N], factors of the channels. width: of
    the grids whose tokens the rows are, if 2 x 2 cells are max-pooled: [rows / 4, N]; 0: no
    pooling. All contiguous, on the current stream.
    """
    rows = len(x)
    outer, inner = layer.weight.shape
    out_rows = rows // 4 if width else rows
    out = x.new_empty(out_rows, outer, dtype=dtype or layer.weight.dtype)
    if out.numel() == 0:
        empty = x.new_empty(out_rows, 1, 2, dtype=torch.float32)
        return out, Moments(empty, outer) if measure else None
    is_folded = measured is not None
    options = (activation, int(is_folded), int(residual is not None), int(width > 0))
    form = _form(layer, rows, x, options)
    if isinstance(form, str):
        result = _by_library(x, layer, is_folded, activation, residual, out.dtype, width, gamma)
        return result, moments(result) if measure else None
    block_m, block_n, block_k, warps, stages = form
    weight = layer.weight
    column_sums = None
    bias = layer.bias
    in_moments = None
    part_size = 0
    parts = 0
    eps = 0.0
    if measured is not None:
        assert layer.folded is not None and layer.norm is not None
        weight, column_sums, bias = layer.folded
        in_moments = measured.values
        part_size = measured.group
        parts = measured.values.shape[1]
        eps = layer.norm.eps
    blocks = triton.cdiv(outer, block_n)
    out_moments = x.new_empty(out_rows, blocks, 2, dtype=torch.float32) if measure else None
    with torch.cuda.device_of(x):
        linear_kernel[(triton.cdiv(rows, block_m) * blocks,)](
            x=x,
            moments=in_moments,
            column_sums=column_sums,
            weight=weight,
            bias=bias,
            gamma=gamma,
            residual=residual,
            out=out,
            out_moments=out_moments,
            rows=rows,
            inner=inner,
            outer=outer,
            width=width,
            part_size=part_size,
            eps=eps,
            PARTS=parts,
            ACTIVATION=activation,
            SCALE=gamma is not None,
            ADD=residual is not None,
            POOL=width > 0,
            MEASURE=measure,
            EVEN=inner % block_k == 0,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            GROUP=GROUP,
            EXACT=weight.dtype == torch.float32,
            num_warps=warps,
            num_stages=stages,
        )
    return out, None if out_moments is None else Moments(out_moments, block_n)


def _by_library(
    x: Tensor,
    layer: Layer,
    normed: bool,
    activation: int,
    residual: Tensor | None,
    dtype: torch.dtype,
    width: int,
    gamma: Tensor | None,
) -> Tensor:
    """The same by torch: layer norm, product with bias, and the rest as operations of their own."""
    weight = layer.weight
    with torch.autocast(x.device.type, enabled=False):
        if normed:
            assert layer.norm is not None
            scale = layer.norm.weight.to(x.dtype)
            shift = layer.norm.bias.to(x.dtype)
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
