"""Features of the image encoder in the official form."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sam2_fast.model import Sam2
from sam2_fast.types import Features


def backbone_out_of(model: Sam2, features: Features) -> dict[str, Any]:
    """Official `backbone_out` of features: levels and positions, fine first."""
    levels = [features.high, features.mid, features.low]
    return {
        "vision_features": features.low,
        "vision_pos_enc": [position_of(model, level) for level in levels],
        "backbone_fpn": levels,
    }


def position_of(model: Sam2, level: Tensor) -> Tensor:
    """The positions of a level [B, C, H, W], of the same shape and dtype."""
    position: Tensor = model.image_encoder.neck.position_encoding(level)
    return position.to(level.dtype)
