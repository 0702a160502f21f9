"""Run programs written for the official package unmodified: `import sam2...` imports this package.

    python -m sam2_fast.compat script.py ARGUMENTS...          run a script
    python -m sam2_fast.compat -m package.module ARGUMENTS...  run a module
    python -m sam2_fast.compat -c CODE ARGUMENTS...            run code; `-` runs standard input
    import sam2_fast.compat; sam2_fast.compat.install()        in your own program

Importing this module installs nothing. An installed `sam2` is hidden only in the process that calls
`install`, and in its child processes. docs/migration.md says how, and which names of `sam2` can be
replaced.
"""

from __future__ import annotations

import sys

from sam2_fast.compat.shim import children, copies, patches
from sam2_fast.compat.shim.copies import NAME
from sam2_fast.compat.shim.copies import ModifiedCopyError as ModifiedCopyError
from sam2_fast.compat.shim.finder import aliases, finder, is_alias


def install(*, replace_modified: bool = False) -> None:
    """Make `import sam2...` import this package, here and in child processes started later.

    Calling it twice is harmless. Child processes are reached by PYTHONPATH.
    replace_modified: replace a modified copy of the official package, too.
    Raises RuntimeError if another `sam2` is already imported: its classes would not mix with ours.
    Raises ModifiedCopyError if the program has a modified copy of the official package.
    """
    loaded = sys.modules.get(NAME)
    if loaded is not None and not is_alias(loaded):
        raise RuntimeError(
            "sam2_fast.compat.install(): another sam2 is imported already; call install() before "
            "anything imports sam2"
        )
    if not replace_modified and loaded is None:
        copies.check(finder)
    if finder not in sys.meta_path:
        sys.meta_path.insert(0, finder)
    children.announce(replace_modified)


def uninstall() -> None:
    """Undo `install`: later imports of `sam2` find the installed package, if there is one."""
    if finder in sys.meta_path:
        sys.meta_path.remove(finder)
    children.withdraw()
    patches.restore_all()
    for name in aliases():
        del sys.modules[name]
