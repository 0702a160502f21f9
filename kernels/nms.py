"""Non-maximum suppression in Triton.

One kernel computes a bit matrix of overlapping boxes; a single program of the second kernel then
processes the boxes in order of their scores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

ROWS = 16  # boxes of a program of `overlap_kernel`
WORDS = 4  # 32-bit words, of 32 boxes each, with which they are compared


@kernel(do_not_specialize=("count", "words"))
def overlap_kernel(
    boxes, idxs, overlaps, count, words, threshold, ROWS: tl.constexpr, WORDS: tl.constexpr
):
    """Overlaps of ROWS boxes with 32 * WORDS boxes, as bits.

    Bit j % 32 of word j // 32 of row i is set if j > i, boxes i and j have the same category, and
    their IoU is above the threshold.

    Pointers, all contiguous:
    boxes: by descending score [count, 4] float32.
    idxs: categories [count] int64.
    overlaps: result, bits [count, words] int32.

    count, words: int. threshold: float. Grid: (cdiv(count, ROWS), cdiv(words, WORDS)).
    """
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * WORDS * 32 + tl.arange(0, WORDS * 32)
    row_mask = i < count
    column_mask = j < count
    left = tl.load(boxes + 4 * i, row_mask, 0.0)[:, None]
    top = tl.load(boxes + 4 * i + 1, row_mask, 0.0)[:, None]
    right = tl.load(boxes + 4 * i + 2, row_mask, 0.0)[:, None]
    bottom = tl.load(boxes + 4 * i + 3, row_mask, 0.0)[:, None]
    x0 = tl.load(boxes + 4 * j, column_mask, 0.0)[None, :]
    y0 = tl.load(boxes + 4 * j + 1, column_mask, 0.0)[None, :]
    x1 = tl.load(boxes + 4 * j + 2, column_mask, 0.0)[None, :]
    y1 = tl.load(boxes + 4 * j + 3, column_mask, 0.0)[None, :]
    width = tl.maximum(tl.minimum(right, x1) - tl.maximum(left, x0), 0.0)
    height = tl.maximum(tl.minimum(bottom, y1) - tl.maximum(top, y0), 0.0)
    intersection = width * height
    areas = (right - left) * (bottom - top) + (x1 - x0) * (y1 - y0)
    iou = tl.math.div_rn(intersection, areas - intersection)
    row_category = tl.load(idxs + i, row_mask, 0)[:, None]
    same_category = row_category == tl.load(idxs + j, column_mask, 0)[None, :]
    is_overlap = (
        (iou > threshold) & same_category & (j[None, :] > i[:, None]) & column_mask[None, :]
    )
    shifted = is_overlap.to(tl.int32) << (j % 32)[None, :]
    packed = tl.sum(tl.reshape(shifted, [ROWS, WORDS, 32]), 2)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    overlap_ptrs = overlaps + i.to(tl.int64)[:, None] * words + word[None, :]
    tl.store(overlap_ptrs, packed, row_mask[:, None] & (word < words)[None, :])


@kernel(do_not_specialize=("count", "words"))
def greedy_kernel(overlaps, alive, kept, count, words, WIDE: tl.constexpr):
    """Keep each box that is alive and overlaps no box that was kept before it.

    Pointers, all contiguous:
    overlaps: result of `overlap_kernel` [count, words] int32.
    alive: which boxes may be kept [count] uint8.
    kept: result, which boxes are kept [count] uint8.

    count, words: int; words <= WIDE. Grid: (1,).
    """
    word = tl.arange(0, WIDE)
    suppressed = tl.zeros([WIDE], tl.int32)
    for i in range(count):
        row = tl.load(overlaps + i * words + word, word < words, 0)
        word_of_box = tl.sum(tl.where(word == i // 32, suppressed, 0), 0)
        is_kept = (((word_of_box >> (i % 32)) & 1) == 0) & (tl.load(alive + i) != 0)
        suppressed |= tl.where(is_kept, row, 0)
        tl.store(kept + i, is_kept.to(tl.uint8))


def nms(boxes: Tensor, idxs: Tensor, alive: Tensor, threshold: float) -> Tensor:
    """Which boxes are kept [N] bool, computed on the current stream.

    boxes: [N, 4] float32, by descending score; idxs: categories [N] int64; alive: which boxes may
    be kept [N] bool; all contiguous.
    """
    count = len(boxes)
    kept = torch.empty_like(alive)
    if not count:
        return kept
    words = triton.cdiv(count, 32)
    overlaps = boxes.new_empty(count, words, dtype=torch.int32)
    with torch.cuda.device_of(boxes):
        overlap_kernel[triton.cdiv(count, ROWS), triton.cdiv(words, WORDS)](
            boxes=boxes,
            idxs=idxs,
            overlaps=overlaps,
            count=count,
            words=words,
            threshold=threshold,
            ROWS=ROWS,
            WORDS=WORDS,
            num_warps=4,
            enable_fp_fusion=False,
        )
        greedy_kernel[(1,)](
            overlaps=overlaps,
            alive=alive.view(torch.uint8),
            kept=kept.view(torch.uint8),
            count=count,
            words=words,
            WIDE=triton.next_power_of_2(words),
            num_warps=1 if words <= 256 else 4,
        )
    return kept
