"""The compute dtype of ops: that of autocast if it is enabled, else that of the weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from sam2_fast.ops.core.cache import derive
from sam2_fast.ops.core.layout import Leaf
from sam2_fast.ops.core.native import is_differentiated
from sam2_fast.ops.core.weights import Weights

W = TypeVar("W", bound=Weights)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The compute dtype for products with `weight`: that of autocast, else that of `weight`."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def in_compute_dtype(weights: W) -> W:
    """`weights` with their matrices cast to the dtype of autocast, once: the result is cached.

    Returns `weights` itself without autocast, and if gradients are computed. Convolution kernels
    become channels_last.
    """
    tensors = weights.tensors
    kind = tensors[0].device.type
    enabled = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
    if not enabled or is_differentiated(*tensors):
        return weights
    dtype = torch.get_autocast_dtype(kind)

    def cast(leaf: Leaf, x: Tensor) -> Tensor:
        if not leaf.matrix:
            return x
        layout = torch.channels_last if x.ndim == 4 else torch.preserve_format
        return x.detach().to(dtype, memory_format=layout)

    return derive(weights, f"in {dtype}", lambda: weights.mapped(cast))
