"""Fixtures of the tests of native kernels."""

from __future__ import annotations

from typing import Any

import pytest

from sam2_fast.ops.core.native import ISAS, isas, native


@pytest.fixture
def module() -> Any:
    """The native module."""
    native_module = native()
    if native_module is None:
        pytest.skip("sam2_fast._C is not built")
    return native_module


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, module: Any) -> str:
    """Each instruction set that kernels are compiled for, skipped if this CPU lacks it."""
    if request.param not in isas():
        pytest.skip(f"this CPU supports instruction sets up to {module.cpu_isa()}")
    return str(request.param)
