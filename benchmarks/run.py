"""Run benchmarks: `python -m benchmarks.run [NAME ... ] [--peer a,b] [--json FILE] [--quick]`.

A benchmark is a module in this folder with `measure(options: Options) -> Iterable[Case]`. A case
checks that its outputs are equal (`timing.require`) before it times them. Each row is printed and
written to FILE as soon as it is known, so a run that is killed leaves a valid document with
`"complete": false`. A case that is red (its outputs differ) or fails is recorded, and the others
continue. The exit status is 1 if a case was red or failed, otherwise 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.report import Report
from benchmarks.timing import Case, Options

FOLDER = Path(__file__).resolve().parent
NOT_BENCHMARKS = {"__init__", "engines", "machine", "peers", "report", "run", "timing"}


def available() -> list[str]:
    """Names of the benchmarks: modules of this folder with a function `measure`."""
    return modules_with("measure")


def modules_with(function: str) -> list[str]:
    """Names of the modules of this folder that define this function."""
    return sorted(
        p.stem
        for p in FOLDER.glob("*.py")
        if p.stem not in NOT_BENCHMARKS and f"\ndef {function}(" in p.read_text()
    )


def cases(name: str, options: Options) -> Iterable[Case]:
    """The cases of a benchmark. Its module is imported when the first case is requested."""
    yield from import_module(f"benchmarks.{name}").measure(options)


def main() -> int:
    """Run the benchmarks that the command line names. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help=f"benchmarks to run: {', '.join(available())}; by default all"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--peer", default="", help="comma-separated; by default every peer that is installed"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="small shapes only")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(available())
    if unknown:
        parser.error(
            f"unknown benchmark: {', '.join(sorted(unknown))}; choose from {', '.join(available())}"
        )
    peers = tuple(p for p in arguments.peer.split(",") if p)
    options = Options(torch.device(arguments.device), arguments.repeats, peers, arguments.quick)
    report = Report(options, arguments.json)
    report.measure_machine(options)
    for name in arguments.names or available():
        report.run_benchmark(name, cases(name, options))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
