"""Trunk and feature pyramid (official `ImageEncoder` with scalp 1 and `FpnNeck`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.hiera import Hiera
from sam2_fast.model.layers import folded
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

    def through(self, outer: nn.Conv2d, x: Tensor) -> Tensor:
        """`outer(self(x))` of another 1 x 1 convolution, as one product."""
        parameters = [*self.conv.parameters(), *outer.parameters()]
        weight, bias = self._folded.get(lambda: folded(self.conv, outer), parameters)
        return F.conv2d(x, weight, bias)


class FeaturePyramid(nn.Module):
    """Lateral convolutions; only the stride-16 level takes the level below it, the two fine levels
    stand alone.
    """

    def __init__(self, stage_dims: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Lateral(d, dim) for d in reversed(stage_dims))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """maps: four trunk maps, fine to coarse -> (stride 4, stride 8, stride 16), each [B, dim,
        ., .].
        """
        _, _, mid, high = self.convs
        return high(maps[0]), mid(maps[1]), self.low(maps)

    def folded(self, maps: list[Tensor], s1: nn.Conv2d, s0: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """The stride-8 level through `s1` and the stride-4 level through `s0`, each in one product
        with its lateral convolution.
        """
        _, _, mid, high = self.convs
        assert isinstance(mid, Lateral) and isinstance(high, Lateral)
        return mid.through(s1, maps[1]), high.through(s0, maps[0])

    def low(self, maps: list[Tensor]) -> Tensor:
        """maps: four trunk maps -> the stride-16 level [B, dim, ., .]."""
        coarse, low, _, _ = self.convs
        top = F.interpolate(
            coarse(maps[3]).to(torch.promote_types(maps[3].dtype, torch.float32)),
            scale_factor=2.0,
            mode="nearest",
        )
        lateral = low(maps[2])
        return lateral + (
            top if torch.is_autocast_enabled(top.device.type) else top.to(lateral.dtype)
        )


class ImageEncoder(nn.Module):
    """Images to the three pyramid levels that the rest of the model reads."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.trunk = Hiera(config)
        self.neck = FeaturePyramid(config.stage_dims, config.hidden_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images: [B, 3, S, S] -> (high, mid, low): [B, 256, S / 4, .], [B, 256, S / 8, .], [B,
        256, S / 16, .].
        """
        return self.neck(self.trunk(images))
