"""The mask decoder's attention between prompt tokens and the image in Triton.

Projections of image tokens are folded into the few prompt tokens: R = heads x tokens rows of C
channels stand for keys, values or queries of one object, head by head, so that a pass is products
of a tile of the image with small matrices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.attention import LOG2_E
from sam2_fast.kernels.launch import ROOMY, capability_of, kernel, multiprocessors_of
from sam2_fast.kernels.layer_norm import normalize_rows
from torch import Tensor

ROWS = 64  # folded prompt tokens of a tile
ROWS_AT_ONCE = 32  # of those that image tokens attend to at once: more are spilled
IMAGE_BLOCK = 32  # image tokens of a program in the image-to-token attention
MOST_SPANS = 32  # of the image: a program for each head and token merges them
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
    """ROWS folded queries attend to one span of their object's image tokens, whose keys are image +
    position and whose values are the image.

    Pointers, all contiguous:
    image: image tokens [1 if shared else B, count, DIM], any float dtype.
    position: positional encoding [count, DIM], any float dtype.
    queries: folded queries [B, rows, DIM], compute dtype.
    span_accumulators: [B, spans, rows, DIM] float32.
    span_maxima: running maxima of scores to base 2 [B, spans, rows] float32.
    span_sums: running sums of weights [B, spans, rows] float32.

    count, rows: int. shared: int, 1 where objects share the image. scale: float, of scores to
    logarithms of 2. Only the last spans may be empty. Grid: (spans, B, cdiv(rows, ROWS)).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, DIM)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    in_rows = row < rows
    object_image = image + tl.where(shared != 0, 0, batch) * count * DIM
    query_at = queries + (batch * rows + row)[:, None] * DIM + channel[None, :]
    query = tl.load(query_at, mask=in_rows[:, None], other=0.0)
    span = tl.cdiv(tl.cdiv(count, tl.num_programs(0)), BLOCK) * BLOCK
    start = tl.program_id(0) * span
    end = tl.minimum(start + span, count)
    running_max = tl.full([ROWS], float("-inf"), tl.float32)
    running_sum = tl.zeros([ROWS], tl.float32)
    accumulator = tl.zeros([ROWS, DIM], tl.float32)
    for first in range(start, end, BLOCK):
        token = first + tl.arange(0, BLOCK)
        inside = token < end
        offsets = token[:, None] * DIM + channel[None, :]
        tile = tl.load(object_image + offsets, mask=inside[:, None], other=0.0)
        key = tile.to(tl.float32)
        encoding = tl.load(position + offsets, mask=inside[:, None], other=0.0)
        key = key + encoding.to(tl.float32)
        key = tl.trans(key.to(query.dtype))
        scores = tl.dot(query, key, input_precision=precision) * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(running_max - new_max)
        running_sum = running_sum * rescale + tl.sum(weights, 1)
        weights = weights.to(query.dtype)
        value = tile.to(query.dtype)
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(weights, value, accumulator, input_precision=precision)
        running_max = new_max
    part = (batch * tl.num_programs(0) + tl.program_id(0)) * rows + row
    accumulator_at = span_accumulators + part[:, None] * DIM + channel[None, :]
    tl.store(accumulator_at, accumulator, mask=in_rows[:, None])
    tl.store(span_maxima + part, running_max, mask=in_rows)
    tl.store(span_sums + part, running_sum, mask=in_rows)


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
    """BLOCK image tokens attend to the prompt tokens, AT_ONCE heads at a time: norm(image +
    attention + bias).

    Pointers, all contiguous:
    image: image tokens [1 if shared else B, count, DIM], any float dtype.
    position: positional encoding [count, DIM], any float dtype.
    keys: folded keys [B, HEADS * TOKENS, DIM], compute dtype.
    offsets: of scores, -inf where no token is [B, HEADS * TOKENS] float32.
    values: folded values [B, HEADS * TOKENS, DIM], compute dtype.
    bias: of the output projection [DIM], any float dtype.
    norm_weight, norm_bias: of the layer norm [DIM], any float dtype.
    out: image tokens [B, count, DIM], any float dtype.

    count: int. shared: int, 1 where objects share the image. scale: float, of scores and offsets
    to logarithms of 2. eps: float, of the layer norm. Grid: (cdiv(count, BLOCK), B).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, DIM)
    row = tl.arange(0, AT_ONCE * TOKENS)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (token < count)[:, None]
    token_offsets = token[:, None] * DIM + channel[None, :]
    object_image = image + tl.where(shared != 0, 0, batch) * count * DIM
    query = tl.load(object_image + token_offsets, mask=inside, other=0.0).to(tl.float32)
    query = query + tl.load(position + token_offsets, mask=inside, other=0.0).to(tl.float32)
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
    result = tl.load(object_image + token_offsets, mask=inside, other=0.0).to(tl.float32)
    result = result + accumulator
    result = result + tl.load(bias + channel).to(tl.float32)[None, :]
    result = normalize_rows(result, norm_weight, norm_bias, channel, eps, DIM)
    out_at = out + batch * count * DIM + token_offsets
    tl.store(out_at, result.to(out.dtype.element_ty), mask=inside)


def _spans(batch: int, count: int, block: int, processors: int) -> int:
    """In how many spans the image is taken: as many as give every multiprocessor a block or two,
    but few enough to be merged by one program."""
    return max(min(2 * processors // batch, triton.cdiv(count, block), MOST_SPANS), 1)


def image_tokens_at_once(size: int, capability: int) -> int:
    """Image tokens of a block in the token-to-image attention (docs/kernels/mask_decoder.md).

    size: bytes of an element.
    """
    if size == 4:
        return 16
    return 64 if capability in ROOMY else 32  # others have 99 KB of shared memory a block


def heads_at_once(heads: int, tokens: int) -> int:
    """Heads that image tokens attend to at once: ROWS_AT_ONCE rows or fewer, at most half of the
    heads, but one at least."""
    return max(min(heads // 2, ROWS_AT_ONCE // tokens), 1)


def _scale(dim: int, heads: int) -> float:
    """Of scores to logarithms of 2: heads share half of the channels."""
    return LOG2_E * (dim // 2 // heads) ** -0.5


def token_to_image_attention(
    image: Tensor, position: Tensor, queries: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of folded `queries` [B, R, C] to an image [1 or B, N, C] at position [N, C], for
    `decoder_heads.token_to_image_output`.

    Accumulators [B, spans, R, C], running maxima and sums [B, spans, R], float32. All contiguous,
    on the current stream.
    """
    batch, rows, dim = queries.shape
    count = image.shape[1]
    tile_rows = min(rows, ROWS)
    row_blocks = triton.cdiv(rows, tile_rows)
    block = image_tokens_at_once(queries.element_size(), capability_of(queries))
    spans = _spans(batch * row_blocks, count, block, multiprocessors_of(queries))
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
    rest: tuple[Tensor, Tensor, Tensor],
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Image tokens [1 or B, N, C] at position [N, C] after attention to the prompt tokens, residual
    and norm: [B, N, C] in `dtype`.

    prompts: folded keys [B, R, C], offsets [B, R] float32, values [B, R, C] of
    `decoder_tokens.token_step`; rest: bias of the output projection, weight and bias of the norm.
    All contiguous, on the current stream.
    """
    keys, offsets, values = prompts
    bias, norm_weight, norm_bias = rest
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
