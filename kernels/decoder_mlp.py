"""The MLP of the mask decoder's prompt tokens in Triton: a program takes a part of the hidden units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.decoder_tokens import STAGES, WARPS, Pending, tile_rows, tokens_of
from sam2_fast.kernels.launch import kernel, multiprocessors_of
from torch import Tensor

HIDDEN = 32  # hidden units that a program computes at once
SLICES = 16  # programs that share an object's hidden units, at most


@kernel
def token_mlp_kernel(
    parts, bias, residual, norm_weight, norm_bias, tokens, weight1, bias1, weight2, mlp_parts,
    count, hidden, span, eps,
    PARTS: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The tokens as `decoder_tokens.tokens_of` has them, then the share of `span` of the MLP's hidden units in its result.

    weight1: [hidden, DIM]; weight2: [DIM, hidden]; mlp_parts: [B, programs, count, DIM] float32, before
    the second bias. ReLU between.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    batch, row, channel = tl.program_id(1).to(tl.int64), tl.arange(0, TOKENS), tl.arange(0, DIM)
    x = tokens_of(
        parts, bias, residual, norm_weight, norm_bias, tokens, batch, 0, count, eps, tl.program_id(0),
        True, PARTS, TOKENS, DIM,
    ).to(weight1.dtype.element_ty)  # fmt: skip
    start = tl.program_id(0) * span
    end = tl.minimum(start + span, hidden)
    accumulator = tl.zeros([TOKENS, DIM], tl.float32)
    for first in range(start, end, BLOCK):
        unit = first + tl.arange(0, BLOCK)
        real = unit < end
        rows = tl.load(weight1 + unit[None, :] * DIM + channel[:, None], mask=real[None, :], other=0.0)
        inner = tl.dot(x, rows, input_precision=precision)
        inner += tl.load(bias1 + unit, mask=real, other=0.0).to(tl.float32)[None, :]
        inner = tl.maximum(inner, 0.0).to(weight2.dtype.element_ty)
        columns = tl.load(weight2 + channel[None, :] * hidden + unit[:, None], mask=real[:, None], other=0.0)
        accumulator = tl.dot(inner, columns, accumulator, input_precision=precision)
    part = batch * tl.num_programs(0) + tl.program_id(0)
    place = mlp_parts + (part * count + row)[:, None] * DIM + channel[None, :]
    tl.store(place, accumulator, mask=(row < count)[:, None])


def slices(objects: int, hidden: int, processors: int) -> int:
    """In how many parts the MLP's hidden units are taken: powers of two, so that few kernels are compiled."""
    most = max(min(2 * processors // objects, SLICES, triton.cdiv(hidden, HIDDEN)), 1)
    return 1 << (most.bit_length() - 1)


def token_mlp(pending: Pending, weights: Sequence[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """Tokens that are pending [B, T, C] float32, and what the parts of an MLP's hidden units add to them
    [B, P, T, C] float32. weights: first matrix and bias, second matrix. On the current stream."""
    (batch, _, count, dim), hidden, like = pending.parts.shape, weights[0].shape[0], weights[0]
    programs = slices(batch, hidden, multiprocessors_of(like))
    span = triton.cdiv(triton.cdiv(hidden, programs), HIDDEN) * HIDDEN
    programs = triton.cdiv(hidden, span)
    tokens = like.new_empty(batch, count, dim, dtype=torch.float32)
    parts = like.new_empty(batch, programs, count, dim, dtype=torch.float32)
    with torch.cuda.device_of(like):
        token_mlp_kernel[programs, batch](
            *pending, tokens, *weights, parts, count, hidden, span, eps,
            PARTS=pending.parts.shape[1], TOKENS=tile_rows(count, 1), DIM=dim, BLOCK=HIDDEN, EXACT=like.dtype == torch.float32,
            num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return tokens, parts
