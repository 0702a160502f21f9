"""One call of an op with torch's result and an exact one, against which kernels are judged."""

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


class NothingKnownError(RuntimeError):
    """The reference could not be computed, so nothing was proved; the message says why."""


class LostDeviceError(RuntimeError):
    """The device takes no work any more after a kernel ran: the process cannot go on with it."""


def failures() -> tuple[type[Exception], ...]:
    """What the compiler, the driver or the code of a kernel raises where the kernel is at fault."""
    triton = sys.modules.get("triton.errors")
    more = () if triton is None else (triton.TritonError,)
    plain = (RuntimeError, AssertionError, TypeError, ValueError, LookupError, AttributeError)
    return (*plain, ArithmeticError, OSError, ImportError, subprocess.SubprocessError, *more)


class Case:
    """One call with torch's result and an exact one, against which kernels are judged."""

    def __init__(self, reference: Callable[..., Any], rule: Rule, call: Call) -> None:
        """reference: the definition of the op, in torch. Computes both results.

        Raises NothingKnownError where the reference cannot run, such as for want of memory.
        """
        self.call, self._rule = call, rule
        self.device = next(tensors_in(call)).device
        self._reference = reference
        synchronize(self.device)  # what went wrong before is not the kernel's fault
        try:
            with torch.no_grad(), only_torch():
                self._torchs = reference(*call.arguments, **call.named)
                self._exact = self._computed_exactly()
            synchronize(self.device)
        except failures() as error:
            raise NothingKnownError(f"the reference failed: {reason_of(error)}") from error

    def _computed_exactly(self) -> Any:
        if not any(x.is_floating_point() for x in tensors_in(self._torchs)):
            return self._torchs
        with torch.autocast(self.device.type, enabled=False):
            if self._rule.exact is not None:
                return self._rule.exact(*self.call.arguments, **self.call.named)
            wide = wider(self.call, self.device, self._rule.convolutions)
            given = cast(tuple(self.call), wide)
            return self._reference(*given[0], **given[1])

    def run(self, kernel: Callable[..., Any]) -> Any:
        """`kernel` on the arguments of the call."""
        with torch.no_grad():
            return kernel(*self.call.arguments, **self.call.named)

    def check(self, kernel: Callable[..., Any]) -> Outcome:
        """Whether `kernel` is right. Raises LostDeviceError where the device is gone after it, and
        torch.OutOfMemoryError where there is no room for its result."""
        try:
            result = self.run(kernel)
            synchronize(self.device)
            align = self._rule.align
            return judge(
                result,
                self._torchs,
                self._exact,
                None if align is None else lambda results: align(self.call, results),
            )
        except torch.OutOfMemoryError:
            raise
        except failures() as error:
            if not alive(self.device):
                raise LostDeviceError(reason_of(error)) from error
            return Outcome(f"raised {reason_of(error)}"[:500], None)

    def time(self, kernel: Callable[..., Any]) -> float:
        """Milliseconds of `kernel` on the call."""
        return milliseconds(lambda: self.run(kernel), self.device)

    def time_torch(self) -> float:
        """Milliseconds of the definition."""
        with only_torch():
            return self.time(self._reference)


def wider(call: Call, device: torch.device, convolutions: bool = False) -> torch.dtype:
    """float32 where the op computes in a narrower dtype (that of its first input, or the caller's
    autocast) and products of float32 are not rounded to TF32, else float64. The switches for TF32
    are the caller's: they are read, never set."""
    dtypes = (x.dtype for x in tensors_in(call) if x.is_floating_point())
    narrow = next(dtypes, None) in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or not (narrow or torch.is_autocast_enabled("cuda")):
        return torch.float64
    backends: Any = torch.backends
    switches = [backends.cuda.matmul.fp32_precision]
    if convolutions:
        switches.append(backends.cudnn.conv.fp32_precision)
    settled = [backends.fp32_precision if s == "none" else s for s in switches]
    return torch.float32 if all(s in ("ieee", "none") for s in settled) else torch.float64


def synchronize(device: torch.device) -> None:
    """Wait for the current stream: errors of its kernels are raised here."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def alive(device: torch.device) -> bool:
    """Whether the device still takes work. After an illegal access no call succeeds any more."""
    try:
        torch.ones(1, device=device).add_(1)
        synchronize(device)
    except RuntimeError:
        return False
    return True
