"""Pictures to model input in one launch: resampled along one axis for each tap of the other, then normalised.

Bicubic is Pillow's, in fixed point and rounded to bytes after each axis: the same bytes. Bilinear is float32 with antialiasing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

FIXED = 22  # bits of a weight after the point: 32 less 8 of a pixel, less 2 for a sum's overshoot
_SIZES = ("first_taps", "first_edge", "second_taps", "second_edge", "from_picture", "from_channel", "from_first", "from_second")
"""What differs from picture to picture: a kernel for all of them, compiled once."""
LONG, SHORT = 64, 8  # pixels of a block: of a row, of a column


class Taps(NamedTuple):
    """Of which source pixels each of S resampled ones is made."""

    first: Tensor  # [S] int32
    weights: Tensor  # [K, S] int32 in fixed point, or float32; zeros past a pixel's last


@kernel(do_not_specialize=_SIZES)
def resample_kernel(
    source, out, first, first_weights, second, second_weights, statistics, size, first_taps, first_edge, second_taps, second_edge,
    from_picture, from_channel, from_first, from_second, to_picture, to_channel, to_first, to_second,
    BICUBIC: tl.constexpr, PLANES: tl.constexpr, SECOND: tl.constexpr, FIRST: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """SECOND x FIRST pixels of one channel of one picture of bytes: for each tap of the axis that goes second, a sum along the first.

    first, second: of which source pixels, [size]; their weights [taps, size]; edges: pixels of an axis; from, to: strides in elements.
    statistics: [6] mean and deviation by channel. PLANES: what is written is (x / 255 - mean) / deviation, float32, else bytes.
    """
    picture, channel = (tl.program_id(2) // 3).to(tl.int64), tl.program_id(2) % 3
    i, k = tl.program_id(0) * FIRST + tl.arange(0, FIRST), tl.program_id(1) * SECOND + tl.arange(0, SECOND)
    inside = (k < size)[:, None] & (i < size)[None, :]
    base = source + picture * from_picture + channel * from_channel
    begin, begin_second = tl.load(first + i, i < size, 0), tl.load(second + k, k < size, 0)
    half = 1 << (FIXED - 1)
    total = tl.full([SECOND, FIRST], half, tl.int32) if BICUBIC else tl.zeros([SECOND, FIRST], tl.float32)
    for j in range(second_taps):
        at = tl.minimum(begin_second + j, second_edge - 1).to(tl.int64)
        line = base + at[:, None] * from_second
        part = tl.full([SECOND, FIRST], half, tl.int32) if BICUBIC else tl.zeros([SECOND, FIRST], tl.float32)
        for n in range(first_taps):
            weight = tl.load(first_weights + n * size + i, i < size, 0)
            pixel = tl.load(line + tl.minimum(begin + n, first_edge - 1).to(tl.int64)[None, :] * from_first, inside, 0)
            part += pixel.to(total.dtype) * weight[None, :]
        if BICUBIC:
            part = tl.minimum(tl.maximum(part >> FIXED, 0), 255)
        total += part * tl.load(second_weights + j * size + k, k < size, 0)[:, None]
    if BICUBIC:
        total = tl.minimum(tl.maximum(total >> FIXED, 0), 255)
    value = total
    if PLANES:
        share = tl.math.div_rn(total.to(tl.float32), 255.0)
        value = tl.math.div_rn(share - tl.load(statistics + channel), tl.load(statistics + 3 + channel))
    to = out + picture * to_picture + channel * to_channel
    to += k.to(tl.int64)[:, None] * to_second + i.to(tl.int64)[None, :] * to_first
    tl.store(to, value.to(out.dtype.element_ty), inside)


def cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution with a = -1/2."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def triangle(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of half width 1."""
    return np.maximum(1 - np.abs(x), 0)


def windows(edge: int, size: int, bicubic: bool) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """First source pixels [size] and weights [K, size], which sum to 1: from `edge` pixels to `size`, in float64 as Pillow does."""
    if edge == size:
        return np.arange(size, dtype=np.int32), np.ones((1, size))
    scale = edge / size
    stretch = max(scale, 1.0)
    support, centre = (2.0 if bicubic else 1.0) * stretch, (np.arange(size) + 0.5) * scale
    first = np.maximum(np.trunc(centre - support + 0.5), 0).astype(np.int64)
    end = np.minimum(np.trunc(centre + support + 0.5), edge).astype(np.int64)
    tap = np.arange((end - first).max())[:, None]
    weights = (cubic if bicubic else triangle)((tap + first - centre + 0.5) * (1.0 / stretch)) * (tap < end - first)
    total = np.zeros(size)
    for row in weights:  # one after the other, as Pillow sums
        total += row
    return first.astype(np.int32), weights / total


@lru_cache(maxsize=64)
def taps_of(edge: int, size: int, bicubic: bool, device: torch.device) -> Taps:
    """The tables of an axis, made once a device; the first time waits for the copy, so that any stream may use them."""
    first, weights = windows(edge, size, bicubic)
    numbers = np.trunc(weights * (1 << FIXED) + np.copysign(0.5, weights)).astype(np.int32) if bicubic else weights.astype(np.float32)
    with torch.inference_mode(False):
        return Taps(_placed(torch.from_numpy(first), device), _placed(torch.from_numpy(numbers), device))


@lru_cache(maxsize=16)
def statistics_of(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """[6] float32."""
    with torch.inference_mode(False):
        return _placed(torch.tensor([*mean, *std], dtype=torch.float32), device)


def _placed(table: Tensor, device: torch.device) -> Tensor:
    moved = table.to(device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return moved


def resample(
    pictures: Tensor, size: int, bicubic: bool, columns_first: bool, mean: Sequence[float] | None = None, std: Sequence[float] = ()
) -> Tensor:
    """pictures: [B, H, W, 3] uint8 of any strides -> [B, 3, S, S] float32, normalised by mean and std; without them [B, S, S, 3] uint8.

    On the current stream. columns_first: which axis goes first, see `columns_before_rows`; only rounding depends on it.
    """
    count = len(pictures)
    out = pictures.new_empty(count, 3, size, size, dtype=torch.float32) if mean else pictures.new_empty(count, size, size, 3)
    if not count:
        return out
    statistics = statistics_of(tuple(mean or (0.0,) * 3), tuple(std or (1.0,) * 3), pictures.device)
    source, to = pictures.permute(0, 3, 1, 2), out if mean else out.permute(0, 3, 1, 2)
    axes = (2, 3) if columns_first else (3, 2)
    tables = [taps_of(source.shape[axis], size, bicubic, pictures.device) for axis in axes]
    reach = [n for axis, table in zip(axes, tables, strict=True) for n in (len(table.weights), source.shape[axis])]
    strides = [x.stride(d) for x in (source, to) for d in (0, 1, *axes)]
    wide, narrow = (SHORT, LONG) if columns_first else (LONG, SHORT)
    grid = triton.cdiv(size, wide), triton.cdiv(size, narrow), 3 * count
    with torch.cuda.device_of(pictures):
        resample_kernel[grid](
            source, to, *tables[0], *tables[1], statistics, size, *reach, *strides,
            bicubic, mean is not None, narrow, wide, FIXED, num_warps=4,
        )  # fmt: skip
    return out
