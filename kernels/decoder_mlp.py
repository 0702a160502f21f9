"""The MLP of the mask decoder's prompt tokens in Triton: a program takes a part of the hidden
units."""

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
SLICES = 16  # programs that share an object's hidden units, at most


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
    """The tokens, norm(sum of parts + bias + residual), then the share of `span` of the MLP's
    hidden units in its result, before the second bias; ReLU between.

    Pointers, all contiguous:
    parts: partial sums [B, PARTS, count, DIM] float32.
    bias: of the sum [DIM], any float dtype.
    residual: [B, count, DIM] float32.
    norm_weight, norm_bias: of the layer norm [DIM], any float dtype.
    tokens: the tokens that are made [B, count, DIM] float32.
    weight1: [hidden, DIM], compute dtype.
    bias1: [hidden], any float dtype.
    weight2: [DIM, hidden], compute dtype.
    mlp_parts: shares of the result [B, programs, count, DIM] float32.

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
    start = tl.program_id(0) * span
    end = tl.minimum(start + span, hidden)
    accumulator = tl.zeros([TOKENS, DIM], tl.float32)
    for first in range(start, end, BLOCK):
        unit = first + tl.arange(0, BLOCK)
        in_hidden = unit < end
        rows_at = weight1 + unit[None, :] * DIM + channel[:, None]
        rows = tl.load(rows_at, mask=in_hidden[None, :], other=0.0)
        inner = tl.dot(x, rows, input_precision=precision)
        inner += tl.load(bias1 + unit, mask=in_hidden, other=0.0).to(tl.float32)[None, :]
        inner = tl.maximum(inner, 0.0).to(weight2.dtype.element_ty)
        columns_at = weight2 + channel[None, :] * hidden + unit[:, None]
        columns = tl.load(columns_at, mask=in_hidden[:, None], other=0.0)
        accumulator = tl.dot(inner, columns, accumulator, input_precision=precision)
    part = batch * tl.num_programs(0) + tl.program_id(0)
    part_at = mlp_parts + (part * count + row)[:, None] * DIM + channel[None, :]
    tl.store(part_at, accumulator, mask=(row < count)[:, None])


def slices(objects: int, hidden: int, processors: int) -> int:
    """In how many parts the MLP's hidden units are taken: powers of two, so that few kernels are
    compiled."""
    most = max(min(2 * processors // objects, SLICES, triton.cdiv(hidden, HIDDEN)), 1)
    return 1 << (most.bit_length() - 1)


def token_mlp(pending: Pending, weights: Sequence[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """Tokens that are pending [B, T, C] float32, and what the parts of an MLP's hidden units add to
    them [B, P, T, C] float32.

    weights: first matrix and bias, second matrix. On the current stream.
    """
    weight1, bias1, weight2 = weights
    batch, _, count, dim = pending.parts.shape
    hidden = weight1.shape[0]
    programs = slices(batch, hidden, multiprocessors_of(weight1))
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
