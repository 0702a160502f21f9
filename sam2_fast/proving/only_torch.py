"""Run definitions without kernels: a reference must not depend on the kernels it checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_active: ContextVar[bool] = ContextVar("sam2_fast_only_torch", default=False)
is_active = _active.get


@contextmanager
def only_torch() -> Iterator[None]:
    """Inside the context, all ops of this thread run in torch, whatever their `backend`."""
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)
