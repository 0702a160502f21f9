"""What a tracked frame keeps of the mask decoder's results, in Triton: presence and pointer of an object,
then the mask that is kept."""

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
    logits, iou, tokens, presence1, presence1_bias, presence2, presence2_bias, presence3, presence3_bias,
    pointer1, pointer1_bias, pointer2, pointer2_bias, pointer3, pointer3_bias,
    presence, pointer, counts, count, size, num_masks, iou_count, first_mask, presence_hidden, pointer_hidden, delta,
    BEST: tl.constexpr, DIM: tl.constexpr, PRESENCE: tl.constexpr, POINTER: tl.constexpr, VALUES: tl.constexpr,
    BLOCK: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Program 0: token 0 of an object through three layers, presence [B]. Program 1: the token of its mask
    through three layers, pointer [B, DIM] float32. Others: of PIXELS logits of the first mask, how many are
    above delta and -delta, counts [B, programs - 2, 2] int32.

    logits: [B, num_masks, size]; iou: [B, iou_count]; tokens: [B, count, DIM]. The token is first_mask, or where
    BEST the one of highest iou from there on.
    """
    batch, program, channel = tl.program_id(1).to(tl.int64), tl.program_id(0), tl.arange(0, DIM)
    if program == 0:
        x = tl.load(tokens + batch * count * DIM + channel).to(tl.float32)
        y = two_layers(x, presence1, presence1_bias, presence2, presence2_bias, presence_hidden, DIM, PRESENCE, BLOCK)
        found = last_layer(y, presence3, presence3_bias, presence_hidden, 0, 1, PRESENCE, 1)
        tl.store(presence + batch + tl.arange(0, 1), found.to(presence.dtype.element_ty))
    if program == 1:
        token = first_mask
        if BEST:
            value = tl.arange(0, VALUES)
            real = value < iou_count - (first_mask - 2)
            place = iou + batch * iou_count + first_mask - 2 + value
            quality = tl.load(place, mask=real, other=float("-inf")).to(tl.float32)
            token += tl.minimum(tl.argmax(quality, 0), iou_count - (first_mask - 2) - 1)
        x = tl.load(tokens + (batch * count + token) * DIM + channel).to(tl.float32)
        y = two_layers(x, pointer1, pointer1_bias, pointer2, pointer2_bias, pointer_hidden, DIM, POINTER, BLOCK)
        for first in range(0, DIM, BLOCK):
            found = last_layer(y, pointer3, pointer3_bias, pointer_hidden, first, DIM, POINTER, BLOCK)
            tl.store(pointer + batch * DIM + first + tl.arange(0, BLOCK), found)
    if program > 1:
        pixel = (program - 2) * PIXELS + tl.arange(0, PIXELS)
        logit = tl.load(logits + batch * num_masks * size + pixel, mask=pixel < size, other=float("-inf")).to(tl.float32)
        place = counts + (batch * (tl.num_programs(0) - 2) + program - 2) * 2
        tl.store(place, tl.sum((logit > delta).to(tl.int32), 0))
        tl.store(place + 1, tl.sum((logit > -delta).to(tl.int32), 0))


@kernel
def tracked_kernel(
    logits, iou, presence, pointer, counts, absent_pointer, mask, mixed,
    size, num_masks, iou_count, first_value, blocks, threshold, absent_logit,
    CHOOSE: tl.constexpr, VALUES: tl.constexpr, BLOCKS: tl.constexpr, DIM: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """PIXELS of the mask that is kept, `absent_logit` where presence [B] is not above 0; mask: [B, size].

    CHOOSE: of several masks the first where it is stable by counts [B, blocks, 2], else the other one of
    highest iou [B, iou_count], from first_value on; else the first. Program 0 of an object also makes its
    pointer, mixed [B, DIM]: `pointer` [B, DIM] float32 where present, else absent_pointer [DIM].
    """
    batch, program = tl.program_id(1).to(tl.int64), tl.program_id(0)
    present = tl.load(presence + batch).to(tl.float32) > 0
    chosen = 0
    if CHOOSE:
        block, value = tl.arange(0, BLOCKS), tl.arange(0, VALUES)
        place = counts + (batch * blocks + block) * 2
        inner = tl.sum(tl.load(place, mask=block < blocks, other=0), 0).to(tl.float32)
        outer = tl.sum(tl.load(place + 1, mask=block < blocks, other=0), 0).to(tl.float32)
        share = tl.where(outer > 0, tl.div_rn(inner, tl.maximum(outer, 1.0)), 1.0)
        others = (value > 0) & (value < num_masks)
        quality = tl.load(iou + batch * iou_count + first_value + value, mask=others, other=float("-inf")).to(tl.float32)
        best = tl.maximum(tl.minimum(tl.argmax(quality, 0), num_masks - 1), 1)
        chosen = tl.where(share >= threshold, 0, best)
    pixel = program * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < size
    logit = tl.load(logits + (batch * num_masks + chosen) * size + pixel, mask=inside, other=0.0)
    tl.store(mask + batch * size + pixel, tl.where(present, logit.to(tl.float32), absent_logit).to(mask.dtype.element_ty), mask=inside)
    if program == 0:
        channel = tl.arange(0, DIM)
        here, gone = tl.load(pointer + batch * DIM + channel), tl.load(absent_pointer + channel).to(tl.float32)
        tl.store(mixed + batch * DIM + channel, tl.where(present, here, gone).to(mixed.dtype.element_ty))


def object_state(
    logits: Tensor, iou: Tensor, tokens: Tensor, weights: Sequence[Tensor], first_mask: int, best: bool, delta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Presence logits [B, 1] in `dtype`, pointers [B, C] float32 before they know of it, and for several
    masks counts of the first one's pixels [B, P, 2] int32. As `ops.object_heads`; on the current stream."""
    (batch, masks), (count, dim), values = logits.shape[:2], tokens.shape[1:], iou.shape[1]
    pixels, hidden = logits.shape[2] * logits.shape[3], [weights[0].shape[0], weights[6].shape[0]]
    blocks = triton.cdiv(pixels, PIXELS) if masks > 1 else 0
    presence, pointer = tokens.new_empty(batch, 1, dtype=dtype), tokens.new_empty(batch, dim, dtype=torch.float32)
    counts = tokens.new_empty(batch, blocks, 2, dtype=torch.int32)
    with torch.cuda.device_of(logits):
        object_state_kernel[2 + blocks, batch](
            logits, iou, tokens, *weights, presence, pointer, counts, count, pixels, masks, values, first_mask, *hidden, delta,
            BEST=best, DIM=dim, PRESENCE=triton.next_power_of_2(hidden[0]), POINTER=triton.next_power_of_2(hidden[1]),
            VALUES=triton.next_power_of_2(values), BLOCK=HIDDEN, PIXELS=PIXELS, num_warps=8,
        )  # fmt: skip
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
    """Masks [B, 1, H, W] float32 and pointers [B, C] in `dtype`, from what `object_state` found; on the current stream."""
    (batch, masks, height, width), dim, blocks = logits.shape, pointer.shape[1], counts.shape[1]
    mask, mixed = logits.new_empty(batch, 1, height, width), logits.new_empty(batch, dim, dtype=dtype)
    with torch.cuda.device_of(logits):
        tracked_kernel[triton.cdiv(height * width, PIXELS), batch](
            logits, iou, presence, pointer, counts, absent_pointer, mask, mixed,
            height * width, masks, iou.shape[1], first_mask - 2, blocks, threshold, absent_logit,
            CHOOSE=masks > 1, VALUES=triton.next_power_of_2(masks), BLOCKS=triton.next_power_of_2(max(blocks, 1)), DIM=dim, PIXELS=PIXELS,
            num_warps=4,
        )  # fmt: skip
    return mask, mixed
