"""What the mask decoder's tokens found in the image, and what the final tokens say: masks' networks,
predicted IoU. One token of an object is one program's, in float32 but for the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

HIDDEN = 32  # hidden units that a program takes at once
MOST_ROWS, MOST_TOGETHER = 32, 4  # sums of spans, and tokens, of a program that merges them


@kernel
def found_kernel(
    sums, largest, totals, v, v_bias, out, parts, spans, count, rows,
    SPANS: tl.constexpr, TOGETHER: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """One head of TOGETHER tokens: merge what the spans of the image found, then the value and the output matrix.

    sums [B, spans, HEADS * rows, DIM], largest and totals [B, spans, HEADS * rows] float32 of
    unprojected image tokens; v: [DIM / 2, DIM]; out: [DIM, DIM / 2]; parts: [B, HEADS, count, DIM]
    float32, a head's share before the output's bias. Grid: (cdiv(count, TOGETHER), HEADS, B).
    """
    size: tl.constexpr = DIM // 2 // HEADS
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    token = tl.program_id(0) * TOGETHER + tl.arange(0, TOGETHER)
    span, channel = tl.arange(0, SPANS), tl.arange(0, DIM)
    unit = head * size + tl.arange(0, size)
    value_rows = tl.load(v + unit[:, None] * DIM + channel[None, :]).to(tl.float32)
    out_columns = tl.load(out + channel[:, None] * (DIM // 2) + unit[None, :]).to(tl.float32)
    place = (batch * spans + span)[:, None] * HEADS * rows + head * rows + token[None, :]
    here = token < count
    real = (span < spans)[:, None] & here[None, :]
    score = tl.load(largest + place, mask=real, other=float("-inf"))
    running_max = tl.where(here, tl.max(score, 0), 0.0)
    weight = tl.exp2(score - running_max[None, :])
    total = tl.where(here, tl.sum(weight * tl.load(totals + place, mask=real, other=0.0), 0), 1.0)
    found = tl.load(sums + place[:, :, None] * DIM + channel[None, None, :], mask=real[:, :, None], other=0.0)
    seen = tl.sum(found * (weight / total[None, :])[:, :, None], 0)
    value = tl.sum(value_rows[None, :, :] * seen[:, None, :], 2) + tl.load(v_bias + unit).to(tl.float32)[None, :]
    share = tl.sum(out_columns[None, :, :] * value[:, None, :], 2)
    place = parts + ((batch * HEADS + head) * count + token)[:, None] * DIM + channel[None, :]
    tl.store(place, share, mask=here[:, None])


@triton.jit
def two_layers(
    x, weight1, bias1, weight2, bias2, hidden, DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """x [DIM] through two linear layers with ReLU after each, DIM -> hidden -> hidden <= WIDE: [WIDE] float32."""
    channel, middle = tl.arange(0, DIM), tl.arange(0, WIDE)
    real = middle < hidden
    y = tl.load(bias2 + middle, mask=real, other=0.0).to(tl.float32)
    for first in range(0, hidden, BLOCK):
        unit = first + tl.arange(0, BLOCK)
        inside = unit < hidden
        rows = tl.load(weight1 + unit[:, None] * DIM + channel[None, :], mask=inside[:, None], other=0.0)
        place = middle[:, None] * hidden + unit[None, :]
        columns = tl.load(weight2 + place, mask=real[:, None] & inside[None, :], other=0.0)
        inner = tl.sum(rows.to(tl.float32) * x[None, :], 1)
        inner = tl.maximum(inner + tl.load(bias1 + unit, mask=inside, other=0.0).to(tl.float32), 0.0)
        y += tl.sum(columns.to(tl.float32) * inner[None, :], 1)
    return tl.maximum(y, 0.0)


@triton.jit
def last_layer(y, weight, bias, hidden, first, outs, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """y [WIDE] through rows first to first + BLOCK of weight [outs, hidden]: [BLOCK] float32, zeros past `outs`."""
    unit, middle = first + tl.arange(0, BLOCK), tl.arange(0, WIDE)
    wanted = unit < outs
    place = unit[:, None] * hidden + middle[None, :]
    rows = tl.load(weight + place, mask=wanted[:, None] & (middle < hidden)[None, :], other=0.0)
    found = tl.sum(rows.to(tl.float32) * y[None, :], 1)
    return found + tl.load(bias + unit, mask=wanted, other=0.0).to(tl.float32)


@kernel
def token_heads_kernel(
    parts, bias, residual, norm_weight, norm_bias, present, tokens,
    iou1, iou1_bias, iou2, iou2_bias, iou3, iou3_bias, mask1, mask1_bias, mask2, mask2_bias, mask3, mask3_bias,
    iou, hyper, count, hidden, iou_count, first_mask, iou_token, num_masks, eps,
    MASKED: tl.constexpr, PARTS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, VALUES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The final tokens, norm(sum of parts [B, PARTS, count, DIM] + bias + residual), and what is read from them.

    residual: [B, count, DIM] float32; tokens: [B, count, DIM], zeros where not `present` (read where
    MASKED). Token `iou_token` through its head and a sigmoid: iou [B, iou_count] float32. Tokens from
    first_mask on through the masks' networks [num_masks, ...]: hyper [B, num_masks, DIM / 8] float32.
    Grid: (count, B).
    """
    batch, token, channel = tl.program_id(1).to(tl.int64), tl.program_id(0), tl.arange(0, DIM)
    part = tl.arange(0, PARTS)
    place = ((batch * PARTS + part) * count + token)[:, None] * DIM + channel[None, :]
    here = (batch * count + token) * DIM + channel
    x = tl.sum(tl.load(parts + place), 0) + tl.load(bias + channel).to(tl.float32) + tl.load(residual + here)
    centred = x - tl.sum(x, 0) / DIM
    x = centred * tl.rsqrt(tl.sum(centred * centred, 0) / DIM + eps)
    x = x * tl.load(norm_weight + channel).to(tl.float32) + tl.load(norm_bias + channel).to(tl.float32)
    stored = x
    if MASKED:
        stored = tl.where(tl.load(present + batch * count + token) != 0, x, 0.0)
    tl.store(tokens + here, stored.to(tokens.dtype.element_ty))
    if token == iou_token:
        y = two_layers(x, iou1, iou1_bias, iou2, iou2_bias, hidden, DIM, WIDE, BLOCK)
        found = last_layer(y, iou3, iou3_bias, hidden, 0, iou_count, WIDE, VALUES)
        value = tl.arange(0, VALUES)
        tl.store(iou + batch * iou_count + value, 1.0 / (1.0 + tl.exp(-found)), mask=value < iou_count)
    mask = token - first_mask
    if (mask >= 0) & (mask < num_masks):
        narrow: tl.constexpr = DIM // 8
        y = two_layers(
            x, mask1 + mask * DIM * DIM, mask1_bias + mask * DIM, mask2 + mask * DIM * DIM, mask2_bias + mask * DIM,
            DIM, DIM, DIM, BLOCK,
        )  # fmt: skip
        found = last_layer(
            y, mask3 + mask * narrow * DIM, mask3_bias + mask * narrow, DIM, 0, narrow, DIM, narrow
        )  # fmt: skip
        tl.store(hyper + (batch * num_masks + mask) * narrow + tl.arange(0, narrow), found)


