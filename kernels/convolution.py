"""Convolutions with a layer norm behind them, and how torch computes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Convolution(NamedTuple):
    """A convolution and the layer norm behind it."""

    weight: Tensor
    """[taps, K, C] or, of each channel alone, [taps, C]; the first convolution's [C, taps]."""
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    plain: Tensor
    """The weight as torch has it: [C, K or 1, side, side]."""


def convolved(
    x: Tensor, convolution: Convolution, eps: float, stride: int, padding: int, groups: int
) -> Tensor:
    """A convolution of x [B, H, W, K] and its norm by torch."""
    norm_weight = convolution.norm_weight.to(x.dtype)
    norm_bias = convolution.norm_bias.to(x.dtype)
    weight = convolution.plain.to(x.dtype)
    bias = convolution.bias.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        image = x.permute(0, 3, 1, 2)
        y = F.conv2d(image, weight, bias, stride=stride, padding=padding, groups=groups)
        return F.layer_norm(y.permute(0, 2, 3, 1), (len(bias),), norm_weight, norm_bias, eps)
