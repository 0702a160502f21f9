"""Whether operations of torch only run, or are also recorded, transformed or intercepted.

Native and Triton kernels write to memory without an operator of torch. A recorder would store their
output memory as an uninitialised constant, and a transform would have nothing to apply to.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

_tracing_state = torch._C._get_tracing_state
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_transforms = torch._C._functorch.peek_interpreter_stack


def recording_reason() -> str | None:
    """Why a kernel that torch cannot see must not run now, as part of a sentence, or None.

    It does not depend on any tensor. Inside a custom op it is None, except in forward-mode
    differentiation: torch suspends recorders, modes and transforms while an operator runs.
    """
    # This check comes first: it is a constant for torch.compile, which cannot trace the others.
    if torch.compiler.is_compiling():
        exporting = is_onnx_export()
        return f"{'an ONNX export' if exporting else 'torch.compile or torch.export'} is under way"
    if _tracing_state() is not None:
        # ONNX exporters run a model under one of these two conditions, so that the check for them,
        # which takes 0.8 us, is needed only here
        return "an ONNX export is under way" if is_onnx_export() else "torch.jit.trace is under way"
    if _dispatch_modes():
        return "a TorchDispatchMode is active"
    if _function_modes() and _foreign_function_mode():
        return "a TorchFunctionMode is active"
    if _transforms() is not None:
        return "a torch.func transform (vmap, grad, jvp, ...) is active"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    return None


def _foreign_function_mode() -> bool:
    """Whether a function mode is active besides that of the default device.

    `with torch.device(...)` and `torch.set_default_device` change defaults only.
    """
    modes = map(torch._C._get_function_stack_at, range(_function_modes()))
    return any(type(mode) is not DeviceContext for mode in modes)


def is_onnx_export() -> bool:
    """Whether an ONNX export is under way, by either exporter."""
    return torch.onnx.is_in_onnx_export()


def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


# This is what torch.compiler.assume_constant_result does, without importing the compiler: Dynamo
# calls the two functions while it traces. Without the attribute it would assume that
# `is_in_onnx_export()` is False and, in torch 2.11, that `is_exporting()` is True.
is_onnx_export._dynamo_marked_constant = True  # type: ignore[attr-defined]
_is_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def may_leave_graph() -> bool:
    """Whether torch.compile is tracing: it can call a kernel between two graphs.

    torch.export and the ONNX exporters cannot.
    """
    return torch.compiler.is_dynamo_compiling() and not _is_exporting()


def bakes_values_in() -> bool:
    """Whether a value that Python reads from a tensor becomes a constant of a recording.

    That is so in torch.jit.trace, ONNX exports, torch.export and make_fx. torch.compile ends its
    graph at such a read, or raises.
    """
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return _tracing_state() is not None or _is_exporting() or get_proxy_mode() is not None
