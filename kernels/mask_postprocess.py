"""Masks to counts, boxes and run lengths: bits by column, then the places where they change.

The full-size logits never exist; of each pixel one bit is kept. Three launches and a cumulative sum, one more where masks are judged
first, and only places of change cross to the host.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

COLUMNS, ROWS, WORDS = 8, 128, 32  # of a block: image columns; pixels of one, when bits are made; words of 32, when they are read
AT_ONCE = 2**31  # pixels of masks whose bits are held at once
_SHAPE = ("low_height", "low_width", "height", "width", "words")
_CANVAS = ("canvas_height", "canvas_width", "top", "left")


@triton.jit
def _place(i, size, low):
    """Between which two of `low` samples pixel i of `size` lies, and the share of the second; places in float64, as the reference has."""
    at = low.to(tl.float64) / size.to(tl.float64) * (i.to(tl.float64) + 0.5) - 0.5
    at = tl.where(at < 0, 0.0, at)
    first = tl.minimum(tl.floor(at).to(tl.int32), low - 1)
    rest = at - first.to(tl.float64)
    return first, tl.minimum(first + 1, low - 1), tl.where(rest > 1, 1.0, rest).to(tl.float32)


@triton.jit
def _bits(word):
    """How many bits of each uint32 are set."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    return ((((word + (word >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@kernel(do_not_specialize=_SHAPE)
