"""Windowed attention in Triton. Windows are gathered on load and scattered on store.

The partition into windows is never stored. Heads of 56, 72 and 96 channels are processed as
32 + 32, 64 + 16 and 64 + 32 channels, which needs less padding than one power of two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from sam2_fast.kernels.attention import LOG2_E
from sam2_fast.kernels.choices import choose
from sam2_fast.kernels.launch import capability_of, kernel
from sam2_fast.kernels.window_forms import forms, is_regular, split_head_dim, tile_shape
from torch import Tensor


@triton.jit
def _window_tokens(
    index,
    first_window,
    count,
    height,
    width,
    columns,
    window_height: tl.constexpr,
    window_width: tl.constexpr,
    step: tl.constexpr,
):
    """Window, row and column in the grid, and validity of the tokens `index`.

    Indices and the returned windows count from `first_window`. step: only every step-th row and
    column of a window is counted.
    """
    tokens = (window_height // step) * (window_width // step)
    local_window = index // tokens
    local_token = index % tokens
    window = first_window + local_window
    y = window // columns * window_height + local_token // (window_width // step) * step
    x = window % columns * window_width + local_token % (window_width // step) * step
    return local_window, y, x, (window < count) & (y < height) & (x < width)


@triton.jit
def _load_tokens(base, y, x, width, channels, start, channel, head_dim: tl.constexpr, valid):
    """Channels `start + channel` of the tokens at (y, x), zeros past `head_dim` channels."""
    # offsets within an image fit 32 bits
    offsets = ((y * width + x) * channels)[:, None] + (start + channel)[None, :]
    return tl.load(base + offsets, mask=valid[:, None] & (channel < head_dim)[None, :], other=0.0)


@triton.jit
def _load_pooled_tokens(base, y, x, width, channels, start, channel, head_dim: tl.constexpr, valid):
    """As `_load_tokens`, max-pooled over 2 x 2 tokens, in the dtype of `base`."""
    upper = tl.maximum(
        _load_tokens(base, y, x, width, channels, start, channel, head_dim, valid),
        _load_tokens(base, y, x + 1, width, channels, start, channel, head_dim, valid),
    )
    lower = tl.maximum(
        _load_tokens(base, y + 1, x, width, channels, start, channel, head_dim, valid),
        _load_tokens(base, y + 1, x + 1, width, channels, start, channel, head_dim, valid),
    )
    # in Triton 3.6, tl.maximum of bfloat16 returns float32
    return tl.maximum(upper, lower).to(base.dtype.element_ty)


@triton.jit
def _load_channels(pointer, offsets, channel, head_dim: tl.constexpr, UNMASKED: tl.constexpr):
    """Channels of the tokens at `pointer + offsets`, zeros past `head_dim` channels.

    UNMASKED: all channels are below head_dim.
    """
    if UNMASKED:
        return tl.load(pointer + offsets[:, None] + channel[None, :])
    mask = channel[None, :] < head_dim
    return tl.load(pointer + offsets[:, None] + channel[None, :], mask=mask, other=0.0)


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

    PARTIAL: a row may have only masked keys so far.
    """
    running_max, running_sum, low_accumulator, rest_accumulator = state
    new_max = tl.maximum(running_max, tl.max(scores, 1))
    finite_max = tl.where(new_max == float("-inf"), 0.0, new_max) if PARTIAL else new_max
    weights = tl.exp2(scores * scale - (finite_max * scale)[:, None])
    rescale = tl.exp2((running_max - finite_max) * scale)
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
    window_height: tl.constexpr,
    window_width: tl.constexpr,
    head_dim: tl.constexpr,
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
    """Attention of a block of queries of PACK windows, one head, one image.

    Pointers, all contiguous:
    qkv: [B, height, width, 3 * heads * head_dim], compute dtype.
    pad: query, key and value of a padded token [3 * heads * head_dim], compute dtype; only if
        PADDED.
    out: [B, height, width, heads * head_dim], or [B, height / 2, width / 2, heads * head_dim] if
        POOL, compute dtype.

    height, width: int, of the grid of tokens. columns: int, windows in a row of the grid. count:
    int, windows of an image. blocks: int, blocks of queries for PACK windows. heads: int. scale:
    float, factor that turns scores into base-2 logits. window_height, window_width: constants,
    since the position of each token takes divisions by them. LOW, REST: the two powers of two into
    which head_dim is split. REGULAR: BLOCK_K keys are entire rows of a single window within the
    grid, so that their positions differ from tile to tile by a constant. PADDED: all padded tokens
    of a window that extends beyond the grid are one key; its score is that of `pad` plus the
    logarithm of their number. Grid: (cdiv(count, PACK) * blocks, heads, B).
    """
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    step: tl.constexpr = 2 if POOL else 1
    first_window = tl.program_id(0) // blocks * PACK
    block = tl.program_id(0) % blocks
    channels = 3 * heads * head_dim
    head_start = tl.program_id(1) * head_dim
    base = qkv + tl.program_id(2).to(tl.int64) * height * width * channels
    low = tl.arange(0, LOW)
    rest = LOW + tl.arange(0, REST)
    query = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query_window, y, x, query_valid = _window_tokens(
        query, first_window, count, height, width, columns, window_height, window_width, step
    )
    query_valid = query_valid & (query_window < PACK)
    if POOL:
        q_low = _load_pooled_tokens(
            base, y, x, width, channels, head_start, low, head_dim, query_valid
        )
        q_rest = _load_pooled_tokens(
            base, y, x, width, channels, head_start, rest, head_dim, query_valid
        )
    else:
        q_low = _load_tokens(base, y, x, width, channels, head_start, low, head_dim, query_valid)
        q_rest = _load_tokens(base, y, x, width, channels, head_start, rest, head_dim, query_valid)
    running_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_Q], tl.float32)
    low_accumulator = tl.zeros([BLOCK_Q, LOW], tl.float32)
    rest_accumulator = tl.zeros([BLOCK_Q, REST], tl.float32)
    if PADDED:
        # rows and columns of the window within the grid
        window = first_window + query_window
        valid_rows = tl.minimum(height - window // columns * window_height, window_height)
        valid_columns = tl.minimum(width - window % columns * window_width, window_width)
        num_padded = window_height * window_width - valid_rows * valid_columns
        pad_key = pad + heads * head_dim + head_start
        key_low = tl.load(pad_key + low, mask=low < head_dim, other=0.0).to(tl.float32)
        key_rest = tl.load(pad_key + rest, mask=rest < head_dim, other=0.0).to(tl.float32)
        score = tl.sum(q_low.to(tl.float32) * key_low[None, :], 1)
        score = score + tl.sum(q_rest.to(tl.float32) * key_rest[None, :], 1)
        has_padding = query_valid & (num_padded > 0)
        log_padded = tl.log2(tl.maximum(num_padded, 1).to(tl.float32)) / scale
        running_max = tl.where(has_padding, score + log_padded, float("-inf"))
        running_sum = tl.where(has_padding, 1.0, 0.0)
        pad_value = pad + 2 * heads * head_dim + head_start
        value_low = tl.load(pad_value + low, mask=low < head_dim, other=0.0).to(tl.float32)
        value_rest = tl.load(pad_value + rest, mask=rest < head_dim, other=0.0).to(tl.float32)
        low_accumulator += running_sum[:, None] * value_low[None, :]
        rest_accumulator += running_sum[:, None] * value_rest[None, :]
    state = (running_max, running_sum, low_accumulator, rest_accumulator)
    if REGULAR:
        key = tl.arange(0, BLOCK_K)
        offsets = (key // window_width * width + key % window_width) * channels
        corner_row = first_window // columns * window_height
        corner = corner_row * width + first_window % columns * window_width
        first_keys = base + corner * channels + heads * head_dim + head_start
        for start in range(0, window_height * window_width, BLOCK_K):
            keys = first_keys + start // window_width * width * channels
            values = keys + heads * head_dim
            k_low = _load_channels(keys, offsets, low, head_dim, head_dim >= LOW)
            k_rest = _load_channels(keys, offsets, rest, head_dim, head_dim >= LOW + REST)
            v_low = _load_channels(values, offsets, low, head_dim, head_dim >= LOW)
            v_rest = _load_channels(values, offsets, rest, head_dim, head_dim >= LOW + REST)
            scores = tl.dot(q_low, tl.trans(k_low), input_precision=precision)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision=precision)
            state = _update_online_softmax(scores, v_low, v_rest, state, scale, precision, False)
    else:
        for start in range(0, PACK * window_height * window_width, BLOCK_K):
            key = start + tl.arange(0, BLOCK_K)
            key_window, key_y, key_x, key_valid = _window_tokens(
                key, first_window, count, height, width, columns, window_height, window_width, 1
            )
            key_valid = key_valid & (key_window < PACK)
            k_start = heads * head_dim + head_start
            k_low = _load_tokens(
                base, key_y, key_x, width, channels, k_start, low, head_dim, key_valid
            )
            k_rest = _load_tokens(
                base, key_y, key_x, width, channels, k_start, rest, head_dim, key_valid
            )
            scores = tl.dot(q_low, tl.trans(k_low), input_precision=precision)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision=precision)
            mask = key_valid[None, :] & (query_window[:, None] == key_window[None, :])
            scores = tl.where(mask, scores, float("-inf"))
            v_start = 2 * heads * head_dim + head_start
            v_low = _load_tokens(
                base, key_y, key_x, width, channels, v_start, low, head_dim, key_valid
            )
            v_rest = _load_tokens(
                base, key_y, key_x, width, channels, v_start, rest, head_dim, key_valid
            )
            state = _update_online_softmax(scores, v_low, v_rest, state, scale, precision, True)
    running_max, running_sum, low_accumulator, rest_accumulator = state
    inverse = (1.0 / tl.where(query_valid, running_sum, 1.0))[:, None]
    image_rows = tl.program_id(2).to(tl.int64) * (height // step)
    token = (image_rows + y // step) * (width // step) + x // step
    out_ptrs = out + token[:, None] * (heads * head_dim) + head_start
    low_ptrs = out_ptrs + low[None, :]
    low_result = (low_accumulator * inverse).to(out.dtype.element_ty)
    tl.store(low_ptrs, low_result, mask=query_valid[:, None] & (low < head_dim)[None, :])
    rest_ptrs = out_ptrs + rest[None, :]
    rest_result = (rest_accumulator * inverse).to(out.dtype.element_ty)
    tl.store(rest_ptrs, rest_result, mask=query_valid[:, None] & (rest < head_dim)[None, :])


def window_attention(qkv: Tensor, pad: Tensor, num_heads: int, window: int, pool: bool) -> Tensor:
    """`sam2_fast.ops.window_attention` of contiguous tensors of one dtype.

    Computed on the current stream.
    """
    batch, height, width, channels = qkv.shape
    step = 2 if pool else 1
    head_dim = channels // 3 // num_heads
    out = qkv.new_empty(batch, height // step, width // step, channels // 3)
    if out.numel() == 0:
        return out
    window_height, window_width = (window, window) if window else (height, width)
    rows = triton.cdiv(height, window_height)
    columns = triton.cdiv(width, window_width)
    pack = tile_shape(window_height, window_width, step)[2]
    size = qkv.element_size()
    capability = capability_of(qkv)
    padded = rows * window_height != height or columns * window_width != width
    options = forms(window_height, window_width, step, head_dim, capability, padded, size)
    key = (size, head_dim, num_heads, window_height, window_width, step, int(padded))
    form = choose(qkv.device, "window", key, options[0], options)
    if isinstance(form, str):
        return _torch_attention(qkv, num_heads, window_height, window_width, step)
    block_q, block_k, num_warps, stages = form
    low, rest = split_head_dim(head_dim)
    blocks = triton.cdiv(pack * (window_height // step) * (window_width // step), block_q)
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
            scale=LOG2_E * head_dim**-0.5,
            window_height=window_height,
            window_width=window_width,
            head_dim=head_dim,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            PACK=pack,
            LOW=low,
            REST=rest,
            POOL=pool,
            PADDED=padded,
            REGULAR=pack == 1 and not padded and is_regular(window_height, window_width, block_k),
            EXACT=qkv.dtype == torch.float32,
            num_warps=num_warps,
            num_stages=stages,
        )
    return out


def _torch_attention(
    qkv: Tensor, num_heads: int, window_height: int, window_width: int, step: int
) -> Tensor:
    """`window_attention` by torch, for windows that divide the grid.

    A window of the whole grid is not copied.
    """
    batch, height, width, channels = qkv.shape
    rows = height // window_height
    columns = width // window_width
    windows = qkv.view(batch, rows, window_height, columns, window_width, 3, num_heads, -1)
    # [3, B * windows, heads, window_height, window_width, d]
    windows = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(1, 3)
    q, k, v = windows.unbind(0)
    if step == 2:
        q = q.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    # [B * windows, heads, queries, d]
    result = F.scaled_dot_product_attention(*(x.flatten(2, 3) for x in (q, k, v)))
    sizes = (batch, rows, columns, num_heads, window_height // step, window_width // step, -1)
    grid = result.view(sizes).permute(0, 1, 4, 2, 5, 3, 6)
    return grid.reshape(batch, height // step, width // step, channels // 3)
