"""Weights of a convolution with the layer norm after it, and its computation by torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Convolution(NamedTuple):
    """Weights of a convolution and of the layer norm after it."""

    weight: Tensor
    """In the kernel's layout: [taps, K, C]; depthwise [taps, C]; first convolution [C, taps]."""
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    torch_weight: Tensor
    """The weight in torch's layout: [C, K or 1, side, side]."""


def torch_convolution(
    x: Tensor, convolution: Convolution, eps: float, stride: int, padding: int, groups: int
) -> Tensor:
    """Convolution and layer norm of x [B, H, W, K] by torch: [B, H', W', C]."""
    norm_weight = convolution.norm_weight.to(x.dtype)
    norm_bias = convolution.norm_bias.to(x.dtype)
    weight = convolution.torch_weight.to(x.dtype)
    bias = convolution.bias.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        image = x.permute(0, 3, 1, 2)
        y = F.conv2d(image, weight, bias, stride=stride, padding=padding, groups=groups)
        return F.layer_norm(y.permute(0, 2, 3, 1), (len(bias),), norm_weight, norm_bias, eps)
