"""Weights of the mask decoder, and of the heads that read its output tokens."""

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
class MlpWeights(Weights):
    """Three linear layers with ReLU between: I -> H -> H -> O."""

    linear1: Linear = linear("H", "I")
    linear2: Linear = linear("H", "H")
    linear3: Linear = linear("O", "H")


@dataclass(frozen=True, eq=False)
class AttentionWeights(Weights):
    """Projections of an attention over tokens of C channels, with D inner channels."""

    q: Linear = linear("D", "C")
    k: Linear = linear("D", "C")
    v: Linear = linear("D", "C")
    out: Linear = linear("C", "D")


@dataclass(frozen=True, eq=False)
class TwoWayLayerWeights(Weights):
    """Self-attention of prompt tokens, their attention to the image, an MLP, and the converse."""

    self_attention: AttentionWeights = group(AttentionWeights, C="C", D="C")
    norm1: Norm = norm("C")
    token_to_image: AttentionWeights = group(AttentionWeights, C="C", D="C/2")
    norm2: Norm = norm("C")
    fc1: Linear = linear("F", "C")
    fc2: Linear = linear("C", "F")
    norm3: Norm = norm("C")
    norm4: Norm = norm("C")
    """Of the image tokens, after their attention to the prompt tokens."""
    image_to_token: AttentionWeights = group(AttentionWeights, C="C", D="C/2")


@dataclass(frozen=True, eq=False)
class UpscalingWeights(Weights):
    """A transposed 2 x 2 convolution of stride 2."""

    weight: Tensor = tensor("I", "O", 2, 2, matrix=True)
    bias: Tensor = tensor("O")


@dataclass(frozen=True, eq=False)
class MaskDecoderWeights(Weights, root=True):
    """A decoder of C channels that predicts K values of IoU, and a mask for each of `masks`."""

    layers: tuple[TwoWayLayerWeights, ...] = sequence(
        TwoWayLayerWeights, {"C": "C", "F": "F"}, {"C": "C", "F": "F"}
    )
    final_attention: AttentionWeights = group(AttentionWeights, C="C", D="C/2")
    final_norm: Norm = norm("C")
    up1: UpscalingWeights = group(UpscalingWeights, I="C", O="C/4")
    up_norm: Norm = norm("C/4")
    up2: UpscalingWeights = group(UpscalingWeights, I="C/4", O="C/8")
    iou: MlpWeights = group(MlpWeights, I="C", H="H", O="K")
    masks: tuple[MlpWeights, ...] = repeated(MlpWeights, I="C", H="C", O="C/8")


@dataclass(frozen=True, eq=False)
class ObjectHeadsWeights(Weights, root=True):
    """Heads for the presence of an object, C -> P -> P -> 1, and its pointer, C -> Q -> Q -> C."""

    presence: MlpWeights = group(MlpWeights, I="C", H="P", O=1)
    pointer: MlpWeights = group(MlpWeights, I="C", H="Q", O="C")
