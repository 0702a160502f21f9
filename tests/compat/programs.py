"""Runs programs that are written for the official package."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(**variables: str) -> dict[str, str]:
    """The environment of this process, with the repository on Python's path."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **variables}


def execute(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with further environment variables; its status is not checked."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(**variables),
        cwd=folder,
        timeout=550,
        check=False,
    )


def run(command: list[str], folder: Path, **variables: str) -> str:
    """Run a command that must succeed; returns its standard output."""
    completed = execute(command, folder, **variables)
    assert completed.returncode == 0, completed.stderr[-3000:]
    return completed.stdout
