"""Every fault of docs/robustness.md has tests, and every marked id is a row or a fault of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "robustness.md").read_text(encoding="utf-8")
OTHERS = {"interrupts", "buffers"}
"""Ids of promises that are neither a row nor a fault."""


def files_by_id() -> dict[str, set[str]]:
    """Argument of `pytest.mark.reliability(...)` -> names of the files with it."""
    files: dict[str, set[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.reliability":
                for argument in node.args:
                    files.setdefault(ast.literal_eval(argument), set()).add(path.name)
    return files


def test_every_id_is_in_the_page_and_every_fault_has_a_mark() -> None:
    rows = set(re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE))
    faults = set(re.findall(r"^\| (F\d+) \|", PAGE, re.MULTILINE))
    assert rows == {str(number) for number in range(1, 41)}
    marked = files_by_id().keys() - OTHERS
    assert marked <= rows | faults
    assert faults <= marked


def test_the_named_files_test_the_faults() -> None:
    files = files_by_id()
    for fault, name in re.findall(r"^\| (F\d+) \|.*\| `(\w+\.py)` \|$", PAGE, re.MULTILINE):
        assert name in files[fault], fault
