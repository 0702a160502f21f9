"""Loads the sanitized native module in place of the installed one, in every Python process.

Python imports this module when it starts, if this folder is in PYTHONPATH; `tools.sanitize` adds
it, so that processes started by tests load the sanitized module, too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType

NAME = "sam2_fast._C"


class SanitizedFinder:
    """Finds the native module at the path in SAM2_FAST_SANITIZED."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != NAME:
            return None
        return spec_from_file_location(name, os.environ["SAM2_FAST_SANITIZED"])


sys.meta_path.insert(0, SanitizedFinder())
