"""The table of programs has all scripts, and only refusals that tests require."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.compat.test_idioms import NAMES
from tests.third_party.programs import PROGRAMS, REFUSALS, Refusal
from tools import program_table

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_page_is_the_generated_one() -> None:
    assert program_table.PAGE.read_text() == program_table.page(), "run `make generated`"


def test_every_script_belongs_to_one_class_of_programs() -> None:
    assert sorted(name for scripts in PROGRAMS.values() for name in scripts) == NAMES
    assert len(PROGRAMS) >= 24


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.use[:30])
def test_a_refusal_is_required_by_a_test(refusal: Refusal) -> None:
    assert refusal.program in PROGRAMS
    path, _, name = refusal.test.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    tests = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    source = ast.unparse(tests[name])
    assert "pytest.raises" in source or "returncode == 2" in source


def test_rows_name_the_tolerance_of_results_that_differ() -> None:
    rows = program_table.table().split("<tr>")
    assert sum("<td>equal</td>" in row for row in rows) > 24
    assert any("int8" in row and "relative error below 0.06" in row for row in rows)
