"""The mask decoder's upscaling and mask prediction in Triton: image tokens become masks in one
launch, and the upscaled map is never written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.activations import gelu
from sam2_fast.kernels.launch import kernel
from torch import Tensor

BLOCK = 64  # image tokens of a program
WARPS = 8


@kernel
def upscale_and_predict_masks_kernel(
    image,
    up1,
    bias1,
    norm_weight,
    norm_bias,
    mid,
    up2,
    bias2,
    high,
    hypernetwork,
    iou,
    logits,
    count,
    width,
    mid_stride,
    high_stride,
    iou_count,
    first_value,
    num_masks,
    eps,
    CHOOSE: tl.constexpr,
    VALUES: tl.constexpr,
    MASKS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """BLOCK image tokens of one object through two transposed convolutions of stride 2, then the
    product with the outputs of the hypernetworks.

    Pointers, contiguous but for mid and high:
    image: image tokens [B, count, DIM], any float dtype; `width` are a row of the grid.
    up1: first transposed convolution [DIM, DIM], rows by place in the 2 x 2 cell, then channel,
        compute dtype.
    bias1: [DIM / 4], any float dtype.
    norm_weight, norm_bias: of the layer norm after it [DIM / 4], any float dtype.
    mid: feature map of stride 8 [1 or B, 2h, 2w, DIM / 4], any float dtype; objects lie mid_stride
        elements apart.
    up2: second transposed convolution [DIM / 2, DIM / 4], as up1, compute dtype.
    bias2: [DIM / 8], any float dtype.
    high: feature map of stride 4 [1 or B, 4h, 4w, DIM / 8], any float dtype; objects lie
        high_stride elements apart.
    hypernetwork: outputs of the hypernetworks [B, num_masks, DIM / 8] float32.
    iou: predicted IoU [B, iou_count] float32; CHOOSE.
    logits: [B, MASKS, 4h, 4w] float32.

    count, width: int. mid_stride, high_stride: int, 0 where objects share the map. iou_count,
    first_value, num_masks: int; CHOOSE: of the masks the one alone (MASKS = 1) whose IoU, from
    first_value on, is highest, the first of equals. eps: float, of the layer norm.
    Grid: (cdiv(count, BLOCK), B).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    wide: tl.constexpr = DIM // 4
    narrow: tl.constexpr = DIM // 8
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < count
    y = token // width
    x = token % width
    channel = tl.arange(0, DIM)
    quarter = tl.arange(0, wide)
    eighth = tl.arange(0, narrow)
    offsets = (batch * count + token)[:, None] * DIM + channel[None, :]
    tile = tl.load(image + offsets, mask=inside[:, None], other=0.0).to(up1.dtype.element_ty)
    scale = tl.load(norm_weight + quarter).to(tl.float32)
    shift = tl.load(norm_bias + quarter).to(tl.float32)
    chosen = 0
    if CHOOSE:
        candidate = tl.arange(0, VALUES)
        iou_at = iou + batch * iou_count + first_value + candidate
        scores = tl.load(iou_at, mask=candidate < num_masks, other=float("-inf"))
        chosen = tl.minimum(tl.argmax(scores, 0), num_masks - 1)
    shift1 = tl.load(bias1 + quarter).to(tl.float32)
    shift2 = tl.load(bias2 + eighth).to(tl.float32)
    for place1 in range(4):
        matrix1 = tl.load(up1 + (place1 * wide + quarter)[None, :] * DIM + channel[:, None])
        y2 = 2 * y + place1 // 2
        x2 = 2 * x + place1 % 2
        mid_pixel = y2 * 2 * width + x2
        mid_at = mid + batch * mid_stride + mid_pixel[:, None] * wide + quarter[None, :]
        mid_feature = tl.load(mid_at, mask=inside[:, None], other=0.0)
        value = tl.dot(tile, matrix1, input_precision=precision) + shift1[None, :]
        value = value + mid_feature.to(tl.float32)
        centered = value - (tl.sum(value, 1) / wide)[:, None]
        value = centered * tl.rsqrt(tl.sum(centered * centered, 1) / wide + eps)[:, None]
        value = value * scale[None, :] + shift[None, :]
        value = gelu(value).to(up2.dtype.element_ty)
        for place2 in range(4):
            matrix2 = tl.load(up2 + (place2 * narrow + eighth)[None, :] * wide + quarter[:, None])
            y4 = 2 * y2 + place2 // 2
            x4 = 2 * x2 + place2 % 2
            pixel = y4 * 4 * width + x4
            high_at = high + batch * high_stride + pixel[:, None] * narrow + eighth[None, :]
            high_feature = tl.load(high_at, mask=inside[:, None], other=0.0)
            upscaled = tl.dot(value, matrix2, input_precision=precision) + shift2[None, :]
            upscaled = gelu(upscaled + high_feature.to(tl.float32))
            for mask in range(MASKS):
                output_row = batch * num_masks + chosen + mask
                output = tl.load(hypernetwork + output_row * narrow + eighth)
                logits_at = logits + (batch * MASKS + mask) * 16 * count + pixel
                tl.store(logits_at, tl.sum(upscaled * output[None, :], 1), mask=inside)


def upscale_and_predict_masks(
    image: Tensor,
    width: int,
    mid: Tensor,
    high: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    hypernetwork: Tensor,
    eps: float,
    iou: Tensor | None = None,
    first_value: int = 0,
) -> Tensor:
    """Image tokens [B, N, C] to logits [B, M or 1, 4h, 4w] float32, by outputs of the hypernetworks
    [B, M, C / 8] float32.

    weights: first matrix and bias, norm, second matrix and bias. iou: [B, K] float32; of the M
    masks, whose values begin at first_value, only that of highest iou (None: all).

    mid, high: [1 or B, ...] as in `sam2_fast.ops.mask_decoder`. All contiguous, on the current
    stream.
    """
    batch, count, dim = image.shape
    num_masks = hypernetwork.shape[1]
    predicted = num_masks if iou is None else 1
    height = count // width
    logits = image.new_empty(batch, predicted, 4 * height, 4 * width, dtype=torch.float32)
    up1, bias1, norm_weight, norm_bias, up2, bias2 = weights
    with torch.cuda.device_of(image):
        upscale_and_predict_masks_kernel[triton.cdiv(count, BLOCK), batch](
            image=image,
            up1=up1,
            bias1=bias1,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            mid=mid,
            up2=up2,
            bias2=bias2,
            high=high,
            hypernetwork=hypernetwork,
            iou=hypernetwork if iou is None else iou,
            logits=logits,
            count=count,
            width=width,
            mid_stride=0 if len(mid) == 1 else mid.stride(0),
            high_stride=0 if len(high) == 1 else high.stride(0),
            iou_count=0 if iou is None else iou.shape[1],
            first_value=first_value,
            num_masks=num_masks,
            eps=eps,
            CHOOSE=iou is not None,
            VALUES=triton.next_power_of_2(num_masks),
            MASKS=predicted,
            DIM=dim,
            BLOCK=BLOCK,
            EXACT=up1.dtype == torch.float32,
            num_warps=WARPS,
            num_stages=1,
        )
    return logits
