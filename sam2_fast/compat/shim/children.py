"""The shim in child processes: a folder on PYTHONPATH that installs it when Python starts.

The folder `stub` has a `sitecustomize`, which Python imports at its start, and a package `sam2`,
which is imported if there was no `sitecustomize`, as in processes with another environment.
"""

from __future__ import annotations

import os
import sys

from sam2_fast.compat.shim.copies import REPLACE_MODIFIED, STUB

PREFIX = "SAM2_FAST_SHIM_PREFIX"
"""Environment variable: `sys.prefix` of the parent process; other Pythons get no shim."""
_VARIABLES = (PREFIX, REPLACE_MODIFIED)
_before: dict[str, str | None] = {}


def announce(replace_modified: bool) -> None:
    """Make child processes import the shim."""
    if not _before:
        _before.update({name: os.environ.get(name) for name in _VARIABLES})
    os.environ[PREFIX] = sys.prefix
    if replace_modified:
        os.environ[REPLACE_MODIFIED] = "1"
    stub = str(STUB)
    entries = _python_path()
    if stub not in entries:
        os.environ["PYTHONPATH"] = os.pathsep.join([stub, *entries])
    if stub not in sys.path:
        sys.path.insert(1, stub)  # the first entry is the folder of the program


def withdraw() -> None:
    """Undo `announce`; other entries of PYTHONPATH remain."""
    stub = str(STUB)
    sys.path[:] = [entry for entry in sys.path if entry != stub]
    entries = [entry for entry in _python_path() if entry != stub]
    _set("PYTHONPATH", os.pathsep.join(entries) if entries else None)
    for name, value in _before.items():
        _set(name, value)
    _before.clear()


def _python_path() -> list[str]:
    return [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
