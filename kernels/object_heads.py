"""Object scores, object pointers and masks of a tracked frame, in Triton.

From the mask decoder's results, one kernel computes presence and pointer of each object, and a
second one selects the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.decoder_heads import HIDDEN, last_layer, two_layers
from sam2_fast.kernels.launch import kernel
from torch import Tensor

PIXELS = 4096  # pixels of a program


@kernel
def object_state_kernel(
    logits,
    iou,
    tokens,
    presence1,
    presence1_bias,
    presence2,
    presence2_bias,
    presence3,
    presence3_bias,
    pointer1,
    pointer1_bias,
    pointer2,
    pointer2_bias,
    pointer3,
    pointer3_bias,
    presence,
    pointer,
    counts,
    count,
    size,
    num_masks,
    iou_count,
    first_mask,
    presence_hidden,
    pointer_hidden,
    delta,
    BEST: tl.constexpr,
    DIM: tl.constexpr,
    PRESENCE: tl.constexpr,
    POINTER: tl.constexpr,
    VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Presence and pointer of an object, and counts of its first mask's pixels for the stability.

    Program 0 of an object computes its presence from token 0, program 1 its pointer from the token
    of its mask, each by three layers. Of PIXELS logits of the first mask, each other program counts
    those above delta and those above -delta.

    Pointers, all contiguous; matrices are [out, in], of any float dtype:
    logits: [B, num_masks, size], any float dtype.
    iou: predicted IoU [B, iou_count], any float dtype; only if BEST.
    tokens: [B, count, DIM], any float dtype.
    presence1, presence1_bias: first layer of presence [presence_hidden, DIM], [presence_hidden].
    presence2, presence2_bias: second layer [presence_hidden, presence_hidden], [presence_hidden].
    presence3, presence3_bias: last layer [1, presence_hidden], [1].
    pointer1, pointer1_bias: first layer of the pointer [pointer_hidden, DIM], [pointer_hidden].
    pointer2, pointer2_bias: second layer [pointer_hidden, pointer_hidden], [pointer_hidden].
    pointer3, pointer3_bias: last layer [DIM, pointer_hidden], [DIM].
    presence: result, logits [B], any float dtype.
    pointer: result [B, DIM] float32.
    counts: result [B, programs - 2, 2] int32.

    count: int, number of tokens. size: int, pixels of a mask. num_masks, iou_count,
    presence_hidden, pointer_hidden: int. first_mask: int, index of the mask's token; if BEST,
    of the first of the mask tokens, of which that of highest IoU is used. delta: float. PRESENCE,
    POINTER and VALUES: presence_hidden, pointer_hidden and iou_count as powers of two.
    Grid: (2 + cdiv(size, PIXELS), B), or (2, B) if pixels are not counted.
    """
    batch = tl.program_id(1).to(tl.int64)
    program = tl.program_id(0)
    channel = tl.arange(0, DIM)
    if program == 0:
        x = tl.load(tokens + batch * count * DIM + channel).to(tl.float32)
        y = two_layers(
            x,
            presence1,
            presence1_bias,
            presence2,
            presence2_bias,
            presence_hidden,
            DIM,
            PRESENCE,
            BLOCK,
        )
        score = last_layer(y, presence3, presence3_bias, presence_hidden, 0, 1, PRESENCE, 1)
        tl.store(presence + batch + tl.arange(0, 1), score.to(presence.dtype.element_ty))
    if program == 1:
        token = first_mask
        if BEST:
            value = tl.arange(0, VALUES)
            candidates = value < iou_count - (first_mask - 2)
            iou_ptrs = iou + batch * iou_count + first_mask - 2 + value
            scores = tl.load(iou_ptrs, mask=candidates, other=float("-inf")).to(tl.float32)
            token += tl.minimum(tl.argmax(scores, 0), iou_count - (first_mask - 2) - 1)
        x = tl.load(tokens + (batch * count + token) * DIM + channel).to(tl.float32)
        y = two_layers(
            x,
            pointer1,
            pointer1_bias,
            pointer2,
            pointer2_bias,
            pointer_hidden,
            DIM,
            POINTER,
            BLOCK,
        )
        for start in range(0, DIM, BLOCK):
            part = last_layer(
                y, pointer3, pointer3_bias, pointer_hidden, start, DIM, POINTER, BLOCK
            )
            tl.store(pointer + batch * DIM + start + tl.arange(0, BLOCK), part)
    if program > 1:
        pixel = (program - 2) * PIXELS + tl.arange(0, PIXELS)
        logit_ptrs = logits + batch * num_masks * size + pixel
        logit = tl.load(logit_ptrs, mask=pixel < size, other=float("-inf")).to(tl.float32)
        count_ptrs = counts + (batch * (tl.num_programs(0) - 2) + program - 2) * 2
        tl.store(count_ptrs, tl.sum((logit > delta).to(tl.int32), 0))
        tl.store(count_ptrs + 1, tl.sum((logit > -delta).to(tl.int32), 0))


