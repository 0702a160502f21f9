"""Masks to counts, boxes and run lengths: bits by column, then the places where they change.

The full-size logits never exist; of each pixel one bit is kept. Three launches and a cumulative
sum, one more where masks are judged first, and only places of change are copied to the host.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from sam2_fast.kernels.mask_bits import count_bits, find_changes
from torch import Tensor

COLUMNS = 8  # image columns of a block
ROWS = 128  # pixels of a column that a block makes bits of at once
WORDS = 32  # words of 32 bits of a column that a block reads at once
AT_ONCE = 2**31  # pixels of masks whose bits are held at once
_SHAPE = ("low_height", "low_width", "height", "width", "words")
_CANVAS = ("canvas_height", "canvas_width", "top", "left")


@triton.jit
def _samples(i, size, low):
    """Between which two of `low` samples pixel i of `size` lies, and the weight of the second;
    places in float64, as the reference has."""
    at = low.to(tl.float64) / size.to(tl.float64) * (i.to(tl.float64) + 0.5) - 0.5
    at = tl.where(at < 0, 0.0, at)
    first = tl.minimum(tl.floor(at).to(tl.int32), low - 1)
    rest = at - first.to(tl.float64)
    second = tl.minimum(first + 1, low - 1)
    return first, second, tl.where(rest > 1, 1.0, rest).to(tl.float32)


@kernel(do_not_specialize=_SHAPE)
def bits_kernel(
    logits,
    selected,
    bits,
    stats,
    low_height,
    low_width,
    height,
    width,
    words,
    low,
    middle,
    high,
    CHOOSE: tl.constexpr,
    STORE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Bits of COLUMNS columns of one mask, 32 pixels a word, and their part of its counts and box.

    Pointers, all contiguous:
    logits: [N, low_height, low_width] float32.
    selected: which masks are taken, the others count as empty [N] uint8; CHOOSE.
    bits: pixel y of a column in bit y % 32 of word y // 32, those past the height 0 [N, width,
        words] int32; STORE.
    stats: counts above high and low, first column, first row, last column, last row [N, 6] int32.

    low_height, low_width, height, width, words: int. low, middle, high: float, thresholds; a pixel
    is set above middle. Grid: (N, cdiv(width, COLUMNS)).
    """
    mask = tl.program_id(0).to(tl.int64)
    if CHOOSE:
        words = tl.where(tl.load(selected + mask) != 0, words, 0)
    base = logits + mask * low_height * low_width
    x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    left, right, across = _samples(x, width, low_width)
    left = left[:, None]
    right = right[:, None]
    across = across[:, None]
    inner = tl.zeros([COLUMNS], tl.int32)
    outer = tl.zeros([COLUMNS], tl.int32)
    top = tl.full([COLUMNS], 2147483647, tl.int32)
    bottom = tl.full([COLUMNS], -1, tl.int32)
    for begin in range(0, words * 32, ROWS):
        y = begin + tl.arange(0, ROWS)
        above, below, down = _samples(y, height, low_height)
        above = above[None, :] * low_width
        below = below[None, :] * low_width
        down = down[None, :]
        inside = (x < width)[:, None] & (y < height)[None, :]
        upper = (1 - across) * tl.load(base + above + left, inside, 0.0)
        upper = upper + across * tl.load(base + above + right, inside, 0.0)
        lower = (1 - across) * tl.load(base + below + left, inside, 0.0)
        lower = lower + across * tl.load(base + below + right, inside, 0.0)
        value = (1 - down) * upper + down * lower
        on = inside & (value > middle)
        inner += tl.sum((inside & (value > high)).to(tl.int32), 1)
        outer += tl.sum((inside & (value > low)).to(tl.int32), 1)
        top = tl.minimum(top, tl.min(tl.where(on, y[None, :], 2147483647), 1))
        bottom = tl.maximum(bottom, tl.max(tl.where(on, y[None, :], -1), 1))
        if STORE:
            shifted = on.to(tl.int32) << (y % 32)[None, :]
            packed = tl.sum(tl.reshape(shifted, [COLUMNS, ROWS // 32, 32]), 2)
            word = begin // 32 + tl.arange(0, ROWS // 32)
            bits_at = bits + (mask * width + x)[:, None] * words + word[None, :]
            tl.store(bits_at, packed, (x < width)[:, None] & (word < words)[None, :])
    mask_stats = stats + mask * 6
    tl.atomic_add(mask_stats, tl.sum(inner, 0))
    tl.atomic_add(mask_stats + 1, tl.sum(outer, 0))
    tl.atomic_min(mask_stats + 2, tl.min(tl.where(bottom >= 0, x, 2147483647), 0))
    tl.atomic_min(mask_stats + 3, tl.min(top, 0))
    tl.atomic_max(mask_stats + 4, tl.max(tl.where(bottom >= 0, x, -1), 0))
    tl.atomic_max(mask_stats + 5, tl.max(bottom, 0))


@kernel(do_not_specialize=_SHAPE[2:] + _CANVAS)
def count_kernel(
    bits,
    counts,
    height,
    width,
    words,
    canvas_height,
    canvas_width,
    top,
    left,
    COLUMNS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """How many places of change each of COLUMNS columns of one mask has.

    Pointers, all contiguous:
    bits: of `bits_kernel` [N, width, words] int32.
    counts: [N, width] int32.

    height, width, words: int. canvas_height, canvas_width: int, of the picture that the mask is a
    part of. top, left: int, where in it. Grid: (N, cdiv(width, COLUMNS)).
    """
    mask = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.int32)
    for begin in range(0, words, WORDS):
        word = begin + tl.arange(0, WORDS)
        changed = find_changes(
            bits, mask, x, word, height, width, words, canvas_height, canvas_width, top, left
        )
        total += tl.sum(count_bits(changed), 1)
    tl.store(counts + mask * width + x, total, x < width)


@kernel(do_not_specialize=_SHAPE[2:] + _CANVAS)
def write_kernel(
    bits,
    ends,
    places,
    height,
    width,
    words,
    canvas_height,
    canvas_width,
    top,
    left,
    COLUMNS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """The places of change of COLUMNS columns of one mask, as pixels of the canvas, in order.

    Pointers, all contiguous:
    bits: of `bits_kernel` [N, width, words] int32.
    ends: cumulative sums of the counts of `count_kernel` [N, width] int64.
    places: as many as the last of them int32.

    height, width, words: int. canvas_height, canvas_width: int, of the picture that the mask is a
    part of. top, left: int, where in it. Grid: (N, cdiv(width, COLUMNS)).
    """
    mask = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = tl.load(ends + mask * width + x - 1, (mask * width + x > 0) & (x < width), 0)
    for begin in range(0, words, WORDS):
        word = begin + tl.arange(0, WORDS)
        changed = find_changes(
            bits, mask, x, word, height, width, words, canvas_height, canvas_width, top, left
        )
        word_count = count_bits(changed)
        remaining = word_count
        to = at[:, None] + tl.cumsum(word_count, 1) - word_count
        pixel = (left + x)[:, None] * canvas_height + top + word[None, :] * 32
        while tl.max(remaining) > 0:
            lowest = changed & (changed ^ (changed - 1))
            tl.store(places + to, pixel + count_bits(lowest - 1), remaining > 0)
            changed = changed ^ lowest
            remaining = remaining - 1
            to = to + 1
        at += tl.sum(word_count, 1)


def mask_postprocess(
    logits: Tensor,
    size: tuple[int, int],
    low: float,
    middle: float,
    high: float,
    canvas: tuple[int, int],
    origin: tuple[int, int],
    keep: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    selected: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[npt.NDArray[np.int32]], Tensor | None]:
    """logits: [N, h, w] float32, contiguous -> inner, outer and boxes as in
    `sam2_fast.ops.mask_postprocess`, on the device; run lengths on the host, with `keep` of those
    that it lets pass, and then [K] int64 of which masks they are, on the host.

    Launched on the current stream; the host synchronizes with it where masks are judged, to know
    which are kept; for the number of runs, and for the runs.
    """
    thresholds = (low, middle, high)
    rows = None
    if keep is not None:
        sums, boxes = _statistics(logits, selected, None, size, thresholds)
        rows = keep(sums[:, 0], sums[:, 1], boxes).nonzero()[:, 0]
        logits = logits[rows]
    at_once = max(1, AT_ONCE // (size[0] * size[1]))
    parts = [_runs(part, size, thresholds, canvas, origin) for part in logits.split(at_once)]
    runs = [run for part in parts for run in part[2]]
    if rows is not None:
        return sums[:, 0], sums[:, 1], boxes, runs, rows.cpu()
    sums = torch.cat([part[0] for part in parts])
    boxes = torch.cat([part[1] for part in parts])
    return sums[:, 0], sums[:, 1], boxes, runs, None


def _statistics(
    logits: Tensor,
    selected: Tensor | None,
    bits: Tensor | None,
    size: tuple[int, int],
    thresholds: tuple[float, float, float],
) -> tuple[Tensor, Tensor]:
    """Counts [N, 2] and boxes [N, 4], int64; masks that `selected` [N] bool leaves out count as
    empty. Fills bits where they are wanted."""
    count, low_height, low_width = logits.shape
    height, width = size
    low, middle, high = thresholds
    stats = logits.new_zeros(count, 6, dtype=torch.int32)
    stats[:, 2:4] = 2**31 - 1
    stats[:, 4:] = -1
    if count:
        with torch.cuda.device_of(logits):
            bits_kernel[count, triton.cdiv(width, COLUMNS)](
                logits=logits,
                selected=None if selected is None else selected.contiguous().view(torch.uint8),
                bits=bits,
                stats=stats,
                low_height=low_height,
                low_width=low_width,
                height=height,
                width=width,
                words=height // 32 + 1,
                low=low,
                middle=middle,
                high=high,
                CHOOSE=selected is not None,
                STORE=bits is not None,
                COLUMNS=COLUMNS,
                ROWS=ROWS,
                num_warps=4,
                enable_fp_fusion=False,
            )
    boxes = stats[:, 2:].long()
    return stats[:, :2].long(), boxes.where(boxes[:, 2:3] >= 0, 0)


def _runs(
    logits: Tensor,
    size: tuple[int, int],
    thresholds: tuple[float, float, float],
    canvas: tuple[int, int],
    origin: tuple[int, int],
) -> tuple[Tensor, Tensor, list[npt.NDArray[np.int32]]]:
    """Counts [N, 2], boxes [N, 4] and runs."""
    count = len(logits)
    height, width = size
    words = height // 32 + 1  # room for the pixel past a column
    canvas_height, canvas_width = canvas
    top, left = origin
    placement = {
        "height": height,
        "width": width,
        "words": words,
        "canvas_height": canvas_height,
        "canvas_width": canvas_width,
        "top": top,
        "left": left,
    }
    bits = logits.new_empty(count, width, words, dtype=torch.int32)
    counts = logits.new_empty(count, width, dtype=torch.int32)
    sums, boxes = _statistics(logits, None, bits, size, thresholds)
    if not count:
        return sums, boxes, []
    grid = (count, triton.cdiv(width, COLUMNS))
    with torch.cuda.device_of(logits):
        count_kernel[grid](
            bits=bits,
            counts=counts,
            **placement,
            COLUMNS=COLUMNS,
            WORDS=WORDS,
            num_warps=4,
        )
        ends = counts.flatten().cumsum(0)
        last = ends.view(count, width)[:, -1].cpu().numpy()
        places = counts.new_empty(int(last[-1]))
        write_kernel[grid](
            bits=bits,
            ends=ends,
            places=places,
            **placement,
            COLUMNS=COLUMNS,
            WORDS=WORDS,
            num_warps=4,
        )
    total = canvas_height * canvas_width
    parts = np.split(places.cpu().numpy(), last[:-1])
    runs = [np.diff(part, prepend=np.int32(0), append=np.int32(total)) for part in parts]
    return sums, boxes, runs
