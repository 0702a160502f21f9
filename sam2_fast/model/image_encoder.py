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
from sam2_fast.ops.core.lookups import LookedUp, watch

watch(__name__, LookedUp(globals(), "F"))


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
        levels: list[Tensor] = []
        coarser: Tensor | None = None
        for index in reversed(range(len(self.convs))):
            level = self.convs[len(self.convs) - 1 - index](xs[index])
            if coarser is not None and index in self.fpn_top_down_levels:
                level = level + self._top_down(coarser, level)
                if self.fuse_type == "avg":
                    level = level / 2
            coarser = level
            levels.insert(0, level)
        return levels, [self.position_encoding(level).to(level.dtype) for level in levels]

    def low(self, xs: list[Tensor]) -> Tensor:
        """The stride-16 level only."""
        lateral = self.convs[1](xs[2])
        return lateral + self._top_down(self.convs[0](xs[3]), lateral)

    def _top_down(self, coarse: Tensor, lateral: Tensor) -> Tensor:
        """A level at twice its size, to be added to the next finer one."""
        large = F.interpolate(
            coarse.to(torch.promote_types(coarse.dtype, torch.float32)),
            scale_factor=2.0,
            mode=self.fpn_interp_model,
            align_corners=None if self.fpn_interp_model == "nearest" else False,
        )
        if torch.is_autocast_enabled(large.device.type):
            return large
        return large.to(lateral.dtype)


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
