"""Memory encoder: a mask and the frame's features become one memory map (official `memory_encoder.py`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.layers import LayerNorm2d


class MaskDownSampler(nn.Module):
    """Four 3 x 3 convolutions of stride 2, then a projection: [B, 1, S, S] -> [B, dim, S / 16, S / 16]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for channels in (1, 4, 16, 64):
            steps += [nn.Conv2d(channels, 4 * channels, 3, stride=2, padding=1), LayerNorm2d(4 * channels), nn.GELU()]
        self.encoder = nn.Sequential(*steps, nn.Conv2d(256, dim, kernel_size=1))

    def forward(self, mask: Tensor) -> Tensor:
        """mask: [B, 1, S, S] -> [B, dim, S / 16, S / 16]."""
        return self.encoder(mask)


class FuserBlock(nn.Module):
    """ConvNeXt block: depthwise 7 x 7, norm, two pointwise layers, layer scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(1e-6 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, dim, h, w] -> the same shape."""
        inner = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        inner = self.gamma * self.pwconv2(self.act(self.pwconv1(inner)))
        return x + inner.permute(0, 3, 1, 2)


class Fuser(nn.Module):
    """Two blocks (the checkpoint calls them `fuser.layers`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FuserBlock(dim) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, dim, h, w] -> the same shape."""
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """Projected features plus the downsampled mask, fused and narrowed to the memory's width."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.mask_downsampler = MaskDownSampler(dim)
        self.pix_feat_proj = nn.Conv2d(dim, dim, kernel_size=1)
        self.fuser = Fuser(dim)
        self.out_proj = nn.Conv2d(dim, config.memory_dim, kernel_size=1)

    def forward(self, low: Tensor, mask: Tensor) -> Tensor:
        """low: [1 or B, dim, h, w] features; mask: [B, 1, 16h, 16w] in -10..10 -> [B, memory_dim, h, w]."""
        return self.out_proj(self.fuser(self.pix_feat_proj(low) + self.mask_downsampler(mask)))
