"""The modules `sam2.x`: they have the names of `sam2_fast.compat.x`, and forward patches."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.readers import FileReader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from sam2_fast.compat.shim import optional, patches
from sam2_fast.compat.shim.copies import NAME

_DUNDERS = ("__doc__", "__all__", "__getattr__")
_ORIGINALS = "__sam2_fast_originals__"
_MISSING = object()


class AliasModule(ModuleType):
    """A module of the official package, by its official name.

    Assigning to a name that our code looks up at each call replaces it there, too. Assigning to an
    official name that our code does not look up raises AttributeError, or warns.
    """

    def __getattr__(self, name: str) -> Any:
        """Names that the official module imports from packages that we do not need."""
        value = optional.value(self.__name__, name)
        vars(self)[name] = vars(self).setdefault(_ORIGINALS, {})[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        _replace(self, name, value)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        originals = vars(self).get(_ORIGINALS, {})
        if name in originals:
            _replace(self, name, originals[name])
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *optional.names(self.__name__)} - {_ORIGINALS})


def _replace(module: AliasModule, name: str, value: Any) -> None:
    """Replace a name in the code that looks it up; the original value restores everything.

    Raises AttributeError if there is no such code.
    """
    originals: dict[str, Any] = vars(module).get(_ORIGINALS, {})
    if name not in originals and name in optional.names(module.__name__):
        originals[name] = getattr(module, name, _MISSING)
    if name not in originals or value is vars(module).get(name, _MISSING):
        return
    effect = patches.effect(module.__name__, name)
    if isinstance(effect, patches.Targets):
        if value is originals[name]:
            effect.restore()
        else:
            effect.assign(value)
        return
    if value is originals[name]:
        return
    if effect is patches.REFUSED:
        raise AttributeError(
            f"{module.__name__}.{name} cannot be replaced: sam2_fast has no step that looks it up, "
            "so a replacement would have no effect. Replace the part of the model or override the "
            "method that uses it (docs/guides/parts.md), or use the official package"
        )
    if effect is patches.WARNED:
        warnings.warn(
            f"{module.__name__}.{name} was replaced, which has no effect on sam2_fast: it does "
            f"not look up `{name}` in this module. Patch an attribute of {name} itself, or "
            "override a method (docs/guides/parts.md)",
            UserWarning,
            stacklevel=3,
        )


class AliasLoader(InspectLoader):
    """Fills `sam2.x` with the names of `sam2_fast.compat.x`.

    The two stay separate modules, each with its own spec.
    """

    def __init__(self, target: ModuleSpec) -> None:
        self._target = target

    def create_module(self, spec: ModuleSpec) -> AliasModule:
        """An empty module."""
        return AliasModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module; modules from which the official one imports are imported first."""
        assert isinstance(module, AliasModule)
        for name, original in vars(module).get(_ORIGINALS, {}).items():  # it is reloaded
            _replace(module, name, original)
        source = vars(import_module(self._target.name))
        names = {
            name: value
            for name, value in source.items()
            if (name in _DUNDERS or not name.startswith("__")) and not _is_own_module(value)
        }
        originals = {name: value for name, value in names.items() if name not in _DUNDERS}
        vars(module).update(names)
        vars(module)[_ORIGINALS] = originals
        for name, origin in patches.imported_names(module.__name__):
            source = vars(import_module(origin))
            vars(module)[name] = originals[name] = source[_ORIGINALS][name]
            # What a program replaced there before this import is what is imported here.
            setattr(module, name, source[name])

    def is_package(self, fullname: str) -> bool:
        """Whether it has submodules."""
        return fullname == NAME or self._target.submodule_search_locations is not None

    def get_filename(self, fullname: str) -> str:
        """The file of our module."""
        if self._target.origin is None:
            raise ImportError(f"{fullname} has no file", name=fullname)
        return self._target.origin

    def get_source(self, fullname: str) -> str | None:
        """The text of our module."""
        if self._target.origin is None:
            return None
        return Path(self._target.origin).read_text(encoding="utf-8")

    def get_code(self, fullname: str) -> CodeType | None:
        """The code of our module."""
        source = self.get_source(fullname)
        return None if source is None else self.source_to_code(source, self.get_filename(fullname))

    def get_resource_reader(self, fullname: str) -> FileReader | None:
        """A reader of the files beside the module, for `importlib.resources`."""
        folders = list(self._target.submodule_search_locations or ())
        if fullname == NAME and self._target.origin is not None:
            folders = [str(Path(self._target.origin).parent)]
        if not folders:
            return None
        return FileReader(SourceFileLoader(fullname, str(Path(folders[0]) / "__init__.py")))


def _is_own_module(value: object) -> bool:
    """Whether a value is a module of this package, such as a submodule."""
    return isinstance(value, ModuleType) and value.__name__.startswith("sam2_fast.")
