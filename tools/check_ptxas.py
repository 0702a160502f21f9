"""Compile every CUDA kernel and compare registers, shared memory and spills with
csrc/cuda/ptxas_limits.json.

    python tools/check_ptxas.py [--write]

A kernel that spills, uses more registers than the table allows, or is missing from it fails the
check.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "csrc" / "cuda" / "ptxas_limits.json"
TARGETS = ("80", "90a", "120")
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for")
_NAME = re.compile(r"\d+([a-z_]+_kernel)")
_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def measure(source: Path, target: str) -> dict[str, dict[str, int]]:
    """kernel name -> registers, shared bytes, spilled bytes of one file for one target."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "nvcc",
            "-O3",
            "-std=c++17",
            "--expt-relaxed-constexpr",
            f"-I{ROOT}",
            f"-arch=sm_{target}",
            "-Xptxas",
            "-v",
        ]
        run = subprocess.run(
            [*command, "-c", str(source), "-o", f"{folder}/x.o"],
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode:
        raise SystemExit(f"{source}: {run.stderr}")
    found: dict[str, dict[str, int]] = {}
    name = ""
    for line in run.stderr.splitlines():
        if entry := _ENTRY.search(line):
            name = _NAME.findall(entry[1])[-1]
            found[name] = {"registers": 0, "shared_bytes": 0, "spilled_bytes": 0}
        elif spill := _SPILL.search(line):
            found[name]["spilled_bytes"] = int(spill[2]) + int(spill[3])
        elif used := _USED.search(line):
            found[name]["registers"] = int(used[1])
            found[name]["shared_bytes"] = int(shared[1]) if (shared := _SHARED.search(line)) else 0
    return found


def main() -> int:
    """Print the table; 1 where a kernel is beyond its limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="make the present numbers the limits")
    arguments = parser.parse_args()
    limits = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    measured: dict[str, dict[str, dict[str, int]]] = {}
    problems = []
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        for target in TARGETS:
            for kernel, numbers in measure(source, target).items():
                key = f"{source.stem}/{kernel}"
                measured.setdefault(key, {})[f"sm_{target}"] = numbers
                limit = limits.get(key, {}).get(f"sm_{target}")
                print(f"{key:55} sm_{target:4} {numbers}")
                if numbers["spilled_bytes"]:
                    problems.append(f"{key} sm_{target} spills {numbers['spilled_bytes']} bytes")
                if limit is None:
                    problems.append(f"{key} sm_{target} is not in {TABLE.name}")
                elif any(numbers[k] > limit[k] for k in numbers):
                    problems.append(f"{key} sm_{target}: {numbers} exceeds {limit}")
    if arguments.write:
        TABLE.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
        return 0
    for problem in problems:
        print(f"problem: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
