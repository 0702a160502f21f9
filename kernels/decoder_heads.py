"""The output projection of the token-to-image attention, and what the final tokens predict: outputs
of the hypernetworks, predicted IoU; in float32 but for the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.decoder_tokens import Pending
from sam2_fast.kernels.launch import kernel
from torch import Tensor

HIDDEN = 32  # hidden units that a program takes at once
MOST_ROWS = 32  # spans times tokens of a program that merges spans
MOST_TOGETHER = 4  # tokens of it


@kernel
def token_to_image_output_kernel(
    span_accumulators,
    span_maxima,
    span_sums,
    v,
    v_bias,
    out,
    parts,
    spans,
    count,
    rows,
    SPANS: tl.constexpr,
    TOGETHER: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
):
    """One head of TOGETHER tokens: merge the spans of the token-to-image attention, whose values
    are unprojected image tokens, then the value and the output matrix.

    Pointers, all contiguous:
    span_accumulators: [B, spans, HEADS * rows, DIM] float32.
    span_maxima: running maxima of scores to base 2 [B, spans, HEADS * rows] float32.
    span_sums: running sums of weights [B, spans, HEADS * rows] float32.
    v: value matrix [DIM / 2, DIM], any float dtype.
    v_bias: [DIM / 2], any float dtype.
    out: output matrix [DIM, DIM / 2], any float dtype.
    parts: a head's share before the output's bias [B, HEADS, count, DIM] float32.

    spans, count: int; spans <= SPANS. rows: int, of a head in the accumulators.
    Grid: (cdiv(count, TOGETHER), HEADS, B).
    """
    size: tl.constexpr = DIM // 2 // HEADS
    batch = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1)
    token = tl.program_id(0) * TOGETHER + tl.arange(0, TOGETHER)
    span = tl.arange(0, SPANS)
    channel = tl.arange(0, DIM)
    unit = head * size + tl.arange(0, size)
    value_rows = tl.load(v + unit[:, None] * DIM + channel[None, :]).to(tl.float32)
    out_columns = tl.load(out + channel[:, None] * (DIM // 2) + unit[None, :]).to(tl.float32)
    row = (batch * spans + span)[:, None] * HEADS * rows + head * rows + token[None, :]
    in_tokens = token < count
    inside = (span < spans)[:, None] & in_tokens[None, :]
    maxima = tl.load(span_maxima + row, mask=inside, other=float("-inf"))
    token_max = tl.where(in_tokens, tl.max(maxima, 0), 0.0)
    rescale = tl.exp2(maxima - token_max[None, :])
    sums = tl.load(span_sums + row, mask=inside, other=0.0)
    token_sum = tl.where(in_tokens, tl.sum(rescale * sums, 0), 1.0)
    accumulator_at = span_accumulators + row[:, :, None] * DIM + channel[None, None, :]
    accumulators = tl.load(accumulator_at, mask=inside[:, :, None], other=0.0)
    attended = tl.sum(accumulators * (rescale / token_sum[None, :])[:, :, None], 0)
    value = tl.sum(value_rows[None, :, :] * attended[:, None, :], 2)
    value = value + tl.load(v_bias + unit).to(tl.float32)[None, :]
    share = tl.sum(out_columns[None, :, :] * value[:, None, :], 2)
    part_row = (batch * HEADS + head) * count + token
    part_at = parts + part_row[:, None] * DIM + channel[None, :]
    tl.store(part_at, share, mask=in_tokens[:, None])


@triton.jit
def two_layers(
    x,
    weight1,
    bias1,
    weight2,
    bias2,
    hidden,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x [DIM] through two linear layers with ReLU after each, DIM -> hidden -> hidden <= WIDE:
    [WIDE] float32."""
    channel = tl.arange(0, DIM)
    out_unit = tl.arange(0, WIDE)
    in_hidden = out_unit < hidden
    y = tl.load(bias2 + out_unit, mask=in_hidden, other=0.0).to(tl.float32)
    for first in range(0, hidden, BLOCK):
        unit = first + tl.arange(0, BLOCK)
        inside = unit < hidden
        rows_at = weight1 + unit[:, None] * DIM + channel[None, :]
        rows = tl.load(rows_at, mask=inside[:, None], other=0.0)
        column_offsets = out_unit[:, None] * hidden + unit[None, :]
        in_columns = in_hidden[:, None] & inside[None, :]
        columns = tl.load(weight2 + column_offsets, mask=in_columns, other=0.0)
        inner = tl.sum(rows.to(tl.float32) * x[None, :], 1)
        shift = tl.load(bias1 + unit, mask=inside, other=0.0).to(tl.float32)
        inner = tl.maximum(inner + shift, 0.0)
        y += tl.sum(columns.to(tl.float32) * inner[None, :], 1)
    return tl.maximum(y, 0.0)


