"""The rooms of the package and the floors that their imports give them.

A room is a module or a folder directly in `sam2_fast/`, and `kernels/`. The floor of a room is one
above the highest room that it imports; rooms that import nothing of the package are on floor 1.

    python -m tools.floor_plan            print docs/architecture.md with the plan
    python -m tools.floor_plan --write    write it
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tools import generated

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sam2_fast"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- floor plan: written by `python -m tools.floor_plan --write` -->"
END = "<!-- end of the floor plan -->"

Imports = dict[str, dict[str, set[str]]]
"""room -> imported room -> files that import it."""


def files() -> list[Path]:
    """Python files of the package and of `kernels/`, without `sam2_fast/__init__.py`."""
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "kernels").glob("*.py")]
    top = PACKAGE / "__init__.py"
    link = PACKAGE / "kernels"  # a symbolic link to `kernels/`
    return sorted(p for p in paths if p != top and not p.is_relative_to(link))


def room_of(path: Path) -> str:
    """The room that a file is in."""
    base = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
    return path.relative_to(base).with_suffix("").parts[0]


@cache
def public_names() -> dict[str, str]:
    """Names that `sam2_fast` itself exports -> the room that defines them."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULES":
            homes: dict[str, str] = ast.literal_eval(node.value)
            return {name: home.split(".")[0] for name, home in homes.items()}
    raise RuntimeError("sam2_fast/__init__.py defines no _MODULES")


def imported_rooms(path: Path) -> Iterator[str]:
    """Rooms that a file imports, at the top or in functions. The native module `_C` is no room."""
    public = public_names()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = (
                [f"{module}.{a.name}" for a in node.names] if module == "sam2_fast" else [module]
            )
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "sam2_fast" and len(parts) > 1 and parts[1] not in ("_C", "__version__"):
                yield public.get(parts[1], parts[1])


@cache
def imports() -> Imports:
    """Every room -> the other rooms that it imports, and the files with these imports."""
    rooms: Imports = {room_of(path): {} for path in files()}
    for path in files():
        room = room_of(path)
        for other in imported_rooms(path):
            if other != room:
                rooms[room].setdefault(other, set()).add(str(path.relative_to(ROOT)))
    return rooms


def circle(graph: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Rooms that import each other in a circle, or an empty list."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def floors(graph: Mapping[str, Mapping[str, object]]) -> list[list[str]]:
    """Rooms by floor, the lowest first. The graph must have no circle."""
    floor: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        floor[room] = 1 + max((floor[other] for other in graph[room]), default=0)
    highest = max(floor.values())
    return [sorted(r for r in floor if floor[r] == number) for number in range(1, highest + 1)]


def plan() -> str:
    """The floor plan as text, the highest floor first."""
    graph = imports()
    levels = floors(graph)
    rows = [f"{number}  {' · '.join(rooms)}" for number, rooms in enumerate(levels, start=1)]
    arrows = sum(len(others) for others in graph.values())
    summary = f"{len(graph)} rooms, {len(levels)} floors, {arrows} arrows, no circle"
    return "\n".join(["```", *reversed(rows), "```", "", f"{summary}."])


def page_with(plan_text: str, page: str) -> str:
    """`page` with the floor plan between its markers replaced."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{plan_text}\n{END}{after}"


def page() -> str:
    """The page with the floor plan of the present sources."""
    return page_with(plan(), PAGE.read_text())


if __name__ == "__main__":
    sys.exit(generated.main(__doc__, PAGE, page))
