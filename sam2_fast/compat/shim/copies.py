"""Copies of the official package that the shim would hide, and whether they were modified.

Many programs have a copy of the folder `sam2/` beside them. If its files are official ones, in any
version, the shim replaces it. If not, the program may depend on the changes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

NAME = "sam2"
STUB = Path(__file__).parents[1] / "stub"
"""The folder on PYTHONPATH by which child processes get the shim."""
HASHES = Path(__file__).with_name("official_hashes.json")
"""Written by tools/official_hashes.py."""
REPLACE_MODIFIED = "SAM2_FAST_REPLACE_MODIFIED"
"""Environment variable; "1": a modified copy is replaced, too."""
_SHOWN = 8


class ModifiedCopyError(RuntimeError):
    """A modified copy of the official package would be imported if the shim did not hide it."""


def content_hash(content: bytes) -> str:
    """SHA-256 of a file, whatever its line ends are."""
    return sha256(content.replace(b"\r\n", b"\n")).hexdigest()


def check(our_finder: object) -> None:
    """Raise `ModifiedCopyError` if the shim would hide a modified copy of the official package.

    our_finder: is left out of the search.
    """
    if os.environ.get(REPLACE_MODIFIED, "0") not in ("", "0"):
        return
    spec = _spec_without(our_finder)
    if spec is None:
        return
    changes = changes_of(spec)
    if not changes:
        return
    shown = "\n  ".join(changes[:_SHOWN])
    more = f"\n  and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    raise ModifiedCopyError(
        f"the program has its own `{NAME}` in {_folder_of(spec)}, which differs from every "
        f"official version:\n  {shown}{more}\nsam2_fast would replace it, and the changes would "
        f"be lost. To replace it nevertheless, set {REPLACE_MODIFIED}=1, or pass "
        "--replace-modified to `python -m sam2_fast.compat`, or replace_modified=True to "
        "install(). To keep the changes, run the program without the shim. See docs/migration.md"
    )


def changes_of(spec: ModuleSpec) -> list[str]:
    """The files of a package that are not official ones, each with what is different."""
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not folders:
        return [f"{spec.origin}: expected a package, got a module"]
    if spec.origin is None:
        return []  # a folder without code, such as the root of the official repository
    files = [(folder, path) for folder in folders for path in _python_files(folder)]
    stamps = [(path.stat().st_mtime_ns, path.stat().st_size) for _, path in files]
    return [*_changes(tuple(files), tuple(stamps))]


def _python_files(folder: Path) -> list[Path]:
    """The Python files of a package; hidden folders, which cannot be imported, have none."""
    files = sorted(folder.rglob("*.py"))
    return [f for f in files if not any(p.startswith(".") for p in f.relative_to(folder).parts)]


@cache
def _changes(files: tuple[tuple[Path, Path], ...], _: object) -> tuple[str, ...]:
    known = _official_hashes()
    changes = []
    for folder, path in files:
        name = path.relative_to(folder).as_posix()
        if name not in known:
            changes.append(f"{path}: no official version has this module")
        elif content_hash(path.read_bytes()) not in known[name]:
            changes.append(f"{path}: modified")
    return tuple(changes)


@cache
def _official_hashes() -> dict[str, frozenset[str]]:
    files = json.loads(HASHES.read_text(encoding="utf-8"))["files"]
    return {name: frozenset(hashes) for name, hashes in files.items()}


def _folder_of(spec: ModuleSpec) -> str:
    return next(iter(spec.submodule_search_locations or ()), str(spec.origin))


def _spec_without(our_finder: object) -> ModuleSpec | None:
    """Where Python would import `sam2` from without the shim, or None."""
    for finder in sys.meta_path:
        if finder is our_finder:
            continue
        if finder is PathFinder:
            spec = PathFinder.find_spec(NAME, _path_without_stub(sys.path))
        else:
            find = getattr(finder, "find_spec", None)
            spec = None if find is None else find(NAME, None)
        if spec is not None:
            return spec
    return None


def _path_without_stub(path: Sequence[str]) -> list[str]:
    return [entry for entry in path if entry != str(STUB)]
