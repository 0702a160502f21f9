"""Changes of the registry of ops for the length of a test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sam2_fast.ops.core import registry


def set_absence(patch: pytest.MonkeyPatch, op: str, backend: str, reason: str | None) -> None:
    """As if the machine lacked an implementation for this reason, or had it (None)."""
    known = registry._implementations[op, backend]
    patch.setitem(registry._implementations, (op, backend), replace(known, absent=lambda: reason))
