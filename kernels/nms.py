"""Greedy suppression of boxes in Triton: who is over whom, a bit each, then one program that goes down the list."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

ROWS, WORDS = 16, 4  # boxes of a program that compares, and words of 32 boxes that they are compared with


@kernel(do_not_specialize=("count", "words"))
def overlap_kernel(boxes, idxs, over, count, words, threshold, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """boxes: [count, 4] float32, by falling score; idxs: [count] int64 -> over: [count, words] int32, bit j % 32 of word j // 32 of row i.

    It is set where j > i has i's category and their IoU is above the threshold.
    """
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * WORDS * 32 + tl.arange(0, WORDS * 32)
    mine, theirs = i < count, j < count
    left, top = tl.load(boxes + 4 * i, mine, 0.0)[:, None], tl.load(boxes + 4 * i + 1, mine, 0.0)[:, None]
    right, bottom = tl.load(boxes + 4 * i + 2, mine, 0.0)[:, None], tl.load(boxes + 4 * i + 3, mine, 0.0)[:, None]
    x0, y0 = tl.load(boxes + 4 * j, theirs, 0.0)[None, :], tl.load(boxes + 4 * j + 1, theirs, 0.0)[None, :]
    x1, y1 = tl.load(boxes + 4 * j + 2, theirs, 0.0)[None, :], tl.load(boxes + 4 * j + 3, theirs, 0.0)[None, :]
    width = tl.maximum(tl.minimum(right, x1) - tl.maximum(left, x0), 0.0)
    height = tl.maximum(tl.minimum(bottom, y1) - tl.maximum(top, y0), 0.0)
    common = width * height
    iou = tl.math.div_rn(common, (right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - common)
    same = tl.load(idxs + i, mine, 0)[:, None] == tl.load(idxs + j, theirs, 0)[None, :]
    found = (iou > threshold) & same & (j[None, :] > i[:, None]) & theirs[None, :]
    packed = tl.sum(tl.reshape(found.to(tl.int32) << (j % 32)[None, :], [ROWS, WORDS, 32]), 2)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    tl.store(over + i.to(tl.int64)[:, None] * words + word[None, :], packed, mine[:, None] & (word < words)[None, :])


@kernel(do_not_specialize=("count", "words"))
def greedy_kernel(over, alive, kept, count, words, WIDE: tl.constexpr):
    """Down the list, a box stays where it is alive and no box that stays is over it. alive, kept: [count] uint8. One program."""
    word = tl.arange(0, WIDE)
    gone = tl.zeros([WIDE], tl.int32)
    for i in range(count):
        row = tl.load(over + i * words + word, word < words, 0)
        mine = tl.sum(tl.where(word == i // 32, gone, 0), 0)
        stays = (((mine >> (i % 32)) & 1) == 0) & (tl.load(alive + i) != 0)
        gone |= tl.where(stays, row, 0)
        tl.store(kept + i, stays.to(tl.uint8))


def nms(boxes: Tensor, idxs: Tensor, alive: Tensor, threshold: float) -> Tensor:
    """boxes: [N, 4] float32 by falling score, idxs: [N] int64, alive: [N] bool, all contiguous -> [N] bool, on the current stream."""
    count = len(boxes)
    kept = torch.empty_like(alive)
    if not count:
        return kept
    words = triton.cdiv(count, 32)
    over = boxes.new_empty(count, words, dtype=torch.int32)
    with torch.cuda.device_of(boxes):
        overlap_kernel[triton.cdiv(count, ROWS), triton.cdiv(words, WORDS)](
            boxes, idxs, over, count, words, threshold, ROWS, WORDS, num_warps=4, enable_fp_fusion=False
        )  # fmt: skip
        greedy_kernel[(1,)](
            over, alive.view(torch.uint8), kept.view(torch.uint8), count, words, triton.next_power_of_2(words),
            num_warps=1 if words <= 256 else 4,
        )  # fmt: skip
    return kept
