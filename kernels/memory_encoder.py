"""The memory encoder's convolutions in Triton: each with the norm and the activation that follow it, channels innermost.

Its linear layers are `hiera_block.linear`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from sam2_fast.kernels.choices import Form, choose
from sam2_fast.kernels.launch import HOPPER, capability_of, kernel
from torch import Tensor

FIRST = 128  # pixels of a program of the first convolution
TOKENS = 16  # of a program of the depthwise one


@triton.jit
def _normed(x, real, channels, weight, bias, channel, eps):
    """Layer norm of rows [., WIDE] over the channels that are real."""
    mean = tl.sum(tl.where(real[None, :], x, 0.0), 1) / channels
    centred = tl.where(real[None, :], x - mean[:, None], 0.0)
    x = centred * tl.rsqrt(tl.sum(centred * centred, 1) / channels + eps)[:, None]
    return x * tl.load(weight + channel, real, 0.0).to(tl.float32)[None, :] + tl.load(bias + channel, real, 0.0).to(tl.float32)[None, :]


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _between(i, size, full):
    """Of which two of `size` logits pixel i of `full` is made, and the share of the second; corners not aligned."""
    at = tl.maximum((i.to(tl.float32) + 0.5) * (size / full) - 0.5, 0.0)
    first = tl.minimum(at.to(tl.int32), size - 1)
    return first, tl.minimum(first + 1, size - 1), tl.minimum(at - first.to(tl.float32), 1.0)


@kernel
def first_kernel(
    logits, weight, bias, norm_weight, norm_bias, out, low_height, low_width, height, width, channels, eps,
    BINARIZE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Logits [B, low_height, low_width] as a mask of height x width pixels, which is never written, and its convolution of stride 2.

    weight: [channels, 3 * 3]; out: [B, height / 2, width / 2, channels], after norm and GELU. A pixel is 20 sigmoid(logit) - 10,
    or BINARIZE: 10 where the logit is above zero, else -10.
    """
    pixel, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDE)
    inside, real = pixel < (height // 2) * (width // 2), channel < channels
    y, x = pixel // (width // 2), pixel % (width // 2)
    mine = logits + tl.program_id(1).to(tl.int64) * low_height * low_width
    sum_ = tl.zeros([BLOCK, WIDE], tl.float32)
    for place in range(9):
        row, column = 2 * y + place // 3 - 1, 2 * x + place % 3 - 1
        here = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        above, below, down = _between(row, low_height, height)
        left, right, across = _between(column, low_width, width)
        upper = (1 - across) * tl.load(mine + above * low_width + left, here, 0.0).to(tl.float32)
        upper += across * tl.load(mine + above * low_width + right, here, 0.0).to(tl.float32)
        lower = (1 - across) * tl.load(mine + below * low_width + left, here, 0.0).to(tl.float32)
        lower += across * tl.load(mine + below * low_width + right, here, 0.0).to(tl.float32)
        logit = (1 - down) * upper + down * lower
        value = tl.where(logit > 0, 1.0, 0.0) if BINARIZE else 1.0 / (1.0 + tl.exp(-logit))
        value = tl.where(here, value * 20.0 - 10.0, 0.0)
        sum_ += value[:, None] * tl.load(weight + channel * 9 + place, real, 0.0).to(tl.float32)[None, :]
    sum_ += tl.load(bias + channel, real, 0.0).to(tl.float32)[None, :]
    value = _gelu(_normed(sum_, real, channels, norm_weight, norm_bias, channel, eps))
    at = (tl.program_id(1).to(tl.int64) * (height // 2) * (width // 2) + pixel)[:, None] * channels + channel[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), inside[:, None] & real[None, :])


@kernel
def down_kernel(
    x, weight, bias, norm_weight, norm_bias, out, height, width, inner, outer, eps,
    DEEP: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A convolution of stride 2 with norm and GELU: x [B, height, width, inner] -> out [B, height / 2, width / 2, outer].

    weight: [3 * 3, inner, outer].
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    pixel, channel, deep = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDE), tl.arange(0, DEEP)
    inside, real, known = pixel < (height // 2) * (width // 2), channel < outer, deep < inner
    row, column = 2 * (pixel // (width // 2)) - 1, 2 * (pixel % (width // 2)) - 1
    mine = x + tl.program_id(1).to(tl.int64) * height * width * inner
    sum_ = tl.zeros([BLOCK, WIDE], tl.float32)
    for place in range(9):
        y, x_ = row + place // 3, column + place % 3
        here = inside & (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width)
        tile = tl.load(mine + (y * width + x_)[:, None] * inner + deep[None, :], here[:, None] & known[None, :], 0.0)
        at = (place * inner + deep[:, None]) * outer + channel[None, :]
        matrix = tl.load(weight + at, real[None, :] & known[:, None], 0.0).to(tile.dtype)
        sum_ = tl.dot(tile, matrix, sum_, input_precision=precision)
    sum_ += tl.load(bias + channel, real, 0.0).to(tl.float32)[None, :]
    value = _gelu(_normed(sum_, real, outer, norm_weight, norm_bias, channel, eps))
    at = (tl.program_id(1).to(tl.int64) * (height // 2) * (width // 2) + pixel)[:, None] * outer + channel[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), inside[:, None] & real[None, :])


@kernel
def depthwise_kernel(x, weight, bias, norm_weight, norm_bias, out, height, width, channels, eps, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """A 7 x 7 convolution of each channel alone, and the norm after it. x, out: [B, height, width, channels]; weight: [7 * 7, channels]."""
    pixel, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDE)
    inside, real = pixel < height * width, channel < channels
    row, column = pixel // width - 3, pixel % width - 3
    base = tl.program_id(1).to(tl.int64) * height * width
    sum_ = tl.zeros([BLOCK, WIDE], tl.float32)
    for place in range(49):
        y, x_ = row + place // 7, column + place % 7
        here = inside & (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width)
        tile = tl.load(x + (base + y * width + x_)[:, None] * channels + channel[None, :], here[:, None] & real[None, :], 0.0)
        sum_ += tile.to(tl.float32) * tl.load(weight + place * channels + channel, real, 0.0).to(tl.float32)[None, :]
    sum_ += tl.load(bias + channel, real, 0.0).to(tl.float32)[None, :]
    value = _normed(sum_, real, channels, norm_weight, norm_bias, channel, eps)
    at = (base + pixel)[:, None] * channels + channel[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), inside[:, None] & real[None, :])


def first(
    logits: Tensor,
    size: tuple[int, int],
    convolution: Convolution,
    binarize: bool,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """logits: [B, H, W] -> [B, size / 2, C] in dtype. The weight is [C, 9]; all contiguous."""
    height, width = size
    channels = len(convolution[1])
    out = logits.new_empty(len(logits), height // 2, width // 2, channels, dtype=dtype)
    with torch.cuda.device_of(logits):
        first_kernel[triton.cdiv(out[0, ..., 0].numel(), FIRST), len(logits)](
            logits, *convolution[:4], out, *logits.shape[1:], height, width, channels, eps,
            binarize, max(triton.next_power_of_2(channels), 4), FIRST, num_warps=4,
        )  # fmt: skip
    return out


def down_form(wide: int, size: int, capability: int) -> tuple[int, int, int]:
    """Pixels of a program of `down_kernel`, warps and stages.

    wide: channels that it writes, as a power of two; size: bytes of an element.
    """
    if size == 4:
        return 32, 4, 1
    if wide > 64:
        return (64, 8, 2) if capability in HOPPER else (32, 8, 1)
    return (64 if wide > 16 else 128), 4, 2


class Convolution(NamedTuple):
    """A convolution and the layer norm behind it."""

    weight: Tensor
    """[places, K, C] or, of each channel alone, [places, C]; the first convolution's [C, places]."""
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    plain: Tensor
    """The weight as torch has it: [C, K or 1, side, side]."""


def down(x: Tensor, convolution: Convolution, eps: float) -> Tensor:
    """x: [B, H, W, K] contiguous -> [B, H / 2, W / 2, C], after norm and GELU."""
    (batch, height, width, inner), outer = x.shape, convolution.weight.shape[2]
    out = x.new_empty(batch, height // 2, width // 2, outer)
    wide, size = max(triton.next_power_of_2(outer), 16), x.element_size()
    default = down_form(wide, size, capability_of(x))
    others: list[Form] = [] if size == 4 else [(64, 8, 2), (32, 8, 1), (64, 4, 2), (128, 4, 2), "library"]
    if wide > 64:
        others = [form for form in others if form not in ((64, 4, 2), (128, 4, 2))]  # they spill registers
    form = choose(x.device, "down", (size, inner, outer, height, width), default, others)
    if isinstance(form, str):
        y = _convolved(x, convolution, eps, stride=2, padding=1, groups=1)
        return F.gelu(y).contiguous()
    block, warps, stages = form
    with torch.cuda.device_of(x):
        down_kernel[triton.cdiv(out[0, ..., 0].numel(), block), batch](
            x, *convolution[:4], out, height, width, inner, outer, eps,
            max(triton.next_power_of_2(inner), 16), wide, block, x.dtype == torch.float32, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out


def depthwise(x: Tensor, convolution: Convolution, eps: float, dtype: torch.dtype) -> Tensor:
    """x: [B, h, w, C] -> [B, h, w, C] in dtype, after the norm. weight [49, C]; all contiguous."""
    batch, height, width, channels = x.shape
    out = torch.empty_like(x, dtype=dtype)
    size = x.element_size()
    others: list[Form] = [] if size == 4 else [(16, 8), (8, 4), (32, 8), "library"]
    form = choose(x.device, "depthwise", (size, channels, height, width), (TOKENS, 4), others)
    if isinstance(form, str):
        return _convolved(x, convolution, eps, stride=1, padding=3, groups=channels).to(dtype).contiguous()
    block, warps = form
    with torch.cuda.device_of(x):
        depthwise_kernel[triton.cdiv(height * width, block), batch](
            x, *convolution[:4], out, height, width, channels, eps, max(triton.next_power_of_2(channels), 16), block, num_warps=warps
        )  # fmt: skip
    return out


def _convolved(x: Tensor, convolution: Convolution, eps: float, stride: int, padding: int, groups: int) -> Tensor:
    """A convolution of x [B, H, W, K] and its norm by torch."""
    _, bias, norm_weight, norm_bias, plain = convolution
    with torch.autocast(x.device.type, enabled=False):
        bias = bias.to(x.dtype)
        y = F.conv2d(x.permute(0, 3, 1, 2), plain.to(x.dtype), bias, stride=stride, padding=padding, groups=groups)
        return F.layer_norm(y.permute(0, 2, 3, 1), (len(bias),), norm_weight.to(x.dtype), norm_bias.to(x.dtype), eps)
