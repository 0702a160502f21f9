"""Position encodings: sine tables for feature maps and ages, Fourier features for prompts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def _interleaved_sine(angle: Tensor) -> Tensor:
    """[..., C] angles -> [..., C] with sine in the even channels and cosine in the odd ones."""
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2)


def sine_position(channels: int, height: int, width: int, temperature: float = 10000.0) -> Tensor:
    """[channels, height, width] float32; y in the first half of the channels, x in the second.

    Source: official `PositionEmbeddingSine`.
    """
    half = channels // 2
    period = temperature ** (
        2 * torch.div(torch.arange(half), 2, rounding_mode="floor").float() / half
    )
    y = torch.arange(1, height + 1, dtype=torch.float32) / (height + 1e-6) * (2 * math.pi)
    x = torch.arange(1, width + 1, dtype=torch.float32) / (width + 1e-6) * (2 * math.pi)
    rows = _interleaved_sine(y[:, None] / period)[:, None].expand(-1, width, -1)
    columns = _interleaved_sine(x[:, None] / period)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).permute(2, 0, 1).contiguous()


def sine_tokens(channels: int, side: int) -> Tensor:
    """`sine_position` of a square map as tokens: [side * side, channels]."""
    return sine_position(channels, side, side).flatten(1).T.contiguous()


def sine_age(age: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """Ages [...] -> [..., channels] float32: sines, then cosines (official `get_1d_sine_pe`)."""
    half = channels // 2
    period = temperature ** (
        2
        * torch.div(torch.arange(half, device=age.device), 2, rounding_mode="floor").float()
        / half
    )
    angle = age[..., None] / period
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class RandomPosition(nn.Module):
    """Random Fourier features of a point of the unit square, at least in float32.

    Source: official `PositionEmbeddingRandom`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, channels // 2))
        self.positional_encoding_gaussian_matrix: Tensor  # [2, channels / 2]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RandomPosition:
        matrix = self.positional_encoding_gaussian_matrix
        converted = fn(matrix)
        if converted.is_meta or converted.dtype == torch.float64:
            self.positional_encoding_gaussian_matrix = converted
        elif matrix.is_meta:  # `matrix` has no data
            self.positional_encoding_gaussian_matrix = converted.float()
        else:  # half precision would change the position of every prompt
            self.positional_encoding_gaussian_matrix = matrix.to(converted.device, torch.float32)
        return self

    def forward(self, points: Tensor) -> Tensor:
        """points: [..., 2] (x, y) in the unit square -> [..., channels]."""
        matrix = self.positional_encoding_gaussian_matrix
        angle = 2 * math.pi * ((2 * points.to(matrix.dtype) - 1) @ matrix)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def grid(self, side: int) -> Tensor:
        """[1, channels, side, side]: the encoding of the centre of every token."""
        matrix = self.positional_encoding_gaussian_matrix
        centre = (torch.arange(side, device=matrix.device, dtype=torch.float32) + 0.5) / side
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        return self(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]
