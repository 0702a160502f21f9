"""Linear layers and norms in the definitions of ops."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.core.weights import Linear, Norm


def project(x: Tensor, layer: Linear) -> Tensor:
    """x @ weight.T + bias. x: [..., I] -> [..., O]."""
    return F.linear(x, layer.weight, layer.bias)


def layer_norm(x: Tensor, norm: Norm, eps: float) -> Tensor:
    """Layer norm over the last dimension. x: [..., C] -> the same shape."""
    # int(): sizes are tensors while torch.jit traces, and the ONNX exporter needs a number
    return F.layer_norm(x, (int(x.shape[-1]),), norm.weight, norm.bias, eps)