@triton.jit
def last_layer(y, weight, bias, hidden, first, outs, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """y [WIDE] through rows first to first + BLOCK of weight [outs, hidden]: [BLOCK] float32, zeros
    past `outs`."""
    unit = first + tl.arange(0, BLOCK)
    in_unit = tl.arange(0, WIDE)
    in_outs = unit < outs
    offsets = unit[:, None] * hidden + in_unit[None, :]
    inside = in_outs[:, None] & (in_unit < hidden)[None, :]
    rows = tl.load(weight + offsets, mask=inside, other=0.0)
    result = tl.sum(rows.to(tl.float32) * y[None, :], 1)
    return result + tl.load(bias + unit, mask=in_outs, other=0.0).to(tl.float32)


@kernel
def token_heads_kernel(
    parts,
    bias,
    residual,
    norm_weight,
    norm_bias,
    present,
    tokens,
    iou1,
    iou1_bias,
    iou2,
    iou2_bias,
    iou3,
    iou3_bias,
    mask1,
    mask1_bias,
    mask2,
    mask2_bias,
    mask3,
    mask3_bias,
    iou,
    hypernetwork,
    count,
    hidden,
    iou_count,
    first_mask,
    iou_token,
    num_masks,
    eps,
    MASKED: tl.constexpr,
    PARTS: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A final token, norm(sum of parts + bias + residual), and what is predicted from it: IoU by
    its head and a sigmoid from token `iou_token`, outputs of the hypernetworks from the tokens
    first_mask on.

    Pointers, all contiguous; matrices are [out, in]:
    parts: partial sums [B, PARTS, count, DIM] float32.
    bias: of the sum [DIM], any float dtype.
    residual: [B, count, DIM] float32.
    norm_weight, norm_bias: of the layer norm [DIM], any float dtype.
    present: which tokens exist [B, count] uint8; MASKED.
    tokens: the tokens, zeros where not present [B, count, DIM], any float dtype.
    iou1, iou1_bias: first layer of the IoU head [hidden, DIM], [hidden], any float dtype.
    iou2, iou2_bias: its second layer [hidden, hidden], [hidden], any float dtype.
    iou3, iou3_bias: its last layer [iou_count, hidden], [iou_count], any float dtype.
    mask1, mask1_bias: first layers of the hypernetworks [num_masks, DIM, DIM], [num_masks, DIM],
        any float dtype.
    mask2, mask2_bias: their second layers, of the same shapes.
    mask3, mask3_bias: their last layers [num_masks, DIM / 8, DIM], [num_masks, DIM / 8], any float
        dtype.
    iou: [B, iou_count] float32.
    hypernetwork: outputs of the hypernetworks [B, num_masks, DIM / 8] float32.

    count, hidden, iou_count, first_mask, iou_token, num_masks: int. eps: float, of the layer norm.
    Grid: (count, B).
    """
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0)
    channel = tl.arange(0, DIM)
    part = tl.arange(0, PARTS)
    part_offsets = ((batch * PARTS + part) * count + token)[:, None] * DIM + channel[None, :]
    token_offsets = (batch * count + token) * DIM + channel
    x = tl.sum(tl.load(parts + part_offsets), 0) + tl.load(bias + channel).to(tl.float32)
    x = x + tl.load(residual + token_offsets)
    centered = x - tl.sum(x, 0) / DIM
    x = centered * tl.rsqrt(tl.sum(centered * centered, 0) / DIM + eps)
    x = x * tl.load(norm_weight + channel).to(tl.float32)
    x = x + tl.load(norm_bias + channel).to(tl.float32)
    stored = x
    if MASKED:
        stored = tl.where(tl.load(present + batch * count + token) != 0, x, 0.0)
    tl.store(tokens + token_offsets, stored.to(tokens.dtype.element_ty))
    if token == iou_token:
        y = two_layers(x, iou1, iou1_bias, iou2, iou2_bias, hidden, DIM, WIDE, BLOCK)
        score = last_layer(y, iou3, iou3_bias, hidden, 0, iou_count, WIDE, VALUES)
        value = tl.arange(0, VALUES)
        iou_at = iou + batch * iou_count + value
        tl.store(iou_at, 1.0 / (1.0 + tl.exp(-score)), mask=value < iou_count)
    mask = token - first_mask
    if (mask >= 0) & (mask < num_masks):
        narrow: tl.constexpr = DIM // 8
        y = two_layers(
            x,
            mask1 + mask * DIM * DIM,
            mask1_bias + mask * DIM,
            mask2 + mask * DIM * DIM,
            mask2_bias + mask * DIM,
            DIM,
            DIM,
            DIM,
            BLOCK,
        )
        output = last_layer(
            y,
            mask3 + mask * narrow * DIM,
            mask3_bias + mask * narrow,
            DIM,
            0,
            narrow,
            DIM,
            narrow,
        )
        output_at = hypernetwork + (batch * num_masks + mask) * narrow + tl.arange(0, narrow)
        tl.store(output_at, output)


def token_to_image_output(
    spans: tuple[Tensor, Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    heads: int,
    count: int,
) -> Tensor:
    """The result of `mask_decoder.token_to_image_attention` for `count` tokens, as shares of heads
    [B, heads, count, C] float32.

    weights: value matrix and bias, output matrix. On the current stream.
    """
    accumulators, maxima, sums = spans
    v, v_bias, out = weights
    batch, parts, rows, dim = accumulators.shape
    shares = accumulators.new_empty(batch, heads, count, dim)
    wide = triton.next_power_of_2(parts)
    together = min(max(MOST_ROWS // wide, 1), MOST_TOGETHER, triton.next_power_of_2(count))
    with torch.cuda.device_of(shares):
        token_to_image_output_kernel[triton.cdiv(count, together), heads, batch](
            span_accumulators=accumulators,
            span_maxima=maxima,
            span_sums=sums,
            v=v,
            v_bias=v_bias,
            out=out,
            parts=shares,
            spans=parts,
            count=count,
            rows=rows // heads,
            SPANS=wide,
            TOGETHER=together,
            HEADS=heads,
            DIM=dim,
            num_warps=4,
        )
    return shares


def token_heads(
    pending: Pending,
    present: Tensor | None,
    heads: Sequence[Tensor],
    first_mask: int,
    iou_token: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted IoU [B, K] float32, outputs of the hypernetworks [B, M, C / 8] float32, tokens [B,
    T, C] in `dtype`.

    heads: matrix and bias three times for IoU, then for all masks together [M, ...]. On the current
    stream.
    """
    iou1, iou1_bias, iou2, iou2_bias, iou3, iou3_bias = heads[:6]
    mask1, mask1_bias, mask2, mask2_bias, mask3, mask3_bias = heads[6:]
    parts = pending.parts
    hidden = iou1.shape[0]
    values = iou3.shape[0]
    masks = mask1.shape[0]
    batch, _, count, dim = parts.shape
    tokens = parts.new_empty(batch, count, dim, dtype=dtype)
    iou = parts.new_empty(batch, values)
    hypernetwork = parts.new_empty(batch, masks, dim // 8)
    with torch.cuda.device_of(parts):
        token_heads_kernel[count, batch](
            **pending._asdict(),
            present=tokens if present is None else present,
            tokens=tokens,
            iou1=iou1,
            iou1_bias=iou1_bias,
            iou2=iou2,
            iou2_bias=iou2_bias,
            iou3=iou3,
            iou3_bias=iou3_bias,
            mask1=mask1,
            mask1_bias=mask1_bias,
            mask2=mask2,
            mask2_bias=mask2_bias,
            mask3=mask3,
            mask3_bias=mask3_bias,
            iou=iou,
            hypernetwork=hypernetwork,
            count=count,
            hidden=hidden,
            iou_count=values,
            first_mask=first_mask,
            iou_token=iou_token,
            num_masks=masks,
            eps=eps,
            MASKED=present is not None,
            PARTS=parts.shape[1],
            DIM=dim,
            WIDE=triton.next_power_of_2(hidden),
            VALUES=triton.next_power_of_2(values),
            BLOCK=HIDDEN,
            num_warps=8,
        )
    return iou, hypernetwork, tokens
