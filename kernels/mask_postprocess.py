"""Masks to counts, boxes and run lengths: bits by column, then the positions of changes.

The full-size logits are never stored, only one bit per pixel. There are three launches and a
cumulative sum, and one more launch if masks are filtered first. Only the positions of changes are
copied to the host.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from sam2_fast.kernels.mask_bits import changed_bits, count_bits
from torch import Tensor

COLUMNS = 8  # image columns of a block
ROWS = 128  # pixels of a column that a block turns into bits at once
WORDS = 32  # 32-bit words of a column that a block loads at once
MAX_PIXELS = 2**31  # pixels of all masks that are stored as bits at the same time
_SHAPE = ("low_height", "low_width", "height", "width", "words")
_CANVAS = ("canvas_height", "canvas_width", "top", "left")


@triton.jit
def _samples(i, size, low_size):
    """The two of `low_size` samples around pixel i of `size`, and the weight of the second.

    Positions are computed in float64, as in the reference.
    """
    position = low_size.to(tl.float64) / size.to(tl.float64) * (i.to(tl.float64) + 0.5) - 0.5
    position = tl.where(position < 0, 0.0, position)
    first = tl.minimum(tl.floor(position).to(tl.int32), low_size - 1)
    fraction = position - first.to(tl.float64)
    second = tl.minimum(first + 1, low_size - 1)
    return first, second, tl.where(fraction > 1, 1.0, fraction).to(tl.float32)


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
    lower_threshold,
    threshold,
    upper_threshold,
    CHOOSE: tl.constexpr,
    STORE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Bits of COLUMNS columns of one mask, and their contribution to its counts and box.

    Pointers, all contiguous:
    logits: [N, low_height, low_width] float32.
    selected: which masks are processed [N] uint8, others count as empty; only if CHOOSE.
    bits: result if STORE, pixel y of a column in bit y % 32 of word y // 32, zeros past the height
        [N, width, words] int32.
    stats: result, updated by atomics: pixels above upper_threshold, pixels above lower_threshold,
        first column, first row, last column, last row [N, 6] int32.

    low_height, low_width, height, width, words: int. lower_threshold, threshold, upper_threshold:
    float; a bit is set if the logit is above threshold. Grid: (N, cdiv(width, COLUMNS)).
    """
    mask = tl.program_id(0).to(tl.int64)
    if CHOOSE:
        words = tl.where(tl.load(selected + mask) != 0, words, 0)
    base = logits + mask * low_height * low_width
    x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    left, right, weight_x = _samples(x, width, low_width)
    left = left[:, None]
    right = right[:, None]
    weight_x = weight_x[:, None]
    inner = tl.zeros([COLUMNS], tl.int32)
    outer = tl.zeros([COLUMNS], tl.int32)
    top = tl.full([COLUMNS], 2147483647, tl.int32)
    bottom = tl.full([COLUMNS], -1, tl.int32)
    for start in range(0, words * 32, ROWS):
        y = start + tl.arange(0, ROWS)
        above, below, weight_y = _samples(y, height, low_height)
        above = above[None, :] * low_width
        below = below[None, :] * low_width
        weight_y = weight_y[None, :]
        in_bounds = (x < width)[:, None] & (y < height)[None, :]
        upper = (1 - weight_x) * tl.load(base + above + left, in_bounds, 0.0)
        upper = upper + weight_x * tl.load(base + above + right, in_bounds, 0.0)
        lower = (1 - weight_x) * tl.load(base + below + left, in_bounds, 0.0)
        lower = lower + weight_x * tl.load(base + below + right, in_bounds, 0.0)
        value = (1 - weight_y) * upper + weight_y * lower
        is_set = in_bounds & (value > threshold)
        inner += tl.sum((in_bounds & (value > upper_threshold)).to(tl.int32), 1)
        outer += tl.sum((in_bounds & (value > lower_threshold)).to(tl.int32), 1)
        top = tl.minimum(top, tl.min(tl.where(is_set, y[None, :], 2147483647), 1))
        bottom = tl.maximum(bottom, tl.max(tl.where(is_set, y[None, :], -1), 1))
        if STORE:
            shifted = is_set.to(tl.int32) << (y % 32)[None, :]
            packed = tl.sum(tl.reshape(shifted, [COLUMNS, ROWS // 32, 32]), 2)
            word = start // 32 + tl.arange(0, ROWS // 32)
            bits_ptrs = bits + (mask * width + x)[:, None] * words + word[None, :]
            tl.store(bits_ptrs, packed, (x < width)[:, None] & (word < words)[None, :])
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
    """Number of changes in each of COLUMNS columns of one mask.

    Pointers, all contiguous:
    bits: result of `bits_kernel` [N, width, words] int32.
    counts: result [N, width] int32.

    height, width, words: int. canvas_height, canvas_width: int, size of the image that the mask is
    a crop of. top, left: int, position of the crop. Grid: (N, cdiv(width, COLUMNS)).
    """
    mask = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    count = tl.zeros([COLUMNS], tl.int32)
    for start in range(0, words, WORDS):
        word = start + tl.arange(0, WORDS)
        changed = changed_bits(
            bits, mask, x, word, height, width, words, canvas_height, canvas_width, top, left
        )
        count += tl.sum(count_bits(changed), 1)
    tl.store(counts + mask * width + x, count, x < width)


@kernel(do_not_specialize=_SHAPE[2:] + _CANVAS)
def write_kernel(
    bits,
    ends,
    changes,
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
    """Positions of the changes in COLUMNS columns of one mask, in ascending order.

    Pointers, all contiguous:
    bits: result of `bits_kernel` [N, width, words] int32.
    ends: cumulative sums of the counts of `count_kernel` [N, width] int64.
    changes: result, column-major indices of pixels of the canvas [ends[-1, -1]] int32.

    height, width, words: int. canvas_height, canvas_width: int, size of the image that the mask is
    a crop of. top, left: int, position of the crop. Grid: (N, cdiv(width, COLUMNS)).
    """
    mask = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.load(ends + mask * width + x - 1, (mask * width + x > 0) & (x < width), 0)
    for start in range(0, words, WORDS):
        word = start + tl.arange(0, WORDS)
        changed = changed_bits(
            bits, mask, x, word, height, width, words, canvas_height, canvas_width, top, left
        )
        word_count = count_bits(changed)
        remaining = word_count
        index = first[:, None] + tl.cumsum(word_count, 1) - word_count
        pixel = (left + x)[:, None] * canvas_height + top + word[None, :] * 32
        while tl.max(remaining) > 0:
            lowest = changed & (changed ^ (changed - 1))
            tl.store(changes + index, pixel + count_bits(lowest - 1), remaining > 0)
            changed = changed ^ lowest
            remaining = remaining - 1
            index = index + 1
        first += tl.sum(word_count, 1)


def mask_postprocess(
    logits: Tensor,
    size: tuple[int, int],
    lower_threshold: float,
    threshold: float,
    upper_threshold: float,
    canvas: tuple[int, int],
    origin: tuple[int, int],
    keep: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    selected: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[npt.NDArray[np.int32]], Tensor | None]:
    """inner, outer, boxes, run lengths and indices of kept masks, for `ops.mask_postprocess`.

    logits: [N, h, w] float32, contiguous.
    keep: called with inner, outer and boxes, returns which masks to keep [N] bool; or None.
    selected: with `keep`, which masks are processed [N] bool, or None for all; others count as
        empty.
    inner, outer and boxes are on the device, for all masks. Run lengths are on the host, for the
    kept masks; their indices [K] int64 are on the host, or None without `keep`.

    Launched on the current stream, with which the host synchronizes for the indices of the kept
    masks, for the number of runs and for the runs.
    """
    thresholds = (lower_threshold, threshold, upper_threshold)
    kept_rows = None
    if keep is not None:
        sums, boxes = _statistics(logits, selected, None, size, thresholds)
        kept_rows = keep(sums[:, 0], sums[:, 1], boxes).nonzero()[:, 0]
        logits = logits[kept_rows]
    chunk_size = max(1, MAX_PIXELS // (size[0] * size[1]))
    chunks = [_runs(chunk, size, thresholds, canvas, origin) for chunk in logits.split(chunk_size)]
    runs = [run for chunk in chunks for run in chunk[2]]
    if kept_rows is not None:
        return sums[:, 0], sums[:, 1], boxes, runs, kept_rows.cpu()
    sums = torch.cat([chunk[0] for chunk in chunks])
    boxes = torch.cat([chunk[1] for chunk in chunks])
    return sums[:, 0], sums[:, 1], boxes, runs, None


def _statistics(
    logits: Tensor,
    selected: Tensor | None,
    bits: Tensor | None,
    size: tuple[int, int],
    thresholds: tuple[float, float, float],
) -> tuple[Tensor, Tensor]:
    """Counts [N, 2] and boxes [N, 4], int64.

    selected: which masks are processed [N] bool, or None for all; others count as empty.
    bits: filled with the masks' bits, or None.
    """
    count, low_height, low_width = logits.shape
    height, width = size
    lower_threshold, threshold, upper_threshold = thresholds
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
                lower_threshold=lower_threshold,
                threshold=threshold,
                upper_threshold=upper_threshold,
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
    """Counts [N, 2], boxes [N, 4], and run lengths on the host."""
    count = len(logits)
    height, width = size
    words = height // 32 + 1  # includes the bit past a column
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
        changes = counts.new_empty(int(last[-1]))
        write_kernel[grid](
            bits=bits,
            ends=ends,
            changes=changes,
            **placement,
            COLUMNS=COLUMNS,
            WORDS=WORDS,
            num_warps=4,
        )
    canvas_end = np.int32(canvas_height * canvas_width)
    changes_by_mask = np.split(changes.cpu().numpy(), last[:-1])
    runs = [np.diff(row, prepend=np.int32(0), append=canvas_end) for row in changes_by_mask]
    return sums, boxes, runs
