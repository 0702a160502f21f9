"""Records as a table for the terminal. Imports the standard library only."""

from __future__ import annotations

from benchmarks.first_light.records import Record

MOST = 10_000
"""The largest number of characters in the table."""
_NOT_VALUES = ("step", "item", "status", "kernels", "log", "traceback")
"""Keys of a record that are left out of the list of its values."""


def table(records: list[Record]) -> str:
    """One line per record, at most `MOST` characters.

    The lines with the status of each step come last and are always included; if the others do not
    fit, the last of them are left out.
    """
    ends = [_line(r) for r in records if r["item"] == "end"]
    rows = [_line(r) for r in records if r["item"] != "end"]
    remaining = MOST - sum(len(line) + 1 for line in ends) - 120
    lines: list[str] = []
    for line in rows:
        if len(line) + 1 > remaining:
            lines.append(f"... {len(rows) - len(lines)} more lines in first_light.jsonl")
            break
        lines.append(line)
        remaining -= len(line) + 1
    return "\n".join([*lines, *ends])[:MOST] + "\n"


def _line(record: Record) -> str:
    values = "  ".join(
        f"{key} {_short(value)}" for key, value in record.items() if key not in _NOT_VALUES
    )
    status = record.get("status", "ok")
    log = record.get("log") or record.get("traceback") or ""
    reason = " | " + " ".join(log.split())[-160:] if log and status != "ok" else ""
    outcome = "" if status == "ok" and record["item"] != "end" else f"  {status}"
    return f"{record['step']:9}{record['item']:44} {values}{outcome}{reason}".rstrip()[:420]


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + " ".join(_short(x) for x in value[:12]) + "]"
    return str(value)[:200]
