"""Trunk and feature pyramid (official `ImageEncoder` with scalp 1 and `FpnNeck`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.hiera import Hiera
from sam2_fast.model.layers import fold_convolutions
from sam2_fast.ops.core.cache import Cache


class Lateral(nn.Module):
    """1 x 1 convolution of one pyramid level (its name in the checkpoint is `convs.i.conv`)."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, kernel_size=1)
        self._folded: Cache[tuple[Tensor, Tensor | None]] = Cache()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Lateral:
        self._folded.clear()
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, dim, H, W] -> [B, dim_out, H, W]."""
        return self.conv(x)

    def followed_by(self, outer: nn.Conv2d, x: Tensor) -> Tensor:
        """`outer(self(x))` for another 1 x 1 convolution, as one product."""
        parameters = [*self.conv.parameters(), *outer.parameters()]
        weight, bias = self._folded.get(lambda: fold_convolutions(self.conv, outer), parameters)
        return F.conv2d(x, weight, bias)


class FeaturePyramid(nn.Module):
    """Lateral convolutions; the stride-32 level is added to the stride-16 level only."""

    def __init__(self, stage_dims: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Lateral(d, dim) for d in reversed(stage_dims))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """maps: four trunk maps, fine to coarse -> levels of stride 4, 8 and 16.

        Each level is [B, dim, ., .].
        """
        _, _, mid, high = self.convs
        return high(maps[0]), mid(maps[1]), self.low(maps)

    def projected(self, maps: list[Tensor], s1: nn.Conv2d, s0: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """`s1` of the stride-8 level and `s0` of the stride-4 level.

        Each is one product together with the lateral convolution of its level.
        """
        _, _, mid, high = self.convs
        assert isinstance(mid, Lateral) and isinstance(high, Lateral)
        return mid.followed_by(s1, maps[1]), high.followed_by(s0, maps[0])

    def low(self, maps: list[Tensor]) -> Tensor:
        """maps: four trunk maps -> the stride-16 level [B, dim, ., .]."""
        coarse, low, _, _ = self.convs
        top = F.interpolate(
            coarse(maps[3]).to(torch.promote_types(maps[3].dtype, torch.float32)),
            scale_factor=2.0,
            mode="nearest",
        )
        lateral = low(maps[2])
        if not torch.is_autocast_enabled(top.device.type):
            top = top.to(lateral.dtype)
        return lateral + top


class ImageEncoder(nn.Module):
    """Images to the three pyramid levels that the rest of the model reads."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.trunk = Hiera(config)
        self.neck = FeaturePyramid(config.stage_dims, config.hidden_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images: [B, 3, S, S] -> (high, mid, low), each [B, 256, ., .] of stride 4, 8 and 16."""
        return self.neck(self.trunk(images))
