"""The kernel of `decoder_tokens.token_step`."""

from __future__ import annotations

import triton
import triton.language as tl
from sam2_fast.kernels.decoder_layers import (
    attend_head,
    concatenate_rows,
    load_head_bias,
    load_head_columns,
    load_head_rows,
    load_tokens,
    project_head,
    project_queries_keys_values,
    sum_and_normalize,
)
from sam2_fast.kernels.launch import kernel


@triton.jit
def _tokens(
    prompts,
    prompt_stride,
    pending,
    tokens,
    batch,
    start,
    count,
    eps,
    FROM_PROMPTS: tl.constexpr,
    ADD: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Tokens from `start` on without and with their positions, the prompts: two of [ROWS, DIM]
    float32.

    FROM_PROMPTS: the tokens are the prompts; else norm(sum of parts + bias + residual) of
    `pending`, written to `tokens`.
    """
    position = load_tokens(prompts, prompt_stride, batch, start, count, ROWS, DIM)
    if FROM_PROMPTS:
        x = position
        with_position = position
    else:
        program = tl.program_id(0)
        x = sum_and_normalize(
            pending, tokens, batch, start, count, eps, program, ADD, PARTS, ROWS, DIM
        )
        with_position = x + position
    return x, with_position


@kernel
def token_step_kernel(
    prompts,
    present,
    parts,
    bias,
    residual,
    norm_weight,
    norm_bias,
    tokens,
    self_q,
    self_q_bias,
    self_k,
    self_k_bias,
    self_v,
    self_v_bias,
    self_out,
    self_parts,
    to_image_q,
    to_image_q_bias,
    to_image_k,
    queries,
    to_token_q,
    to_token_q_bias,
    to_token_k,
    to_token_k_bias,
    to_token_v,
    to_token_v_bias,
    to_token_out,
    keys,
    offsets,
    values,
    prompt_stride,
    count,
    rows,
    self_scale,
    eps,
    FROM_PROMPTS: tl.constexpr,
    ADD: tl.constexpr,
    MASKED: tl.constexpr,
    TO_TOKEN: tl.constexpr,
    SELF: tl.constexpr,
    TO_IMAGE: tl.constexpr,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The tokens, norm(sum of parts + bias + residual) or FROM_PROMPTS the prompts, and then the
    roles that are asked for, one program for each head (TOKENS > 32: SELF alone, or the others):

    SELF: self-attention, a head's share before the output's bias.
    TO_IMAGE: queries of the token-to-image attention, folded with its key matrix.
    TO_TOKEN: keys and values of the image-to-token attention, folded with its query and output
        matrices.

    Pointers, contiguous but for prompts; matrices are [out, in], in the compute dtype:
    prompts: prompt tokens, which are positions, too [B, count, DIM], any float dtype; objects lie
        prompt_stride elements apart.
    present: which tokens exist [B, count] uint8; MASKED.
    parts: partial sums [B, PARTS, count, DIM] float32; not FROM_PROMPTS.
    bias: of the sum [DIM], any float dtype; not FROM_PROMPTS.
    residual: [B, count, DIM] float32; ADD.
    norm_weight, norm_bias: of the layer norm [DIM], any float dtype; not FROM_PROMPTS.
    tokens: the tokens that are made [B, count, DIM] float32; not FROM_PROMPTS.
    self_q, self_k, self_v, self_out: self-attention's matrices [DIM, DIM]; SELF.
    self_q_bias, self_k_bias, self_v_bias: [DIM], any float dtype; SELF.
    self_parts: self-attention's shares [B, HEADS, count, DIM] float32; SELF.
    to_image_q, to_image_k: token-to-image attention's matrices [DIM / 2, DIM]; TO_IMAGE.
    to_image_q_bias: [DIM / 2], any float dtype; TO_IMAGE.
    queries: folded [B, HEADS * rows, DIM], compute dtype; TO_IMAGE.
    to_token_q, to_token_k, to_token_v: image-to-token attention's matrices [DIM / 2, DIM];
        TO_TOKEN.
    to_token_q_bias, to_token_k_bias, to_token_v_bias: [DIM / 2], any float dtype; TO_TOKEN.
    to_token_out: [DIM, DIM / 2]; TO_TOKEN.
    keys, values: folded [B, HEADS * rows, DIM], compute dtype; TO_TOKEN.
    offsets: of scores, -inf where no token is [B, HEADS * rows] float32; TO_TOKEN.

    prompt_stride, count: int. rows: int, folded rows of a head. self_scale: float, of
    self-attention's scores to logarithms of 2. eps: float, of the layer norm.
    Grid: (HEADS * roles, B).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    size: tl.constexpr = DIM // HEADS
    wide: tl.constexpr = size if size > 16 else 16
    half: tl.constexpr = DIM // 2 // HEADS
    half_wide: tl.constexpr = half if half > 16 else 16
    second: tl.constexpr = 1 if TO_TOKEN else 0  # the role of SELF or TO_IMAGE
    batch = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) % HEADS
    role = tl.program_id(0) // HEADS
    row = tl.arange(0, TOKENS)
    channel = tl.arange(0, DIM)
    dtype = self_q.dtype.element_ty
    allowed = row < count
    if MASKED:
        is_present = tl.load(present + batch * count + row, mask=row < count, other=0)
        allowed = allowed & (is_present != 0)
    rows_at_once: tl.constexpr = 32 if SELF and TOKENS > 32 else TOKENS  # more are spilled
    tl.static_assert(not (TO_TOKEN and rows_at_once < TOKENS))
    pending = (parts, bias, residual, norm_weight, norm_bias)
    x, with_position = _tokens(
        prompts,
        prompt_stride,
        pending,
        tokens,
        batch,
        0,
        count,
        eps,
        FROM_PROMPTS,
        ADD,
        PARTS,
        rows_at_once,
        DIM,
    )
    with_position = with_position.to(dtype)
    x = x.to(dtype)
    folded_row = (batch * HEADS * rows + head * rows + row)[:, None] * DIM + channel[None, :]
    stored = (row < rows)[:, None]
    if SELF:  # noqa: SIM102  known when it is compiled; the role is not
        if role == second:
            first_rows = tl.arange(0, rows_at_once)
            self_part = self_parts + (batch * HEADS + head) * count * DIM
            query, key, value = project_queries_keys_values(
                x,
                with_position,
                self_q,
                self_q_bias,
                self_k,
                self_k_bias,
                self_v,
                self_v_bias,
                head,
                size,
                wide,
                DIM,
                EXACT,
            )
            if rows_at_once < TOKENS:
                # the matrices are loaded again: held for so long they would be spilled
                tl.debug_barrier()
                x, with_position = _tokens(
                    prompts,
                    prompt_stride,
                    pending,
                    tokens,
                    batch,
                    rows_at_once,
                    count,
                    eps,
                    FROM_PROMPTS,
                    ADD,
                    PARTS,
                    rows_at_once,
                    DIM,
                )
                x = x.to(dtype)
                with_position = with_position.to(dtype)
                query2, key2, value2 = project_queries_keys_values(
                    x,
                    with_position,
                    self_q,
                    self_q_bias,
                    self_k,
                    self_k_bias,
                    self_v,
                    self_v_bias,
                    head,
                    size,
                    wide,
                    DIM,
                    EXACT,
                )
                key = concatenate_rows(key, key2)
                value = concatenate_rows(value, value2)
                attended = attend_head(
                    query2,
                    key,
                    value,
                    allowed,
                    self_out,
                    self_scale,
                    head,
                    size,
                    wide,
                    DIM,
                    EXACT,
                )
                second_rows = rows_at_once + first_rows
                part_at = self_part + second_rows[:, None] * DIM + channel[None, :]
                tl.store(part_at, attended, mask=(second_rows < count)[:, None])
            attended = attend_head(
                query, key, value, allowed, self_out, self_scale, head, size, wide, DIM, EXACT
            )
            part_at = self_part + first_rows[:, None] * DIM + channel[None, :]
            tl.store(part_at, attended, mask=(first_rows < count)[:, None])
    if TO_IMAGE:  # noqa: SIM102  known when it is compiled; the role is not
        if role == second:
            query = project_head(
                with_position, to_image_q, to_image_q_bias, head, half, half_wide, DIM, EXACT
            ).to(dtype)
            matrix = load_head_rows(to_image_k, head, half, half_wide, DIM)
            query = tl.dot(query, matrix, input_precision=precision)
            tl.store(queries + folded_row, query.to(dtype), mask=stored)
    if TO_TOKEN:  # noqa: SIM102  known when it is compiled; the role is not
        if role == 0:
            key = project_head(
                with_position, to_token_k, to_token_k_bias, head, half, half_wide, DIM, EXACT
            ).to(dtype)
            offset = key.to(tl.float32)
            offset = offset * load_head_bias(to_token_q_bias, head, half, half_wide)
            offset = tl.sum(offset, 1)
            offset = tl.where(allowed, offset, float("-inf"))
            tl.store(offsets + batch * HEADS * rows + head * rows + row, offset, mask=row < rows)
            matrix = load_head_rows(to_token_q, head, half, half_wide, DIM)
            key = tl.dot(key, matrix, input_precision=precision)
            tl.store(keys + folded_row, key.to(dtype), mask=stored)
            value = project_head(
                x, to_token_v, to_token_v_bias, head, half, half_wide, DIM, EXACT
            ).to(dtype)
            matrix = load_head_columns(to_token_out, head, DIM // 2, half, half_wide, DIM)
            value = tl.dot(value, matrix, input_precision=precision)
            tl.store(values + folded_row, value.to(dtype), mask=stored)
