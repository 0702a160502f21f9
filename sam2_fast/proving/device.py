"""The state of GPUs and of Triton's compiler, for ops, proofs and CUDA graphs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_CAPTURES = threading.RLock()
"""Held during warm-up and capture of a CUDA graph. torch allows one capture at a time in a process,
and starting one waits for the device and empties the allocator's cache. Acquire it after the lock
of a `Recorder`, never before. Other threads can run eager work and replay graphs meanwhile."""


@lru_cache(maxsize=1)
def no_triton() -> str | None:
    """Why Triton kernels cannot run on this machine, or None."""
    from importlib.util import find_spec

    if find_spec("triton") is None:
        return "triton is not installed (pip install sam2-fast[triton])"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def compile_ahead(run: Callable[[], object]) -> None:
    """Compile the Triton kernels that `run` launches, in parallel, without launching them.

    `run` is called once, in inference mode or without gradients, and its results are discarded.
    Does nothing if Triton kernels cannot run.
    """
    if no_triton() is None:
        from sam2_fast.kernels.launch import compile_ahead as compile_kernels

        compile_kernels(run)


def compiles_only() -> bool:
    """Whether a launch only compiles its kernel now, and does not run it."""
    launch = sys.modules.get("sam2_fast.kernels.launch")
    return launch is not None and bool(launch.is_only_compiling())


def capturing(tensor: Tensor) -> bool:
    """Whether operations on `tensor` are now captured in a CUDA graph instead of executed."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def exclusive() -> AbstractContextManager[Any]:
    """A lock. While it is held, no other thread in this process warms up or captures a graph."""
    return _CAPTURES


def reason_of(error: BaseException) -> str:
    """One line: type and first line of the error, after those of the errors that caused it."""
    lines = str(error).splitlines()
    own = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    earlier = error.__cause__ if error.__suppress_context__ else error.__context__
    return own if earlier is None else f"{reason_of(earlier)}; then {own}"
