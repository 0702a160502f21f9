"""Linear layers in Triton, fused with layer norm, activation, pooling and residual.

A layer norm in front of a linear layer is folded into the layer's weight and bias:

    norm(x) W' + b = rstd (x (g W)' - mean colsum(g W)) + (W c + b)

for the norm's weight g and bias c. `fold` computes g W, its column sums and the new bias once; the
kernel applies mean and rstd of a row to its accumulators. A kernel that stores rows can also store
their statistics, which the next layer's norm needs.
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
from sam2_fast.kernels.launch import (
    HOPPER,
    LARGE_SHARED_MEMORY,
    capability_of,
    kernel,
    multiprocessors_of,
)
from sam2_fast.kernels.layer_norm import (
    Norm,
    RowStatistics,
    mean_and_rstd,
    normalize,
    row_statistics,
)
from torch import Tensor

NONE, GELU, RELU = 0, 1, 2
GROUP = 8  # row blocks that are processed together, to reuse tiles of the weight in the L2 cache
WGMMA_FORMS: tuple[Form, ...] = (
    (128, 128, 64, 8, 3),
    (64, 128, 64, 4, 4),
    (128, 64, 64, 4, 3),
    (128, 256, 64, 8, 3),
    (64, 64, 64, 4, 4),
    "library",
)
"""Forms (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages) that may be faster; "library": torch."""


@kernel
def linear_kernel(
    x,
    in_statistics,
    column_sums,
    weight,
    bias,
    gamma,
    residual,
    out,
    out_statistics,
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
    x: [rows, inner], any float dtype; converted to the dtype of weight.
    in_statistics: mean and centred sum of squares of the PARTS channel groups of each row of x
        [rows, PARTS, 2] float32; only if PARTS > 0, which means that a layer norm is folded in.
    column_sums: sums of weight over inner [outer] float32; only if PARTS > 0.
    weight: [outer, inner], compute dtype.
    bias: [outer], any float dtype.
    gamma: scale of each channel [outer], any float dtype; only if SCALE.
    residual: same shape as out, any float dtype; only if ADD.
    out: [rows, outer], or [rows / 4, outer] if POOL, any float dtype.
    out_statistics: result if MEASURE, mean and centred sum of squares of each block of columns of
        each row of out [rows of out, cdiv(outer, BLOCK_N), 2] float32.

    rows, inner, outer: int. width: int, width of the grid of tokens in x. POOL: the 4 tokens of
    each 2 x 2 cell of the grid are max-pooled. part_size: int, channels of a group
    of in_statistics. eps: float, of the layer norm. EVEN: inner is a multiple of BLOCK_K.
    Consecutive programs compute GROUP blocks of rows before the next block of columns, so that
    tiles of x and weight stay in the L2 cache. Grid: (cdiv(rows, BLOCK_M) * cdiv(outer, BLOCK_N),).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    row_blocks = tl.cdiv(rows, BLOCK_M)
    column_blocks = tl.cdiv(outer, BLOCK_N)
    group = tl.program_id(0) // (GROUP * column_blocks)
    group_rows = tl.minimum(row_blocks - group * GROUP, GROUP)
    pid_in_group = tl.program_id(0) % (GROUP * column_blocks)
    out_row = (group * GROUP + pid_in_group % group_rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    column_block = pid_in_group // group_rows
    column = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = out_row < rows
    column_mask = column < outer
    # out-of-range rows and columns repeat the last one, and are not stored
    row = tl.minimum(out_row, rows - 1).to(tl.int64)
    if POOL:
        cell = row // 4
        corner = row % 4
        cell_y = cell // (width // 2)  # counts the cell rows of all images
        cell_x = cell % (width // 2)
        row = (2 * cell_y + corner // 2) * width + 2 * cell_x + corner % 2
    channel = tl.arange(0, BLOCK_K)
    x_ptrs = x + row[:, None] * inner + channel[None, :]
    weight_row = tl.minimum(column, outer - 1)[None, :].to(tl.int64)
    weight_ptrs = weight + weight_row * inner + channel[:, None]
    accumulator = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k_start in range(0, inner, BLOCK_K):
        if EVEN:
            x_tile = tl.load(x_ptrs)
            weight_tile = tl.load(weight_ptrs)
        else:
            channel_mask = channel < inner - k_start
            x_tile = tl.load(x_ptrs, mask=channel_mask[None, :], other=0.0)
            weight_tile = tl.load(weight_ptrs, mask=channel_mask[:, None], other=0.0)
        x_tile = x_tile.to(weight_tile.dtype)
        accumulator = tl.dot(x_tile, weight_tile, accumulator, input_precision=precision)
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    if PARTS > 0:
        mean, rstd = mean_and_rstd(in_statistics, row, row_mask, inner, part_size, eps, PARTS)
        sums = tl.load(column_sums + column, mask=column_mask, other=0.0)
        accumulator = (accumulator - mean[:, None] * sums[None, :]) * rstd[:, None]
    accumulator += tl.load(bias + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == 1:
        accumulator = gelu(accumulator)
    if ACTIVATION == 2:
        accumulator = tl.maximum(accumulator, 0.0)
    if SCALE:
        accumulator *= tl.load(gamma + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    if POOL:
        accumulator = tl.max(tl.reshape(accumulator, [BLOCK_M // 4, 4, BLOCK_N]), 1)
        first_row = (group * GROUP + pid_in_group % group_rows) * (BLOCK_M // 4)
        out_row = first_row + tl.arange(0, BLOCK_M // 4)
        row_mask = out_row < rows // 4
    offsets = out_row.to(tl.int64)[:, None] * outer + column[None, :]
    store_mask = row_mask[:, None] & column_mask[None, :]
    if ADD:
        accumulator += tl.load(residual + offsets, mask=store_mask, other=0.0).to(tl.float32)
    result = accumulator.to(out.dtype.element_ty)
    tl.store(out + offsets, result, mask=store_mask)
    if MEASURE:
        rounded = tl.where(column_mask[None, :], result.to(tl.float32), 0.0)
        count = tl.minimum(outer - column_block * BLOCK_N, BLOCK_N).to(tl.float32)
        mean = tl.sum(rounded, 1) / count
        centered = tl.where(column_mask[None, :], rounded - mean[:, None], 0.0)
        statistics_row = out_row.to(tl.int64) * column_blocks + column_block
        statistics_ptrs = out_statistics + statistics_row * 2
        tl.store(statistics_ptrs, mean, mask=row_mask)
        tl.store(statistics_ptrs + 1, tl.sum(centered * centered, 1), mask=row_mask)


@dataclass(frozen=True)
class Layer:
    """A linear layer and the layer norm in front of it, or None. weight: [N, K], bias: [N]."""

    weight: Tensor
    bias: Tensor
    norm: Norm | None = None
    folded: tuple[Tensor, Tensor, Tensor] | None = None
    """norm.weight * weight [N, K], its sums over K [N], weight @ norm.bias + bias [N]; or None."""


def fold(weight: Tensor, bias: Tensor, norm: Norm) -> Layer:
    """A linear layer with the layer norm in front of it folded in.

    weight: [N, K] in the compute dtype; all contiguous.
    """
    weight_fp32 = weight.float()
    scaled = (weight_fp32 * norm.weight.float()).to(weight.dtype).contiguous()
    # sums of the rounded matrix, so that a row's mean cancels exactly
    sums = scaled.float().sum(1)
    folded_bias = weight_fp32 @ norm.bias.float() + bias.float()
    return Layer(weight, bias, norm, (scaled, sums, folded_bias))


def fold_or_apply_norm(
    x: Tensor, layer: Layer, statistics: RowStatistics | None = None
) -> tuple[Tensor, RowStatistics | None]:
    """Inputs of `linear` for a layer with a norm: tokens, and their statistics or None.

    If the norm can be folded into the layer, these are x [rows, C] and its statistics, else
    normalized x and None. statistics: those of x, or None to compute them.
    """
    assert layer.norm is not None
    if x.dtype == layer.weight.dtype != torch.float32:
        return x, statistics or row_statistics(x)
    return normalize(x, layer.norm, layer.weight.dtype), None


def default_form(
    rows: int, inner: int, outer: int, size: int, capability: int, multiprocessors: int
) -> tuple[int, int, int, int, int]:
    """BLOCK_M, BLOCK_N, BLOCK_K, warps and stages (docs/kernels/hiera_block.md).

    size: bytes per element; capability: 80, 86, 90, 120...
    """
    if size == 4:
        return 32, 32, 32, 4, 1
    block_n = 64
    if outer <= 128:
        block_n = max(triton.next_power_of_2(outer), 16)
    elif -(-outer // 128) * 128 <= 1.15 * outer:
        block_n = 128
    block_k = 64 if inner % 64 == 0 or inner > 256 else 32
    blocks = triton.cdiv(rows, 128) * triton.cdiv(outer, block_n)
    if capability in HOPPER and blocks < 2 * multiprocessors:
        return 64, block_n, block_k, 4, 4
    return 128, block_n, block_k, 8, 3 if capability in LARGE_SHARED_MEMORY else 2


def _form(layer: Layer, x: Tensor, options: tuple[int, ...]) -> Form:
    """The form in which `layer` is computed for x [rows, K]."""
    rows = len(x)
    outer, inner = layer.weight.shape
    size = layer.weight.element_size()
    capability = capability_of(x)
    default = default_form(rows, inner, outer, size, capability, multiprocessors_of(x))
    if size == 4:
        return default
    forms = list(WGMMA_FORMS)
    if capability not in LARGE_SHARED_MEMORY:
        forms = [(*f[:4], 2) for f in WGMMA_FORMS[:3] if not isinstance(f, str)]
        forms.append("library")
    key = (size, triton.next_power_of_2(rows), inner, outer, *options)
    return choose(x.device, "linear", key, default, forms)


def linear(
    x: Tensor, layer: Layer, statistics: RowStatistics | None = None, **options: Any
) -> Tensor:
    """The output of `linear_with_statistics`, without its statistics."""
    return linear_with_statistics(x, layer, statistics, **options, return_statistics=False)[0]


def linear_with_statistics(
    x: Tensor,
    layer: Layer,
    statistics: RowStatistics | None = None,
    *,
    activation: int = NONE,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
    width: int = 0,
    gamma: Tensor | None = None,
    return_statistics: bool = True,
) -> tuple[Tensor, RowStatistics | None]:
    """Output [rows, N] of a layer [N, K] for x [rows, K], and its statistics or None.

    statistics: those of x, if the layer's norm is folded in; None: no norm is applied.
    residual: [rows, N], added last.
    dtype: of the output, or None for that of the weight.
    width: width of the token grid if the tokens of each 2 x 2 cell are max-pooled, which gives
        [rows / 4, N]; 0: no pooling.
    gamma: [N], scale of each channel.
    All contiguous; computed on the current stream.
    """
    rows = len(x)
    outer, inner = layer.weight.shape
    out_rows = rows // 4 if width else rows
    out = x.new_empty(out_rows, outer, dtype=dtype or layer.weight.dtype)
    if out.numel() == 0:
        empty = x.new_empty(out_rows, 1, 2, dtype=torch.float32)
        return out, RowStatistics(empty, outer) if return_statistics else None
    is_folded = statistics is not None
    options = (activation, int(is_folded), int(residual is not None), int(width > 0))
    form = _form(layer, x, options)
    if isinstance(form, str):
        result = _torch_linear(x, layer, is_folded, activation, residual, out.dtype, width, gamma)
        return result, row_statistics(result) if return_statistics else None
    block_m, block_n, block_k, warps, stages = form
    weight = layer.weight
    column_sums = None
    bias = layer.bias
    in_statistics = None
    part_size = 0
    parts = 0
    eps = 0.0
    if statistics is not None:
        assert layer.folded is not None and layer.norm is not None
        weight, column_sums, bias = layer.folded
        in_statistics = statistics.values
        part_size = statistics.group_size
        parts = statistics.values.shape[1]
        eps = layer.norm.eps
    blocks = triton.cdiv(outer, block_n)
    out_statistics = None
    if return_statistics:
        out_statistics = x.new_empty(out_rows, blocks, 2, dtype=torch.float32)
    with torch.cuda.device_of(x):
        linear_kernel[(triton.cdiv(rows, block_m) * blocks,)](
            x=x,
            in_statistics=in_statistics,
            column_sums=column_sums,
            weight=weight,
            bias=bias,
            gamma=gamma,
            residual=residual,
            out=out,
            out_statistics=out_statistics,
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
            MEASURE=return_statistics,
            EVEN=inner % block_k == 0,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            GROUP=GROUP,
            EXACT=weight.dtype == torch.float32,
            num_warps=warps,
            num_stages=stages,
        )
    return out, None if out_statistics is None else RowStatistics(out_statistics, block_n)


def _torch_linear(
    x: Tensor,
    layer: Layer,
    apply_norm: bool,
    activation: int,
    residual: Tensor | None,
    dtype: torch.dtype,
    width: int,
    gamma: Tensor | None,
) -> Tensor:
    """`linear` by torch, one operation after the other."""
    weight = layer.weight
    with torch.autocast(x.device.type, enabled=False):
        if apply_norm:
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
