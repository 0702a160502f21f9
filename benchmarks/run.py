"""Run benchmarks: `python -m benchmarks.run [STEM ... | predictors] [--peer a,b] [--json FILE]
[--quick]`.

A benchmark is a module in this folder with `measure(options: Options) -> Iterable[Case]`; a case
proves its outputs equal (`timing.require`) before it times them. A row is printed, and in FILE, as
soon as it is known: a run that is killed leaves a valid document with `"complete": false`. A case
    that is red (outputs differ) or fails is recorded,
and the others go on. Exit status: 0, or 1 where a case was red or failed.
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

HERE = Path(__file__).resolve().parent
NOT_BENCHMARKS = {"__init__", "engines", "peers", "report", "run", "timing"}


def available() -> list[str]:
    """Modules of this folder that measure something."""
    return modules_with("measure")


def modules_with(function: str) -> list[str]:
    """Modules of this folder that define a function of this name."""
    return sorted(
        p.stem
        for p in HERE.glob("*.py")
        if p.stem not in NOT_BENCHMARKS and f"\ndef {function}(" in p.read_text()
    )


def cases(name: str, options: Options) -> Iterable[Case]:
    """The cases of a benchmark; its module is imported when the first is asked for."""
    yield from import_module(f"benchmarks.{name}").measure(options)


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help=f"what to measure: {', '.join(available())}; default all"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--peer", default="", help="comma-separated; default every peer that is installed"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="small shapes only")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(available())
    if unknown:
        parser.error(
            f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(available())}"
        )
    peers = tuple(p for p in arguments.peer.split(",") if p)
    options = Options(torch.device(arguments.device), arguments.repeats, peers, arguments.quick)
    report = Report(options, arguments.json)
    for name in arguments.names or available():
        report.benchmark(name, cases(name, options))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
