"""The mask decoder's passes over the image in Triton: image tokens take from prompts, prompts look at them, masks are drawn.

Projections of image tokens are folded into the few prompt tokens: R = heads x tokens rows of C channels stand for keys, values or
queries of one object, head by head, so that a pass is products of a tile of the image with small matrices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import ROOMY, kernel, multiprocessors_of
from torch import Tensor

ROWS = 64  # folded prompt tokens of a tile
TAKEN_ROWS = 32  # of those that image tokens attend to at once: more are spilled
TAKING, PAINTED = 32, 64  # image tokens of a program that takes, of one that draws
MOST_SPANS = 32  # of the image: what they find is merged by a program for each head and token
WARPS = 8


@kernel(do_not_specialize=("shared",))
def look_kernel(
    pixels, place, queries, sums, largest, totals, count, rows, shared, scale,
    DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """ROWS queries look at one span of their object's image tokens, whose keys are pixels + place and whose values are pixels.

    pixels: [1 if shared else B, count, DIM]; place: [count, DIM]; queries: [B, rows, DIM]; scale: of scores to logarithms of 2.
    sums [B, spans, rows, DIM], largest and totals [B, spans, rows], float32, are what
    `decoder_heads.found_kernel` takes. Only the last spans may be empty.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    batch, channel = tl.program_id(1).to(tl.int64), tl.arange(0, DIM)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    source = pixels + tl.where(shared != 0, 0, batch) * count * DIM
    query = tl.load(queries + (batch * rows + row)[:, None] * DIM + channel[None, :], mask=there[:, None], other=0.0)
    span = tl.cdiv(tl.cdiv(count, tl.num_programs(0)), BLOCK) * BLOCK
    start = tl.program_id(0) * span
    end = tl.minimum(start + span, count)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sum_ = tl.zeros([ROWS, DIM], tl.float32)
    for first in range(start, end, BLOCK):
        pixel = first + tl.arange(0, BLOCK)
        inside = pixel < end
        at = pixel[:, None] * DIM + channel[None, :]
        tile = tl.load(source + at, mask=inside[:, None], other=0.0)
        near = tile.to(tl.float32) + tl.load(place + at, mask=inside[:, None], other=0.0).to(tl.float32)
        scores = tl.dot(query, tl.trans(near.to(query.dtype)), input_precision=precision) * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(high, tl.max(scores, 1))
        share = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(high - higher)
        total = total * shrink + tl.sum(share, 1)
        sum_ = tl.dot(share.to(query.dtype), tile.to(query.dtype), sum_ * shrink[:, None], input_precision=precision)
        high = higher
    part = (batch * tl.num_programs(0) + tl.program_id(0)) * rows + row
    tl.store(sums + part[:, None] * DIM + channel[None, :], sum_, mask=there[:, None])
    tl.store(largest + part, high, mask=there)
    tl.store(totals + part, total, mask=there)