def found_in_image(spans: tuple[Tensor, Tensor, Tensor], weights: tuple[Tensor, Tensor, Tensor], heads: int, count: int) -> Tensor:
    """What `mask_decoder.look` found for `count` tokens, as shares of heads [B, heads, count, C] float32.

    weights: value matrix and bias, output matrix. On the current stream.
    """
    batch, parts, rows, dim = spans[0].shape
    found = spans[0].new_empty(batch, heads, count, dim)
    wide = triton.next_power_of_2(parts)
    together = min(max(MOST_ROWS // wide, 1), MOST_TOGETHER, triton.next_power_of_2(count))
    with torch.cuda.device_of(found):
        found_kernel[triton.cdiv(count, together), heads, batch](
            *spans, *weights, found, parts, count, rows // heads,
            SPANS=wide, TOGETHER=together, HEADS=heads, DIM=dim, num_warps=4,
        )  # fmt: skip
    return found


def token_heads(
    pending: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    present: Tensor | None,
    heads: Sequence[Tensor],
    first_mask: int,
    iou_token: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted IoU [B, K] float32, outputs of the masks' networks [B, M, C / 8] float32, tokens [B, T, C] in `dtype`.

    pending: as `decoder_tokens.Pending`; heads: matrix and bias three times for IoU, then for all masks
    together [M, ...]. On the current stream.
    """
    parts, values, masks = pending[0], heads[4].shape[0], heads[6].shape[0]
    batch, _, count, dim = parts.shape
    tokens = parts.new_empty(batch, count, dim, dtype=dtype)
    iou, hyper = parts.new_empty(batch, values), parts.new_empty(batch, masks, dim // 8)
    wide = triton.next_power_of_2(heads[0].shape[0])
    with torch.cuda.device_of(parts):
        token_heads_kernel[count, batch](
            *pending, tokens if present is None else present, tokens, *heads, iou, hyper,
            count, heads[0].shape[0], values, first_mask, iou_token, masks, eps,
            MASKED=present is not None, PARTS=parts.shape[1], DIM=dim, WIDE=wide, VALUES=triton.next_power_of_2(values), BLOCK=HIDDEN,
            num_warps=8,
        )  # fmt: skip
    return iou, hyper, tokens
