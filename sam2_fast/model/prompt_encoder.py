"""The prompt encoder: embeddings of clicks, box corners and mask hints.

Source: official `prompt_encoder.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.layers import LayerNorm2d
from sam2_fast.model.position import RandomPosition
from sam2_fast.ops.core.cache import Cache
from sam2_fast.types import Points


def padding_points(objects: int, device: torch.device) -> Points:
    """One padding point for each of `objects` objects: label -1, its coordinates are ignored."""
    labels = torch.full((objects, 1), -1, dtype=torch.int32, device=device)
    return Points(torch.zeros(objects, 1, 2, device=device), labels)


class PromptEncoder(nn.Module):
    """Sparse embeddings of points, dense embeddings of masks."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.hidden_dim
        side = config.grid
        self.embed_dim = dim
        self.input_image_size = (config.image_size, config.image_size)
        self.image_embedding_size = (side, side)
        self.mask_input_size = (4 * side, 4 * side)
        self.pe_layer = RandomPosition(dim)
        self._position: Cache[Tensor] = Cache()
        self._cast_position: Cache[Tensor] = Cache()
        self._label_embeddings: Cache[Tensor] = Cache()
        # Negative, positive, and the two box corners.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, kernel_size=2, stride=2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, kernel_size=2, stride=2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def get_dense_pe(self, dtype: torch.dtype | None = None) -> Tensor:
        """[1, dim, h, w]: position encoding of every image token, the same as for points.

        dtype: None: that of the position matrix, at least float32.
        """
        side = self.image_embedding_size[0]
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        position = self._position.get(lambda: self.pe_layer.grid(side), (matrix,), side)
        if dtype is None or dtype == position.dtype:
            return position
        return self._cast_position.get(lambda: position.to(dtype), (matrix,), side, dtype)

    def padding(self, objects: int) -> Tensor:
        """[objects, 2, dim]: the embedding that `forward` computes for one point of label -1."""
        return self.not_a_point_embed.weight.expand(objects, 2, -1)

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """coords: [B, P, 2] (x, y) in model pixels; labels: [B, P] -> [B, P, dim].

        Label -1 is padding, and its coordinates are ignored.
        """
        # A tensor on the device of `coords`, so that there is no host synchronisation.
        size = coords.new_full((), self.input_image_size[0])
        position = self.pe_layer((coords + 0.5) / size)
        weights = [e.weight for e in (self.not_a_point_embed, *self.point_embeddings)]
        # [5, dim]
        embeddings = self._label_embeddings.get(
            lambda: torch.cat(weights).to(position.dtype), weights, position.dtype
        )
        rows = (labels.long() + 1).clamp(0, 4)
        return torch.where(labels[..., None] == -1, 0.0, position) + embeddings[rows]

    def embed_mask(self, mask: Tensor | None) -> Tensor:
        """mask: [B, 1, 4h, 4w] logits, or None -> [B or 1, dim, h or 1, w or 1].

        Without a mask the embedding is one constant.
        """
        if mask is None:
            return self.no_mask_embed.weight[:, :, None, None]
        autocast = torch.is_autocast_enabled(mask.device.type)
        return self.mask_downscaling(mask if autocast else mask.to(self.no_mask_embed.weight.dtype))

    def forward(self, coords: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sparse embeddings [B, P + 1, dim] and dense embeddings.

        One padding point is appended, as upstream if boxes are passed as points.
        """
        coords = torch.cat([coords, coords.new_zeros(coords.shape[0], 1, 2)], dim=1)
        labels = torch.cat([labels, labels.new_full((labels.shape[0], 1), -1)], dim=1)
        return self.embed_points(coords, labels), self.embed_mask(mask)
