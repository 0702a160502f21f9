"""Images to model input in one launch: resampling along both axes, then normalization.

Bicubic resampling computes the same bytes as Pillow, in fixed point and rounded after each axis.
Bilinear resampling is antialiased, in float32.
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

FIXED = 22  # fractional bits of a weight: 32 - 8 for a pixel - 2 for overshoot of a sum
_IMAGE_ARGUMENTS = (
    "first_taps",
    "first_edge",
    "second_taps",
    "second_edge",
    "source_image_stride",
    "source_channel_stride",
    "source_first_stride",
    "source_second_stride",
)
"""Arguments that depend on the image; the kernel is not specialized on them, but compiled once."""
LONG, SHORT = 64, 8  # pixels of a block along a row, and along a column


class Taps(NamedTuple):
    """The source pixels of each of S resampled pixels along an axis, and their weights."""

    starts: Tensor  # first source pixel [S] int32
    weights: Tensor  # [K, S] int32 in fixed point, or float32; zeros past a pixel's last tap


@kernel(do_not_specialize=_IMAGE_ARGUMENTS)
def resample_kernel(
    source,
    out,
    first_starts,
    first_weights,
    second_starts,
    second_weights,
    statistics,
    size,
    first_taps,
    first_edge,
    second_taps,
    second_edge,
    source_image_stride,
    source_channel_stride,
    source_first_stride,
    source_second_stride,
    out_image_stride,
    out_channel_stride,
    out_first_stride,
    out_second_stride,
    BICUBIC: tl.constexpr,
    PLANES: tl.constexpr,
    SECOND: tl.constexpr,
    FIRST: tl.constexpr,
    FIXED: tl.constexpr,
):
    """Resample SECOND x FIRST pixels of one channel of one image.

    For each tap of the second axis, a weighted sum is computed along the first axis.

    Pointers, all contiguous except source and out:
    source: B images of three channels and first_edge x second_edge pixels, uint8.
    out: result, B images of size x size pixels: if PLANES, (x / 255 - mean) / std in float32, else
        bytes, uint8.
    first_starts: first source pixel of each pixel along the first axis [size] int32.
    first_weights: [first_taps, size], int32 in fixed point if BICUBIC, else float32.
    second_starts: first source pixel of each pixel along the second axis [size] int32.
    second_weights: [second_taps, size], dtype of first_weights.
    statistics: means, then standard deviations of the channels [6] float32; only if PLANES.

    size, first_taps, first_edge, second_taps, second_edge: int. source_image_stride,
    source_channel_stride, source_first_stride, source_second_stride: int, strides of source in
    elements. out_image_stride, out_channel_stride, out_first_stride, out_second_stride: int,
    strides of out. FIXED: fractional bits of a weight.
    Grid: (cdiv(size, FIRST), cdiv(size, SECOND), 3 * B).
    """
    image = (tl.program_id(2) // 3).to(tl.int64)
    channel = tl.program_id(2) % 3
    i = tl.program_id(0) * FIRST + tl.arange(0, FIRST)
    k = tl.program_id(1) * SECOND + tl.arange(0, SECOND)
    mask = (k < size)[:, None] & (i < size)[None, :]
    base = source + image * source_image_stride + channel * source_channel_stride
    first_start = tl.load(first_starts + i, i < size, 0)
    second_start = tl.load(second_starts + k, k < size, 0)
    half = 1 << (FIXED - 1)
    if BICUBIC:
        accumulator = tl.full([SECOND, FIRST], half, tl.int32)
    else:
        accumulator = tl.zeros([SECOND, FIRST], tl.float32)
    for j in range(second_taps):
        second_pixel = tl.minimum(second_start + j, second_edge - 1).to(tl.int64)
        line = base + second_pixel[:, None] * source_second_stride
        if BICUBIC:
            line_sum = tl.full([SECOND, FIRST], half, tl.int32)
        else:
            line_sum = tl.zeros([SECOND, FIRST], tl.float32)
        for n in range(first_taps):
            weight = tl.load(first_weights + n * size + i, i < size, 0)
            first_pixel = tl.minimum(first_start + n, first_edge - 1).to(tl.int64)
            pixel = tl.load(line + first_pixel[None, :] * source_first_stride, mask, 0)
            line_sum += pixel.to(accumulator.dtype) * weight[None, :]
        if BICUBIC:
            line_sum = tl.minimum(tl.maximum(line_sum >> FIXED, 0), 255)
        accumulator += line_sum * tl.load(second_weights + j * size + k, k < size, 0)[:, None]
    if BICUBIC:
        accumulator = tl.minimum(tl.maximum(accumulator >> FIXED, 0), 255)
    value = accumulator
    if PLANES:
        scaled = tl.math.div_rn(accumulator.to(tl.float32), 255.0)
        mean = tl.load(statistics + channel)
        value = tl.math.div_rn(scaled - mean, tl.load(statistics + 3 + channel))
    out_ptrs = out + image * out_image_stride + channel * out_channel_stride
    out_ptrs += (
        k.to(tl.int64)[:, None] * out_second_stride + i.to(tl.int64)[None, :] * out_first_stride
    )
    tl.store(out_ptrs, value.to(out.dtype.element_ty), mask)


def cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution filter with a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def triangle(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Triangle (bilinear) filter of half width 1."""
    return np.maximum(1 - np.abs(x), 0)


