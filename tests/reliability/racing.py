"""Threads that run calls at the same time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def race(*calls: Callable[[], object], repeats: int = 1, seconds: float = 120) -> list[Any]:
    """The results of calls that threads run at the same time, with very short time slices.

    seconds: limit of all calls together. Raises the first error of a call.
    """
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> list[object]:
        barrier.wait(60)
        return [call() for _ in range(repeats)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(calls)) as pool:
            return [f.result(seconds) for f in [pool.submit(run, call) for call in calls]]
    finally:
        sys.setswitchinterval(interval)
