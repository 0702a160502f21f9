"""Folding of the convolutions between the trunk's fine maps and the mask decoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.model.fusion import Fusion
from sam2_fast.model.image_encoder import ImageEncoder
from sam2_fast.model.mask_decoder import MaskDecoder
from sam2_fast.ops.core.cache import Cache
from sam2_fast.ops.core.native import is_differentiated
from sam2_fast.types import Features

Layer = tuple[Tensor, Tensor | None]
"""Weight and bias of a convolution."""


class FoldedProjections:
    """Lateral convolutions of the neck, each as one product with the decoder's projection.

    So the two fine levels of the pyramid, which nothing else reads, are never computed.
    """

    def __init__(self, encoder: ImageEncoder, decoder: MaskDecoder) -> None:
        shallow = ("image_encoder",)
        self._fusion: Fusion[Any] = Fusion(_roots(encoder, decoder), shallow)
        self._folded: Cache[tuple[Layer, Layer]] = Cache()

    @property
    def cached_values(self) -> list[object]:
        """The folded convolutions, or None before the first image."""
        return [self._folded.value]

    def clear(self) -> None:
        """Drop the folded convolutions, after changes that cannot be detected."""
        self._folded.clear()

    def run(self, encoder: nn.Module, decoder: nn.Module, images: Tensor) -> Features | None:
        """Features of images [B, 3, S, S], or None if the neck or the decoder must be called."""
        if type(encoder) is not ImageEncoder or type(decoder) is not MaskDecoder:
            return None
        if self._fusion.examined(_roots(encoder, decoder), images) is None:
            return None
        convs: Any = encoder.neck.convs
        fine, finest = (convs[2].conv, decoder.conv_s1), (convs[3].conv, decoder.conv_s0)
        parameters = [p for layer in (*fine, *finest) for p in layer.parameters()]
        if is_differentiated(*parameters, images):
            return None
        mid, high = self._folded.get(
            lambda: (fold_convolutions(*fine), fold_convolutions(*finest)), parameters
        )
        maps = encoder.trunk(images)
        return Features(encoder.neck.low(maps), F.conv2d(maps[1], *mid), F.conv2d(maps[0], *high))


def _roots(encoder: ImageEncoder, decoder: MaskDecoder) -> dict[str, nn.Module]:
    return {
        "image_encoder": encoder,
        "image_encoder.neck": encoder.neck,
        "sam_mask_decoder.conv_s0": decoder.conv_s0,
        "sam_mask_decoder.conv_s1": decoder.conv_s1,
    }


def fold_convolutions(inner: nn.Conv2d, outer: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one 1 x 1 convolution that computes `outer(inner(x))`.

    inner, outer: 1 x 1 convolutions. The result has the dtype of `outer`.
    """
    with torch.autocast(inner.weight.device.type, enabled=False):
        compute_dtype = torch.promote_types(inner.weight.dtype, torch.float32)
        matrix = outer.weight.flatten(1).to(compute_dtype)
        weight = matrix @ inner.weight.flatten(1).to(compute_dtype)
        bias = outer.bias
        if inner.bias is not None:
            shift = matrix @ inner.bias.to(compute_dtype)
            bias = shift if bias is None else shift + bias.to(compute_dtype)
    dtype = outer.weight.dtype
    return weight.to(dtype)[..., None, None], None if bias is None else bias.to(dtype)
