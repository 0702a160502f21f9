"""Compile every CUDA kernel and compare registers, shared memory and spills with committed limits.

    python tools/check_ptxas.py [--write]

The limits are in csrc/cuda/<stem>.ptxas.json, beside the source. The check fails if a kernel spills
registers, exceeds its limits, or has none.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "cuda"
TARGETS = ("80", "90a", "120")
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for")
_NAME = re.compile(r"\d+([a-z_]+_kernel)")
_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def measure(source: Path, target: str) -> dict[str, dict[str, int]]:
    """Kernel name -> registers, shared bytes, spilled bytes of one file for one target."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-O3", "-std=c++17", "--expt-relaxed-constexpr", f"-I{ROOT}"]
        command += [f"-arch=sm_{target}", "-Xptxas", "-v"]
        run = subprocess.run(
            [*command, "-c", str(source), "-o", f"{folder}/x.o"],
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode:
        raise SystemExit(f"{source}: {run.stderr}")
    kernels: dict[str, dict[str, int]] = {}
    name = ""
    for line in run.stderr.splitlines():
        if entry := _ENTRY.search(line):
            name = _NAME.findall(entry[1])[-1]
            kernels[name] = {"registers": 0, "shared_bytes": 0, "spilled_bytes": 0}
        elif spill := _SPILL.search(line):
            kernels[name]["spilled_bytes"] = int(spill[2]) + int(spill[3])
        elif used := _USED.search(line):
            shared = _SHARED.search(line)
            kernels[name]["registers"] = int(used[1])
            kernels[name]["shared_bytes"] = int(shared[1]) if shared else 0
    return kernels


Table = dict[str, dict[str, dict[str, int]]]
"""Kernel -> target -> registers, shared bytes, spilled bytes."""


def problems_of(source: Path, measured: Table, limits: Table) -> Iterator[str]:
    """One line for each kernel of a file that spills, exceeds its limits, or has none."""
    for kernel, targets in measured.items():
        for target, numbers in targets.items():
            label = f"{source.stem}/{kernel} {target}"
            limit = limits.get(kernel, {}).get(target)
            if numbers["spilled_bytes"]:
                yield f"{label} spills {numbers['spilled_bytes']} bytes"
            if limit is None:
                yield f"{label} is not in {table_of(source).name}"
            elif any(numbers[name] > limit[name] for name in numbers):
                yield f"{label}: {numbers} exceeds {limit}"


def table_of(source: Path) -> Path:
    """The file with the limits of a source file."""
    return source.with_suffix(".ptxas.json")


def main() -> int:
    """Print the tables. Returns the exit status: 1 if there is a problem with a kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the limits by these numbers")
    arguments = parser.parse_args()
    problems: list[str] = []
    for source in sorted(SOURCES.glob("*.cu")):
        measured: Table = {}
        for target in TARGETS:
            for kernel, numbers in measure(source, target).items():
                measured.setdefault(kernel, {})[f"sm_{target}"] = numbers
                print(f"{f'{source.stem}/{kernel}':55} sm_{target:4} {numbers}")
        table = table_of(source)
        if arguments.write:
            table.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
        limits = json.loads(table.read_text()) if table.exists() else {}
        problems += problems_of(source, measured, limits)
    for problem in problems:
        print(f"problem: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
