"""Windowed attention in Triton: windows are gathered as they are read and scattered as they are written; no partition lies in memory.

Heads of 56, 72 and 96 channels are taken as 32 + 32, 64 + 16 and 64 + 32: little is computed that nobody wants.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from sam2_fast.kernels.choices import Form, choose
from sam2_fast.kernels.launch import HOPPER, capability_of, kernel
from torch import Tensor


@triton.jit
def _places(number, first, count, height, width, columns, tall: tl.constexpr, wide: tl.constexpr, by: tl.constexpr):
    """Windows, and rows and columns in the grid, of tokens `number` of the windows that begin with `first`; `by`: every by-th token."""
    tokens = (tall // by) * (wide // by)
    local = number // tokens
    inner = number % tokens
    window = first + local
    y = window // columns * tall + inner // (wide // by) * by
    x = window % columns * wide + inner % (wide // by) * by
    return local, y, x, (window < count) & (y < height) & (x < width)


@triton.jit
def _row(base, y, x, width, channels, first, channel, head: tl.constexpr, here):
    """Channels `channel` from `first` on, of tokens (y, x)."""
    at = ((y * width + x) * channels)[:, None] + (first + channel)[None, :]  # within an image: 32 bits
    return tl.load(base + at, mask=here[:, None] & (channel < head)[None, :], other=0.0)


@triton.jit
def _pooled(base, y, x, width, channels, first, channel, head: tl.constexpr, here):
    """The largest of 2 x 2 tokens, in the dtype of `base`: Triton 3.6 takes maxima of bf16 in float32."""
    high = tl.maximum(
        _row(base, y, x, width, channels, first, channel, head, here),
        _row(base, y, x + 1, width, channels, first, channel, head, here),
    )
    low = tl.maximum(
        _row(base, y + 1, x, width, channels, first, channel, head, here),
        _row(base, y + 1, x + 1, width, channels, first, channel, head, here),
    )
    return tl.maximum(high, low).to(base.dtype.element_ty)


@triton.jit
def _channels(pointer, offsets, channel, head: tl.constexpr, WHOLE: tl.constexpr):
    """Channels of tokens at `pointer` + offsets; those beyond the head are 0. WHOLE: all are within it."""
    if WHOLE:
        return tl.load(pointer + offsets[:, None] + channel[None, :])
    return tl.load(pointer + offsets[:, None] + channel[None, :], mask=channel[None, :] < head, other=0.0)


@triton.jit
def _online_softmax(
    scores, v_low, v_rest, running_max, running_sum, sum_low, sum_rest, scale, precision: tl.constexpr, PARTIAL: tl.constexpr
):
    """Running maximum of raw scores, sum and accumulators after a tile of keys. PARTIAL: a row may have no key so far."""
    new_max = tl.maximum(running_max, tl.max(scores, 1))
    level = tl.where(new_max == float("-inf"), 0.0, new_max) if PARTIAL else new_max
    weights = tl.exp2(scores * scale - (level * scale)[:, None])
    rescale = tl.exp2((running_max - level) * scale)
    running_sum = running_sum * rescale + tl.sum(weights, 1)
    weights = weights.to(v_low.dtype)
    sum_low = tl.dot(weights, v_low, sum_low * rescale[:, None], input_precision=precision)
    sum_rest = tl.dot(weights, v_rest, sum_rest * rescale[:, None], input_precision=precision)
    return new_max, running_sum, sum_low, sum_rest


@kernel
def window_kernel(
    qkv, pad, out, height, width, columns, count, blocks, heads, scale,
    tall: tl.constexpr, wide: tl.constexpr, head: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PACK: tl.constexpr, LOW: tl.constexpr, REST: tl.constexpr,
    POOL: tl.constexpr, PADDED: tl.constexpr, REGULAR: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A block of queries of PACK windows of tall x wide tokens, one head, one image. qkv: [B, height, width, 3 * heads * head].

    columns, count: windows side by side, and in all; blocks: of queries for PACK windows; scale: to logarithms of 2. tall and wide are
    constants, since the place of every token takes divisions by them. REGULAR: BLOCK_K keys are whole rows of one window that lies in
    the grid, so that their places differ from tile to tile by a constant. Padded tokens of a window that sticks out are one key with the
    score of `pad` and the logarithm of their number added.
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    by: tl.constexpr = 2 if POOL else 1
    first, block = tl.program_id(0) // blocks * PACK, tl.program_id(0) % blocks
    channels = 3 * heads * head
    head_start = tl.program_id(1) * head
    base = qkv + tl.program_id(2).to(tl.int64) * height * width * channels
    low, rest = tl.arange(0, LOW), LOW + tl.arange(0, REST)
    query = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query_window, y, x, query_valid = _places(query, first, count, height, width, columns, tall, wide, by)
    query_valid = query_valid & (query_window < PACK)
    if POOL:
        q_low = _pooled(base, y, x, width, channels, head_start, low, head, query_valid)
        q_rest = _pooled(base, y, x, width, channels, head_start, rest, head, query_valid)
    else:
        q_low = _row(base, y, x, width, channels, head_start, low, head, query_valid)
        q_rest = _row(base, y, x, width, channels, head_start, rest, head, query_valid)
    high = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    sum_low = tl.zeros([BLOCK_Q, LOW], tl.float32)
    sum_rest = tl.zeros([BLOCK_Q, REST], tl.float32)
    if PADDED:
        # window rows and columns that lie in the grid
        window = first + query_window
        inside_y = tl.minimum(height - window // columns * tall, tall)
        inside_x = tl.minimum(width - window % columns * wide, wide)
        missing = tall * wide - inside_y * inside_x
        key_low = tl.load(pad + heads * head + head_start + low, mask=low < head, other=0.0).to(tl.float32)
        key_rest = tl.load(pad + heads * head + head_start + rest, mask=rest < head, other=0.0).to(tl.float32)
        score = tl.sum(q_low.to(tl.float32) * key_low[None, :], 1) + tl.sum(q_rest.to(tl.float32) * key_rest[None, :], 1)
        padded = query_valid & (missing > 0)
        high = tl.where(padded, score + tl.log2(tl.maximum(missing, 1).to(tl.float32)) / scale, float("-inf"))
        total = tl.where(padded, 1.0, 0.0)
        value_low = tl.load(pad + 2 * heads * head + head_start + low, mask=low < head, other=0.0).to(tl.float32)
        value_rest = tl.load(pad + 2 * heads * head + head_start + rest, mask=rest < head, other=0.0).to(tl.float32)
        sum_low += total[:, None] * value_low[None, :]
        sum_rest += total[:, None] * value_rest[None, :]
    if REGULAR:
        key = tl.arange(0, BLOCK_K)
        offsets = (key // wide * width + key % wide) * channels
        corner = first // columns * tall * width + first % columns * wide
        source = base + corner * channels + heads * head + head_start
        for begin in range(0, tall * wide, BLOCK_K):
            keys = source + begin // wide * width * channels
            values = keys + heads * head
            k_low = _channels(keys, offsets, low, head, head >= LOW)
            k_rest = _channels(keys, offsets, rest, head, head >= LOW + REST)
            v_low = _channels(values, offsets, low, head, head >= LOW)
            v_rest = _channels(values, offsets, rest, head, head >= LOW + REST)
            scores = tl.dot(q_low, tl.trans(k_low), input_precision=precision)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision=precision)
            high, total, sum_low, sum_rest = _online_softmax(scores, v_low, v_rest, high, total, sum_low, sum_rest, scale, precision, False)
    else:
        for begin in range(0, PACK * tall * wide, BLOCK_K):
            key = begin + tl.arange(0, BLOCK_K)
            key_window, ky, kx, key_valid = _places(key, first, count, height, width, columns, tall, wide, 1)
            key_valid = key_valid & (key_window < PACK)
            k_low = _row(base, ky, kx, width, channels, heads * head + head_start, low, head, key_valid)
            k_rest = _row(base, ky, kx, width, channels, heads * head + head_start, rest, head, key_valid)
            scores = tl.dot(q_low, tl.trans(k_low), input_precision=precision)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision=precision)
            scores = tl.where(key_valid[None, :] & (query_window[:, None] == key_window[None, :]), scores, float("-inf"))
            v_low = _row(base, ky, kx, width, channels, 2 * heads * head + head_start, low, head, key_valid)
            v_rest = _row(base, ky, kx, width, channels, 2 * heads * head + head_start, rest, head, key_valid)
            high, total, sum_low, sum_rest = _online_softmax(scores, v_low, v_rest, high, total, sum_low, sum_rest, scale, precision, True)
    inverse = (1.0 / tl.where(query_valid, total, 1.0))[:, None]
    at = (tl.program_id(2).to(tl.int64) * (height // by) + y // by) * (width // by) + x // by
    to = out + at[:, None] * (heads * head) + head_start
    tl.store(to + low[None, :], (sum_low * inverse).to(out.dtype.element_ty), mask=query_valid[:, None] & (low < head)[None, :])
    tl.store(to + rest[None, :], (sum_rest * inverse).to(out.dtype.element_ty), mask=query_valid[:, None] & (rest < head)[None, :])


def parts(head: int) -> tuple[int, int]:
    """A head's channels as two powers of two, each 16 or more: 56 as 32 + 32, 72 as 64 + 16, 96 as 64 + 32."""
    low = max(triton.next_power_of_2(head) // 2, 16)
    return low, max(triton.next_power_of_2(max(head - low, 1)), 16)


def shape(tall: int, wide: int, by: int) -> tuple[int, int, int]:
    """Queries and keys of a block, and windows that share one: small ones are packed until they fill a tile."""
    keys = tall * wide
    pack = max(64 // keys, 1)
    queries = pack * (tall // by) * (wide // by)
    return max(min(triton.next_power_of_2(queries), 64), 16), max(min(triton.next_power_of_2(pack * keys), 64), 16), pack


WIDE_FORMS = ((64, 128, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 8, 2))
"""Queries and keys of a block, warps, stages, of windows that take several blocks of either."""


def warps(head: int, capability: int, padded: bool, pack: int) -> int:
    """Of a block. capability: 80, 86, 90... Four warps spill registers: of wide heads on 8.x, of padded windows without wgmma; eight
    of windows that share a tile."""
    if padded and capability not in HOPPER:
        return 8
    return 8 if head > 80 and capability < 90 and pack == 1 else 4


def forms(tall: int, wide: int, by: int, head: int, capability: int, padded: bool, size: int) -> list[Form]:
    """Queries and keys of a block, warps, stages; the first is the default, others fit and give the same.

    "library": torch's attention, where no window sticks out.
    """
    block_q, block_k, pack = shape(tall, wide, by)
    default = (block_q, block_k, warps(head, capability, padded, pack), 2)
    if padded or size == 4:
        return [default]
    if pack > 1 or tall * wide // by**2 < 128:
        return [default, "library"]
    regular: list[Form] = [form for form in WIDE_FORMS if is_regular(tall, wide, form[1])]
    first = [regular[0]] if capability in HOPPER and head <= 80 and regular else []
    return list(dict.fromkeys([*first, default, *regular, "library"]))


def is_regular(tall: int, wide: int, block_k: int) -> bool:
    """Whether `block_k` keys are whole rows of a window, and all blocks of it are whole."""
    return block_k % wide == 0 and tall * wide % block_k == 0


def window_attention(qkv: Tensor, pad: Tensor, num_heads: int, window: int, pool: bool) -> Tensor:
    """As `sam2_fast.ops.window_attention`, for contiguous tensors of one dtype, on the current stream."""
    batch, height, width, channels = qkv.shape
    by, head = 2 if pool else 1, channels // 3 // num_heads
    out = qkv.new_empty(batch, height // by, width // by, channels // 3)
    if out.numel() == 0:
        return out
    tall, wide = (window, window) if window else (height, width)
    rows, columns = triton.cdiv(height, tall), triton.cdiv(width, wide)
    pack, size, capability = shape(tall, wide, by)[2], qkv.element_size(), capability_of(qkv)
    padded = rows * tall != height or columns * wide != width
    options = forms(tall, wide, by, head, capability, padded, size)
    key = (size, head, num_heads, tall, wide, by, int(padded))
    form = choose(qkv.device, "window", key, options[0], options)
    if isinstance(form, str):
        return _by_library(qkv, num_heads, tall, wide, by)
    block_q, block_k, num_warps, stages = form
    blocks = triton.cdiv(pack * (tall // by) * (wide // by), block_q)
    with torch.cuda.device_of(qkv):
        window_kernel[triton.cdiv(rows * columns, pack) * blocks, num_heads, batch](
            qkv, pad, out, height, width, columns, rows * columns, blocks, num_heads, 1.4426950408889634 * head**-0.5,
            tall, wide, head, block_q, block_k, pack, *parts(head), pool, padded,
            pack == 1 and not padded and is_regular(tall, wide, block_k), qkv.dtype == torch.float32,
            num_warps=num_warps, num_stages=stages,
        )  # fmt: skip
    return out


def _by_library(qkv: Tensor, num_heads: int, tall: int, wide: int, by: int) -> Tensor:
    """The same by torch, for windows that divide the grid; those of the whole grid are not copied."""
    batch, height, width, channels = qkv.shape
    windows = qkv.view(batch, height // tall, tall, width // wide, wide, 3, num_heads, -1)
    windows = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(1, 3)  # [3, B * windows, heads, tall, wide, d]
    q, k, v = windows.unbind(0)
    if by == 2:
        q = q.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    found = F.scaled_dot_product_attention(*(x.flatten(2, 3) for x in (q, k, v)))  # [B * windows, heads, queries, d]
    grid = found.view(batch, height // tall, width // wide, num_heads, tall // by, wide // by, -1)
    return grid.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height // by, width // by, channels // 3)
