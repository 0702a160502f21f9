"""Run definitions, without kernels: a reference must not be computed by what it judges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_active: ContextVar[bool] = ContextVar("sam2_fast_only_torch", default=False)
is_active = _active.get


@contextmanager
def only_torch() -> Iterator[None]:
    """Ops of this thread run in torch inside, whatever backend they are asked for."""
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)
