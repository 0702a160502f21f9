"""Layers of the mask decoder's prompt tokens in Triton, between the passes over the image.

A large matrix is split over many programs. Every launch therefore ends with partial sums [B, parts,
T, DIM], and the next launch first computes the tokens from them as norm(sum of parts + bias +
residual). An object has T <= TOKENS prompt tokens; rows past T hold finite values and are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from sam2_fast.kernels import decoder_step
from sam2_fast.kernels.attention import LOG2_E
from torch import Tensor

WARPS = 8
STAGES = 2


class Pending(NamedTuple):
    """Tokens that the next launch computes as norm(sum of parts + bias + residual)."""

    parts: Tensor  # [B, P, T, C] float32
    bias: Tensor
    residual: Tensor | None  # [B, T, C] float32, or None for zero
    norm_weight: Tensor
    norm_bias: Tensor


class Projections(NamedTuple):
    """Matrices [out, in] and biases of an attention; the output bias is part of `Pending`."""

    q: Tensor
    q_bias: Tensor
    k: Tensor
    k_bias: Tensor
    v: Tensor
    v_bias: Tensor
    out: Tensor


class Step(NamedTuple):
    """Results of `token_step`, or None for those not requested. R: rows of folded prompts."""

    tokens: Tensor  # [B, T, C] float32
    self_parts: Tensor | None  # [B, heads, T, C] float32
    queries: Tensor | None  # [B, R, C]
    # keys [B, R, C], offsets [B, R] float32, values [B, R, C]
    to_token: tuple[Tensor, Tensor, Tensor] | None


def tile_rows(tokens: int, rows: int) -> int:
    """Rows of a tile that holds `tokens` tokens, or the `rows` folded rows of a head."""
    return max(triton.next_power_of_2(max(tokens, rows)), 16)


def token_step(
    prompts: Tensor,
    present: Tensor | None,
    pending: Pending | None,
    heads: int,
    rows: int,
    eps: float,
    self_attention: Projections | None = None,
    to_image: Sequence[Tensor] | None = None,
    to_token: Projections | None = None,
) -> Step:
    """The pending tokens, and the computations of the following attentions that need only tokens.

    prompts: [B, T, C], contiguous except for the first stride.
    present: which tokens exist [B, T] uint8, or None for all.
    pending: or None, if the tokens are the prompts.
    rows: rows of a head in folded prompts, which have R = heads * rows rows.
    self_attention: projections, to compute the self-attention.
    to_image: query matrix, bias and key matrix of the token-to-image attention, to fold its
        queries.
    to_token: projections of the image-to-token attention, to fold its keys and values.
    All matrices are in the compute dtype. Computed on the current stream.
    """
    batch, count, dim = prompts.shape
    if self_attention is not None and to_token is not None and tile_rows(count, rows) > 32:
        first = token_step(prompts, present, pending, heads, rows, eps, self_attention)
        second = token_step(prompts, present, pending, heads, rows, eps, None, to_image, to_token)
        return second._replace(self_parts=first.self_parts)
    # any tensor in the compute dtype; the kernel gets it for pointers that it does not use
    like = next(w for w in (self_attention, to_image, to_token) if w is not None)[0]

    def empty_if(used: bool, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return like.new_empty(size if used else (0,), dtype=dtype)

    folded = (batch, heads * rows, dim)
    tokens = empty_if(pending is not None, batch, count, dim)
    self_parts = empty_if(self_attention is not None, batch, heads, count, dim)
    queries = empty_if(to_image is not None, *folded, dtype=like.dtype)
    keys = empty_if(to_token is not None, *folded, dtype=like.dtype)
    values = empty_if(to_token is not None, *folded, dtype=like.dtype)
    offsets = empty_if(to_token is not None, batch, heads * rows)
    inputs = pending or Pending(tokens, like, None, like, like)
    unused = Projections(*[like] * len(Projections._fields))
    token_to_token = self_attention or unused
    image_to_token = to_token or unused
    to_image_q, to_image_q_bias, to_image_k = to_image or [like] * 3
    roles = sum(w is not None for w in (self_attention or to_image, to_token))
    with torch.cuda.device_of(like):
        decoder_step.token_step_kernel[heads * roles, batch](
            prompts=prompts,
            present=like if present is None else present,
            parts=inputs.parts,
            bias=inputs.bias,
            residual=tokens if inputs.residual is None else inputs.residual,
            norm_weight=inputs.norm_weight,
            norm_bias=inputs.norm_bias,
            tokens=tokens,
            self_q=token_to_token.q,
            self_q_bias=token_to_token.q_bias,
            self_k=token_to_token.k,
            self_k_bias=token_to_token.k_bias,
            self_v=token_to_token.v,
            self_v_bias=token_to_token.v_bias,
            self_out=token_to_token.out,
            self_parts=self_parts,
            to_image_q=to_image_q,
            to_image_q_bias=to_image_q_bias,
            to_image_k=to_image_k,
            queries=queries,
            to_token_q=image_to_token.q,
            to_token_q_bias=image_to_token.q_bias,
            to_token_k=image_to_token.k,
            to_token_k_bias=image_to_token.k_bias,
            to_token_v=image_to_token.v,
            to_token_v_bias=image_to_token.v_bias,
            to_token_out=image_to_token.out,
            keys=keys,
            offsets=offsets,
            values=values,
            prompt_stride=prompts.stride(0),
            count=count,
            rows=rows,
            self_scale=LOG2_E * (dim // heads) ** -0.5,
            eps=eps,
            FROM_PROMPTS=pending is None,
            ADD=inputs.residual is not None,
            MASKED=present is not None,
            TO_TOKEN=to_token is not None,
            SELF=self_attention is not None,
            TO_IMAGE=to_image is not None,
            PARTS=1 if pending is None else inputs.parts.shape[1],
            HEADS=heads,
            TOKENS=tile_rows(count, rows),
            DIM=dim,
            EXACT=like.dtype == torch.float32,
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return Step(
        tokens,
        None if self_attention is None else self_parts,
        None if to_image is None else queries,
        None if to_token is None else (keys, offsets, values),
    )
