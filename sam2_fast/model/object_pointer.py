"""Object pointers: output tokens of the decoder as memories."""

from __future__ import annotations

from torch import Tensor


def split_pointers(pointers: Tensor, memory_dim: int) -> Tensor:
    """pointers: [B, P, 256] -> [B, P * 4, 64], four memory tokens for each pointer."""
    return pointers.unflatten(-1, (-1, memory_dim)).flatten(1, 2)
