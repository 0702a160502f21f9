"""`python -m sam2_fast.compat PROGRAM` runs programs as Python does."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sam2_fast.compat.shim.copies import STUB
from tests.compat.programs import environment, execute

PLAIN = (sys.executable,)
SHIM = (sys.executable, "-m", "sam2_fast.compat")
PROBE = f"""
import json, sys
main = sys.modules["__main__"]
print(json.dumps({{
    "argv": sys.argv,
    "path": [entry for entry in sys.path if entry != {str(STUB)!r}],
    "globals": sorted(name for name in globals() if name.startswith("__")),
    "name": __name__,
    "package": __package__,
    "file": globals().get("__file__"),
    "spec": getattr(__spec__, "name", None),
    "loader": getattr(__loader__, "__name__", type(__loader__).__name__),
    "main": vars(main) is globals(),
    "doc": __doc__,
}}))
sys.exit(7)
"""
PROGRAMS = {
    "script": ["program.py", "a", "-b"],
    "path": ["./package/module.py", "a"],
    "module": ["-m", "package.module", "-m", "a"],
    "joined": ["-mpackage.module"],
    "package": ["-m", "package", "--replace-modified"],
    "folder": ["package", "a"],
    "archive": ["archive.zip", "a"],
    "code": ["-c", PROBE, "a", "-c"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The probe as a script, a package and a zip file."""
    (tmp_path / "package").mkdir()
    for name in ("program.py", "package/module.py", "package/__main__.py"):
        (tmp_path / name).write_text(f'"""A probe."""\n{PROBE}')
    (tmp_path / "package" / "__init__.py").write_text("")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", PROBE)
    return tmp_path


def state(command: list[str], folder: Path) -> dict[str, Any]:
    """What a probe prints; its exit code is 7."""
    completed = execute(command, folder)
    assert completed.returncode == 7, completed.stderr
    output: dict[str, Any] = json.loads(completed.stdout)
    return output


@pytest.mark.parametrize("kind", PROGRAMS)
def test_programs_have_the_state_that_python_gives_them(kind: str, folder: Path) -> None:
    """`sys.argv`, `sys.path` and the attributes of `__main__`."""
    arguments = PROGRAMS[kind]
    assert state([*SHIM, *arguments], folder) == state([*PLAIN, *arguments], folder)


def test_standard_input_runs_as_in_python(folder: Path) -> None:
    """But for `__file__`, "<stdin>", which processes of `multiprocessing` could not open."""
    outputs = []
    for command in (PLAIN, SHIM):
        completed = subprocess.run(
            [*command, "-", "a"],
            input=PROBE,
            capture_output=True,
            text=True,
            env=environment(),
            cwd=folder,
            timeout=300,
            check=False,
        )
        assert completed.returncode == 7, completed.stderr
        outputs.append(json.loads(completed.stdout))
    official, ours = outputs
    for output in outputs:
        output["file"] = None
        output["globals"] = [n for n in output["globals"] if n not in ("__file__", "__cached__")]
    assert ours == official


@pytest.mark.parametrize("name", ["absent", "package.absent", "absent.module"])
def test_a_missing_module_is_reported_as_by_python(name: str, folder: Path) -> None:
    ours, official = (execute([*c, "-m", name], folder) for c in (SHIM, PLAIN))
    assert ours.returncode == official.returncode == 1
    assert f"No module named {name}" in ours.stderr


def test_errors_and_unknown_options_are_reported(folder: Path) -> None:
    completed = execute([*SHIM, "-c", "raise ValueError('told')"], folder)
    assert completed.returncode == 1 and "ValueError: told" in completed.stderr
    for arguments in (["-x"], ["-m"], ["-c"], ["--replace-modified"]):
        completed = execute([*SHIM, *arguments], folder)
        assert completed.returncode == 2 and "usage:" in completed.stderr, arguments
    completed = execute([*SHIM, "--help"], folder)
    assert completed.returncode == 0 and "--replace-modified" in completed.stdout
