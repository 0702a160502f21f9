"""Trunk and feature pyramid (official `ImageEncoder` and `FpnNeck`)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.fusion import Part
from sam2_fast.model.hiera import Hiera
from sam2_fast.model.position import PositionEmbeddingSine


class FpnNeck(Part):
    """Lateral 1 x 1 convolutions; the stride-32 level is added to the stride-16 level."""

    def __init__(self, channel_list: list[int], d_model: int) -> None:
        """channel_list: channels of the trunk's maps, coarse to fine."""
        super().__init__()
        self.position_encoding = PositionEmbeddingSine(d_model)
        self.convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, d_model, kernel_size=1)))
            for channels in channel_list
        )
        self.backbone_channel_list = list(channel_list)
        self.d_model = d_model
        self.fpn_interp_model = "nearest"
        self.fuse_type = "sum"
        self.fpn_top_down_levels = [2, 3]

    def forward(self, xs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """xs: four trunk maps, fine to coarse -> levels and their positions, in this order.

        A level and its position are [B, d_model, ., .] of stride 4, 8, 16 or 32.
        """
        levels = [self._level(xs, i) for i in range(2)] + self._coarse_levels(xs)
        return levels, [self.position_encoding(level).to(level.dtype) for level in levels]

    def low(self, xs: list[Tensor]) -> Tensor:
        """The stride-16 level only."""
        return self._coarse_levels(xs)[0]

    def _level(self, xs: list[Tensor], index: int) -> Tensor:
        return self.convs[len(self.convs) - 1 - index](xs[index])

    def _coarse_levels(self, xs: list[Tensor]) -> list[Tensor]:
        """The levels of stride 16 and 32."""
        coarse = self._level(xs, 3)
        lateral = self._level(xs, 2)
        top = F.interpolate(
            coarse.to(torch.promote_types(coarse.dtype, torch.float32)),
            scale_factor=2.0,
            mode=self.fpn_interp_model,
        )
        if not torch.is_autocast_enabled(top.device.type):
            top = top.to(lateral.dtype)
        return [lateral + top, coarse]


class ImageEncoder(Part):
    """Images to the three pyramid levels that the rest of the model reads."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.trunk = Hiera(config)
        self.neck = FpnNeck(self.trunk.channel_list, config.hidden_dim)
        self.scalp = 1

    def forward(self, sample: Tensor) -> dict[str, Any]:
        """sample: images [B, 3, S, S] -> "backbone_fpn", "vision_pos_enc" and "vision_features".

        The first two are lists of the levels of stride 4, 8 and 16, [B, 256, ., .], and of their
        positions; the third is the last level. `scalp` coarsest levels are dropped.
        """
        levels, positions = self.neck(self.trunk(sample))
        kept = len(levels) - self.scalp
        return {
            "vision_features": levels[kept - 1],
            "vision_pos_enc": positions[:kept],
            "backbone_fpn": levels[:kept],
        }
