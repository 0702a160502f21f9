"""Runs a program as Python would, after `install`: a script, a module, code, or standard input."""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Callable
from importlib.machinery import (
    BuiltinImporter,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import Any

from sam2_fast.compat import ModifiedCopyError, install

USAGE = """\
usage: python -m sam2_fast.compat [--replace-modified] PROGRAM [arguments...]

PROGRAM is what Python accepts: script.py, a folder or zip file with __main__.py,
-m package.module, -c CODE, or - for standard input. `import sam2` imports sam2_fast in it and
in its child processes. A modified copy of sam2 beside the program is refused, unless
--replace-modified is passed or SAM2_FAST_REPLACE_MODIFIED=1 is set.
"""
REPLACE = "--replace-modified"
Program = tuple[CodeType, dict[str, Any]]
"""Code, and the attributes of its `__main__` module."""


def main(arguments: list[str]) -> None:
    """Run the program as Python would; its exit code and errors are passed on.

    Without a program, print the usage and exit with code 2.
    """
    replace_modified = arguments[:1] == [REPLACE]
    arguments = arguments[replace_modified:]
    if arguments in (["-h"], ["--help"]):
        sys.stdout.write(USAGE)
        return
    kind, operands = _kind(arguments)
    if kind is None:
        sys.stderr.write(USAGE)
        sys.exit(2)
    sys.argv = operands
    _set_first_path(kind, operands[0])
    try:
        install(replace_modified=replace_modified)
    except ModifiedCopyError as error:
        sys.stderr.write(f"sam2_fast.compat: {error}\n")
        sys.exit(2)
    code, attributes = kind(arguments)
    # Processes of `multiprocessing` import the main module again, by these attributes.
    namespace = vars(sys.modules["__main__"])
    namespace.clear()
    namespace.update(_attributes(**attributes))
    exec(code, namespace)


def _kind(arguments: list[str]) -> tuple[Callable[[list[str]], Program] | None, list[str]]:
    """What reads the program, and `sys.argv`; None without a program."""
    if not arguments:
        return None, []
    first = arguments[0]
    for option, kind in (("-m", _module), ("-c", _code)):
        if first.startswith(option):
            joined = [first[2:]] if first[2:] else []
            operands = [*joined, *arguments[1:]]
            arguments[:] = [option, *operands]
            return (kind, [option, *operands[1:]]) if operands else (None, [])
    if first == "-":
        return _standard_input, arguments
    if first.startswith("-"):
        sys.stderr.write(f"{first}: unknown option\n")
        return None, []
    if not os.path.exists(first):
        sys.stderr.write(f"{first}: no such file\n")
        return None, []
    return (_archive if os.path.isdir(first) or _is_archive(first) else _script), arguments


def _is_archive(path: str) -> bool:
    """Whether Python runs the `__main__` within a zip file."""
    return PathFinder.find_spec("__main__", [path]) is not None


def _set_first_path(kind: Callable[[list[str]], Program], first: str) -> None:
    """The first entry of `sys.path`, which Python set to the current folder for `-m`."""
    safe = getattr(sys.flags, "safe_path", False)  # with -P only archives have such an entry
    if kind is _archive:
        entry = os.path.join(os.getcwd(), first)
    elif kind is _script:
        entry = os.path.dirname(os.path.realpath(first))
    else:
        entry = os.getcwd() if kind is _module else ""
    if not safe:
        sys.path[0] = entry
    elif kind is _archive:
        sys.path.insert(0, entry)


def _attributes(
    *,
    file: str | None = None,
    spec: ModuleSpec | None = None,
    loader: Any = BuiltinImporter,
    package: str | None = None,
) -> dict[str, Any]:
    """The attributes of a main module before its code runs."""
    attributes = {
        "__name__": "__main__",
        "__doc__": None,
        "__package__": package,
        "__loader__": loader,
        "__spec__": spec,
        "__annotations__": {},
        "__builtins__": builtins,
    }
    if file is not None:
        attributes |= {"__file__": file, "__cached__": None if spec is None else spec.cached}
    return attributes


def _script(arguments: list[str]) -> Program:
    path = os.path.join(os.getcwd(), arguments[0])
    if path.endswith(".pyc"):
        compiled = SourcelessFileLoader("__main__", path)
        code = compiled.get_code("__main__")
        assert code is not None
        return code, {"file": path, "loader": compiled}
    code = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    return code, {"file": path, "loader": SourceFileLoader("__main__", path)}


def _archive(arguments: list[str]) -> Program:
    spec = PathFinder.find_spec("__main__", [sys.path[0]])
    if spec is None:
        sys.exit(f"{sys.executable}: can't find '__main__' module in {arguments[0]!r}")
    return _of_spec(spec)


def _module(arguments: list[str]) -> Program:
    name = arguments[1]
    spec = _find(name)
    if spec is not None and spec.submodule_search_locations is not None:
        name += ".__main__"
        spec = _find(name)
    if spec is None or spec.loader is None:
        sys.exit(f"{sys.executable}: No module named {name}")
    program = _of_spec(spec)
    sys.argv[0] = str(spec.origin)
    return program


def _find(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name + ".").startswith(error.name + "."):
            return None
        raise


def _of_spec(spec: ModuleSpec) -> Program:
    loader: Any = spec.loader
    code = loader.get_code(spec.name)
    if code is None:
        sys.exit(f"{sys.executable}: No code object available for {spec.name}")
    attributes = {"file": spec.origin, "spec": spec, "loader": loader, "package": spec.parent}
    return code, attributes


def _code(arguments: list[str]) -> Program:
    return compile(arguments[1], "<string>", "exec", dont_inherit=True), {}


def _standard_input(arguments: list[str]) -> Program:
    # Without the file name "<stdin>", which processes of `multiprocessing` could not open.
    return compile(sys.stdin.buffer.read(), "<stdin>", "exec", dont_inherit=True), {}
