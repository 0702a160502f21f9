"""Runs commands of `sam2-fast` in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from sam2_fast.cli.app import app

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FRAMES = EXAMPLES / "clip_frames"
STILL = EXAMPLES / "still.png"
SMALL = "--image-size 64 --device cpu"


def run(*arguments: object) -> Result:
    """Run a command. A string may contain several arguments, separated by spaces."""
    words: list[str] = []
    for argument in arguments:
        words += argument.split() if isinstance(argument, str) else [str(argument)]
    return CliRunner().invoke(app, words)


def summary(*arguments: object) -> dict[str, Any]:
    """Run a command with `--json`; returns the document that it prints."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document
