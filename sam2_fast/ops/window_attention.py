"""Windowed attention of Hiera: gather windows, attend inside each, scatter back.

The torch reference is the definition; native backends join through the registry (see `docs/adding_a_kernel.md`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def window_attention(qkv: Tensor, pad: Tensor, num_heads: int, window: int, pool: bool = False) -> Tensor:
    """Attention inside windows of `window` x `window` tokens, or over the whole grid where `window` is 0.

    qkv: [B, H, W, 3 * num_heads * d] projected tokens, order (q, k, v), then head, then channel.
    pad: [3 * num_heads * d] what a padded token projects to (the bias of the projection): windows that stick out of the
        grid attend to such tokens as ordinary keys, unmasked.
    pool: max-pool the queries 2 x 2 inside each window; the result then has half the height and width.
    Returns [B, H or H / 2, W or W / 2, num_heads * d]. Source: official `MultiScaleBlock` and `MultiScaleAttention`.
    """
    return window_attention_reference(qkv, pad, num_heads, window, pool)


def window_attention_reference(qkv: Tensor, pad: Tensor, num_heads: int, window: int, pool: bool = False) -> Tensor:
    """The definition, in torch."""
    batch, height, width, _ = qkv.shape
    if window == 0:
        return _attend(qkv, num_heads, pool)
    down, right = -height % window, -width % window
    if down or right:
        padded = pad.expand(batch, height + down, width + right, -1).clone()
        padded[:, :height, :width] = qkv
        qkv = padded
    rows, columns = qkv.shape[1] // window, qkv.shape[2] // window
    windows = qkv.unflatten(1, (rows, window)).unflatten(3, (columns, window)).transpose(2, 3)  # [B, rows, columns, window, window, C]
    out = _attend(windows.flatten(0, 2), num_heads, pool)
    side = out.shape[1]
    out = out.unflatten(0, (batch, rows, columns)).transpose(2, 3).reshape(batch, rows * side, columns * side, -1)
    return out[:, : height // 2, : width // 2] if pool else out[:, :height, :width]


def _attend(qkv: Tensor, num_heads: int, pool: bool) -> Tensor:
    """qkv: [N, H, W, 3 * C] -> [N, H or H / 2, W or W / 2, C], every token attending to all of its own map."""
    count, channels = qkv.shape[0], qkv.shape[-1]
    q, k, v = qkv.split(channels // 3, dim=-1)  # [N, H, W, C] each
    if pool:
        q = F.max_pool2d(q.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    out_height, out_width = q.shape[1:3]
    heads = (x.reshape(count, -1, num_heads, channels // 3 // num_heads).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(*heads)  # [N, heads, tokens, d]
    return out.transpose(1, 2).reshape(count, out_height, out_width, -1)
