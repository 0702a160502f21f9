"""Names of all ops for type checkers: `python -m tools.op_names [--write]`.

`sam2_fast.ops` imports its modules dynamically, which type checkers cannot follow. This generates
static imports for them from the `__all__` of each module. A test checks that they are current.
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
    names = {}
    for path in sorted({*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__init__.py")}):
        module = path.parent.name if path.stem == "__init__" else path.stem
        if path != FILE and module != "core":
            names[module] = _dunder_all(ast.parse(path.read_text()), path)
    return names


def _dunder_all(tree: ast.Module, path: Path) -> list[str]:
    """The sorted `__all__` of a module. Raises SystemExit if it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    raise SystemExit(f"{path}: expected __all__, the public names of the op")


def source() -> str:
    """The text of the file with the imports for the present modules."""
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
