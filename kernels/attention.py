"""Attention in Triton, split over spans of the keys as in flash decoding.

A program processes one span of keys; a second kernel merges the partial results of the spans.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from sam2_fast.kernels.attention_forms import default_form, forms, min_spans, spans_to_fill
from sam2_fast.kernels.choices import Form, choose
from sam2_fast.kernels.launch import HOPPER, capability_of, kernel, multiprocessors_of
from torch import Tensor

LOG2_E = 1.4426950408889634
MERGE_ELEMENTS = 8192  # elements that a program of `merge_kernel` loads at once
MERGE_CHANNELS = 64  # channels of a program of `merge_kernel`


@triton.jit
def update_online_softmax(
    query,
    keys,
    values,
    key_offsets,
    value_offsets,
    key_mask,
    running_max,
    running_sum,
    accumulator,
    scale,
    value_dim: tl.constexpr,
    MASKED: tl.constexpr,
    VALUES: tl.constexpr,
    precision: tl.constexpr,
):
    """Return running maximum (of raw scores), running sum and accumulator after one more key tile.

    keys, values: pointers to the first row of the tile. value_dim: channels of a value; VALUES: the
    same as a power of two. MASKED: only rows in `key_mask` exist.
    """
    channel_mask = (tl.arange(0, VALUES) < value_dim)[None, :]
    if MASKED:
        tile = tl.load(keys + key_offsets, mask=key_mask[None, :], other=0.0)
        value = tl.load(values + value_offsets, mask=key_mask[:, None] & channel_mask, other=0.0)
    elif value_dim == VALUES:
        tile = tl.load(keys + key_offsets)
        value = tl.load(values + value_offsets)
    else:
        tile = tl.load(keys + key_offsets)
        value = tl.load(values + value_offsets, mask=channel_mask, other=0.0)
    scores = tl.dot(query, tile, input_precision=precision)
    if MASKED:
        scores = tl.where(key_mask[None, :], scores, float("-inf"))
    new_max = tl.maximum(running_max, tl.max(scores, 1))
    weights = tl.exp2(scores * scale - (new_max * scale)[:, None])
    rescale = tl.exp2((running_max - new_max) * scale)
    running_sum = running_sum * rescale + tl.sum(weights, 1)
    weights = weights.to(value.dtype)
    accumulator = accumulator * rescale[:, None]
    accumulator = tl.dot(weights, value, accumulator, input_precision=precision)
    return new_max, running_sum, accumulator


@kernel
def attend_kernel(
    q,
    k,
    v,
    first_keys,
    out,
    span_accumulators,
    span_maxima,
    span_sums,
    num_queries,
    shared,
    num_keys,
    value_dim: tl.constexpr,
    scale,
    WIDE: tl.constexpr,
    VALUES: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RAGGED: tl.constexpr,
    ALONE: tl.constexpr,
    PEELED: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Attention of BLOCK_Q queries of one object to one span of the object's keys.

    Pointers, all contiguous:
    q: queries [1 if shared else B, num_queries, WIDE], compute dtype.
    k: keys [B, num_keys, WIDE], or [total keys, WIDE] if RAGGED, compute dtype.
    v: values [B, num_keys, value_dim], or [total keys, value_dim] if RAGGED, compute dtype.
    first_keys: row of each object's first key, then the total number of keys, [B + 1] int32 or
        int64; only if RAGGED.
    out: result if ALONE [B, num_queries, value_dim], compute dtype.
    span_accumulators: result unless ALONE [B, spans, num_queries, value_dim] float32.
    span_maxima: result unless ALONE, running maxima of base-2 scores [B, spans, num_queries]
        float32.
    span_sums: result unless ALONE, running sums of weights [B, spans, num_queries] float32.

    num_queries: int. shared: int, 1 if all objects have the same queries. num_keys: int, ignored
    if RAGGED. value_dim: channels of a value. scale: float, factor that turns scores into base-2
    logits. ALONE: there is only one span, so the result is final. Only the last spans may be
    empty. PEELED: full tiles of keys are loaded without a mask; this duplicates the loop body and
    takes more registers. WIDE and VALUES: channels of a key and of a value, as powers of two.
    Grid: (cdiv(num_queries, BLOCK_Q), spans, B).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    key_channel = tl.arange(0, WIDE)
    channel = tl.arange(0, VALUES)
    key = tl.arange(0, BLOCK_K)
    row_mask = row < num_queries
    first_key = batch * num_keys
    if RAGGED:
        first_key = tl.load(first_keys + batch).to(tl.int64)
        num_keys = (tl.load(first_keys + batch + 1) - first_key).to(tl.int32)
    query_batch = tl.where(shared != 0, 0, batch)
    query_ptrs = q + (query_batch * num_queries + row)[:, None] * WIDE + key_channel[None, :]
    query = tl.load(query_ptrs, mask=row_mask[:, None], other=0.0)
    span = tl.cdiv(tl.cdiv(num_keys, tl.num_programs(1)), BLOCK_K) * BLOCK_K
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, num_keys)
    running_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_Q], tl.float32)
    accumulator = tl.zeros([BLOCK_Q, VALUES], tl.float32)
    key_offsets = key[None, :] * WIDE + key_channel[:, None]
    value_offsets = key[:, None] * value_dim + channel[None, :]
    if PEELED:
        full_end = start + tl.maximum(end - start, 0) // BLOCK_K * BLOCK_K
        for key_start in range(start, full_end, BLOCK_K):
            running_max, running_sum, accumulator = update_online_softmax(
                query,
                k + (first_key + key_start) * WIDE,
                v + (first_key + key_start) * value_dim,
                key_offsets,
                value_offsets,
                key < 1,
                running_max,
                running_sum,
                accumulator,
                scale,
                value_dim,
                False,
                VALUES,
                precision,
            )
        if full_end < end:
            running_max, running_sum, accumulator = update_online_softmax(
                query,
                k + (first_key + full_end) * WIDE,
                v + (first_key + full_end) * value_dim,
                key_offsets,
                value_offsets,
                full_end + key < end,
                running_max,
                running_sum,
                accumulator,
                scale,
                value_dim,
                True,
                VALUES,
                precision,
            )
    else:
        for key_start in range(start, end, BLOCK_K):
            running_max, running_sum, accumulator = update_online_softmax(
                query,
                k + (first_key + key_start) * WIDE,
                v + (first_key + key_start) * value_dim,
                key_offsets,
                value_offsets,
                key_start + key < end,
                running_max,
                running_sum,
                accumulator,
                scale,
                value_dim,
                True,
                VALUES,
                precision,
            )
    store_mask = row_mask[:, None] & (channel < value_dim)[None, :]
    if ALONE:
        offsets = (batch * num_queries + row)[:, None] * value_dim + channel[None, :]
        result = accumulator / running_sum[:, None]
        tl.store(out + offsets, result.to(out.dtype.element_ty), mask=store_mask)
    else:
        partial_row = (batch * tl.num_programs(1) + tl.program_id(1)) * num_queries + row
        accumulator_ptrs = span_accumulators + partial_row[:, None] * value_dim + channel[None, :]
        tl.store(accumulator_ptrs, accumulator, mask=store_mask)
        tl.store(span_maxima + partial_row, running_max * scale, mask=row_mask)
        tl.store(span_sums + partial_row, running_sum, mask=row_mask)


@kernel
def merge_kernel(
    span_accumulators,
    span_maxima,
    span_sums,
    out,
    num_queries,
    value_dim,
    spans,
    SPANS: tl.constexpr,
    BLOCK: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Merge the partial results of all spans, for BLOCK queries and VALUES channels.

    Pointers, all contiguous:
    span_accumulators: [B, spans, num_queries, value_dim] float32.
    span_maxima: running maxima of base-2 scores [B, spans, num_queries] float32.
    span_sums: running sums of weights [B, spans, num_queries] float32.
    out: [B, num_queries, value_dim], any float dtype.

    num_queries, spans: int. value_dim: int, channels of a value. All spans of a row are loaded
    at once: SPANS >= spans.
    Grid: (cdiv(num_queries, BLOCK), cdiv(value_dim, VALUES), B).
    """
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    span = tl.arange(0, SPANS)
    partial_row = (batch * spans + span)[None, :] * num_queries + row[:, None]  # [BLOCK, SPANS]
    span_mask = (row < num_queries)[:, None] & (span < spans)[None, :]
    maxima = tl.load(span_maxima + partial_row, mask=span_mask, other=float("-inf"))
    row_max = tl.max(maxima, 1)
    rescale = tl.exp2(maxima - tl.where(row_max == float("-inf"), 0.0, row_max)[:, None])
    rescale = tl.where(span_mask, rescale, 0.0)
    row_sum = tl.sum(rescale * tl.load(span_sums + partial_row, mask=span_mask, other=0.0), 1)
    tile_mask = span_mask[:, :, None] & (channel < value_dim)[None, None, :]
    accumulator_ptrs = (
        span_accumulators + partial_row[:, :, None] * value_dim + channel[None, None, :]
    )
    tile = tl.load(accumulator_ptrs, mask=tile_mask, other=0.0)
    merged = tl.sum(tile * rescale[:, :, None], 1) / row_sum[:, None]
    store_mask = (row < num_queries)[:, None] & (channel < value_dim)[None, :]
    out_offsets = (batch * num_queries + row)[:, None] * value_dim + channel[None, :]
    tl.store(out + out_offsets, merged.to(out.dtype.element_ty), mask=store_mask)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dim: int,
    first_keys: Tensor | None = None,
    max_keys: int = 0,
    spans: int | None = None,
) -> Tensor:
    """softmax(q k' / sqrt(dim)) v: [B, N, dv], computed on the current stream.

    q: [1 or B, N, dk], k: [B, K, dk], v: [B, K, dv]; dk is a power of two.
    first_keys: [B + 1] on the device, if objects have different numbers of keys: the row of each
        object's first key, then the total; k is [total, dk] and v [total, dv].
    max_keys: with first_keys, the largest number of keys of an object.
    spans: number of spans that keys are split into, or None for enough spans to fill the device.
    """
    ragged = first_keys is not None
    batch = k.shape[0] if first_keys is None else len(first_keys) - 1
    num_keys = k.shape[1] if first_keys is None else max_keys
    num_queries = q.shape[1]
    value_dim = v.shape[-1]
    out = q.new_empty(batch, num_queries, value_dim)
    if out.numel() == 0:
        return out
    padded_dim = max(triton.next_power_of_2(value_dim), 16)
    key_dim = q.shape[2]
    size = q.element_size()
    capability = capability_of(q)
    key = (
        size,
        key_dim,
        padded_dim,
        int(ragged),
        triton.next_power_of_2(num_queries * batch),
    )
    default = default_form(padded_dim, size, capability)
    library = [] if ragged or size == 4 else ["library"]
    options: list[Form] = [*forms(key_dim, padded_dim, size, capability), *library]
    form = choose(q.device, "attend", key, default, options)
    if isinstance(form, str):
        return _torch_attention(q, k, v, dim)
    block_q, block_k, warps, stages = form
    query_blocks = triton.cdiv(num_queries, block_q)
    if spans is None:
        resident = 1 if capability in HOPPER else 2
        programs = query_blocks * batch
        spans = spans_to_fill(programs, num_keys, block_k, multiprocessors_of(q), resident)
        spans = max(spans, min_spans(padded_dim))
    shape = (batch, spans, num_queries, value_dim) if spans > 1 else (0,)
    accumulators = q.new_empty(shape, dtype=torch.float32)
    maxima = q.new_empty(shape[:3], dtype=torch.float32)
    sums = q.new_empty(shape[:3], dtype=torch.float32)
    with torch.cuda.device_of(q):
        attend_kernel[query_blocks, spans, batch](
            q=q,
            k=k,
            v=v,
            first_keys=first_keys,
            out=out,
            span_accumulators=accumulators,
            span_maxima=maxima,
            span_sums=sums,
            num_queries=num_queries,
            shared=int(q.shape[0] == 1),
            num_keys=num_keys,
            value_dim=value_dim,
            scale=LOG2_E * dim**-0.5,
            WIDE=key_dim,
            VALUES=padded_dim,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            RAGGED=ragged,
            ALONE=spans == 1,
            PEELED=capability in HOPPER,
            EXACT=q.dtype == torch.float32,
            num_warps=warps,
            num_stages=stages,
        )
        if spans > 1:
            merge(accumulators, maxima, sums, out)
    return out


