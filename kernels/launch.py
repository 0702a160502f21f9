"""How kernels are launched: one decorator for all of them, so that launches can be compiled without
being run."""

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

ROOMY = (80, *HOPPER)
"""Those with 160 KB of shared memory a block, or more; others have 99."""

_only_compile: ContextVar[bool] = ContextVar("sam2_fast_only_compile", default=False)


class Kernel(JITFunction):  # type: ignore[misc, type-arg]
    """A Triton kernel whose launches are compiled and left out inside `only_compile`."""

    def run(self, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        """Compile where necessary and launch; `warmup` compiles only."""
        only = warmup or _only_compile.get()
        options.setdefault("enable_fp_fusion", True)  # Triton 3.10 changes the default
        return super().run(*args, grid=grid, warmup=only, **options)

    def create_binder(self) -> Any:
        """What Triton keeps for a device; its compiler also makes the launcher of a kernel that is
        not run at once."""
        binder = super().create_binder()
        compile_kernel = self.compile

        def compile_with_launcher(source: Any, **options: Any) -> Any:
            compiled = compile_kernel(source, **options)
            if _only_compile.get():
                make_launcher = getattr(driver.active, "launcher_cls", None)
                if make_launcher is not None:
                    # Triton 3.6 compiles C for it, and caches the result
                    make_launcher(compiled.src, compiled.metadata)
            return compiled

        self.compile = compile_with_launcher
        return binder


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`triton.jit` for what is launched from Python; functions that kernels call keep `triton.jit`.

    options: those of `triton.jit`. Where Triton interprets (TRITON_INTERPRET), it is `triton.jit`.
    Arguments are passed by keyword, so that their order cannot be mixed up.
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
    """Launches of this thread inside are compiled, not run: results keep their contents."""
    token = _only_compile.set(True)
    try:
        yield
    finally:
        _only_compile.reset(token)


def is_only_compiling() -> bool:
    """Whether this thread is inside `only_compile`: kernels do not write their results."""
    return _only_compile.get()


class _Workers(ThreadPoolExecutor):
    """Threads that see the context variables of the submitting thread."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        return super().submit(copy_context().run, function, *args, **options)


def compile_ahead(run: Callable[[], object], workers: int | None = None) -> None:
    """Compile what `run` would launch, several kernels at once, and launch nothing.

    `run` is called once; operations of torch in it are executed, so that what kernels would have
    written is read as it happens to be. workers: threads; None: one for each processor, up to 16.
    Triton releases Python's lock in its passes, in LLVM and in ptxas. A kernel that does not
    compile is left to its launch, which says why.
    """
    if triton.knobs.runtime.interpret:
        return
    count = workers or min(os.cpu_count() or 1, 16)
    with _Workers(count) as pool, AsyncCompileMode(pool, ignore_errors=True), only_compile():
        run()


def capability_of(tensor: Tensor) -> int:
    """Compute capability of the device of `tensor`: 80, 89, 90...; 90 for a CPU, where Triton
    interprets."""
    if not tensor.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def multiprocessors_of(tensor: Tensor) -> int:
    """Multiprocessors of the device of `tensor`; 2 for a CPU, where Triton interprets."""
    if not tensor.is_cuda:
        return 2
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)
