"""Attention in Triton: the keys are split over programs, and the parts are merged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from sam2_fast.kernels.choices import Form, choose
from sam2_fast.kernels.launch import HOPPER, capability_of, kernel, multiprocessors_of
from torch import Tensor

LOG2_E = 1.4426950408889634
MERGED, MERGE_CHANNELS = 8192, 64  # numbers that a program merges at once, and channels of them


@triton.jit
def _online_softmax(
    query, keys, values, key_offsets, value_offsets, in_keys, running_max, running_sum, accumulator,
    scale, channels: tl.constexpr, MASKED: tl.constexpr, VALUES: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """One tile of keys: running maximum (of raw scores), sum and accumulator after it.

    keys, values: where the tile begins. MASKED: keys beyond `in_keys` do not exist.
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
    accumulator = tl.dot(weights.to(value.dtype), value, accumulator * rescale[:, None], input_precision=precision)
    return new_max, running_sum, accumulator


@kernel
def attend_kernel(
    q, k, v, firsts, out, sums, largest, totals, queries, shared, keys, values: tl.constexpr, scale,
    WIDE: tl.constexpr, VALUES: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, RAGGED: tl.constexpr, ALONE: tl.constexpr,
    PEELED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One block of queries over one span of its object's keys. q: [1 if shared else B, queries, WIDE] rotated; scale: to logarithms of 2.

    k: [B, keys, WIDE] rotated and v: [B, keys, values]; or RAGGED, [., WIDE] and [., values], where object b has firsts[b] to
    firsts[b + 1].
    ALONE: there is one span, and `out` [B, queries, values] is written. Else `sums` [B, spans, queries, values], `largest` and `totals`
    [B, spans, queries], all float32, are what `merge_kernel` takes. Only the last spans may be empty.
    PEELED: whole tiles of keys are read without masks, at the price of a second copy of the loop's body and of registers.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    wide, channel, key = tl.arange(0, WIDE), tl.arange(0, VALUES), tl.arange(0, BLOCK_K)
    in_rows = row < queries
    base = batch * keys
    if RAGGED:
        base = tl.load(firsts + batch).to(tl.int64)
        keys = (tl.load(firsts + batch + 1) - base).to(tl.int32)
    image = tl.where(shared != 0, 0, batch)
    query = tl.load(q + (image * queries + row)[:, None] * WIDE + wide[None, :], mask=in_rows[:, None], other=0.0)
    span = tl.cdiv(tl.cdiv(keys, tl.num_programs(1)), BLOCK_K) * BLOCK_K
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, keys)
    running_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_Q], tl.float32)
    accumulator = tl.zeros([BLOCK_Q, VALUES], tl.float32)
    key_offsets = key[None, :] * WIDE + wide[:, None]
    value_offsets = key[:, None] * values + channel[None, :]
    if PEELED:
        whole = start + tl.maximum(end - start, 0) // BLOCK_K * BLOCK_K
        for first in range(start, whole, BLOCK_K):
            running_max, running_sum, accumulator = _online_softmax(
                query, k + (base + first) * WIDE, v + (base + first) * values, key_offsets, value_offsets, key < 1,
                running_max, running_sum, accumulator, scale, values, False, VALUES, precision,
            )  # fmt: skip
        if whole < end:
            running_max, running_sum, accumulator = _online_softmax(
                query, k + (base + whole) * WIDE, v + (base + whole) * values, key_offsets, value_offsets, whole + key < end,
                running_max, running_sum, accumulator, scale, values, True, VALUES, precision,
            )  # fmt: skip
    else:
        for first in range(start, end, BLOCK_K):
            running_max, running_sum, accumulator = _online_softmax(
                query, k + (base + first) * WIDE, v + (base + first) * values, key_offsets, value_offsets, first + key < end,
                running_max, running_sum, accumulator, scale, values, True, VALUES, precision,
            )  # fmt: skip
    written = in_rows[:, None] & (channel < values)[None, :]
    if ALONE:
        place = (batch * queries + row)[:, None] * values + channel[None, :]
        tl.store(out + place, (accumulator / running_sum[:, None]).to(out.dtype.element_ty), mask=written)
    else:
        part = (batch * tl.num_programs(1) + tl.program_id(1)) * queries + row
        tl.store(sums + part[:, None] * values + channel[None, :], accumulator, mask=written)
        tl.store(largest + part, running_max * scale, mask=in_rows)
        tl.store(totals + part, running_sum, mask=in_rows)


