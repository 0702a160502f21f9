"""Position encodings: sine tables for feature maps and ages, Fourier features for prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sam2_fast.model.fusion import Part
from sam2_fast.ops.core import tracing


def _interleaved_sine(angle: Tensor) -> Tensor:
    """[..., C] angles -> [..., C] with sine in the even channels and cosine in the odd ones."""
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2)


def sine_position(
    channels: int,
    height: int,
    width: int,
    temperature: float = 10000.0,
    scale: float | None = 2 * math.pi,
) -> Tensor:
    """[channels, height, width] float32; y in the first half of the channels, x in the second.

    scale: the size of the map after scaling; None: its size in tokens.

    Source: official `PositionEmbeddingSine`.
    """
    half = channels // 2
    period = temperature ** (
        2 * torch.div(torch.arange(half), 2, rounding_mode="floor").float() / half
    )
    y = torch.arange(1, height + 1, dtype=torch.float32)
    x = torch.arange(1, width + 1, dtype=torch.float32)
    if scale is not None:
        y, x = y / (height + 1e-6) * scale, x / (width + 1e-6) * scale
    rows = _interleaved_sine(y[:, None] / period)[:, None].expand(-1, width, -1)
    columns = _interleaved_sine(x[:, None] / period)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).permute(2, 0, 1).contiguous()


def sine_tokens(channels: int, side: int) -> Tensor:
    """`sine_position` of a square map as tokens: [side * side, channels]."""
    return sine_position(channels, side, side).flatten(1).T.contiguous()


def get_1d_sine_pe(pos_inds: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Positions [...] -> [..., dim] float32: sines, then cosines. The positions are ages."""
    half = dim // 2
    period = temperature ** (
        2
        * torch.div(torch.arange(half, device=pos_inds.device), 2, rounding_mode="floor").float()
        / half
    )
    angle = pos_inds[..., None] / period
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


_RELEASED = (10000, True, 2 * math.pi)  # temperature, normalize and scale


class PositionEmbeddingSine(Part):
    """Sine encoding of the positions of a feature map (official `PositionEmbeddingSine`).

    num_pos_feats: channels of the encoding, half of them for y and half for x.
    normalize: scale positions so that the map has the size `scale`.
    warmup_cache, image_size, strides: accepted without effect; tables are cached when first used.
    """

    def __init__(
        self,
        num_pos_feats: int,
        temperature: int = 10000,
        normalize: bool = True,
        scale: float | None = None,
        warmup_cache: bool = True,
        image_size: int = 1024,
        strides: Sequence[int] = (4, 8, 16, 32),
    ) -> None:
        super().__init__()
        if num_pos_feats % 2:
            raise ValueError(f"num_pos_feats: expected an even number, got {num_pos_feats}")
        if scale is not None and not normalize:
            raise ValueError(f"scale: expected None with normalize=False, got {scale}")
        self.num_pos_feats = num_pos_feats // 2
        self.temperature = temperature
        self.normalize = normalize
        self.scale = 2 * math.pi if scale is None else scale
        self.cache: dict[tuple[int, int], Tensor] = {}

    def is_that_of_released_models(self) -> bool:
        """Whether the settings are those of all released models, and `forward` is its own."""
        own = vars(self)
        settings = own["temperature"], own["normalize"], own["scale"]
        return settings == _RELEASED and "forward" not in own

    def forward(self, x: Tensor) -> Tensor:
        """The encoding [B, num_pos_feats, H, W], float32, of a map x [B, C, H, W]."""
        height, width = int(x.shape[-2]), int(x.shape[-1])
        table = self.cache.get((height, width))
        if tracing.recording_reason() is not None:
            table = self._table(height, width).to(x.device)
        elif table is None or table.device != x.device:
            with torch.inference_mode(False):
                table = self.cache[height, width] = self._table(height, width).to(x.device)
        return table.repeat(x.shape[0], 1, 1, 1)  # a copy, as programs may write to it

    def _table(self, height: int, width: int) -> Tensor:
        scale = self.scale if self.normalize else None
        return sine_position(2 * self.num_pos_feats, height, width, float(self.temperature), scale)


class PositionEmbeddingRandom(Part):
    """Random Fourier features of a point of the unit square, at least in float32.

    num_pos_feats: half of the channels. scale: standard deviation of the frequencies; None: 1.
    Source: official `PositionEmbeddingRandom`.
    """

    def __init__(self, num_pos_feats: int = 64, scale: float | None = None) -> None:
        super().__init__()
        matrix = torch.randn(2, num_pos_feats)
        if scale is not None and scale > 0.0:
            matrix = scale * matrix
        self.register_buffer("positional_encoding_gaussian_matrix", matrix)
        self.positional_encoding_gaussian_matrix: Tensor  # [2, num_pos_feats]

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> PositionEmbeddingRandom:
        matrix = self.positional_encoding_gaussian_matrix
        converted = fn(matrix)
        if converted.is_meta or converted.dtype == torch.float64:
            self.positional_encoding_gaussian_matrix = converted
        elif matrix.is_meta:  # `matrix` has no data
            self.positional_encoding_gaussian_matrix = converted.float()
        else:  # half precision would change the position of every prompt
            self.positional_encoding_gaussian_matrix = matrix.to(converted.device, torch.float32)
        return self

    def _pe_encoding(self, coords: Tensor) -> Tensor:
        """coords: [..., 2] (x, y) in the unit square -> [..., channels]."""
        matrix = self.positional_encoding_gaussian_matrix
        angle = 2 * math.pi * ((2 * coords.to(matrix.dtype) - 1) @ matrix)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def forward(self, size: tuple[int, int]) -> Tensor:
        """[channels, height, width]: the encoding of the centre of every token of a map."""
        height, width = size
        matrix = self.positional_encoding_gaussian_matrix
        y, x = (
            (torch.arange(side, device=matrix.device, dtype=torch.float32) + 0.5) / side
            for side in (height, width)
        )
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        return self._pe_encoding(torch.stack([columns, rows], dim=-1)).permute(2, 0, 1)

    def forward_with_coords(self, coords_input: Tensor, image_size: tuple[int, int]) -> Tensor:
        """coords_input: [..., 2] (x, y) in pixels of an image of size (height, width)."""
        height, width = image_size
        # Tensors on the device of the points, so that there is no host synchronisation.
        if height == width:
            return self._pe_encoding(coords_input / coords_input.new_full((), width))
        x = coords_input[..., 0] / coords_input.new_full((), width)
        y = coords_input[..., 1] / coords_input.new_full((), height)
        return self._pe_encoding(torch.stack([x, y], dim=-1))
