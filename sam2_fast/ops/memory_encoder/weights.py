"""Weights of the memory encoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sam2_fast.ops.core.weights import (
    Linear,
    Norm,
    Weights,
    group,
    linear,
    norm,
    repeated,
    sequence,
    tensor,
)


@dataclass(frozen=True, eq=False)
class FirstConvolutionWeights(Weights):
    """A 3 x 3 convolution that is computed in float32, and its norm over channels."""

    weight: Tensor = tensor("O", "I", 3, 3)
    bias: Tensor = tensor("O")
    norm: Norm = norm("O")


@dataclass(frozen=True, eq=False)
class MaskConvolutionWeights(Weights):
    """A 3 x 3 convolution in the compute dtype, and its norm over channels."""

    weight: Tensor = tensor("O", "I", 3, 3, matrix=True)
    bias: Tensor = tensor("O")
    norm: Norm = norm("O")


@dataclass(frozen=True, eq=False)
class PointConvolution(Weights):
    """A 1 x 1 convolution."""

    weight: Tensor = tensor("O", "I", 1, 1, matrix=True)
    bias: Tensor = tensor("O")


@dataclass(frozen=True, eq=False)
class DepthwiseConvolution(Weights):
    """A 7 x 7 depthwise convolution."""

    weight: Tensor = tensor("C", 1, 7, 7)
    bias: Tensor = tensor("C")


@dataclass(frozen=True, eq=False)
class FuserBlockWeights(Weights):
    """A ConvNeXt block."""

    depthwise: DepthwiseConvolution = group(DepthwiseConvolution, C="C")
    norm: Norm = norm("C")
    fc1: Linear = linear("F", "C")
    fc2: Linear = linear("C", "F")
    gamma: Tensor = tensor("C")


@dataclass(frozen=True, eq=False)
class MemoryEncoderWeights(Weights, root=True):
    """Masks through K1 to K4 channels, and features of C channels, to memories of M channels.

    Weights of convolutions that are channels_last are not copied.
    """

    first_convolutions: tuple[FirstConvolutionWeights, ...] = sequence(
        FirstConvolutionWeights, {"O": "K1", "I": 1}, {"O": "K2", "I": "K1"}
    )
    last_convolutions: tuple[MaskConvolutionWeights, ...] = sequence(
        MaskConvolutionWeights, {"O": "K3", "I": "K2"}, {"O": "K4", "I": "K3"}
    )
    mask_proj: PointConvolution = group(PointConvolution, O="C", I="K4")
    low_proj: PointConvolution = group(PointConvolution, O="C", I="C")
    blocks: tuple[FuserBlockWeights, ...] = repeated(FuserBlockWeights, C="C", F="F")
    out_proj: PointConvolution = group(PointConvolution, O="M", I="C")

    @property
    def convolutions(self) -> tuple[FirstConvolutionWeights | MaskConvolutionWeights, ...]:
        """All four convolutions of stride 2, each followed by its norm and GELU."""
        return *self.first_convolutions, *self.last_convolutions
