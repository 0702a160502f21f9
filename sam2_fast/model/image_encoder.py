"""Trunk and feature pyramid (official `ImageEncoder` and `FpnNeck`)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.fusion import Part, unusual_setting
from sam2_fast.model.hiera import Hiera
from sam2_fast.model.position import PositionEmbeddingSine
from sam2_fast.ops.core.lookups import LookedUp, watch

watch(__name__, LookedUp(globals(), "F"))


class FpnNeck(Part):
    """Lateral convolutions; a coarser level is added to the levels in `fpn_top_down_levels`.

    In the released models the stride-32 level is added to the stride-16 level.
    position_encoding: gives the positions of a level. d_model: channels of the levels.
    backbone_channel_list: channels of the trunk's maps, coarse to fine.
    kernel_size, stride, padding: of the convolutions.
    fpn_interp_model: mode of `F.interpolate`. fuse_type: "sum", or "avg" for half of it.
    fpn_top_down_levels: 0 is the finest level; None: all.
    """

    def __init__(
        self,
        position_encoding: nn.Module,
        d_model: int,
        backbone_channel_list: Sequence[int],
        kernel_size: int = 1,
        stride: int = 1,
        padding: int = 0,
        fpn_interp_model: str = "bilinear",
        fuse_type: str = "sum",
        fpn_top_down_levels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if fuse_type not in ("sum", "avg"):
            raise ValueError(f"fuse_type: expected 'sum' or 'avg', got {fuse_type!r}")
        self.position_encoding = position_encoding
        self.convs = nn.ModuleList(
            nn.Sequential(
                OrderedDict(conv=nn.Conv2d(channels, d_model, kernel_size, stride, padding))
            )
            for channels in backbone_channel_list
        )
        self.backbone_channel_list = list(backbone_channel_list)
        self.d_model = d_model
        self.fpn_interp_model = fpn_interp_model
        self.fuse_type = fuse_type
        if fpn_top_down_levels is None:
            fpn_top_down_levels = range(len(self.convs))
        self.fpn_top_down_levels = list(fpn_top_down_levels)

    @classmethod
    def from_config(cls, config: Sam2Config) -> FpnNeck:
        """The neck of an architecture."""
        return cls(
            position_encoding=PositionEmbeddingSine(config.hidden_dim),
            d_model=config.hidden_dim,
            backbone_channel_list=list(reversed(config.stage_dims)),
            fpn_interp_model="nearest",
            fpn_top_down_levels=[2, 3],
        )

    def reason_against_op(self) -> str | None:
        """Two 1 x 1 convolutions are folded, and `low` is computed alone, in this form only."""
        convs: Any = [conv.conv for conv in self.convs]
        return unusual_setting(
            backbone_channel_list=(len(self.convs), 4),
            kernel_size=({conv.kernel_size for conv in convs}, {(1, 1)}),
            stride=({conv.stride for conv in convs}, {(1, 1)}),
            padding=({conv.padding for conv in convs}, {(0, 0)}),
            fuse_type=(self.fuse_type, "sum"),
            fpn_top_down_levels=(sorted(self.fpn_top_down_levels), [2, 3]),
        )

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

    def __init__(self, trunk: Hiera, neck: FpnNeck, scalp: int = 0) -> None:
        """scalp: how many of the coarsest levels are dropped (1 in the released models)."""
        super().__init__()
        if list(trunk.channel_list) != list(neck.backbone_channel_list):
            raise ValueError(
                f"neck: expected backbone_channel_list={trunk.channel_list}, the channels of the "
                f"trunk, got {neck.backbone_channel_list}"
            )
        self.trunk = trunk
        self.neck = neck
        self.scalp = scalp

    @classmethod
    def from_config(cls, config: Sam2Config) -> ImageEncoder:
        """The image encoder of an architecture."""
        return cls(Hiera.from_config(config), FpnNeck.from_config(config), scalp=1)

    def reason_against_op(self) -> str | None:
        """Three levels of four maps are computed without the others."""
        return unusual_setting(
            scalp=(self.scalp, 1),
            return_interm_layers=(getattr(self.trunk, "return_interm_layers", True), True),
        )

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
