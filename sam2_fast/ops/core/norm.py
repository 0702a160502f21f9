"""Layer norm as the definitions of ops use it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension. x: [..., C]; weight, bias: [C] -> the shape of x."""
    # a plain int: while torch.jit traces, sizes are tensors, and the ONNX exporter wants to know this one
    return F.layer_norm(x, (int(x.shape[-1]),), weight, bias, eps)
