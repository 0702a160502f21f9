"""The memory encoder: one memory map from a mask and the features of its frame.

Source: official `memory_encoder.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.fusion import Fusion, OpModule, Part, unusual_setting
from sam2_fast.model.layers import DropPath, LayerNorm2d, copies_of, linear_of, norm_of
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
    """Convolutions of a stride, each with norm and activation, then a projection to `embed_dim`.

    Four 3 x 3 convolutions of stride 2 with GELU in the released models. total_stride: of all.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        kernel_size: int = 4,
        stride: int = 4,
        padding: int = 0,
        total_stride: int = 16,
        activation: type[nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        count = round(math.log(total_stride, stride))
        if stride**count != total_stride:
            raise ValueError(
                f"total_stride: expected a power of the stride {stride}, got {total_stride}"
            )
        steps: list[nn.Module] = []
        channels = 1
        for _ in range(count):
            steps += [
                nn.Conv2d(channels, channels * stride**2, kernel_size, stride, padding),
                LayerNorm2d(channels * stride**2),
                activation(),
            ]
            channels *= stride**2
        self.encoder = nn.Sequential(*steps, nn.Conv2d(channels, embed_dim, kernel_size=1))

    def reason_against_op(self) -> str | None:
        """The op has four 3 x 3 convolutions of stride 2 and GELU."""
        *steps, _ = self.encoder
        convs = [(c.kernel_size, c.stride, c.padding) for c in steps[::3]]
        kinds = [(type(act), getattr(act, "approximate", None)) for act in steps[2::3]]
        return unusual_setting(
            kernel_size_stride_padding=(convs, [((3, 3), (2, 2), (1, 1))] * 4),
            activation=(kinds, [(nn.GELU, "none")] * 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: masks [B, 1, S, S] -> [B, dim, S / 16, S / 16]."""
        return self.encoder(x)

    def steps(self) -> list[tuple[nn.Module, nn.Module]]:
        """The four convolutions and their norms."""
        layers = [layer for layer in self.encoder if not isinstance(layer, nn.GELU)]
        return list(zip(layers[:-1:2], layers[1:-1:2], strict=True))


class CXBlock(Part):
    """ConvNeXt block: depthwise convolution, norm, two pointwise layers with GELU, layer scale.

    drop_path: probability of dropping the branch in training mode.
    layer_scale_init_value: of the scales; 0 or less: there are none.
    hidden: channels between the pointwise layers; None: 4 * dim, as in the released models.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        padding: int = 3,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        use_dwconv: bool = True,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        groups = dim if use_dwconv else 1
        hidden = 4 * dim if hidden is None else hidden
        self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=padding, groups=groups)
        self.norm = LayerNorm2d(dim)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(hidden, dim)
        scaled = layer_scale_init_value > 0
        self.gamma = nn.Parameter(layer_scale_init_value * torch.ones(dim)) if scaled else None
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def reason_against_op(self) -> str | None:
        """The op has a depthwise 7 x 7 convolution, and scales."""
        conv = self.dwconv
        return unusual_setting(
            kernel_size=(conv.kernel_size, (7, 7)),
            padding=(conv.padding, (3, 3)),
            groups=(conv.groups, conv.in_channels),
            layer_scale=(self.gamma is not None, True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, dim, H, W] -> the same shape."""
        hidden = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        hidden = self.pwconv2(self.act(self.pwconv1(hidden)))
        if self.gamma is not None:
            hidden = self.gamma * hidden
        return x + self.drop_path(hidden.permute(0, 3, 1, 2))

    def gather_weights(self) -> FuserBlockWeights:
        """The weights of one block of `ops.memory_encoder`."""
        bias = self.dwconv.bias
        assert bias is not None and self.gamma is not None
        depthwise = DepthwiseConvolution(self.dwconv.weight, bias)
        norm, fc1, fc2 = norm_of(self.norm), linear_of(self.pwconv1), linear_of(self.pwconv2)
        return FuserBlockWeights(depthwise, norm, fc1, fc2, self.gamma)


class Fuser(Part):
    """Blocks, named `fuser.layers` in the checkpoint, after a projection if there is one.

    layer: copied num_layers times; a ModuleList of so many layers is used as it is.
    """

    def __init__(
        self,
        layer: nn.Module,
        num_layers: int,
        dim: int | None = None,
        input_projection: bool = False,
    ) -> None:
        super().__init__()
        self.proj: nn.Module = nn.Identity()
        self.layers = copies_of(layer, num_layers)
        if input_projection:
            if dim is None:
                raise ValueError("dim: expected the channels of input_projection, got None")
            self.proj = nn.Conv2d(dim, dim, kernel_size=1)

    def reason_against_op(self) -> str | None:
        """The op has blocks only."""
        return unusual_setting(
            input_projection=(type(self.proj), nn.Identity),
            layer=({type(layer) for layer in self.layers}, {CXBlock}),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, dim, H, W] -> the same shape."""
        x = self.proj(x)
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(OpModule[MemoryEncoderWeights]):
    """Projected features plus the downsampled mask, fused and projected to `memory_dim`."""

    def __init__(
        self,
        out_dim: int,
        mask_downsampler: MaskDownSampler,
        fuser: Fuser,
        position_encoding: nn.Module,
        in_dim: int = 256,
        pix_feat_proj: nn.Module | None = None,
    ) -> None:
        """out_dim: channels of a memory. in_dim: channels of the features.

        pix_feat_proj: projection of the features; None: a 1 x 1 convolution.
        """
        super().__init__()
        self.mask_downsampler = mask_downsampler
        self.pix_feat_proj = pix_feat_proj or nn.Conv2d(in_dim, in_dim, kernel_size=1)
        self.fuser = fuser
        self.position_encoding = position_encoding
        self.out_proj: nn.Module = nn.Identity()
        if out_dim != in_dim:
            self.out_proj = nn.Conv2d(in_dim, out_dim, kernel_size=1)
        self._fusion = Fusion({"": self})

    @classmethod
    def from_config(cls, config: Sam2Config) -> MemoryEncoder:
        """The memory encoder of an architecture."""
        dim = config.hidden_dim
        # In this order, so that a seed gives the same random weights as it always did.
        downsampler = MaskDownSampler(dim, kernel_size=3, stride=2, padding=1)
        projection = nn.Conv2d(dim, dim, kernel_size=1)
        blocks = nn.ModuleList(CXBlock(dim, hidden=config.fuser_dim) for _ in range(2))
        return cls(
            out_dim=config.memory_dim,
            mask_downsampler=downsampler,
            fuser=Fuser(blocks, num_layers=2),
            position_encoding=PositionEmbeddingSine(config.memory_dim),
            in_dim=dim,
            pix_feat_proj=projection,
        )

    def reason_against_op(self) -> str | None:
        """The op projects memories to fewer channels."""
        parts = type(self.mask_downsampler), type(self.fuser)
        return unusual_setting(
            parts=(parts, (MaskDownSampler, Fuser)), out_proj=(type(self.out_proj), nn.Conv2d)
        )

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
