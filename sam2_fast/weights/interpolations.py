"""Interpolations (`${key}`) of a configuration file, resolved by OmegaConf within a limit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sam2_fast.files.reasons import one_line, reason_of

MAX_RESOLVED_CHARACTERS = 2**17
"""Most characters of a model with its interpolations replaced: twice those of the largest file.

A few lines that name each other could otherwise grow without end.
"""

_START = re.compile(r"\$\{\s*(?P<key>[^\s{}:$,'\"\\]*)\s*(?P<end>[:}]?)")
_HYDRA = "initialise Hydra with its folder (hydra.initialize_config_dir), then pass its name"


def has_interpolations(value: Any) -> bool:
    """Whether a value, or one in its tables and lists, has an interpolation."""
    if isinstance(value, dict):
        return any(map(has_interpolations, value.values()))
    if isinstance(value, list):
        return any(map(has_interpolations, value))
    return isinstance(value, str) and "${" in value


def resolved_model(document: dict[str, Any], path: Path) -> Any:
    """The entry `model` of a document of the file `path` with its interpolations replaced.

    Keys, environment variables (`${oc.env:NAME}`) and the program's own resolvers can be named.
    Raises ValueError without OmegaConf, for other interpolations, and above the limit.
    """
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ModuleNotFoundError as error:
        raise ValueError(
            f"config_file {path}: its interpolations (${{...}}) need OmegaConf: pip install "
            "hydra-core"
        ) from error
    try:
        characters = _Sizes(document).of(("model",))
        if characters > MAX_RESOLVED_CHARACTERS:
            raise ValueError(
                f"its interpolations (${{...}}) make it {characters} characters, the limit is "
                f"{MAX_RESOLVED_CHARACTERS}; {_HYDRA}"
            )
        return OmegaConf.to_container(OmegaConf.create(document).model, resolve=True)
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ValueError(f"config_file {path}: {reason_of(error)}") from error


class _Sizes:
    """An upper bound of the characters of each entry with its interpolations replaced."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._tables = _tables(document)
        self._sizes: dict[tuple[str, ...], int | None] = {}  # None: not yet known

    def of(self, keys: tuple[str, ...]) -> int:
        """The size of the entry at a path of keys. Raises ValueError if it names itself."""
        keys, value = self._entry(keys)
        if keys not in self._sizes:
            self._sizes[keys] = None
            self._sizes[keys] = self._size_of(keys, value)
        size = self._sizes[keys]
        if size is None:
            raise ValueError(
                f"{one_line('.'.join(keys))}: its interpolations name itself; {_HYDRA}"
            )
        return size

    def _entry(self, keys: tuple[str, ...]) -> tuple[tuple[str, ...], Any]:
        """The entry at a path, or the last one before it that is not a table or a list.

        That one is an interpolation, or OmegaConf refuses the path, as it refuses missing keys.
        """
        value = self._tables
        for depth, key in enumerate(keys):
            if not isinstance(value, dict):
                return keys[:depth], value
            value = value.get(key)
        return keys, value

    def _size_of(self, keys: tuple[str, ...], value: Any) -> int:
        if isinstance(value, dict):
            return sum(1 + len(key) + self.of((*keys, key)) for key in value)
        if isinstance(value, str):
            return len(value) + sum(map(self.of, _references(value, keys)))
        return len(str(value))


def _tables(value: Any) -> Any:
    """A value with tables for lists, and text as the keys of all tables, as paths name them."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {str(key): _tables(child) for key, child in value.items()}
    return value


def _references(text: str, keys: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The paths of keys that the entry at `keys` names. Raises ValueError for other forms."""
    references = []
    for match in _START.finditer(text):
        key = match["key"]
        is_known = match["end"] and (not key.startswith("oc.") or key == "oc.env")
        if not is_known:
            raise ValueError(
                f"{one_line('.'.join(keys))}: expected interpolations of keys (${{a.b}}), got "
                f"{text!r:.100}; {_HYDRA}"
            )
        if match["end"] == "}":
            parts = tuple(part for part in re.split(r"[.\[\]]+", key) if part)
            level = len(key) - len(key.lstrip("."))  # of a relative path
            references.append((*keys[:-level], *parts) if level else parts)
    return references
