"""Activation functions for Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gelu(x):
    """Exact GELU (by the error function), in the dtype of x."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
