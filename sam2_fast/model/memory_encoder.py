"""The memory encoder: one memory map from a mask and the features of its frame.

Source: official `memory_encoder.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.fusion import Fusion, OpModule, Part
from sam2_fast.model.layers import LayerNorm2d, linear_of, norm_of
from sam2_fast.model.position import PositionEmbeddingSine
from sam2_fast.ops.memory_encoder import memory_encoder
from sam2_fast.ops.memory_encoder.weights import (
    DepthwiseConvolution,
    FirstConvolutionWeights,
    FuserBlockWeights,
    MaskConvolutionWeights,
    MemoryEncoderWeights,
    PointConvolution,
)

_EPS = 1e-6  # of all norms of the encoder


class MaskDownSampler(Part):
    """Four 3 x 3 convolutions of stride 2, each with norm and GELU, then a projection to `dim`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for channels in (1, 4, 16, 64):
            steps += [
                nn.Conv2d(channels, 4 * channels, 3, stride=2, padding=1),
                LayerNorm2d(4 * channels),
                nn.GELU(),
            ]
        self.encoder = nn.Sequential(*steps, nn.Conv2d(256, dim, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        """x: masks [B, 1, S, S] -> [B, dim, S / 16, S / 16]."""
        return self.encoder(x)

    def steps(self) -> list[tuple[nn.Module, nn.Module]]:
        """The four convolutions and their norms."""
        layers = [layer for layer in self.encoder if not isinstance(layer, nn.GELU)]
        return list(zip(layers[:-1:2], layers[1:-1:2], strict=True))


class CXBlock(Part):
    """ConvNeXt block: depthwise 7 x 7, norm, two pointwise layers with GELU, layer scale."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(hidden, dim)
        self.gamma = nn.Parameter(1e-6 * torch.ones(dim))
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, dim, H, W] -> the same shape."""
        hidden = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        hidden = self.gamma * self.pwconv2(self.act(self.pwconv1(hidden)))
        return x + self.drop_path(hidden.permute(0, 3, 1, 2))

    def gather_weights(self) -> FuserBlockWeights:
        """The weights of one block of `ops.memory_encoder`."""
        bias = self.dwconv.bias
        assert bias is not None
        depthwise = DepthwiseConvolution(self.dwconv.weight, bias)
        norm, fc1, fc2 = norm_of(self.norm), linear_of(self.pwconv1), linear_of(self.pwconv2)
        return FuserBlockWeights(depthwise, norm, fc1, fc2, self.gamma)


class Fuser(Part):
    """Two blocks, named `fuser.layers` in the checkpoint."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Identity()
        self.layers = nn.ModuleList(CXBlock(dim, hidden) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, dim, H, W] -> the same shape."""
        x = self.proj(x)
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(OpModule[MemoryEncoderWeights]):
    """Projected features plus the downsampled mask, fused and projected to `memory_dim`."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.mask_downsampler = MaskDownSampler(dim)
        self.pix_feat_proj = nn.Conv2d(dim, dim, kernel_size=1)
        self.fuser = Fuser(dim, config.fuser_dim)
        self.position_encoding = PositionEmbeddingSine(config.memory_dim)
        self.out_proj = nn.Conv2d(dim, config.memory_dim, kernel_size=1)
        self._fusion = Fusion({"": self})

    def forward(
        self, pix_feat: Tensor, masks: Tensor, skip_mask_sigmoid: bool = False
    ) -> dict[str, Any]:
        """ "vision_features": maps [B, memory_dim, h, w], "vision_pos_enc": [their positions].

        pix_feat: features [B, dim, h, w]. masks: [B, 1, S, S] logits.
        skip_mask_sigmoid: `masks` are read as they are, instead of their sigmoid.
        """
        masks = self.mask_downsampler(masks if skip_mask_sigmoid else masks.sigmoid())
        x = self.pix_feat_proj(pix_feat.to(masks.device)) + masks
        x = self.out_proj(self.fuser(x))
        position = self.position_encoding(x).to(x.dtype)
        return {"vision_features": x, "vision_pos_enc": [position]}

    def run_op(
        self, low: Tensor, logits: Tensor, weights: MemoryEncoderWeights, binarize: bool
    ) -> Tensor:
        """Memory maps of B masks on one frame by the op: [B, h * w, memory_dim].

        low: [1 or B, dim, h, w] features. logits: [B, 1, ., .] masks of any size.
        weights: from `op_weights`.
        binarize: threshold the masks instead of computing their sigmoid.
        """
        return memory_encoder(low.permute(0, 2, 3, 1), logits[:, 0], weights, binarize, _EPS)

    def gather_weights(self) -> MemoryEncoderWeights:
        """The weights of `ops.memory_encoder`."""
        steps = [
            (conv.weight, conv.bias, norm_of(norm)) for conv, norm in self.mask_downsampler.steps()
        ]
        return MemoryEncoderWeights(
            tuple(FirstConvolutionWeights(*step) for step in steps[:2]),  # type: ignore[arg-type]
            tuple(MaskConvolutionWeights(*step) for step in steps[2:]),  # type: ignore[arg-type]
            _point(self.mask_downsampler.encoder[-1]),
            _point(self.pix_feat_proj),
            tuple(block.gather_weights() for block in self.fuser.layers),  # type: ignore[operator]
            _point(self.out_proj),
        )


def _point(layer: nn.Module) -> PointConvolution:
    return PointConvolution(layer.weight, layer.bias)  # type: ignore[arg-type]
