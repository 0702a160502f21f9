"""The prompt encoder: embeddings of clicks, box corners and mask hints.

Source: official `prompt_encoder.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.fusion import Fusion, Part
from sam2_fast.model.layers import LayerNorm2d
from sam2_fast.model.position import PositionEmbeddingRandom
from sam2_fast.ops.core.cache import Cache
from sam2_fast.ops.core.weights import Weights
from sam2_fast.types import Points


def padding_points(objects: int, device: torch.device) -> Points:
    """One padding point for each of `objects` objects: label -1, its coordinates are ignored."""
    labels = torch.full((objects, 1), -1, dtype=torch.int32, device=device)
    return Points(torch.zeros(objects, 1, 2, device=device), labels)


class PromptEncoder(Part):
    """Sparse embeddings of points and boxes, dense embeddings of masks."""

    def __init__(
        self,
        embed_dim: int,
        image_embedding_size: Sequence[int],
        input_image_size: Sequence[int],
        mask_in_chans: int,
        activation: type[nn.Module] = nn.GELU,
    ) -> None:
        """image_embedding_size: (height, width) of the features, tokens.

        input_image_size: (height, width) of the image, pixels.
        mask_in_chans: channels of a mask before its projection to `embed_dim`.
        """
        super().__init__()
        rows, columns = image_embedding_size
        height, width = input_image_size
        self.embed_dim = embed_dim
        self.input_image_size = (height, width)
        self.image_embedding_size = (rows, columns)
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self._position: Cache[Tensor] = Cache()
        self._label_embeddings: Cache[Tensor] = Cache()
        # Negative, positive, and the two box corners.
        self.num_point_embeddings = 4
        self.point_embeddings = nn.ModuleList(
            nn.Embedding(1, embed_dim) for _ in range(self.num_point_embeddings)
        )
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_input_size = (4 * rows, 4 * columns)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_in_chans // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans // 4),
            activation(),
            nn.Conv2d(mask_in_chans // 4, mask_in_chans, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans),
            activation(),
            nn.Conv2d(mask_in_chans, embed_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)
        self._fusion: Fusion[Weights] = Fusion({"": self})

    @classmethod
    def from_config(cls, config: Sam2Config) -> PromptEncoder:
        """The prompt encoder of an architecture."""
        side, size = config.grid, config.image_size
        return cls(config.hidden_dim, (side, side), (size, size), mask_in_chans=16)

    def is_untouched(self, *inputs: Tensor) -> bool:
        """Whether `embed` and `dense_position` may stand in for calls of the module."""
        return self._fusion.examined({"": self}, *inputs) is not None

    def get_dense_pe(self) -> Tensor:
        """[1, dim, h, w]: position encoding of every image token, the same as for points."""
        return self.pe_layer(self.image_embedding_size).unsqueeze(0)

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Sparse embeddings [B, P, dim] and dense ones [B, dim, h, w].

        points: coordinates [B, P, 2] (x, y) in model pixels and labels [B, P]: 1 positive, 0
            negative, 2 and 3 box corners, -1 padding. Without boxes a padding point is appended.
        boxes: [B, 4] or [B, 2, 2], two points each. masks: [B, 1, 4h, 4w] logits.
        Each may be None.
        """
        batch = self._get_batch_size(points, boxes, masks)
        parts = []
        if points is not None:
            parts.append(self._embed_points(*points, pad=boxes is None))
        if boxes is not None:
            parts.append(self._embed_boxes(boxes))
        weight = self.no_mask_embed.weight
        sparse = torch.cat(parts, dim=1) if parts else weight.new_zeros(batch, 0, self.embed_dim)
        if masks is not None:
            return sparse, self._embed_masks(masks)
        return sparse, weight.reshape(1, -1, 1, 1).expand(batch, -1, *self.image_embedding_size)

    def _embed_points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        """points: [B, P, 2] (x, y) in model pixels; labels: [B, P] -> [B, P or P + 1, dim]."""
        points = points + 0.5  # the centre of a pixel
        if pad:
            points = torch.cat([points, points.new_zeros(points.shape[0], 1, 2)], dim=1)
            labels = torch.cat([labels, labels.new_full((labels.shape[0], 1), -1)], dim=1)
        embedding = self.pe_layer.forward_with_coords(points, self.input_image_size)
        padding = torch.zeros_like(embedding) + self.not_a_point_embed.weight
        embedding = torch.where((labels == -1)[..., None], padding, embedding)
        for label, part in enumerate(self.point_embeddings):
            chosen = (labels == label)[..., None]
            weight = cast(Tensor, part.weight)
            embedding = torch.where(chosen, embedding + weight, embedding)
        return embedding

    def _embed_boxes(self, boxes: Tensor) -> Tensor:
        """boxes: [B, 4] or [B, 2, 2] corners in model pixels -> [B, 2, dim]."""
        corners = (boxes + 0.5).reshape(-1, 2, 2)
        embedding = self.pe_layer.forward_with_coords(corners, self.input_image_size)
        first, second = (cast(Tensor, self.point_embeddings[i].weight) for i in (2, 3))
        # in the dtype of positions, which autocast rounds, as in upstream
        return (embedding + torch.stack([first[0], second[0]])).to(embedding.dtype)

    def _embed_masks(self, masks: Tensor) -> Tensor:
        """masks: [B, 1, 4h, 4w] logits -> [B, dim, h, w]."""
        return self.mask_downscaling(masks)

    def _get_batch_size(
        self,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> int:
        first = next((x for x in (points and points[0], boxes, masks) if x is not None), None)
        return 1 if first is None else first.shape[0]

    def _get_device(self) -> torch.device:
        return self.not_a_point_embed.weight.device

    # The same results with fewer operations, for prompts of an untouched module.

    def dense_position(self, dtype: torch.dtype | None = None) -> Tensor:
        """`get_dense_pe()`, cached. dtype: None: that of the position matrix, at least float32."""
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        dtype = dtype or matrix.dtype
        return self._position.get(lambda: self.get_dense_pe().to(dtype), (matrix,), dtype)

    def padding(self, objects: int) -> Tensor:
        """[objects, 2, dim]: the embedding of one point of label -1, and of the appended one."""
        return self.not_a_point_embed.weight.expand(objects, 2, -1)

    def embed(self, coords: Tensor, labels: Tensor) -> Tensor:
        """The sparse embeddings of `forward` for points without boxes: [B, P + 1, dim]."""
        coords = torch.cat([coords, coords.new_zeros(coords.shape[0], 1, 2)], dim=1)
        labels = torch.cat([labels, labels.new_full((labels.shape[0], 1), -1)], dim=1)
        position = self.pe_layer.forward_with_coords(coords + 0.5, self.input_image_size)
        weights = [e.weight for e in (self.not_a_point_embed, *self.point_embeddings)]
        # [5, dim]
        embeddings = self._label_embeddings.get(
            lambda: torch.cat(weights).to(position.dtype), weights, position.dtype
        )
        rows = (labels.long() + 1).clamp(0, 4)
        return torch.where(labels[..., None] == -1, 0.0, position) + embeddings[rows]

    def embed_mask(self, mask: Tensor | None) -> Tensor:
        """The dense embedding of `forward`, [B or 1, dim, h or 1, w or 1].

        mask: [B, 1, 4h, 4w] logits, or None. Without a mask the embedding is one constant.
        """
        if mask is None:
            return self.no_mask_embed.weight[:, :, None, None]
        return self.mask_downscaling(mask)
