"""Device functions for the mask decoder's prompt tokens: partial sums, projections, attention.

SIZE is the number of channels of a head; WIDE is the same padded to a power of two of at least 16.
"""

from __future__ import annotations

import triton
import triton.language as tl
from sam2_fast.kernels.layer_norm import normalize_rows


@triton.jit
def load_tokens(x, stride, batch, start, count, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Tokens `start` to `start + ROWS` of one object: [ROWS, DIM] float32, zeros past `count`.

    x: [., count, DIM], with `stride` elements from one object to the next.
    """
    row = start + tl.arange(0, ROWS)
    channel = tl.arange(0, DIM)
    token_ptrs = x + batch * stride + row[:, None] * DIM + channel[None, :]
    return tl.load(token_ptrs, mask=(row < count)[:, None], other=0.0).to(tl.float32)


@triton.jit
def sum_and_normalize(
    pending,
    tokens,
    batch,
    start,
    count,
    eps,
    program,
    ADD: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """norm(sum of parts + bias + residual), tokens `start` to `start + ROWS`: [ROWS, DIM] float32.

    pending: parts [B, PARTS, count, DIM] float32; bias [DIM]; residual [B, count, DIM] float32,
        added if ADD; weight and bias of the norm [DIM].
    tokens: [B, count, DIM] float32; program 0 also stores the result there.
    """
    parts, bias, residual, norm_weight, norm_bias = pending
    channel = tl.arange(0, DIM)
    row = start + tl.arange(0, ROWS)
    x = tl.zeros([ROWS, DIM], tl.float32) + tl.load(bias + channel).to(tl.float32)[None, :]
    if ADD:
        x += load_tokens(residual, count * DIM, batch, start, count, ROWS, DIM)
    in_flight: tl.constexpr = 4 if ROWS == 16 else 1  # concurrent loads, limited by registers
    for first_part in range(0, PARTS, in_flight):
        for i in tl.static_range(in_flight):
            part = tl.minimum(first_part + i, PARTS - 1)
            addend = load_tokens(parts, count * DIM, batch * PARTS + part, start, count, ROWS, DIM)
            x += tl.where(first_part + i < PARTS, addend, 0.0)
    x = normalize_rows(x, norm_weight, norm_bias, channel, eps, DIM)
    token_ptrs = tokens + batch * count * DIM + row[:, None] * DIM + channel[None, :]
    tl.store(token_ptrs, x, mask=(row < tl.where(program == 0, count, 0))[:, None])
    return x


@triton.jit
def load_head_rows(weight, head, SIZE: tl.constexpr, WIDE: tl.constexpr, DIM: tl.constexpr):
    """A head's SIZE rows of weight [heads * SIZE, DIM] as [WIDE, DIM], zeros past SIZE."""
    unit = tl.arange(0, WIDE)
    channel = tl.arange(0, DIM)
    weight_ptrs = weight + (head * SIZE + unit)[:, None] * DIM + channel[None, :]
    return tl.load(weight_ptrs, mask=(unit < SIZE)[:, None], other=0.0)


@triton.jit
def load_head_columns(
    weight, head, inner, SIZE: tl.constexpr, WIDE: tl.constexpr, DIM: tl.constexpr
):
    """A head's SIZE columns of weight [DIM, inner] as [WIDE, DIM], transposed, zeros past SIZE."""
    unit = tl.arange(0, WIDE)
    channel = tl.arange(0, DIM)
    weight_ptrs = weight + channel[None, :] * inner + (head * SIZE + unit)[:, None]
    return tl.load(weight_ptrs, mask=(unit < SIZE)[:, None], other=0.0)


@triton.jit
def load_head_bias(bias, head, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """A head's part of a bias [heads * SIZE] as [1, WIDE] float32, zeros past SIZE."""
    unit = tl.arange(0, WIDE)
    part = tl.load(bias + head * SIZE + unit, mask=unit < SIZE, other=0.0)
    return part.to(tl.float32)[None, :]


@triton.jit
def project_head(
    x,
    weight,
    bias,
    head,
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    DIM: tl.constexpr,
    EXACT: tl.constexpr,
):
    """A head's projection of x [TOKENS, DIM]: [TOKENS, WIDE] float32."""
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    rows = load_head_rows(weight, head, SIZE, WIDE, DIM)
    projected = tl.dot(x, tl.trans(rows), input_precision=precision)
    return projected + load_head_bias(bias, head, SIZE, WIDE)


@triton.jit
def project_queries_keys_values(
    x,
    with_position,
    q,
    q_bias,
    k,
    k_bias,
    v,
    v_bias,
    head,
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    DIM: tl.constexpr,
    EXACT: tl.constexpr,
):
    """A head's queries, keys and values, [ROWS, WIDE] each in the dtype of the matrices.

    x: [ROWS, DIM], projected to values; with_position: [ROWS, DIM], projected to queries and keys.
    """
    dtype = q.dtype.element_ty
    queries = project_head(with_position, q, q_bias, head, SIZE, WIDE, DIM, EXACT).to(dtype)
    keys = project_head(with_position, k, k_bias, head, SIZE, WIDE, DIM, EXACT).to(dtype)
    values = project_head(x, v, v_bias, head, SIZE, WIDE, DIM, EXACT).to(dtype)
    return queries, keys, values


@triton.jit
def concatenate_rows(x, y):
    """Concatenation of x and y, each [ROWS, WIDE], along rows: [2 * ROWS, WIDE]."""
    both = tl.permute(tl.join(x, y), [2, 0, 1])
    return tl.reshape(both, [2 * x.shape[0], x.shape[1]])


@triton.jit
def attend_head(
    queries,
    keys,
    values,
    key_mask,
    out,
    scale,
    head,
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    DIM: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Attention and output projection of one head, without the output bias: [ROWS, DIM] float32.

    queries: [ROWS, WIDE]; keys, values: [TOKENS, WIDE]; key_mask: [TOKENS], keys to attend to.
    out: output matrix [DIM, DIM].
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    scores = tl.dot(queries, tl.trans(keys), input_precision=precision) * scale
    scores = tl.where(key_mask[None, :], scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    weights = (weights / tl.sum(weights, 1)[:, None]).to(out.dtype.element_ty)
    attended = tl.dot(weights, values, input_precision=precision).to(out.dtype.element_ty)
    columns = load_head_columns(out, head, DIM, SIZE, WIDE, DIM)
    return tl.dot(attended, columns, input_precision=precision)
