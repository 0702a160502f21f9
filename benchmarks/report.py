"""Results of benchmarks, which are printed and written to a file as soon as they are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.failures import failures
from benchmarks.machine import headline, load_average, machine, matrix_peaks
from benchmarks.timing import Case, Options, RedCaseError, Row

ROOT = Path(__file__).resolve().parents[1]


class Report:
    """Rows, red cases and failures, printed and optionally written to a JSON file.

    The file `path` is replaced as a whole after every change.
    `"complete"` is false until `finish` is called: a run that is killed leaves a valid document
    with all rows up to then.
    """

    def __init__(self, options: Options, path: Path | None = None) -> None:
        self._path = path
        self._machine = machine(options)
        self._results: dict[str, list[dict[str, Any]]] = {}
        self._red: list[dict[str, str]] = []
        self._failed: list[dict[str, str]] = []
        self._document = {
            "machine": self._machine,
            "complete": False,
            "red": self._red,
            "failed": self._failed,
            "results": self._results,
        }
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def measure_machine(self, options: Options) -> None:
        """Measure the peak of the machine's matrix products, a few seconds, and print it."""
        self._machine["matrix_peak"] = matrix_peaks(options)
        self._write()
        print(headline(self._machine), flush=True)

    def run_benchmark(self, name: str, cases: Iterable[Case]) -> None:
        """Measure every case of a benchmark.

        A case that is red or fails does not affect the others. An exception from `cases` itself,
        outside a case, ends the benchmark and is recorded as its failure.
        """
        self._results.setdefault(name, [])
        with self._record_errors(name, ""):
            for case in cases:
                with self._record_errors(name, case.name):
                    for row in case.rows():
                        self._add_row(name, row)

    def finish(self) -> int:
        """Mark the document as complete. Returns the exit status: 1 if a case was red or failed."""
        self._document["complete"] = True
        self._write()
        for kind, entries in (("red", self._red), ("failed", self._failed)):
            for entry in entries:
                print(_error_line(kind, entry), file=sys.stderr)
        return 1 if self._red or self._failed else 0

    def _add_row(self, benchmark: str, row: Row) -> None:
        self._results[benchmark].append(row.as_dict())
        self._write()
        print(row_line(row), flush=True)

    @contextmanager
    def _record_errors(self, benchmark: str, case: str) -> Iterator[None]:
        try:
            yield
        except RedCaseError as error:
            entry = {"benchmark": benchmark, "case": case, "message": str(error)}
            self._red.append(entry)
            self._write()
            print(_error_line("red", entry), flush=True)
        except failures() as error:
            entry = {"benchmark": benchmark, "case": case, "message": _error_message(error)}
            self._failed.append(entry)
            self._write()
            traceback.print_exc()  # not written to the document: it contains paths of the machine
            print(_error_line("failed", entry), flush=True)

    def _write(self) -> None:
        if self._path is None:
            return
        self._machine["load_average"] = load_average()
        part = self._path.with_name(f"{self._path.name}.part")
        with part.open("w") as file:
            file.write(json.dumps(self._document, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self._path)


def row_line(row: Row) -> str:
    """The row as a line of the printed table."""
    notes = "  ".join(f"{key} {_note_text(value)}" for key, value in row.notes.items())
    return (
        f"{row.case:34} {row.implementation:34} {row.median_ms:10.3f} ms  ({row.low_ms:.3f} .. "
        f"{row.high_ms:.3f})  {notes}"
    )


def _note_text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _error_line(kind: str, entry: dict[str, str]) -> str:
    return f"{kind}: {entry['benchmark']}: {entry['case'] or 'not in a case'}: {entry['message']}"


def _error_message(error: BaseException) -> str:
    """The type and message of an error, and the end of stderr if it comes from a subprocess."""
    stderr = str(error.stderr)[-500:] if isinstance(error, subprocess.CalledProcessError) else ""
    text = f"{type(error).__name__}: {error} {stderr}".strip()
    return text.replace(str(ROOT), ".")[:1000]
