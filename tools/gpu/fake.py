"""A fake GPU, on which kernels are compiled and recorded, but not run.

Launches of Triton kernels pass through Triton's own binder, cache key and compiler, for any
architecture.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import flop_registry

from tools.gpu.architectures import ARCHITECTURES, Architecture
from tools.gpu.costs import launch_bytes, launch_flops


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel."""

    kernel: str
    grid: tuple[int, ...]
    compiled: Any  # triton.compiler.CompiledKernel
    flops: int
    bytes: int

    @property
    def blocks(self) -> int:
        """Number of blocks in the grid."""
        return math.prod(self.grid)


@dataclass
class Stage:
    """The launches of one part of the pipeline."""

    launches: list[Launch] = field(default_factory=list)
    torch_operations: dict[str, int] = field(default_factory=dict)  # name -> number of calls
    torch_flops: int = 0
    torch_bytes: int = 0


class FakeGpu:
    """A context manager in which CPU tensors take the place of GPU tensors.

    Every op with a Triton implementation runs it, on whatever device its tensors are. The outputs
    of kernels are zeros, or True if they are bool.
    """

    def __init__(self, capability: int) -> None:
        """Takes a key of `ARCHITECTURES`. Raises KeyError for other compute capabilities."""
        self.architecture: Architecture = ARCHITECTURES[capability]
        self._stage: Stage | None = None
        self._patches = ExitStack()

    def __enter__(self) -> FakeGpu:
        with ExitStack() as patches:  # undone if one of them fails
            self._patch(patches)
            self._patches = patches.pop_all()
        return self

    def _patch(self, patches: ExitStack) -> None:
        from triton.runtime.driver import driver
        from triton.runtime.jit import JITFunction

        active = driver._active
        driver.set_active(_Driver(self.architecture.capability))
        patches.callback(setattr, driver, "_active", active)
        major, minor = divmod(self.architecture.capability, 10)
        properties = SimpleNamespace(multi_processor_count=self.architecture.multiprocessors)
        for target, name, value in (
            (JITFunction, "run", self._launcher(JITFunction.run)),
            (torch.cuda, "device_of", lambda tensor: nullcontext()),
            (torch.cuda, "get_device_capability", lambda device=None: (major, minor)),
            (torch.cuda, "get_device_properties", lambda device=None: properties),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
            (torch.Tensor, "is_cuda", property(lambda tensor: True)),
            (torch.Tensor, "new_empty", _zeros),
            (torch, "empty_like", _zeros_like),
        ):
            patches.enter_context(patch.object(target, name, value))
        for target, name, value in _every_op_in_triton():
            patches.enter_context(patch.object(target, name, value))

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    @contextmanager
    def stage(self) -> Iterator[Stage]:
        """A context in which launches are recorded in the returned stage."""
        self._stage = stage = Stage()
        try:
            with _TorchOperations(stage):
                yield stage
        finally:
            self._stage = None

    def _launcher(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def launch(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            del warmup
            compiled = run(function, *args, grid=grid, warmup=True, **options)
            _store_launcher(compiled)
            if self._stage is not None:
                names = dict(zip(function.arg_names, args, strict=False)) | options
                name = function.fn.__name__
                with _disable_current_modes():
                    flops = launch_flops(name, names)
                    num_bytes = launch_bytes(names)
                self._stage.launches.append(Launch(name, tuple(grid), compiled, flops, num_bytes))
            return compiled

        return launch


def _store_launcher(compiled: Any) -> None:
    """Build the C launcher of a kernel in Triton's cache if SAM2_FAST_FAKE_LAUNCHERS is set.

    This needs a `libcuda.so.1`, which may be a stub.
    """
    if not os.environ.get("SAM2_FAST_FAKE_LAUNCHERS") or compiled.hash in _LAUNCHERS:
        return
    from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

    if not _LAUNCHERS:
        CudaUtils()
    CudaLauncher(compiled.src, compiled.metadata)
    _LAUNCHERS.add(compiled.hash)


_LAUNCHERS: set[str] = set()
"""Hashes of the kernels for which this process has built launchers."""


class _Driver:
    """The methods of a driver that Triton calls before a launch.

    Every architecture has its own device index.
    """

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return self._capability

    def get_current_stream(self, device: int) -> int:
        del device
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)


_VIEWS = {
    "alias",
    "as_strided",
    "detach",
    "diagonal",
    "expand",
    "narrow",
    "permute",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unflatten",
    "unfold",
    "unsqueeze",
    "view",
    "view_as",
    "_unsafe_view",
    "_reshape_alias",
    "movedim",
}
_NO_KERNEL = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "lift_fresh",
    "promote_types",
    "is_nonzero",
}


class _TorchOperations(TorchDispatchMode):
    """Counts the torch operations that would launch at least one kernel."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in _VIEWS or name in _NO_KERNEL:
            return out
        stage = self._stage
        stage.torch_operations[name] = stage.torch_operations.get(name, 0) + 1
        tensors = [x for x in (*args, *kwargs.values(), out) if isinstance(x, Tensor)]
        stage.torch_bytes += sum(x.numel() * x.element_size() for x in tensors)
        if func.overloadpacket in flop_registry:
            stage.torch_flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return out


def _zeros(tensor: Tensor, *size: Any, **options: Any) -> Tensor:
    """`Tensor.new_empty` with zeros, so that results do not depend on uninitialised memory."""
    with _disable_current_modes():
        return tensor.new_zeros(*size, **options)


def _zeros_like(tensor: Tensor, **options: Any) -> Tensor:
    """`torch.empty_like` with zeros, or with True for bool, so that filters keep every mask."""
    with _disable_current_modes():
        zeros = torch.zeros_like(tensor, **options)
        return zeros.logical_not() if zeros.dtype == torch.bool else zeros


def _needs_a_gpu() -> str:
    return "this package's CUDA kernels need a GPU"


def _every_op_in_triton() -> Iterator[tuple[Any, str, Any]]:
    """Attributes to patch so that every op runs in Triton, as it does on a GPU.

    Yields the owner, the name and the new value of each.
    """
    from sam2_fast.image import automatic as mask_generator
    from sam2_fast.ops.core import registry, tracing

    implementations = dict(registry._implementations)
    for (op, backend), implementation in registry._implementations.items():
        if backend == "triton":
            accepting = registry.Implementation(op, backend, implementation.run, lambda *_: None)
            implementations[op, backend] = accepting
        if backend == "cuda":
            implementations[op, backend] = replace(implementation, absent=_needs_a_gpu)
    yield registry, "_implementations", implementations
    yield mask_generator, "_on_accelerator", lambda device: True
    # `_TorchOperations` is a TorchDispatchMode. While one is active, ops would run their reference
    # implementations.
    yield tracing, "recording_reason", lambda: None
