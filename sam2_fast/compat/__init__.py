"""Run programs written for the official package unmodified: `import sam2...` imports this package.

    python -m sam2_fast.compat script.py ARGUMENTS...        run a script
    python -m sam2_fast.compat -m package.module ARGUMENTS...  run a module
    import sam2_fast.compat; sam2_fast.compat.install()      in your own program

Importing this module installs nothing. An installed `sam2` is hidden only in the process that calls
`install`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

NAME = "sam2"
_DUNDERS = ("__doc__", "__all__", "__getattr__")


class _Alias(Loader):
    """Fills `sam2.x` with the names of `sam2_fast.compat.x`.

    The two stay separate modules, each with its own spec.
    """

    def __init__(self, target: str) -> None:
        self._target = target

    def exec_module(self, module: ModuleType) -> None:
        source = vars(import_module(self._target))
        module.__dict__.update(
            {
                name: value
                for name, value in source.items()
                if not name.startswith("__") or name in _DUNDERS
            }
        )


class _Finder(MetaPathFinder):
    """Finds `sam2` and the official modules below it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != NAME and not fullname.startswith(NAME + "."):
            return None
        ours = __name__ + ".official" if fullname == NAME else __name__ + fullname[len(NAME) :]
        spec = find_spec(ours)
        if spec is None:
            return None
        package = fullname == NAME or spec.submodule_search_locations is not None
        return ModuleSpec(fullname, _Alias(ours), origin=spec.origin, is_package=package)


_finder = _Finder()


def install() -> None:
    """Make `import sam2...` in this process import this package. Calling it twice is harmless.

    Raises RuntimeError if another `sam2` is already imported: its classes would not mix with ours.
    """
    loaded = sys.modules.get(NAME)
    if loaded is not None and not isinstance(getattr(loaded.__spec__, "loader", None), _Alias):
        raise RuntimeError(
            "sam2_fast.compat.install(): another sam2 is imported already; call install() before "
            "anything imports sam2"
        )
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def uninstall() -> None:
    """Undo `install`: later imports of `sam2` find the installed package, if there is one."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    for name, module in list(sys.modules.items()):
        if (name == NAME or name.startswith(NAME + ".")) and isinstance(
            getattr(module.__spec__, "loader", None), _Alias
        ):
            del sys.modules[name]
