"""Turn what `sam2-fast doctor --json` measured on a card into the choices that the package ships:
`python -m tools.ship_choices REPORT.json [--into DIR]`.

`--empty 80 89` writes files without choices, for architectures on which nothing was measured.
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
    """A file without choices."""
    return _file(capability, None, NOTHING, [])


def from_report(report: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The compute capability and the file that a doctor's report makes.

    Raises ValueError for a report of a CPU, one with failed kernels, and one without timing.
    """
    card = report["card"]
    if card["capability"] is None:
        raise ValueError(f"the report is of a CPU, {card['name']}: choices are for GPUs")
    if report["failed"]:
        raise ValueError(f"{report['failed']} kernels failed: nothing is shipped from such a card")
    if report["matrix_gflops"] is None:
        raise ValueError("the report has no times (doctor --no-timing)")
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


def main(words: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.ship_choices", description=__doc__)
    parser.add_argument("report", nargs="?", type=Path, help="output of sam2-fast doctor --json")
    parser.add_argument("--into", type=Path, default=DIRECTORY, help="default: the package")
    parser.add_argument("--empty", nargs="+", type=int, default=[], metavar="CAPABILITY")
    options = parser.parse_args(words)
    if options.report is None and not options.empty:
        parser.error("give a report, or --empty")
    made = [(capability, empty(capability)) for capability in options.empty]
    if options.report is not None:
        try:
            made.append(from_report(json.loads(options.report.read_text())))
        except (OSError, ValueError, KeyError) as error:
            print(f"error: {options.report}: {error}", file=sys.stderr)
            return 2
    for capability, content in made:
        path = write(capability, content, options.into)
        print(f"{path}: {len(content['choices'])} choices")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
