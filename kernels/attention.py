"""Attention of any queries and keys in Triton: keys are split into spans, one program each, and the
spans' partial results are merged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from sam2_fast.kernels.attention_forms import blocks, forms, least_spans, spans_for
from sam2_fast.kernels.choices import Form, choose
from sam2_fast.kernels.launch import HOPPER, capability_of, kernel, multiprocessors_of
from torch import Tensor

LOG2_E = 1.4426950408889634
MERGED = 8192  # numbers that a program merges at once
MERGE_CHANNELS = 64  # channels of a program that merges


@triton.jit
def update_online_softmax(
    query,
    keys,
    values,
    key_offsets,
    value_offsets,
    in_keys,
    running_max,
    running_sum,
    accumulator,
    scale,
    channels: tl.constexpr,
    MASKED: tl.constexpr,
    VALUES: tl.constexpr,
    precision: tl.constexpr,
):
    """Running maximum (of raw scores), running sum and accumulator after one more tile of keys.

    keys, values: pointers to the first row of the tile. MASKED: rows beyond `in_keys` do not exist.
    """
    in_channels = (tl.arange(0, VALUES) < channels)[None, :]
    if MASKED:
        tile = tl.load(keys + key_offsets, mask=in_keys[None, :], other=0.0)
        value = tl.load(values + value_offsets, mask=in_keys[:, None] & in_channels, other=0.0)
    elif channels == VALUES:
        tile = tl.load(keys + key_offsets)
        value = tl.load(values + value_offsets)
    else:
        tile = tl.load(keys + key_offsets)
        value = tl.load(values + value_offsets, mask=in_channels, other=0.0)
    scores = tl.dot(query, tile, input_precision=precision)
    if MASKED:
        scores = tl.where(in_keys[None, :], scores, float("-inf"))
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
    values: tl.constexpr,
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
    """BLOCK_Q queries of one object attend to one span of the object's keys.

    Pointers, all contiguous:
    q: queries [1 if shared else B, num_queries, WIDE], compute dtype.
    k: keys [B, num_keys, WIDE], compute dtype; RAGGED: [., WIDE].
    v: values [B, num_keys, values], compute dtype; RAGGED: [., values].
    first_keys: row of each object's first key and, last, how many there are, [B + 1] int32 or
        int64; RAGGED.
    out: [B, num_queries, values], compute dtype; ALONE: there is one span.
    span_accumulators: [B, spans, num_queries, values] float32; not ALONE.
    span_maxima: running maxima of scores to base 2 [B, spans, num_queries] float32; not ALONE.
    span_sums: running sums of weights [B, spans, num_queries] float32; not ALONE.

    shared: int, 1 where objects share the queries. num_keys: int; RAGGED: not read. scale: float,
    of scores to logarithms of 2. Only the last spans may be empty. PEELED: whole tiles of keys are
    read without masks, at the price of a second copy of the loop's body and of registers.
    Grid: (cdiv(num_queries, BLOCK_Q), spans, B).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    wide = tl.arange(0, WIDE)
    channel = tl.arange(0, VALUES)
    key = tl.arange(0, BLOCK_K)
    in_rows = row < num_queries
    base = batch * num_keys
    if RAGGED:
        base = tl.load(first_keys + batch).to(tl.int64)
        num_keys = (tl.load(first_keys + batch + 1) - base).to(tl.int32)
    image = tl.where(shared != 0, 0, batch)
    query_at = q + (image * num_queries + row)[:, None] * WIDE + wide[None, :]
    query = tl.load(query_at, mask=in_rows[:, None], other=0.0)
    span = tl.cdiv(tl.cdiv(num_keys, tl.num_programs(1)), BLOCK_K) * BLOCK_K
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, num_keys)
    running_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_Q], tl.float32)
    accumulator = tl.zeros([BLOCK_Q, VALUES], tl.float32)
    key_offsets = key[None, :] * WIDE + wide[:, None]
    value_offsets = key[:, None] * values + channel[None, :]
    if PEELED:
        whole = start + tl.maximum(end - start, 0) // BLOCK_K * BLOCK_K
        for first in range(start, whole, BLOCK_K):
            running_max, running_sum, accumulator = update_online_softmax(
                query,
                k + (base + first) * WIDE,
                v + (base + first) * values,
                key_offsets,
                value_offsets,
                key < 1,
                running_max,
                running_sum,
                accumulator,
                scale,
                values,
                False,
                VALUES,
                precision,
            )
        if whole < end:
            running_max, running_sum, accumulator = update_online_softmax(
                query,
                k + (base + whole) * WIDE,
                v + (base + whole) * values,
                key_offsets,
                value_offsets,
                whole + key < end,
                running_max,
                running_sum,
                accumulator,
                scale,
                values,
                True,
                VALUES,
                precision,
            )
    else:
        for first in range(start, end, BLOCK_K):
            running_max, running_sum, accumulator = update_online_softmax(
                query,
                k + (base + first) * WIDE,
                v + (base + first) * values,
                key_offsets,
                value_offsets,
                first + key < end,
                running_max,
                running_sum,
                accumulator,
                scale,
                values,
                True,
                VALUES,
                precision,
            )
    stored = in_rows[:, None] & (channel < values)[None, :]
    if ALONE:
        offsets = (batch * num_queries + row)[:, None] * values + channel[None, :]
        result = accumulator / running_sum[:, None]
        tl.store(out + offsets, result.to(out.dtype.element_ty), mask=stored)
    else:
        part = (batch * tl.num_programs(1) + tl.program_id(1)) * num_queries + row
        accumulator_at = span_accumulators + part[:, None] * values + channel[None, :]
        tl.store(accumulator_at, accumulator, mask=stored)
        tl.store(span_maxima + part, running_max * scale, mask=in_rows)
        tl.store(span_sums + part, running_sum, mask=in_rows)


