"""Every row of docs/field.md has tests, and every marked test a row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "field.md"

DOCUMENTED = {"U03", "U04", "U07"}
"""Rows that are decided by a sentence of docs/files.md, and have no behaviour to test."""


def rows_of_the_page() -> list[str]:
    return re.findall(r"^\* \*\*([BU]\d\d)\*\* ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def marked_rows() -> set[str]:
    """The arguments of all marks `pytest.mark.field(...)` in the tests."""
    rows: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.field":
                rows |= {ast.literal_eval(argument) for argument in node.args}
    return rows


def test_the_page_has_all_rows_once() -> None:
    expected = [f"B{i:02d}" for i in range(1, 34)] + [f"U{i:02d}" for i in range(1, 11)]
    assert rows_of_the_page() == expected


def test_every_row_has_tests_and_every_mark_a_row() -> None:
    assert marked_rows() == set(rows_of_the_page()) - DOCUMENTED


@pytest.mark.parametrize(
    ("row", "sentence"),
    [("U03", "interpolates the colour planes"), ("U04", "no sound"), ("U07", "`spawn`")],
)
def test_rows_without_behaviour_are_documented(row: str, sentence: str) -> None:
    assert row in DOCUMENTED
    assert sentence in (PAGE.parent / "files.md").read_text(encoding="utf-8")
