"""The native module, and why its kernels cannot run on a machine."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._pytree import tree_map_only

from sam2_fast.proving.device import no_triton as no_triton


@lru_cache(maxsize=1)
def native() -> ModuleType | None:
    """`sam2_fast._C`, or None if the package was not built."""
    try:
        return import_module("sam2_fast._C")
    except ImportError:
        return None


def no_cpu() -> str | None:
    """Why native CPU kernels cannot run on this machine, or None."""
    return None if native() else "sam2_fast._C is not built; install the package with pip"


@lru_cache(maxsize=1)
def no_cuda() -> str | None:
    """Why CUDA kernels cannot run on this machine, or None."""
    module = native()
    if module is None:
        return no_cpu()
    if not module.cuda_architectures():
        return "this build has no CUDA kernels (nvcc was missing when it was built)"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def is_plain(*tensors: Tensor) -> bool:
    """Whether all are ordinary tensors with their values in memory.

    Subclasses such as FakeTensor must not reach native code. Lazily negated tensors (memory holds
    the negative) and zero tensors (without memory) go through `materialized` first. Conjugated
    tensors are complex, which no native kernel supports.
    """
    return all(
        (type(t) is Tensor or type(t) is Parameter) and not t.is_neg() and not t._is_zerotensor()
        for t in tensors
    )


def materialized(arguments: Any) -> Any:
    """`arguments` with lazily negated, conjugated and zero tensors replaced by ordinary ones."""
    return tree_map_only(Tensor, _materialize, arguments)


def _materialize(tensor: Tensor) -> Tensor:
    if type(tensor) is not Tensor and type(tensor) is not Parameter:
        return tensor
    if tensor._is_zerotensor():
        # an addition allocates memory and keeps gradients; a clone would be a zero tensor too
        return tensor + torch.zeros((), dtype=tensor.dtype, device=tensor.device)
    return tensor.resolve_conj().resolve_neg()


def is_differentiated(*tensors: Tensor) -> bool:
    """Whether autograd records operations on any of these tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


ISAS = ("portable", "avx2", "avx512", "avx512_bf16")
"""Instruction sets that CPU kernels are compiled for, the oldest first."""


def isas() -> tuple[str, ...]:
    """The instruction sets in `ISAS` that this CPU has; empty without the native module."""
    module = native()
    return () if module is None else ISAS[: ISAS.index(module.cpu_isa()) + 1]
