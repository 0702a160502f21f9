"""The mask decoder's prompt tokens in Triton: what a few tokens go through between passes over the image.

A large matrix is read by many programs, a part each, so every launch ends with partial sums [B, parts,
T, DIM] and the next one begins with them: their sum, a bias, the residual and a norm are the tokens.
T <= TOKENS prompt tokens of an object; rows past T hold finite numbers that no program reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

WARPS, STAGES = 8, 2


@triton.jit
def _object(x, stride, batch, start, count, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Tokens of one object from `start` on as [ROWS, DIM] float32, zeros past `count`. x: [., count, DIM]."""
    row, channel = start + tl.arange(0, ROWS), tl.arange(0, DIM)
    place = x + batch * stride + row[:, None] * DIM + channel[None, :]
    return tl.load(place, mask=(row < count)[:, None], other=0.0).to(tl.float32)


@triton.jit
def tokens_of(
    parts, bias, residual, norm_weight, norm_bias, tokens, batch, start, count, eps, program,
    ADD: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """norm(sum of parts [B, PARTS, count, DIM] + bias + residual where ADD), from token `start` on: [ROWS, DIM] float32.

    residual, tokens: [B, count, DIM] float32; `tokens` is written by program 0.
    """
    channel, row = tl.arange(0, DIM), start + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, DIM], tl.float32) + tl.load(bias + channel).to(tl.float32)[None, :]
    if ADD:
        total += _object(residual, count * DIM, batch, start, count, ROWS, DIM)
    together: tl.constexpr = 4 if ROWS == 16 else 1  # loads in flight: more need too many registers
    for first in range(0, PARTS, together):
        for i in tl.static_range(together):
            part = tl.minimum(first + i, PARTS - 1)
            found = _object(parts, count * DIM, batch * PARTS + part, start, count, ROWS, DIM)
            total += tl.where(first + i < PARTS, found, 0.0)
    centred = total - (tl.sum(total, 1) / DIM)[:, None]
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / DIM + eps)
    total = centred * rstd[:, None] * tl.load(norm_weight + channel).to(tl.float32)[None, :]
    total += tl.load(norm_bias + channel).to(tl.float32)[None, :]
    place = tokens + batch * count * DIM + row[:, None] * DIM + channel[None, :]
    tl.store(place, total, mask=(row < tl.where(program == 0, count, 0))[:, None])
    return total


@triton.jit
def _head_rows(weight, head, SIZE: tl.constexpr, WIDE: tl.constexpr, DIM: tl.constexpr):
    """A head's SIZE rows of weight [heads * SIZE, DIM] as [WIDE, DIM], zeros past SIZE."""
    unit, channel = tl.arange(0, WIDE), tl.arange(0, DIM)
    place = weight + (head * SIZE + unit)[:, None] * DIM + channel[None, :]
    return tl.load(place, mask=(unit < SIZE)[:, None], other=0.0)


@triton.jit
def _head_columns(weight, head, inner, SIZE: tl.constexpr, WIDE: tl.constexpr, DIM: tl.constexpr):
    """A head's SIZE columns of weight [DIM, inner], transposed: [WIDE, DIM], zeros past SIZE."""
    unit, channel = tl.arange(0, WIDE), tl.arange(0, DIM)
    place = weight + channel[None, :] * inner + (head * SIZE + unit)[:, None]
    return tl.load(place, mask=(unit < SIZE)[:, None], other=0.0)


