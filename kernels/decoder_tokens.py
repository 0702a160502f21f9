"""The mask decoder's prompt tokens in Triton: what a few tokens go through between passes over the
image.

A large matrix is read by many programs, a part each, so every launch ends with partial sums [B,
parts, T, DIM] and the next one begins with them: their sum, a bias, the residual and a norm are the
tokens. T <= TOKENS prompt tokens of an object; rows past T hold finite numbers that no program
reads.
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
    """Tokens that the next launch makes: norm(sum of parts + bias + residual)."""

    parts: Tensor  # [B, P, T, C] float32
    bias: Tensor
    residual: Tensor | None  # [B, T, C] float32; None: 0
    norm_weight: Tensor
    norm_bias: Tensor


class Projections(NamedTuple):
    """An attention's matrices [out, in] and biases; the bias of its output is part of `Pending`."""

    q: Tensor
    q_bias: Tensor
    k: Tensor
    k_bias: Tensor
    v: Tensor
    v_bias: Tensor
    out: Tensor


class Step(NamedTuple):
    """Results of one launch of `token_step_kernel`; None where it was not asked for. R rows as
    `token_step` has them."""

    tokens: Tensor  # [B, T, C] float32
    self_parts: Tensor | None  # [B, heads, T, C] float32
    queries: Tensor | None  # [B, R, C]
    # keys [B, R, C], offsets [B, R] float32, values [B, R, C]
    to_token: tuple[Tensor, Tensor, Tensor] | None


def tile_rows(tokens: int, rows: int) -> int:
    """Rows of a tile that holds `tokens` tokens, and the `rows` rows a head has of folded ones."""
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
    """Tokens that are pending (None: the prompts), and what of the next attention depends on
    nothing else.

    prompts: [B, T, C], contiguous but for the first stride; present: [B, T] uint8. to_image: query
    matrix, bias, key matrix of the token-to-image attention; to_token: the image-to-token
    attention's. All matrices in the compute dtype. Folded prompts have R = heads * rows rows.
    On the current stream.
    """
    batch, count, dim = prompts.shape
    if self_attention is not None and to_token is not None and tile_rows(count, rows) > 32:
        first = token_step(prompts, present, pending, heads, rows, eps, self_attention)
        then = token_step(prompts, present, pending, heads, rows, eps, None, to_image, to_token)
        return then._replace(self_parts=first.self_parts)
    like = next(w for w in (self_attention, to_image, to_token) if w is not None)[0]

    def space(*size: int, wanted: bool = True, dtype: torch.dtype = torch.float32) -> Tensor:
        return like.new_empty(size if wanted else (0,), dtype=dtype)

    folded = (batch, heads * rows, dim)
    tokens = space(batch, count, dim, wanted=pending is not None)
    self_parts = space(batch, heads, count, dim, wanted=self_attention is not None)
    queries = space(*folded, wanted=to_image is not None, dtype=like.dtype)
    keys = space(*folded, wanted=to_token is not None, dtype=like.dtype)
    values = space(*folded, wanted=to_token is not None, dtype=like.dtype)
    offsets = space(batch, heads * rows, wanted=to_token is not None)
    source = pending or Pending(tokens, like, None, like, like)
    unused = Projections(*[like] * len(Projections._fields))
    own = self_attention or unused
    image_to_token = to_token or unused
    to_image_q, to_image_q_bias, to_image_k = to_image or [like] * 3
    roles = sum(w is not None for w in (self_attention or to_image, to_token))
    with torch.cuda.device_of(like):
        decoder_step.token_step_kernel[heads * roles, batch](
            prompts=prompts,
            present=like if present is None else present,
            parts=source.parts,
            bias=source.bias,
            residual=tokens if source.residual is None else source.residual,
            norm_weight=source.norm_weight,
            norm_bias=source.norm_bias,
            tokens=tokens,
            self_q=own.q,
            self_q_bias=own.q_bias,
            self_k=own.k,
            self_k_bias=own.k_bias,
            self_v=own.v,
            self_v_bias=own.v_bias,
            self_out=own.out,
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
            ADD=source.residual is not None,
            MASKED=present is not None,
            TO_TOKEN=to_token is not None,
            SELF=self_attention is not None,
            TO_IMAGE=to_image is not None,
            PARTS=1 if pending is None else source.parts.shape[1],
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
