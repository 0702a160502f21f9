"""The line of a user's program that called the package, for warnings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGE = str(Path(__file__).parent) + os.sep


def stacklevel() -> int:
    """`stacklevel`, for `warnings.warn` in the calling function, of the first outside frame."""
    frame = sys._getframe(1)
    level = 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    return level