def windows(
    edge: int, size: int, bicubic: bool
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """First source pixels [size] and weights [K, size] to resample `edge` pixels to `size`.

    The K weights of a pixel sum to 1. Computed in float64, as in Pillow.
    """
    if edge == size:
        return np.arange(size, dtype=np.int32), np.ones((1, size))
    scale = edge / size
    stretch = max(scale, 1.0)
    support = (2.0 if bicubic else 1.0) * stretch
    center = (np.arange(size) + 0.5) * scale
    start = np.maximum(np.trunc(center - support + 0.5), 0).astype(np.int64)
    end = np.minimum(np.trunc(center + support + 0.5), edge).astype(np.int64)
    tap = np.arange((end - start).max())[:, None]
    distance = (tap + start - center + 0.5) * (1.0 / stretch)
    weights = (cubic if bicubic else triangle)(distance) * (tap < end - start)
    weight_sum = np.zeros(size)
    for row in weights:  # in this order, as in Pillow
        weight_sum += row
    return start.astype(np.int32), weights / weight_sum


@lru_cache(maxsize=64)
def taps_of(edge: int, size: int, bicubic: bool, device: torch.device) -> Taps:
    """Taps of an axis, cached per device.

    The first call waits for the copy to the device, so that any stream may use the tables.
    """
    starts, weights = windows(edge, size, bicubic)
    converted = weights.astype(np.float32)
    if bicubic:
        converted = np.trunc(weights * (1 << FIXED) + np.copysign(0.5, weights)).astype(np.int32)
    with torch.inference_mode(False):
        return Taps(
            _on_device(torch.from_numpy(starts), device),
            _on_device(torch.from_numpy(converted), device),
        )


@lru_cache(maxsize=16)
def statistics_of(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Means, then standard deviations of the channels [6] float32, cached per device."""
    with torch.inference_mode(False):
        return _on_device(torch.tensor([*mean, *std], dtype=torch.float32), device)


def _on_device(table: Tensor, device: torch.device) -> Tensor:
    """The table on `device`, after the copy has finished."""
    copy = table.to(device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return copy


def resample(
    images: Tensor,
    size: int,
    bicubic: bool,
    columns_first: bool,
    mean: Sequence[float] | None = None,
    std: Sequence[float] = (),
) -> Tensor:
    """Resampled images: [B, 3, S, S] float32, normalized by mean and std, or [B, S, S, 3] uint8.

    images: [B, H, W, 3] uint8 of any strides.
    columns_first: whether columns are resampled before rows, which affects only rounding; see
        `columns_before_rows`.
    mean, std: of the three channels; without mean the result is uint8.
    Computed on the current stream.
    """
    count = len(images)
    source = images.permute(0, 3, 1, 2)
    if mean:
        out = planes = images.new_empty(count, 3, size, size, dtype=torch.float32)
    else:
        out = images.new_empty(count, size, size, 3)
        planes = out.permute(0, 3, 1, 2)
    if not count:
        return out
    device = images.device
    statistics = statistics_of(tuple(mean or (0.0,) * 3), tuple(std or (1.0,) * 3), device)
    first_axis, second_axis = (2, 3) if columns_first else (3, 2)
    first_edge = source.shape[first_axis]
    second_edge = source.shape[second_axis]
    first = taps_of(first_edge, size, bicubic, device)
    second = taps_of(second_edge, size, bicubic, device)
    first_block, second_block = (SHORT, LONG) if columns_first else (LONG, SHORT)
    grid = (triton.cdiv(size, first_block), triton.cdiv(size, second_block), 3 * count)
    with torch.cuda.device_of(images):
        resample_kernel[grid](
            source=source,
            out=planes,
            first_starts=first.starts,
            first_weights=first.weights,
            second_starts=second.starts,
            second_weights=second.weights,
            statistics=statistics,
            size=size,
            first_taps=len(first.weights),
            first_edge=first_edge,
            second_taps=len(second.weights),
            second_edge=second_edge,
            source_image_stride=source.stride(0),
            source_channel_stride=source.stride(1),
            source_first_stride=source.stride(first_axis),
            source_second_stride=source.stride(second_axis),
            out_image_stride=planes.stride(0),
            out_channel_stride=planes.stride(1),
            out_first_stride=planes.stride(first_axis),
            out_second_stride=planes.stride(second_axis),
            BICUBIC=bicubic,
            PLANES=mean is not None,
            SECOND=second_block,
            FIRST=first_block,
            FIXED=FIXED,
            num_warps=4,
        )
    return out
