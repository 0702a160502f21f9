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
    """Tokens `start` to `start + ROWS` without and with position, [ROWS, DIM] float32 each.

    The position of a token is its prompt. FROM_PROMPTS: the tokens are the prompts, and no position
    is added; else they are norm(sum of parts + bias + residual) of `pending`, stored in `tokens`.
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
    """The tokens, and one head of up to two of the computations that follow them (roles).

    The tokens are norm(sum of parts + bias + residual), or FROM_PROMPTS the prompts. The roles are
    selected by flags, of which SELF excludes TO_IMAGE, and with TOKENS > 32 also TO_TOKEN:

    SELF: self-attention, as one partial sum per head without the output bias.
    TO_IMAGE: queries of the token-to-image attention, folded with its key matrix.
    TO_TOKEN: keys and values of the image-to-token attention, folded with its query and output
        matrices.

    Pointers, all contiguous except prompts; matrices are [out, in], in the compute dtype:
    prompts: prompt tokens, also the positions [B, count, DIM], any float dtype; prompt_stride is
        the stride between objects, in elements.
    present: which tokens exist [B, count] uint8; only if MASKED.
    Unless FROM_PROMPTS:
    parts: partial sums [B, PARTS, count, DIM] float32.
    bias: added to the sum of the parts [DIM], any float dtype.
    residual: [B, count, DIM] float32; only if ADD.
    norm_weight, norm_bias: of the layer norm [DIM], any float dtype.
    tokens: result, the tokens [B, count, DIM] float32.
    If SELF:
    self_q, self_k, self_v, self_out: matrices of the self-attention [DIM, DIM].
    self_q_bias, self_k_bias, self_v_bias: [DIM], any float dtype.
    self_parts: result, partial sums [B, HEADS, count, DIM] float32.
    If TO_IMAGE:
    to_image_q, to_image_k: matrices of the token-to-image attention [DIM / 2, DIM].
    to_image_q_bias: [DIM / 2], any float dtype.
    queries: result, folded queries [B, HEADS * rows, DIM], compute dtype.
    If TO_TOKEN:
    to_token_q, to_token_k, to_token_v: matrices of the image-to-token attention [DIM / 2, DIM].
    to_token_q_bias, to_token_k_bias, to_token_v_bias: [DIM / 2], any float dtype.
    to_token_out: output matrix of the image-to-token attention [DIM, DIM / 2].
    keys, values: results, folded keys and values [B, HEADS * rows, DIM], compute dtype.
    offsets: result, added to scores, -inf for absent tokens [B, HEADS * rows] float32.

    prompt_stride, count: int. rows: int, folded rows of a head. self_scale: float, factor that
    turns scores of the self-attention into base-2 logits. eps: float, of the layer norm.
    Grid: (HEADS * roles, B).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    size: tl.constexpr = DIM // HEADS
    padded_size: tl.constexpr = size if size > 16 else 16
    half: tl.constexpr = DIM // 2 // HEADS
    padded_half: tl.constexpr = half if half > 16 else 16
    token_role: tl.constexpr = 1 if TO_TOKEN else 0  # of SELF or TO_IMAGE; TO_TOKEN has role 0
    batch = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) % HEADS
    role = tl.program_id(0) // HEADS
    row = tl.arange(0, TOKENS)
    channel = tl.arange(0, DIM)
    dtype = self_q.dtype.element_ty
    key_mask = row < count
    if MASKED:
        is_present = tl.load(present + batch * count + row, mask=row < count, other=0)
        key_mask = key_mask & (is_present != 0)
    # more than 32 rows of the self-attention would spill registers
    rows_at_once: tl.constexpr = 32 if SELF and TOKENS > 32 else TOKENS
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
    row_mask = (row < rows)[:, None]
    if SELF:  # noqa: SIM102  a compile-time condition; the role is not
        if role == token_role:
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
                padded_size,
                DIM,
                EXACT,
            )
            if rows_at_once < TOKENS:
                # the barrier makes the compiler load the matrices again instead of spilling them
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
                    padded_size,
                    DIM,
                    EXACT,
                )
                key = concatenate_rows(key, key2)
                value = concatenate_rows(value, value2)
                attended = attend_head(
                    query2,
                    key,
                    value,
                    key_mask,
                    self_out,
                    self_scale,
                    head,
                    size,
                    padded_size,
                    DIM,
                    EXACT,
                )
                second_rows = rows_at_once + first_rows
                part_ptrs = self_part + second_rows[:, None] * DIM + channel[None, :]
                tl.store(part_ptrs, attended, mask=(second_rows < count)[:, None])
            attended = attend_head(
                query,
                key,
                value,
                key_mask,
                self_out,
                self_scale,
                head,
                size,
                padded_size,
                DIM,
                EXACT,
            )
            part_ptrs = self_part + first_rows[:, None] * DIM + channel[None, :]
            tl.store(part_ptrs, attended, mask=(first_rows < count)[:, None])
    if TO_IMAGE:  # noqa: SIM102  a compile-time condition; the role is not
        if role == token_role:
            query = project_head(
                with_position, to_image_q, to_image_q_bias, head, half, padded_half, DIM, EXACT
            ).to(dtype)
            matrix = load_head_rows(to_image_k, head, half, padded_half, DIM)
            query = tl.dot(query, matrix, input_precision=precision)
            tl.store(queries + folded_row, query.to(dtype), mask=row_mask)
    if TO_TOKEN:  # noqa: SIM102  a compile-time condition; the role is not
        if role == 0:
            key = project_head(
                with_position, to_token_k, to_token_k_bias, head, half, padded_half, DIM, EXACT
            ).to(dtype)
            offset = key.to(tl.float32)
            offset = offset * load_head_bias(to_token_q_bias, head, half, padded_half)
            offset = tl.sum(offset, 1)
            offset = tl.where(key_mask, offset, float("-inf"))
            tl.store(offsets + batch * HEADS * rows + head * rows + row, offset, mask=row < rows)
            matrix = load_head_rows(to_token_q, head, half, padded_half, DIM)
            key = tl.dot(key, matrix, input_precision=precision)
            tl.store(keys + folded_row, key.to(dtype), mask=row_mask)
            value = project_head(
                x, to_token_v, to_token_v_bias, head, half, padded_half, DIM, EXACT
            ).to(dtype)
            matrix = load_head_columns(to_token_out, head, DIM // 2, half, padded_half, DIM)
            value = tl.dot(value, matrix, input_precision=precision)
            tl.store(values + folded_row, value.to(dtype), mask=row_mask)