def bits_kernel(
    logits, which, bits, stats, low_height, low_width, height, width, words, low, middle, high,
    CHOOSE: tl.constexpr, STORE: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Bits of COLUMNS columns of one mask, 32 pixels a word, and what they add to its counts and box. logits: [N, low_height, low_width].

    CHOOSE: which [N] uint8, masks that are looked at. STORE: bits [N, width, words], pixel y of a column in bit y % 32 of word y // 32,
    those past the height 0. stats: [N, 6] counts above high and low, first and last column and row.
    """
    mask = tl.program_id(0).to(tl.int64)
    if CHOOSE:
        words = tl.where(tl.load(which + mask) != 0, words, 0)
    base = logits + mask * low_height * low_width
    x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    left, right, across = _place(x, width, low_width)
    left, right, across = left[:, None], right[:, None], across[:, None]
    inner, outer = tl.zeros([COLUMNS], tl.int32), tl.zeros([COLUMNS], tl.int32)
    top, bottom = tl.full([COLUMNS], 2147483647, tl.int32), tl.full([COLUMNS], -1, tl.int32)
    for begin in range(0, words * 32, ROWS):
        y = begin + tl.arange(0, ROWS)
        above, below, down = _place(y, height, low_height)
        above, below, down = above[None, :] * low_width, below[None, :] * low_width, down[None, :]
        inside = (x < width)[:, None] & (y < height)[None, :]
        first = (1 - across) * tl.load(base + above + left, inside, 0.0) + across * tl.load(base + above + right, inside, 0.0)
        second = (1 - across) * tl.load(base + below + left, inside, 0.0) + across * tl.load(base + below + right, inside, 0.0)
        value = (1 - down) * first + down * second
        on = inside & (value > middle)
        inner += tl.sum((inside & (value > high)).to(tl.int32), 1)
        outer += tl.sum((inside & (value > low)).to(tl.int32), 1)
        top = tl.minimum(top, tl.min(tl.where(on, y[None, :], 2147483647), 1))
        bottom = tl.maximum(bottom, tl.max(tl.where(on, y[None, :], -1), 1))
        if STORE:
            packed = tl.sum(tl.reshape(on.to(tl.int32) << (y % 32)[None, :], [COLUMNS, ROWS // 32, 32]), 2)
            word = begin // 32 + tl.arange(0, ROWS // 32)
            to = bits + (mask * width + x)[:, None] * words + word[None, :]
            tl.store(to, packed, (x < width)[:, None] & (word < words)[None, :])
    mine = stats + mask * 6
    tl.atomic_add(mine, tl.sum(inner, 0))
    tl.atomic_add(mine + 1, tl.sum(outer, 0))
    tl.atomic_min(mine + 2, tl.min(tl.where(bottom >= 0, x, 2147483647), 0))
    tl.atomic_min(mine + 3, tl.min(top, 0))
    tl.atomic_max(mine + 4, tl.max(tl.where(bottom >= 0, x, -1), 0))
    tl.atomic_max(mine + 5, tl.max(bottom, 0))


@triton.jit
def _changes(bits, mask, x, word, height, width, words, canvas_height, canvas_width, top, left):
    """Bits of [COLUMNS, WORDS] words that differ from the pixel before, in the order of the canvas; the one past a column is its margin."""
    there = (x < width)[:, None] & (word < words)[None, :]
    column = bits + (mask * width + x)[:, None] * words
    now = tl.load(column + word[None, :], there, 0).to(tl.uint32, bitcast=True)
    before = tl.load(column + word[None, :] - 1, there & (word > 0)[None, :], 0).to(tl.uint32, bitcast=True) >> 31
    whole = x * 0 + height == canvas_height  # columns of the canvas lie end to end (a scalar mask is none to the interpreter)
    last = tl.load(bits + (mask * width + x - 1) * words + (height - 1) // 32, whole & (x > 0) & (x < width), 0)
    ended = (last.to(tl.uint32, bitcast=True) >> ((height - 1) % 32)) & 1
    before = tl.where((word == 0)[None, :], ended[:, None], before)
    changed = now ^ ((now << 1) | before)
    # what follows a column's last pixel: the next column, which has seen it, the end of the canvas, or the margin
    end = (whole & (x < width - 1)) | ((left + x + 1 == canvas_width) & (x * 0 + top + height == canvas_height))
    drop = end[:, None] & (word == height // 32)[None, :]
    return tl.where(drop, changed & ((1 << (height % 32)).to(tl.uint32) - 1), changed)


@kernel(do_not_specialize=_SHAPE[2:] + _CANVAS)
def count_kernel(bits, counts, height, width, words, canvas_height, canvas_width, top, left, COLUMNS: tl.constexpr, WORDS: tl.constexpr):
    """How many places of change each column has. counts: [N, width]."""
    mask = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.int32)
    for begin in range(0, words, WORDS):
        word = begin + tl.arange(0, WORDS)
        total += tl.sum(_bits(_changes(bits, mask, x, word, height, width, words, canvas_height, canvas_width, top, left)), 1)
    tl.store(counts + mask * width + x, total, x < width)


@kernel(do_not_specialize=_SHAPE[2:] + _CANVAS)
def write_kernel(
    bits, ends, places, height, width, words, canvas_height, canvas_width, top, left, COLUMNS: tl.constexpr, WORDS: tl.constexpr
):
    """The places of change, as pixels of the canvas, in order. ends: [N, width] cumulative counts; places: as many as the last of them."""
    mask = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = tl.load(ends + mask * width + x - 1, (mask * width + x > 0) & (x < width), 0)
    for begin in range(0, words, WORDS):
        word = begin + tl.arange(0, WORDS)
        changed = _changes(bits, mask, x, word, height, width, words, canvas_height, canvas_width, top, left)
        all_of_word = _bits(changed)
        many, to = all_of_word, at[:, None] + tl.cumsum(all_of_word, 1) - all_of_word
        pixel = (left + x)[:, None] * canvas_height + top + word[None, :] * 32
        while tl.max(many) > 0:
            lowest = changed & (changed ^ (changed - 1))
            tl.store(places + to, pixel + _bits(lowest - 1), many > 0)
            changed, many, to = changed ^ lowest, many - 1, to + 1
        at += tl.sum(all_of_word, 1)


def mask_postprocess(
    logits: Tensor, size: tuple[int, int], low: float, middle: float, high: float, canvas: tuple[int, int], origin: tuple[int, int],
    keep: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None, which: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[npt.NDArray[np.int32]], Tensor | None]:  # fmt: skip
    """logits: [N, h, w] float32, contiguous -> inner, outer and boxes as in `sam2_fast.ops.mask_postprocess`, on the device; run lengths
    on the host, with `keep` of those that it lets pass, and then [K] int64 of which masks they are, on the host.

    Launched on the current stream; waits for it where masks are judged, to know which are kept; for the number of runs, and for the runs.
    """
    thresholds, rows = (low, middle, high), None
    if keep is not None:
        sums, boxes = _statistics(logits, which, None, size, thresholds)
        rows = keep(sums[:, 0], sums[:, 1], boxes).nonzero()[:, 0]
        logits = logits[rows]
    parts = [_runs(part, size, thresholds, canvas, origin) for part in logits.split(max(1, AT_ONCE // (size[0] * size[1])))]
    if rows is None:
        sums, boxes = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return sums[:, 0], sums[:, 1], boxes, [run for part in parts for run in part[2]], None if rows is None else rows.cpu()


def _statistics(
    logits: Tensor, which: Tensor | None, bits: Tensor | None, size: tuple[int, int], thresholds: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    """Counts [N, 2] and boxes [N, 4], int64; masks that `which` [N] bool leaves out count as empty. Fills bits where they are wanted."""
    stats = logits.new_zeros(len(logits), 6, dtype=torch.int32)
    stats[:, 2:4], stats[:, 4:] = 2**31 - 1, -1
    if len(logits):
        with torch.cuda.device_of(logits):
            bits_kernel[len(logits), triton.cdiv(size[1], COLUMNS)](
                logits, None if which is None else which.contiguous().view(torch.uint8), bits, stats, *logits.shape[1:], *size,
                size[0] // 32 + 1, *thresholds, which is not None, bits is not None, COLUMNS, ROWS, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    boxes = stats[:, 2:].long()
    return stats[:, :2].long(), boxes.where(boxes[:, 2:3] >= 0, 0)


def _runs(
    logits: Tensor, size: tuple[int, int], thresholds: tuple[float, float, float], canvas: tuple[int, int], origin: tuple[int, int]
) -> tuple[Tensor, Tensor, list[npt.NDArray[np.int32]]]:
    """Counts [N, 2], boxes [N, 4] and runs."""
    (height, width), count = size, len(logits)
    words = height // 32 + 1  # room for the pixel past a column
    bits, counts = (logits.new_empty(count, width, *more, dtype=torch.int32) for more in ((words,), ()))
    sums, boxes = _statistics(logits, None, bits, size, thresholds)
    if not count:
        return sums, boxes, []
    grid, place = (count, triton.cdiv(width, COLUMNS)), (*size, words, *canvas, *origin)
    with torch.cuda.device_of(logits):
        count_kernel[grid](bits, counts, *place, COLUMNS, WORDS, num_warps=4)
        ends = counts.flatten().cumsum(0)
        last = ends.view(count, width)[:, -1].cpu().numpy()
        places = counts.new_empty(int(last[-1]))
        write_kernel[grid](bits, ends, places, *place, COLUMNS, WORDS, num_warps=4)
    total = canvas[0] * canvas[1]
    runs = [np.diff(part, prepend=np.int32(0), append=np.int32(total)) for part in np.split(places.cpu().numpy(), last[:-1])]
    return sums, boxes, runs
