"""Imported as `sam2` by a child process: installs the shim, which replaces this module."""

import sys
from importlib import import_module
from pathlib import Path

try:
    from sam2_fast.compat import install
except ModuleNotFoundError:  # the parent had it on a path of its own
    sys.path.append(str(Path(__file__).resolve().parents[4]))
    from sam2_fast.compat import install

del sys.modules[__name__]
install()
import_module(__name__)
