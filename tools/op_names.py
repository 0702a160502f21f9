"""Names of all ops for type checkers: `python -m tools.op_names [--write]`.

When `sam2_fast.ops` is imported it finds its modules by itself, which type checkers do not see. The
imports for them are made from the `__all__` of each module; a test compares.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from tools import generated

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sam2_fast" / "ops"
FILE = PACKAGE / "__init__.py"
BEGIN = "if TYPE_CHECKING:  # made by `python -m tools.op_names --write`\n"
END = "\n_modules = "


def public_names() -> dict[str, list[str]]:
    """Module -> its `__all__`."""
    found = {}
    for path in sorted({*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__init__.py")}):
        module = path.parent.name if path.stem == "__init__" else path.stem
        if path != FILE and module != "core":
            found[module] = _all_of(ast.parse(path.read_text()), path)
    return found


def _all_of(tree: ast.Module, path: Path) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    raise SystemExit(f"{path}: expected __all__, the public names of the op")


def source() -> str:
    """The file with the imports that there should be."""
    before, rest = FILE.read_text().split(BEGIN)
    _, after = rest.split(END, 1)
    lines = [
        f"    from sam2_fast.ops.{module} import {name} as {name}\n"
        for module, names in sorted(public_names().items())
        for name in names
    ]
    return before + BEGIN + "".join(lines) + END + after


if __name__ == "__main__":
    sys.exit(generated.main(__doc__, FILE, source))
