"""Windowed attention in Triton: windows are gathered as they are read and scattered as they are
written; no partition lies in memory.

Heads of 56, 72 and 96 channels are taken as 32 + 32, 64 + 16 and 64 + 32, so that few channels are
padding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from sam2_fast.kernels.attention import LOG2_E
from sam2_fast.kernels.choices import choose
from sam2_fast.kernels.launch import capability_of, kernel
from sam2_fast.kernels.window_forms import forms, is_regular, parts, shape
from torch import Tensor


@triton.jit
def _window_tokens(
    number,
    first,
    count,
    height,
    width,
    columns,
    tall: tl.constexpr,
    wide: tl.constexpr,
    by: tl.constexpr,
):
    """Windows, rows and columns in the grid, and validity of tokens `number` of the windows that
    begin with `first`; `by`: every by-th token."""
    tokens = (tall // by) * (wide // by)
    local = number // tokens
    inner = number % tokens
    window = first + local
    y = window // columns * tall + inner // (wide // by) * by
    x = window % columns * wide + inner % (wide // by) * by
    return local, y, x, (window < count) & (y < height) & (x < width)


@triton.jit
def _rows(base, y, x, width, channels, first, channel, head: tl.constexpr, valid):
    """Channels `channel` from `first` on, of tokens (y, x)."""
    # offsets within an image: 32 bits
    offsets = ((y * width + x) * channels)[:, None] + (first + channel)[None, :]
    return tl.load(base + offsets, mask=valid[:, None] & (channel < head)[None, :], other=0.0)


@triton.jit
def _pooled_rows(base, y, x, width, channels, first, channel, head: tl.constexpr, valid):
    """The largest of 2 x 2 tokens, in the dtype of `base`: Triton 3.6 takes maxima of bf16 in
    float32."""
    upper = tl.maximum(
        _rows(base, y, x, width, channels, first, channel, head, valid),
        _rows(base, y, x + 1, width, channels, first, channel, head, valid),
    )
    lower = tl.maximum(
        _rows(base, y + 1, x, width, channels, first, channel, head, valid),
        _rows(base, y + 1, x + 1, width, channels, first, channel, head, valid),
    )
    return tl.maximum(upper, lower).to(base.dtype.element_ty)


@triton.jit
def _channels(pointer, offsets, channel, head: tl.constexpr, WHOLE: tl.constexpr):
    """Channels of tokens at `pointer` + offsets; those beyond the head are 0. WHOLE: all are within
    it."""
    if WHOLE:
        return tl.load(pointer + offsets[:, None] + channel[None, :])
    in_head = channel[None, :] < head
    return tl.load(pointer + offsets[:, None] + channel[None, :], mask=in_head, other=0.0)


@triton.jit
def _update_online_softmax(
    scores,
    v_low,
    v_rest,
    state,
    scale,
    precision: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """State after one more tile of keys: running maximum of raw scores, running sum, accumulators.

    PARTIAL: a row may have no key so far.
    """
    running_max, running_sum, low_accumulator, rest_accumulator = state
    new_max = tl.maximum(running_max, tl.max(scores, 1))
    level = tl.where(new_max == float("-inf"), 0.0, new_max) if PARTIAL else new_max
    weights = tl.exp2(scores * scale - (level * scale)[:, None])
    rescale = tl.exp2((running_max - level) * scale)
    running_sum = running_sum * rescale + tl.sum(weights, 1)
    weights = weights.to(v_low.dtype)
    low_accumulator = low_accumulator * rescale[:, None]
    low_accumulator = tl.dot(weights, v_low, low_accumulator, input_precision=precision)
    rest_accumulator = rest_accumulator * rescale[:, None]
    rest_accumulator = tl.dot(weights, v_rest, rest_accumulator, input_precision=precision)
    return new_max, running_sum, low_accumulator, rest_accumulator


@kernel
def window_kernel(
    qkv,
    pad,
    out,
    height,
    width,
    columns,
    count,
    blocks,
    heads,
    scale,
    tall: tl.constexpr,
    wide: tl.constexpr,
    head: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PACK: tl.constexpr,
    LOW: tl.constexpr,
    REST: tl.constexpr,
    POOL: tl.constexpr,
    PADDED: tl.constexpr,
    REGULAR: tl.constexpr,
    EXACT: tl.constexpr,
):
    """A block of queries of PACK windows of tall x wide tokens, one head, one image.

    Pointers, all contiguous:
    qkv: [B, height, width, 3 * heads * head], compute dtype.
    pad: query, key and value of a padded token [3 * heads * head], compute dtype; PADDED.
    out: [B, height, width, heads * head], compute dtype; POOL: [B, height / 2, width / 2, .].

    height, width: int, of the grid. columns, count: int, windows side by side, and in all. blocks:
    int, of queries for PACK windows. heads: int. scale: float, of scores to logarithms of 2. tall
    and wide are constants, since the place of every token takes divisions by them. REGULAR: BLOCK_K
    keys are whole rows of one window that lies in the grid, so that their places differ from tile
    to tile by a constant. PADDED: the padded tokens of a window that extends beyond the grid are
    one key with the score of `pad` and the logarithm of their number added.
    Grid: (cdiv(count, PACK) * blocks, heads, B).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    by: tl.constexpr = 2 if POOL else 1
    first = tl.program_id(0) // blocks * PACK
    block = tl.program_id(0) % blocks
    channels = 3 * heads * head
    head_start = tl.program_id(1) * head
    base = qkv + tl.program_id(2).to(tl.int64) * height * width * channels
    low = tl.arange(0, LOW)
    rest = LOW + tl.arange(0, REST)
    query = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query_window, y, x, query_valid = _window_tokens(
        query, first, count, height, width, columns, tall, wide, by
    )
    query_valid = query_valid & (query_window < PACK)
    if POOL:
        q_low = _pooled_rows(base, y, x, width, channels, head_start, low, head, query_valid)
        q_rest = _pooled_rows(base, y, x, width, channels, head_start, rest, head, query_valid)
    else:
        q_low = _rows(base, y, x, width, channels, head_start, low, head, query_valid)
        q_rest = _rows(base, y, x, width, channels, head_start, rest, head, query_valid)
    running_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_Q], tl.float32)
    low_accumulator = tl.zeros([BLOCK_Q, LOW], tl.float32)
    rest_accumulator = tl.zeros([BLOCK_Q, REST], tl.float32)
    if PADDED:
        # window rows and columns that lie in the grid
        window = first + query_window
        inside_y = tl.minimum(height - window // columns * tall, tall)
        inside_x = tl.minimum(width - window % columns * wide, wide)
        missing = tall * wide - inside_y * inside_x
        pad_key = pad + heads * head + head_start
        key_low = tl.load(pad_key + low, mask=low < head, other=0.0).to(tl.float32)
        key_rest = tl.load(pad_key + rest, mask=rest < head, other=0.0).to(tl.float32)
        score = tl.sum(q_low.to(tl.float32) * key_low[None, :], 1)
        score = score + tl.sum(q_rest.to(tl.float32) * key_rest[None, :], 1)
        padded = query_valid & (missing > 0)
        log_missing = tl.log2(tl.maximum(missing, 1).to(tl.float32)) / scale
        running_max = tl.where(padded, score + log_missing, float("-inf"))
        running_sum = tl.where(padded, 1.0, 0.0)
        pad_value = pad + 2 * heads * head + head_start
        value_low = tl.load(pad_value + low, mask=low < head, other=0.0).to(tl.float32)
        value_rest = tl.load(pad_value + rest, mask=rest < head, other=0.0).to(tl.float32)
        low_accumulator += running_sum[:, None] * value_low[None, :]
        rest_accumulator += running_sum[:, None] * value_rest[None, :]
    state = (running_max, running_sum, low_accumulator, rest_accumulator)
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
            state = _update_online_softmax(scores, v_low, v_rest, state, scale, precision, False)
    else:
        for begin in range(0, PACK * tall * wide, BLOCK_K):
            key = begin + tl.arange(0, BLOCK_K)
            key_window, ky, kx, key_valid = _window_tokens(
                key, first, count, height, width, columns, tall, wide, 1
            )
            key_valid = key_valid & (key_window < PACK)
            k_start = heads * head + head_start
            k_low = _rows(base, ky, kx, width, channels, k_start, low, head, key_valid)
            k_rest = _rows(base, ky, kx, width, channels, k_start, rest, head, key_valid)
            scores = tl.dot(q_low, tl.trans(k_low), input_precision=precision)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision=precision)
            valid = key_valid[None, :] & (query_window[:, None] == key_window[None, :])
            scores = tl.where(valid, scores, float("-inf"))
            v_start = 2 * heads * head + head_start
            v_low = _rows(base, ky, kx, width, channels, v_start, low, head, key_valid)
            v_rest = _rows(base, ky, kx, width, channels, v_start, rest, head, key_valid)
            state = _update_online_softmax(scores, v_low, v_rest, state, scale, precision, True)
    running_max, running_sum, low_accumulator, rest_accumulator = state
    inverse = (1.0 / tl.where(query_valid, running_sum, 1.0))[:, None]
    image_rows = tl.program_id(2).to(tl.int64) * (height // by)
    token = (image_rows + y // by) * (width // by) + x // by
    out_at = out + token[:, None] * (heads * head) + head_start
    low_at = out_at + low[None, :]
    low_result = (low_accumulator * inverse).to(out.dtype.element_ty)
    tl.store(low_at, low_result, mask=query_valid[:, None] & (low < head)[None, :])
    rest_at = out_at + rest[None, :]
    rest_result = (rest_accumulator * inverse).to(out.dtype.element_ty)
    tl.store(rest_at, rest_result, mask=query_valid[:, None] & (rest < head)[None, :])


def window_attention(qkv: Tensor, pad: Tensor, num_heads: int, window: int, pool: bool) -> Tensor:
    """As `sam2_fast.ops.window_attention`, for contiguous tensors of one dtype, on the current
    stream."""
    batch, height, width, channels = qkv.shape
    by = 2 if pool else 1
    head = channels // 3 // num_heads
    out = qkv.new_empty(batch, height // by, width // by, channels // 3)
    if out.numel() == 0:
        return out
    tall, wide = (window, window) if window else (height, width)
    rows = triton.cdiv(height, tall)
    columns = triton.cdiv(width, wide)
    pack = shape(tall, wide, by)[2]
    size = qkv.element_size()
    capability = capability_of(qkv)
    padded = rows * tall != height or columns * wide != width
    options = forms(tall, wide, by, head, capability, padded, size)
    key = (size, head, num_heads, tall, wide, by, int(padded))
    form = choose(qkv.device, "window", key, options[0], options)
    if isinstance(form, str):
        return _by_library(qkv, num_heads, tall, wide, by)
    block_q, block_k, num_warps, stages = form
    low, rest = parts(head)
    blocks = triton.cdiv(pack * (tall // by) * (wide // by), block_q)
    with torch.cuda.device_of(qkv):
        window_kernel[triton.cdiv(rows * columns, pack) * blocks, num_heads, batch](
            qkv=qkv,
            pad=pad,
            out=out,
            height=height,
            width=width,
            columns=columns,
            count=rows * columns,
            blocks=blocks,
            heads=num_heads,
            scale=LOG2_E * head**-0.5,
            tall=tall,
            wide=wide,
            head=head,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            PACK=pack,
            LOW=low,
            REST=rest,
            POOL=pool,
            PADDED=padded,
            REGULAR=pack == 1 and not padded and is_regular(tall, wide, block_k),
            EXACT=qkv.dtype == torch.float32,
            num_warps=num_warps,
            num_stages=stages,
        )
    return out


def _by_library(qkv: Tensor, num_heads: int, tall: int, wide: int, by: int) -> Tensor:
    """The same by torch, for windows that divide the grid; those of the whole grid are not
    copied."""
    batch, height, width, channels = qkv.shape
    windows = qkv.view(batch, height // tall, tall, width // wide, wide, 3, num_heads, -1)
    # [3, B * windows, heads, tall, wide, d]
    windows = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(1, 3)
    q, k, v = windows.unbind(0)
    if by == 2:
        q = q.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    # [B * windows, heads, queries, d]
    result = F.scaled_dot_product_attention(*(x.flatten(2, 3) for x in (q, k, v)))
    sizes = (batch, height // tall, width // wide, num_heads, tall // by, wide // by, -1)
    grid = result.view(sizes).permute(0, 1, 4, 2, 5, 3, 6)
    return grid.reshape(batch, height // by, width // by, channels // 3)
