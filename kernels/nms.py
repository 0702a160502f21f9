"""Greedy suppression of boxes in Triton: which boxes suppress which, a bit each, then one program
that goes down the list."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

ROWS = 16  # boxes of a program that compares
WORDS = 4  # words of 32 boxes that they are compared with


@kernel(do_not_specialize=("count", "words"))
def overlap_kernel(
    boxes, idxs, over, count, words, threshold, ROWS: tl.constexpr, WORDS: tl.constexpr
):
    """Which of 32 * WORDS boxes each of ROWS boxes overlaps.

    Bit j % 32 of word j // 32 of row i is set where j > i has i's category and their IoU is above
    the threshold.

    Pointers, all contiguous:
    boxes: by falling score [count, 4] float32.
    idxs: categories [count] int64.
    over: bits [count, words] int32.

    count, words: int. threshold: float. Grid: (cdiv(count, ROWS), cdiv(words, WORDS)).
    """
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * WORDS * 32 + tl.arange(0, WORDS * 32)
    in_rows = i < count
    in_columns = j < count
    left = tl.load(boxes + 4 * i, in_rows, 0.0)[:, None]
    top = tl.load(boxes + 4 * i + 1, in_rows, 0.0)[:, None]
    right = tl.load(boxes + 4 * i + 2, in_rows, 0.0)[:, None]
    bottom = tl.load(boxes + 4 * i + 3, in_rows, 0.0)[:, None]
    x0 = tl.load(boxes + 4 * j, in_columns, 0.0)[None, :]
    y0 = tl.load(boxes + 4 * j + 1, in_columns, 0.0)[None, :]
    x1 = tl.load(boxes + 4 * j + 2, in_columns, 0.0)[None, :]
    y1 = tl.load(boxes + 4 * j + 3, in_columns, 0.0)[None, :]
    width = tl.maximum(tl.minimum(right, x1) - tl.maximum(left, x0), 0.0)
    height = tl.maximum(tl.minimum(bottom, y1) - tl.maximum(top, y0), 0.0)
    common = width * height
    areas = (right - left) * (bottom - top) + (x1 - x0) * (y1 - y0)
    iou = tl.math.div_rn(common, areas - common)
    row_category = tl.load(idxs + i, in_rows, 0)[:, None]
    same = row_category == tl.load(idxs + j, in_columns, 0)[None, :]
    suppressed = (iou > threshold) & same & (j[None, :] > i[:, None]) & in_columns[None, :]
    shifted = suppressed.to(tl.int32) << (j % 32)[None, :]
    packed = tl.sum(tl.reshape(shifted, [ROWS, WORDS, 32]), 2)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    over_at = over + i.to(tl.int64)[:, None] * words + word[None, :]
    tl.store(over_at, packed, in_rows[:, None] & (word < words)[None, :])


@kernel(do_not_specialize=("count", "words"))
def greedy_kernel(over, alive, kept, count, words, WIDE: tl.constexpr):
    """Down the list, a box is kept where it is alive and no box that is kept suppresses it.

    Pointers, all contiguous:
    over: bits of `overlap_kernel` [count, words] int32.
    alive: which boxes may be kept [count] uint8.
    kept: which boxes are kept [count] uint8.

    count, words: int; words <= WIDE. Grid: (1,).
    """
    word = tl.arange(0, WIDE)
    suppressed = tl.zeros([WIDE], tl.int32)
    for i in range(count):
        row = tl.load(over + i * words + word, word < words, 0)
        own_word = tl.sum(tl.where(word == i // 32, suppressed, 0), 0)
        stays = (((own_word >> (i % 32)) & 1) == 0) & (tl.load(alive + i) != 0)
        suppressed |= tl.where(stays, row, 0)
        tl.store(kept + i, stays.to(tl.uint8))


def nms(boxes: Tensor, idxs: Tensor, alive: Tensor, threshold: float) -> Tensor:
    """boxes: [N, 4] float32 by falling score, idxs: [N] int64, alive: [N] bool, all contiguous ->
    [N] bool, on the current stream."""
    count = len(boxes)
    kept = torch.empty_like(alive)
    if not count:
        return kept
    words = triton.cdiv(count, 32)
    over = boxes.new_empty(count, words, dtype=torch.int32)
    with torch.cuda.device_of(boxes):
        overlap_kernel[triton.cdiv(count, ROWS), triton.cdiv(words, WORDS)](
            boxes=boxes,
            idxs=idxs,
            over=over,
            count=count,
            words=words,
            threshold=threshold,
            ROWS=ROWS,
            WORDS=WORDS,
            num_warps=4,
            enable_fp_fusion=False,
        )
        greedy_kernel[(1,)](
            over=over,
            alive=alive.view(torch.uint8),
            kept=kept.view(torch.uint8),
            count=count,
            words=words,
            WIDE=triton.next_power_of_2(words),
            num_warps=1 if words <= 256 else 4,
        )
    return kept
