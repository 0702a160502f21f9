"""A multiplication and an addition for each channel: the template of a Triton kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

BLOCK = 1024


@kernel
def affine_kernel(x, weight, bias, out, total, channels, BLOCK: tl.constexpr):
    """x * weight + bias, computed in float32 and rounded once. A program owns BLOCK elements.

    Pointers, all contiguous:
    x: tokens [rows, channels] in any floating-point dtype.
    weight: a factor for each channel [channels] float32.
    bias: a summand for each channel [channels] float32.
    out: result [rows, channels] in the dtype of x.

    total, channels: int; total is rows * channels. Grid: (cdiv(total, BLOCK),).
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < total
    channel = i % channels
    value = tl.load(x + i, inside, 0).to(tl.float32)
    factor = tl.load(weight + channel, inside, 0)
    summand = tl.load(bias + channel, inside, 0)
    tl.store(out + i, (value * factor + summand).to(out.dtype.element_ty), inside)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x: [rows, channels], weight, bias: [channels] float32, all contiguous -> as x, on the current
    stream."""
    out = torch.empty_like(x)
    if not x.numel():
        return out
    with torch.cuda.device_of(x):
        affine_kernel[(triton.cdiv(x.numel(), BLOCK),)](
            x=x,
            weight=weight,
            bias=bias,
            out=out,
            total=x.numel(),
            channels=x.shape[1],
            BLOCK=BLOCK,
            num_warps=4,
        )
    return out
