"""Names, comments and documents follow docs/style.md."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.words import GLOSSARY, hits, native_names, python_names

ROOT = Path(__file__).resolve().parents[1]
CODE_COLUMNS = 100
PROSE_COLUMNS = 90
TEXT = {".py", ".cpp", ".h", ".cu", ".cuh", ".sh", ".toml", ".yml", ".js", ".css", ".txt", ".md"}


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def text_files() -> list[Path]:
    named = {"Makefile", "run"}
    return [path for path in tracked() if path.suffix in TEXT or path.name in named]


def test_no_word_of_the_glossary_is_left() -> None:
    tracked()
    left = [f"{hit.path}:{hit.line}: {hit.text}" for hit in hits(ROOT)]
    assert not left, "\n".join(left)


def test_the_glossary_finds_names_and_phrases(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    (kernels / "a.py").write_text("# bitwise equal\nturned_queries = 1\noutput = 2\n")
    (kernels / "b.py").write_text(
        "def f(found):\n    '''Equal to\n    the" + " bit.'''\n    total = found\n"
    )
    (tmp_path / "c.cpp").write_text("// mine\nint place = 0; x.place = 1;\n")
    expected = {
        ("kernels/a.py", 2),
        ("kernels/b.py", 1),
        ("kernels/b.py", 2),
        ("kernels/b.py", 4),
        ("c.cpp", 2),
    }
    assert {(hit.path, hit.line) for hit in hits(tmp_path)} == expected
    assert len(GLOSSARY) > 15


def test_names_are_what_a_file_binds() -> None:
    assert set(python_names("def f(a, *b):\n    c = a.d\n    c.e = 1\n")) == {
        ("f", 1),
        ("a", 1),
        ("b", 1),
        ("c", 2),
        ("e", 3),
    }
    names = [name for name, _ in native_names('int a = b.c; // d\nauto e = "f";\n')]
    assert names == ["int", "a", "b", "auto", "e"]


def test_code_has_at_most_100_columns() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in text_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > CODE_COLUMNS
    ]
    assert not long, long


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Lines of a document outside code blocks and tables."""
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.startswith(("|", "    ")):
            yield number, line


def test_prose_has_at_most_90_columns() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked()
        if path.suffix == ".md"
        for number, line in prose(path.read_text())
        if len(line) > PROSE_COLUMNS
    ]
    assert not long, long


def test_no_conditional_expression_is_inside_another() -> None:
    nested = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in tracked()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.IfExp)
        and any(
            isinstance(inner, ast.IfExp)
            for child in ast.iter_child_nodes(node)
            for inner in ast.walk(child)
        )
    ]
    assert not nested, nested


def test_formatters_are_not_switched_off() -> None:
    switches = ("# fmt" + ": off", "# fmt" + ": skip", "clang-format" + " off")
    off = [path for path in text_files() if any(text in path.read_text() for text in switches)]
    assert not off, off
