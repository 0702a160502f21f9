"""The decorator of kernels that Python launches, and compilation without launching."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import torch
import triton
from torch import Tensor
from triton import AsyncCompileMode
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

HOPPER = (90, 100, 103)
"""Compute capabilities with wgmma or tcgen05, which read both operands from shared memory."""

LARGE_SHARED_MEMORY = (80, *HOPPER)
"""Compute capabilities with at least 160 KB of shared memory per block; others have 99."""

_only_compile: ContextVar[bool] = ContextVar("sam2_fast_only_compile", default=False)


class Kernel(JITFunction):  # type: ignore[misc, type-arg]
    """A Triton kernel. Within `only_compile` it is compiled but not launched."""

    def run(self, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        """Compile if necessary and launch; with `warmup`, only compile."""
        compile_only = warmup or _only_compile.get()
        options.setdefault("enable_fp_fusion", True)  # Triton 3.10 changes the default
        return super().run(*args, grid=grid, warmup=compile_only, **options)

    def create_binder(self) -> Any:
        """The binder that Triton caches for a device.

        It also replaces `self.compile` by a function that, within `only_compile`, builds the
        launcher of a kernel right after compiling it.
        """
        binder = super().create_binder()
        compile_kernel = self.compile

        def compile_with_launcher(source: Any, **options: Any) -> Any:
            compiled = compile_kernel(source, **options)
            if _only_compile.get():
                make_launcher = getattr(driver.active, "launcher_cls", None)
                if make_launcher is not None:
                    # in Triton 3.6 this compiles C and caches the result
                    make_launcher(compiled.src, compiled.metadata)
            return compiled

        self.compile = compile_with_launcher
        return binder


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`triton.jit` for kernels that Python launches; device functions use `triton.jit` itself.

    options: those of `triton.jit`. In the interpreter (TRITON_INTERPRET) it equals `triton.jit`.
    Kernels are launched with keyword arguments, so that their order cannot be mixed up.
    """
    if function is None:
        return lambda decorated: kernel(decorated, **options)
    return (
        triton.jit(function, **options)
        if triton.knobs.runtime.interpret
        else Kernel(function, **options)
    )


@contextmanager
def only_compile() -> Iterator[None]:
    """Context in which kernels of this thread are compiled, not run: outputs are not written."""
    token = _only_compile.set(True)
    try:
        yield
    finally:
        _only_compile.reset(token)


def is_only_compiling() -> bool:
    """Whether this thread is within `only_compile`, so that kernels do not write their outputs."""
    return _only_compile.get()


class _Workers(ThreadPoolExecutor):
    """Thread pool that runs each task with the context variables of the submitting thread."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        return super().submit(copy_context().run, function, *args, **options)


def compile_ahead(run: Callable[[], object], workers: int | None = None) -> None:
    """Compile the kernels that `run` would launch, several at once, without launching them.

    `run` is called once. Its torch operations are executed, on outputs of kernels that hold
    uninitialised memory. A kernel that fails to compile is skipped; its launch raises the error.
    workers: number of threads, or None for one per processor, up to 16. Triton releases the GIL in
        its passes, in LLVM and in ptxas.
    """
    if triton.knobs.runtime.interpret:
        return
    count = workers or min(os.cpu_count() or 1, 16)
    with _Workers(count) as pool, AsyncCompileMode(pool, ignore_errors=True), only_compile():
        run()


def capability_of(tensor: Tensor) -> int:
    """Compute capability of the tensor's device: 80, 89, 90...; 90 for a CPU (the interpreter)."""
    if not tensor.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def multiprocessors_of(tensor: Tensor) -> int:
    """Number of multiprocessors of the tensor's device; 2 for a CPU (the interpreter)."""
    if not tensor.is_cuda:
        return 2
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)