def _torch_attention(q: Tensor, k: Tensor, v: Tensor, dim: int) -> Tensor:
    """`attend` by torch; values are padded to the channels of keys, as torch requires."""
    padded = F.pad(v, (0, k.shape[2] - v.shape[2]))[:, None]
    queries = q.expand(len(k), -1, -1)[:, None]
    result = F.scaled_dot_product_attention(queries, k[:, None], padded, scale=dim**-0.5)
    return result[:, 0, :, : v.shape[2]].contiguous()


def merge_tile(spans: int) -> tuple[int, int]:
    """Rows of a program of `merge_kernel`, and spans as a power of two: 64 elements a thread."""
    padded_spans = triton.next_power_of_2(spans)
    return max(MERGE_ELEMENTS // (padded_spans * MERGE_CHANNELS), 1), padded_spans


def merge(accumulators: Tensor, maxima: Tensor, sums: Tensor, out: Tensor) -> Tensor:
    """Merge the partial results of spans of keys into `out` [B, N, dv], and return it.

    accumulators: [B, spans, N, dv] float32; maxima, sums: [B, spans, N] float32; all contiguous.
    """
    batch, spans, num_queries, value_dim = accumulators.shape
    block, padded_spans = merge_tile(spans)
    channels = min(MERGE_CHANNELS, max(triton.next_power_of_2(value_dim), 16))
    grid = (triton.cdiv(num_queries, block), triton.cdiv(value_dim, channels), batch)
    with torch.cuda.device_of(out):
        merge_kernel[grid](
            span_accumulators=accumulators,
            span_maxima=maxima,
            span_sums=sums,
            out=out,
            num_queries=num_queries,
            value_dim=value_dim,
            spans=spans,
            SPANS=padded_spans,
            BLOCK=block,
            VALUES=channels,
            num_warps=4,
        )
    return out
