"""Copies of the official package beside a program: replaced if official, refused if modified."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import sam2_fast.compat as compat
from sam2_fast.compat.shim import copies
from sam2_fast.compat.shim.finder import finder
from tests.compat.programs import execute, run
from tests.compat.test_names import official_folder
from tests.compat.test_shim import forget_sam2

SHIM = (sys.executable, "-m", "sam2_fast.compat")
CODE = "import sam2; print(type(sam2).__name__)"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program with a copy of the official package beside it."""
    folder = tmp_path / "sam2"
    shutil.copytree(official_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "program.py").write_text(CODE)
    return tmp_path


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No `sam2` is imported, and `sys.path` is restored."""
    forget_sam2(monkeypatch)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv(copies.REPLACE_MODIFIED, raising=False)


def test_an_official_copy_is_replaced(program: Path) -> None:
    """Whatever its line ends are."""
    path = program / "sam2" / "build_sam.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    for arguments in (["program.py"], ["-m", "program"], ["-c", CODE]):
        assert run([*SHIM, *arguments], program).strip() == "AliasModule"


def test_a_modified_copy_is_refused_with_the_names_of_its_files(program: Path) -> None:
    with (program / "sam2" / "modeling" / "sam2_base.py").open("a") as file:
        file.write("MEMORY_TREE = True\n")
    (program / "sam2" / "modeling" / "tree.py").write_text("")
    completed = execute([*SHIM, "program.py"], program)
    assert completed.returncode == 2
    assert "sam2_base.py: modified" in completed.stderr
    assert "tree.py: no official version has this module" in completed.stderr
    assert "transformer.py" not in completed.stderr and "Traceback" not in completed.stderr
    for way_out in ("--replace-modified", f"{copies.REPLACE_MODIFIED}=1"):
        assert way_out in completed.stderr
    assert run([*SHIM, "--replace-modified", "program.py"], program).strip() == "AliasModule"
    output = run([*SHIM, "program.py"], program, **{copies.REPLACE_MODIFIED: "1"})
    assert output.strip() == "AliasModule"


def test_a_copy_that_is_put_on_the_path_later_is_refused_at_its_import(
    clean: None, tmp_path: Path
) -> None:
    """A package and a module, neither of them official; a folder without code is no copy."""
    compat.install()
    try:
        (tmp_path / "sam2").mkdir()
        sys.path.insert(0, str(tmp_path))
        copies.check(finder)
        (tmp_path / "sam2" / "__init__.py").write_text("VALUE = 1\n")
        with pytest.raises(compat.ModifiedCopyError, match=r"__init__\.py: modified"):
            __import__("sam2")
        shutil.rmtree(tmp_path / "sam2")
        (tmp_path / "sam2.py").write_text("VALUE = 1\n")
        sys.path_importer_cache.clear()
        with pytest.raises(compat.ModifiedCopyError, match=r"sam2\.py: expected a package"):
            __import__("sam2")
    finally:
        compat.uninstall()


def test_install_refuses_and_can_be_told_to_replace(clean: None, tmp_path: Path) -> None:
    (tmp_path / "sam2").mkdir()
    (tmp_path / "sam2" / "__init__.py").write_text("VALUE = 1\n")
    sys.path.insert(0, str(tmp_path))
    with pytest.raises(compat.ModifiedCopyError, match="replace_modified=True"):
        compat.install()
    assert not any(type(f).__module__.startswith("sam2_fast.compat") for f in sys.meta_path)
    compat.install(replace_modified=True)
    try:
        assert type(__import__("sam2")).__name__ == "AliasModule"
    finally:
        compat.uninstall()
    with pytest.raises(compat.ModifiedCopyError):
        compat.install()


def test_the_table_has_the_files_of_all_versions() -> None:
    """Of the first and the last release; the table contains no code."""
    document = json.loads(copies.HASHES.read_text())
    assert "https://github.com/facebookresearch/sam2" in document["source"]
    table = document["files"]
    assert len(table["build_sam.py"]) > 5 and "sam2_video_predictor_legacy.py" in table
    assert all(len(h) == 64 for hashes in table.values() for h in hashes)
    for path in official_folder().rglob("*.py"):
        content = path.read_bytes()
        assert copies.content_hash(content) in table[path.relative_to(official_folder()).as_posix()]