@kernel(do_not_specialize=("shared",))
def take_kernel(
    pixels, place, keys, offsets, values, bias, norm_weight, norm_bias, out, count, shared, scale, eps,
    HEADS: tl.constexpr, AT_ONCE: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """BLOCK image tokens attend to the prompts, AT_ONCE heads at a time: norm(pixels + what they found).

    pixels: [1 if shared else B, count, DIM]; place: [count, DIM]. keys, values: [B, HEADS * TOKENS, DIM]; offsets: [B, HEADS * TOKENS]
    float32, added to the scores, -inf where there is no token; scale: of both to logarithms of 2. bias: [DIM]; out: [B, count, DIM].
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    batch, channel, row = tl.program_id(1).to(tl.int64), tl.arange(0, DIM), tl.arange(0, AT_ONCE * TOKENS)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (pixel < count)[:, None]
    at = pixel[:, None] * DIM + channel[None, :]
    source = pixels + tl.where(shared != 0, 0, batch) * count * DIM
    near = tl.load(source + at, mask=inside, other=0.0).to(tl.float32) + tl.load(place + at, mask=inside, other=0.0).to(tl.float32)
    near = near.to(keys.dtype.element_ty)
    found = tl.zeros([BLOCK, DIM], tl.float32)
    for head in range(0, HEADS, AT_ONCE):
        prompt = batch * HEADS * TOKENS + head * TOKENS + row
        key = tl.load(keys + prompt[None, :] * DIM + channel[:, None])
        scores = (tl.dot(near, key, input_precision=precision) + tl.load(offsets + prompt)[None, :]) * scale
        scores = tl.reshape(scores, [BLOCK, AT_ONCE, TOKENS])
        share = tl.exp2(scores - tl.max(scores, 2)[:, :, None])
        share = tl.reshape(share / tl.sum(share, 2)[:, :, None], [BLOCK, AT_ONCE * TOKENS])
        value = tl.load(values + prompt[:, None] * DIM + channel[None, :])
        found = tl.dot(share.to(value.dtype), value, found, input_precision=precision)
    fresh = tl.load(source + at, mask=inside, other=0.0).to(tl.float32) + found + tl.load(bias + channel).to(tl.float32)[None, :]
    centred = fresh - (tl.sum(fresh, 1) / DIM)[:, None]
    fresh = centred * tl.rsqrt(tl.sum(centred * centred, 1) / DIM + eps)[:, None]
    fresh = fresh * tl.load(norm_weight + channel).to(tl.float32)[None, :] + tl.load(norm_bias + channel).to(tl.float32)[None, :]
    tl.store(out + batch * count * DIM + at, fresh.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@kernel
def paint_kernel(
    pixels, up1, bias1, norm_weight, norm_bias, mid, up2, bias2, high, hyper, iou, logits,
    count, width, mid_stride, high_stride, iou_count, first_value, num_masks, eps,
    CHOOSE: tl.constexpr, VALUES: tl.constexpr, MASKS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """BLOCK image tokens of one object, upscaled twice and drawn: the upscaled map is never written.

    pixels: [B, count, DIM], `width` in a row; up1: [DIM, DIM] and up2: [DIM / 2, DIM / 4], rows by place in the cell, then channel;
    mid: [1 or B, 2h, 2w, DIM / 4], high: [1 or B, 4h, 4w, DIM / 8], strides: elements from object to object, 0 if shared;
    hyper: [B, num_masks, DIM / 8] float32, outputs of the masks' networks; logits: [B, MASKS, 4h, 4w] float32. CHOOSE: of the masks
    the one alone (MASKS = 1) whose iou [B, iou_count], from first_value on, is highest, the first of equals.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    wide: tl.constexpr = DIM // 4
    narrow: tl.constexpr = DIM // 8
    batch, pixel = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < count
    y, x = pixel // width, pixel % width
    channel, quarter, eighth = tl.arange(0, DIM), tl.arange(0, wide), tl.arange(0, narrow)
    at = (batch * count + pixel)[:, None] * DIM + channel[None, :]
    tile = tl.load(pixels + at, mask=inside[:, None], other=0.0).to(up1.dtype.element_ty)
    gain, offset = tl.load(norm_weight + quarter).to(tl.float32), tl.load(norm_bias + quarter).to(tl.float32)
    chosen = 0
    if CHOOSE:
        candidate = tl.arange(0, VALUES)
        quality = tl.load(iou + batch * iou_count + first_value + candidate, mask=candidate < num_masks, other=float("-inf"))
        chosen = tl.minimum(tl.argmax(quality, 0), num_masks - 1)
    plain1, plain2 = tl.load(bias1 + quarter).to(tl.float32), tl.load(bias2 + eighth).to(tl.float32)
    for corner in range(4):
        matrix = tl.load(up1 + (corner * wide + quarter)[None, :] * DIM + channel[:, None])
        y2, x2 = 2 * y + corner // 2, 2 * x + corner % 2
        finer = tl.load(
            mid + batch * mid_stride + (y2 * 2 * width + x2)[:, None] * wide + quarter[None, :], mask=inside[:, None], other=0.0
        )
        value = tl.dot(tile, matrix, input_precision=precision) + plain1[None, :] + finer.to(tl.float32)
        centred = value - (tl.sum(value, 1) / wide)[:, None]
        value = centred * tl.rsqrt(tl.sum(centred * centred, 1) / wide + eps)[:, None] * gain[None, :] + offset[None, :]
        value = _gelu(value).to(up2.dtype.element_ty)
        for place in range(4):
            matrix2 = tl.load(up2 + (place * narrow + eighth)[None, :] * wide + quarter[:, None])
            y4, x4 = 2 * y2 + place // 2, 2 * x2 + place % 2
            spot = y4 * 4 * width + x4
            finest = tl.load(high + batch * high_stride + spot[:, None] * narrow + eighth[None, :], mask=inside[:, None], other=0.0)
            paint = _gelu(tl.dot(value, matrix2, input_precision=precision) + plain2[None, :] + finest.to(tl.float32))
            for mask in range(MASKS):
                network = tl.load(hyper + (batch * num_masks + chosen + mask) * narrow + eighth)
                tl.store(logits + (batch * MASKS + mask) * 16 * count + spot, tl.sum(paint * network[None, :], 1), mask=inside)


def _spans(batch: int, count: int, block: int, processors: int) -> int:
    """In how many parts the image is taken: as many as give every multiprocessor a block or two, but what
    they find is merged by few."""
    return max(min(2 * processors // batch, triton.cdiv(count, block), MOST_SPANS), 1)


def seen_at_once(size: int, capability: int) -> int:
    """Image tokens of a block that queries look at (docs/kernels/mask_decoder.md). size: bytes of an element."""
    if size == 4:
        return 16
    return 64 if capability in ROOMY else 32  # others have 99 KB of shared memory a block


def heads_at_once(heads: int, tokens: int) -> int:
    """Heads that image tokens attend to at once: TAKEN_ROWS rows or fewer, at most half of the heads, but one at least."""
    return max(min(heads // 2, TAKEN_ROWS // tokens), 1)


def _scale(dim: int, heads: int) -> float:
    """Of scores to logarithms of 2: heads share half of the channels."""
    return 1.4426950408889634 * (dim // 2 // heads) ** -0.5


def look(pixels: Tensor, place: Tensor, queries: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `queries` [B, R, C] see in pixels [1 or B, N, C] at place [N, C], for `decoder_heads.found_in_image`.

    Sums [B, spans, R, C], largest and totals [B, spans, R], float32. All contiguous, on the current stream.
    """
    (batch, rows, dim), count = queries.shape, pixels.shape[1]
    high = min(rows, ROWS)
    major, minor = torch.cuda.get_device_capability(queries.device) if queries.is_cuda else (9, 0)
    block = seen_at_once(queries.element_size(), 10 * major + minor)
    spans = _spans(batch * triton.cdiv(rows, high), count, block, multiprocessors_of(queries))
    sums = queries.new_empty(batch, spans, rows, dim, dtype=torch.float32)
    largest, totals = (queries.new_empty(batch, spans, rows, dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(queries):
        look_kernel[spans, batch, triton.cdiv(rows, high)](
            pixels, place, queries, sums, largest, totals, count, rows, int(len(pixels) == 1), _scale(dim, heads),
            dim, high, block, queries.dtype == torch.float32, num_warps=WARPS, num_stages=1,
        )  # fmt: skip
    return sums, largest, totals


def take(
    pixels: Tensor, place: Tensor, prompts: tuple[Tensor, Tensor, Tensor], heads: int, rest: tuple[Tensor, Tensor, Tensor], eps: float,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Pixels [1 or B, N, C] at place [N, C] after they attended to the prompts: [B, N, C] in `dtype`.

    prompts: keys [B, R, C], offsets [B, R] float32, values [B, R, C] as `take_kernel` has them; rest: bias of the projection, weight and
    bias of the norm. All contiguous, on the current stream.
    """
    (batch, rows, dim), count = prompts[0].shape, pixels.shape[1]
    out, tokens = pixels.new_empty(batch, count, dim, dtype=dtype), rows // heads
    with torch.cuda.device_of(pixels):
        take_kernel[triton.cdiv(count, TAKING), batch](
            pixels, place, *prompts, *rest, out, count, int(len(pixels) == 1), _scale(dim, heads), eps,
            heads, heads_at_once(heads, tokens), tokens, dim, TAKING, prompts[0].dtype == torch.float32, num_warps=WARPS, num_stages=2,
        )  # fmt: skip
    return out


def paint(
    pixels: Tensor, width: int, mid: Tensor, high: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    hyper: Tensor, eps: float, iou: Tensor | None = None, first_value: int = 0,
) -> Tensor:  # fmt: skip
    """Pixels [B, N, C] to logits [B, M or 1, 4h, 4w] float32, by outputs of the masks' networks, hyper [B, M, C / 8] float32.

    weights: first matrix and bias, norm, second matrix and bias. iou: [B, K] float32; of the M masks, whose values begin at
    first_value, only that of highest iou (None: all).

    mid, high: [1 or B, ...] as in `sam2_fast.ops.mask_decoder`. All contiguous, on the current stream.
    """
    (batch, count, dim), masks = pixels.shape, hyper.shape[1]
    drawn = masks if iou is None else 1
    logits = pixels.new_empty(batch, drawn, 4 * (count // width), 4 * width, dtype=torch.float32)
    strides = [0 if len(x) == 1 else x.stride(0) for x in (mid, high)]
    up1, bias1, gain, offset, up2, bias2 = weights
    with torch.cuda.device_of(pixels):
        paint_kernel[triton.cdiv(count, PAINTED), batch](
            pixels, up1, bias1, gain, offset, mid, up2, bias2, high, hyper, hyper if iou is None else iou, logits, count, width, *strides,
            0 if iou is None else iou.shape[1], first_value, masks, eps, iou is not None, triton.next_power_of_2(masks), drawn,
            dim, PAINTED, up1.dtype == torch.float32, num_warps=WARPS, num_stages=1,
        )  # fmt: skip
    return logits
