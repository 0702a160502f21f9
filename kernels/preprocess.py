"""Pictures to model input in one launch: resampled along one axis for each tap of the other, then
normalized.

Bicubic is Pillow's, in fixed point and rounded to bytes after each axis: the same bytes. Bilinear
is float32 with antialiasing.
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
_SIZES = (
    "first_taps",
    "first_edge",
    "second_taps",
    "second_edge",
    "from_picture",
    "from_channel",
    "from_first",
    "from_second",
)
"""What differs from picture to picture: a kernel for all of them, compiled once."""
LONG, SHORT = 64, 8  # pixels of a block: of a row, of a column


class Taps(NamedTuple):
    """Of which source pixels each of S resampled ones is made."""

    first: Tensor  # [S] int32
    weights: Tensor  # [K, S] int32 in fixed point, or float32; zeros past a pixel's last


@kernel(do_not_specialize=_SIZES)
def resample_kernel(
    source,
    out,
    first,
    first_weights,
    second,
    second_weights,
    statistics,
    size,
    first_taps,
    first_edge,
    second_taps,
    second_edge,
    from_picture,
    from_channel,
    from_first,
    from_second,
    to_picture,
    to_channel,
    to_first,
    to_second,
    BICUBIC: tl.constexpr,
    PLANES: tl.constexpr,
    SECOND: tl.constexpr,
    FIRST: tl.constexpr,
    FIXED: tl.constexpr,
):
    """SECOND x FIRST pixels of one channel of one picture: for each tap of the axis that goes
    second, a sum along the axis that goes first.

    Pointers, contiguous but for source and out, whose strides are arguments:
    source: pictures of three channels and first_edge x second_edge pixels, uint8.
    out: [B, 3, size, size] float32, (x / 255 - mean) / deviation, where PLANES, else bytes uint8.
    first: first source pixel of each pixel along the axis that goes first [size] int32.
    first_weights: [first_taps, size] int32 in fixed point where BICUBIC, else float32.
    second: first source pixel of each pixel along the axis that goes second [size] int32.
    second_weights: [second_taps, size], dtype of first_weights.
    statistics: means, then deviations of the channels [6] float32; PLANES.

    size, first_taps, first_edge, second_taps, second_edge: int. from_picture, from_channel,
    from_first, from_second: int, strides of source in elements; to_picture, to_channel, to_first,
    to_second: those of out. FIXED: bits of a weight after the point.
    Grid: (cdiv(size, FIRST), cdiv(size, SECOND), 3 * B).
    """
    picture = (tl.program_id(2) // 3).to(tl.int64)
    channel = tl.program_id(2) % 3
    i = tl.program_id(0) * FIRST + tl.arange(0, FIRST)
    k = tl.program_id(1) * SECOND + tl.arange(0, SECOND)
    inside = (k < size)[:, None] & (i < size)[None, :]
    base = source + picture * from_picture + channel * from_channel
    begin_first = tl.load(first + i, i < size, 0)
    begin_second = tl.load(second + k, k < size, 0)
    half = 1 << (FIXED - 1)
    if BICUBIC:
        total = tl.full([SECOND, FIRST], half, tl.int32)
    else:
        total = tl.zeros([SECOND, FIRST], tl.float32)
    for j in range(second_taps):
        second_pixel = tl.minimum(begin_second + j, second_edge - 1).to(tl.int64)
        line = base + second_pixel[:, None] * from_second
        if BICUBIC:
            part = tl.full([SECOND, FIRST], half, tl.int32)
        else:
            part = tl.zeros([SECOND, FIRST], tl.float32)
        for n in range(first_taps):
            weight = tl.load(first_weights + n * size + i, i < size, 0)
            first_pixel = tl.minimum(begin_first + n, first_edge - 1).to(tl.int64)
            pixel = tl.load(line + first_pixel[None, :] * from_first, inside, 0)
            part += pixel.to(total.dtype) * weight[None, :]
        if BICUBIC:
            part = tl.minimum(tl.maximum(part >> FIXED, 0), 255)
        total += part * tl.load(second_weights + j * size + k, k < size, 0)[:, None]
    if BICUBIC:
        total = tl.minimum(tl.maximum(total >> FIXED, 0), 255)
    value = total
    if PLANES:
        share = tl.math.div_rn(total.to(tl.float32), 255.0)
        mean = tl.load(statistics + channel)
        value = tl.math.div_rn(share - mean, tl.load(statistics + 3 + channel))
    out_at = out + picture * to_picture + channel * to_channel
    out_at += k.to(tl.int64)[:, None] * to_second + i.to(tl.int64)[None, :] * to_first
    tl.store(out_at, value.to(out.dtype.element_ty), inside)


def cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution with a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def triangle(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of half width 1."""
    return np.maximum(1 - np.abs(x), 0)


