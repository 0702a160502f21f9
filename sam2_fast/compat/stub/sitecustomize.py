"""Imported when a child process of a program with the shim starts: installs the shim there.

The `sitecustomize` that this one hides is run, too. A Python of another environment than the
parent's is left as it is.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_STUB = Path(__file__).resolve().parent


def _run_hidden() -> None:
    path = [entry for entry in sys.path if not entry or Path(entry).resolve() != _STUB]
    spec = PathFinder.find_spec(__name__, path)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules[__name__] = module
        spec.loader.exec_module(module)


def _install() -> None:
    if sys.prefix != os.environ.get("SAM2_FAST_SHIM_PREFIX"):
        sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != _STUB]
        return
    try:
        from sam2_fast.compat import install
    except ModuleNotFoundError:  # the parent had it on a path of its own
        sys.path.append(str(_STUB.parents[2]))
        from sam2_fast.compat import install
    install()


_install()
_run_hidden()
