"""The door to the native module: what is there, and why not."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor


@lru_cache(maxsize=1)
def native() -> ModuleType | None:
    """`sam2_fast._C`, or None where the package was not built."""
    try:
        from sam2_fast import _C
    except ImportError:
        return None
    return _C


def no_cpu() -> str | None:
    """Why native CPU kernels cannot run here; None where they can."""
    return None if native() else "sam2_fast._C is not built; install the package with pip"


def no_cuda() -> str | None:
    """Why CUDA kernels cannot run here; None where they can."""
    module = native()
    if module is None:
        return no_cpu()
    if not module.cuda_architectures():
        return "this build has no CUDA kernels (no nvcc when it was built)"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


@lru_cache(maxsize=1)
def no_triton() -> str | None:
    """Why Triton kernels cannot run here; None where they can."""
    from importlib.util import find_spec

    if find_spec("triton") is None:
        return "triton is not installed (pip install sam2-fast[triton])"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def is_plain(*tensors: Tensor) -> bool:
    """Whether all are ordinary tensors with data: subclasses such as FakeTensor must not reach the native code."""
    return all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
