"""Exceptions that end one measurement but not the others. Imports the standard library only."""

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
"""Module -> base class of its errors, for errors that derive from none of `FAILURES`."""


def failures() -> tuple[type[BaseException], ...]:
    """Exceptions that kernels, compilers and peers raise.

    Libraries that have not been imported are left out: they cannot have raised an exception.
    """
    loaded = [
        (sys.modules[module], name)
        for module, name in LIBRARY_ERRORS.items()
        if module in sys.modules
    ]
    return (*FAILURES, *(getattr(module, name) for module, name in loaded))