@triton.jit
def _head_bias(bias, head, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """A head's part of a bias [heads * SIZE] as [1, WIDE] float32, zeros past SIZE."""
    unit = tl.arange(0, WIDE)
    part = tl.load(bias + head * SIZE + unit, mask=unit < SIZE, other=0.0)
    return part.to(tl.float32)[None, :]


@triton.jit
def _through(
    x, weight, bias, head, SIZE: tl.constexpr, WIDE: tl.constexpr, DIM: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """x [TOKENS, DIM] through a head's rows of a projection: [TOKENS, WIDE] float32."""
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    rows = _head_rows(weight, head, SIZE, WIDE, DIM)
    found = tl.dot(x, tl.trans(rows), input_precision=precision)
    return found + _head_bias(bias, head, SIZE, WIDE)


@triton.jit
def _queries_keys_values(
    x, placed, q, q_bias, k, k_bias, v, v_bias, head,
    SIZE: tl.constexpr, WIDE: tl.constexpr, DIM: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A head's projections of x and placed [ROWS, DIM], the second with positions: three of [ROWS, WIDE]."""
    queries = _through(placed, q, q_bias, head, SIZE, WIDE, DIM, EXACT).to(q.dtype.element_ty)
    keys = _through(placed, k, k_bias, head, SIZE, WIDE, DIM, EXACT).to(k.dtype.element_ty)
    values = _through(x, v, v_bias, head, SIZE, WIDE, DIM, EXACT).to(v.dtype.element_ty)
    return queries, keys, values


@triton.jit
def _below(x, y):
    """x over y, [ROWS, WIDE] each: [2 * ROWS, WIDE]."""
    both = tl.permute(tl.join(x, y), [2, 0, 1])
    return tl.reshape(both, [2 * x.shape[0], x.shape[1]])


@triton.jit
def _attention(
    queries, keys, values, allowed, out, scale, head,
    SIZE: tl.constexpr, WIDE: tl.constexpr, DIM: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A head's attention, through its part of the output projection: [ROWS, DIM] float32.

    queries: [ROWS, WIDE]; keys, values: [TOKENS, WIDE]; allowed: [TOKENS]."""
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    scores = tl.dot(queries, tl.trans(keys), input_precision=precision) * scale
    scores = tl.where(allowed[None, :], scores, float("-inf"))
    share = tl.exp2(scores - tl.max(scores, 1)[:, None])
    share = (share / tl.sum(share, 1)[:, None]).to(out.dtype.element_ty)
    found = tl.dot(share, values, input_precision=precision).to(out.dtype.element_ty)
    columns = _head_columns(out, head, DIM, SIZE, WIDE, DIM)
    return tl.dot(found, columns, input_precision=precision)


@kernel
def token_step_kernel(
    prompts, present, parts, bias, residual, norm_weight, norm_bias, tokens,
    self_q, self_q_bias, self_k, self_k_bias, self_v, self_v_bias, self_out, self_parts,
    to_image_q, to_image_q_bias, to_image_k, queries,
    to_token_q, to_token_q_bias, to_token_k, to_token_k_bias, to_token_v, to_token_v_bias, to_token_out, keys, offsets, values,
    prompt_stride, count, rows, self_scale, eps,
    FROM_PROMPTS: tl.constexpr, ADD: tl.constexpr, MASKED: tl.constexpr, TO_TOKEN: tl.constexpr, SELF: tl.constexpr, TO_IMAGE: tl.constexpr,
    PARTS: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The tokens as `tokens_of` has them (FROM_PROMPTS: the prompts), and then, a program for each head, all
    that is asked of (with more than 32 tokens, SELF alone or the others):

    TO_TOKEN: keys and values [B, HEADS * rows, DIM], offsets [B, HEADS * rows] float32 of the
        image-to-token attention, folded with its query and output matrices; -inf where no token is.
    SELF: self-attention: `self_parts` [B, HEADS, count, DIM] float32, a head's share before the bias.
    TO_IMAGE: queries [B, HEADS * rows, DIM] of the token-to-image attention, folded with its key matrix.

    prompts: [B, count, DIM], an object every `prompt_stride` elements; present: [B, count] bool, read
    where MASKED. Matrices are [out, in]; those of attention with the image have DIM / 2 channels inside.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    size: tl.constexpr = DIM // HEADS
    wide: tl.constexpr = size if size > 16 else 16
    half: tl.constexpr = DIM // 2 // HEADS
    half_wide: tl.constexpr = half if half > 16 else 16
    second: tl.constexpr = 1 if TO_TOKEN else 0  # the role of SELF or TO_IMAGE
    batch, head, role = tl.program_id(1).to(tl.int64), tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    row, channel = tl.arange(0, TOKENS), tl.arange(0, DIM)
    dtype = self_q.dtype.element_ty
    allowed = row < count
    if MASKED:
        allowed = allowed & (tl.load(present + batch * count + row, mask=row < count, other=0) != 0)
    rows_at_once: tl.constexpr = 32 if SELF and TOKENS > 32 else TOKENS  # more are spilled
    tl.static_assert(not (TO_TOKEN and rows_at_once < TOKENS))
    place = _object(prompts, prompt_stride, batch, 0, count, rows_at_once, DIM)
    if FROM_PROMPTS:
        x, placed = place.to(dtype), place.to(dtype)
    else:
        x = tokens_of(
            parts, bias, residual, norm_weight, norm_bias, tokens, batch, 0, count, eps, tl.program_id(0),
            ADD, PARTS, rows_at_once, DIM,
        )  # fmt: skip
        placed = (x + place).to(dtype)
        x = x.to(dtype)
    at = (batch * HEADS * rows + head * rows + row)[:, None] * DIM + channel[None, :]
    stored = (row < rows)[:, None]
    if SELF:  # noqa: SIM102  known when it is compiled; the role is not
        if role == second:
            few, share = tl.arange(0, rows_at_once), self_parts + (batch * HEADS + head) * count * DIM
            query, key, value = _queries_keys_values(
                x, placed, self_q, self_q_bias, self_k, self_k_bias, self_v, self_v_bias, head, size, wide, DIM, EXACT
            )  # fmt: skip
            if rows_at_once < TOKENS:
                tl.debug_barrier()  # the matrices are loaded again: held for so long they would be spilled
                place = _object(prompts, prompt_stride, batch, rows_at_once, count, rows_at_once, DIM)
                if FROM_PROMPTS:
                    x, placed = place.to(dtype), place.to(dtype)
                else:
                    rest = tokens_of(
                        parts, bias, residual, norm_weight, norm_bias, tokens, batch, rows_at_once, count, eps,
                        tl.program_id(0), ADD, PARTS, rows_at_once, DIM,
                    )  # fmt: skip
                    x, placed = rest.to(dtype), (rest + place).to(dtype)
                query2, key2, value2 = _queries_keys_values(
                    x, placed, self_q, self_q_bias, self_k, self_k_bias, self_v, self_v_bias, head, size, wide, DIM, EXACT
                )  # fmt: skip
                key, value = _below(key, key2), _below(value, value2)
                found = _attention(query2, key, value, allowed, self_out, self_scale, head, size, wide, DIM, EXACT)
                late = rows_at_once + few
                tl.store(share + late[:, None] * DIM + channel[None, :], found, mask=(late < count)[:, None])
            found = _attention(query, key, value, allowed, self_out, self_scale, head, size, wide, DIM, EXACT)
            tl.store(share + few[:, None] * DIM + channel[None, :], found, mask=(few < count)[:, None])
    if TO_IMAGE:  # noqa: SIM102  known when it is compiled; the role is not
        if role == second:
            query = _through(placed, to_image_q, to_image_q_bias, head, half, half_wide, DIM, EXACT).to(dtype)
            matrix = _head_rows(to_image_k, head, half, half_wide, DIM)
            query = tl.dot(query, matrix, input_precision=precision)
            tl.store(queries + at, query.to(dtype), mask=stored)
    if TO_TOKEN:  # noqa: SIM102  known when it is compiled; the role is not
        if role == 0:
            key = _through(placed, to_token_k, to_token_k_bias, head, half, half_wide, DIM, EXACT).to(dtype)
            offset = tl.sum(key.to(tl.float32) * _head_bias(to_token_q_bias, head, half, half_wide), 1)
            offset = tl.where(allowed, offset, float("-inf"))
            tl.store(offsets + batch * HEADS * rows + head * rows + row, offset, mask=row < rows)
            key = tl.dot(key, _head_rows(to_token_q, head, half, half_wide, DIM), input_precision=precision)
            tl.store(keys + at, key.to(dtype), mask=stored)
            value = _through(x, to_token_v, to_token_v_bias, head, half, half_wide, DIM, EXACT).to(dtype)
            matrix = _head_columns(to_token_out, head, DIM // 2, half, half_wide, DIM)
            value = tl.dot(value, matrix, input_precision=precision)
            tl.store(values + at, value.to(dtype), mask=stored)


class Pending(NamedTuple):
    """Tokens that the next launch makes: norm(sum of parts + bias + residual)."""

    parts: Tensor  # [B, P, T, C] float32
    bias: Tensor
    residual: Tensor | None  # [B, T, C] float32; None: 0
    norm_weight: Tensor
    norm_bias: Tensor


class Step(NamedTuple):
    """What one launch of `token_step_kernel` found; None where it was not asked for. R rows as `token_step` has them."""

    tokens: Tensor  # [B, T, C] float32
    self_parts: Tensor | None  # [B, heads, T, C] float32
    queries: Tensor | None  # [B, R, C]
    to_token: tuple[Tensor, Tensor, Tensor] | None  # keys [B, R, C], offsets [B, R] float32, values [B, R, C]


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
    self_attention: Sequence[Tensor] | None = None,
    to_image: Sequence[Tensor] | None = None,
    to_token: Sequence[Tensor] | None = None,
) -> Step:
    """Tokens that are pending (None: the prompts), and what of the next attention depends on nothing else.

    prompts: [B, T, C], contiguous but for the first stride; present: [B, T] bool. self_attention: its
    matrices and biases but for the last bias; to_image: query matrix, bias, key matrix of the
    token-to-image attention; to_token: query, key and value matrices and biases, output matrix of the
    image-to-token attention. All matrices in the dtype of products. Folded prompts have R = heads * rows
    rows. On the current stream.
    """
    batch, count, dim = prompts.shape
    if self_attention is not None and to_token is not None and tile_rows(count, rows) > 32:
        first = token_step(prompts, present, pending, heads, rows, eps, self_attention)
        then = token_step(prompts, present, pending, heads, rows, eps, None, to_image, to_token)
        return then._replace(self_parts=first.self_parts)
    given = next(w for w in (self_attention, to_image, to_token) if w is not None)
    like = given[0]

    def space(*size: int, wanted: bool = True, dtype: torch.dtype = torch.float32) -> Tensor:
        return like.new_empty(size if wanted else (0,), dtype=dtype)

    tokens = space(batch, count, dim, wanted=pending is not None)
    self_parts = space(batch, heads, count, dim, wanted=self_attention is not None)
    queries = space(batch, heads * rows, dim, wanted=to_image is not None, dtype=like.dtype)
    keys, values = (space(batch, heads * rows, dim, wanted=to_token is not None, dtype=like.dtype) for _ in range(2))
    offsets = space(batch, heads * rows, wanted=to_token is not None)
    parts, bias, residual, *norm = pending or (tokens, like, None, like, like)
    roles = sum(w is not None for w in (self_attention or to_image, to_token))
    with torch.cuda.device_of(like):
        token_step_kernel[heads * roles, batch](
            prompts, like if present is None else present, parts, bias, tokens if residual is None else residual, *norm, tokens,
            *(self_attention or [like] * 7), self_parts, *(to_image or [like] * 3), queries,
            *(to_token or [like] * 7), keys, offsets, values,
            prompts.stride(0), count, rows, 1.4426950408889634 * (dim // heads) ** -0.5, eps,
            FROM_PROMPTS=pending is None, ADD=residual is not None, MASKED=present is not None, TO_TOKEN=to_token is not None,
            SELF=self_attention is not None, TO_IMAGE=to_image is not None, PARTS=1 if pending is None else parts.shape[1],
            HEADS=heads, TOKENS=tile_rows(count, rows), DIM=dim, EXACT=like.dtype == torch.float32,
            num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return Step(
        tokens,
        None if self_attention is None else self_parts,
        None if to_image is None else queries,
        None if to_token is None else (keys, offsets, values),
    )
