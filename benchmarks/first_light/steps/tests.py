"""The GPU tests, end-to-end tests first, in one process per core and at most eight."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.first_light.context import Context

FILES = (
    "tests/test_all_in_triton.py",
    "tests/video/test_graphs.py",
    "tests/video/test_captures_on_a_gpu.py",
    "tests/video/test_registry_in_recordings.py",
    "tests/test_waiting.py",
    "tests/ops",
    "tests/proving",
)


def run(context: Context) -> None:
    """Run the step."""
    context.attempt("pytest -m gpu", lambda: _tests(context))


def _tests(context: Context) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[3]
    report = context.files / "gpu_tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "gpu", f"--junitxml={report}"]
    command += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal", *FILES]
    command += [] if context.cuda else ["--collect-only"]
    environment = dict(os.environ)
    environment.pop("OMP_NUM_THREADS", None)
    result = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=235, check=False
    )
    (context.files / "gpu_tests.log").write_text(result.stdout + result.stderr)
    tail = result.stdout.strip().splitlines()[-1:] or [result.stderr[-200:]]
    failed = _failed_tests(report) if report.is_file() else []
    good = result.returncode == 0
    status = "ok" if good else f"failed: exit {result.returncode}"
    return {
        "summary": tail[0],
        "failed": failed,
        "status": status,
        "log": "" if good else result.stdout[-900:],
    }


def _failed_tests(report: Path) -> list[str]:
    """Names of the tests that failed."""
    cases = ElementTree.parse(report).iter("testcase")
    return [
        f"{c.get('classname')}::{c.get('name')}"
        for c in cases
        if any(x.tag in ("failure", "error") for x in c)
    ]
