"""The memory encoder: one memory map from a mask and the features of its frame.

Source: official `memory_encoder.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.layers import LayerNorm2d, OpModule, linear_of, norm_of
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


class MaskDownSampler(nn.Module):
    """Four 3 x 3 convolutions of stride 2, each with norm and GELU, then a projection to `dim`.

    The module has the weights; `ops.memory_encoder` computes.
    """

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

    def steps(self) -> list[tuple[nn.Module, nn.Module]]:
        """The four convolutions and their norms."""
        layers = [layer for layer in self.encoder if not isinstance(layer, nn.GELU)]
        return list(zip(layers[:-1:2], layers[1:-1:2], strict=True))


class FuserBlock(nn.Module):
    """ConvNeXt block: depthwise 7 x 7, norm, two pointwise layers with GELU, layer scale.

    The module has the weights; `ops.memory_encoder` computes.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.pwconv2 = nn.Linear(hidden, dim)
        self.gamma = nn.Parameter(1e-6 * torch.ones(dim))

    def gather_weights(self) -> FuserBlockWeights:
        """The weights of one block of `ops.memory_encoder`."""
        bias = self.dwconv.bias
        assert bias is not None
        depthwise = DepthwiseConvolution(self.dwconv.weight, bias)
        norm, fc1, fc2 = norm_of(self.norm), linear_of(self.pwconv1), linear_of(self.pwconv2)
        return FuserBlockWeights(depthwise, norm, fc1, fc2, self.gamma)


class Fuser(nn.Module):
    """Two blocks, named `fuser.layers` in the checkpoint."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FuserBlock(dim, hidden) for _ in range(2))


class MemoryEncoder(OpModule[MemoryEncoderWeights]):
    """Projected features plus the downsampled mask, fused and projected to `memory_dim`."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.mask_downsampler = MaskDownSampler(dim)
        self.pix_feat_proj = nn.Conv2d(dim, dim, kernel_size=1)
        self.fuser = Fuser(dim, config.fuser_dim)
        self.out_proj = nn.Conv2d(dim, config.memory_dim, kernel_size=1)

    def forward(self, low: Tensor, logits: Tensor, binarize: bool) -> Tensor:
        """Memory maps of B masks on one frame: [B, h * w, memory_dim].

        low: [1 or B, dim, h, w] features. logits: [B, 1, ., .] masks of any size.
        binarize: threshold the masks instead of computing their sigmoid.
        """
        return memory_encoder(low.permute(0, 2, 3, 1), logits[:, 0], self.weights(), binarize, _EPS)

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
