"""`sam2.modeling.position_encoding`."""

from __future__ import annotations

from torch import Tensor, nn

from sam2_fast.model.position import RandomPosition, sine_position

PositionEmbeddingRandom = RandomPosition


class PositionEmbeddingSine(nn.Module):
    """Sine encoding of the positions of a feature map, normalised to one period.

    All released models use this form.
    """

    def __init__(
        self,
        num_pos_feats: int,
        temperature: int = 10000,
        normalize: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if not normalize or scale is not None:
            raise ValueError(
                "PositionEmbeddingSine: only normalize=True with the default scale is supported; "
                "no released model differs"
            )
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """Encoding [B, num_pos_feats, H, W] float32 on the device of x: [B, C, H, W]."""
        table = sine_position(
            self.num_pos_feats, x.shape[-2], x.shape[-1], float(self.temperature)
        ).to(x.device)
        return table.expand(x.shape[0], -1, -1, -1)
