"""Fuzz the readers: `python -m tests.fuzz.run --seconds 60 [--target pt]`.

Every target runs in a process with limits of time and memory, two of them at a time at most.
Prints executions, accepted inputs and the line coverage of the readers. Inputs with a finding are
kept in build/fuzz/findings. Exits with 1 if there is a finding, a hang or a crash, or if less than
80 % of the readers' lines are covered when all targets run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import coverage

from tests.fuzz.targets import TARGETS

FOLDER = Path("build/fuzz")
MEMORY = Path("/dev/shm")
"""A folder in memory for the inputs, if there is one: the readers open millions of files."""
PACKAGE = Path("sam2_fast")
LEAST_PERCENT = 80.0
AT_ONCE = 2
START_SECONDS = 120


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="of each target")
    parser.add_argument("--executions", type=int, help="of each target; replaces the seconds")
    parser.add_argument("--target", action="append", choices=[*TARGETS], help="repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--engine",
        choices=("seeded", "atheris"),
        default="seeded",
        help="atheris follows the branches that inputs reach; it needs the extra `fuzz`",
    )
    options = parser.parse_args(arguments)
    names = options.target or [*TARGETS]
    shutil.rmtree(FOLDER, ignore_errors=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = [*pool.map(lambda name: run_target(name, options), names)]
    failures = [line for result in results for line in result["findings"]]
    percent = print_coverage(names)
    is_low = options.target is None and percent < LEAST_PERCENT
    if is_low:
        print(f"the coverage is below {LEAST_PERCENT:.0f} %")
    print("\n".join(failures) or "no findings")  # last: a log that is cut keeps its end
    return 1 if failures or is_low else 0


def run_target(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a worker and print its counts; a crash or a hang is a finding."""
    folder = FOLDER / "work" / name
    folder.mkdir(parents=True)
    findings = (FOLDER / "findings" / name).resolve()
    in_memory = str(MEMORY) if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sam2_fast_fuzz_", dir=in_memory) as inputs:
        code = run_worker(name, options, folder, findings, inputs)
        file = folder / "result.json"
        result: dict[str, Any] = {"executions": 0, "accepted": 0, "findings": []}
        if file.exists():
            result = json.loads(file.read_text(encoding="utf-8"))
        if code not in (0, 1) or (code == 1 and not result["findings"]):
            findings.mkdir(parents=True, exist_ok=True)
            for path in Path(inputs).glob("input*"):
                shutil.copy(path, findings / f"crash{path.suffix}")
            tail = (folder / "stderr.txt").read_text(errors="replace").strip()[-500:]
            result["findings"].append(f"{name}: the process ended with {code}: {tail}")
    print(
        f"{name:18} {result['executions']:8} executions, {result['accepted']:7} accepted, "
        f"{len(result['findings'])} findings",
        flush=True,
    )
    return result


def run_worker(
    name: str, options: argparse.Namespace, folder: Path, findings: Path, inputs: str
) -> int:
    """The exit code of a worker, which writes its results to `folder`; -1 if it does not end."""
    command = [
        *(sys.executable, "-m", "tests.fuzz.worker", name, "--seconds", str(options.seconds)),
        *("--seed", str(options.seed), "--engine", options.engine, "--folder", str(folder)),
        *("--findings", str(findings), "--inputs", inputs),
    ]
    limit = options.seconds + START_SECONDS
    if options.executions is not None:
        command += ["--executions", str(options.executions)]
        limit = None  # a worker ends itself if an input hangs
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the targets share the cores
    with (folder / "stderr.txt").open("wb") as log:
        try:
            return subprocess.run(
                command, stdout=log, stderr=log, timeout=limit, env=environment
            ).returncode
        except subprocess.TimeoutExpired:
            return -1


def print_coverage(names: list[str]) -> float:
    """Print the covered lines of each reader's module; returns the percentage of all of them."""
    modules = sorted({module for name in names for module in TARGETS[name].modules})
    data = [FOLDER / "work" / name / "coverage" for name in names]
    lines = coverage.Coverage(data_file=str(FOLDER / "coverage"), config_file=False)
    lines.combine([str(path) for path in data if path.exists()], keep=True)
    files = [str((PACKAGE / module).resolve()) for module in modules]
    return float(lines.report(morfs=files, file=sys.stdout, skip_empty=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
