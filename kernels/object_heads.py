"""Object scores, object pointers and masks of a tracked frame, from the mask decoder's results, in
Triton: presence and pointer of an object, then the mask that is kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.decoder_heads import HIDDEN, last_layer, two_layers
from sam2_fast.kernels.launch import kernel
from torch import Tensor

PIXELS = 4096  # of a program


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
    """Program 0 of an object: token 0 through three layers, its presence. Program 1: the token of
    its mask through three layers, its pointer. Others: of PIXELS logits of the first mask, how many
    are above delta and -delta.

    Pointers, all contiguous; matrices are [out, in], of any float dtype:
    logits: [B, num_masks, size], any float dtype.
    iou: predicted IoU [B, iou_count], any float dtype; BEST.
    tokens: [B, count, DIM], any float dtype.
    presence1, presence1_bias: first layer of presence [presence_hidden, DIM], [presence_hidden].
    presence2, presence2_bias: second layer [presence_hidden, presence_hidden], [presence_hidden].
    presence3, presence3_bias: last layer [1, presence_hidden], [1].
    pointer1, pointer1_bias: first layer of the pointer [pointer_hidden, DIM], [pointer_hidden].
    pointer2, pointer2_bias: second layer [pointer_hidden, pointer_hidden], [pointer_hidden].
    pointer3, pointer3_bias: last layer [DIM, pointer_hidden], [DIM].
    presence: logits [B], any float dtype.
    pointer: [B, DIM] float32.
    counts: [B, programs - 2, 2] int32.

    count, size, num_masks, iou_count, presence_hidden, pointer_hidden: int. first_mask: int, the
    token of the mask; BEST: the first of those to choose from by highest iou. delta: float.
    Grid: (2 + cdiv(size, PIXELS) or 2, B).
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
            iou_at = iou + batch * iou_count + first_mask - 2 + value
            scores = tl.load(iou_at, mask=candidates, other=float("-inf")).to(tl.float32)
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
        for first in range(0, DIM, BLOCK):
            part = last_layer(
                y, pointer3, pointer3_bias, pointer_hidden, first, DIM, POINTER, BLOCK
            )
            tl.store(pointer + batch * DIM + first + tl.arange(0, BLOCK), part)
    if program > 1:
        pixel = (program - 2) * PIXELS + tl.arange(0, PIXELS)
        logits_at = logits + batch * num_masks * size + pixel
        logit = tl.load(logits_at, mask=pixel < size, other=float("-inf")).to(tl.float32)
        counts_at = counts + (batch * (tl.num_programs(0) - 2) + program - 2) * 2
        tl.store(counts_at, tl.sum((logit > delta).to(tl.int32), 0))
        tl.store(counts_at + 1, tl.sum((logit > -delta).to(tl.int32), 0))


@kernel
def tracked_kernel(
    logits,
    iou,
    presence,
    pointer,
    counts,
    absent_pointer,
    mask,
    mixed,
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
    """PIXELS of the mask that is kept, absent_logit where the object is absent. Program 0 of an
    object also stores its pointer.

    CHOOSE: of several masks the first where it is stable by counts, else the other one of highest
    iou; else the first.

    Pointers, all contiguous:
    logits: [B, num_masks, size], any float dtype.
    iou: predicted IoU [B, iou_count], any float dtype; CHOOSE.
    presence: logits [B], any float dtype; an object is present above 0.
    pointer: [B, DIM] float32.
    counts: pixels of the first mask above delta and -delta [B, blocks, 2] int32; CHOOSE.
    absent_pointer: [DIM], any float dtype.
    mask: [B, size], any float dtype.
    mixed: pointer where present, else absent_pointer [B, DIM], any float dtype.

    size, num_masks, iou_count, blocks: int. first_value: int, the first of the masks' iou.
    threshold: float, of stability. absent_logit: float. Grid: (cdiv(size, PIXELS), B).
    """
    batch = tl.program_id(1).to(tl.int64)
    program = tl.program_id(0)
    present = tl.load(presence + batch).to(tl.float32) > 0
    chosen = 0
    if CHOOSE:
        block = tl.arange(0, BLOCKS)
        value = tl.arange(0, VALUES)
        counts_at = counts + (batch * blocks + block) * 2
        inner = tl.sum(tl.load(counts_at, mask=block < blocks, other=0), 0).to(tl.float32)
        outer = tl.sum(tl.load(counts_at + 1, mask=block < blocks, other=0), 0).to(tl.float32)
        stability = tl.where(outer > 0, tl.div_rn(inner, tl.maximum(outer, 1.0)), 1.0)
        others = (value > 0) & (value < num_masks)
        iou_at = iou + batch * iou_count + first_value + value
        scores = tl.load(iou_at, mask=others, other=float("-inf")).to(tl.float32)
        best = tl.maximum(tl.minimum(tl.argmax(scores, 0), num_masks - 1), 1)
        chosen = tl.where(stability >= threshold, 0, best)
    pixel = program * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < size
    logits_at = logits + (batch * num_masks + chosen) * size + pixel
    logit = tl.load(logits_at, mask=inside, other=0.0)
    mask_at = mask + batch * size + pixel
    kept = tl.where(present, logit.to(tl.float32), absent_logit)
    tl.store(mask_at, kept.to(mask.dtype.element_ty), mask=inside)
    if program == 0:
        channel = tl.arange(0, DIM)
        present_pointer = tl.load(pointer + batch * DIM + channel)
        constant = tl.load(absent_pointer + channel).to(tl.float32)
        mixed_at = mixed + batch * DIM + channel
        kept_pointer = tl.where(present, present_pointer, constant)
        tl.store(mixed_at, kept_pointer.to(mixed.dtype.element_ty))


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
    """Presence logits [B, 1] in `dtype`, pointers [B, C] float32 without regard to presence, and
    for several masks counts of the first one's pixels [B, P, 2] int32. As `ops.object_heads`; on
    the current stream."""
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


def tracked(
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
    """Masks [B, 1, H, W] float32 and pointers [B, C] in `dtype`, from the results of
    `object_state`; on the current stream."""
    batch, masks, height, width = logits.shape
    dim = pointer.shape[1]
    blocks = counts.shape[1]
    mask = logits.new_empty(batch, 1, height, width)
    mixed = logits.new_empty(batch, dim, dtype=dtype)
    with torch.cuda.device_of(logits):
        tracked_kernel[triton.cdiv(height * width, PIXELS), batch](
            logits=logits,
            iou=iou,
            presence=presence,
            pointer=pointer,
            counts=counts,
            absent_pointer=absent_pointer,
            mask=mask,
            mixed=mixed,
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
    return mask, mixed
