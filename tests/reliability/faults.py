"""Faults at chosen points of a call: an error at one operation, or an interrupt at one line."""

from __future__ import annotations

import linecache
import random
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sam2_fast

PACKAGE = Path(str(sam2_fast.__file__)).parent
HOW_MANY = [
    pytest.param(12, id="sampled"),
    pytest.param(10**9, id="whole", marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
]
"""How many positions of a call get a fault."""


def files_of(*patterns: str) -> frozenset[str]:
    """The files of the package that match."""
    return frozenset(str(path) for pattern in patterns for path in PACKAGE.glob(pattern))


STATE_FILES = files_of(
    *("video/*.py", "memory/*.py", "ops/core/exclusive.py", "official/predictor_steps.py")
)
"""The files that change sessions."""
ALL_FILES = files_of("**/*.py")


class InjectedError(torch.OutOfMemoryError):
    """The error of `FailingOp`."""


class FailingOp(TorchDispatchMode):
    """Counts the operations of torch, and raises instead of the one with number `at`.

    In this mode the model computes by operations of torch, without kernels of its own, so that
    masks have other last bits. Without `at` nothing raises.
    """

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at = at
        self.count = 0
        self.where = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        number = self.count
        self.count += 1
        if number == self.at:
            self.where = str(func)
            raise InjectedError(f"CUDA out of memory (injected at {func})")
        return func(*args, **(kwargs or {}))


class InterruptedLine:
    """Counts the lines that run in some files, and raises KeyboardInterrupt at number `at`.

    Lines `with lock` do not count. They are traced a second time before the lock is released. No
    real interrupt arrives then, and an error would leave the lock closed.
    """

    def __init__(self, at: int | None = None, files: frozenset[str] = STATE_FILES) -> None:
        self.at = at
        self.count = 0
        self.where = ""
        self._files = files
        self._previous: Any = None

    def __enter__(self) -> InterruptedLine:
        self._previous = sys.gettrace()
        sys.settrace(self._enter_function)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._previous)

    def _enter_function(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._run_line if frame.f_code.co_filename in self._files else None

    def _run_line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and not is_lock(frame.f_code.co_filename, frame.f_lineno):
            number = self.count
            self.count += 1
            if number == self.at:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self._run_line


@cache
def is_lock(file: str, line: int) -> bool:
    return re.match(r"\s*with .*lock", linecache.getline(file, line)) is not None


class InterruptedAnywhere(InterruptedLine):
    """`InterruptedLine` in all files of the package, the functions around the kernels included."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__(at, ALL_FILES)


def sampled(count: int, most: int, seed: int = 0) -> list[int]:
    """`most` numbers below `count`: half of them the last ones, where calls change sessions."""
    if count <= most:
        return list(range(count))
    last = most // 2
    others = random.Random(seed).sample(range(count - last), most - last)
    return sorted(others) + list(range(count - last, count))


def positions_of(call: Callable[[], Any], counter: Any, most: int) -> list[int]:
    """Where to put faults into a call, which is run once with a `counter`, a fault without `at`."""
    with counter:
        call()
    return sampled(counter.count, most)


def raises(call: Callable[[], Any], fault: Any) -> bool:
    """Whether a call raises the error of a fault, as it is or in an error of torch."""
    try:
        with fault:
            call()
    except KeyboardInterrupt:
        return True
    except RuntimeError as error:
        if "(injected at " not in str(error):
            raise
        return True
    return False
