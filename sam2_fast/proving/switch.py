"""Whether kernels must be proved, and which."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

SWITCH = "SAM2_FAST_PROVE"
"""Environment variable: "0" runs kernels without a proof in this process."""

_off: ContextVar[bool] = ContextVar("sam2_fast_prove_off", default=False)


@contextmanager
def off() -> Iterator[None]:
    """Inside, kernels of this thread run without a proof; those that are known to be wrong, too."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def enabled() -> bool:
    """Whether kernels must be proved, for this thread and now."""
    return not _off.get() and os.environ.get(SWITCH, "1") != "0"


def on_gpu(backend: str, device: torch.device) -> bool:
    """Which kernels must prove themselves: those on a GPU. A CPU is looked at by the doctor."""
    del backend
    return device.type == "cuda"
