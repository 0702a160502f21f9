"""Convert a report of `sam2-fast doctor --json` to the kernel choices that the package ships.

    python -m tools.ship_choices REPORT.json [--into DIR]

`--empty 80 89` writes files without choices, for architectures without measurements.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sam2_fast.proving.shipped import DIRECTORY, FORMAT, VERSION, path_of

NOTHING = "Nothing has been measured on this architecture: kernels take their defaults."


def empty(capability: int) -> dict[str, Any]:
    """Content of a file without choices."""
    return _file(capability, None, NOTHING, [])


def from_report(report: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The compute capability of a report, and the content of the file for it.

    Raises ValueError if the report is of a CPU, has failed kernels, or has no times.
    """
    card = report["card"]
    if card["capability"] is None:
        raise ValueError(f"the report is of a CPU, {card['name']}: expected the report of a GPU")
    if report["failed"]:
        raise ValueError(f"{report['failed']} kernels failed: expected a report without failures")
    if report["matrix_gflops"] is None:
        raise ValueError("the report has no times: run doctor without --no-timing")
    source = {key: card[key] for key in ("name", "driver", "torch", "triton", "package", "build")}
    choices = sorted(report["choices"], key=lambda c: (c["point"], str(c["key"])))
    note = f"Measured on {card['name']}, {report['date']}."
    return card["capability"], _file(card["capability"], source, note, choices)


def _file(
    capability: int, card: dict[str, Any] | None, note: str, choices: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "capability": capability,
        "note": note,
        "card": card,
        "choices": choices,
    }


def write(capability: int, content: dict[str, Any], directory: Path) -> Path:
    """Write a file of choices. Returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = path_of(capability, directory)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def main(arguments: list[str]) -> int:
    """Run the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.ship_choices", description=__doc__)
    parser.add_argument("report", nargs="?", type=Path, help="output of sam2-fast doctor --json")
    parser.add_argument(
        "--into", type=Path, default=DIRECTORY, help="folder to write to (default: the package's)"
    )
    parser.add_argument("--empty", nargs="+", type=int, default=[], metavar="CAPABILITY")
    options = parser.parse_args(arguments)
    if options.report is None and not options.empty:
        parser.error("expected a report, or --empty")
    contents = [(capability, empty(capability)) for capability in options.empty]
    if options.report is not None:
        try:
            contents.append(from_report(json.loads(options.report.read_text())))
        except (OSError, ValueError, KeyError) as error:
            print(f"error: {options.report}: {error}", file=sys.stderr)
            return 2
    for capability, content in contents:
        path = write(capability, content, options.into)
        print(f"{path}: {len(content['choices'])} choices")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
