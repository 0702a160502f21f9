"""Out-of-bounds accesses of every kernel at small shapes, under compute-sanitizer.

Torch's caching allocator is disabled: it returns parts of large blocks, and compute-sanitizer does
not detect an access to another part of the same block.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.first_light.context import Context


def run(context: Context) -> None:
    """Run the step."""
    context.attempt("memcheck", lambda: _memcheck(context))


def _memcheck(context: Context) -> dict[str, Any]:
    tool = shutil.which("compute-sanitizer")
    tool = tool or next(iter(sorted(glob.glob("/usr/local/cuda*/bin/compute-sanitizer"))), None)
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-m", "benchmarks.first_light.small_shapes", context.mode]
    checked = context.cuda and tool is not None
    if checked:
        command = [str(tool), "--tool", "memcheck", "--error-exitcode", "9", *command]
    environment = dict(os.environ, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    result = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=85, check=False
    )
    log = result.stdout + result.stderr
    (context.files / "memcheck.log").write_text(log)
    status = "ok" if result.returncode == 0 else f"failed: exit {result.returncode}"
    if result.returncode == 0 and not checked:
        status = "run without compute-sanitizer"
    return {"status": status, "log": log[-700:]}
