"""Rotary position encodings as complex numbers, by the official functions.

The model rotates by real numbers (`ops.rope_attention`). It calls these functions only if a
program has replaced one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def init_t_xy(end_x: int, end_y: int) -> tuple[Tensor, Tensor]:
    """The columns and the rows of the tokens of a map, float32 [end_x * end_y] each."""
    token = torch.arange(int(end_x * end_y))
    x, y = token.remainder(int(end_x)), token.div(int(end_x), rounding_mode="floor")
    return x.float(), y.float()


def compute_axial_cis(dim: int, end_x: int, end_y: int, theta: float = 10000.0) -> Tensor:
    """The rotations of the tokens of a map, complex64 [end_x * end_y, dim / 2].

    dim: channels. The first half of the pairs of channels is rotated by x, the second by y.
    """
    frequencies = theta ** -(torch.arange(0, dim, 4)[: dim // 4].float() / dim)
    angles = [torch.outer(t, frequencies) for t in init_t_xy(end_x, end_y)]
    joined = torch.cat(angles, dim=-1)
    return torch.complex(joined.cos(), joined.sin())


def reshape_for_broadcast(freqs_cis: Tensor, x: Tensor) -> Tensor:
    """freqs_cis [tokens, channels] with as many dimensions as x [..., tokens, channels].

    Raises ValueError for other shapes.
    """
    if x.ndim < 2 or freqs_cis.shape != x.shape[-2:]:
        raise ValueError(
            f"freqs_cis: expected the last two dimensions of x, {tuple(x.shape[-2:])}, got "
            f"{tuple(freqs_cis.shape)}"
        )
    return freqs_cis[(None,) * (x.ndim - 2)]


def apply_rotary_enc(
    xq: Tensor, xk: Tensor, freqs_cis: Tensor, repeat_freqs_k: bool = False
) -> tuple[Tensor, Tensor]:
    """Queries and keys, rotated; pairs (2i, 2i + 1) of channels are complex numbers.

    xq: [B, heads, N, C]. xk: [B, heads, M, C]. freqs_cis: [N, C / 2] complex.
    repeat_freqs_k: M is a multiple of N, and every N keys are rotated like the queries.
    """
    queries = _as_complex(xq)
    rotation = reshape_for_broadcast(freqs_cis, queries)
    rotated = _as_channels(queries * rotation, xq)
    if xk.shape[-2] == 0:
        return rotated, xk
    if repeat_freqs_k:
        count = xk.shape[-2] // xq.shape[-2]
        rotation = torch.cat([rotation] * count, dim=-2)
    return rotated, _as_channels(_as_complex(xk) * rotation, xk)


def _as_complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())


def _as_channels(x: Tensor, like: Tensor) -> Tensor:
    return torch.view_as_real(x).flatten(-2).to(like)
