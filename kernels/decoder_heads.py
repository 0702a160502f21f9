"""Output projection of the token-to-image attention, and the heads on the final tokens.

The heads predict IoU and hypernetwork outputs. Everything but the weights is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.decoder_tokens import Pending
from sam2_fast.kernels.launch import kernel
from torch import Tensor

HIDDEN = 32  # hidden units that a program computes at once
MAX_ROWS = 32  # maximum of spans times tokens in a program that merges spans
MAX_TOGETHER = 4  # maximum of tokens in a program that merges spans


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
    """Merge spans of the token-to-image attention and project, one head of TOGETHER tokens.

    The spans hold weighted sums of unprojected image tokens, so the value and the output projection
    are both applied here.

    Pointers, all contiguous:
    span_accumulators: [B, spans, HEADS * rows, DIM] float32.
    span_maxima: running maxima of base-2 scores [B, spans, HEADS * rows] float32.
    span_sums: running sums of weights [B, spans, HEADS * rows] float32.
    v: value matrix [DIM / 2, DIM], any float dtype.
    v_bias: [DIM / 2], any float dtype.
    out: output matrix [DIM, DIM / 2], any float dtype.
    parts: result, one partial sum per head, without the output bias [B, HEADS, count, DIM] float32.

    spans, count: int; spans <= SPANS. rows: int, rows of a head in the accumulators.
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
    token_mask = token < count
    mask = (span < spans)[:, None] & token_mask[None, :]
    maxima = tl.load(span_maxima + row, mask=mask, other=float("-inf"))
    token_max = tl.where(token_mask, tl.max(maxima, 0), 0.0)
    rescale = tl.exp2(maxima - token_max[None, :])
    sums = tl.load(span_sums + row, mask=mask, other=0.0)
    token_sum = tl.where(token_mask, tl.sum(rescale * sums, 0), 1.0)
    accumulator_ptrs = span_accumulators + row[:, :, None] * DIM + channel[None, None, :]
    accumulators = tl.load(accumulator_ptrs, mask=mask[:, :, None], other=0.0)
    attended = tl.sum(accumulators * (rescale / token_sum[None, :])[:, :, None], 0)
    value = tl.sum(value_rows[None, :, :] * attended[:, None, :], 2)
    value = value + tl.load(v_bias + unit).to(tl.float32)[None, :]
    projected = tl.sum(out_columns[None, :, :] * value[:, None, :], 2)
    part_row = (batch * HEADS + head) * count + token
    part_ptrs = parts + part_row[:, None] * DIM + channel[None, :]
    tl.store(part_ptrs, projected, mask=token_mask[:, None])


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
    """Two linear layers, each followed by ReLU, of x [DIM]: [WIDE] float32, zeros past `hidden`."""
    channel = tl.arange(0, DIM)
    out_unit = tl.arange(0, WIDE)
    out_mask = out_unit < hidden
    y = tl.load(bias2 + out_unit, mask=out_mask, other=0.0).to(tl.float32)
    for start in range(0, hidden, BLOCK):
        unit = start + tl.arange(0, BLOCK)
        unit_mask = unit < hidden
        row_ptrs = weight1 + unit[:, None] * DIM + channel[None, :]
        rows = tl.load(row_ptrs, mask=unit_mask[:, None], other=0.0)
        column_offsets = out_unit[:, None] * hidden + unit[None, :]
        column_mask = out_mask[:, None] & unit_mask[None, :]
        columns = tl.load(weight2 + column_offsets, mask=column_mask, other=0.0)
        hidden_value = tl.sum(rows.to(tl.float32) * x[None, :], 1)
        shift = tl.load(bias1 + unit, mask=unit_mask, other=0.0).to(tl.float32)
        hidden_value = tl.maximum(hidden_value + shift, 0.0)
        y += tl.sum(columns.to(tl.float32) * hidden_value[None, :], 1)
    return tl.maximum(y, 0.0)


