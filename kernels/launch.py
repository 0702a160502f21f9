"""How kernels are launched: one decorator for all of them, so that launches can be compiled without being run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

_only_compile: ContextVar[bool] = ContextVar("sam2_fast_only_compile", default=False)


class Kernel(JITFunction):  # type: ignore[misc, type-arg]
    """A Triton kernel whose launches are compiled and left out inside `only_compile`."""

    def run(self, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        """Compile where necessary and launch; `warmup` compiles only."""
        only = warmup or _only_compile.get()
        options.setdefault("enable_fp_fusion", True)  # Triton 3.10 changes the default
        return super().run(*args, grid=grid, warmup=only, **options)


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`triton.jit` for what is launched from Python; functions that kernels call keep `triton.jit`.

    options: those of `triton.jit`. Where Triton interprets (TRITON_INTERPRET), it is `triton.jit`.
    """
    if function is None:
        return lambda decorated: kernel(decorated, **options)
    return triton.jit(function, **options) if triton.knobs.runtime.interpret else Kernel(function, **options)


@contextmanager
def only_compile() -> Iterator[None]:
    """Launches of this thread inside are compiled, not run: what they would write stays as it is."""
    token = _only_compile.set(True)
    try:
        yield
    finally:
        _only_compile.reset(token)


def capability_of(tensor: Tensor) -> int:
    """Compute capability of the device of `tensor`: 80, 89, 90...; 90 for a CPU, where Triton interprets."""
    if not tensor.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def multiprocessors_of(tensor: Tensor) -> int:
    """Multiprocessors of the device of `tensor`; 2 for a CPU, where Triton interprets."""
    if not tensor.is_cuda:
        return 2
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)
