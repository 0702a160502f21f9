"""Failures at a chosen operation or line, and the cost of a call in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class InjectedError(RuntimeError):
    """Raised in place of an operation."""


class FailAt(TorchDispatchMode):
    """Counts operations, and raises instead of number `at`; -1 only counts."""

    def __init__(self, at: int = -1) -> None:
        super().__init__()
        self.at = at
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count - 1 == self.at:
            raise InjectedError(f"out of memory in {func}")
        return func(*args, **(kwargs or {}))


def lines_of(call: Callable[[], object], files: tuple[str, ...], at: int = -1) -> int:
    """Call, with KeyboardInterrupt at line number `at` of those executed in `files`.

    files: ends of paths. Returns how many lines were executed in them.
    """
    count = 0

    def on_line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count - 1 == at:
                raise KeyboardInterrupt
        return on_line

    def on_call(frame: FrameType, event: str, argument: object) -> Any:
        return on_line if frame.f_code.co_filename.endswith(files) else None

    earlier = sys.gettrace()
    sys.settrace(on_call)
    try:
        call()
    finally:
        sys.settrace(earlier)
    return count


_COST = """
import resource, sys, time
from pathlib import Path
path = Path(sys.argv[1])
{imports}
def peak():
    # ru_maxrss of a child starts with that of the parent, the kernel's own counter does not.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
before, started = peak(), time.process_time()
try:
    {call}
    outcome = "accepted"
except ({errors}) as error:
    outcome = f"{{type(error).__name__}}: {{error}}"
print(outcome.replace(chr(10), " "))
print(time.process_time() - started, peak() - before)
"""


def cost_of(
    imports: str, call: str, path: Path, errors: str = "ValueError"
) -> tuple[str, float, float]:
    """(outcome, CPU seconds, additional MB at the peak) of a call in a process of its own.

    imports, call: Python text; the call may use `path`. outcome: "accepted", or the error.
    """
    code = _COST.format(imports=imports, call=call, errors=errors)
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    outcome, numbers = result.stdout.splitlines()[-2:]
    seconds, megabytes = map(float, numbers.split())
    return outcome, seconds, megabytes