@triton.jit
def last_layer(
    y, weight, bias, hidden, start, out_features, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Outputs start to start + BLOCK of a linear layer of y [WIDE]: [BLOCK] float32.

    weight: [out_features, hidden]. Outputs past out_features are zero.
    """
    unit = start + tl.arange(0, BLOCK)
    hidden_unit = tl.arange(0, WIDE)
    out_mask = unit < out_features
    offsets = unit[:, None] * hidden + hidden_unit[None, :]
    mask = out_mask[:, None] & (hidden_unit < hidden)[None, :]
    rows = tl.load(weight + offsets, mask=mask, other=0.0)
    result = tl.sum(rows.to(tl.float32) * y[None, :], 1)
    return result + tl.load(bias + unit, mask=out_mask, other=0.0).to(tl.float32)


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
    """One final token, norm(sum of parts + bias + residual), and the predictions from it.

    Token `iou_token` predicts the IoUs, tokens first_mask to first_mask + num_masks the outputs of
    the hypernetworks.

    Pointers, all contiguous; matrices are [out, in], of any float dtype:
    parts: partial sums [B, PARTS, count, DIM] float32.
    bias: added to the sum of the parts [DIM], any float dtype.
    residual: [B, count, DIM] float32.
    norm_weight, norm_bias: of the layer norm [DIM], any float dtype.
    present: which tokens exist [B, count] uint8; only if MASKED.
    tokens: result, the tokens, zeros if not present [B, count, DIM], any float dtype.
    iou1, iou1_bias: first layer of the IoU head [hidden, DIM], [hidden].
    iou2, iou2_bias: second layer of the IoU head [hidden, hidden], [hidden].
    iou3, iou3_bias: last layer of the IoU head [iou_count, hidden], [iou_count].
    mask1, mask1_bias: first layers of the hypernetworks [num_masks, DIM, DIM], [num_masks, DIM].
    mask2, mask2_bias: second layers of the hypernetworks, same shapes.
    mask3, mask3_bias: last layers of the hypernetworks [num_masks, DIM / 8, DIM],
        [num_masks, DIM / 8].
    iou: result, after a sigmoid [B, iou_count] float32.
    hypernetwork: result, outputs of the hypernetworks [B, num_masks, DIM / 8] float32.

    count, hidden, iou_count, first_mask, iou_token, num_masks: int. eps: float, of the layer norm.
    WIDE and VALUES: hidden and iou_count as powers of two. Grid: (count, B).
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
    output_token = x
    if MASKED:
        output_token = tl.where(tl.load(present + batch * count + token) != 0, x, 0.0)
    tl.store(tokens + token_offsets, output_token.to(tokens.dtype.element_ty))
    if token == iou_token:
        y = two_layers(x, iou1, iou1_bias, iou2, iou2_bias, hidden, DIM, WIDE, BLOCK)
        score = last_layer(y, iou3, iou3_bias, hidden, 0, iou_count, WIDE, VALUES)
        value = tl.arange(0, VALUES)
        iou_ptrs = iou + batch * iou_count + value
        tl.store(iou_ptrs, 1.0 / (1.0 + tl.exp(-score)), mask=value < iou_count)
    mask = token - first_mask
    if (mask >= 0) & (mask < num_masks):
        mask_dim: tl.constexpr = DIM // 8
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
            mask3 + mask * mask_dim * DIM,
            mask3_bias + mask * mask_dim,
            DIM,
            0,
            mask_dim,
            DIM,
            mask_dim,
        )
        output_ptrs = hypernetwork + (batch * num_masks + mask) * mask_dim + tl.arange(0, mask_dim)
        tl.store(output_ptrs, output)


def token_to_image_output(
    spans: tuple[Tensor, Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    heads: int,
    count: int,
) -> Tensor:
    """Projected token-to-image attention of `count` tokens, [B, heads, count, C] float32.

    The result has one partial sum per head, without the output bias.
    spans: result of `mask_decoder.token_to_image_attention`. weights: value matrix and bias, output
        matrix. Computed on the current stream.
    """
    accumulators, maxima, sums = spans
    v, v_bias, out = weights
    batch, num_spans, rows, dim = accumulators.shape
    parts = accumulators.new_empty(batch, heads, count, dim)
    padded_spans = triton.next_power_of_2(num_spans)
    together = min(max(MAX_ROWS // padded_spans, 1), MAX_TOGETHER, triton.next_power_of_2(count))
    with torch.cuda.device_of(parts):
        token_to_image_output_kernel[triton.cdiv(count, together), heads, batch](
            span_accumulators=accumulators,
            span_maxima=maxima,
            span_sums=sums,
            v=v,
            v_bias=v_bias,
            out=out,
            parts=parts,
            spans=num_spans,
            count=count,
            rows=rows // heads,
            SPANS=padded_spans,
            TOGETHER=together,
            HEADS=heads,
            DIM=dim,
            num_warps=4,
        )
    return parts


def token_heads(
    pending: Pending,
    present: Tensor | None,
    heads: Sequence[Tensor],
    first_mask: int,
    iou_token: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted IoU [B, K], hypernetwork outputs [B, M, C / 8] and final tokens [B, T, C].

    The tokens are in `dtype`, the rest in float32.
    heads: matrix and bias of the three layers of the IoU head, then of the three layers of all
        hypernetworks, stacked [M, ...]. Computed on the current stream.
    """
    iou1, iou1_bias, iou2, iou2_bias, iou3, iou3_bias = heads[:6]
    mask1, mask1_bias, mask2, mask2_bias, mask3, mask3_bias = heads[6:]
    parts = pending.parts
    hidden = iou1.shape[0]
    iou_count = iou3.shape[0]
    num_masks = mask1.shape[0]
    batch, _, count, dim = parts.shape
    tokens = parts.new_empty(batch, count, dim, dtype=dtype)
    iou = parts.new_empty(batch, iou_count)
    hypernetwork = parts.new_empty(batch, num_masks, dim // 8)
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
            iou_count=iou_count,
            first_mask=first_mask,
            iou_token=iou_token,
            num_masks=num_masks,
            eps=eps,
            MASKED=present is not None,
            PARTS=parts.shape[1],
            DIM=dim,
            WIDE=triton.next_power_of_2(hidden),
            VALUES=triton.next_power_of_2(iou_count),
            BLOCK=HIDDEN,
            num_warps=8,
        )
    return iou, hypernetwork, tokens
