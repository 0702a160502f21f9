"""A call of an op with the reference results that its kernels are compared with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from sam2_fast.proving.device import reason_of
from sam2_fast.proving.errors import Outcome, cast, judge
from sam2_fast.proving.only_torch import only_torch
from sam2_fast.proving.rules import Call, Rule, tensors_in
from sam2_fast.proving.timing import milliseconds


class CaseError(RuntimeError):
    """The reference could not be computed, so nothing was proved. The message has the reason."""


class LostDeviceError(RuntimeError):
    """The device fails after a kernel ran; this process cannot use it any more."""


def failures() -> tuple[type[Exception], ...]:
    """Exceptions of the compiler, the driver or the code of a kernel for which it is at fault."""
    triton = sys.modules.get("triton.errors")
    triton_errors = () if triton is None else (triton.TritonError,)
    plain = (RuntimeError, AssertionError, TypeError, ValueError, LookupError, AttributeError)
    more = (ArithmeticError, OSError, ImportError, subprocess.SubprocessError)
    return (*plain, *more, *triton_errors)


class Case:
    """A call with the result of torch and an exact one, which kernels are compared with."""

    def __init__(self, reference: Callable[..., Any], rule: Rule, call: Call) -> None:
        """Compute both results. reference: the definition of the op, in torch.

        Raises CaseError if the reference cannot run, for example without enough memory.
        """
        self.call = call
        self.device = next(tensors_in(call)).device
        self._rule = rule
        self._reference = reference
        synchronize(self.device)  # earlier errors are raised here and do not count for the kernel
        try:
            with torch.no_grad(), only_torch():
                self._torch_result = reference(*call.arguments, **call.named)
                self._exact = self._compute_exact()
            synchronize(self.device)
        except failures() as error:
            raise CaseError(f"the reference failed: {reason_of(error)}") from error

    def _compute_exact(self) -> Any:
        if not any(x.is_floating_point() for x in tensors_in(self._torch_result)):
            return self._torch_result
        with torch.autocast(self.device.type, enabled=False):
            if self._rule.exact is not None:
                return self._rule.exact(*self.call.arguments, **self.call.named)
            dtype = exact_dtype(self.call, self.device, self._rule.convolutions)
            arguments, named = cast(tuple(self.call), dtype)
            return self._reference(*arguments, **named)

    def run(self, kernel: Callable[..., Any]) -> Any:
        """The result of `kernel` on the arguments of the call."""
        with torch.no_grad():
            return kernel(*self.call.arguments, **self.call.named)

    def check(self, kernel: Callable[..., Any]) -> Outcome:
        """Whether `kernel` is correct.

        Raises LostDeviceError if the device fails after it, and torch.OutOfMemoryError without
        enough memory for its result.
        """
        try:
            result = self.run(kernel)
            synchronize(self.device)
            align = self._rule.align
            return judge(
                result,
                self._torch_result,
                self._exact,
                None if align is None else lambda results: align(self.call, results),
            )
        except torch.OutOfMemoryError:
            raise
        except failures() as error:
            if not is_alive(self.device):
                raise LostDeviceError(reason_of(error)) from error
            return Outcome(f"raised {reason_of(error)}"[:500], None)

    def time(self, kernel: Callable[..., Any]) -> float:
        """Milliseconds of `kernel` on the call."""
        return milliseconds(lambda: self.run(kernel), self.device)

    def time_torch(self) -> float:
        """Milliseconds of the definition on the call."""
        with only_torch():
            return self.time(self._reference)


def exact_dtype(call: Call, device: torch.device, convolutions: bool = False) -> torch.dtype:
    """The dtype of the exact reference: float32 or float64.

    It is float32 if the op computes in half precision (the dtype of its first input, or autocast)
    and products of float32 are not rounded to TF32. The caller's settings for TF32 are read, never
    changed.
    """
    dtypes = (x.dtype for x in tensors_in(call) if x.is_floating_point())
    is_half = next(dtypes, None) in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or not (is_half or torch.is_autocast_enabled("cuda")):
        return torch.float64
    backends: Any = torch.backends
    settings = [backends.cuda.matmul.fp32_precision]
    if convolutions:
        settings.append(backends.cudnn.conv.fp32_precision)
    effective = [backends.fp32_precision if s == "none" else s for s in settings]
    return torch.float32 if all(s in ("ieee", "none") for s in effective) else torch.float64


def synchronize(device: torch.device) -> None:
    """Wait for the current stream. Errors of its kernels are raised here."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def is_alive(device: torch.device) -> bool:
    """Whether the device still works. After an illegal memory access every call fails."""
    try:
        torch.ones(1, device=device).add_(1)
        synchronize(device)
    except RuntimeError:
        return False
    return True