@kernel
def merge_kernel(
    span_accumulators,
    span_maxima,
    span_sums,
    out,
    num_queries,
    values,
    spans,
    SPANS: tl.constexpr,
    BLOCK: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Merge the partial results of all spans of keys, for BLOCK queries and VALUES channels.

    Pointers, all contiguous:
    span_accumulators: [B, spans, num_queries, values] float32.
    span_maxima: running maxima of scores to base 2 [B, spans, num_queries] float32.
    span_sums: running sums of weights [B, spans, num_queries] float32.
    out: [B, num_queries, values], any float dtype.

    num_queries, values, spans: int. All spans of a row are read at once: SPANS >= spans.
    Grid: (cdiv(num_queries, BLOCK), cdiv(values, VALUES), B).
    """
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    span = tl.arange(0, SPANS)
    part = (batch * spans + span)[None, :] * num_queries + row[:, None]  # [BLOCK, SPANS]
    in_parts = (row < num_queries)[:, None] & (span < spans)[None, :]
    maxima = tl.load(span_maxima + part, mask=in_parts, other=float("-inf"))
    row_max = tl.max(maxima, 1)
    rescale = tl.exp2(maxima - tl.where(row_max == float("-inf"), 0.0, row_max)[:, None])
    rescale = tl.where(in_parts, rescale, 0.0)
    row_sum = tl.sum(rescale * tl.load(span_sums + part, mask=in_parts, other=0.0), 1)
    in_values = in_parts[:, :, None] & (channel < values)[None, None, :]
    accumulator_at = span_accumulators + part[:, :, None] * values + channel[None, None, :]
    tile = tl.load(accumulator_at, mask=in_values, other=0.0)
    merged = tl.sum(tile * rescale[:, :, None], 1) / row_sum[:, None]
    stored = (row < num_queries)[:, None] & (channel < values)[None, :]
    out_offsets = (batch * num_queries + row)[:, None] * values + channel[None, :]
    tl.store(out + out_offsets, merged.to(out.dtype.element_ty), mask=stored)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dim: int,
    first_keys: Tensor | None = None,
    most_keys: int = 0,
    spans: int | None = None,
) -> Tensor:
    """softmax(q k' / sqrt(dim)) v of q [1 or B, N, wide]: -> [B, N, dv], on the current stream.

    k: [B, K, wide], v: [B, K, dv]; or with first_keys [B + 1] on the device, k: [., wide], v:
    [., dv], and most_keys, the most keys of an object. spans: in how many spans the keys are taken;
    None: as many as give every multiprocessor two blocks.
    """
    ragged = first_keys is not None
    batch = k.shape[0] if first_keys is None else len(first_keys) - 1
    num_keys = k.shape[1] if first_keys is None else most_keys
    num_queries = q.shape[1]
    values = v.shape[-1]
    out = q.new_empty(batch, num_queries, values)
    if out.numel() == 0:
        return out
    narrow = max(triton.next_power_of_2(values), 16)
    wide = q.shape[2]
    size = q.element_size()
    capability = capability_of(q)
    key = (size, wide, narrow, int(ragged), triton.next_power_of_2(num_queries * batch))
    default = blocks(narrow, size, capability)
    library = [] if ragged or size == 4 else ["library"]
    options: list[Form] = [*forms(wide, narrow, size, capability), *library]
    form = choose(q.device, "attend", key, default, options)
    if isinstance(form, str):
        return _by_library(q, k, v, dim)
    block_q, block_k, warps, stages = form
    query_blocks = triton.cdiv(num_queries, block_q)
    if spans is None:
        resident = 1 if capability in HOPPER else 2
        programs = query_blocks * batch
        spans = spans_for(programs, num_keys, block_k, multiprocessors_of(q), resident)
        spans = max(spans, least_spans(narrow))
    shape = (batch, spans, num_queries, values) if spans > 1 else (0,)
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
            values=values,
            scale=LOG2_E * dim**-0.5,
            WIDE=wide,
            VALUES=narrow,
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


def _by_library(q: Tensor, k: Tensor, v: Tensor, dim: int) -> Tensor:
    """The same by torch's attention, which takes values as wide as keys."""
    wide = F.pad(v, (0, k.shape[2] - v.shape[2]))[:, None]
    queries = q.expand(len(k), -1, -1)[:, None]
    result = F.scaled_dot_product_attention(queries, k[:, None], wide, scale=dim**-0.5)
    return result[:, 0, :, : v.shape[2]].contiguous()


def merge_tile(spans: int) -> tuple[int, int]:
    """Rows of a block of `merge_kernel`, and spans as a power of two: 64 numbers a thread."""
    wide = triton.next_power_of_2(spans)
    return max(MERGED // (wide * MERGE_CHANNELS), 1), wide


def merge(accumulators: Tensor, maxima: Tensor, sums: Tensor, out: Tensor) -> Tensor:
    """Partial results of spans of keys, accumulators [B, spans, N, d], maxima and sums [B, spans,
    N], float32, as out [B, N, d], contiguous."""
    batch, spans, num_queries, values = accumulators.shape
    block, wide = merge_tile(spans)
    channels = min(MERGE_CHANNELS, max(triton.next_power_of_2(values), 16))
    grid = (triton.cdiv(num_queries, block), triton.cdiv(values, channels), batch)
    with torch.cuda.device_of(out):
        merge_kernel[grid](
            span_accumulators=accumulators,
            span_maxima=maxima,
            span_sums=sums,
            out=out,
            num_queries=num_queries,
            values=values,
            spans=spans,
            SPANS=wide,
            BLOCK=block,
            VALUES=channels,
            num_warps=4,
        )
    return out
