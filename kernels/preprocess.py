"""Pictures to model input: one kernel that resamples along one axis, launched for each axis; the last launch also normalises.

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
from torch import Tensor

FIXED = 22  # bits of a weight after the point: 32 less 8 of a pixel, less 2 for a sum's overshoot
ALONG, ACROSS = 64, 8  # of a block: pixels on the axis that is resampled, and on the other


class Taps(NamedTuple):
    """Of which source pixels each of S resampled ones is made."""

    first: Tensor  # [S] int32
    weights: Tensor  # [K, S] int32 in fixed point, or float32; zeros past a pixel's last


@triton.jit
def axis_kernel(
    source, out, first, weights, statistics, taps, edge, along, across, from_picture, from_channel, from_along, from_across,
    to_picture, to_channel, to_along, to_across,
    BICUBIC: tl.constexpr, BYTES: tl.constexpr, PLANES: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """Resample `across` lines of one channel of one picture from `edge` pixels to `along`. from, to: strides in elements.

    statistics: [6] mean and deviation by channel. BYTES: the source is uint8. PLANES: what is written is (x - mean) / deviation, float32.
    """
    picture, channel = (tl.program_id(2) // 3).to(tl.int64), tl.program_id(2) % 3
    i = tl.program_id(0) * ALONG + tl.arange(0, ALONG)
    line = (tl.program_id(1) * ACROSS + tl.arange(0, ACROSS)).to(tl.int64)
    inside = (line < across)[:, None] & (i < along)[None, :]
    base = source + picture * from_picture + channel * from_channel + line[:, None] * from_across
    begin = tl.load(first + i, i < along, 0)
    if BICUBIC:
        total = tl.full([ACROSS, ALONG], 1 << (FIXED - 1), tl.int32)
    else:
        total = tl.zeros([ACROSS, ALONG], tl.float32)
    for j in range(taps):
        weight = tl.load(weights + j * along + i, i < along, 0)
        at = tl.minimum(begin + j, edge - 1).to(tl.int64)
        pixel = tl.load(base + at[None, :] * from_along, inside, 0)
        if BICUBIC:
            total += pixel.to(tl.int32) * weight[None, :]
        elif BYTES:
            total += tl.math.div_rn(pixel.to(tl.float32), 255.0) * weight[None, :]
        else:
            total += pixel * weight[None, :]
    if BICUBIC:
        total = tl.minimum(tl.maximum(total >> FIXED, 0), 255)
    if PLANES:
        value = total
        if BICUBIC:
            value = tl.math.div_rn(total.to(tl.float32), 255.0)
        value = tl.math.div_rn(value - tl.load(statistics + channel), tl.load(statistics + 3 + channel))
    else:
        value = total
    to = out + picture * to_picture + channel * to_channel + line[:, None] * to_across + i.to(tl.int64)[None, :] * to_along
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
    count, height, width, _ = pictures.shape
    out = pictures.new_empty(count, 3, size, size, dtype=torch.float32) if mean else pictures.new_empty(count, size, size, 3)
    between = pictures.new_empty(count, 3, *((size, width) if columns_first else (height, size)), dtype=None if bicubic else torch.float32)
    if not count:
        return out
    last = out if mean else out.permute(0, 3, 1, 2)
    statistics = statistics_of(tuple(mean or (0.0,) * 3), tuple(std or (1.0,) * 3), pictures.device)
    with torch.cuda.device_of(pictures):
        for source, to in ((pictures.permute(0, 3, 1, 2), between), (between, last)):
            axis, other = (2, 3) if columns_first == (to is between) else (3, 2)
            table = taps_of(source.shape[axis], size, bicubic, pictures.device)
            strides = [x.stride(d) for x in (source, to) for d in (0, 1, axis, other)]
            grid = triton.cdiv(size, ALONG), triton.cdiv(to.shape[other], ACROSS), 3 * count
            axis_kernel[grid](
                source, to, *table, statistics, len(table.weights), source.shape[axis], size, to.shape[other], *strides,
                bicubic, source is not between, to is last and mean is not None, ALONG, ACROSS, FIXED, num_warps=4,
            )  # fmt: skip
    return out
