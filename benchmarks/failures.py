"""What may go wrong in a measurement without ending the others. Standard library only."""

from __future__ import annotations

import subprocess
import sys

FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    subprocess.SubprocessError,
)
LIBRARY_ERRORS = {
    "triton.errors": "TritonError",
    "hydra.errors": "HydraException",
    "omegaconf.errors": "OmegaConfBaseException",
}
"""Base classes of errors that derive from none of `FAILURES`, by module."""


def failures() -> tuple[type[BaseException], ...]:
    """What kernels, compilers and peers raise. A library that has not been imported has raised
    nothing.
    """
    loaded = [
        (sys.modules[module], name)
        for module, name in LIBRARY_ERRORS.items()
        if module in sys.modules
    ]
    return (*FAILURES, *(getattr(module, name) for module, name in loaded))
