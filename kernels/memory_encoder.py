"""The memory encoder's convolutions in Triton: each with the norm and the activation that follow
it, channels innermost.

Its linear layers are `linear.linear`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from sam2_fast.kernels.activations import gelu
from sam2_fast.kernels.choices import Form, choose
from sam2_fast.kernels.convolution import Convolution, convolved
from sam2_fast.kernels.launch import HOPPER, capability_of, kernel
from sam2_fast.kernels.layer_norm import normalize_tile
from torch import Tensor

FIRST = 128  # pixels of a program of the first convolution
TOKENS = 16  # of a program of the depthwise one


@triton.jit
def _samples(i, size, full):
    """Between which two of `size` samples pixel i of `full` lies, and the weight of the second;
    corners not aligned."""
    at = tl.maximum((i.to(tl.float32) + 0.5) * (size / full) - 0.5, 0.0)
    first = tl.minimum(at.to(tl.int32), size - 1)
    return first, tl.minimum(first + 1, size - 1), tl.minimum(at - first.to(tl.float32), 1.0)


@kernel
def first_kernel(
    logits,
    weight,
    bias,
    norm_weight,
    norm_bias,
    out,
    low_height,
    low_width,
    height,
    width,
    channels,
    eps,
    BINARIZE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK pixels of the 3 x 3 convolution of stride 2 of a mask, then norm and GELU; the mask is
    interpolated from logits and never written.

    Pointers, all contiguous:
    logits: [B, low_height, low_width], any float dtype.
    weight: [channels, 3 * 3], any float dtype.
    bias: [channels], any float dtype.
    norm_weight, norm_bias: of the layer norm [channels], any float dtype.
    out: [B, height / 2, width / 2, channels], any float dtype.

    low_height, low_width, height, width, channels: int; the mask has height x width pixels. eps:
    float, of the layer norm. A pixel is 20 sigmoid(logit) - 10, or BINARIZE: 10 where the logit is
    above zero, else -10. Grid: (cdiv(height / 2 * width / 2, BLOCK), B).
    """
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDE)
    in_pixels = pixel < (height // 2) * (width // 2)
    in_channels = channel < channels
    y = pixel // (width // 2)
    x = pixel % (width // 2)
    image = logits + tl.program_id(1).to(tl.int64) * low_height * low_width
    accumulator = tl.zeros([BLOCK, WIDE], tl.float32)
    for tap in range(9):
        row = 2 * y + tap // 3 - 1
        column = 2 * x + tap % 3 - 1
        inside = in_pixels & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        above, below, down = _samples(row, low_height, height)
        left, right, across = _samples(column, low_width, width)
        above_left = tl.load(image + above * low_width + left, inside, 0.0).to(tl.float32)
        above_right = tl.load(image + above * low_width + right, inside, 0.0).to(tl.float32)
        upper = (1 - across) * above_left + across * above_right
        below_left = tl.load(image + below * low_width + left, inside, 0.0).to(tl.float32)
        below_right = tl.load(image + below * low_width + right, inside, 0.0).to(tl.float32)
        lower = (1 - across) * below_left + across * below_right
        logit = (1 - down) * upper + down * lower
        value = tl.where(logit > 0, 1.0, 0.0) if BINARIZE else 1.0 / (1.0 + tl.exp(-logit))
        value = tl.where(inside, value * 20.0 - 10.0, 0.0)[:, None]
        tap_weight = tl.load(weight + channel * 9 + tap, in_channels, 0.0).to(tl.float32)
        accumulator += value * tap_weight[None, :]
    accumulator += tl.load(bias + channel, in_channels, 0.0).to(tl.float32)[None, :]
    normed = normalize_tile(
        accumulator, in_channels, channels, norm_weight, norm_bias, channel, eps
    )
    value = gelu(normed)
    base = tl.program_id(1).to(tl.int64) * (height // 2) * (width // 2)
    offsets = (base + pixel)[:, None] * channels + channel[None, :]
    result = value.to(out.dtype.element_ty)
    tl.store(out + offsets, result, in_pixels[:, None] & in_channels[None, :])


@kernel
def down_kernel(
    x,
    weight,
    bias,
    norm_weight,
    norm_bias,
    out,
    height,
    width,
    inner,
    outer,
    eps,
    DEEP: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """BLOCK pixels of a 3 x 3 convolution of stride 2, then norm and GELU.

    Pointers, all contiguous:
    x: [B, height, width, inner], compute dtype.
    weight: [3 * 3, inner, outer], any float dtype.
    bias: [outer], any float dtype.
    norm_weight, norm_bias: of the layer norm [outer], any float dtype.
    out: [B, height / 2, width / 2, outer], any float dtype.

    height, width, inner, outer: int; inner <= DEEP, outer <= WIDE. eps: float, of the layer norm.
    Grid: (cdiv(height / 2 * width / 2, BLOCK), B).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDE)
    in_channel = tl.arange(0, DEEP)
    in_pixels = pixel < (height // 2) * (width // 2)
    in_outer = channel < outer
    in_inner = in_channel < inner
    first_row = 2 * (pixel // (width // 2)) - 1
    first_column = 2 * (pixel % (width // 2)) - 1
    image = x + tl.program_id(1).to(tl.int64) * height * width * inner
    accumulator = tl.zeros([BLOCK, WIDE], tl.float32)
    for tap in range(9):
        row = first_row + tap // 3
        column = first_column + tap % 3
        inside = in_pixels & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        tile_at = image + (row * width + column)[:, None] * inner + in_channel[None, :]
        tile = tl.load(tile_at, inside[:, None] & in_inner[None, :], 0.0)
        weight_at = weight + ((tap * inner + in_channel[:, None]) * outer + channel[None, :])
        matrix = tl.load(weight_at, in_outer[None, :] & in_inner[:, None], 0.0)
        matrix = matrix.to(tile.dtype)
        accumulator = tl.dot(tile, matrix, accumulator, input_precision=precision)
    accumulator += tl.load(bias + channel, in_outer, 0.0).to(tl.float32)[None, :]
    normed = normalize_tile(accumulator, in_outer, outer, norm_weight, norm_bias, channel, eps)
    value = gelu(normed)
    base = tl.program_id(1).to(tl.int64) * (height // 2) * (width // 2)
    offsets = (base + pixel)[:, None] * outer + channel[None, :]
    result = value.to(out.dtype.element_ty)
    tl.store(out + offsets, result, in_pixels[:, None] & in_outer[None, :])


@kernel
def depthwise_kernel(
    x,
    weight,
    bias,
    norm_weight,
    norm_bias,
    out,
    height,
    width,
    channels,
    eps,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK pixels of a 7 x 7 convolution of each channel alone, and the norm after it.

    Pointers, all contiguous:
    x: [B, height, width, channels], any float dtype.
    weight: [7 * 7, channels], any float dtype.
    bias: [channels], any float dtype.
    norm_weight, norm_bias: of the layer norm [channels], any float dtype.
    out: [B, height, width, channels], any float dtype.

    height, width, channels: int; channels <= WIDE. eps: float, of the layer norm.
    Grid: (cdiv(height * width, BLOCK), B).
    """
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDE)
    in_pixels = pixel < height * width
    in_channels = channel < channels
    first_row = pixel // width - 3
    first_column = pixel % width - 3
    base = tl.program_id(1).to(tl.int64) * height * width
    accumulator = tl.zeros([BLOCK, WIDE], tl.float32)
    for tap in range(49):
        row = first_row + tap // 7
        column = first_column + tap % 7
        inside = in_pixels & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        x_at = x + (base + row * width + column)[:, None] * channels + channel[None, :]
        tile = tl.load(x_at, inside[:, None] & in_channels[None, :], 0.0)
        tile = tile.to(tl.float32)
        tap_weight = tl.load(weight + tap * channels + channel, in_channels, 0.0).to(tl.float32)
        accumulator += tile * tap_weight[None, :]
    accumulator += tl.load(bias + channel, in_channels, 0.0).to(tl.float32)[None, :]
    value = normalize_tile(accumulator, in_channels, channels, norm_weight, norm_bias, channel, eps)
    offsets = (base + pixel)[:, None] * channels + channel[None, :]
    result = value.to(out.dtype.element_ty)
    tl.store(out + offsets, result, in_pixels[:, None] & in_channels[None, :])


def first(
    logits: Tensor,
    size: tuple[int, int],
    convolution: Convolution,
    binarize: bool,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """logits: [B, H, W] -> [B, size / 2, C] in dtype. The weight is [C, 9]; all contiguous."""
    batch, low_height, low_width = logits.shape
    height, width = size
    channels = len(convolution.bias)
    out = logits.new_empty(batch, height // 2, width // 2, channels, dtype=dtype)
    with torch.cuda.device_of(logits):
        first_kernel[triton.cdiv((height // 2) * (width // 2), FIRST), batch](
            logits=logits,
            weight=convolution.weight,
            bias=convolution.bias,
            norm_weight=convolution.norm_weight,
            norm_bias=convolution.norm_bias,
            out=out,
            low_height=low_height,
            low_width=low_width,
            height=height,
            width=width,
            channels=channels,
            eps=eps,
            BINARIZE=binarize,
            WIDE=max(triton.next_power_of_2(channels), 4),
            BLOCK=FIRST,
            num_warps=4,
        )
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


def down(x: Tensor, convolution: Convolution, eps: float) -> Tensor:
    """x: [B, H, W, K] contiguous -> [B, H / 2, W / 2, C], after norm and GELU."""
    batch, height, width, inner = x.shape
    outer = convolution.weight.shape[2]
    out = x.new_empty(batch, height // 2, width // 2, outer)
    wide = max(triton.next_power_of_2(outer), 16)
    size = x.element_size()
    default = down_form(wide, size, capability_of(x))
    forms: list[Form] = [(64, 8, 2), (32, 8, 1), (64, 4, 2), (128, 4, 2), "library"]
    others = [] if size == 4 else forms
    if wide > 64:
        spilling = ((64, 4, 2), (128, 4, 2))
        others = [form for form in others if form not in spilling]
    form = choose(x.device, "down", (size, inner, outer, height, width), default, others)
    if isinstance(form, str):
        y = convolved(x, convolution, eps, stride=2, padding=1, groups=1)
        return F.gelu(y).contiguous()
    block, warps, stages = form
    with torch.cuda.device_of(x):
        down_kernel[triton.cdiv((height // 2) * (width // 2), block), batch](
            x=x,
            weight=convolution.weight,
            bias=convolution.bias,
            norm_weight=convolution.norm_weight,
            norm_bias=convolution.norm_bias,
            out=out,
            height=height,
            width=width,
            inner=inner,
            outer=outer,
            eps=eps,
            DEEP=max(triton.next_power_of_2(inner), 16),
            WIDE=wide,
            BLOCK=block,
            EXACT=x.dtype == torch.float32,
            num_warps=warps,
            num_stages=stages,
        )
    return out


def depthwise(x: Tensor, convolution: Convolution, eps: float, dtype: torch.dtype) -> Tensor:
    """x: [B, h, w, C] -> [B, h, w, C] in dtype, after the norm. weight [49, C]; all contiguous."""
    batch, height, width, channels = x.shape
    out = torch.empty_like(x, dtype=dtype)
    size = x.element_size()
    forms: list[Form] = [(16, 8), (8, 4), (32, 8), "library"]
    others = [] if size == 4 else forms
    form = choose(x.device, "depthwise", (size, channels, height, width), (TOKENS, 4), others)
    if isinstance(form, str):
        y = convolved(x, convolution, eps, stride=1, padding=3, groups=channels)
        return y.to(dtype).contiguous()
    block, warps = form
    with torch.cuda.device_of(x):
        depthwise_kernel[triton.cdiv(height * width, block), batch](
            x=x,
            weight=convolution.weight,
            bias=convolution.bias,
            norm_weight=convolution.norm_weight,
            norm_bias=convolution.norm_bias,
            out=out,
            height=height,
            width=width,
            channels=channels,
            eps=eps,
            WIDE=max(triton.next_power_of_2(channels), 16),
            BLOCK=block,
            num_warps=warps,
        )
    return out
