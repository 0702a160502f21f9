"""Run benchmarks: `python -m benchmarks.run [STEM ... | predictors] [--peer a,b] [--json FILE] [--quick]`.

A benchmark is a module in this folder with `measure(options: Options) -> Iterable[Row]` that proves its outputs equal before it
times them (`timing.require`). Exit status: 0, or 1 where a case was red.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.timing import Options, RedCaseError, Row, machine

HERE = Path(__file__).resolve().parent
NOT_BENCHMARKS = {"__init__", "engines", "peers", "run", "timing"}


def available() -> list[str]:
    """Modules of this folder that measure something."""
    return sorted(p.stem for p in HERE.glob("*.py") if p.stem not in NOT_BENCHMARKS and "def measure(" in p.read_text())


def show(row: Row) -> str:
    """One line of the table."""
    notes = "  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.notes.items())
    return f"{row.case:34} {row.who:34} {row.median_ms:10.3f} ms  ({row.low_ms:.3f} .. {row.high_ms:.3f})  {notes}"


def main() -> int:
    """Measure what was asked for, print it, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"what to measure: {', '.join(available())}; default all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peer", default="", help="comma-separated; default every peer that is installed")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="small shapes only")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(available())
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(available())}")
    peers = tuple(p for p in arguments.peer.split(",") if p)
    options = Options(torch.device(arguments.device), arguments.repeats, peers, arguments.quick)
    results: dict[str, list[Row]] = {}
    red = []
    for name in arguments.names or available():
        try:
            results[name] = list(import_module(f"benchmarks.{name}").measure(options))
        except RedCaseError as error:
            red.append(str(error))
            continue
        for row in results[name]:
            print(show(row))
    if arguments.json and results:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine(options), "results": {k: [r.as_dict() for r in v] for k, v in results.items()}}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    for line in red:
        print(f"red: {line}", file=sys.stderr)
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