@kernel
def merge_kernel(
    sums, largest, totals, out, queries, values, spans,
    SPANS: tl.constexpr, BLOCK: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Results of all spans of keys, weighted by their largest scores, as out [B, queries, values].

    A program takes BLOCK rows and VALUES channels; all spans of a row are read at once, SPANS >= spans.
    """
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    span = tl.arange(0, SPANS)
    part = (batch * spans + span)[None, :] * queries + row[:, None]  # [BLOCK, SPANS]
    in_parts = (row < queries)[:, None] & (span < spans)[None, :]
    maxima = tl.load(largest + part, mask=in_parts, other=float("-inf"))
    top = tl.max(maxima, 1)
    weight = tl.exp2(maxima - tl.where(top == float("-inf"), 0.0, top)[:, None])
    weight = tl.where(in_parts, weight, 0.0)
    total = tl.sum(weight * tl.load(totals + part, mask=in_parts, other=0.0), 1)
    in_values = in_parts[:, :, None] & (channel < values)[None, None, :]
    tile = tl.load(sums + part[:, :, None] * values + channel[None, None, :], mask=in_values, other=0.0)
    merged = tl.sum(tile * weight[:, :, None], 1) / total[:, None]
    written = (row < queries)[:, None] & (channel < values)[None, :]
    place = (batch * queries + row)[:, None] * values + channel[None, :]
    tl.store(out + place, merged.to(out.dtype.element_ty), mask=written)


SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
"""Shared memory that one block may have, by compute capability (CUDA programming guide)."""
ATTEND_FORMS = (
    (256, 64, 16, 2),
    (128, 128, 8, 2),
    (128, 64, 8, 3),
    (128, 64, 8, 2),
    (64, 128, 4, 2),
    (64, 64, 8, 2),
    (64, 64, 4, 2),
    (64, 32, 8, 1),
)
"""Queries and keys of a block, warps, stages."""


def blocks(values: int, size: int, capability: int) -> tuple[int, int, int, int]:
    """Queries and keys of a block, warps, stages: what compiles without spills and fits (docs/kernels/rope_attention.md).

    values: channels of a value as a power of two; size: bytes of an element; capability: 80, 86, 90, 120...
    """
    if size == 4:
        return 32, 32, 4, 1
    hopper = capability in HOPPER
    if values > 128:
        return (128, 64, 8, 2) if hopper else (64, 64, 8, 2) if capability == 80 else (64, 32, 8, 1)
    return (256, 64, 16, 2) if hopper else (128, 64, 8, 2) if capability == 80 else (64, 64, 4, 2)


def forms(wide: int, values: int, size: int, capability: int) -> list[tuple[int, int, int, int]]:
    """The forms that fit into shared memory: a tile of queries, and keys and values for each stage."""
    if size == 4:
        return []
    limit, hopper = SHARED_KIB.get(capability, 99) * 1024, capability in HOPPER

    def shared(queries: int, keys: int, stages: int) -> int:
        return size * (queries * wide + (stages if hopper else max(stages - 1, 1)) * keys * (wide + values))

    return [form for form in ATTEND_FORMS if shared(form[0], form[1], form[3]) <= limit]


def least_spans(values: int) -> int:
    """Spans at least. Where a program writes wide results in the dtype of values, registers are spilled."""
    return 2 if values > 128 else 1


def spans_for(programs: int, keys: int, block_k: int, multiprocessors: int, resident: int) -> int:
    """In how many parts keys are taken, so that `programs` times as many blocks fill the device once.

    resident: blocks that a multiprocessor holds at once.
    """
    return max(min(resident * multiprocessors // programs, triton.cdiv(keys, 4 * block_k)), 1)


def attend(q: Tensor, k: Tensor, v: Tensor, dim: int, firsts: Tensor | None = None, most: int = 0, spans: int | None = None) -> Tensor:
    """softmax(q k' / sqrt(dim)) v of turned q [1 or B, N, halves]: -> [B, N, dv].

    k: [B, K, halves], v: [B, K, dv]; or with firsts [B + 1] int32 on the device, k: [., halves], v: [., dv], and `most`, the most keys of
    an object. spans: in how many parts the keys are taken; None: as many as give every multiprocessor two blocks.
    """
    ragged, queries, values = firsts is not None, q.shape[1], v.shape[-1]
    batch, keys = (len(firsts) - 1, most) if firsts is not None else tuple(k.shape[:2])
    out = q.new_empty(batch, queries, values)
    if out.numel() == 0:
        return out
    narrow, wide, size = max(triton.next_power_of_2(values), 16), q.shape[2], q.element_size()
    capability = capability_of(q)
    key = (size, wide, narrow, int(ragged), triton.next_power_of_2(queries * batch))
    default = blocks(narrow, size, capability)
    options: list[Form] = [*forms(wide, narrow, size, capability), *([] if ragged or size == 4 else ["library"])]
    form = choose(q.device, "attend", key, default, options)
    if isinstance(form, str):
        return _by_library(q, k, v, dim)
    block_q, block_k, warps, stages = form
    rows = triton.cdiv(queries, block_q)
    if spans is None:
        resident = 1 if capability in HOPPER else 2
        spans = spans_for(rows * batch, keys, block_k, multiprocessors_of(q), resident)
        spans = max(spans, least_spans(narrow))
    sums = q.new_empty((batch, spans, queries, values) if spans > 1 else (0,), dtype=torch.float32)
    largest, totals = (q.new_empty((batch, spans, queries) if spans > 1 else (0,), dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(q):
        attend_kernel[rows, spans, batch](
            q, k, v, firsts, out, sums, largest, totals, queries, int(q.shape[0] == 1), keys, values,
            LOG2_E * dim**-0.5, WIDE=wide, VALUES=narrow, BLOCK_Q=block_q, BLOCK_K=block_k, RAGGED=ragged,
            ALONE=spans == 1, PEELED=capability in HOPPER, EXACT=q.dtype == torch.float32, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        if spans > 1:
            merge(sums, largest, totals, out)
    return out


def _by_library(q: Tensor, k: Tensor, v: Tensor, dim: int) -> Tensor:
    """The same by torch's attention, which wants values as wide as keys."""
    wide = F.pad(v, (0, k.shape[2] - v.shape[2]))
    queries = q.expand(len(k), -1, -1)
    found = F.scaled_dot_product_attention(queries[:, None], k[:, None], wide[:, None], scale=dim**-0.5)
    return found[:, 0, :, : v.shape[2]].contiguous()


def merge_tile(spans: int) -> tuple[int, int]:
    """Rows of a block of `merge_kernel`, and spans as a power of two: a thread reads 64 numbers at once."""
    wide = triton.next_power_of_2(spans)
    return max(MERGED // (wide * MERGE_CHANNELS), 1), wide


def merge(sums: Tensor, largest: Tensor, totals: Tensor, out: Tensor) -> Tensor:
    """What spans of keys found, sums [B, spans, N, d], largest and totals [B, spans, N], float32, as out [B, N, d], contiguous."""
    batch, spans, queries, values = sums.shape
    block, wide = merge_tile(spans)
    channels = min(MERGE_CHANNELS, max(triton.next_power_of_2(values), 16))
    with torch.cuda.device_of(out):
        merge_kernel[triton.cdiv(queries, block), triton.cdiv(values, channels), batch](
            sums, largest, totals, out, queries, values, spans,
            SPANS=wide, BLOCK=block, VALUES=channels, num_warps=4,
        )  # fmt: skip
    return out
