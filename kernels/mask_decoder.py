"""The mask decoder's attention between prompt tokens and the image in Triton.

The projections of image tokens are folded into the prompt tokens: the keys, values or queries of an
object become R = heads x tokens rows of C channels, head by head. A pass over the image multiplies
only tiles of it with small matrices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.attention import LOG2_E
from sam2_fast.kernels.launch import LARGE_SHARED_MEMORY, capability_of, kernel, multiprocessors_of
from sam2_fast.kernels.layer_norm import normalize_rows
from torch import Tensor

ROWS = 64  # folded prompt tokens of a tile
ROWS_AT_ONCE = 32  # folded prompt tokens that image tokens attend to at once; more would spill
IMAGE_BLOCK = 32  # image tokens of a program in the image-to-token attention
MAX_SPANS = 32  # spans of the image tokens, all of which one program merges for a head and a token
WARPS = 8


@kernel(do_not_specialize=("shared",))
def token_to_image_attention_kernel(
    image,
    position,
    queries,
    span_accumulators,
    span_maxima,
    span_sums,
    count,
    rows,
    shared,
    scale,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Attention of ROWS folded queries to one span of their object's image tokens.

    Keys are image + position, values are image; both are unprojected.

    Pointers, all contiguous:
    image: image tokens [1 if shared else B, count, DIM], any float dtype.
    position: positional encoding [count, DIM], any float dtype.
    queries: folded queries [B, rows, DIM], compute dtype.
    span_accumulators: [B, spans, rows, DIM] float32.
    span_maxima: running maxima of base-2 scores [B, spans, rows] float32.
    span_sums: running sums of weights [B, spans, rows] float32.

    count, rows: int. shared: int, 1 if all objects have the same image. scale: float, factor that
    turns scores into base-2 logits. Only the last spans may be empty.
    Grid: (spans, B, cdiv(rows, ROWS)).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, DIM)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    row_mask = row < rows
    object_image = image + tl.where(shared != 0, 0, batch) * count * DIM
    query_ptrs = queries + (batch * rows + row)[:, None] * DIM + channel[None, :]
    query = tl.load(query_ptrs, mask=row_mask[:, None], other=0.0)
    span = tl.cdiv(tl.cdiv(count, tl.num_programs(0)), BLOCK) * BLOCK
    start = tl.program_id(0) * span
    end = tl.minimum(start + span, count)
    running_max = tl.full([ROWS], float("-inf"), tl.float32)
    running_sum = tl.zeros([ROWS], tl.float32)
    accumulator = tl.zeros([ROWS, DIM], tl.float32)
    for block_start in range(start, end, BLOCK):
        token = block_start + tl.arange(0, BLOCK)
        mask = token < end
        offsets = token[:, None] * DIM + channel[None, :]
        tile = tl.load(object_image + offsets, mask=mask[:, None], other=0.0)
        key = tile.to(tl.float32)
        encoding = tl.load(position + offsets, mask=mask[:, None], other=0.0)
        key = key + encoding.to(tl.float32)
        key = tl.trans(key.to(query.dtype))
        scores = tl.dot(query, key, input_precision=precision) * scale
        scores = tl.where(mask[None, :], scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(running_max - new_max)
        running_sum = running_sum * rescale + tl.sum(weights, 1)
        weights = weights.to(query.dtype)
        value = tile.to(query.dtype)
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(weights, value, accumulator, input_precision=precision)
        running_max = new_max
    partial_row = (batch * tl.num_programs(0) + tl.program_id(0)) * rows + row
    accumulator_ptrs = span_accumulators + partial_row[:, None] * DIM + channel[None, :]
    tl.store(accumulator_ptrs, accumulator, mask=row_mask[:, None])
    tl.store(span_maxima + partial_row, running_max, mask=row_mask)
    tl.store(span_sums + partial_row, running_sum, mask=row_mask)


@kernel(do_not_specialize=("shared",))
def image_to_token_attention_kernel(
    image,
    position,
    keys,
    offsets,
    values,
    bias,
    norm_weight,
    norm_bias,
    out,
    count,
    shared,
    scale,
    eps,
    HEADS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """norm(image + attention + bias) of BLOCK image tokens that attend to the prompt tokens.

    AT_ONCE heads are computed at a time.

    Pointers, all contiguous:
    image: image tokens [1 if shared else B, count, DIM], any float dtype.
    position: positional encoding [count, DIM], any float dtype.
    keys: folded keys [B, HEADS * TOKENS, DIM], compute dtype.
    offsets: added to scores, -inf for absent tokens [B, HEADS * TOKENS] float32.
    values: folded values [B, HEADS * TOKENS, DIM], compute dtype.
    bias: of the output projection [DIM], any float dtype.
    norm_weight, norm_bias: of the layer norm [DIM], any float dtype.
    out: image tokens [B, count, DIM], any float dtype.

    count: int. shared: int, 1 if all objects have the same image. scale: float, factor that turns
    the sum of score and offset into a base-2 logit. eps: float, of the layer norm.
    Grid: (cdiv(count, BLOCK), B).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, DIM)
    row = tl.arange(0, AT_ONCE * TOKENS)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = (token < count)[:, None]
    token_offsets = token[:, None] * DIM + channel[None, :]
    object_image = image + tl.where(shared != 0, 0, batch) * count * DIM
    query = tl.load(object_image + token_offsets, mask=mask, other=0.0).to(tl.float32)
    query = query + tl.load(position + token_offsets, mask=mask, other=0.0).to(tl.float32)
    query = query.to(keys.dtype.element_ty)
    accumulator = tl.zeros([BLOCK, DIM], tl.float32)
    for head in range(0, HEADS, AT_ONCE):
        prompt = batch * HEADS * TOKENS + head * TOKENS + row
        key = tl.load(keys + prompt[None, :] * DIM + channel[:, None])
        scores = tl.dot(query, key, input_precision=precision)
        scores = (scores + tl.load(offsets + prompt)[None, :]) * scale
        scores = tl.reshape(scores, [BLOCK, AT_ONCE, TOKENS])
        weights = tl.exp2(scores - tl.max(scores, 2)[:, :, None])
        weights = weights / tl.sum(weights, 2)[:, :, None]
        weights = tl.reshape(weights, [BLOCK, AT_ONCE * TOKENS])
        value = tl.load(values + prompt[:, None] * DIM + channel[None, :])
        weights = weights.to(value.dtype)
        accumulator = tl.dot(weights, value, accumulator, input_precision=precision)
    result = tl.load(object_image + token_offsets, mask=mask, other=0.0).to(tl.float32)
    result = result + accumulator
    result = result + tl.load(bias + channel).to(tl.float32)[None, :]
    result = normalize_rows(result, norm_weight, norm_bias, channel, eps, DIM)
    out_ptrs = out + batch * count * DIM + token_offsets
    tl.store(out_ptrs, result.to(out.dtype.element_ty), mask=mask)