@kernel
def select_mask_kernel(
    logits,
    iou,
    presence,
    pointer,
    counts,
    absent_pointer,
    mask,
    out_pointer,
    size,
    num_masks,
    iou_count,
    first_value,
    blocks,
    threshold,
    absent_logit,
    CHOOSE: tl.constexpr,
    VALUES: tl.constexpr,
    BLOCKS: tl.constexpr,
    DIM: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Copy PIXELS of the selected mask, or fill them with absent_logit if the object is absent.

    Program 0 of an object also stores its pointer. The first mask is selected; if CHOOSE and
    it is not stable, the one of highest IoU among the others is selected.

    Pointers, all contiguous:
    logits: [B, num_masks, size], any float dtype.
    iou: predicted IoU [B, iou_count], any float dtype; only if CHOOSE.
    presence: logits [B], any float dtype; an object is present if its logit is above 0.
    pointer: [B, DIM] float32.
    counts: pixels of the first mask above delta and -delta [B, blocks, 2] int32; only if CHOOSE.
    absent_pointer: [DIM], any float dtype.
    mask: result [B, size], any float dtype.
    out_pointer: result, pointer, or absent_pointer of an absent object [B, DIM], any float dtype.

    size: int, pixels of a mask. num_masks, iou_count, blocks: int. first_value: int, index of the
    first mask's IoU. threshold: float, minimum stability. absent_logit: float. VALUES and BLOCKS:
    num_masks and blocks as powers of two.
    Grid: (cdiv(size, PIXELS), B).
    """
    batch = tl.program_id(1).to(tl.int64)
    program = tl.program_id(0)
    present = tl.load(presence + batch).to(tl.float32) > 0
    chosen = 0
    if CHOOSE:
        block = tl.arange(0, BLOCKS)
        value = tl.arange(0, VALUES)
        count_ptrs = counts + (batch * blocks + block) * 2
        inner = tl.sum(tl.load(count_ptrs, mask=block < blocks, other=0), 0).to(tl.float32)
        outer = tl.sum(tl.load(count_ptrs + 1, mask=block < blocks, other=0), 0).to(tl.float32)
        stability = tl.where(outer > 0, tl.div_rn(inner, tl.maximum(outer, 1.0)), 1.0)
        candidates = (value > 0) & (value < num_masks)
        iou_ptrs = iou + batch * iou_count + first_value + value
        scores = tl.load(iou_ptrs, mask=candidates, other=float("-inf")).to(tl.float32)
        best = tl.maximum(tl.minimum(tl.argmax(scores, 0), num_masks - 1), 1)
        chosen = tl.where(stability >= threshold, 0, best)
    pixel = program * PIXELS + tl.arange(0, PIXELS)
    in_bounds = pixel < size
    logit_ptrs = logits + (batch * num_masks + chosen) * size + pixel
    logit = tl.load(logit_ptrs, mask=in_bounds, other=0.0)
    mask_ptrs = mask + batch * size + pixel
    mask_logit = tl.where(present, logit.to(tl.float32), absent_logit)
    tl.store(mask_ptrs, mask_logit.to(mask.dtype.element_ty), mask=in_bounds)
    if program == 0:
        channel = tl.arange(0, DIM)
        present_pointer = tl.load(pointer + batch * DIM + channel)
        constant_pointer = tl.load(absent_pointer + channel).to(tl.float32)
        pointer_ptrs = out_pointer + batch * DIM + channel
        selected_pointer = tl.where(present, present_pointer, constant_pointer)
        tl.store(pointer_ptrs, selected_pointer.to(out_pointer.dtype.element_ty))


def object_state(
    logits: Tensor,
    iou: Tensor,
    tokens: Tensor,
    weights: Sequence[Tensor],
    first_mask: int,
    best: bool,
    delta: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Presence logits [B, 1] in `dtype`, pointers [B, C] float32, and pixel counts [B, P, 2] int32.

    The pointers do not depend on presence. The counts are those of the first mask's pixels above
    delta and above -delta, one row per program; with a single mask P is 0. Arguments are those of
    `ops.object_heads`. Computed on the current stream.
    """
    presence1, presence1_bias, presence2, presence2_bias, presence3, presence3_bias = weights[:6]
    pointer1, pointer1_bias, pointer2, pointer2_bias, pointer3, pointer3_bias = weights[6:]
    batch, masks, height, width = logits.shape
    count, dim = tokens.shape[1:]
    values = iou.shape[1]
    pixels = height * width
    presence_hidden = presence1.shape[0]
    pointer_hidden = pointer1.shape[0]
    blocks = triton.cdiv(pixels, PIXELS) if masks > 1 else 0
    presence = tokens.new_empty(batch, 1, dtype=dtype)
    pointer = tokens.new_empty(batch, dim, dtype=torch.float32)
    counts = tokens.new_empty(batch, blocks, 2, dtype=torch.int32)
    with torch.cuda.device_of(logits):
        object_state_kernel[2 + blocks, batch](
            logits=logits,
            iou=iou,
            tokens=tokens,
            presence1=presence1,
            presence1_bias=presence1_bias,
            presence2=presence2,
            presence2_bias=presence2_bias,
            presence3=presence3,
            presence3_bias=presence3_bias,
            pointer1=pointer1,
            pointer1_bias=pointer1_bias,
            pointer2=pointer2,
            pointer2_bias=pointer2_bias,
            pointer3=pointer3,
            pointer3_bias=pointer3_bias,
            presence=presence,
            pointer=pointer,
            counts=counts,
            count=count,
            size=pixels,
            num_masks=masks,
            iou_count=values,
            first_mask=first_mask,
            presence_hidden=presence_hidden,
            pointer_hidden=pointer_hidden,
            delta=delta,
            BEST=best,
            DIM=dim,
            PRESENCE=triton.next_power_of_2(presence_hidden),
            POINTER=triton.next_power_of_2(pointer_hidden),
            VALUES=triton.next_power_of_2(values),
            BLOCK=HIDDEN,
            PIXELS=PIXELS,
            num_warps=8,
        )
    return presence, pointer, counts


def select_mask(
    logits: Tensor,
    iou: Tensor,
    presence: Tensor,
    pointer: Tensor,
    counts: Tensor,
    absent_pointer: Tensor,
    first_mask: int,
    threshold: float,
    absent_logit: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Masks [B, 1, H, W] float32 and pointers [B, C] in `dtype`, from results of `object_state`.

    Computed on the current stream.
    """
    batch, masks, height, width = logits.shape
    dim = pointer.shape[1]
    blocks = counts.shape[1]
    mask = logits.new_empty(batch, 1, height, width)
    out_pointer = logits.new_empty(batch, dim, dtype=dtype)
    with torch.cuda.device_of(logits):
        select_mask_kernel[triton.cdiv(height * width, PIXELS), batch](
            logits=logits,
            iou=iou,
            presence=presence,
            pointer=pointer,
            counts=counts,
            absent_pointer=absent_pointer,
            mask=mask,
            out_pointer=out_pointer,
            size=height * width,
            num_masks=masks,
            iou_count=iou.shape[1],
            first_value=first_mask - 2,
            blocks=blocks,
            threshold=threshold,
            absent_logit=absent_logit,
            CHOOSE=masks > 1,
            VALUES=triton.next_power_of_2(masks),
            BLOCKS=triton.next_power_of_2(max(blocks, 1)),
            DIM=dim,
            PIXELS=PIXELS,
            num_warps=4,
        )
    return mask, out_pointer
