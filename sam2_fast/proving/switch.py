"""Whether kernels must be proved, and on which devices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

SWITCH = "SAM2_FAST_PROVE"
"""Environment variable: "0" turns proofs off in this process."""

_off: ContextVar[bool] = ContextVar("sam2_fast_prove_off", default=False)


@contextmanager
def off() -> Iterator[None]:
    """Inside the context, kernels of this thread run without a proof, even those known as wrong."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def enabled() -> bool:
    """Whether kernels must be proved, in this thread at this time."""
    return not _off.get() and os.environ.get(SWITCH, "1") != "0"


def on_gpu(backend: str, device: torch.device) -> bool:
    """Whether a kernel needs a proof: on a GPU it does. On a CPU only the doctor proves kernels."""
    del backend
    return device.type == "cuda"
