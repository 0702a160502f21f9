"""What happens when a program replaces a name in a module of the official package.

Our code looks some names up in its own modules at each call: these are replaced there. Official
code does not look up others after its import: these can be replaced without effect, as there. The
rest is refused, or warned of if it is no part of the official package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

from sam2_fast.compat.shim import optional
from sam2_fast.compat.shim.official_names import FREE_NAMES, IMPORTED, TARGETS

REFUSED: Literal["refused"] = "refused"
WARNED: Literal["warned"] = "warned"
FREE: Literal["free"] = "free"
_MISC = "sam2_fast.compat.utils.misc"
_LOADERS = (
    "_load_img_as_tensor",
    "AsyncVideoFrameLoader",
    "tqdm",
    "load_video_frames_from_jpg_images",
    "load_video_frames_from_video_file",
)
_CALLERS = {
    **dict.fromkeys(_LOADERS, ("sam2_fast.video.program_frames", "load_video_frames")),
    "get_connected_components": ("sam2_fast.official.predictor_steps", "fill_holes_in_mask_scores"),
}
"""Name of `sam2.utils.misc` -> the function there that looks it up, and that a predictor calls.

Our predictors have steps of their own instead; a replacement makes them call that function.
"""
_originals: dict[tuple[str, str], Any] = {}
_called: set[tuple[str, str]] = set()
"""Variables that have a function of `sam2.utils.misc` because of a name that it looks up."""


@dataclass(frozen=True)
class Targets:
    """The global variables of our modules that stand for an official name.

    variables: (module, name).
    """

    variables: tuple[tuple[str, str], ...]

    def assign(self, value: Any) -> None:
        """Replace the variables."""
        for variable in self.variables:
            _called.discard(variable)
            _assign(variable, value)
        _update_callers()

    def restore(self) -> None:
        """Undo `assign`."""
        for variable in self.variables:
            _restore(variable)
        _update_callers()


def _update_callers() -> None:
    """Make our predictors call functions of `sam2.utils.misc` that look up a replaced name."""
    for caller in set(_CALLERS.values()):
        names = [name for name, function in _CALLERS.items() if function == caller]
        is_needed = any((_MISC, name) in _originals for name in names)
        if is_needed and caller not in _originals:
            _assign(caller, getattr(import_module(_MISC), caller[1]))
            _called.add(caller)
        elif caller in _called and not is_needed:
            _called.discard(caller)
            _restore(caller)


def _assign(variable: tuple[str, str], value: Any) -> None:
    module, name = import_module(variable[0]), variable[1]
    _originals.setdefault(variable, getattr(module, name))
    setattr(module, name, value)


def _restore(variable: tuple[str, str]) -> None:
    if variable in _originals:
        setattr(import_module(variable[0]), variable[1], _originals.pop(variable))


def restore_all() -> None:
    """Undo every replacement."""
    for variable in [*_originals]:
        _restore(variable)
    _called.clear()


@cache
def effect(module: str, name: str) -> Targets | Literal["refused", "warned", "free"]:
    """What replacing an official name does."""
    variables = TARGETS.get(module, {}).get(name)
    if variables is not None:
        pairs = [v.partition(":") for v in variables.split()]
        return Targets(tuple((f"sam2_fast.{m}", n or name) for m, _, n in pairs))
    if name in FREE_NAMES.get(module, "").split():
        return FREE
    return WARNED if name in optional.names(module) else REFUSED


def imported_names(module: str) -> Iterator[tuple[str, str]]:
    """(name, official module) of what an official module imports from another one."""
    for origin, names in IMPORTED.get(module, {}).items():
        yield from ((name, origin) for name in names.split())