def windows(
    edge: int, size: int, bicubic: bool
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """First source pixels [size] and weights [K, size], which sum to 1: from `edge` pixels to
    `size`, in float64 as Pillow does."""
    if edge == size:
        return np.arange(size, dtype=np.int32), np.ones((1, size))
    scale = edge / size
    stretch = max(scale, 1.0)
    support = (2.0 if bicubic else 1.0) * stretch
    center = (np.arange(size) + 0.5) * scale
    first = np.maximum(np.trunc(center - support + 0.5), 0).astype(np.int64)
    end = np.minimum(np.trunc(center + support + 0.5), edge).astype(np.int64)
    tap = np.arange((end - first).max())[:, None]
    distance = (tap + first - center + 0.5) * (1.0 / stretch)
    weights = (cubic if bicubic else triangle)(distance) * (tap < end - first)
    total = np.zeros(size)
    for row in weights:  # one after the other, as Pillow sums
        total += row
    return first.astype(np.int32), weights / total


@lru_cache(maxsize=64)
def taps_of(edge: int, size: int, bicubic: bool, device: torch.device) -> Taps:
    """The tables of an axis, made once a device; the first time waits for the copy, so that any
    stream may use them."""
    first, weights = windows(edge, size, bicubic)
    numbers = weights.astype(np.float32)
    if bicubic:
        numbers = np.trunc(weights * (1 << FIXED) + np.copysign(0.5, weights)).astype(np.int32)
    with torch.inference_mode(False):
        return Taps(
            _placed(torch.from_numpy(first), device), _placed(torch.from_numpy(numbers), device)
        )


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
    pictures: Tensor,
    size: int,
    bicubic: bool,
    columns_first: bool,
    mean: Sequence[float] | None = None,
    std: Sequence[float] = (),
) -> Tensor:
    """pictures: [B, H, W, 3] uint8 of any strides -> [B, 3, S, S] float32, normalized by mean and
    std; without them [B, S, S, 3] uint8.

    On the current stream. columns_first: which axis goes first, see `columns_before_rows`; only
    rounding depends on it.
    """
    count = len(pictures)
    source = pictures.permute(0, 3, 1, 2)
    if mean:
        out = planes = pictures.new_empty(count, 3, size, size, dtype=torch.float32)
    else:
        out = pictures.new_empty(count, size, size, 3)
        planes = out.permute(0, 3, 1, 2)
    if not count:
        return out
    device = pictures.device
    statistics = statistics_of(tuple(mean or (0.0,) * 3), tuple(std or (1.0,) * 3), device)
    first_axis, second_axis = (2, 3) if columns_first else (3, 2)
    first_edge = source.shape[first_axis]
    second_edge = source.shape[second_axis]
    first = taps_of(first_edge, size, bicubic, device)
    second = taps_of(second_edge, size, bicubic, device)
    wide, narrow = (SHORT, LONG) if columns_first else (LONG, SHORT)
    grid = (triton.cdiv(size, wide), triton.cdiv(size, narrow), 3 * count)
    with torch.cuda.device_of(pictures):
        resample_kernel[grid](
            source=source,
            out=planes,
            first=first.first,
            first_weights=first.weights,
            second=second.first,
            second_weights=second.weights,
            statistics=statistics,
            size=size,
            first_taps=len(first.weights),
            first_edge=first_edge,
            second_taps=len(second.weights),
            second_edge=second_edge,
            from_picture=source.stride(0),
            from_channel=source.stride(1),
            from_first=source.stride(first_axis),
            from_second=source.stride(second_axis),
            to_picture=planes.stride(0),
            to_channel=planes.stride(1),
            to_first=planes.stride(first_axis),
            to_second=planes.stride(second_axis),
            BICUBIC=bicubic,
            PLANES=mean is not None,
            SECOND=narrow,
            FIRST=wide,
            FIXED=FIXED,
            num_warps=4,
        )
    return out
