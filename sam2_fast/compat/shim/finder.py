"""Finds `sam2` and the official modules below it in `sam2_fast.compat`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from sam2_fast.compat.shim import copies
from sam2_fast.compat.shim.alias import AliasLoader
from sam2_fast.compat.shim.copies import NAME

_PACKAGE = "sam2_fast.compat"
_TOP = "official"
_INTERNAL = {"__main__", "shim", "stub", _TOP}
"""Modules of `sam2_fast.compat` that no official module corresponds to."""


class Finder(MetaPathFinder):
    """Finds `sam2` and the official modules below it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an alias, or None for other names.

        Raises ModifiedCopyError for `sam2` if the program has a modified copy of it.
        """
        if fullname == NAME:
            copies.check(self)
        elif not fullname.startswith(NAME + "."):
            return None
        name = fullname[len(NAME) + 1 :]
        if name.partition(".")[0] in _INTERNAL:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        ours = find_spec(f"{_PACKAGE}.{name or _TOP}")
        if ours is None:
            return None
        loader = AliasLoader(ours)
        spec = ModuleSpec(
            fullname, loader, origin=ours.origin, is_package=loader.is_package(fullname)
        )
        spec.has_location = ours.origin is not None
        if spec.submodule_search_locations is not None:
            folders = ours.submodule_search_locations
            if fullname == NAME and ours.origin is not None:
                folders = [str(Path(ours.origin).parent)]
            spec.submodule_search_locations = [*(folders or ())]
        return spec


finder = Finder()


def is_alias(module: ModuleType) -> bool:
    """Whether a module was imported by the shim."""
    return isinstance(getattr(module.__spec__, "loader", None), AliasLoader)


def aliases() -> list[str]:
    """The names of all modules that were imported by the shim."""
    return [
        name
        for name, module in list(sys.modules.items())
        if (name == NAME or name.startswith(NAME + ".")) and is_alias(module)
    ]
