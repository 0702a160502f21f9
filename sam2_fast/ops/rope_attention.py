"""Attention with an axial rotary position encoding, as memory attention uses it (one head, real-valued rotation).

The torch reference is the definition; native backends join through the registry (see `docs/adding_a_kernel.md`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rope_table(dim: int, side: int, theta: float = 10000.0) -> Tensor:
    """Angles as (cos, sin): [2, side * side, dim / 2] float32. The first half of the pairs turns with x, the second with y."""
    frequencies = 1.0 / (theta ** (torch.arange(0, dim, 4).float() / dim))  # [dim / 4]
    token = torch.arange(side * side)
    x, y = (token % side).float(), torch.div(token, side, rounding_mode="floor").float()
    angles = torch.cat([torch.outer(x, frequencies), torch.outer(y, frequencies)], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn pairs (2i, 2i + 1) of x [..., tokens, dim] by `table` [2, tokens, dim / 2]; computed in float32 or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    cos, sin = table.to(wide.dtype)
    even, odd = wide[..., 0::2], wide[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def rope_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int = 0) -> Tensor:
    """Attention of q over k and v after rotating both q and k; the rotation repeats for every map of q's length in k.

    q: [B, N, d]; k: [B, M * N + num_unrotated, d]; v: [B, M * N + num_unrotated, dv]; table: [2, N, d / 2].
    num_unrotated: tokens at the end of k (object pointers) that have no place in the image.
    Returns [B, N, dv]. Source: official `RoPEAttention`, with complex numbers written out.
    """
    return rope_attention_reference(q, k, v, table, num_unrotated)


def rope_attention_reference(q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int = 0) -> Tensor:
    """The definition, in torch."""
    length = k.shape[1] - num_unrotated
    maps = k[:, :length].unflatten(1, (-1, q.shape[1])) if length else k[:, :0]
    rotated = rotate(maps, table).flatten(1, 2) if length else maps
    keys = torch.cat([rotated, k[:, length:]], dim=1)
    return F.scaled_dot_product_attention(rotate(q, table)[:, None], keys[:, None], v[:, None])[:, 0]
