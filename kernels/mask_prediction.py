"""Upscaling and mask prediction of the mask decoder in Triton.

Masks are computed from image tokens in one launch; the upscaled features are never stored.
"""

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
    mid_features,
    up2,
    bias2,
    high_features,
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
    """Upscale BLOCK image tokens of one object and predict their part of the masks.

    Upscaling is two transposed convolutions of stride 2; a mask is the product of the upscaled
    features with the mask's hypernetwork output.

    Pointers, all contiguous except mid_features and high_features:
    image: image tokens [B, count, DIM], any float dtype.
    up1: first transposed convolution [4 * DIM / 4, DIM], output rows ordered by position in the
        2 x 2 cell, then by channel, compute dtype.
    bias1: [DIM / 4], any float dtype.
    norm_weight, norm_bias: of the layer norm after it [DIM / 4], any float dtype.
    mid_features: feature map of stride 8 [1 or B, 2h, 2w, DIM / 4], any float dtype; mid_stride is
        the stride between objects, in elements.
    up2: second transposed convolution [4 * DIM / 8, DIM / 4], rows as in up1, compute dtype.
    bias2: [DIM / 8], any float dtype.
    high_features: feature map of stride 4 [1 or B, 4h, 4w, DIM / 8], any float dtype; high_stride
        is the stride between objects, in elements.
    hypernetwork: outputs of the hypernetworks [B, num_masks, DIM / 8] float32.
    iou: predicted IoU [B, iou_count] float32; only if CHOOSE.
    logits: result [B, MASKS, 4h, 4w] float32.

    count: int. width: int, of the token grid. mid_stride, high_stride: int, 0 if all objects have
    the same map. CHOOSE: MASKS is 1, and only the mask of highest IoU (the first among equals) is
    predicted. iou_count: int. first_value: int, index of the first mask's IoU. num_masks: int;
    VALUES: the same as a power of two. eps: float, of the layer norm.
    Grid: (cdiv(count, BLOCK), B).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    mid_dim: tl.constexpr = DIM // 4
    high_dim: tl.constexpr = DIM // 8
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token_mask = token < count
    y = token // width
    x = token % width
    channel = tl.arange(0, DIM)
    mid_channel = tl.arange(0, mid_dim)
    high_channel = tl.arange(0, high_dim)
    offsets = (batch * count + token)[:, None] * DIM + channel[None, :]
    tile = tl.load(image + offsets, mask=token_mask[:, None], other=0.0).to(up1.dtype.element_ty)
    scale = tl.load(norm_weight + mid_channel).to(tl.float32)
    shift = tl.load(norm_bias + mid_channel).to(tl.float32)
    chosen = 0
    if CHOOSE:
        candidate = tl.arange(0, VALUES)
        iou_ptrs = iou + batch * iou_count + first_value + candidate
        scores = tl.load(iou_ptrs, mask=candidate < num_masks, other=float("-inf"))
        chosen = tl.minimum(tl.argmax(scores, 0), num_masks - 1)
    shift1 = tl.load(bias1 + mid_channel).to(tl.float32)
    shift2 = tl.load(bias2 + high_channel).to(tl.float32)
    for position1 in range(4):
        row1 = position1 * mid_dim + mid_channel
        matrix1 = tl.load(up1 + row1[None, :] * DIM + channel[:, None])
        y2 = 2 * y + position1 // 2
        x2 = 2 * x + position1 % 2
        mid_pixel = y2 * 2 * width + x2
        mid_rows = mid_features + batch * mid_stride + mid_pixel[:, None] * mid_dim
        mid_tile = tl.load(mid_rows + mid_channel[None, :], mask=token_mask[:, None], other=0.0)
        value = tl.dot(tile, matrix1, input_precision=precision) + shift1[None, :]
        value = value + mid_tile.to(tl.float32)
        centered = value - (tl.sum(value, 1) / mid_dim)[:, None]
        value = centered * tl.rsqrt(tl.sum(centered * centered, 1) / mid_dim + eps)[:, None]
        value = value * scale[None, :] + shift[None, :]
        value = gelu(value).to(up2.dtype.element_ty)
        for position2 in range(4):
            row2 = position2 * high_dim + high_channel
            matrix2 = tl.load(up2 + row2[None, :] * mid_dim + mid_channel[:, None])
            y4 = 2 * y2 + position2 // 2
            x4 = 2 * x2 + position2 % 2
            pixel = y4 * 4 * width + x4
            high_rows = high_features + batch * high_stride + pixel[:, None] * high_dim
            high_ptrs = high_rows + high_channel[None, :]
            high_tile = tl.load(high_ptrs, mask=token_mask[:, None], other=0.0)
            upscaled = tl.dot(value, matrix2, input_precision=precision) + shift2[None, :]
            upscaled = gelu(upscaled + high_tile.to(tl.float32))
            for mask in range(MASKS):
                output_row = batch * num_masks + chosen + mask
                output = tl.load(hypernetwork + output_row * high_dim + high_channel)
                logits_ptrs = logits + (batch * MASKS + mask) * 16 * count + pixel
                tl.store(logits_ptrs, tl.sum(upscaled * output[None, :], 1), mask=token_mask)


def upscale_and_predict_masks(
    image: Tensor,
    width: int,
    mid_features: Tensor,
    high_features: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    hypernetwork: Tensor,
    eps: float,
    iou: Tensor | None = None,
    first_value: int = 0,
) -> Tensor:
    """Mask logits [B, M or 1, 4h, 4w] float32 of image tokens [B, N, C].

    mid_features, high_features: `mid` and `high` of `sam2_fast.ops.mask_decoder`,
        [1 or B, 2h, 2w, C / 4] and [1 or B, 4h, 4w, C / 8].
    weights: first matrix and bias, norm weight and bias, second matrix and bias.
    hypernetwork: outputs of the hypernetworks [B, M, C / 8] float32.
    iou: [B, K] float32, to predict only the mask of highest IoU, or None for all masks.
    first_value: index in `iou` of the first mask.
    All contiguous; computed on the current stream.
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
            mid_features=mid_features,
            up2=up2,
            bias2=bias2,
            high_features=high_features,
            hypernetwork=hypernetwork,
            iou=hypernetwork if iou is None else iou,
            logits=logits,
            count=count,
            width=width,
            mid_stride=0 if len(mid_features) == 1 else mid_features.stride(0),
            high_stride=0 if len(high_features) == 1 else high_features.stride(0),
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
