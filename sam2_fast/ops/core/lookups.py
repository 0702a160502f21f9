"""Global variables that code looks up at each call, so that programs can replace them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class LookedUp:
    """Global variables of a module, and their original values."""

    def __init__(self, variables: dict[str, Any], *names: str) -> None:
        """variables: `globals()` or `vars(module)`."""
        self.variables = variables
        self.originals = {name: variables[name] for name in names}

    def replaced(self) -> str | None:
        """The first name that does not have its original value, with its module, or None."""
        for name, original in self.originals.items():
            if self.variables.get(name) is not original:
                return f"{self.variables['__name__']}.{name}"
        return None


_by_module: dict[str, list[LookedUp]] = {}


def watch(module: str, *lookups: LookedUp) -> None:
    """Call modules of a model, of classes that `module` defines, if such a variable is replaced.

    Otherwise an op could compute them without it.
    """
    _by_module.setdefault(module, []).extend(lookups)


def watched(kinds: Iterable[type]) -> list[LookedUp]:
    """The variables that classes, or their bases, look up."""
    modules = dict.fromkeys(base.__module__ for kind in kinds for base in kind.__mro__)
    return [lookup for module in modules for lookup in _by_module.get(module, ())]
