"""Per-channel scale and shift in Triton: one launch, one tile per program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

ROWS, CHANNELS = 16, 128  # 2048 elements, 16 for each thread of 4 warps


@kernel
def affine_kernel(x, weight, bias, out, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """x * weight + bias for a tile of ROWS rows and CHANNELS channels, computed in float32.

    Pointers, all contiguous:
    x: [rows, channels], any float dtype.
    weight, bias: [channels], any float dtype.
    out: [rows, channels], in the dtype of x.

    rows, channels: int. Grid: (cdiv(rows, ROWS), cdiv(channels, CHANNELS)).
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < channels
    mask = (row < rows)[:, None] & channel_mask[None, :]
    offsets = row.to(tl.int64)[:, None] * channels + channel[None, :]
    scale = tl.load(weight + channel, channel_mask, 0.0).to(tl.float32)
    shift = tl.load(bias + channel, channel_mask, 0.0).to(tl.float32)
    values = tl.load(x + offsets, mask, 0.0).to(tl.float32)
    scaled = values * scale[None, :] + shift[None, :]
    tl.store(out + offsets, scaled.to(out.dtype.element_ty), mask)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x * weight + bias [N, C] in the dtype of x, computed on the current stream.

    x: [N, C], weight, bias: [C], all contiguous; N, C > 0.
    """
    rows, channels = x.shape
    out = x.new_empty(x.shape)
    with torch.cuda.device_of(x):
        affine_kernel[triton.cdiv(rows, ROWS), triton.cdiv(channels, CHANNELS)](
            x=x,
            weight=weight,
            bias=bias,
            out=out,
            rows=rows,
            channels=channels,
            ROWS=ROWS,
            CHANNELS=CHANNELS,
            num_warps=4,
        )
    return out
