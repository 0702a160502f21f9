"""The MLP of the mask decoder's prompt tokens in Triton, split over its hidden units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.decoder_layers import sum_and_normalize
from sam2_fast.kernels.decoder_tokens import STAGES, WARPS, Pending, tile_rows
from sam2_fast.kernels.launch import kernel, multiprocessors_of
from torch import Tensor

HIDDEN = 32  # hidden units that a program computes at once
MAX_SLICES = 16  # maximum number of programs that hidden units are split over, per object


@kernel
def token_mlp_kernel(
    parts,
    bias,
    residual,
    norm_weight,
    norm_bias,
    tokens,
    weight1,
    bias1,
    weight2,
    mlp_parts,
    count,
    hidden,
    span,
    eps,
    PARTS: tl.constexpr,
    TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The tokens, norm(sum of parts + bias + residual), and a partial sum of their MLP.

    The partial sum is the contribution of `span` hidden units, after ReLU and the second matrix,
    without the second bias.

    Pointers, all contiguous:
    parts: partial sums [B, PARTS, count, DIM] float32.
    bias: added to the sum of the parts [DIM], any float dtype.
    residual: [B, count, DIM] float32.
    norm_weight, norm_bias: of the layer norm [DIM], any float dtype.
    tokens: result, the tokens [B, count, DIM] float32.
    weight1: [hidden, DIM], compute dtype.
    bias1: [hidden], any float dtype.
    weight2: [DIM, hidden], compute dtype.
    mlp_parts: result, partial sums of the MLP [B, programs, count, DIM] float32.

    count, hidden: int. span: int, hidden units of a program. eps: float, of the layer norm.
    Grid: (programs, B).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    batch = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, TOKENS)
    channel = tl.arange(0, DIM)
    program = tl.program_id(0)
    pending = (parts, bias, residual, norm_weight, norm_bias)
    x = sum_and_normalize(
        pending, tokens, batch, 0, count, eps, program, True, PARTS, TOKENS, DIM
    ).to(weight1.dtype.element_ty)
    start = program * span
    end = tl.minimum(start + span, hidden)
    accumulator = tl.zeros([TOKENS, DIM], tl.float32)
    for block_start in range(start, end, BLOCK):
        unit = block_start + tl.arange(0, BLOCK)
        unit_mask = unit < end
        row_ptrs = weight1 + unit[None, :] * DIM + channel[:, None]
        rows = tl.load(row_ptrs, mask=unit_mask[None, :], other=0.0)
        hidden_tile = tl.dot(x, rows, input_precision=precision)
        hidden_tile += tl.load(bias1 + unit, mask=unit_mask, other=0.0).to(tl.float32)[None, :]
        hidden_tile = tl.maximum(hidden_tile, 0.0).to(weight2.dtype.element_ty)
        column_ptrs = weight2 + channel[None, :] * hidden + unit[:, None]
        columns = tl.load(column_ptrs, mask=unit_mask[:, None], other=0.0)
        accumulator = tl.dot(hidden_tile, columns, accumulator, input_precision=precision)
    part = batch * tl.num_programs(0) + program
    part_ptrs = mlp_parts + (part * count + row)[:, None] * DIM + channel[None, :]
    tl.store(part_ptrs, accumulator, mask=(row < count)[:, None])


def num_slices(objects: int, hidden: int, multiprocessors: int) -> int:
    """Number of programs per object: a power of two, so that few kernels are compiled."""
    limit = max(min(2 * multiprocessors // objects, MAX_SLICES, triton.cdiv(hidden, HIDDEN)), 1)
    return 1 << (limit.bit_length() - 1)


def token_mlp(pending: Pending, weights: Sequence[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """The pending tokens [B, T, C] float32, and partial sums of their MLP [B, P, T, C] float32.

    weights: first matrix and bias, second matrix. Computed on the current stream.
    """
    weight1, bias1, weight2 = weights
    batch, _, count, dim = pending.parts.shape
    hidden = weight1.shape[0]
    programs = num_slices(batch, hidden, multiprocessors_of(weight1))
    span = triton.cdiv(triton.cdiv(hidden, programs), HIDDEN) * HIDDEN
    programs = triton.cdiv(hidden, span)
    tokens = weight1.new_empty(batch, count, dim, dtype=torch.float32)
    mlp_parts = weight1.new_empty(batch, programs, count, dim, dtype=torch.float32)
    with torch.cuda.device_of(weight1):
        token_mlp_kernel[programs, batch](
            **pending._asdict(),
            tokens=tokens,
            weight1=weight1,
            bias1=bias1,
            weight2=weight2,
            mlp_parts=mlp_parts,
            count=count,
            hidden=hidden,
            span=span,
            eps=eps,
            PARTS=pending.parts.shape[1],
            TOKENS=tile_rows(count, 1),
            DIM=dim,
            BLOCK=HIDDEN,
            EXACT=weight1.dtype == torch.float32,
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return tokens, mlp_parts
