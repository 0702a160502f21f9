"""The memory encoder's convolutions in Triton, channels last, fused with norm and activation.

Its linear layers are `linear.linear`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from sam2_fast.kernels.activations import gelu
from sam2_fast.kernels.choices import Form, choose
from sam2_fast.kernels.convolution import Convolution, torch_convolution
from sam2_fast.kernels.launch import HOPPER, capability_of, kernel
from sam2_fast.kernels.layer_norm import normalize_tile
from torch import Tensor

FIRST_BLOCK = 128  # pixels of a program of `first_kernel`
DEPTHWISE_BLOCK = 16  # pixels of a program of `depthwise_kernel`


@triton.jit
def _samples(i, low_size, size):
    """The two of `low_size` samples around pixel i of `size`, and the weight of the second.

    As with align_corners=False.
    """
    position = tl.maximum((i.to(tl.float32) + 0.5) * (low_size / size) - 0.5, 0.0)
    first = tl.minimum(position.to(tl.int32), low_size - 1)
    second = tl.minimum(first + 1, low_size - 1)
    return first, second, tl.minimum(position - first.to(tl.float32), 1.0)


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
    """BLOCK pixels of a 3 x 3 convolution of stride 2 of a mask, then norm and GELU.

    The mask is interpolated from logits and never stored.

    Pointers, all contiguous:
    logits: [B, low_height, low_width], any float dtype.
    weight: [channels, 3 * 3], any float dtype.
    bias: [channels], any float dtype.
    norm_weight, norm_bias: of the layer norm [channels], any float dtype.
    out: [B, height / 2, width / 2, channels], any float dtype.

    low_height, low_width, height, width, channels: int; the mask has height x width pixels, and
    channels <= WIDE. eps: float, of the layer norm. A pixel is 20 sigmoid(logit) - 10; BINARIZE: it
    is 10 if the logit is above zero, else -10. Grid: (cdiv(height / 2 * width / 2, BLOCK), B).
    """
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDE)
    pixel_mask = pixel < (height // 2) * (width // 2)
    channel_mask = channel < channels
    y = pixel // (width // 2)
    x = pixel % (width // 2)
    image = logits + tl.program_id(1).to(tl.int64) * low_height * low_width
    accumulator = tl.zeros([BLOCK, WIDE], tl.float32)
    for tap in range(9):
        row = 2 * y + tap // 3 - 1
        column = 2 * x + tap % 3 - 1
        mask = pixel_mask & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        above, below, weight_y = _samples(row, low_height, height)
        left, right, weight_x = _samples(column, low_width, width)
        above_left = tl.load(image + above * low_width + left, mask, 0.0).to(tl.float32)
        above_right = tl.load(image + above * low_width + right, mask, 0.0).to(tl.float32)
        upper = (1 - weight_x) * above_left + weight_x * above_right
        below_left = tl.load(image + below * low_width + left, mask, 0.0).to(tl.float32)
        below_right = tl.load(image + below * low_width + right, mask, 0.0).to(tl.float32)
        lower = (1 - weight_x) * below_left + weight_x * below_right
        logit = (1 - weight_y) * upper + weight_y * lower
        value = tl.where(logit > 0, 1.0, 0.0) if BINARIZE else 1.0 / (1.0 + tl.exp(-logit))
        value = tl.where(mask, value * 20.0 - 10.0, 0.0)[:, None]
        tap_weight = tl.load(weight + channel * 9 + tap, channel_mask, 0.0).to(tl.float32)
        accumulator += value * tap_weight[None, :]
    accumulator += tl.load(bias + channel, channel_mask, 0.0).to(tl.float32)[None, :]
    normed = normalize_tile(
        accumulator, channel_mask, channels, norm_weight, norm_bias, channel, eps
    )
    value = gelu(normed)
    base = tl.program_id(1).to(tl.int64) * (height // 2) * (width // 2)
    offsets = (base + pixel)[:, None] * channels + channel[None, :]
    result = value.to(out.dtype.element_ty)
    tl.store(out + offsets, result, pixel_mask[:, None] & channel_mask[None, :])


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
    pixel_mask = pixel < (height // 2) * (width // 2)
    outer_mask = channel < outer
    inner_mask = in_channel < inner
    first_row = 2 * (pixel // (width // 2)) - 1
    first_column = 2 * (pixel % (width // 2)) - 1
    image = x + tl.program_id(1).to(tl.int64) * height * width * inner
    accumulator = tl.zeros([BLOCK, WIDE], tl.float32)
    for tap in range(9):
        row = first_row + tap // 3
        column = first_column + tap % 3
        mask = pixel_mask & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        tile_ptrs = image + (row * width + column)[:, None] * inner + in_channel[None, :]
        tile = tl.load(tile_ptrs, mask[:, None] & inner_mask[None, :], 0.0)
        weight_ptrs = weight + ((tap * inner + in_channel[:, None]) * outer + channel[None, :])
        matrix = tl.load(weight_ptrs, outer_mask[None, :] & inner_mask[:, None], 0.0)
        matrix = matrix.to(tile.dtype)
        accumulator = tl.dot(tile, matrix, accumulator, input_precision=precision)
    accumulator += tl.load(bias + channel, outer_mask, 0.0).to(tl.float32)[None, :]
    normed = normalize_tile(accumulator, outer_mask, outer, norm_weight, norm_bias, channel, eps)
    value = gelu(normed)
    base = tl.program_id(1).to(tl.int64) * (height // 2) * (width // 2)
    offsets = (base + pixel)[:, None] * outer + channel[None, :]
    result = value.to(out.dtype.element_ty)
    tl.store(out + offsets, result, pixel_mask[:, None] & outer_mask[None, :])


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
    """BLOCK pixels of a depthwise 7 x 7 convolution, then norm.

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
    pixel_mask = pixel < height * width
    channel_mask = channel < channels
    first_row = pixel // width - 3
    first_column = pixel % width - 3
    base = tl.program_id(1).to(tl.int64) * height * width
    accumulator = tl.zeros([BLOCK, WIDE], tl.float32)
    for tap in range(49):
        row = first_row + tap // 7
        column = first_column + tap % 7
        mask = pixel_mask & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        x_ptrs = x + (base + row * width + column)[:, None] * channels + channel[None, :]
        tile = tl.load(x_ptrs, mask[:, None] & channel_mask[None, :], 0.0)
        tile = tile.to(tl.float32)
        tap_weight = tl.load(weight + tap * channels + channel, channel_mask, 0.0).to(tl.float32)
        accumulator += tile * tap_weight[None, :]
    accumulator += tl.load(bias + channel, channel_mask, 0.0).to(tl.float32)[None, :]
    value = normalize_tile(
        accumulator, channel_mask, channels, norm_weight, norm_bias, channel, eps
    )
    offsets = (base + pixel)[:, None] * channels + channel[None, :]
    result = value.to(out.dtype.element_ty)
    tl.store(out + offsets, result, pixel_mask[:, None] & channel_mask[None, :])


