"""The sanitizers check every kernel, and only a run with the sanitized module passes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sam2_fast.ops.core.native import native
from tools import sanitize

ROOT = Path(__file__).resolve().parents[2]
SANITIZED = ROOT / "tests/sanitized"
NO_TESTS_RAN = 5


def test_every_stem_with_cpu_sources_is_tested() -> None:
    stems = {p.stem for p in (ROOT / "bindings").glob("*.cpp")} - {"module"}
    tested = {Path(name).stem.removeprefix("test_") for name in sanitize.files()}
    assert len(stems) >= 10
    assert stems <= tested
    assert all((ROOT / name).is_file() for name in sanitize.files())


def run_pytest(expected: str, plugins: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(plugins), "SAM2_FAST_SANITIZED": expected}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "loaded_module", str(folder)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_a_run_with_another_native_module_fails(tmp_path: Path) -> None:
    module = native()
    if module is None:
        pytest.skip("the native module is not built")
    assert module.__file__ is not None
    copy = str(shutil.copy(module.__file__, tmp_path))
    loaded = run_pytest(copy, SANITIZED, tmp_path)
    assert loaded.returncode == NO_TESTS_RAN, loaded.stderr
    shutil.copy(SANITIZED / "loaded_module.py", tmp_path)
    installed = run_pytest(copy, tmp_path, tmp_path)
    assert installed.returncode not in (0, NO_TESTS_RAN)
    assert f"sam2_fast._C: expected {copy}, got {module.__file__}" in installed.stderr
