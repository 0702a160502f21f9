"""Changes of the registry of ops for the duration of a test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sam2_fast.ops.core import registry


def set_absence(patch: pytest.MonkeyPatch, op: str, backend: str, reason: str | None) -> None:
    """Mark an implementation as missing on this machine for `reason`, or as available (None)."""
    implementation = registry._implementations[op, backend]
    patch.setitem(
        registry._implementations,
        (op, backend),
        replace(implementation, absent=lambda: reason),
    )
