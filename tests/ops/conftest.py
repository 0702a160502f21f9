"""What tests of native kernels share."""

from __future__ import annotations

import pytest

from sam2_fast.ops.core.native import ISAS, isas, native


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that kernels are compiled for and this processor has."""
    module = native()
    if module is None:
        pytest.skip("sam2_fast._C is not built")
    if request.param not in isas():
        pytest.skip(f"this CPU ends at {module.cpu_isa()}")
    return str(request.param)