def first_convolution(
    logits: Tensor,
    size: tuple[int, int],
    convolution: Convolution,
    binarize: bool,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """First convolution of the masks, after norm and GELU: [B, size / 2, C] in dtype.

    logits: [B, h, w], interpolated to masks of `size`. The weight is [C, 9]; all contiguous.
    """
    batch, low_height, low_width = logits.shape
    height, width = size
    channels = len(convolution.bias)
    out = logits.new_empty(batch, height // 2, width // 2, channels, dtype=dtype)
    with torch.cuda.device_of(logits):
        first_kernel[triton.cdiv((height // 2) * (width // 2), FIRST_BLOCK), batch](
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
            BLOCK=FIRST_BLOCK,
            num_warps=4,
        )
    return out


def down_form(padded_outer: int, size: int, capability: int) -> tuple[int, int, int]:
    """BLOCK, warps and stages of `down_kernel`.

    padded_outer: output channels as a power of two; size: bytes per element.
    """
    if size == 4:
        return 32, 4, 1
    if padded_outer > 64:
        return (64, 8, 2) if capability in HOPPER else (32, 8, 1)
    return (64 if padded_outer > 16 else 128), 4, 2


def downsample(x: Tensor, convolution: Convolution, eps: float) -> Tensor:
    """Convolution of stride 2, norm and GELU of contiguous x [B, H, W, K]: [B, H / 2, W / 2, C]."""
    batch, height, width, inner = x.shape
    outer = convolution.weight.shape[2]
    out = x.new_empty(batch, height // 2, width // 2, outer)
    padded_outer = max(triton.next_power_of_2(outer), 16)
    size = x.element_size()
    default = down_form(padded_outer, size, capability_of(x))
    forms: list[Form] = [(64, 8, 2), (32, 8, 1), (64, 4, 2), (128, 4, 2), "library"]
    alternatives = [] if size == 4 else forms
    if padded_outer > 64:
        spilling = ((64, 4, 2), (128, 4, 2))
        alternatives = [form for form in alternatives if form not in spilling]
    form = choose(x.device, "down", (size, inner, outer, height, width), default, alternatives)
    if isinstance(form, str):
        y = torch_convolution(x, convolution, eps, stride=2, padding=1, groups=1)
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
            WIDE=padded_outer,
            BLOCK=block,
            EXACT=x.dtype == torch.float32,
            num_warps=warps,
            num_stages=stages,
        )
    return out


def depthwise_convolution(
    x: Tensor, convolution: Convolution, eps: float, dtype: torch.dtype
) -> Tensor:
    """Depthwise convolution and norm of x [B, h, w, C]: the same shape, in dtype.

    The weight is [49, C]; all contiguous.
    """
    batch, height, width, channels = x.shape
    out = torch.empty_like(x, dtype=dtype)
    size = x.element_size()
    forms: list[Form] = [(16, 8), (8, 4), (32, 8), "library"]
    alternatives = [] if size == 4 else forms
    key = (size, channels, height, width)
    form = choose(x.device, "depthwise", key, (DEPTHWISE_BLOCK, 4), alternatives)
    if isinstance(form, str):
        y = torch_convolution(x, convolution, eps, stride=1, padding=3, groups=channels)
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
