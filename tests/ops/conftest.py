"""What tests of native kernels share."""

from __future__ import annotations

import pytest

from sam2_fast.ops.native import native

ISAS = ("portable", "avx2", "avx512", "avx512_bf16")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that kernels are compiled for and this processor has."""
    module = native()
    if module is None:
        pytest.skip("sam2_fast._C is not built")
    if ISAS.index(request.param) > ISAS.index(module.cpu_isa()):
        pytest.skip(f"this CPU ends at {module.cpu_isa()}")
    return str(request.param)