def _num_spans(batch: int, count: int, block: int, multiprocessors: int) -> int:
    """Number of spans of the image: up to two blocks per multiprocessor, at most `MAX_SPANS`."""
    return max(min(2 * multiprocessors // batch, triton.cdiv(count, block), MAX_SPANS), 1)


def image_tokens_at_once(size: int, capability: int) -> int:
    """Image tokens of a block in the token-to-image attention (docs/kernels/mask_decoder.md).

    size: bytes per element.
    """
    if size == 4:
        return 16
    return (
        64 if capability in LARGE_SHARED_MEMORY else 32
    )  # others have 99 KB of shared memory per block


def heads_at_once(heads: int, tokens: int) -> int:
    """Heads computed at a time: up to ROWS_AT_ONCE rows and half of the heads, at least one."""
    return max(min(heads // 2, ROWS_AT_ONCE // tokens), 1)


def _scale(dim: int, heads: int) -> float:
    """Factor that turns scores into base-2 logits; the heads have half of the channels in all."""
    return LOG2_E * (dim // 2 // heads) ** -0.5


def token_to_image_attention(
    image: Tensor, position: Tensor, queries: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of folded queries to the image tokens, as partial results of spans of the image.

    image: [1 or B, N, C]; position: [N, C]; queries: [B, R, C]; all contiguous.
    Returns accumulators [B, spans, R, C], running maxima and running sums [B, spans, R], float32,
    which `decoder_heads.token_to_image_output` merges. Computed on the current stream.
    """
    batch, rows, dim = queries.shape
    count = image.shape[1]
    tile_rows = min(rows, ROWS)
    row_blocks = triton.cdiv(rows, tile_rows)
    block = image_tokens_at_once(queries.element_size(), capability_of(queries))
    spans = _num_spans(batch * row_blocks, count, block, multiprocessors_of(queries))
    accumulators = queries.new_empty(batch, spans, rows, dim, dtype=torch.float32)
    maxima = queries.new_empty(batch, spans, rows, dtype=torch.float32)
    sums = queries.new_empty(batch, spans, rows, dtype=torch.float32)
    with torch.cuda.device_of(queries):
        token_to_image_attention_kernel[spans, batch, row_blocks](
            image=image,
            position=position,
            queries=queries,
            span_accumulators=accumulators,
            span_maxima=maxima,
            span_sums=sums,
            count=count,
            rows=rows,
            shared=int(len(image) == 1),
            scale=_scale(dim, heads),
            DIM=dim,
            ROWS=tile_rows,
            BLOCK=block,
            EXACT=queries.dtype == torch.float32,
            num_warps=WARPS,
            num_stages=1,
        )
    return accumulators, maxima, sums


def image_to_token_attention(
    image: Tensor,
    position: Tensor,
    prompts: tuple[Tensor, Tensor, Tensor],
    heads: int,
    weights: tuple[Tensor, Tensor, Tensor],
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Image tokens after attention to the prompt tokens, residual and norm: [B, N, C] in `dtype`.

    image: [1 or B, N, C]; position: [N, C].
    prompts: folded keys [B, R, C], offsets [B, R] float32 and folded values [B, R, C] of
        `decoder_tokens.token_step`.
    weights: bias of the output projection, weight and bias of the norm.
    All contiguous; computed on the current stream.
    """
    keys, offsets, values = prompts
    bias, norm_weight, norm_bias = weights
    batch, rows, dim = keys.shape
    count = image.shape[1]
    tokens = rows // heads
    out = image.new_empty(batch, count, dim, dtype=dtype)
    with torch.cuda.device_of(image):
        image_to_token_attention_kernel[triton.cdiv(count, IMAGE_BLOCK), batch](
            image=image,
            position=position,
            keys=keys,
            offsets=offsets,
            values=values,
            bias=bias,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            out=out,
            count=count,
            shared=int(len(image) == 1),
            scale=_scale(dim, heads),
            eps=eps,
            HEADS=heads,
            AT_ONCE=heads_at_once(heads, tokens),
            TOKENS=tokens,
            DIM=dim,
            BLOCK=IMAGE_BLOCK,
            EXACT=keys.dtype == torch.float32,
            num_warps=WARPS,
            num_stages=2,
        )
    return out
